# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One streamed answer: its times and counts, and whether it is one."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils._answers import Reading, Record, count_of
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault
from ansible_collections.baremetal.nim.tests.unit.answered import DONE, END, answered, content, event, usage


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


def test_a_stream_may_be_cut_anywhere():
    whole = content("") + content("é") + b": ping\n\n" + content("b") + END + usage(7, 2) + DONE
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
        (content(), "incomplete", "without [DONE]"),
        (END + DONE, "bad_response", "no content"),
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


def test_the_first_call_of_a_tool_is_output():
    record = Record(0.0)
    reading = Reading(record)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    reading.feed(event({"choices": [{"delta": {"role": "assistant", "content": None}}]}), 0.1)
    reading.feed(event({"choices": [{"delta": {"tool_calls": [call]}}]}), 0.2)
    reading.feed(event({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}), 0.4)
    reading.feed(event({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}) + DONE, 0.5)
    reading.end(0.5)
    assert (record.first, record.last, record.chunks) == (0.2, 0.4, 2)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (16, 16),
        (16.0, 16),
        ("16", 16),
        (0, 0),
        (None, None),
        (True, None),
        (-1, None),
        (1.5, None),
        (float("nan"), None),
        ("many", None),
        ([16], None),
    ],
)
def test_counts_as_servers_write_them(value, count):
    assert count_of(value) == count


@pytest.mark.parametrize(
    "counts", [{}, {"completion_tokens": None}, {"completion_tokens": 0}, {"completion_tokens": "?"}]
)
def test_a_usage_without_a_count_is_none(counts):
    record = Record(0.0)
    reading = Reading(record)
    reading.feed(
        content() + content() + END + event({"choices": [], "usage": {"prompt_tokens": 3, **counts}}) + DONE, 0.1
    )
    reading.end(0.1)
    assert (record.counted, record.output_tokens, record.prompt_tokens) == (None, 2, 3)


@pytest.mark.parametrize(
    ("times", "lumps", "kept_back"),
    [
        # Each token when it is made, and four of them in each step.
        ([0.1 * number for number in range(1, 21)], 20, False),
        ([0.1 * (1 + number // 4) for number in range(20)], 5, False),
        ([1.0] * 20, 1, True),
        ([1.0 + number * 0.0002 for number in range(20)], 1, True),
        # Too short to tell.
        ([1.0] * 4, 1, False),
    ],
)
def test_what_came_at_one_blow_says_nothing_of_the_time_between_tokens(times, lumps, kept_back):
    record = answered(0.0, times)
    assert (record.lumps, record.kept_back) == (lumps, kept_back)
    assert ("itl_ms" in record.metrics()) == (lumps > 1)


@pytest.mark.parametrize("end", [DONE, b""])
def test_an_answer_that_tells_why_it_ended_is_whole(end):
    for reason in ("stop", "length", "tool_calls", "function_call", "eos_token", "stop_sequence"):
        record = Record(0.0)
        reading = Reading(record)
        reading.feed(content() + event({"choices": [{"delta": {}, "finish_reason": reason}]}) + end, 0.1)
        reading.end(0.1)
        assert record.finish == reason


WORDS = "CUDA out of memory on rank 3"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (DONE, "incomplete", "ended without finish_reason"),
        (b"", "incomplete", "without an event"),
        (b": ping\n\n", "incomplete", "without an event"),
        (
            content() + event({"choices": [{"delta": {}, "finish_reason": "abort"}]}) + DONE,
            "incomplete",
            "finish_reason abort",
        ),
        (
            content() + event({"choices": [{"delta": {"content": WORDS}, "finish_reason": "error"}]}) + DONE,
            "incomplete",
            WORDS,
        ),
        (content() + event({"choices": [{"delta": {}, "finish_reason": "strange"}]}) + DONE, "incomplete", "strange"),
        (
            content() + event({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}) + DONE,
            "refused_by_policy",
            "word",
        ),
        (
            event({"choices": [{"delta": {"refusal": "I can't"}, "finish_reason": "stop"}]}) + DONE,
            "refused_by_policy",
            "I can't",
        ),
        (
            event(
                {
                    "choices": [
                        {"delta": {}, "finish_reason": {"type": "abort", "message": "The request queue is full."}}
                    ]
                }
            )
            + DONE,
            "overloaded",
            "queue is full",
        ),
        # vLLM, TGI, LiteLLM, FastChat, FastAPI, llama.cpp, Dynamo, and what others write.
        (
            content() + event({"error": {"message": WORDS, "type": "InternalServerError", "code": 500}}) + DONE,
            "dead_engine",
            WORDS,
        ),
        (content() + event({"error": WORDS, "error_type": "generation"}), "dead_engine", WORDS),
        (event({"error": "too long", "error_type": "validation", "http_status_code": 422}), "bad_response", "too long"),
        (event({"error": {"message": "Rate limit reached", "code": "429"}}) + DONE, "overloaded", "Rate limit"),
        (
            event({"error": {"message": "expired key", "type": "auth_error", "code": "401"}}) + DONE,
            "auth",
            "expired key",
        ),
        (content() + event({"text": WORDS, "error_code": 50002}) + DONE, "dead_engine", WORDS),
        (content() + event({"detail": WORDS}) + DONE, "dead_engine", WORDS),
        (
            content() + b'error: {"code":500,"message":"' + WORDS.encode() + b'","type":"server_error"}\n\n',
            "dead_engine",
            WORDS,
        ),
        (content() + b"event: error\n: " + WORDS.encode() + b"\n\n", "dead_engine", WORDS),
        (content() + b"event: error\ndata: " + WORDS.encode() + b"\n\n", "dead_engine", WORDS),
        (content() + b'event: error\ndata: {"message": "' + WORDS.encode() + b'"}\n\n', "dead_engine", WORDS),
        (
            content() + event({"type": "error", "code": "500", "message": WORDS, "sequence_number": 5}),
            "dead_engine",
            WORDS,
        ),
        (event({"choices": [{"error": {"code": 502, "message": WORDS}, "delta": {}}]}), "dead_engine", WORDS),
        # No stream at all, but an error for which the server said HTTP 200.
        (b'{"error": {"message": "The request queue is full.", "code": 503}}', "overloaded", "queue is full"),
        (b"<html>busy</html>", "incomplete", "<html>busy</html>"),
    ],
)
def test_answers_that_were_given_up(body, kind, words):
    reading = Reading(Record(0.0))
    with pytest.raises(Fault) as caught:
        reading.feed(body, 0.1)
        reading.end(0.2)
    assert (caught.value.failure_class, words in str(caught.value)) == (kind, True), str(caught.value)


def test_keep_alives_are_no_answers():
    record = Record(0.0)
    reading = Reading(record)
    reading.feed(b"data: \n\n: ping\n\nretry: 3\n\n" + content() + END + b"data: [DONE] \n\n", 0.1)
    reading.end(0.1)
    assert (record.chunks, record.done) == (1, True)
