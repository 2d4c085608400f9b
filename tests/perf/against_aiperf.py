# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_benchmark and aiperf measure the same server, one after the other, and the differences are printed.

against_aiperf.py [--aiperf PROGRAM] [--requests N] [--concurrency N] [--ttft SECONDS] [--itl SECONDS] [--output-tokens N]
                  [--url URL --model MODEL]

Both send the same bodies, each with texts of its own. The server is one whose times are known, or with --url any that chats; keep the
two off its cores then (taskset), or what is measured is how they share them. aiperf is not part of the toolbox: install it into an environment
of its own (python -m venv /tmp/aiperf, /tmp/aiperf/bin/pip install aiperf) and name its program. Nothing fails for being different; a run
that fails does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "unit"))

from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from steady_server import MODEL, steady

SEEDS = itertools.count(1)
WORKER = """
import json, sys
from ansible_collections.baremetal.nim.plugins.module_utils._load import Run
options = json.load(sys.stdin)
print(json.dumps(Run(options, options["url"]).run()["steps"][0]))
"""


def children() -> float:
    """Processor seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tokenizer(directory: pathlib.Path) -> pathlib.Path:
    """A tokenizer of few words: aiperf wants one, and may fetch none."""
    words = "<unk> a i you he she it we they the of and to in is that not with for be this have do shall what thy no so as but"
    vocabulary = {word: number for number, word in enumerate(words.split())}
    directory.mkdir()
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    (directory / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "Whitespace"},
                "post_processor": None,
                "decoder": None,
                "model": model,
            }
        )
    )
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "<unk>"})
    )
    return directory


def defaults() -> dict[str, Any]:
    """The module's options as they are when nobody says otherwise."""
    return {name: fact.get("default") for name, fact in _benchmark.ARGUMENT_SPEC.items()}


def texts(args: argparse.Namespace, requests: int) -> list[str]:
    """Prompts of as many words as input tokens are asked for: no run has one of another, so that no cache of prefixes flatters the second."""
    prompts = _benchmark.Prompts(None, next(SEEDS))
    return [prompts.text(args.input_tokens) for _request in range(requests + args.concurrency)]


def ours(url: str, args: argparse.Namespace, requests: int) -> tuple[dict[str, Any], float]:
    """Numbers of one run of the module's own load in a process of its own, and its processor seconds."""
    options = defaults()
    options.update(
        url=url,
        model=args.model,
        concurrency=[args.concurrency],
        requests=requests,
        prompts=texts(args, requests),
        output_tokens=args.output_tokens,
        warmup_requests=args.concurrency,
    )
    before = children()
    done = subprocess.run(
        [sys.executable, "-c", WORKER], input=json.dumps(options), text=True, stdout=subprocess.PIPE, check=True
    )
    step = json.loads(done.stdout)
    numbers = {
        f"{name} {stat}": step[name][stat]
        for name in ("ttft_ms", "itl_ms", "e2e_ms")
        for stat in ("mean", "p50", "p99")
    }
    numbers["tokens_per_s_user mean"] = step["tokens_per_s_user"]["mean"]
    numbers.update({name: step[name] for name in ("output_tokens_per_s", "requests_per_s")})
    return numbers, children() - before


def theirs(url: str, args: argparse.Namespace, requests: int, scratch: pathlib.Path) -> tuple[dict[str, Any], float]:
    """The same of aiperf."""
    artifacts = scratch / f"artifacts-{requests}-{time.monotonic_ns()}"
    bodies = artifacts.with_suffix(".jsonl")
    bodies.write_text(
        "".join(
            json.dumps(_benchmark.payload(defaults(), args.model, text, args.output_tokens, fixed=True)) + "\n"
            for text in texts(args, requests)
        )
    )
    command = [args.aiperf, "profile", "--model", args.model, "--url", url, "--endpoint-type", "chat", "--streaming"]
    command += ["--concurrency", str(args.concurrency), "--request-count", str(requests)]
    command += ["--warmup-request-count", str(args.concurrency), "--random-seed", "1"]
    command += ["--input-file", str(bodies), "--custom-dataset-type", "raw-payload"]
    command += ["--dataset-sampling-strategy", "sequential"]
    command += ["--tokenizer", str(scratch / "tokenizer"), "--use-server-token-count", "--ui", "none"]
    command += ["--artifact-dir", str(artifacts)]
    before = children()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    used = children() - before
    found = sorted(artifacts.rglob("profile_export_aiperf.json"))
    if done.returncode or not found:
        sys.exit(f"aiperf failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    export = json.loads(found[0].read_text())
    numbers = {}
    for name, tag in (
        ("ttft_ms", "time_to_first_token"),
        ("itl_ms", "inter_token_latency"),
        ("e2e_ms", "request_latency"),
    ):
        for stat, key in (("mean", "avg"), ("p50", "p50"), ("p99", "p99")):
            numbers[f"{name} {stat}"] = export[tag][key]
    numbers["tokens_per_s_user mean"] = export["output_token_throughput_per_user"]["avg"]
    numbers["output_tokens_per_s"] = export["output_token_throughput"]["avg"]
    numbers["requests_per_s"] = export["request_throughput"]["avg"]
    return numbers, used


def server(args: argparse.Namespace) -> contextlib.AbstractContextManager[str]:
    """The address of what is measured."""
    return contextlib.nullcontext(args.url) if args.url else steady(args.ttft, args.itl)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", default="aiperf", help="its program (aiperf)")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--ttft", type=float, default=0.1)
    parser.add_argument("--itl", type=float, default=0.01)
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--url", help="an endpoint that serves, instead of the server whose times are known")
    parser.add_argument("--model", default=MODEL, help="what it serves")
    args = parser.parse_args()
    if shutil.which(args.aiperf) is None:
        print(f"skipped: {args.aiperf} is not installed (pip install aiperf, in an environment of its own)")
        return 0
    with tempfile.TemporaryDirectory() as directory, server(args) as url:
        scratch = pathlib.Path(directory)
        tokenizer(scratch / "tokenizer")
        # The difference of a short and a long run is the requests' own; the rest is starting and stopping.
        few = args.requests // 4
        _numbers, our_start = ours(url, args, few)
        mine, our_time = ours(url, args, args.requests)
        _numbers, their_start = theirs(url, args, few, scratch)
        aiperf, their_time = theirs(url, args, args.requests, scratch)
    print(
        f"server: {args.url or f'TTFT {args.ttft * 1000:g} ms, ITL {args.itl * 1000:g} ms'}, {args.output_tokens} tokens; "
        f"{args.requests} requests, {args.concurrency} at a time"
    )
    print(f"{'metric':<24} {'nim_benchmark':>14} {'aiperf':>14} {'difference':>11}")
    for name, value in mine.items():
        print(f"{name:<24} {value:>14.4f} {aiperf[name]:>14.4f} {(value / aiperf[name] - 1) * 100:>+10.2f}%")
    more = args.requests - few
    for name, one, other in (
        ("CPU ms per request", (our_time - our_start) / more, (their_time - their_start) / more),
        ("... with the start", our_time / args.requests, their_time / args.requests),
    ):
        print(f"{name:<24} {one * 1000:>14.3f} {other * 1000:>14.3f} {'x %.3f' % (one / other):>11}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
