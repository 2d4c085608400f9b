# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the numbers of a benchmark decide: limits, baselines, and what was not measured. Pure.

A number that is not there is no good number: a gate without its number, a step that never ran, a baseline that cannot be compared fail.
This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import MORE_IS_BETTER, RATES, label_of
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault

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
#: What of a workload makes two results incomparable. The seed does not.
_SAME = ("input_tokens", "output_tokens", "prompts", "prompts_digest", "fixed_output", "temperature", "extra_body")
#: What is needed of an earlier result.
BASELINE_KEYS = ("steps", "model", "workload")
# Answers whose mean length differs by this share are other work.
_OTHER_LENGTH = 0.25
# So many things are told in one line.
_TOLD = 3


def value_of(step: Mapping[str, Any], metric: str, stat: str | None) -> float | None:
    """Return one number of a step; None when it was not measured."""
    value = step.get(metric)
    if isinstance(value, Mapping):
        value = value.get(stat or "p95")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def judge(
    gates: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    not_run: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return each gate at each step it is for: seen, wanted, passed. A number that was not measured does not pass.

    not_run: load and level of each step that was wanted and never began.
    """
    found = []
    for gate in gates:
        stat = None if gate["metric"] in RATES else gate.get("stat") or "p95"
        for step in [*steps, *not_run]:
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


# -- baseline ----------------------------------------------------------------------------------------------------------


def load_baseline(text: str, where: str) -> dict[str, Any]:
    """Return an earlier result from its JSON; ValueError says what is wrong with it."""
    try:
        parsed = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"baseline_file {where} is no JSON: {exc}") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("steps"), list):
        raise ValueError(f"baseline_file {where} is no result of nim_benchmark: it has no list of steps")
    return parsed


def _steps_of(baseline: Mapping[str, Any]) -> dict[tuple[Any, Any], Mapping[str, Any]]:
    steps = baseline.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        return {}
    return {
        (step.get("load"), step.get("level")): step for step in steps if isinstance(step.get("level"), (int, float))
    }


def baseline_problems(
    baseline: Mapping[str, Any],
    planned: Iterable[Mapping[str, Any]],
    workload: Mapping[str, Any],
    model: str | None,
) -> list[str]:
    """Return what makes an earlier result incomparable with one of these steps (load, level), this workload and this model.

    What either does not tell is no problem: results of before have fewer facts. model: None while it is not known.
    """
    steps = _steps_of(baseline)
    if not steps:
        return ["the baseline has no steps: it is no result of nim_benchmark, or has none of this endpoint"]
    problems = []
    before = baseline.get("model")
    if before and model and before != model:
        problems.append(f"the baseline is of model {before}, this is {model}")
    known = baseline.get("workload")
    earlier: Mapping[str, Any] = known if isinstance(known, Mapping) else {}
    for key in _SAME:
        if key in earlier and key in workload and earlier[key] != workload[key]:
            problems.append(
                f"the baseline was measured with {key} {_short(earlier[key])}, this is {_short(workload[key])}"
            )
    for step in planned:
        old = steps.get((step["load"], step["level"]))
        if old is None:
            problems.append(f"the baseline has no {label_of(step)}")
        elif old.get("aborted"):
            problems.append(f"the baseline gave up {label_of(step)}")
        elif all(value_of(old, metric, stat) is None for metric, stat in COMPARED):
            problems.append(f"the baseline has no numbers of {label_of(step)}")
    return problems


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def compare(
    before: Mapping[str, Any], now: Sequence[Mapping[str, Any]], tolerance: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return each number beside that of an earlier result, and which of them has nothing beside it (list of str).

    tolerance: percent that a number may be worse. A number that neither has is none to compare.
    """
    steps = _steps_of(before)
    found, missing = [], []
    for step in now:
        old = steps.get((step["load"], step["level"]))
        if old is None:
            missing.append(f"the baseline has no {label_of(step)}")
            continue
        long, was_long = (value_of(one, "output_tokens_mean", None) for one in (step, old))
        if long and was_long and abs(long / was_long - 1) > _OTHER_LENGTH:
            missing.append(f"{label_of(step)}: answers have {long:.4g} tokens on average, {was_long:.4g} before")
        for metric, stat in COMPARED:
            was, is_now = value_of(old, metric, stat), value_of(step, metric, stat)
            if was is None and is_now is None:
                continue
            name = f"{label_of(step)}: {' '.join(filter(None, (metric, stat)))}"
            if is_now is None:
                missing.append(f"{name} was not measured, {was:g} before")
                continue
            if was is None or was <= 0:
                missing.append(f"{name} has nothing to be compared with in the baseline")
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
    return found, missing


def not_comparable(problems: Sequence[str]) -> Fault:
    """Return the failure that a comparison was asked for and cannot be made."""
    more = f" and {len(problems) - _TOLD} more" if problems[_TOLD:] else ""
    return Fault("not_comparable", "; ".join(problems[:_TOLD]) + more, "a baseline to compare with", problems)


# -- verdict -----------------------------------------------------------------------------------------------------------


def fault_of(result: Mapping[str, Any], options: Mapping[str, Any], incomparable: Sequence[str] = ()) -> Fault | None:
    """Return what the numbers fail by: errors first, since they make the rest meaningless, then gates, then baseline.

    incomparable: what could not be compared though it was wanted.
    """
    return (
        _failed_step(result, options)
        or _kept_back(result["steps"])
        or _failed_gates(result["gates"])
        or _regression(result["comparison"], options["baseline_tolerance"], incomparable)
        or (not_comparable(incomparable) if incomparable else None)
    )


def _failed_step(result: Mapping[str, Any], options: Mapping[str, Any]) -> Fault | None:
    not_run = [label_of(step) for step in result.get("not_run") or []]
    for step in result["steps"]:
        aborted = bool(step.get("aborted"))
        if not aborted and step["error_rate"] <= options["max_error_rate"] and step["completed"]:
            continue
        kinds = sorted(step["errors"].items(), key=lambda item: -item[1]["count"])
        kind, entry = kinds[0] if kinds else ("slow", {"sample": "no request ended"})
        if aborted and step.get("last_error") in step["errors"]:
            # What ended the step counts, not what there was most of.
            kind = step["last_error"]
            entry = step["errors"][kind]
        count = f"{step['failed_requests']} of {step['requests']} requests failed ({entry['sample']})"
        seen, wanted = f"{label_of(step)}: {count}", f"an error rate of at most {options['max_error_rate']:g}"
        if aborted:
            seen = f"{label_of(step)} was given up, since nothing but failures came: {count}"
            wanted = "every step to its end"
        evidence = [f"{name}: {data['count']} times, such as: {data['sample']}" for name, data in kinds]
        if not_run:
            seen += f"; {', '.join(not_run)} never ran"
        evidence += [f"{label}: never ran" for label in not_run]
        evidence += [f"{told(gate)}, wanted {gate['wanted']}" for gate in result["gates"] if not gate["passed"]]
        return Fault(kind, seen, wanted, evidence, remedy=entry.get("remedy", ""))
    if not_run:
        return Fault("slow", f"{', '.join(not_run)} never ran", "every step to its end")
    return None


def _kept_back(steps: Sequence[Mapping[str, Any]]) -> Fault | None:
    found = [step for step in steps if 2 * step.get("kept_back", 0) > step.get("long_answers", 0)]
    if not found:
        return None
    lines = [
        f"{label_of(step)}: {step['kept_back']} of {step['long_answers']} answers came at one blow" for step in found
    ]
    return Fault("buffered_stream", "; ".join(lines[:_TOLD]), "each token when it is made", lines)


def _failed_gates(gates: Sequence[Mapping[str, Any]]) -> Fault | None:
    failed = [entry for entry in gates if not entry["passed"]]
    if not failed:
        return None
    lines = [f"{told(entry)}, wanted {entry['wanted']}" for entry in failed]
    shown = min(_TOLD, len(failed))
    more = f" (and {len(lines) - shown} more)" if lines[shown:] else ""
    # The last of those told ends the sentence that Fault makes.
    seen = "; ".join([*lines[: shown - 1], told(failed[shown - 1])])
    return Fault("slow", seen, failed[shown - 1]["wanted"] + more, lines)


def _regression(comparison: Sequence[Mapping[str, Any]], tolerance: float, incomparable: Sequence[str]) -> Fault | None:
    lines = [
        f"{entry['step']}: {' '.join(filter(None, (entry['metric'], entry['stat'])))} {entry['now']:g}, "
        f"{entry['before']:g} before ({entry['change_percent']:+.1f} %)"
        for entry in comparison
        if entry["regression"]
    ]
    if not lines:
        return None
    more = f" and {len(lines) - _TOLD} more" if lines[_TOLD:] else ""
    wanted = f"at most {tolerance:g} % worse than the baseline"
    return Fault("slow", "; ".join(lines[:_TOLD]) + more, wanted, [*lines, *incomparable])
