# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics against cases computed by hand, and what is decided from them."""

from __future__ import annotations

import itertools
import json
import statistics

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from ansible_collections.baremetal.nim.plugins.module_utils._answers import Reading, Record
from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import Prompts
from ansible_collections.baremetal.nim.tests.unit.answered import DONE, answered, content, failed


def options(**changes):
    given = {name: fact.get("default") for name, fact in _benchmark.ARGUMENT_SPEC.items()}
    return {**given, "url": "http://127.0.0.1:8000", **changes}


def gate(metric="ttft_ms", **changes):
    return {"metric": metric, "stat": None, "min": None, "max": None, "at": None, **changes}


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_without_usage_the_chunks_count():
    record = Record(0.0)
    Reading(record).feed(content() + content() + content() + DONE, 0.1)
    assert (record.output_tokens, record.prompt_tokens) == (3, None)
    assert _benchmark.summarize([record], {})["tokens_from"] == "chunks"
    assert _benchmark.summarize([answered(0.0, [0.1])], {})["tokens_from"] == "usage"


def test_summary():
    """Two good requests of 3 and 4 tokens, from 10.0 to 12.0, and one that failed."""
    records = [answered(10.0, [10.1, 10.3, 10.5]), answered(10.5, [11.1, 11.4, 11.7, 12.0]), failed(11.0)]
    found = _benchmark.summarize(records, {"ttft_ms": 200.0, "itl_ms": None, "e2e_ms": None})
    assert (found["requests"], found["completed"], found["failed_requests"]) == (3, 2, 1)
    assert found["error_rate"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["errors"] == {"unreachable": {"count": 1, "sample": "it is unreachable"}}
    assert found["duration_s"] == pytest.approx(2.0)
    assert found["requests_per_s"] == pytest.approx(1.0)
    assert found["output_tokens_per_s"] == pytest.approx(7 / 2)
    # One of the two was good within 2 s.
    assert found["goodput_per_s"] == pytest.approx(0.5)
    assert found["ttft_ms"]["mean"] == pytest.approx(350)
    assert found["ttft_ms"]["p50"] == pytest.approx(350)
    assert found["ttft_ms"]["p90"] == pytest.approx(100 + 0.9 * 500)
    assert found["itl_ms"]["min"] == pytest.approx(200) and found["itl_ms"]["max"] == pytest.approx(300)
    assert found["icl_ms"]["mean"] == pytest.approx((2 * 200 + 3 * 300) / 5)
    assert found["e2e_ms"]["max"] == pytest.approx(1500)
    assert (found["input_tokens_mean"], found["output_tokens_mean"]) == (10, 3.5)
    assert json.loads(json.dumps(found)) == found


def test_summary_of_nothing_but_failures():
    found = _benchmark.summarize([failed(1.0), failed(2.0, "auth")], {"ttft_ms": 1.0})
    assert (found["completed"], found["error_rate"], found["requests_per_s"], found["ttft_ms"]) == (0, 1.0, 0.0, None)
    assert (found["timeline"], found["histograms"]) == ([], {"ttft_ms": None, "e2e_ms": None})
    assert _benchmark.summarize([], {})["error_rate"] == 0.0


@pytest.mark.parametrize(
    ("values", "percent", "wanted"),
    [([1.0, 2.0, 3.0, 4.0], 50, 2.5), ([1.0, 2.0, 3.0, 4.0], 95, 3.85), ([7.0], 99, 7.0), ([0.0, 10.0], 90, 9.0)],
)
def test_percentiles(values, percent, wanted):
    assert _benchmark.percentile(values, percent) == pytest.approx(wanted)


def test_percentiles_are_those_of_the_standard_library():
    values = sorted(number * 37 % 1009 / 7 for number in range(1000))
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (50, 90, 95, 99):
        assert _benchmark.percentile(values, percent) == pytest.approx(cuts[percent - 1])


@pytest.mark.parametrize(
    ("metrics", "slo", "good"),
    [
        ({"ttft_ms": 100.0}, {"ttft_ms": 100.0}, True),
        ({"ttft_ms": 100.1}, {"ttft_ms": 100.0}, False),
        ({"tokens_per_s_user": 9.0}, {"tokens_per_s_user": 10.0}, False),
        ({"ttft_ms": 1.0}, {"itl_ms": 5.0}, False),
        ({"ttft_ms": 1.0}, {"itl_ms": None}, True),
    ],
)
def test_goodput_counts_what_meets_every_objective(metrics, slo, good):
    assert _benchmark.is_good(metrics, slo) is good


def test_histogram():
    found = _benchmark.histogram([0.0, 1.0, 1.0, 4.0], bins=4)
    assert found == {"edges": [0.0, 1.0, 2.0, 3.0, 4.0], "counts": [1.0, 2.0, 0.0, 1.0]}
    assert sum(_benchmark.histogram([5.0, 5.0])["counts"]) == 2
    assert _benchmark.histogram([]) is None


def test_timeline():
    """A rest of less than half a slot belongs to the last one."""
    records = [answered(0.0, [0.5]), answered(0.0, [1.5]), answered(0.0, [2.2]), failed(0.2)]
    found = _benchmark.timeline(records, 0.0)
    assert [point["at"] for point in found] == [0.0, 1.0]
    assert found[0] == {"at": 0.0, "requests_per_s": 1.0, "output_tokens_per_s": 1.0, "errors": 1, "ttft_ms": 500.0}
    assert found[1]["requests_per_s"] == pytest.approx(2 / 1.2, abs=0.001)
    assert len(_benchmark.timeline([answered(0.0, [600.0])], 0.0)) == 60


# -- requests ----------------------------------------------------------------------------------------------------------


def test_prompts():
    one, two = Prompts(None, 7), Prompts(None, 7)
    texts = [one.text(50) for _ in range(200)]
    assert texts == [two.text(50) for _ in range(200)]
    assert {len(text.split()) for text in texts} == {50}
    assert len({" ".join(text.split()[:8]) for text in texts}) == 200
    assert [len(one.text(words).split()) for words in (1, 8, 9, 9000)] == [1, 8, 9, 9000]
    given = Prompts(["a", " ", "b"], 7)
    assert [given.text(50) for _ in range(3)] == ["a", "b", "a"]


def test_words_for_a_number_of_tokens():
    """A template of 30 tokens, and 1.25 tokens for a word."""
    assert _benchmark.words_for(1030, (16, 50), (64, 110)) == 800
    assert _benchmark.words_for(5, (16, 50), (64, 110)) == 1
    assert _benchmark.words_for(100, (16, 0), (64, 0)) == 100
    assert _benchmark.words_for(100, (64, 64), (64, 64)) == 100


def test_arrivals_are_a_poisson_process():
    times = list(itertools.islice(_benchmark.arrivals(10.0, 3), 5000))
    assert times == list(itertools.islice(_benchmark.arrivals(10.0, 3), 5000))
    gaps = [two - one for one, two in zip([0.0, *times], times)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.05)
    # Of an exponential distribution, deviation and mean are the same.
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.07)


def test_body_of_a_request():
    body = _benchmark.payload(options(extra_body={"top_k": 1}), "m", "hello", 32, fixed=True)
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["top_k"]) == (32, 32, True, 1)
    assert body["stream_options"] == {"include_usage": True}
    assert "min_tokens" not in _benchmark.payload(options(), "m", "hello", 32, fixed=False)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concurrency": []}, "concurrency is empty"),
        ({"concurrency": [1, 0]}, "concurrency has 0, every value must be above 0"),
        ({"concurrency": [-4]}, "concurrency has -4"),
        ({"concurrency": [2, 2]}, "concurrency has a value twice"),
        ({"request_rate": []}, "request_rate is empty"),
        ({"request_rate": [float("nan")]}, "request_rate has nan"),
        ({"duration": 0.0}, "duration is 0"),
        ({"requests": -1}, "requests is -1"),
        ({"warmup_requests": -1}, "warmup_requests is -1, it must not be below 0"),
        ({"input_tokens": 0}, "input_tokens is 0"),
        ({"output_tokens": -3}, "output_tokens is -3"),
        ({"max_error_rate": 1.5}, "a share from 0 to 1"),
        ({"baseline_tolerance": -1.0}, "baseline_tolerance is -1"),
        ({"prompts": [" "]}, "prompts has no text"),
        ({"slo": {"ttft_ms": -1.0}}, "slo.ttft_ms is -1"),
        ({"gates": [gate()]}, "gate 1 (ttft_ms): give min or max"),
        ({"gates": [gate("requests_per_s", min=1.0, stat="p50")]}, "has no stat"),
        ({"gates": [gate("goodput_per_s", min=1.0)]}, "goodput needs slo"),
        ({"gates": [gate(max=1.0, at=3.0)]}, "at 3 is not a value of the sweep"),
        ({"extra_body": {"stream": False}}, "extra_body has stream"),
        ({"run_id": "../x"}, "run_id is set by the action plugin only"),
        ({"url": "localhost"}, "url must be http:// or https://"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"request_timeout": -1.0}, "request_timeout is -1"),
        ({"api_key": "a b"}, "api_key holds spaces"),
        ({"ca_path": "/nonexistent"}, "cannot be read"),
    ],
)
def test_bad_options(changes, words):
    (problem,) = _benchmark.option_problems(options(**changes))
    assert words in problem


def test_sound_options():
    assert _benchmark.option_problems(options()) == []
    assert _benchmark.levels(options()) == [1, 4, 16]
    sound = options(request_rate=[0.5], slo={"itl_ms": 30.0}, gates=[gate("goodput_per_s", min=0.4, at=0.5)])
    assert _benchmark.option_problems(sound) == []
