# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one run of verify.yml costs for 2, 20 and 200 endpoints, in two shapes: services of one host, and hosts with one service each.

Endpoints are ports of one server in a process of its own, whose answers take a known time. They are verified from the controller, so
no host and no lab is needed. Timings are printed, never asserted: only a run that does not verify every endpoint fails.

    PYTHONPATH=.venv/collections .venv/bin/python tests/perf/fleet.py [--sizes 2 20 200] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = "fleet/model"
#: Seconds until the first token, and between tokens.
TTFT, ITL, TOKENS = 0.2, 0.05, 8
SHAPES = ("services of one host", "hosts of one service")


# -- endpoints ---------------------------------------------------------------------------------------------------------


class Endpoint(asyncio.Protocol):
    """One connection to an endpoint."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._buffer = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if end and len(body) >= int(length[1] if length else 0):
            self._buffer = b""
            method, path, _version = head.split(b"\r\n")[0].decode().split(" ")
            task = asyncio.get_running_loop().create_task(self._answer(f"{method} {path}", body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: str, body: bytes) -> None:
        if request == "POST /v1/chat/completions":
            await self._complete(json.loads(body))
        elif request == "GET /v1/models":
            self._json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif request == "GET /v1/health/ready":
            self._json({"object": "health.response", "message": "ready", "status": "ready"})
        else:
            self._json({"detail": "Not Found"}, "404 Not Found")

    async def _complete(self, asked: dict[str, Any]) -> None:
        usage = {"prompt_tokens": 8, "completion_tokens": TOKENS, "total_tokens": 8 + TOKENS}
        frame = {"id": "chatcmpl-fleet", "created": 1763881200, "model": MODEL}
        if not asked.get("stream"):
            await asyncio.sleep(TTFT + ITL * TOKENS)
            message = {"role": "assistant", "content": "word " * TOKENS}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self._json({**frame, "object": "chat.completion", "choices": choices, "usage": usage})
            return
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head.encode())
        frame["object"] = "chat.completion.chunk"
        for number in range(TOKENS):
            await asyncio.sleep(ITL if number else TTFT)
            self._event({**frame, "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})
        self._event({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({**frame, "choices": [], "usage": usage})
        self._event("[DONE]")
        self._transport.write(b"0\r\n\r\n")

    def _event(self, data: Any) -> None:
        text = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
        self._transport.write(b"%x\r\n%b\r\n" % (len(text), text))

    def _json(self, data: Any, status: str = "200 OK") -> None:
        body = json.dumps(data).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


async def serve(count: int) -> None:
    """Listens on so many ports, prints them, and ends with the standard input."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Endpoint, "127.0.0.1", 0) for _ in range(count)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def endpoints(count: int) -> Iterator[list[int]]:
    """Ports of running endpoints."""
    command = [sys.executable, __file__, "--serve", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield [int(port) for port in process.stdout.readline().split()]
        finally:
            process.terminate()


# -- plays -------------------------------------------------------------------------------------------------------------


def inventory(shape: str, ports: list[int]) -> dict[str, Any]:
    """An inventory of nim_servers that nobody can log in to."""
    services = [
        {"name": f"llama-{number}", "image": "nvcr.io/nim/fleet/model", "tag": "2.0.5", "port": port, "gpus": [number]}
        for number, port in enumerate(ports)
    ]
    groups = [services] if shape == SHAPES[0] else [[service] for service in services]
    hosts = {f"gpu{number:03}": {"nim_services": group} for number, group in enumerate(groups)}
    common = {"nim_verify_from": "controller", "nim_service_verify_address": "127.0.0.1", "ansible_port": 9}
    return {"nim_servers": {"hosts": hosts, "vars": {"ansible_host": "192.0.2.1", **common}}}


def verify(shape: str, ports: list[int], profile: bool) -> tuple[float, float]:
    """Runs verify.yml; seconds of the clock, and of the processors. Leaves when an endpoint is not verified."""
    with tempfile.TemporaryDirectory() as folder:
        report, hosts = pathlib.Path(folder, "report.json"), pathlib.Path(folder, "hosts.json")
        hosts.write_text(json.dumps(inventory(shape, ports)), encoding="utf-8")
        ansible = pathlib.Path(sys.executable).parent / "ansible-playbook"
        command = [str(ansible), "-i", str(hosts), "baremetal.nim.verify", "-e", f"nim_report={report}"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        environment = {**kept, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        if profile:
            environment["ANSIBLE_CALLBACKS_ENABLED"] = "ansible.posix.profile_tasks"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else []
        if done.returncode or sum(item["verified"] for item in found) != len(ports):
            sys.exit(
                f"fleet: {len(found)} of {len(ports)} endpoints verified:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
            )
        if profile:
            print("\n".join(line for line in done.stdout.splitlines() if re.search(r" -+ +[0-9.]+s$", line)))
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, cpu


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 20, 200], help="numbers of endpoints (2 20 200)")
    parser.add_argument("--profile", action="store_true", help="show how long each task took")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve))
        return 0
    rows = []
    with endpoints(max(args.sizes)) as ports:
        for shape in SHAPES:
            first: tuple[float, int] | None = None
            for size in args.sizes:
                seconds, cpu = verify(shape, ports[:size], args.profile)
                first = first or (seconds, size)
                rows.append((shape, size, seconds, cpu, seconds / first[0], size / first[1]))
    print(f"{'shape':<22}{'endpoints':>10}{'wall s':>9}{'CPU s':>9}{'× wall':>9}{'× endpoints':>13}")
    for shape, size, seconds, cpu, growth, more in rows:
        print(f"{shape:<22}{size:>10}{seconds:>9.1f}{cpu:>9.1f}{growth:>9.1f}{more:>13.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
