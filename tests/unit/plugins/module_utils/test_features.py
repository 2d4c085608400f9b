# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _features
from ansible_collections.baremetal.nim.plugins.module_utils._chat import Answer
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault

ARGUMENTS = {"city": "Paris", "unit": "celsius"}
CITY = {"city": "Paris", "continent": "Europe", "capital": True}


def called(**changes):
    function = {"name": "get_weather", "arguments": json.dumps(ARGUMENTS), **changes.pop("function", {})}
    call = {"id": "call-1", "type": "function", "function": function, **changes}
    return Answer("", "tool_calls", message={"role": "assistant", "content": None, "tool_calls": [call]})


@pytest.mark.parametrize(("choice", "sent"), [("auto", "auto"), ("required", "required")])
def test_tool_choice(choice, sent):
    assert _features.tool_call_request(choice)["tool_choice"] == sent


def test_tool_choice_named_is_the_tool_itself():
    request = _features.tool_call_request("named")
    named = {"type": "function", "function": {"name": request["tools"][0]["function"]["name"]}}
    assert request["tool_choice"] == named


def test_check_tool_call():
    assert _features.check_tool_call(called()) == ARGUMENTS


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("It is sunny.", "stop"), "called no tool"),
        (Answer("", "stop", message={"tool_calls": []}), "called no tool"),
        (Answer("", "stop", message={"tool_calls": [{"function": "get_weather"}]}), "called no tool"),
        (called(type=None), "type is None, not 'function'"),
        (called(id=""), "id is '', not a text"),
        (called(function={"name": "get_time"}), "name is 'get_time'"),
        (called(function={"arguments": ARGUMENTS}), "is no JSON"),
        (called(function={"arguments": "{"}), "arguments: '{' is no JSON"),
        (called(function={"arguments": "[]"}), "is no object"),
        (called(function={"arguments": '{"city": "Paris"}'}), "unit is missing"),
        (called(function={"arguments": '{"city": "Rome", "unit": "celsius"}'}), "city is 'Rome', not one of Paris"),
        (called(function={"arguments": '{"city": "Paris", "unit": "celsius", "day": 1}'}), "day is not in the schema"),
    ],
)
def test_check_tool_call_refuses(answer, words):
    with pytest.raises(Fault) as caught:
        _features.check_tool_call(answer)
    assert caught.value.failure_class == "bad_response"
    assert words in str(caught.value)


def test_check_json_schema():
    assert _features.check_json_schema(Answer(json.dumps(CITY), "stop")) == CITY


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Paris is the capital.", "is no JSON"),
        ("```json\n{}\n```", "is no JSON"),
        ("{}", "city is missing; continent is missing; capital is missing"),
        (json.dumps({**CITY, "capital": "yes"}), "capital is 'yes', not a boolean"),
        (json.dumps({**CITY, "continent": "Atlantis"}), "continent is 'Atlantis', not one of"),
        (json.dumps({**CITY, "mayor": "x"}), "mayor is not in the schema"),
    ],
)
def test_check_json_schema_refuses(content, words):
    with pytest.raises(Fault) as caught:
        _features.check_json_schema(Answer(content, "stop"))
    assert caught.value.failure_class == "bad_response"
    assert words in str(caught.value)


def told(*entries, tokens=None):
    usage = {"completion_tokens": len(entries) if tokens is None else tokens}
    return Answer("ready", "stop", usage, logprobs={"content": list(entries)})


def token(value=-0.5, **changes):
    return {"token": "re", "logprob": value, "top_logprobs": [{"token": "re", "logprob": value}], **changes}


@pytest.mark.parametrize(
    "answer", [told(token(), token(0.0)), told(token(), tokens=2), told(token(-0, top_logprobs=[]))]
)
def test_check_logprobs(answer):
    assert _features.check_logprobs(answer) == len(answer.logprobs["content"])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("ready", "stop"), "told nothing of its tokens"),
        (told(), "told nothing of its tokens"),
        (told(token(0.5)), "token 1: logprob is 0.5, not a number up to 0"),
        (told(token(None)), "logprob is None"),
        (told(token(True)), "logprob is True"),
        (told(token(float("-inf"))), "logprob is -inf"),
        (told({"logprob": -1}), "not an object with a token"),
        (told("re"), "not an object with a token"),
        (told(token(top_logprobs=None)), "top_logprobs is None, not a list"),
        (told(token(top_logprobs=[token()] * 4)), "not a list of 2"),
        (told(token(top_logprobs=[{"token": "x", "logprob": 1}])), "top_logprobs: logprob is 1"),
        (told(token(), tokens=9), "1 tokens are told of, usage counts 9"),
    ],
)
def test_check_logprobs_refuses(answer, words):
    with pytest.raises(Fault) as caught:
        _features.check_logprobs(answer)
    assert caught.value.failure_class == "bad_response"
    assert words in str(caught.value)
