# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a benchmark measures and means: options, prompts, answers read, metrics, gates, baselines. No network, no clock.

The metrics are those of aiperf; docs/benchmark.md has the formulas. This module util is private to the collection and
may change at any time.
"""

from __future__ import annotations

import json
import math
import random
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _probe
from ansible_collections.baremetal.nim.plugins.module_utils._chat import CHAT_PATH, Stream, parse_json, sse_data
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten

#: Distributions, and their statistics.
LATENCIES = ("ttft_ms", "itl_ms", "tpot_ms", "icl_ms", "e2e_ms")
DISTRIBUTIONS = (*LATENCIES, "tokens_per_s_user")
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "min", "max")
#: Plain numbers.
RATES = ("output_tokens_per_s", "requests_per_s", "goodput_per_s", "error_rate")
#: Where more is better.
MORE_IS_BETTER = ("tokens_per_s_user", "output_tokens_per_s", "requests_per_s", "goodput_per_s")
#: What is compared with a baseline.
COMPARED = (
    ("ttft_ms", "p50"),
    ("ttft_ms", "p95"),
    ("itl_ms", "p50"),
    ("itl_ms", "p95"),
    ("e2e_ms", "p95"),
    ("output_tokens_per_s", None),
    ("requests_per_s", None),
)
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
    if gate["min"] is None and gate["max"] is None:
        yield "give min or max"
    if gate["metric"] in RATES and gate["stat"]:
        yield "it is one number and has no stat"
    if gate["metric"] == "goodput_per_s" and not any(bound is not None for bound in (options["slo"] or {}).values()):
        yield "goodput needs slo"
    if gate["at"] is not None and gate["at"] not in levels(options):
        yield f"at {gate['at']:g} is not a value of the sweep"


def levels(options: Mapping[str, Any]) -> list[float]:
    """Return the values of the sweep, in the order given."""
    return list(options["request_rate"] or options["concurrency"] or DEFAULT_SWEEP)


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


# -- answers -----------------------------------------------------------------------------------------------------------


class Record:
    """One request: times by one monotonic clock, counts, and what went wrong."""

    __slots__ = ("chunks", "done", "error", "first", "gaps", "last", "start", "text", "usage")

    def __init__(self, start: float) -> None:
        self.start = start
        self.first: float | None = None
        self.last: float | None = None
        self.chunks = 0
        # Seconds between chunks with content.
        self.gaps = array("d")
        self.usage: Mapping[str, Any] | None = None
        self.done = False
        # Class of the failure, and its words.
        self.error: str | None = None
        self.text = ""

    @property
    def output_tokens(self) -> int:
        """As the server counted; without its word, the chunks."""
        count = (self.usage or {}).get("completion_tokens")
        return count if isinstance(count, int) else self.chunks

    @property
    def prompt_tokens(self) -> int | None:
        """As the server counted."""
        count = (self.usage or {}).get("prompt_tokens")
        return count if isinstance(count, int) else None

    def metrics(self) -> dict[str, float]:
        """The metrics of one good request; itl_ms, tpot_ms and tokens_per_s_user only where there are two tokens or more."""
        if self.first is None or self.last is None:
            return {}
        found = {"ttft_ms": (self.first - self.start) * 1000, "e2e_ms": (self.last - self.start) * 1000}
        if self.output_tokens >= 2:
            itl = (found["e2e_ms"] - found["ttft_ms"]) / (self.output_tokens - 1)
            found.update(itl_ms=itl, tpot_ms=itl)
            if itl > 0:
                found["tokens_per_s_user"] = 1000 / itl
        return found


class Reading:
    """Reads the body of one streamed answer into a record, as it comes. Raises Fault for an error in the stream."""

    __slots__ = ("_pending", "record")

    def __init__(self, record: Record) -> None:
        self.record = record
        self._pending = b""

    def feed(self, data: bytes, at: float) -> None:
        """Take bytes that came at a time. The collection's parser gets whole events, so that each has its own time."""
        if self._pending:
            data = self._pending + data
        line_feeds, both = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        cut = max(line_feeds + 2 if line_feeds >= 0 else 0, both + 4 if both >= 0 else 0)
        self._pending = data[cut:]
        if cut:
            for event in sse_data((data[:cut],)):
                self._event(event, at)

    def end(self, at: float) -> None:
        """The body has ended: judge the whole."""
        for event in sse_data((self._pending,)):
            self._event(event, at)
        record, request = self.record, f"the stream of POST {CHAT_PATH}"
        if not record.done:
            raise Fault("bad_response", f"{request} ended without [DONE]", "a complete answer")
        if record.first is None:
            raise Fault("bad_response", f"{request} had no content", "a chat.completion.chunk with content")

    def _event(self, data: str, at: float) -> None:
        record = self.record
        if data == "[DONE]":
            record.done = True
            return
        try:
            chunk = json.loads(data)
            choices = chunk.get("choices")
            usage = chunk.get("usage")
            delta = choices[0].get("delta") or {} if choices else {}
            content = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
        except (ValueError, AttributeError, LookupError, TypeError):
            parse_json(f"the stream of POST {CHAT_PATH}", data)
            raise Fault(
                "bad_response", f"the stream of POST {CHAT_PATH} has {shorten(data, 80)!r}", "a chat.completion.chunk"
            ) from None
        if "error" in chunk or chunk.get("object") == "error":
            Stream(str(chunk.get("model"))).event(data, at)
        if usage:
            record.usage = usage
        if content:
            if record.first is None:
                record.first = at
            elif record.last is not None:
                record.gaps.append(at - record.last)
            record.last = at
            record.chunks += 1


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
        ttft = statistics(record.metrics()["ttft_ms"] for record in good)
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
        "tokens_from": "usage" if good and all(record.usage for record in good) else "chunks",
    }
    if any(bound is not None for bound in slo.values()):
        found["goodput_per_s"] = per_second(sum(1 for metrics in each if is_good(metrics, slo)))
    for name in DISTRIBUTIONS:
        values: list[float] = [metrics[name] for metrics in each if name in metrics]
        if name == "icl_ms":
            values = [gap * 1000 for record in good for gap in record.gaps]
        found[name] = statistics(values)
        if name in ("ttft_ms", "e2e_ms"):
            found.setdefault("histograms", {})[name] = histogram(values)
    found["timeline"] = timeline(records, begin) if good else []
    return found


# -- judgement ---------------------------------------------------------------------------------------------------------


def value_of(step: Mapping[str, Any], metric: str, stat: str | None) -> float | None:
    """Return one number of a step; None when it was not measured."""
    value = step.get(metric)
    if isinstance(value, Mapping):
        value = value.get(stat or "p95")
    return float(value) if isinstance(value, (int, float)) else None


def judge(gates: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each gate at each step it is for: seen, wanted, passed. A number that was not measured does not pass."""
    found = []
    for gate in gates:
        stat = None if gate["metric"] in RATES else gate.get("stat") or "p95"
        for step in steps:
            if gate.get("at") is not None and gate["at"] != step["level"]:
                continue
            seen = value_of(step, gate["metric"], stat)
            low, high = gate.get("min"), gate.get("max")
            passed = seen is not None and (low is None or seen >= low) and (high is None or seen <= high)
            wanted = [f"at least {low:g}"] if low is not None else []
            wanted += [f"at most {high:g}"] if high is not None else []
            found.append(
                {
                    "step": label_of(step),
                    "metric": gate["metric"],
                    "stat": stat,
                    "seen": seen,
                    "wanted": " and ".join(wanted),
                    "passed": passed,
                }
            )
    return found


def told(entry: Mapping[str, Any]) -> str:
    """Return what was seen at a gate in words."""
    name = " ".join(filter(None, (entry["metric"], entry["stat"])))
    seen = "nothing measured" if entry["seen"] is None else f"{entry['seen']:g}"
    return f"{entry['step']}: {name} {seen}"


def compare(
    before: Mapping[str, Any], now: Sequence[Mapping[str, Any]], tolerance: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return each number beside that of an earlier result, and what makes the two incomparable (list of str).

    tolerance: percent that a number may be worse. A step that either run lacks is not compared.
    """
    steps = before.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        return [], ["the baseline has no steps: it is no result of nim_benchmark"]
    earlier = {(step.get("load"), step.get("level")): step for step in steps}
    found, notes = [], []
    for step in now:
        old = earlier.get((step["load"], step["level"]))
        if old is None:
            notes.append(f"the baseline has no {label_of(step)}")
            continue
        for metric, stat in COMPARED:
            was, is_now = value_of(old, metric, stat), value_of(step, metric, stat)
            if was is None or is_now is None or was <= 0:
                continue
            change = (is_now - was) / was * 100
            worse = -change if metric in MORE_IS_BETTER else change
            found.append(
                {
                    "step": label_of(step),
                    "metric": metric,
                    "stat": stat,
                    "before": was,
                    "now": is_now,
                    "change_percent": round(change, 2),
                    "regression": worse > tolerance,
                }
            )
    return found, notes


def fault_of(result: Mapping[str, Any], options: Mapping[str, Any]) -> Fault | None:
    """Return what the numbers fail by: errors first, since they make the rest meaningless, then gates, then baseline."""
    for step in result["steps"]:
        if step["error_rate"] > options["max_error_rate"] or not step["completed"]:
            kinds = sorted(step["errors"].items(), key=lambda item: -item[1]["count"])
            kind, entry = kinds[0] if kinds else ("slow", {"sample": "no request ended"})
            seen = (
                f"{label_of(step)}: {step['failed_requests']} of {step['requests']} requests failed ({entry['sample']})"
            )
            evidence = [f"{name}: {data['count']} times, such as: {data['sample']}" for name, data in kinds]
            wanted = f"an error rate of at most {options['max_error_rate']:g}"
            return Fault(kind, seen, wanted, evidence)
    failed = [entry for entry in result["gates"] if not entry["passed"]]
    if failed:
        lines = [f"{told(entry)}, wanted {entry['wanted']}" for entry in failed]
        more = f" (and {len(lines) - 3} more)" if lines[3:] else ""
        # The last of those told ends the sentence that Fault makes.
        seen = "; ".join([*lines[: min(3, len(lines)) - 1], told(failed[min(3, len(failed)) - 1])])
        return Fault("slow", seen, failed[min(3, len(failed)) - 1]["wanted"] + more, lines)
    worse = [entry for entry in result["comparison"] if entry["regression"]]
    if worse:
        lines = [
            f"{entry['step']}: {' '.join(filter(None, (entry['metric'], entry['stat'])))} {entry['now']:g}, "
            f"{entry['before']:g} before ({entry['change_percent']:+.1f} %)"
            for entry in worse
        ]
        more = f" and {len(lines) - 3} more" if lines[3:] else ""
        wanted = f"at most {options['baseline_tolerance']:g} % worse than the baseline"
        return Fault("slow", "; ".join(lines[:3]) + more, wanted, lines)
    return None


def load_baseline(text: str, where: str) -> dict[str, Any]:
    """Return an earlier result from its JSON; ValueError says what is wrong with it."""
    try:
        parsed = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"baseline_file {where} is no JSON: {exc}") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("steps"), list):
        raise ValueError(f"baseline_file {where} is no result of nim_benchmark: it has no list of steps")
    return parsed


def note_of(records: Sequence[Record], elapsed: float) -> str:
    """Return how a step goes, for a line of progress."""
    good = [record for record in records if record.error is None]
    words = [f"{len(good)} requests", f"{len(good) / elapsed if elapsed > 0 else 0.0:.3g}/s"]
    ttft = statistics(record.metrics().get("ttft_ms", 0.0) for record in good[-200:])
    if ttft:
        words.append(f"TTFT p50 {ttft['p50']:.3g} ms")
    if len(records) > len(good):
        words.append(f"{len(records) - len(good)} errors")
    return ", ".join(words)
