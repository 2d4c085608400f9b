# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a benchmark measures: options, prompts, metrics. No network, no clock.

The metrics are those of aiperf; docs/benchmark.md has the formulas. This module util is private to the collection and
may change at any time.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _probe
from ansible_collections.baremetal.nim.plugins.module_utils._answers import Record
from ansible_collections.baremetal.nim.plugins.module_utils._expect import FEW

#: Distributions, and their statistics.
LATENCIES = ("ttft_ms", "itl_ms", "tpot_ms", "icl_ms", "e2e_ms")
DISTRIBUTIONS = (*LATENCIES, "tokens_per_s_user")
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "min", "max")
#: Plain numbers.
RATES = ("output_tokens_per_s", "requests_per_s", "goodput_per_s", "error_rate")
#: Where more is better.
MORE_IS_BETTER = ("tokens_per_s_user", "output_tokens_per_s", "requests_per_s", "goodput_per_s")
DEFAULT_SWEEP = (1, 4, 16)
DEFAULT_DURATION = 30.0
_RUN_ID = re.compile(r"[0-9a-f]{32}")

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    **_probe.ENDPOINT_SPEC,
    "model": {"type": "str"},
    "concurrency": {"type": "list", "elements": "int"},
    "request_rate": {"type": "list", "elements": "float"},
    "max_in_flight": {"type": "int", "default": 1024},
    "duration": {"type": "float"},
    "requests": {"type": "int"},
    "warmup_requests": {"type": "int"},
    "input_tokens": {"type": "int", "default": 128, "no_log": False},
    "output_tokens": {"type": "int", "default": 128, "no_log": False},
    "fixed_output": {"type": "bool", "default": True},
    "prompts": {"type": "list", "elements": "str"},
    "temperature": {"type": "float", "default": 0.0},
    "extra_body": {"type": "dict", "default": {}},
    "seed": {"type": "int", "default": 0},
    "slo": {
        "type": "dict",
        "options": {
            "ttft_ms": {"type": "float"},
            "itl_ms": {"type": "float"},
            "e2e_ms": {"type": "float"},
            "tokens_per_s_user": {"type": "float", "no_log": False},
        },
    },
    "gates": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "metric": {"type": "str", "required": True, "choices": [*DISTRIBUTIONS, *RATES]},
            "stat": {"type": "str", "choices": list(STATISTICS)},
            "min": {"type": "float"},
            "max": {"type": "float"},
            "at": {"type": "float"},
        },
    },
    "max_error_rate": {"type": "float", "default": 0.0},
    "baseline": {"type": "dict"},
    "baseline_file": {"type": "path"},
    "baseline_tolerance": {"type": "float", "default": 10.0},
    "timeout": {"type": "float", "default": 3600},
    "request_timeout": {"type": "float", "default": 120},
    "progress": {"type": "bool", "default": True},
    "max_wait": {"type": "float"},
    "run_id": {"type": "str"},
    "resume": {"type": "dict"},
}
MUTUALLY_EXCLUSIVE = [("concurrency", "request_rate"), ("baseline", "baseline_file")]
REQUIRED_BY = {"client_key": "client_cert"}
REQUIRED_TOGETHER = [("max_wait", "run_id")]


# -- options -----------------------------------------------------------------------------------------------------------


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the options beyond their types: list of str, each naming option, value and cure."""
    problems = _probe.endpoint_problems(options)
    for name in ("concurrency", "request_rate"):
        values = options[name]
        if values is not None and not values:
            problems.append(f"{name} is empty: give at least one value, or leave it out")
        for value in values or []:
            # A rate of nan compares with nothing.
            if not 0 < value < math.inf:
                problems.append(f"{name} has {value:g}, every value must be above 0")
        if values and len(set(values)) < len(values):
            problems.append(f"{name} has a value twice")
    for name in ("duration", "requests", "max_in_flight", "input_tokens", "output_tokens", "timeout"):
        if options[name] is not None and not 0 < options[name] < math.inf:
            problems.append(f"{name} is {options[name]:g}, it must be above 0")
    for name in ("warmup_requests", "baseline_tolerance"):
        if options[name] is not None and not 0 <= options[name] < math.inf:
            problems.append(f"{name} is {options[name]:g}, it must not be below 0")
    if not 0 <= options["max_error_rate"] <= 1:
        problems.append(f"max_error_rate is {options['max_error_rate']:g}, it must be a share from 0 to 1")
    if options["prompts"] is not None and not any(text.strip() for text in options["prompts"]):
        problems.append("prompts has no text: give at least one, or leave it out for made-up ones")
    for name, bound in (options["slo"] or {}).items():
        if bound is not None and not 0 < bound < math.inf:
            problems.append(f"slo.{name} is {bound:g}, it must be above 0")
    for number, gate in enumerate(options["gates"], 1):
        problems += [f"gate {number} ({gate['metric']}): {text}" for text in _gate_problems(gate, options)]
    reserved = sorted({"model", "messages", "stream", "stream_options", "max_tokens"} & set(options["extra_body"]))
    if reserved:
        problems.append(f"extra_body has {', '.join(reserved)}: what the module sets itself has options of its own")
    if options["run_id"] is not None and not _RUN_ID.fullmatch(options["run_id"]):
        problems.append("run_id is set by the action plugin only")
    return problems


def _gate_problems(gate: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    bounds = [gate[name] for name in ("min", "max") if gate[name] is not None]
    if not bounds:
        yield "give min or max"
    elif not all(map(math.isfinite, bounds)) or bounds != sorted(bounds):
        yield f"no number is kept by min {gate['min']} and max {gate['max']}"
    if gate["metric"] in RATES and gate["stat"]:
        yield "it is one number and has no stat"
    if gate["metric"] == "goodput_per_s" and not any(bound is not None for bound in (options["slo"] or {}).values()):
        yield "goodput needs slo"
    if gate["at"] is not None and gate["at"] not in levels(options):
        yield f"at {gate['at']:g} is not a value of the sweep"


def levels(options: Mapping[str, Any]) -> list[float]:
    """Return the values of the sweep, in the order given."""
    return list(options["request_rate"] or options["concurrency"] or DEFAULT_SWEEP)


def planned(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return load and level of each step of the sweep."""
    load = "closed" if options["request_rate"] is None else "open"
    return [{"load": load, "level": level} for level in levels(options)]


def workload(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is sent, as the result tells it."""
    prompts = options["prompts"] or []
    return {
        "input_tokens": None if prompts else options["input_tokens"],
        "output_tokens": options["output_tokens"],
        "prompts": len(prompts),
        # Which ones, without their words.
        "prompts_digest": hashlib.sha256("\0".join(prompts).encode("utf-8", "replace")).hexdigest()[:12]
        if prompts
        else None,
        "fixed_output": bool(options["fixed_output"]),
        "temperature": options["temperature"],
        "extra_body": options["extra_body"],
        "seed": options["seed"],
    }


def label_of(step: Mapping[str, Any]) -> str:
    """Return a step in words."""
    return f"{'rate' if step['load'] == 'open' else 'concurrency'} {step['level']:g}"


# -- requests ----------------------------------------------------------------------------------------------------------

# Short and common: most tokenizers make one token of each, with the space before it.
_COMMON = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power "
    "hour game line end member law car city community name president team minute idea body information back parent face "
    "others level office door health person art war history party result change morning reason research girl guy moment air"
)
_WORDS = _COMMON.split()


class Prompts:
    """Texts of user messages: a given set in turns, or made up of as many words as asked, no two with the same beginning.

    given: list of str, or None. seed: int. The same seed gives the same texts in the same order.
    """

    def __init__(self, given: Sequence[str] | None, seed: int) -> None:
        self._given = [text for text in given or [] if text.strip()]
        self._random = random.Random(seed)  # noqa: S311 - load, no secret
        self._corpus = self._random.choices(_WORDS, k=4096)
        self._count = 0

    def text(self, words: int) -> str:
        """Return the next text."""
        self._count += 1
        if self._given:
            return self._given[(self._count - 1) % len(self._given)]
        # The random head keeps a prefix cache from flattering the server, the tail is cut from one text: that is cheap.
        head = self._random.choices(_WORDS, k=min(words, 8))
        left, start = words - len(head), self._random.randrange(len(self._corpus))
        body: list[str] = []
        while len(body) < left:
            body += self._corpus[start : start + left - len(body)]
            start = 0
        return " ".join(head + body)


def words_for(wanted: int, one: tuple[int, int], two: tuple[int, int]) -> int:
    """Return how many words make a prompt of so many tokens, from two prompts' (words, tokens as the server counted)."""
    per_word = (two[1] - one[1]) / (two[0] - one[0]) if two[0] != one[0] else 1.0
    if per_word <= 0:
        # The server does not count the prompt.
        return wanted
    overhead = one[1] - per_word * one[0]
    return max(1, round((wanted - overhead) / per_word))


def payload(options: Mapping[str, Any], model: str, text: str, max_tokens: int, fixed: bool) -> dict[str, Any]:
    """Return the body of one streamed request. fixed: whether the answer is to be as long as max_tokens says."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": options["temperature"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if fixed:
        body.update(ignore_eos=True, min_tokens=max_tokens)
    body.update(options["extra_body"])
    return body


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yield the seconds at which requests of a Poisson process come, without end."""
    source, at = random.Random(seed), 0.0  # noqa: S311 - load, no secret
    while True:
        at += source.expovariate(rate)
        yield at


# -- metrics -----------------------------------------------------------------------------------------------------------


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of sorted numbers, between two of them by linear interpolation (as numpy does)."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def statistics(values: Iterable[float]) -> dict[str, float] | None:
    """Return the statistics of a metric; None when nothing was measured."""
    ordered = sorted(values)
    if not ordered:
        return None
    found = {f"p{percent}": percentile(ordered, percent) for percent in (50, 90, 95, 99)}
    found.update(mean=math.fsum(ordered) / len(ordered), min=ordered[0], max=ordered[-1])
    return {name: round(value, 4) for name, value in found.items()}


def is_good(metrics: Mapping[str, float], slo: Mapping[str, Any]) -> bool:
    """Whether a request meets all objectives. One without the metric does not."""
    for name, bound in slo.items():
        if bound is None:
            continue
        value = metrics.get(name)
        if value is None or (value < bound if name in MORE_IS_BETTER else value > bound):
            return False
    return True


def histogram(values: Sequence[float], bins: int = 24) -> dict[str, list[float]] | None:
    """Return edges and counts of equal bins; None when there is nothing."""
    if not values:
        return None
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0.0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return {"edges": [round(low + width * number, 4) for number in range(bins + 1)], "counts": counts}


def timeline(records: Sequence[Record], begin: float, points: int = 60) -> list[dict[str, Any]]:
    """Return what ended when: requests, tokens and errors per second, and the median time to the first token."""
    ends = [record.last for record in records if record.error is None and record.last is not None]
    span = max([end - begin for end in ends] + [0.0])
    width = max(1.0, math.ceil(span / points))
    # A rest of less than half a slot is in the last one, which is longer then.
    slots: list[list[Record]] = [[] for _number in range(max(1, round(span / width)))]
    for record in records:
        end = record.last if record.error is None and record.last is not None else record.start
        slots[max(0, min(len(slots) - 1, int((end - begin) // width)))].append(record)
    found = []
    for number, slot in enumerate(slots):
        good = [record for record in slot if record.error is None]
        length = max(span - number * width, 0.001) if number == len(slots) - 1 else width
        ttft = statistics(record.ttft_ms for record in good)
        found.append(
            {
                "at": number * width,
                "requests_per_s": round(len(good) / length, 3),
                "output_tokens_per_s": round(sum(record.output_tokens for record in good) / length, 3),
                "errors": len(slot) - len(good),
                "ttft_ms": ttft["p50"] if ttft else None,
            }
        )
    return found


def summarize(records: Sequence[Record], slo: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of one step: distributions over good requests, rates over the time from the first request
    sent to the last content received, errors by class with a sample each.
    """
    good = [record for record in records if record.error is None and record.last is not None]
    each = [record.metrics() for record in good]
    begin = min((record.start for record in good), default=0.0)
    duration = max((record.last for record in good if record.last is not None), default=begin) - begin
    tokens = sum(record.output_tokens for record in good)
    prompts = [record.prompt_tokens for record in good if record.prompt_tokens is not None]
    errors: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.error is not None:
            entry = errors.setdefault(record.error, {"count": 0, "sample": record.text})
            entry["count"] += 1
            if record.fault and record.fault.remedy:
                entry.setdefault("remedy", record.fault.remedy)

    def per_second(count: float) -> float:
        return round(count / duration, 4) if duration > 0 else 0.0

    found: dict[str, Any] = {
        "requests": len(records),
        "completed": len(good),
        "failed_requests": len(records) - len(good),
        "error_rate": round((len(records) - len(good)) / len(records), 6) if records else 0.0,
        "errors": errors,
        "duration_s": round(duration, 6),
        "requests_per_s": per_second(len(good)),
        "output_tokens_per_s": per_second(tokens),
        "goodput_per_s": None,
        "output_tokens": tokens,
        "output_tokens_mean": round(tokens / len(good), 3) if good else None,
        "input_tokens_mean": round(sum(prompts) / len(prompts), 3) if prompts else None,
        # Servers without the usage chunk exist; what is counted by chunks says so.
        "tokens_from": "usage" if good and all(record.counted is not None for record in good) else "chunks",
        # Of answers that are long enough to tell, those that came at one blow: nothing between tokens is known of them.
        "long_answers": sum(1 for record in good if record.chunks >= FEW),
        "kept_back": sum(1 for record in good if record.kept_back),
    }
    if any(bound is not None for bound in slo.values()):
        found["goodput_per_s"] = per_second(sum(1 for metrics in each if is_good(metrics, slo)))
    for name in DISTRIBUTIONS:
        values: list[float] = [metrics[name] for metrics in each if name in metrics]
        if name == "icl_ms":
            values = [
                gap * 1000 for record in good if record.lumps >= 2 and not record.kept_back for gap in record.gaps
            ]
        found[name] = statistics(values)
        if name in ("ttft_ms", "e2e_ms"):
            found.setdefault("histograms", {})[name] = histogram(values)
    found["timeline"] = timeline(records, begin) if good else []
    return found


def length_note(records: Sequence[Record], asked: int) -> str:
    """Return what is to be said of answers that were to have just so many tokens; empty where they had, or nobody counted."""
    counts = [record.counted for record in records if record.error is None and record.counted is not None]
    # Some count the token that ends an answer, some do not.
    off = sum(1 for count in counts if abs(count - asked) > max(1, asked // 50))
    if not off:
        return ""
    mean = sum(counts) / len(counts)
    return f"{off} of {len(counts)} answers had another length than output_tokens {asked}, the mean is {mean:.4g}"


def note_of(records: Sequence[Record], elapsed: float) -> str:
    """Return how a step goes, for a line of progress."""
    good = [record for record in records if record.error is None]
    words = [f"{len(good)} requests", f"{len(good) / elapsed if elapsed > 0 else 0.0:.3g}/s"]
    ttft = statistics(record.ttft_ms for record in good[-200:])
    if ttft:
        words.append(f"TTFT p50 {ttft['p50']:.3g} ms")
    if len(records) > len(good):
        words.append(f"{len(records) - len(good)} errors")
    return ", ".join(words)
