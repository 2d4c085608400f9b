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
from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import Prompts, Reading, Record
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault


def options(**changes):
    given = {name: fact.get("default") for name, fact in _benchmark.ARGUMENT_SPEC.items()}
    return {**given, "url": "http://127.0.0.1:8000", **changes}


def gate(metric="ttft_ms", **changes):
    return {"metric": metric, "stat": None, "min": None, "max": None, "at": None, **changes}


def event(body):
    return b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"


def content(text="word", **delta):
    return event({"choices": [{"delta": {"content": text, **delta}}]})


def usage(prompt, completion):
    return event(
        {
            "choices": [],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        }
    )


DONE = event(b"[DONE]")


def answered(start, times, prompt=10, completion=None):
    """A record as a stream gives it: content at these moments by a fake clock, and a usage chunk."""
    record = Record(start)
    reading = Reading(record)
    reading.feed(content(""), start + 0.001)
    for at in times:
        reading.feed(content(), at)
    reading.feed(usage(prompt, len(times) if completion is None else completion), times[-1] + 1)
    reading.feed(DONE, times[-1] + 2)
    reading.end(times[-1] + 2)
    return record


def failed(start, kind="unreachable"):
    record = Record(start)
    record.error, record.text = kind, f"it is {kind}"
    return record


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_of_a_request():
    """Sent at 100; content at 100.2, 100.3, 100.5; the role, the usage and [DONE] are no content."""
    record = answered(100.0, [100.2, 100.3, 100.5], completion=5)
    found = record.metrics()
    assert found["ttft_ms"] == pytest.approx(200)
    assert found["e2e_ms"] == pytest.approx(500)
    # Five tokens in three chunks: (500 - 200) / (5 - 1), and not by the two gaps.
    assert found["itl_ms"] == found["tpot_ms"] == pytest.approx(75)
    assert found["tokens_per_s_user"] == pytest.approx(1000 / 75)
    assert list(record.gaps) == pytest.approx([0.1, 0.2])
    assert (record.prompt_tokens, record.output_tokens, record.chunks) == (10, 5, 3)


def test_one_token_has_no_time_between_tokens():
    assert answered(1.0, [1.5]).metrics() == pytest.approx({"ttft_ms": 500, "e2e_ms": 500})


def test_reasoning_is_output_too():
    record = Record(0.0)
    reading = Reading(record)
    reading.feed(event({"choices": [{"delta": {"reasoning_content": "hm"}}]}), 0.1)
    reading.feed(content() + DONE, 0.3)
    assert (record.first, record.last, record.chunks) == (0.1, 0.3, 2)


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


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_may_be_cut_anywhere():
    whole = content("") + content("é") + b": ping\n\n" + content("b") + usage(7, 2) + DONE
    for end in (b"\n", b"\r\n"):
        body = whole.replace(b"\n", end)
        for size in (1, 2, 3, 7, 64, len(body)):
            record = Record(0.0)
            reading = Reading(record)
            for number, start in enumerate(range(0, len(body), size)):
                reading.feed(body[start : start + size], float(number))
            reading.end(99.0)
            assert (record.chunks, record.output_tokens, record.prompt_tokens, record.done) == (2, 2, 7, True)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (content(), "bad_response", "without [DONE]"),
        (DONE, "bad_response", "no content"),
        (content() + event(b"{nonsense"), "bad_response", "nonsense"),
        (content() + event([1]), "bad_response", "[1]"),
        (event({"choices": [3]}), "bad_response", "choices"),
        (event({"error": {"message": "EngineCore died", "code": 500}}), "dead_engine", "EngineCore died"),
        (event({"object": "error", "message": "too long", "code": 400}), "bad_response", "too long"),
    ],
)
def test_bad_streams(body, kind, words):
    reading = Reading(Record(0.0))
    with pytest.raises(Fault) as caught:
        reading.feed(body, 0.1)
        reading.end(0.2)
    assert caught.value.failure_class == kind
    assert words in str(caught.value)


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


# -- judgement ---------------------------------------------------------------------------------------------------------


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
    result = {"steps": steps, "gates": _benchmark.judge(gates, steps), "comparison": list(comparison)}
    return _benchmark.fault_of(result, options(**changes))


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
    found, notes = _benchmark.compare(before, [step(1, 111.0, 9.5), step(4, 100.0, 20.0), step(8)], 10.0)
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
    assert not any(line["regression"] for line in _benchmark.compare(before, [step(1, 109.0, 9.1)], 10.0)[0])


def test_a_baseline_of_the_other_load_is_none():
    found, notes = _benchmark.compare({"steps": [step(4)]}, [step(4, load="open")], 10.0)
    assert (found, notes) == ([], ["the baseline has no rate 4"])
    assert _benchmark.compare({"x": 1}, [step(4)], 10.0)[1] == [
        "the baseline has no steps: it is no result of nim_benchmark"
    ]


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is no JSON"), ("[]", "is no result"), ('{"steps": 1}', "is no result")]
)
def test_a_bad_baseline_file(text, words):
    with pytest.raises(ValueError, match=words):
        _benchmark.load_baseline(text, "before.json")
