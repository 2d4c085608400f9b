# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference engine and the endpoints around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nim_lab import Answer, ask
from nimlib import faults, manifest
from nimlib.api import NimMiddleware
from nimlib.reference import Model
from nimlib.reference_server import Server
from nimlib.settings import Settings

POEM = "请用中文写一个关于日本樱花的五行短诗。"
MODEL = "meta/llama-3.1-8b-instruct"
Chat = Callable[..., Answer]


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    """The loaded weights."""
    return Model(weights / manifest.MODEL / manifest.VERSIONS["reference"].format("bf16"))


@pytest.fixture
def app(model: Model, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], NimMiddleware]:
    """Makes the application of a generation."""

    def make(flavour: str) -> NimMiddleware:
        monkeypatch.setenv("NIM_LAB_FLAVOUR", flavour)
        monkeypatch.setenv("NIM_MODEL_PROFILE", "vllm-bf16-tp1-pp1")
        return NimMiddleware(Server(model, Settings.read(), [MODEL], 8192, rate=1e6))

    return make


@pytest.fixture
def chat(app: Callable[[str], NimMiddleware]) -> Chat:
    """Asks the chat endpoint of the second generation."""
    instance = app("llm")

    def send(content: str = "Hello", **extra: Any) -> Answer:
        payload = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, **extra}
        return ask(instance, "/v1/chat/completions", payload)

    return send


def text(answer: Answer) -> str:
    """The text of an answer."""
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["message"]["content"]


def test_writes_five_lines_of_chinese(chat: Chat) -> None:
    lines = text(chat(POEM)).splitlines()
    assert len(lines) == 5
    assert all(re.fullmatch(r"[一-鿿，。]{6,20}", line) for line in lines)
    assert any(word in "".join(lines) for word in ("樱", "花"))


def test_the_prompt_decides(chat: Chat) -> None:
    assert text(chat(POEM)) == text(chat(POEM))
    assert text(chat(POEM)) != text(chat(POEM + "谢谢。"))


def test_the_seed_decides(chat: Chat) -> None:
    poems = [text(chat(POEM, temperature=1, seed=seed)) for seed in (1, 1, 2)]
    assert poems[0] == poems[1] != poems[2]


def test_without_a_seed_answers_differ(chat: Chat) -> None:
    assert len({text(chat(POEM, temperature=1)) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("question", "han"), [("什么是缓存？", True), ("Explain caching.", False), ("Write a poem", False)]
)
def test_answers_in_the_language_of_the_question(chat: Chat, question: str, han: bool) -> None:
    assert bool(re.search("[一-鿿]", text(chat(question)))) is han


@pytest.mark.parametrize("question", [POEM, "Hello", "Explain the cache, please: 1 + 1 = 2?\n\tÄ 🌸"])
def test_tokens_are_the_text(model: Model, question: str) -> None:
    assert "".join(model.tokenize(question)) == question


def test_usage_adds_up(chat: Chat, model: Model) -> None:
    answer = chat(POEM)
    usage = answer.json["usage"]
    assert usage["completion_tokens"] == len(model.tokenize(text(answer)))
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert answer.json["choices"][0]["finish_reason"] == "stop"


def test_stops_at_max_tokens(chat: Chat) -> None:
    answer = chat(POEM, max_tokens=7)
    assert answer.json["usage"]["completion_tokens"] == 7
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert text(chat(POEM)).startswith(text(answer))


def test_goes_on_when_told_to(chat: Chat) -> None:
    answer = chat("Hello", max_tokens=300, ignore_eos=True)
    assert answer.json["usage"]["completion_tokens"] == 300
    assert answer.json["choices"][0]["finish_reason"] == "length"


def test_stops_at_a_word(chat: Chat) -> None:
    first = text(chat(POEM)).splitlines()[0]
    answer = chat(POEM, stop=["\n"])
    assert (text(answer), answer.json["choices"][0]["finish_reason"]) == (first, "stop")


def test_streams_token_by_token(chat: Chat) -> None:
    events = chat(POEM, stream=True, stream_options={"include_usage": True}).events
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    parts = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(parts) == text(chat(POEM))
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == len([part for part in parts if part])
    assert all(event["object"] == "chat.completion.chunk" for event in events)


def test_streams_without_usage(chat: Chat) -> None:
    events = chat(stream=True).events
    assert all("usage" not in event for event in events)


def test_completes_text(app: Callable[[str], NimMiddleware]) -> None:
    answer = ask(app("classic"), "/v1/completions", {"model": MODEL, "prompt": "Explain rain"})
    assert answer.json["object"] == "text_completion"
    assert answer.json["usage"]["completion_tokens"] == 16
    stream = ask(
        app("classic"), "/v1/completions", {"model": MODEL, "prompt": "Explain rain", "stream": True, "seed": 3}
    )
    assert "".join(event["choices"][0]["text"] for event in stream.events)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "other"}, 404, "The model `other` does not exist."),
        ({"max_tokens": 9000}, 400, "maximum context length is 8192 tokens"),
        ({"max_tokens": 0}, 400, "max_tokens must be at least 1"),
        ({"temperature": -1}, 400, "temperature must be between 0 and 2"),
        ({"temperature": 3}, 400, "temperature must be between 0 and 2"),
        ({"temperature": "warm"}, 422, "valid number"),
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "king", "content": ""}]}, 422, "role"),
    ],
)
def test_refuses_bad_requests(
    app: Callable[[str], NimMiddleware], change: dict[str, Any], status: int, words: str
) -> None:
    payload = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **change}
    classic = ask(app("classic"), "/v1/chat/completions", payload)
    llm = ask(app("llm"), "/v1/chat/completions", payload)
    assert (classic.status, llm.status) == (status, 400 if status == 422 else status)
    assert classic.json["object"] == "error"
    assert words in classic.json["message"]
    assert classic.json["message"] == llm.json["error"]["message"]


def test_refuses_what_is_no_json(app: Callable[[str], NimMiddleware]) -> None:
    assert ask(app("llm"), "/v1/chat/completions", b"{not json").status == 400
    assert ask(app("classic"), "/v1/chat/completions", b"{not json").status == 422


def test_tells_about_itself(app: Callable[[str], NimMiddleware]) -> None:
    classic, llm = app("classic"), app("llm")
    assert ask(classic, "/v1/health/ready").json == {"object": "health.response", "message": "Service is ready."}
    assert ask(llm, "/v1/health/ready").json == {"object": "health.response", "message": "ready", "status": "ready"}
    metadata = ask(llm, "/v1/metadata").json
    assert metadata["modelInfo"][0]["modelUrl"] == f"ngc://nim/{MODEL}:1.0.0-reference-bf16"
    assert len(metadata["selectedModelProfileId"]) == 64
    assert ask(llm, "/v1/version").json["release"] == "1.8.6"
    assert ask(llm, "/v1/models").json["data"][0]["id"] == MODEL
    assert ask(llm, "/v1/manifest").json["manifest"]["schema_version"] == "2.0.0"
    assert "name" in ask(llm, "/v1/license").json
    assert ask(llm, "/v1/nothing").status == 404


@pytest.mark.parametrize(("flavour", "prefix"), [("classic", ""), ("llm", "vllm:")])
def test_counts(app: Callable[[str], NimMiddleware], flavour: str, prefix: str) -> None:
    instance = app(flavour)
    payload = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    used = ask(instance, "/v1/chat/completions", payload).json["usage"]
    metrics = ask(instance, "/v1/metrics").body
    label = f'{{model_name="{MODEL}"}}'
    assert f"{prefix}generation_tokens_total{label} 4\n" in metrics
    assert f"{prefix}prompt_tokens_total{label} {used['prompt_tokens']}\n" in metrics
    assert f"{prefix}time_to_first_token_seconds_count{label} 1\n" in metrics


def test_a_dead_engine_looks_ready(app: Callable[[str], NimMiddleware], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_LAB_FAULT", "dead_engine")
    payload = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    for flavour, words in (("classic", "Engine loop is not running."), ("llm", "EngineCore encountered an issue.")):
        instance = app(flavour)
        assert ask(instance, "/v1/health/ready").status == 200
        answer = ask(instance, "/v1/chat/completions", payload)
        assert answer.status == 500
        assert words in answer.body


def test_the_engine_can_be_killed(chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faults, "KILL_FILE", tmp_path / "kill")
    assert chat().status == 200
    faults.KILL_FILE.touch()
    assert chat().status == 500


def test_a_wrong_model_shows_in_metadata_only(
    app: Callable[[str], NimMiddleware], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_LAB_FAULT", "wrong_model")
    instance = app("llm")
    assert faults.WRONG_MODEL in ask(instance, "/v1/metadata").json["modelInfo"][0]["modelUrl"]
    assert ask(instance, "/v1/models").json["data"][0]["id"] == MODEL
    payload = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    assert ask(instance, "/v1/chat/completions", payload).json["model"] == faults.WRONG_MODEL


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda data: b""])
def test_needs_its_weights(weights: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    source = weights / manifest.MODEL / manifest.VERSIONS["reference"].format("bf16")
    for file in source.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(damage(data) if file.suffix == ".safetensors" else data)
    with pytest.raises(Exception):  # noqa: B017, PT011
        Model(tmp_path)
