# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A chat endpoint whose every answer takes the same time: what a benchmark of it must find is known beforehand.

steady_server.py [--ttft SECONDS] [--itl SECONDS] [--port PORT] [--dies-after REQUESTS]

Each token is a chunk, due at ttft + number * itl after its request by an absolute schedule, so that delays do not add up. It runs in
a process of its own, prints its port, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

MODEL = "steady/model"
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"connection: keep-alive\r\n\r\n"
)
_ENVELOPE = {"id": "chatcmpl-steady", "object": "chat.completion.chunk", "created": 1763881200, "model": MODEL}


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _event(**fields: object) -> bytes:
    return _chunk(b"data: " + json.dumps({**_ENVELOPE, **fields}).encode() + b"\n\n")


def _choice(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _event(choices=[{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])


_ROLE = _choice({"role": "assistant", "content": ""})
_TOKEN = _choice({"content": " token"})
_LAST = _choice({"content": ""}, "length")
_DONE = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Steady(asyncio.Protocol):
    """One connection."""

    ttft = 0.0
    itl = 0.0
    #: Requests for completions that are still answered; it is killed by the next one.
    left = math.inf

    def __init__(self) -> None:
        self._buffer = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        at = self._loop.time()
        self._buffer += data
        while True:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            length = 0
            for line in head.split(b"\r\n"):
                name, _colon, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(head.split(b" ", 2), rest[:length], at)

    def _answer(self, words: list[bytes], body: bytes, at: float) -> None:
        if words[:2] == [b"GET", b"/v1/models"]:
            data = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
            )
            return
        if words[:2] != [b"POST", b"/v1/chat/completions"]:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        Steady.left -= 1
        if Steady.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        asked = json.loads(body)
        tokens = asked.get("max_completion_tokens") or asked.get("max_tokens") or 16
        prompt = sum(len(str(message["content"]).split()) for message in asked["messages"])
        counts = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        end = _LAST + _event(choices=[], usage=counts) + _DONE
        if not self.ttft and not self.itl:
            self._transport.write(_HEAD + _ROLE + _TOKEN * tokens + end)
            return
        self._transport.write(_HEAD + _ROLE)
        self._token(at + self.ttft, tokens, end)

    def _token(self, due: float, left: int, end: bytes) -> None:
        self._loop.call_at(due, self._send, due, left, end)

    def _send(self, due: float, left: int, end: bytes) -> None:
        self._transport.write(_TOKEN if left > 1 else _TOKEN + end)
        if left > 1:
            self._token(due + self.itl, left - 1, end)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Steady, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


@contextlib.contextmanager
def steady(ttft: float = 0.0, itl: float = 0.0, dies_after: float = math.inf) -> Iterator[str]:
    """Runs a server; its address. After so many completions it is killed."""
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), f"--ttft={ttft}", f"--itl={itl}"]
    command += [f"--dies-after={dies_after}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ttft", type=float, default=0.0)
    parser.add_argument("--itl", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dies-after", type=float, default=math.inf)
    args = parser.parse_args()
    Steady.ttft, Steady.itl, Steady.left = args.ttft, args.itl, args.dies_after
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(args.port))


if __name__ == "__main__":
    main()
