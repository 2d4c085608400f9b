# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What load the client of nim_benchmark can drive, beside threads with requests on the same server in the same run.

client_rate.py [--seconds N]

The server answers at once, in a process of its own. Where server and client are busy at the same time, the rate is a lower limit of what
the client can do; its processor time per request and per token says how much one processor would allow. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import threading
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "unit"))

from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import Endpoint
from ansible_collections.baremetal.nim.plugins.module_utils._load import Run
from steady_server import MODEL, steady

#: Requests in flight, tokens of each answer.
CASES = ((16, 1), (64, 1), (64, 64), (256, 64))
#: TTFT and ITL of the server whose latencies are known.
TTFT, ITL = 0.2, 0.02

Numbers = dict[str, float]


def options(url: str, level: int, tokens: int, seconds: float) -> dict[str, Any]:
    """Options of the module."""
    given = {name: fact.get("default") for name, fact in _benchmark.ARGUMENT_SPEC.items()}
    return {
        **given,
        "url": url,
        "concurrency": [level],
        "output_tokens": tokens,
        "input_tokens": 64,
        "duration": seconds,
    }


def ours(url: str, level: int, tokens: int, seconds: float) -> Numbers:
    """The client of the module."""
    before = time.process_time()
    step = Run(options(url, level, tokens, seconds), url).run()["steps"][0]
    used = time.process_time() - before
    if step["failed_requests"]:
        sys.exit(f"requests failed: {step['errors']}")
    return {"rate": step["requests_per_s"], "cpu": used / step["completed"], "ttft": step["ttft_ms"]["p50"]}


def threads(url: str, level: int, tokens: int, seconds: float) -> Numbers:
    """A thread for each request in flight, each with a session of requests."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "word " * 64}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found: list[float] = []
    begin, before = time.monotonic(), time.process_time()

    def work() -> None:
        endpoint = Endpoint(url, 60)
        while time.monotonic() - begin < seconds:
            found.append(endpoint.stream(body).ttft or 0.0)

    workers = [threading.Thread(target=work) for _number in range(level)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = time.monotonic() - begin
    ttft = _benchmark.percentile(sorted(found), 50) * 1000
    return {"rate": len(found) / took, "cpu": (time.process_time() - before) / len(found), "ttft": ttft}


def show(label: str, mine: Numbers, other: Numbers) -> None:
    """One line for each number."""
    for name, unit, factor in (("rate", "requests/s", 1), ("cpu", "CPU us/request", 1e6), ("ttft", "TTFT p50 ms", 1)):
        one, two = mine[name] * factor, other[name] * factor
        print(f"{label:<26} {unit:<15} {one:>12.1f} {two:>12.1f} {one / two:>8.2f}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (3)")
    args = parser.parse_args()
    print(f"{'in flight, tokens':<26} {'':<15} {'client':>12} {'threads':>12} {'ratio':>8}")
    with steady() as url:
        for level, tokens in CASES:
            mine = ours(url, level, tokens, args.seconds)
            show(f"{level}, {tokens}", mine, threads(url, level, tokens, args.seconds))
    with steady(TTFT, ITL) as url:
        for level in (16, 128):
            mine = ours(url, level, 32, args.seconds)
            show(f"{level}, 32, TTFT {TTFT * 1000:g} ms", mine, threads(url, level, 32, args.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
