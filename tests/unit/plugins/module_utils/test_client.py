# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP client of a benchmark against servers that answer byte by byte as told."""

from __future__ import annotations

import asyncio
import errno
import socketserver
import struct
import time
from socket import SO_LINGER, SOL_SOCKET

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from ansible_collections.baremetal.nim.plugins.module_utils._client import Client
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, NimServer, chunks, sse
from ansible_collections.baremetal.nim.tests.unit.serving import serving

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
BODY = b"".join(sse(chunks()))
WHOLE = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in sse(chunks()))
CHUNKED = SSE + b"Transfer-Encoding: chunked\r\n\r\n" + WHOLE


class Told(socketserver.ThreadingTCPServer):
    """Answers each request with the next of its answers: bytes, or a list of bytes sent one after another.

    An answer ends with its connection if it says None last; it resets the connection if it is None.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), Talk)
        self.answers, self.heads, self.connections = list(answers), [], 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Clients of these tests break off on purpose."""


class Talk(socketserver.BaseRequestHandler):
    def handle(self):
        self.server.connections += 1
        while True:
            head = b""
            while b"\r\n\r\n" not in head:
                data = self.request.recv(65536)
                if not data:
                    return
                head += data
            head, _end, rest = head.partition(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
            )
            while len(rest) < length:
                rest += self.request.recv(65536)
            self.server.heads.append(head)
            if not self.server.answers:
                return
            answer = self.server.answers.pop(0)
            if answer is None:
                self.request.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                return
            for part in answer if isinstance(answer, list) else [answer]:
                if part is None:
                    return
                self.request.sendall(part)
                if isinstance(answer, list):
                    time.sleep(0.002)


def options(**changes):
    given = {name: fact.get("default") for name, fact in _benchmark.ARGUMENT_SPEC.items()}
    return {**given, "request_timeout": 60.0, **changes}


def ask(url, times=1, pause=0.0, **changes):
    """Records of requests one after another over one client."""

    async def run():
        client = Client(options(**changes), url)
        found = []
        for _number in range(times):
            found.append(await client.stream({"model": MODEL}))
            await asyncio.sleep(pause)
        client.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + b"0\r\n\r\n",
        [CHUNKED[place : place + 1] for place in range(len(CHUNKED))] + [b"0\r\n", b"X-Trailer: 1\r\n", b"\r\n"],
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED + b"0\r\n\r\n",
        SSE + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        [SSE + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY[:100], BODY[100:]],
        [b"HTTP/1.0 200 OK\r\n\r\n", BODY, None],
        [SSE.replace(b"\r\nC", b"\r\nConnection: close\r\nC") + b"\r\n" + BODY, None],
    ],
    ids=["chunked", "byte by byte", "interim", "length", "length in parts", "1.0", "close"],
)
def test_answers(answer):
    with serving(Told(answer)) as server:
        (record,) = ask(server.url)
    assert (record.error, record.text) == (None, "")
    assert (record.done, record.chunks, record.prompt_tokens, record.output_tokens) == (True, 2, 16, 2)
    assert record.start < record.first <= record.last


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (None, "dead_engine", "broke off"),
        ([CHUNKED[:400], None], "dead_engine", "broke off"),
        ([SSE + b"Content-Length: 9999\r\n\r\n" + BODY, None], "dead_engine", "broke off"),
        ([SSE + b"\r\n" + b"".join(sse(chunks())[:2]), None], "incomplete", "without [DONE] and without finish_reason"),
        (b"nonsense\r\n\r\n", "bad_response", "'nonsense'"),
        (SSE + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "bad_response", "no HTTP"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nsick", "dead_engine", "HTTP 503"),
        (b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", "overloaded", "HTTP 503"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 17\r\n\r\nthe queue is full", "overloaded", "queue is full"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "dead_engine", "reaches nothing behind it"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "auth", "HTTP 401"),
        (b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n", "overloaded", "HTTP 429"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "bad_response", "HTTP 302"),
        (b"X" * 70000, "bad_response", "no end"),
    ],
)
def test_failures(answer, kind, words):
    with serving(Told(answer)) as server:
        (record,) = ask(server.url)
    assert record.error == kind, record.text
    assert words in record.text


def test_a_request_that_takes_too_long():
    with serving(Told([SSE, b"\r\n"] + [b": still here\n\n"] * 2000)) as server:
        (record,) = ask(server.url, request_timeout=0.2)
    assert record.error == "slow" and "within 0.2 s" in record.text


def test_connections_are_kept():
    with serving(Told(*[CHUNKED + b"0\r\n\r\n"] * 5)) as server:
        assert [record.error for record in ask(server.url, times=5)] == [None] * 5
        assert server.connections == 1


def test_a_connection_that_was_closed_meanwhile_costs_nothing():
    answer = [CHUNKED + b"0\r\n\r\n", None]
    with serving(Told(answer, answer, answer)) as server:
        assert [record.error for record in ask(server.url, times=3, pause=0.05)] == [None] * 3
        assert server.connections == 3


def test_a_connection_that_is_closed_at_that_very_moment_is_tried_again():
    """The server reads the second request of a connection, and resets it: it was idle for too long."""
    good = CHUNKED + b"0\r\n\r\n"
    with serving(Told(good, None, good)) as server:
        assert [record.error for record in ask(server.url, times=2)] == [None, None]
        assert (server.connections, len(server.heads)) == (2, 3)


def test_the_head_of_a_request():
    with serving(Told(CHUNKED + b"0\r\n\r\n")) as server:
        ask(server.url + "/prefix/", api_key="sk-1")
        first, *fields = server.heads[0].decode().split("\r\n")
    assert first == "POST /prefix/v1/chat/completions HTTP/1.1"
    assert {"Authorization: Bearer sk-1", f"Host: {server.url[7:]}", "Content-Type: application/json"} <= set(fields)


def test_models():
    with NimServer(models=["a", "b"]) as nim:
        client = Client(options(), nim.url)
        assert asyncio.run(client.models()) == ["a", "b"]
    with pytest.raises(Fault) as caught:
        asyncio.run(Client(options(), "https://" + nim.url[7:]).models())
    assert caught.value.failure_class == "unreachable"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
def test_what_this_host_lacks_is_not_the_endpoints_fault(monkeypatch, number):
    async def refuse(*_args, **_more):
        raise OSError(number, "words of the system")

    async def run():
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refuse)
        return await Client(options(), "http://127.0.0.1:9").stream({"model": MODEL})

    record = asyncio.run(run())
    assert record.error == "client_limit" and "this host makes no more connections" in record.text
