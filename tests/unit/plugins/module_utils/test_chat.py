# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _chat
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES, Fault, shorten
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, chunks, completion, usage
from hypothesis import given
from hypothesis import strategies as st


class FakeTime:
    """A clock that moves only by sleeping."""

    def __init__(self):
        self.at = 100.0
        self.slept = []

    def now(self):
        return self.at

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.at += seconds


def test_clock_yields_at_once_then_every_interval_and_at_the_end():
    fake = FakeTime()
    assert list(_chat.clock(1.0, 0.4, fake.now, fake.sleep)) == pytest.approx([0.0, 0.4, 0.8, 1.0])
    assert fake.slept == pytest.approx([0.4, 0.4, 0.2])


def test_clock_without_time_left_still_yields_once():
    fake = FakeTime()
    assert list(_chat.clock(0.0, 0.25, fake.now, fake.sleep)) == [0.0]
    assert fake.slept == []


def test_clock_counts_the_time_the_body_takes():
    fake = FakeTime()
    seen = []
    for elapsed in _chat.clock(1.0, 0.25, fake.now, fake.sleep):
        seen.append(elapsed)
        fake.at += 0.9
    assert seen == pytest.approx([0.0, 1.0])


def test_payload_asks_for_usage_only_in_a_stream():
    messages = [{"role": "user", "content": "hi"}]
    plain = _chat.chat_payload("m", messages, 8, 0.0)
    assert plain == {"model": "m", "messages": messages, "max_tokens": 8, "temperature": 0.0}
    streamed = _chat.chat_payload("m", messages, 8, 0.0, stream=True)
    assert streamed == {**plain, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", ["a", "b"], id="plain"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"], id="CRLF"),
        pytest.param(b"data: a\r\rdata: b\r\r", ["a", "b"], id="CR"),
        pytest.param(b": ping\n\ndata: a\n: keep-alive\n\n:\n\n", ["a"], id="comments"),
        pytest.param(b"data: a\ndata: b\n\n", ["a\nb"], id="several lines of data"),
        pytest.param(b"data:a\n\ndata:  b\n\n", ["a", " b"], id="one space after the colon belongs to it"),
        pytest.param(b"event: message\nid: 7\nretry: 10\ndata: a\n\n", ["a"], id="other fields"),
        pytest.param(b"event: ping\n\n\n\ndata: a\n\n", ["a"], id="events without data"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", ["a"], id="byte order mark"),
        pytest.param("data: Grüße 🚀\n\n".encode(), ["Grüße 🚀"], id="UTF-8"),
        pytest.param(b"data: a\xff\n\n", ["a\ufffd"], id="not UTF-8"),
        pytest.param(b"data: a\n\ndata: [DONE]\n\n", ["a", "[DONE]"], id="done"),
        pytest.param(b"data: a\n\ndata: cut", ["a"], id="unfinished event"),
        pytest.param(b"database: a\n\n", [], id="another field that begins alike"),
        pytest.param(b"", [], id="nothing"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_sse_data(stream, events, size):
    cut = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert list(_chat.sse_data(cut)) == events


def written(events, end, comments):
    """A stream with these events, as a server may write it."""
    lines = []
    for index, event in enumerate(events):
        lines += [": keep-alive", ""] if index in comments else []
        lines += [f"data: {line}" for line in event.split("\n")] + ["event: message", ""]
    return "".join(line + end for line in lines).encode()


@given(
    events=st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=("Cs",)), max_size=20).flatmap(
        lambda text: st.sampled_from([text, f"{text}\n{text}"])), max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    comments=st.sets(st.integers(0, 5)),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)  # fmt: skip
def test_sse_data_gives_what_was_written_however_it_is_cut(events, end, comments, cuts):
    stream = written(events, end, comments)
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    parts = [stream[start:stop] for start, stop in zip(places, places[1:])]
    assert list(_chat.sse_data(parts)) == events


@given(stream=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=12))
def test_sse_data_of_any_bytes_does_not_depend_on_where_they_are_cut(stream, cuts):
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    parts = [stream[start:stop] for start, stop in zip(places, places[1:])]
    assert list(_chat.sse_data(parts)) == list(_chat.sse_data([stream]))


def test_sse_data_yields_each_event_as_soon_as_it_is_complete():
    came = []

    def source():
        for part in (b"data: a\n\n", b"data: b\n", b"\n"):
            came.append(part)
            yield part

    events = _chat.sse_data(source())
    assert (next(events), len(came)) == ("a", 1)
    assert (next(events), len(came)) == ("b", 3)


@pytest.mark.parametrize(
    ("status", "body", "failure_class", "words"),
    [
        (401, '{"error": {"message": "Unauthorized", "code": 401}}', "auth", "HTTP 401 from POST /x (Unauthorized)"),
        (403, "<html>Forbidden</html>", "auth", "HTTP 403 from POST /x (<html>Forbidden</html>)"),
        (404, '{"error": {"message": "The model `m` does not exist."}}', "wrong_model", "`m` does not exist"),
        (404, '{"object": "error", "message": "The model `m` does not exist."}', "wrong_model", "`m` does not exist"),
        (404, '{"detail": "Not Found"}', "bad_response", "Not Found"),
        (400, '{"detail": [{"loc": ["body"], "msg": "field required"}]}', "bad_response", "field required"),
        (301, "", "bad_response", "HTTP 301 from POST /x, wanted HTTP 200"),
        (500, '{"error": {"message": "EngineCore encountered an issue."}}', "dead_engine", "EngineCore"),
        (502, "<html>\n<h1>502 Bad Gateway</h1>\n</html>", "dead_engine", "502 Bad Gateway"),
        (503, '"busy"', "dead_engine", "busy"),
        (
            400,
            '{"error": {"message": "Blocked by content policy", "code": "content_filter"}}',
            "refused_by_policy",
            "Blocked",
        ),
        (403, '{"detail": "Request violates the usage policy"}', "refused_by_policy", "violates the usage policy"),
        (422, '{"message": "NeMo Guardrails: input rail refused"}', "refused_by_policy", "Guardrails"),
        (500, '{"message": "guardrails service is down"}', "dead_engine", "is down"),
    ],
)
def test_http_fault(status, body, failure_class, words):
    fault = _chat.http_fault("POST /x", status, body)
    assert (fault.failure_class, words in str(fault)) == (failure_class, True), str(fault)


def test_http_fault_passes_200():
    assert _chat.http_fault("GET /x", 200, "anything") is None


def test_parse_json_names_the_request_and_what_came():
    with pytest.raises(Fault, match="GET /v1/models answered '<html>', wanted JSON") as caught:
        _chat.parse_json("GET /v1/models", "<html>")
    assert caught.value.failure_class == "bad_response"


def test_read_models():
    body = {"object": "list", "data": [{"id": "a"}, {"id": ""}, {"name": "b"}, "c", {"id": "d"}]}
    assert _chat.read_models(body) == {"a": {"id": "a"}, "d": {"id": "d"}}


@pytest.mark.parametrize(
    ("card", "length"),
    [({"max_model_len": 8192}, 8192), ({}, None), ({"max_model_len": 0}, None), ({"max_model_len": "8192"}, None)],
)
def test_context_length(card, length):
    assert _chat.context_length(card) == length


@pytest.mark.parametrize("body", [None, [], "x", {}, {"data": None}, {"data": []}, {"data": [{"id": 1}]}, {"data": {}}])
def test_read_models_refuses(body):
    with pytest.raises(Fault, match="lists no model") as caught:
        _chat.read_models(body)
    assert caught.value.failure_class == "bad_response"


def test_choose_model():
    assert _chat.choose_model(None, ["a", "b"]) == "a"
    assert _chat.choose_model("b", ["a", "b"]) == "b"
    with pytest.raises(Fault, match="lists a, b, wanted model c") as caught:
        _chat.choose_model("c", ["a", "b"])
    assert caught.value.failure_class == "wrong_model"


def info(*names):
    return {"modelInfo": [{"shortName": short, "modelUrl": url} for short, url in names], "version": "1.8.6"}


@pytest.mark.parametrize(
    ("model", "metadata"),
    [
        (MODEL, None),
        (MODEL, "true"),
        (MODEL, {}),
        (MODEL, {"modelInfo": None}),
        (MODEL, {"modelInfo": [{}, "x", {"shortName": ""}]}),
        (MODEL, info((MODEL, ""))),
        (MODEL, info(("llama-3.1-8b-instruct:hf-8c22764-nim1.3b", "ngc://nim/meta/llama-3.1-8b-instruct:hf-8c22764"))),
        (MODEL, info((None, "ngc://nim/meta/llama-3.1-8b-instruct:0.12+cbc614f5-h100x1-fp8-throughput"))),
        ("mistralai/mixtral-8x7b-instruct-v0.1", info(("mixtral-8x7b-instruct-v01:rc", None))),
        ("Qwen/Qwen3-8B", info((None, "hf://Qwen/Qwen3-8B@main"))),
        ("nvidia/cosmos-reason2-8b", info((None, "ngc://nim/nvidia/cosmos-reason2-8b-fp8:1.6.0"))),
        # A draft model of speculative decoding beside the one asked.
        (MODEL, info(("llama-3.2-1b-instruct", None), ("llama-3.1-8b-instruct", None))),
        # An alias or an adapter says nothing about the weights.
        ("my-alias", info(("llama-3.1-70b-instruct", None))),
    ],
)
def test_check_metadata_accepts(model, metadata):
    _chat.check_metadata(model, metadata)


@pytest.mark.parametrize(
    ("model", "metadata"),
    [
        (MODEL, info(("llama-3.1-70b-instruct:hf-1d54af3", "ngc://nim/meta/llama-3.1-70b-instruct:hf-1d54af3"))),
        ("nvidia/cosmos-reason2-8b", info((None, "ngc://nim/nvidia/cosmos-reason2-2b:1.6.0"))),
        ("meta/llama-3.2-1b-instruct", info(("meta/llama-3.2-11b-instruct", None))),
    ],
)
def test_check_metadata_refuses_another_model(model, metadata):
    with pytest.raises(Fault, match=f"wanted model {model}") as caught:
        _chat.check_metadata(model, metadata)
    assert caught.value.failure_class == "wrong_model"
    assert caught.value.evidence


def without(key):
    body = completion()
    del body[key]
    return body


def with_choice(**changes):
    body = completion()
    body["choices"][0].update(changes)
    return body


def with_message(**changes):
    body = completion()
    body["choices"][0]["message"].update(changes)
    return body


def test_read_completion():
    answer = _chat.read_completion(completion(content=" ready\n"), MODEL)
    assert (answer.content, answer.finish_reason, answer.usage) == (" ready\n", "stop", usage())


def test_read_completion_leaves_details_of_the_usage_out():
    body = completion(usage={**usage(), "prompt_tokens_details": None, "cached": True})
    assert _chat.read_completion(body, MODEL).usage == usage()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([], "no JSON object"),
        ({}, "choices is empty"),
        ({"object": "error", "message": "x", "code": 500}, "object is 'error'"),
        (without("id"), "id is None"),
        (completion(id=""), "id is ''"),
        (completion(id=7), "id is 7"),
        (completion(object="text_completion"), "object is 'text_completion'"),
        (without("model"), "model is None"),
        (without("choices"), "choices is empty"),
        (completion(choices=[]), "choices is empty"),
        (completion(choices={"0": {}}), "choices is empty or no list"),
        (completion(choices=["x"]), "message is no object"),
        (with_choice(message=None), "message is no object"),
        (with_message(role="user"), "message.role is 'user'"),
        (with_message(content=None), "content is None"),
        (with_message(content=""), "content is ''"),
        (with_message(content=" \n"), "content is ' \\n'"),
        (with_message(content=["x"]), "content is ['x']"),
        (with_message(content=None, reasoning_content="Let me think"), "raise max_tokens"),
        (with_choice(finish_reason=None), "finish_reason is None"),
        (with_choice(finish_reason="abort"), "finish_reason is 'abort'"),
        (without("usage"), "usage is None"),
        (completion(usage={**usage(), "total_tokens": 19}), "16 + 2 is not 19"),
        (completion(usage={**usage(), "prompt_tokens": "16"}), "usage.prompt_tokens is '16'"),
        (completion(usage={**usage(), "completion_tokens": True}), "usage.completion_tokens is True"),
        (completion(usage={**usage(), "prompt_tokens": -1}), "usage.prompt_tokens is -1"),
    ],
)
def test_read_completion_refuses(body, problem):
    with pytest.raises(Fault) as caught:
        _chat.read_completion(body, MODEL)
    assert caught.value.failure_class == "bad_response"
    assert problem in str(caught.value)


def test_read_completion_names_every_problem_at_once():
    with pytest.raises(Fault) as caught:
        _chat.read_completion(completion(id=None, content="", usage=None), MODEL)
    assert [word in str(caught.value) for word in ("id is", "content is", "usage is")] == [True] * 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (with_choice(finish_reason="content_filter"), "finish_reason content_filter"),
        (with_message(content=None, refusal="I can't help with that."), "I can't help with that."),
    ],
)
def test_read_completion_that_a_policy_refused(body, words):
    with pytest.raises(Fault, match="was refused") as caught:
        _chat.read_completion(body, MODEL)
    assert caught.value.failure_class == "refused_by_policy"
    assert words in str(caught.value)


def test_a_call_of_a_tool_stands_for_content_only_where_one_may_come():
    body = with_message(content=None, tool_calls=[{"id": "call-1"}])
    body["choices"][0]["finish_reason"] = "tool_calls"
    assert _chat.read_completion(body, MODEL, tools=True).message["tool_calls"] == [{"id": "call-1"}]
    with pytest.raises(Fault, match="content is None"):
        _chat.read_completion(body, MODEL)
    with pytest.raises(Fault, match="content is None"):
        _chat.read_completion(with_message(content=None), MODEL, tools=True)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"selectedModelProfileId": "8835c317"}, None),
        ({"selectedModelProfileId": "4f904d57"}, "names profile 4f904d57, wanted profile 8835c317"),
        ({"modelInfo": []}, "names no profile"),
        (None, "names no profile"),
    ],
)
def test_check_profile(metadata, words):
    if words is None:
        _chat.check_profile("8835c317", metadata)
        return
    with pytest.raises(Fault, match=words) as caught:
        _chat.check_profile("8835c317", metadata)
    assert caught.value.failure_class == "wrong_model"


def test_read_completion_of_another_model():
    with pytest.raises(Fault, match="model other answered, wanted model meta") as caught:
        _chat.read_completion(completion(model="other"), MODEL)
    assert caught.value.failure_class == "wrong_model"


def streamed(events, done=True):
    stream = _chat.Stream(MODEL)
    for at, event in enumerate(events):
        stream.event(json.dumps(event), at / 10)
    if done:
        stream.event("[DONE]", 1.0)
    return stream.answer(1.5)


def test_stream():
    answer = streamed(chunks(words=["re", "", "ady"]))
    assert (answer.content, answer.finish_reason, answer.usage) == ("ready", "stop", usage())
    # The first chunk carries only the role: no content, no token.
    assert (answer.ttft, answer.duration) == (0.1, 1.5)


def test_stream_without_usage_and_with_null_fields():
    events = [{**chunk, "usage": None} for chunk in chunks()[:-1]]
    events[1]["choices"][0]["delta"].update(tool_calls=None, reasoning_content=None)
    assert streamed(events).usage == {}


def changed(index, **changes):
    events = chunks()
    events[index].update(changes)
    return events


@pytest.mark.parametrize(
    ("events", "done", "problem"),
    [
        ([], True, "no chunk came"),
        (chunks(), False, "ended without [DONE]"),
        (chunks(words=[]), True, "content is ''"),
        (chunks(words=[" "]), True, "content is ' '"),
        (chunks()[:-2], True, "finish_reason is None"),
        (changed(1, id=None), True, "chunk 2: id is None"),
        (changed(1, object="chat.completion"), True, "chunk 2: object is 'chat.completion'"),
        (changed(0, choices=None), True, "chunk 1: choices is no list"),
        (changed(0, choices=[{"index": 0}]), True, "chunk 1: delta is no object"),
        (changed(0, model=None), True, "chunk 1: model is None"),
        (["text"], True, "chunk 1: it is no JSON object"),
        (changed(-1, usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 3}), True, "1 + 1 is not 3"),
    ],
)
def test_stream_refuses(events, done, problem):
    with pytest.raises(Fault) as caught:
        streamed(events, done)
    assert caught.value.failure_class == "bad_response"
    assert problem in str(caught.value)


def test_stream_of_bad_chunks_names_the_first_few():
    with pytest.raises(Fault) as caught:
        streamed([{**chunk, "id": None} for chunk in chunks(words=["x"] * 50)])
    assert str(caught.value).count("id is None") == 3


@pytest.mark.parametrize(
    ("event", "failure_class"),
    [
        ({"error": {"message": "EngineCore encountered an issue.", "code": 500}}, "dead_engine"),
        ({"error": {"message": "EngineCore encountered an issue."}}, "dead_engine"),
        ({"object": "error", "message": "Engine loop is not running.", "code": 500}, "dead_engine"),
        ({"error": {"message": "max_tokens is too large", "code": 400}}, "bad_response"),
        (chunks(model="other")[0], "wrong_model"),
    ],
)
def test_stream_stops_at_an_error_event(event, failure_class):
    stream = _chat.Stream(MODEL)
    stream.event(json.dumps(chunks()[0]), 0.1)
    with pytest.raises(Fault) as caught:
        stream.event(json.dumps(event), 0.2)
    assert caught.value.failure_class == failure_class


def test_stream_that_a_policy_refuses():
    events = chunks(words=[])
    events[1]["choices"][0]["delta"]["refusal"] = "I can't"
    events[1]["choices"][0]["finish_reason"] = "content_filter"
    with pytest.raises(Fault, match=r"was refused \(I can't\)") as caught:
        streamed(events)
    assert caught.value.failure_class == "refused_by_policy"


def test_stream_of_something_that_is_not_json():
    with pytest.raises(Fault, match="wanted JSON") as caught:
        _chat.Stream(MODEL).event("{half", 0.1)
    assert caught.value.failure_class == "bad_response"


@pytest.mark.parametrize("failure_class", sorted(CURES))
def test_every_failure_class_has_a_cure_in_one_sentence(failure_class):
    assert CURES[failure_class].endswith(".")


@pytest.mark.parametrize(
    ("text", "line"), [("a\n\tb ", "a b"), ("x\x1b[0m\x00y", "x [0m y"), ("x" * 300, "x" * 197 + "...")]
)
def test_shorten(text, line):
    assert shorten(text) == line
