# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deadlines of requests that hold whatever a server does. Private to the collection.

A timeout of a socket begins anew with each byte that comes, so a server that drips is waited for without end, be it in its body, its
headers or the handshake of TLS. Here the connection itself is ended when the time is over, by its file descriptor: whoever reads wakes up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

try:
    from requests.adapters import HTTPAdapter
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
except ImportError:
    # Whose module needs them says so.
    pass

#: Seconds that a client has besides, which has a timeout itself.
_MORE = 1.0
#: The deadline of the request that this thread is in.
_current = threading.local()


class Deadline:
    """Ends the connection that is watched once its time is over. ``over`` tells whether it has."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._end)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, sock: Any) -> None:
        """Have this connection end, in place of another one."""
        # Of its own descriptor: TLS takes the socket away from who opened it.
        try:
            copy = socket.socket(fileno=os.dup(sock.fileno()))
        except OSError:
            # It is closed already.
            return
        with self._lock:
            self._drop()
            self._sock = copy
            over = self.over
        if over:
            self._end()

    def cancel(self) -> None:
        """The request has ended."""
        self._timer.cancel()
        with self._lock:
            self._drop()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            if self._sock:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        if self._sock:
            self._sock.close()
            self._sock = None


@contextlib.contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """A deadline for what this thread asks by a session that has the adapter below."""
    deadline = Deadline(seconds)
    before, _current.deadline = getattr(_current, "deadline", None), deadline
    try:
        yield deadline
    finally:
        _current.deadline = before
        deadline.cancel()


def _watch(sock: Any) -> None:
    deadline = getattr(_current, "deadline", None)
    if deadline is not None and sock is not None:
        deadline.watch(sock)


def _watched(pool: Any) -> Any:
    """A pool whose connections tell of their socket as soon as there is one, and whenever it is used again."""
    usual = pool.ConnectionCls

    def _new_conn(self: Any) -> Any:
        sock = usual._new_conn(self)
        _watch(sock)
        return sock

    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        _watch(getattr(self, "sock", None))
        return usual.request(self, *args, **kwargs)

    def request_chunked(self: Any, *args: Any, **kwargs: Any) -> Any:
        _watch(getattr(self, "sock", None))
        return usual.request_chunked(self, *args, **kwargs)

    own = {"_new_conn": _new_conn, "request": request, "request_chunked": request_chunked}
    return type("Pool", (pool,), {"ConnectionCls": type("Connection", (usual,), own)})


def adapter() -> HTTPAdapter:
    """What a session of requests sends by, whose connections end with the deadline of the thread that uses them."""
    made = HTTPAdapter()
    pools = {"http": _watched(HTTPConnectionPool), "https": _watched(HTTPSConnectionPool)}
    made.poolmanager.pool_classes_by_scheme = pools
    return made


def apart(seconds: float, work: Callable[[], Any], faults: tuple[type[BaseException], ...]) -> Any:
    """What WORK returns, or raises of FAULTS, in a thread of its own; raises socket.timeout when it takes longer, and leaves it behind.

    For clients that give nobody their socket. What is left behind ends with the process at the latest.
    """
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except faults as problem:
            failed.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    # A little more, so that an error of the client's own tells first.
    thread.join(min(seconds + _MORE, threading.TIMEOUT_MAX))
    if failed:
        raise failed[0]
    if not found:
        raise socket.timeout("timed out")
    return found[0]
