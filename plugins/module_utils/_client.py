# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The HTTP/1.1 client of a benchmark, for many streams at a time.

Threads with requests take several times the processor time for each event of a stream (docs/benchmark.md has numbers),
and that time would be in every latency; so this is asyncio on sockets, and nothing more of HTTP than such answers need.
This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.baremetal.nim.plugins.module_utils._answers import Reading, Record
from ansible_collections.baremetal.nim.plugins.module_utils._chat import CHAT_PATH, parse_json, read_models
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._refusal import http_fault

_HEAD_LIMIT = 65536
#: Most bytes of an answer, of what is no stream, and of one chunk; interim answers before the one that counts.
_MOST, _MOST_OF_A_BODY, _MOST_OF_A_CHUNK, _MOST_INTERIM = 64 * 2**20, 2**20, 4 * 2**20, 20
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
#: What this host lacks, and not the endpoint: files, ports, memory.
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)


class Broken(Exception):
    """The connection ended before the answer did. begun: whether anything of the answer had come."""

    def __init__(self, words: str, begun: bool) -> None:
        super().__init__(words)
        self.begun = begun


class _Answer:
    """What becomes of one request: status, body, and a future that ends with it."""

    __slots__ = ("body", "fields", "future", "interim", "keep", "reading", "size", "status")

    def __init__(self, future: asyncio.Future[None], reading: Reading | None) -> None:
        self.future = future
        self.reading = reading
        self.status = 0
        self.fields: dict[str, str] = {}
        self.keep = True
        self.body = bytearray()
        self.size = self.interim = 0

    def data(self, data: bytes, at: float) -> None:
        """Take a part of the body."""
        self.size += len(data)
        if self.reading is not None and self.status == 200:
            if self.size > _MOST:
                raise Fault("bad_response", f"the answer is longer than {_MOST // 2**20} MiB", "one that ends")
            self.reading.feed(data, at)
            return
        if self.size > _MOST_OF_A_BODY:
            raise Fault("bad_response", f"the answer is longer than {_MOST_OF_A_BODY // 2**20} MiB", "one that ends")
        self.body += data


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. Each read is stamped before it is looked at."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._transport: asyncio.Transport | None = None
        self._answer: _Answer | None = None
        self._buffer = bytearray()
        self._in_body = False
        # Bytes of the body to come; None for chunks, -1 for all until the connection ends.
        self._left: int | None = None
        self.used = False

    @property
    def open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, answer: _Answer) -> None:
        """Send a request; its answer's future ends when all has come."""
        self._answer, self._buffer, self._in_body = answer, bytearray(), False
        if self._transport is None or self._transport.is_closing():
            self.connection_lost(None)
            return
        self._transport.write(request)

    def close(self) -> None:
        """Break off."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has gone."""
        answer, self._answer = self._answer, None
        if answer is None or answer.future.done():
            return
        if self._in_body and self._left == -1 and exc is None:
            try:
                self._finish(answer, self._now())
            except Fault as fault:
                answer.future.set_exception(fault)
            return
        begun = self._in_body or bool(self._buffer)
        answer.future.set_exception(Broken(shorten(str(exc)) if exc else "connection closed", begun))

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        at = self._now()
        answer = self._answer
        if answer is None:
            # Nobody asked: this connection is of no use any more.
            self.close()
            return
        try:
            self._take(data, answer, at)
        except (Fault, ValueError) as exc:
            self.close()
            if not answer.future.done():
                answer.future.set_exception(exc)

    def _take(self, data: bytes, answer: _Answer, at: float) -> None:
        if not self._in_body:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_LIMIT:
                    raise Fault("bad_response", "the head of the answer has no end", "HTTP/1.1")
                return
            head, data, self._buffer = bytes(self._buffer[:end]), bytes(self._buffer[end + 4 :]), bytearray()
            self._head(head, answer)
            if not self._in_body:
                # An interim answer (1xx) came before the real one.
                answer.interim += 1
                if answer.interim > _MOST_INTERIM:
                    raise Fault("bad_response", f"{answer.interim} interim answers came", "one that counts")
                self._take(data, answer, at)
                return
        if self._left is None:
            if self._chunks(data, answer, at):
                self._finish(answer, at)
            return
        if data:
            answer.data(data if self._left < 0 else data[: self._left], at)
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(answer, at)

    def _head(self, head: bytes, answer: _Answer) -> None:
        status, *lines = head.decode("latin-1").split("\r\n")
        words = status.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not re.fullmatch("[1-5][0-9]{2}", words[1]):
            raise Fault("bad_response", f"the answer begins with {shorten(status, 80)!r}", "HTTP/1.1")
        if words[1].startswith("1"):
            return
        fields = {}
        for line in lines:
            name, _colon, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
        answer.status, answer.fields = int(words[1]), fields
        connection = fields.get("connection", "").lower()
        answer.keep = "close" not in connection and (words[0] != "HTTP/1.0" or "keep-alive" in connection)
        if "chunked" in fields.get("transfer-encoding", "").lower():
            self._left = None
        elif re.fullmatch("[0-9]{1,15}", fields.get("content-length", "")):
            self._left = int(fields["content-length"])
        else:
            self._left, answer.keep = -1, False
        self._in_body = True

    def _chunks(self, data: bytes, answer: _Answer, at: float) -> bool:
        """Pass on the chunks that have come whole; whether the last one was among them."""
        # What is put behind a long one is not copied with it.
        self._buffer += data
        buffer = self._buffer
        place, parts, ended = 0, [], False
        while True:
            line = buffer.find(b"\r\n", place)
            if line < 0:
                if len(buffer) - place > _HEAD_LIMIT:
                    raise Fault("bad_response", "the size of a chunk has no end", "HTTP/1.1")
                break
            told = bytes(buffer[place:line]).partition(b";")[0].rstrip(b" \t")
            size = int(told, 16) if _SIZE.fullmatch(told) else _MOST
            if size > _MOST_OF_A_CHUNK:
                # int() takes a sign as well, and a chunk of less than nothing would be read again and again.
                raise ValueError(f"a chunk of size {shorten(repr(told), 40)}")
            if size == 0:
                # Trailers may follow; an empty line ends them.
                ended = buffer.find(b"\r\n\r\n", line) >= 0
                if not ended and len(buffer) - line > _HEAD_LIMIT:
                    raise Fault("bad_response", "the trailers of the answer have no end", "HTTP/1.1")
                break
            after = line + 2 + size
            if len(buffer) < after + 2:
                break
            parts.append(bytes(buffer[line + 2 : after]))
            place = after + 2
        del buffer[:place]
        if parts:
            answer.data(parts[0] if len(parts) == 1 else b"".join(parts), at)
        return ended

    def _finish(self, answer: _Answer, at: float) -> None:
        self._answer = None
        if answer.reading is not None and answer.status == 200:
            answer.reading.end(at)
        if not answer.keep:
            self.close()
        if not answer.future.done():
            answer.future.set_result(None)


class Client:
    """Asks one endpoint, over connections that are kept.

    options: of the module. Raises Fault from what asks once; stream() writes failures into its record.
    """

    def __init__(self, options: Mapping[str, Any], base: str, now: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(base)
        self.base = base
        self._now = now
        self._timeout = float(options["request_timeout"])
        self._host, self._tls = parts.hostname or "", _tls(options) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        fields = [f"Host: {parts.netloc}", "User-Agent: baremetal.nim", "Accept: */*"]
        if options["api_key"]:
            fields.append(f"Authorization: Bearer {options['api_key']}")
        self._fields = "\r\n".join(fields)
        self._post = self._head("POST", CHAT_PATH) + b"\r\nContent-Type: application/json\r\nContent-Length: "
        self._idle: list[_Connection] = []

    def _head(self, method: str, path: str) -> bytes:
        return f"{method} {self._path}{path} HTTP/1.1\r\n{self._fields}".encode("latin-1")

    def close(self) -> None:
        """Close what is kept open."""
        while self._idle:
            self._idle.pop().close()

    async def models(self) -> list[str]:
        """Return the ids that /v1/models lists."""
        request = "GET /v1/models"
        with _faults(request, self.base, self._timeout):
            answer = await self._exchange(self._head("GET", "/v1/models") + b"\r\n\r\n", None)
        _refuse(request, answer)
        return list(read_models(parse_json(request, answer.body.decode("utf-8", "replace"))))

    async def stream(self, body: Mapping[str, Any], record: Record | None = None) -> Record:
        """Send one request. What goes wrong is in the record: class and words."""
        data = json.dumps(body).encode()
        request = b"%b%d\r\n\r\n%b" % (self._post, len(data), data)
        record = record or Record(self._now())
        try:
            with _faults(f"POST {CHAT_PATH}", self.base, self._timeout):
                answer = await self._exchange(request, Reading(record))
                record.status = answer.status
                if answer.status != 200:
                    _refuse(f"POST {CHAT_PATH}", answer)
        except Fault as fault:
            record.fail(fault)
        return record

    async def _exchange(self, request: bytes, reading: Reading | None) -> _Answer:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        while True:
            connection = await self._connection(end)
            answer = _Answer(loop.create_future(), reading)
            timer = loop.call_at(end, _expire, answer)
            stale = connection.used
            connection.used = True
            connection.send(request, answer)
            try:
                await answer.future
            except Broken as exc:
                # A server may close an idle connection at the very moment that it is used again.
                if not stale or exc.begun:
                    raise
                continue
            finally:
                timer.cancel()
                if answer.future.cancelled() or answer.future.exception() is not None:
                    connection.close()
                elif answer.keep and connection.open:
                    self._idle.append(connection)
            return answer

    async def _connection(self, end: float) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        opening = loop.create_connection(
            lambda: _Connection(self._now), self._host, self._port, ssl=self._tls, happy_eyeballs_delay=0.25
        )
        return (await asyncio.wait_for(opening, max(0.001, end - loop.time())))[1]


def _expire(answer: _Answer) -> None:
    if not answer.future.done():
        answer.future.set_exception(asyncio.TimeoutError())


def _refuse(request: str, answer: _Answer) -> None:
    fault = http_fault(request, answer.status, answer.body.decode("utf-8", "replace"), answer.fields)
    if fault:
        raise fault


@contextlib.contextmanager
def _faults(request: str, base: str, timeout: float) -> Iterator[None]:
    """Turn errors of the network into Fault."""
    try:
        yield
    except Fault:
        raise
    except asyncio.TimeoutError:
        raise Fault("slow", f"no whole answer to {request} within {timeout:g} s", "a completion") from None
    except Broken as exc:
        raise Fault("dead_engine", f"{request} broke off ({exc})", "a whole answer") from None
    except ssl.SSLError as exc:
        raise Fault("tls", f"TLS failed ({shorten(exc.reason or str(exc))})", "a trusted connection") from None
    except OSError as exc:
        # asyncio puts "Connect call failed" in the place of the system's own words; a resolver's errors are below 0.
        words = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else shorten(exc.strerror or str(exc))
        if exc.errno in _OWN_LIMITS:
            raise Fault(
                "client_limit", f"this host makes no more connections ({words})", "one to each request"
            ) from None
        raise Fault("unreachable", f"no connection to {base} ({words})", "an endpoint that listens") from None
    except ValueError as exc:
        raise Fault("bad_response", f"{request} answered no HTTP ({shorten(str(exc))})", "HTTP/1.1") from None


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    path = options["ca_path"]
    try:
        is_directory = bool(path) and os.path.isdir(path)
        context = ssl.create_default_context(
            cafile=None if is_directory else path, capath=path if is_directory else None
        )
        if not options["validate_certs"]:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if options["client_cert"]:
            context.load_cert_chain(options["client_cert"], options["client_key"])
    except (OSError, ssl.SSLError) as exc:
        raise Fault("tls", f"the certificates cannot be used ({shorten(str(exc))})", "PEM files that fit") from None
    return context
