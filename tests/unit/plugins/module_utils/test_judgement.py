# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the numbers of a benchmark decide."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark, _judgement


def options(**changes):
    given = {name: fact.get("default") for name, fact in _benchmark.ARGUMENT_SPEC.items()}
    return {**given, "url": "http://127.0.0.1:8000", **changes}


def gate(metric="ttft_ms", **changes):
    return {"metric": metric, "stat": None, "min": None, "max": None, "at": None, **changes}


def step(level, ttft=100.0, rate=10.0, load="closed", **changes):
    spread = dict.fromkeys(_benchmark.STATISTICS, ttft)
    return {
        "load": load,
        "level": level,
        "requests": 10,
        "completed": 10,
        "failed_requests": 0,
        "error_rate": 0.0,
        "errors": {},
        "ttft_ms": spread,
        "itl_ms": None,
        "output_tokens_per_s": rate * 10,
        "requests_per_s": rate,
        **changes,
    }


def judged(steps, gates=(), comparison=(), **changes):
    result = {"steps": steps, "gates": _judgement.judge(gates, steps), "comparison": list(comparison)}
    return _judgement.fault_of(result, options(**changes))


def test_gates():
    steps = [step(1, 100.0), step(4, 250.0)]
    assert judged(steps, [gate(max=250.0), gate("requests_per_s", min=10.0)]) is None
    fault = judged(steps, [gate(max=200.0, stat="p99"), gate("requests_per_s", min=11.0, at=1)])
    assert fault.failure_class == "slow"
    assert str(fault) == (
        "concurrency 4: ttft_ms p99 250, wanted at most 200; concurrency 1: requests_per_s 10, wanted at least 11"
    )
    assert fault.evidence == [
        "concurrency 4: ttft_ms p99 250, wanted at most 200",
        "concurrency 1: requests_per_s 10, wanted at least 11",
    ]


def test_what_was_not_measured_does_not_pass():
    fault = judged([step(1)], [gate("itl_ms", max=50.0)])
    assert str(fault) == "concurrency 1: itl_ms p95 nothing measured, wanted at most 50"


def test_many_gates_are_counted():
    fault = judged([step(level) for level in range(1, 7)], [gate(max=1.0)])
    assert str(fault).endswith("concurrency 3: ttft_ms p95 100, wanted at most 1 (and 3 more)")
    assert len(fault.evidence) == 6


def test_errors_come_before_gates():
    errors = {"auth": {"count": 1, "sample": "no"}, "dead_engine": {"count": 4, "sample": "HTTP 500"}}
    bad = step(4, failed_requests=5, error_rate=0.5, errors=errors)
    fault = judged([step(1), bad], [gate(max=1.0)])
    assert fault.failure_class == "dead_engine"
    assert "concurrency 4: 5 of 10 requests failed (HTTP 500)" in str(fault)
    assert fault.evidence[0] == "dead_engine: 4 times, such as: HTTP 500"
    assert judged([bad], max_error_rate=0.5) is None
    assert judged([step(1, completed=0)]).failure_class == "slow"


def test_baseline():
    before = {"steps": [step(1, 100.0, 10.0), step(4, 200.0, 30.0)]}
    found, notes = _judgement.compare(before, [step(1, 111.0, 9.5), step(4, 100.0, 20.0), step(8)], 10.0)
    assert notes == ["the baseline has no concurrency 8"]
    worse = {(line["step"], line["metric"], line["stat"]): line for line in found if line["regression"]}
    assert set(worse) == {
        ("concurrency 1", "ttft_ms", "p50"),
        ("concurrency 1", "ttft_ms", "p95"),
        ("concurrency 4", "output_tokens_per_s", None),
        ("concurrency 4", "requests_per_s", None),
    }
    assert worse["concurrency 1", "ttft_ms", "p50"]["change_percent"] == 11.0
    fault = judged([step(1)], comparison=found)
    assert fault.failure_class == "slow"
    assert "concurrency 1: ttft_ms p50 111, 100 before (+11.0 %)" in str(fault)
    assert str(fault).endswith("and 1 more, wanted at most 10 % worse than the baseline")
    assert not any(line["regression"] for line in _judgement.compare(before, [step(1, 109.0, 9.1)], 10.0)[0])


def test_a_baseline_of_the_other_load_is_none():
    found, notes = _judgement.compare({"steps": [step(4)]}, [step(4, load="open")], 10.0)
    assert (found, notes) == ([], ["the baseline has no rate 4"])
    assert _judgement.baseline_problems({"x": 1}, [], {}, None) == [
        "the baseline has no steps: it is no result of nim_benchmark, or has none of this endpoint"
    ]


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is no JSON"), ("[]", "is no result"), ('{"steps": 1}', "is no result")]
)
def test_a_bad_baseline_file(text, words):
    with pytest.raises(ValueError, match=words):
        _judgement.load_baseline(text, "before.json")
