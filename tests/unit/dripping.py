# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that never end: they drip, byte by byte, or send without end, in each part of an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
#: What is sent at once, what is sent again and again, and the seconds between; the last ones are as fast as the wire takes them.
KINDS = {
    "status": (b"HTTP/1.1 20", b"0", 0.02),
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.02),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n", 0.05),
    "length": (_OK + b"Content-Length: 100000\r\n\r\n", b"[", 0.02),
    "until closed": (_OK + b"\r\n", b" ", 0.02),
    "chunks": (_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.02),
    "chunk": (_OK + b"Transfer-Encoding: chunked\r\n\r\nFFFFFF\r\n", b" ", 0.02),
    "comments": (_STREAM + b"\r\n", b": still here\n\n", 0.02),
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    "endless": (_OK + b"\r\n", b" " * 65536, 0.0),
    "endless chunks": (_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n", 0.0),
    "endless chunk": (_OK + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\n", b" " * 65536, 0.0),
    "endless line": (_STREAM + b"\r\n", b"data: " + b"x" * 65536, 0.0),
}


@contextlib.contextmanager
def dripping(kind: str) -> Iterator[str]:
    """Where one of them listens."""
    begin, again, pause = KINDS[kind]
    stop = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(begin)
            while not stop.wait(pause) if pause else not stop.is_set():
                connection.sendall(again)

    def serve() -> None:
        while True:
            try:
                connection, _address = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
