# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in over HTTP: asked by OpenAI's own client, and by this collection's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _probe
from ansible_collections.baremetal.nim.plugins.module_utils._service_probes import WITHOUT_CHAT
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE
from nim_lab import IMAGES, over_http  # Puts the stand-in on sys.path.
from nimlib import manifest
from nimlib.api import NimMiddleware
from nimlib.reference import Model
from nimlib.reference_server import Server
from nimlib.settings import Settings

assert IMAGES.exists()
MODEL = "meta/llama-3.1-8b-instruct"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
        },
    },
}


@pytest.fixture(params=["classic", "llm"])
def url(request, weights: Path, env, monkeypatch) -> Iterator[str]:
    """A running stand-in of each generation."""
    monkeypatch.setenv("NIM_LAB_FLAVOUR", request.param)
    monkeypatch.setenv("NIM_MODEL_PROFILE", "vllm-bf16-tp1-pp1")
    model = Model(weights / manifest.MODEL / manifest.VERSIONS["reference"].format("bf16"))
    app = NimMiddleware(Server(model, Settings.read(), [MODEL], 8192, rate=400))
    with over_http(app) as address:
        yield address


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def user(text):
    return [{"role": "user", "content": text}]


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def test_completion(client):
    done = client.chat.completions.create(model=MODEL, messages=user("Hello"), max_tokens=32, temperature=0, n=2)
    assert len(done.choices) == 2
    assert done.choices[0].message.content and done.choices[0].finish_reason in ("stop", "length")
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_stream(client):
    plain = client.chat.completions.create(model=MODEL, messages=user("Hello"), max_tokens=32, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=user("Hello"), max_tokens=32, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage


@pytest.mark.parametrize(
    ("choice", "finish"),
    [
        ("auto", "tool_calls"),
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "get_weather"}}, "stop"),
    ],
)
def test_tool_call(client, choice, finish):
    ask = {"model": MODEL, "messages": user("What is the weather in Oslo, in fahrenheit?"), "temperature": 0}
    done = client.chat.completions.create(**ask, tools=[WEATHER], tool_choice=choice)
    (call,) = done.choices[0].message.tool_calls
    assert (call.function.name, done.choices[0].finish_reason) == ("get_weather", finish)
    assert json.loads(call.function.arguments) == {"city": "Oslo", "unit": "fahrenheit"}
    arguments, names = "", []
    for chunk in client.chat.completions.create(**ask, tools=[WEATHER], tool_choice=choice, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            arguments += part.function.arguments or ""
            names += [part.function.name] if part.function.name else []
    assert (json.loads(arguments), names) == ({"city": "Oslo", "unit": "fahrenheit"}, ["get_weather"])


def test_tools_that_a_question_does_not_call_for(client):
    done = client.chat.completions.create(model=MODEL, messages=user("Hello"), tools=[WEATHER], temperature=0)
    assert done.choices[0].message.content and not done.choices[0].message.tool_calls


def test_tool_that_is_not_offered(client):
    choice = {"type": "function", "function": {"name": "fly"}}
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)):
        client.chat.completions.create(model=MODEL, messages=user("Hello"), tools=[WEATHER], tool_choice=choice)


def test_json_schema(client):
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "year": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    done = client.chat.completions.create(model=MODEL, messages=user("Games of Oslo in 1952"), response_format=form)
    assert json.loads(done.choices[0].message.content) == {"city": "Oslo", "year": 1952}


def test_logprobs(client):
    done = client.chat.completions.create(model=MODEL, messages=user("Hello"), logprobs=True, top_logprobs=2)
    entries = done.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == done.choices[0].message.content
    assert len(entries) == done.usage.completion_tokens
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)


def test_errors(client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no/such-model", messages=user("Hello"))
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)):
        client.chat.completions.create(model=MODEL, messages=[])


def test_every_probe_of_this_collection(url):
    other = {*WITHOUT_CHAT, "vision", "wrong_key"}
    probes = [name for name in _probe.ARGUMENT_SPEC["probes"]["choices"] if name not in other]
    defaults = {name: spec.get("default") for name, spec in _probe.ARGUMENT_SPEC.items()}
    options = {
        **defaults,
        "url": url,
        "probes": probes,
        "tool_choice": "auto",
        "min_tokens_per_second": 20,
        "max_ttft": 5,
    }
    assert _probe.option_problems(options) == []
    result = _probe.verify(options, lambda _argv: (1, "", ""), "here")
    assert not result.get("failed"), result["msg"]
    checks = {check["probe"]: check["detail"] for check in result["checks"]}
    assert set(checks) == set(probes)
    assert checks["client_abort"].startswith("freed within")
    assert checks["tool_call"] == "called with {'city': 'Paris', 'unit': 'celsius'}"
    assert 100 < result["tokens_per_second"] < 450
