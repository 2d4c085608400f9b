# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_benchmark where something is missing: answers, steps, numbers, a baseline that fits. None of it passes."""

from __future__ import annotations

import itertools
import json
import resource
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import nim_benchmark
from ansible_collections.baremetal.nim.tests.unit.nim_server import NimServer, chunks, send, sse, usage
from ansible_collections.baremetal.nim.tests.unit.steady_server import steady

CHAT = ("POST", "/v1/chat/completions")
DEAD = send(500, {"error": {"message": "EngineCore died"}})


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs the module; returns its result, with the texts that it warned of."""
    warned = []
    monkeypatch.setattr(nim_benchmark.AnsibleModule, "warn", lambda _module, text: warned.append(text))

    def run(url, **args):
        warned.clear()
        common = {"url": url, "request_timeout": 5, "output_tokens": 4, "input_tokens": 32, "warmup_requests": 0}
        with patch_module_args({**common, **args}), pytest.raises(SystemExit):
            nim_benchmark.main()
        return {**json.loads(capsys.readouterr().out), "warned": list(warned)}

    return run


def answered(words, counts=None, end="stop", gap=0.0, whole=False):
    """A chat reply: so many words, these counts or those of the words, this finish_reason, so long between two of them."""

    def reply(_nim, handler, body):
        number = body["max_tokens"] if words is None else words
        events = chunks(words=["x "] * number)
        events[-2]["choices"][0]["finish_reason"] = end
        asked = sum(len(str(message["content"]).split()) for message in body["messages"])
        events[-1]["usage"] = usage(asked, number) if counts is None else counts

        def paced():
            for part in [b"".join(sse(events))] if whole else sse(events):
                yield part
                time.sleep(gap)

        handler.send_stream(paced())

    return reply


class Turns:
    """A chat reply that is another from a request on, counted from 1."""

    def __init__(self, first, then, since):
        self.count, self.first, self.then, self.since = 0, first, then, since

    def __call__(self, nim, handler, body):
        self.count += 1
        (self.first if self.count < self.since else self.then)(nim, handler, body)


GOOD = answered(None)
SWEEP = {"concurrency": [1, 4, 16], "requests": 20, "max_error_rate": 0.9}


# -- an engine that dies -----------------------------------------------------------------------------------------------


def test_an_engine_that_dies_in_the_sweep_fails_whatever_share_may_fail(call):
    gates = [{"metric": "ttft_ms", "max": 60000, "at": 16}, {"metric": "requests_per_s", "min": 0.001}]
    with NimServer(replies={CHAT: Turns(GOOD, DEAD, 31)}) as nim:
        result = call(nim.url, **SWEEP, gates=gates)
    assert result["failure_class"] == "dead_engine"
    assert [(step["level"], step["aborted"], step["last_error"]) for step in result["steps"]] == [
        (1, False, None),
        (4, True, "dead_engine"),
    ]
    assert result["not_run"] == [{"load": "closed", "level": 16}]
    assert "concurrency 4 was given up" in result["msg"] and "concurrency 16 never ran" in result["msg"]
    # The gates of the step that never ran are not kept.
    missing = [gate for gate in result["gates"] if gate["step"] == "concurrency 16"]
    assert [(gate["metric"], gate["seen"], gate["passed"]) for gate in missing] == [
        ("ttft_ms", None, False),
        ("requests_per_s", None, False),
    ]
    assert "concurrency 16: ttft_ms p95 nothing measured, wanted at most 60000" in result["evidence"]


@pytest.mark.parametrize("load", [{"concurrency": [1]}, {"request_rate": [200]}], ids=["closed", "open"])
def test_an_engine_that_dies_at_the_very_end_is_noticed(call, load):
    """Fewer failures than it takes to give up, and within the share that may fail."""
    with NimServer(replies={CHAT: Turns(GOOD, DEAD, 2 + 17)}) as nim:
        result = call(nim.url, **load, requests=20, max_error_rate=0.5)
    (step,) = result["steps"]
    assert (step["completed"], step["aborted"], result["failure_class"]) == (16, True, "dead_engine")


def test_an_engine_that_came_back_has_not_died(call):
    """The last request of the step failed; the one more that is sent then does not."""
    once = Turns(Turns(GOOD, DEAD, 2 + 20), GOOD, 2 + 21)
    with NimServer(replies={CHAT: once}) as nim:
        result = call(nim.url, concurrency=[1], requests=20, max_error_rate=0.5)
    assert not result.get("failed") and result["steps"][0]["failed_requests"] == 1


def test_what_ended_a_step_counts_and_not_what_there_was_most_of(call):
    busy = send(429, {"error": {"message": "Too many requests"}})
    some = itertools.count()

    def often_busy(nim, handler, body):
        (busy if next(some) % 2 else GOOD)(nim, handler, body)

    with NimServer(replies={CHAT: Turns(GOOD, Turns(often_busy, DEAD, 60), 3)}) as nim:
        result = call(nim.url, concurrency=[2], requests=200, max_error_rate=0.9)
    (step,) = result["steps"]
    assert step["errors"]["overloaded"]["count"] > step["errors"]["dead_engine"]["count"]
    assert (result["failure_class"], step["aborted"]) == ("dead_engine", True)


def test_a_benchmark_that_is_out_of_time_tells_what_it_measured(call):
    # The first level is done at once, and the second one never.
    with NimServer(replies={CHAT: Turns(GOOD, answered(None, gap=30), 2 + 6)}) as nim:
        gates = [{"metric": "ttft_ms", "max": 60000}]
        result = call(nim.url, concurrency=[1, 2, 4], requests=5, timeout=8, gates=gates)
    assert result["failure_class"] == "slow" and "did not end within" in result["msg"]
    assert [step["level"] for step in result["steps"]] == [1, 2][: len(result["steps"])] and result["steps"]
    assert result["not_run"] and not result["gates"][-1]["passed"]


# -- who has too much to do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        send(429, {"error": {"message": "Too many requests"}}),
        send(503, {"error": {"message": "The request queue is full.", "code": 503}}),
        send(500, {"error": "Exceeds maximum queue size"}),
        answered(0, end={"type": "abort", "message": "The request queue is full.", "status_code": 503}),
    ],
    ids=["429", "SGLang", "Triton", "in the stream"],
)
def test_too_much_to_do_is_not_cured_by_a_restart(call, reply):
    with NimServer(replies={CHAT: Turns(GOOD, reply, 10)}) as nim:
        result = call(nim.url, concurrency=[1], requests=30)
    assert result["failure_class"] == "overloaded"
    assert "Restart" not in result["msg"] and "Wait, send fewer at a time" in result["msg"]
    assert result["next_command"] == f"curl -sS {nim.url}/v1/metrics"


def test_a_server_that_is_busy_before_the_load_is_asked_again(call):
    def busy(_nim, handler, _body):
        handler.send_response(503)
        handler.send_header("Retry-After", "0.3")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with NimServer(replies={CHAT: Turns(busy, GOOD, 3)}) as nim:
        result = call(nim.url, concurrency=[1], requests=3)
    assert not result.get("failed") and result["steps"][0]["completed"] == 3


def test_a_proxy_that_reaches_nothing_has_a_cure_of_its_own(call):
    with NimServer(replies={CHAT: Turns(GOOD, send(502, "<h1>502 Bad Gateway</h1>"), 10)}) as nim:
        result = call(nim.url, concurrency=[1], requests=30)
    assert result["failure_class"] == "dead_engine"
    assert "reaches nothing behind it" in result["msg"] and "Start the service that the proxy" in result["msg"]


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "failure_class"),
    [("abort", "incomplete"), ("error", "incomplete"), (None, "incomplete"), ("content_filter", "refused_by_policy")],
)
def test_answers_that_were_given_up_do_not_count(call, end, failure_class):
    turn = itertools.count()

    def every_other(nim, handler, body):
        (answered(1, end=end) if body["max_tokens"] > 1 and next(turn) % 2 else GOOD)(nim, handler, body)

    with NimServer(replies={CHAT: every_other}) as nim:
        result = call(nim.url, concurrency=[2], requests=20)
    (step,) = result["steps"]
    assert (step["completed"], step["errors"][failure_class]["count"]) == (10, 10)
    # Short answers that are none are in no mean.
    assert step["output_tokens_mean"] == 4
    assert result["failure_class"] == failure_class


@pytest.mark.parametrize(("words", "mean"), [(5, "5"), (200, "200")])
def test_a_server_that_takes_the_length_and_does_not_keep_to_it_is_told(call, words, mean):
    with NimServer(replies={CHAT: answered(words)}) as nim:
        result = call(nim.url, concurrency=[1], requests=3, output_tokens=64)
    assert result["workload"]["fixed_output"] is False
    assert any(
        f"3 of 3 answers had another length than output_tokens 64, the mean is {mean}" in text
        for text in result["warned"]
    )


def test_calls_of_tools_are_answers(call):
    call_ = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    deltas = [{"content": None}, {"tool_calls": [call_]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"ci', 'ty": "Paris"}')]
    head = {"id": "c1", "object": "chat.completion.chunk", "model": "m"}
    events = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events += [{**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}]
    events += [{**head, "choices": [], "usage": usage(40, 12)}]
    with NimServer(replies={CHAT: lambda _nim, handler, _body: handler.send_stream(sse(events))}) as nim:
        result = call(nim.url, concurrency=[1], requests=3, prompts=["weather?"], extra_body={"tools": []})
    (step,) = result["steps"]
    assert (step["completed"], step["output_tokens_mean"], result.get("failed")) == (3, 12, None)


@pytest.mark.parametrize(
    ("counts", "tokens_from", "mean"),
    [
        (usage(10, 16), "usage", 16),
        ({"prompt_tokens": 10.0, "completion_tokens": 16.0}, "usage", 16),
        ({"prompt_tokens": "10", "completion_tokens": "16"}, "usage", 16),
        ({"prompt_tokens": 10, "completion_tokens": None}, "chunks", 8),
        ({"prompt_tokens": 10}, "chunks", 8),
        ({"prompt_tokens": 0, "completion_tokens": 0}, "chunks", 8),
    ],
)
def test_a_usage_without_counts_is_told(call, counts, tokens_from, mean):
    with NimServer(replies={CHAT: answered(8, counts=counts)}) as nim:
        result = call(nim.url, concurrency=[1], requests=3, fixed_output=False)
    (step,) = result["steps"]
    assert (step["tokens_from"], step["output_tokens_mean"]) == (tokens_from, mean)
    assert any("counted as chunks" in text for text in result["warned"]) is (tokens_from == "chunks")


def test_what_a_proxy_kept_back_has_no_time_between_tokens(call):
    gates = [
        {"metric": "itl_ms", "max": 25},
        {"metric": "icl_ms", "max": 25},
        {"metric": "tokens_per_s_user", "min": 1},
    ]
    with NimServer(replies={CHAT: answered(None, whole=True)}) as nim:
        result = call(nim.url, concurrency=[1, 2], requests=4, output_tokens=32, gates=gates)
    assert result["failure_class"] == "buffered_stream" and "4 of 4 answers came at one blow" in result["msg"]
    for step in result["steps"]:
        assert step["itl_ms"] is step["icl_ms"] is step["tokens_per_s_user"] is None
        assert (step["long_answers"], step["kept_back"]) == (4, 4)
    assert not any(gate["passed"] for gate in result["gates"])


# -- baselines ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def before(call):
    """A result, and the reply that gave it."""
    reply = answered(None, gap=0.002)
    with NimServer(replies={CHAT: reply}) as nim:
        result = call(nim.url, concurrency=[1], requests=3)
    assert not result.get("failed")
    return result, reply


@pytest.mark.parametrize(
    ("args", "change", "words"),
    [
        ({"input_tokens": 64}, {}, "the baseline was measured with input_tokens 32, this is 64"),
        ({"output_tokens": 8}, {}, "output_tokens 4, this is 8"),
        ({"prompts": ["a"]}, {}, "prompts 0, this is 1"),
        ({"extra_body": {"top_k": 1}}, {}, "extra_body {}, this is"),
        ({"concurrency": [1, 2]}, {}, "the baseline has no concurrency 2"),
        ({"concurrency": None, "request_rate": [1]}, {}, "the baseline has no rate 1"),
        ({}, {"model": "other/model-70b"}, "the baseline is of model other/model-70b, this is"),
        ({}, {"steps": []}, "the baseline has no steps"),
        ({}, {"steps": [{}]}, "the baseline has no steps"),
        ({}, {"steps": None}, "the baseline has no steps"),
        ({}, {"steps": [{"load": "closed", "level": "1"}]}, "the baseline has no steps"),
        (
            {},
            {"steps": [{"load": "closed", "level": 1, "ttft_ms": "fast"}]},
            "the baseline has no numbers of concurrency 1",
        ),
        (
            {},
            {"steps": [{"load": "closed", "level": 1, "aborted": True, "requests_per_s": 3}]},
            "gave up concurrency 1",
        ),
    ],
)
def test_a_baseline_of_something_else_is_refused_before_the_load(call, before, args, change, words):
    earlier, reply = before
    with NimServer(replies={CHAT: reply}) as nim:
        given = {"concurrency": [1], "requests": 3, **args}
        result = call(
            nim.url, **{key: value for key, value in given.items() if value is not None}, baseline={**earlier, **change}
        )
        asked = len(nim.asked("/v1/chat/completions"))
    assert result["failure_class"] == "not_comparable" and words in result["msg"], result["msg"]
    assert result["comparison"] == [] and "Compare with a whole result" in result["msg"]
    # The model is known only when the endpoint was asked.
    assert asked == 0 or "model" in change


def test_a_number_that_one_of_the_two_lacks_is_told(call, before):
    earlier, reply = before
    step = {**earlier["steps"][0], "ttft_ms": {"p50": float("nan"), "p95": 1e9}, "e2e_ms": None}
    with NimServer(replies={CHAT: reply}) as nim:
        result = call(
            nim.url, concurrency=[1], requests=3, baseline={**earlier, "steps": [step]}, baseline_tolerance=1e6
        )
    assert result["failure_class"] == "not_comparable"
    assert "ttft_ms p50 has nothing to be compared with in the baseline" in result["msg"]
    assert "e2e_ms p95 has nothing" in result["msg"]


# -- this host ---------------------------------------------------------------------------------------------------------


def test_files_are_allowed_for_as_many_requests_as_are_in_flight(call):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with steady(ttft=0.3) as url:
        # Not before: the server would have this limit too.
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            result = call(url, concurrency=[300], requests=300)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not result.get("failed") and result["steps"][0]["completed"] == 300
