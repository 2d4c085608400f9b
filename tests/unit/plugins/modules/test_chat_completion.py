# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module run for real against a real HTTP server; systemctl and journalctl are small scripts."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import os
import re
import shlex
import socket
import ssl
import threading
import time

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.doc_fragments import _endpoint
from ansible_collections.baremetal.nim.plugins.module_utils import _checks, _expect, _media, _probe, _unit, _verify
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES
from ansible_collections.baremetal.nim.plugins.modules import chat_completion
from ansible_collections.baremetal.nim.tests.unit.nim_server import (
    MODEL,
    NimServer,
    chunks,
    completion,
    hang,
    reset_first,
    send,
    send_stream,
    sse,
    usage,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

UNIT = "nim-llama.service"
CHAT = ("POST", "/v1/chat/completions")
READY = ("GET", "/v1/health/ready")
MODELS = ("GET", "/v1/models")
# Seconds that a wait may take which nothing ends early, and that one takes which something does, on a busy machine.
LONG, SOON = 600.0, 300.0


@pytest.fixture
def call(capsys):
    """Run the module; return its result."""

    def run(url, **args):
        args = {"url": url, "timeout": LONG, "request_timeout": 60, "poll_interval": 0.05, **args}
        with patch_module_args(args), pytest.raises(SystemExit) as caught:
            chat_completion.main()
        text = capsys.readouterr().out
        result = json.loads(text)
        assert caught.value.code == (1 if result.get("failed") else 0)
        # A secret is nowhere in what the controller gets.
        assert not args.get("api_key") or args["api_key"] not in text
        return result

    return run


@pytest.fixture
def fail(call):
    """Run the module, which must fail early; return its result."""

    def run(url, **args):
        start = time.monotonic()
        result = call(url, **args)
        assert time.monotonic() - start < SOON
        assert result.get("failed"), result
        assert result["changed"] is False
        assert result["failure_class"] in CURES
        assert result["msg"].startswith(f"{socket.gethostname()}: {url}: ")
        assert result["msg"].endswith(f" Next: {result['next_command']}")
        assert result["waiting"] is False
        return result

    return run


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Put systemctl and journalctl on the PATH: each call of systemctl tells the next of the given states."""

    def prepare(*shows, journal=()):
        folder = tmp_path / "bin"
        folder.mkdir()
        for number, show in enumerate(shows, 1):
            (folder / f"show.{number}").write_text("".join(f"{key}={value}\n" for key, value in show.items()))
        (folder / "journal").write_text("".join(line + "\n" for line in journal))
        scripts = {
            "systemctl": (
                f'echo "$LC_ALL $*" >> calls; n=$(wc -l < calls); [ -f show.$n ] || n={len(shows)}; cat show.$n'
            ),
            "journalctl": 'echo "$*" >> journal.calls; cat journal',
        }
        for name, script in scripts.items():
            path = folder / name
            path.write_text(f"#!/bin/sh\ncd {shlex.quote(str(folder))}\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder

    return prepare


def unit(**changes):
    return {
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "NRestarts": 0,
        "ExecMainCode": 0,
        "ExecMainStatus": 0,
        "InvocationID": "5ae2f1a4b0a64f7e9d3a4fd0a5a6f0b1",
        **changes,
    }


RUNNING = unit()
AUTO_RESTART = unit(
    ActiveState="activating", SubState="auto-restart", Result="exit-code", ExecMainCode=1, ExecMainStatus=1
)


def phases(result):
    return [entry["phase"] for entry in result["history"]]


def test_ready_endpoint(call):
    with NimServer() as nim:
        result = call(nim.url)
        bodies = nim.asked("/v1/chat/completions")
    assert "failed" not in result
    assert result["changed"] is False
    assert (result["content"], result["finish_reason"], result["usage"]) == ("ready", "stop", usage())
    assert (result["model"], result["models"], result["status"]) == (MODEL, [MODEL], 200)
    assert 0 <= result["ready_after"] <= result["elapsed"] < SOON
    assert 0 < result["ttft"] <= result["stream_duration"]
    assert result["duration"] > 0
    assert phases(result) == ["ready", "verified"]
    assert (result["failure_class"], result["next_command"], result["evidence"]) == (None, None, [])
    assert (result["waiting"], result["unit"]) == (False, {})
    assert [body.get("stream") for body in bodies] == [None, True]
    assert bodies[0] == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Reply with the single word: ready"}],
        "max_tokens": 64,
        "temperature": 0.0,
    }


def test_what_answers_before_the_unit_has_started_is_left_over(call, host):
    """A supervisor that was killed leaves its container behind, which answers until the next start replaces it."""
    waits = unit(ActiveState="activating", SubState="start-pre")
    host(waits, waits, RUNNING)
    with NimServer() as nim:
        result = call(nim.url, unit=UNIT)
        asked = nim.asked("/v1/chat/completions")
    assert "failed" not in result and phases(result) == ["starting", "ready", "verified"]
    assert result["history"][0]["detail"] == f"unit {UNIT} is activating (start-pre)"
    assert len(asked) == 2


def test_a_unit_that_never_starts_is_told(call, host):
    host(unit(ActiveState="activating", SubState="start-pre"))
    with NimServer() as nim:
        result = call(nim.url, unit=UNIT, timeout=1)
    assert result["failed"] and result["failure_class"] == "starting"
    assert "is activating (start-pre)" in result["msg"]


def test_result_is_what_the_documentation_says(call):
    documented = yaml.safe_load(chat_completion.RETURN)
    always = {key for key, value in documented.items() if value["returned"] == "always"}
    with NimServer() as nim:
        result = call(nim.url)
    assert set(result) - {"changed", "invocation"} == always
    text = " ".join(documented["failure_class"]["description"])
    # The others are of staging and of benchmarks alone.
    others = ["cache_missing", "client_limit", "not_comparable", "wrong_contract"]
    assert [name for name in CURES if f"V({name})" not in text] == others


def test_options_are_what_the_documentation_says():
    texts = (_endpoint.ModuleDocFragment.DOCUMENTATION, chat_completion.DOCUMENTATION)
    documented = {name: option for text in texts for name, option in yaml.safe_load(text)["options"].items()}
    spec = _probe.ARGUMENT_SPEC
    assert set(documented) == set(spec)
    for name, option in documented.items():
        for key in ("type", "default", "choices", "elements", "required"):
            assert option.get(key) == spec[name].get(key), (name, key)
    assert set(documented["resume"]["suboptions"]) == set(spec["resume"]["options"])
    prompt = documented["prompts"]["suboptions"]
    assert set(prompt) == set(spec["prompts"]["options"])
    for name, option in prompt.items():
        for key in ("type", "choices", "elements"):
            assert option.get(key) == spec["prompts"]["options"][name].get(key), (name, key)


def test_options_reach_the_endpoint(call):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    with NimServer(models=["base", "adapter"]) as nim:
        result = call(
            f"{nim.url}/v1/", model="adapter", messages=messages, max_tokens=7, temperature=0.5, probes=["completion"]
        )
        bodies = nim.asked("/v1/chat/completions")
    assert (result["model"], result["models"], result["ttft"]) == ("adapter", ["base", "adapter"], None)
    assert bodies == [{"model": "adapter", "messages": messages, "max_tokens": 7, "temperature": 0.5}]


def test_the_content_is_that_of_the_plain_completion(call):
    with NimServer(replies={CHAT: send_stream(sse(chunks(words=["streamed"])))}) as nim:
        assert call(nim.url)["content"] == "ready"
        assert call(nim.url, probes=["stream"])["content"] == "streamed"


def test_stream_alone(call):
    with NimServer() as nim:
        result = call(nim.url, probes=["stream"], prompt="Hi")
        bodies = nim.asked("/v1/chat/completions")
    assert (result["content"], result["usage"], result["duration"]) == ("ready", usage(), None)
    assert [(body["stream"], body["messages"][0]["content"]) for body in bodies] == [(True, "Hi")]


def test_no_probe_only_waits_and_checks_the_model(call):
    with NimServer() as nim:
        result = call(nim.url, probes=[], model=MODEL)
        assert nim.asked("/v1/chat/completions") == []
    assert (result["phase"], result["content"]) == ("verified", None)


def test_health_alone_asks_for_nothing_else(call):
    with NimServer() as nim:
        result = call(nim.url, probes=["health"])
        assert (nim.asked("/v1/chat/completions"), nim.asked("/v1/models")) == ([], [])
    assert (result["phase"], result["model"], result["ttft"]) == ("verified", None, None)


def test_limits_meant_for_others_do_not_harm_an_endpoint_without_chat(call):
    with NimServer() as nim:
        assert call(nim.url, probes=["health"], max_ttft=1, min_tokens_per_second=10)["phase"] == "verified"


def test_waits_through_503(call):
    def sixth_time(nim, handler, _body):
        asked = len(nim.asked("/v1/health/ready"))
        handler.send_json(200 if asked > 5 else 503, {"message": "ready" if asked > 5 else "starting"})

    with NimServer(replies={READY: sixth_time}) as nim:
        result = call(nim.url)
    assert phases(result) == ["starting", "ready", "verified"]
    assert result["history"][0]["detail"] == "HTTP 503"
    # Five pauses between six looks.
    assert result["ready_after"] >= 5 * 0.05


def test_waits_through_a_refused_connection(call, port):
    servers = []
    timer = threading.Timer(0.5, lambda: servers.append(NimServer(port=port)))
    timer.start()
    try:
        result = call(f"http://127.0.0.1:{port}")
    finally:
        timer.join()
        servers[0].close()
    assert phases(result) == ["unreachable", "ready", "verified"]
    assert result["history"][0]["detail"] == "Connection refused"
    assert result["ready_after"] > 0


@pytest.mark.parametrize("body", ["true", {"status": "loading"}, {"message": "Service is not ready."}])
def test_only_the_status_of_the_health_counts(call, body):
    with NimServer(replies={READY: send(200, body)}) as nim:
        assert call(nim.url)["phase"] == "verified"


def test_a_wait_without_an_answer(fail, port):
    url = f"http://127.0.0.1:{port}"
    result = fail(url, timeout=0.4)
    assert (result["failure_class"], result["phase"], result["status"]) == ("unreachable", "unreachable", None)
    assert (
        "GET /v1/health/ready was not ready within 0.4 s (last: Connection refused), wanted HTTP 200" in result["msg"]
    )
    assert result["next_command"] == f"curl -sSi {url}/v1/health/ready"


def test_a_wait_that_never_gets_ready(fail):
    with NimServer(starting_for=LONG) as nim:
        result = fail(nim.url, timeout=0.4)
    assert (result["failure_class"], result["status"], result["ready_after"]) == ("starting", 503, None)
    assert "last: HTTP 503" in result["msg"]


def test_a_health_check_that_hangs_counts_as_not_ready(fail):
    with NimServer(replies={READY: hang}) as nim:
        result = fail(nim.url, timeout=0.4, request_timeout=0.3)
    assert "last: no answer within 0.3 s" in result["msg"]


def test_slices_add_up_to_one_wait(call, fail):
    with NimServer(starting_for=LONG) as nim:
        first = call(nim.url, max_wait=0.3)
        assert (first["waiting"], first["phase"], first["failure_class"]) == (True, "starting", None)
        assert first["resume"]["elapsed"] >= 0.3
        second = call(nim.url, max_wait=0.3, resume={**first["resume"], "elapsed": 30.0})
        assert second["resume"]["elapsed"] >= 30.3
        last = fail(nim.url, max_wait=0.3, resume={**second["resume"], "elapsed": LONG + 1})
        assert last["failure_class"] == "starting"
        nim.ready_at = 0
        done = call(nim.url, max_wait=0.3, resume={**second["resume"], "elapsed": 45.0})
    assert done["waiting"] is False
    assert done["ready_after"] >= 45.0


KEY = "nvapi-secret-0123456789"


def test_api_key(call):
    with NimServer(api_key=KEY) as nim:
        assert call(nim.url, api_key=KEY)["phase"] == "verified"


def test_a_key_the_server_tells_back_is_masked(fail):
    echo = send(500, {"error": {"message": f"bad things happened to {KEY}"}})
    with NimServer(api_key=KEY, replies={CHAT: echo}) as nim:
        result = fail(nim.url, api_key=KEY)
    assert "bad things happened to ****" in result["msg"]
    assert '-H "Authorization: Bearer $API_KEY"' in result["next_command"]


@pytest.mark.parametrize("key", [None, "nvapi-wrong-key"])
def test_wrong_key(fail, key):
    with NimServer(api_key=KEY) as nim:
        result = fail(nim.url, api_key=key)
    assert result["failure_class"] == "auth"
    assert "HTTP 401 from GET /v1/health/ready (Unauthorized), wanted HTTP 200" in result["msg"]


@pytest.mark.parametrize(
    ("behaviour", "args", "words"),
    [
        ({}, {"model": "meta/other"}, f"GET /v1/models lists {MODEL}, wanted model meta/other"),
        ({"answers_as": "meta/other"}, {}, f"model meta/other answered, wanted model {MODEL}"),
        (
            {"replies": {CHAT: send(404, {"error": {"message": "The model `x` does not exist.", "code": 404}})}},
            {},
            "HTTP 404 from POST /v1/chat/completions (The model `x` does not exist.)",
        ),
        (
            {"metadata": {"modelInfo": [{"modelUrl": "ngc://nim/meta/llama-3.1-70b-instruct:hf"}]}},
            {},
            f"GET /v1/metadata names ngc://nim/meta/llama-3.1-70b-instruct:hf, wanted model {MODEL}",
        ),
    ],
)
def test_wrong_model(fail, behaviour, args, words):
    with NimServer(**behaviour) as nim:
        result = fail(nim.url, **args)
    assert result["failure_class"] == "wrong_model"
    assert words in result["msg"]


def test_metadata_that_agrees_or_is_not_asked(call):
    other = {"modelInfo": [{"shortName": "llama-3.1-70b-instruct"}]}
    with NimServer(metadata={"modelInfo": [{"shortName": "llama-3.1-8b-instruct:hf"}]}) as nim:
        assert call(nim.url)["phase"] == "verified"
        nim.metadata = other
        assert call(nim.url, check_metadata=False)["phase"] == "verified"


@pytest.mark.parametrize(
    "reply",
    [
        send(500, {"error": {"message": "Engine loop is not running.", "type": "InternalServerError", "code": 500}}),
        send(502, "<html><h1>502 Bad Gateway</h1></html>"),
        reset_first(99),
        send_stream(sse(chunks())[:2], end=False),
        send_stream([b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n']),
    ],
    ids=["500", "502", "reset", "cut stream", "error in the stream"],
)
def test_dead_engine_behind_green_health(fail, reply):
    with NimServer(replies={CHAT: reply}) as nim:
        result = fail(nim.url)
    assert (result["failure_class"], result["status"]) == ("dead_engine", 200)
    assert re.match("curl -sSi(N --compressed)? -H 'Content-Type: application/json' -d ", result["next_command"])


def test_an_engine_that_does_not_answer_in_time_is_dead(fail):
    with NimServer(replies={CHAT: hang}) as nim:
        result = fail(nim.url, request_timeout=2)
    assert result["failure_class"] == "dead_engine"
    assert "no answer to POST /v1/chat/completions within 2 s, wanted a completion" in result["msg"]


def test_a_stream_that_stalls_is_dead(fail):
    with NimServer(replies={CHAT: send_stream(sse(chunks())[:1], end=False, stalls=True)}) as nim:
        result = fail(nim.url, probes=["stream"], request_timeout=2)
    assert result["failure_class"] == "dead_engine"
    assert "no answer to POST /v1/chat/completions within 2 s" in result["msg"]


def test_keep_alive_comments_do_not_stretch_a_stream(fail):
    def drip(_nim, handler, _body):
        def parts():
            while not nim.over.wait(0.05):
                yield b": keep-alive\n\n"

        handler.send_stream(parts())

    with NimServer(replies={CHAT: drip}) as nim:
        result = fail(nim.url, probes=["stream"], request_timeout=2)
    assert result["failure_class"] == "dead_engine"


def test_one_connection_broken_right_after_ready_is_forgiven(call):
    with NimServer(replies={CHAT: reset_first(1)}) as nim:
        result = call(nim.url)
    assert phases(result) == ["ready", "starting", "ready", "verified"]
    assert "POST /v1/chat/completions broke off" in result["history"][1]["detail"]


def test_a_connection_broken_in_an_earlier_slice_is_remembered(call, fail):
    with NimServer(replies={CHAT: reset_first(2)}) as nim:
        first = call(nim.url, max_wait=0.001, poll_interval=10)
        assert (first["waiting"], first["phase"], first["ready_after"]) == (True, "starting", None)
        assert fail(nim.url, resume=first["resume"])["failure_class"] == "dead_engine"


@pytest.mark.parametrize(
    ("path", "reply", "words"),
    [
        (CHAT, send(200, "<html>It works!</html>"), "answered '<html>It works!</html>', wanted JSON"),
        (CHAT, send(200, completion(content="  ")), "content is '  '"),
        (CHAT, send(200, completion(usage=usage() | {"total_tokens": 1})), "usage does not add up"),
        (CHAT, send(400, {"error": {"message": "max_tokens is too large"}}), "HTTP 400"),
        (CHAT, send(404, {"detail": "Not Found"}), "HTTP 404 from POST /v1/chat/completions (Not Found)"),
        (CHAT, send_stream(sse(chunks())[:-1]), "ended without [DONE]"),
        (CHAT, send_stream(sse(chunks(words=[]))), "content is ''"),
        (MODELS, send(200, {"data": []}), "GET /v1/models lists no model"),
        (MODELS, send(301, ""), "HTTP 301 from GET /v1/models, wanted HTTP 200"),
    ],
)
def test_bad_response(fail, path, reply, words):
    with NimServer(replies={path: reply}) as nim:
        result = fail(nim.url)
    assert result["failure_class"] == "bad_response"
    assert words in result["msg"]


def test_a_redirect_is_not_followed(fail):
    def redirect(_nim, handler, _body):
        handler.send_response(302)
        handler.send_header("Location", "/v1/health/live")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with NimServer(replies={CHAT: redirect}) as nim:
        result = fail(nim.url)
        assert nim.asked("/v1/health/live") == []
    assert result["failure_class"] == "bad_response"
    assert "HTTP 302 from POST /v1/chat/completions" in result["msg"]


def test_an_answer_that_is_no_stream(fail):
    with NimServer(replies={CHAT: send(200, completion())}) as nim:
        result = fail(nim.url)
    assert result["failure_class"] == "bad_response"
    assert "the stream of POST /v1/chat/completions is application/json, wanted text/event-stream" in result["msg"]


def test_stream_cut_inside_characters_and_events(call):
    text = b"".join(sse(chunks(words=["Grüße ", "🚀"])))
    parts = [text[start : start + 5] for start in range(0, len(text), 5)]
    with NimServer(replies={CHAT: send_stream(parts)}) as nim:
        result = call(nim.url, probes=["stream"])
    assert result["content"] == "Grüße 🚀"


def test_stream_that_a_proxy_buffers(call):
    with NimServer(replies={CHAT: send_stream([b"".join(sse(chunks()))])}) as nim:
        result = call(nim.url, probes=["stream"])
    assert result["content"] == "ready"
    assert 0 < result["ttft"] <= result["stream_duration"]


def test_time_to_first_token_is_not_the_time_of_the_stream(call):
    def slow():
        events = sse(chunks(words=["a", "b"]))
        yield events[0]
        yield events[1]
        time.sleep(1.5)
        yield from events[2:]

    with NimServer(replies={CHAT: send_stream(slow())}) as nim:
        result = call(nim.url, probes=["stream"])
    # Less where a busy machine reads the first token late.
    assert result["stream_duration"] - result["ttft"] > 0.2


def test_expect_regex(call, fail):
    with NimServer() as nim:
        assert call(nim.url, expect_regex="^READY$|^ready$")["phase"] == "verified"
        result = fail(nim.url, expect_regex="(?i)paris")
    assert result["failure_class"] == "wrong_answer"
    assert "the answer is 'ready', wanted a match of '(?i)paris'" in result["msg"]
    assert result["evidence"] == ["ready"]


EMBEDDINGS = ("POST", "/v1/embeddings")
RANKING = ("POST", "/v1/ranking")
TRANSCRIPTIONS = ("POST", "/v1/audio/transcriptions")
SYNTHESIZE = ("POST", "/v1/audio/synthesize")
VOICES = ("GET", "/v1/audio/list_voices")


def embed(_nim, handler, body):
    """Vectors of the words that texts have, so that like texts lie near each other."""
    words = ["capital", "france", "city", "fuel", "yeast"]
    data = [
        {"object": "embedding", "index": index, "embedding": [float(word in text.lower()) for word in words] + [0.1]}
        for index, text in enumerate(body["input"])
    ]
    answer = {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    handler.send_json(200, answer)


def rank(_nim, handler, body):
    scores = [sum(word in passage["text"] for word in ("capital", "France")) for passage in body["passages"]]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])
    handler.send_json(200, {"rankings": [{"index": index, "logit": float(scores[index])} for index in best]})


def test_embedding_and_ranking(call, fail):
    with NimServer(replies={EMBEDDINGS: embed, RANKING: rank}) as nim:
        result = call(nim.url, probes=["embedding", "ranking"])
        asked, (ranked,) = nim.asked(EMBEDDINGS[1]), nim.asked(RANKING[1])
    assert result["phase"] == "verified" and result["model"] == MODEL
    details = {check["probe"]: check["detail"] for check in result["checks"]}
    assert details["embedding"].startswith("6 dimensions, cosines ") and details["ranking"] == "order 2, 0, 1"
    assert [one["input_type"] for one in asked] == ["query", "passage"]
    assert ranked["query"] == {"text": "Which city is the capital of France?"}
    same = [{"index": index, "embedding": [1.0, 2.0]} for index in range(3)]

    def meaningless(_nim, handler, body):
        handler.send_json(200, {"object": "list", "model": MODEL, "data": same[: len(body["input"])]})

    with NimServer(replies={EMBEDDINGS: meaningless}) as nim:
        result = fail(nim.url, probes=["embedding"])
        none = fail(nim.url, probes=["ranking"])
    assert result["failure_class"] == "wrong_answer" and '"input_type": "passage"' in result["next_command"]
    assert result["next_command"].endswith("/v1/embeddings")
    assert none["failure_class"] == "bad_response" and "HTTP 404 from POST /v1/ranking" in none["msg"]


def test_speech_is_made_and_heard_where_no_models_are_listed(call, fail, tmp_path):
    voices = {"en-US,de-DE": {"voices": ["Magpie.EN-US.Aria", "Magpie.DE-DE.Jonas"]}}

    def synthesize(_nim, handler, body):
        assert 'name="text"' in body and 'name="voice"\r\n\r\nMagpie.DE-DE.Jonas' in body
        handler.send_body(200, "audio/wav", _media.tone(2.0))

    def silent(_nim, handler, _body):
        handler.send_body(200, "audio/wav", _media.tone(2.0, pitch=0))

    path = tmp_path / "hello.wav"
    path.write_bytes(_media.tone())
    heard = send(200, {"text": "hello world"})
    replies = {MODELS: send(404, {}), VOICES: send(200, voices), SYNTHESIZE: synthesize, TRANSCRIPTIONS: heard}
    with NimServer(replies=replies) as nim:
        result = call(nim.url, probes=["speech", "transcription"], language="de-DE")
        (form,) = nim.asked(TRANSCRIPTIONS[1])
        file = {"probes": ["transcription"], "audio_file": str(path)}
        assert call(nim.url, expect_regex="hello", **file)["content"] == "hello world"
        wrong = fail(nim.url, expect_regex="goodbye", **file)
        nim.replies[SYNTHESIZE] = silent
        mute = fail(nim.url, probes=["speech"], voice="Magpie.EN-US.Aria")
        assert nim.asked(MODELS[1]) == []
    assert (result["phase"], result["model"]) == ("verified", None)
    assert [check["detail"] for check in result["checks"]] == [
        "heard 'hello world'",
        "2.0 s at 16000 Hz by Magpie.DE-DE.Jonas",
    ]
    assert 'name="language"\r\n\r\nde-DE' in form and 'filename="sound.wav"' in form
    assert wrong["failure_class"] == "wrong_answer" and "wanted a match of 'goodbye'" in wrong["msg"]
    assert mute["failure_class"] == "bad_response" and "2.00 s of silence" in mute["msg"]
    assert mute["next_command"].endswith("/v1/audio/list_voices")


def test_vision(call, fail, tmp_path):
    colours = {_media.square(): "Red.", _media.square((0, 0, 255)): "It is blue."}

    def look(_nim, handler, body):
        data = body["messages"][0]["content"][1]["image_url"]["url"].partition(",")[2]
        handler.send_json(200, completion(content=colours[base64.b64decode(data)]))

    path = tmp_path / "blue.png"
    path.write_bytes(_media.square((0, 0, 255)))
    with NimServer(replies={CHAT: look}) as nim:
        assert call(nim.url, probes=["vision"])["checks"][0]["detail"] == "answered 'Red.'"
        own = {"probes": ["vision"], "image_file": str(path), "prompt": "Which colour?"}
        assert call(nim.url, expect_regex="blue", **own)["content"] == "It is blue."
        wrong = fail(nim.url, expect_regex="green", **own)
    assert wrong["failure_class"] == "wrong_answer"


def test_several_prompts_with_expectations_of_their_own(call, fail):
    def echo(_nim, handler, body):
        text = {"Chinese?": "你好", "Sum?": "4"}[body["messages"][-1]["content"]]
        if body.get("stream"):
            handler.send_stream(sse(chunks(words=[text])))
        else:
            handler.send_json(200, completion(content=text))

    prompts = [
        {"prompt": "Chinese?", "expect_script": "Han"},
        {"messages": [{"role": "user", "content": "Sum?"}], "expect_regex": "^4$", "max_tokens": 5, "temperature": 0.5},
    ]
    with NimServer(replies={CHAT: echo}) as nim:
        result = call(nim.url, prompts=prompts, expect_finish_reason="stop")
        asked = nim.asked(CHAT[1])
        wrong = fail(
            nim.url, prompts=[*prompts, {"prompt": "Sum?", "expect_script": "Cyrillic", "expect_min_tokens": 3}]
        )
    assert [(one["probe"], one["content"]) for one in result["answers"]] == [
        ("completion", "你好"), ("completion", "4"), ("stream", "你好"), ("stream", "4"),
    ]  # fmt: skip
    assert [(one["max_tokens"], one["temperature"]) for one in asked] == [(64, 0.0), (5, 0.5)] * 2
    assert [(check["probe"], check["passed"], check["detail"]) for check in result["checks"]] == [
        ("completion", True, "2 answers"), ("stream", True, "2 streamed answers"),
    ]  # fmt: skip
    assert wrong["failure_class"] == "wrong_answer"
    seen = "the answer is '4' (letters of no script and 2 tokens), wanted letters of Cyrillic and at least 3 tokens"
    assert seen in wrong["msg"]
    assert [check["passed"] for check in wrong["checks"]] == [False]


def test_features(call):
    with NimServer() as nim:
        result = call(nim.url, probes=["tool_call", "json_schema", "logprobs"], tool_choice="auto")
        asked = nim.asked(CHAT[1])
    assert result["phase"] == "verified"
    assert {check["probe"]: check["detail"] for check in result["checks"]} == {
        "tool_call": "called with {'city': 'Paris', 'unit': 'celsius'}",
        "json_schema": "answered {'city': 'Paris', 'continent': 'Europe', 'capital': True}",
        "logprobs": "2 tokens",
    }
    assert asked[0]["tool_choice"] == "auto" and asked[0]["tools"][0]["function"]["name"] == "get_weather"
    assert asked[1]["response_format"]["json_schema"]["strict"] is True
    assert (asked[2]["logprobs"], asked[2]["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("tool_call", "called no tool, wanted a call of get_weather"),
        ("json_schema", "did not keep to the JSON schema: 'ready' is no JSON"),
        ("logprobs", "told nothing of its tokens (logprobs)"),
    ],
)
def test_features_that_are_ignored(fail, probe, words):
    with NimServer(replies={CHAT: send(200, completion())}) as nim:
        result = fail(nim.url, probes=[probe])
    assert result["failure_class"] == "bad_response"
    assert words in result["msg"]
    # The command repeats the request that failed.
    asked = {"tool_call": '"tool_choice"', "json_schema": '"response_format"', "logprobs": '"top_logprobs"'}
    assert asked[probe] in result["next_command"]


def test_what_must_be_refused_is(call):
    with NimServer(api_key="the-right-key", length=100) as nim:
        probes = ["overlong_input", "client_abort", "wrong_key", "unknown_model"]
        result = call(nim.url, probes=probes, api_key="the-right-key")
        asked = nim.asked(CHAT[1])
    checks = {check["probe"]: check["detail"] for check in result["checks"]}
    assert list(checks) == ["unknown_model", "wrong_key", "client_abort", "overlong_input"]
    assert checks["unknown_model"] == f"HTTP 404 (The model `{MODEL}-that-is-not-served` does not exist.)"
    assert checks["wrong_key"] == "HTTP 401 (Unauthorized)"
    assert checks["client_abort"].startswith("freed within ") and checks["client_abort"].endswith("answered")
    assert checks["overlong_input"] == "HTTP 400 (This model's maximum context length is 100 tokens.)"
    assert len(asked[-1]["messages"][0]["content"].split()) == 164


def test_a_model_of_unknown_length_gets_more_than_any_takes(call):
    card = {"id": MODEL, "object": "model"}
    with NimServer(replies={MODELS: send(200, {"object": "list", "data": [card]})}) as nim:
        call(nim.url, probes=["overlong_input"])
        asked = nim.asked(CHAT[1])
    assert len(asked[0]["messages"][0]["content"].split()) == 300_000


def answers_all(_nim, handler, body):
    handler.send_json(200, completion(body["model"]))


def breaks_on_too_long(nim, handler, body):
    nim.replies[READY] = send(503, "")
    handler.send_json(400, {"error": {"message": "too long"}})


@pytest.mark.parametrize(
    ("probe", "reply", "failure_class", "words"),
    [
        ("unknown_model", answers_all, "bad_response", "that-is-not-served got HTTP 200"),
        ("unknown_model", send(500, "Traceback"), "dead_engine", "wanted HTTP 404"),
        ("overlong_input", answers_all, "bad_response", "4160 words for 4096 tokens got HTTP 200"),
        (
            "overlong_input",
            breaks_on_too_long,
            "dead_engine",
            "HTTP 503 from GET /v1/health/ready after too long an input",
        ),
        ("wrong_key", answers_all, "bad_response", "a wrong key got HTTP 200"),
    ],
)
def test_what_is_not_refused(fail, probe, reply, failure_class, words):
    with NimServer(replies={CHAT: reply}) as nim:
        result = fail(nim.url, probes=[probe], api_key="the-right-key")
    assert result["failure_class"] == failure_class
    assert words in result["msg"]


def test_a_request_that_outlives_its_client_is_told(fail, monkeypatch):
    monkeypatch.setattr(_checks, "_FREED_WITHIN", 0.5)
    with NimServer(holds=True) as nim:
        result = fail(nim.url, probes=["client_abort"])
        nim.holds = False
    assert result["failure_class"] == "dead_engine"
    assert "1 requests run 0.5 s after a client left, 0 did before it came" in result["msg"]


@pytest.mark.parametrize("reply", [send(404, {}), send(200, "<html>"), send(200, "# TYPE up gauge\nup 1\n")])
def test_an_abort_without_metrics_is_still_followed_by_an_answer(call, reply):
    with NimServer(replies={("GET", "/v1/metrics"): reply}) as nim:
        result = call(nim.url, probes=["client_abort"])
    assert result["checks"][0]["detail"] == "no metrics tell of running requests; the next request was answered"


def test_pace(call, fail):
    # So slowly that a busy machine does not take it for a proxy that keeps streams back.
    with NimServer(gap=0.01) as nim:
        result = call(nim.url, probes=["pace"], max_ttft=60, min_tokens_per_second=1)
        slow = fail(nim.url, probes=["pace"], min_tokens_per_second=1e6)
        late = fail(nim.url, probes=["pace"], max_ttft=0.0001)
    assert result["tokens_per_second"] > 1
    assert result["answers"][0]["usage"]["completion_tokens"] == 96
    assert slow["failure_class"] == "slow" and "wanted at least 1e+06 tokens/s" in slow["msg"]
    assert slow["next_command"] == f"curl -sSi {nim.url}/v1/metrics"
    assert late["failure_class"] == "slow" and "the first token came after" in late["msg"]


def test_a_proxy_that_keeps_streams_back_is_found(fail, monkeypatch):
    # A busy machine takes its time to read what came in one piece.
    monkeypatch.setattr(_expect, "BURST", 0.05)
    with NimServer(gap=0) as nim:
        whole = []

        def buffered(nim, handler, body):
            events = chunks(words=[f"{number} " for number in range(body["max_tokens"])])
            time.sleep(0.1)
            # In one piece, as a proxy that buffers passes it on.
            handler.send_stream([b"".join(sse(events))])
            whole.append(body)

        nim.replies[CHAT] = buffered
        result = fail(nim.url, probes=["pace"])
    assert result["failure_class"] == "buffered_stream"
    assert "96 pieces of a stream came within" in result["msg"]
    assert re.match(r"seconds of the first pieces: \d+\.\d{4}, ", result["evidence"][0])
    assert "curl -sSiN --compressed" in result["next_command"] and '"stream": true' in result["next_command"]
    # Once may be chance.
    assert len(whole) == 2


def test_a_short_stream_tells_no_pace(call, fail):
    with NimServer(replies={CHAT: send_stream(sse(chunks()))}) as nim:
        assert call(nim.url, probes=["stream"])["phase"] == "verified"
        result = fail(nim.url, probes=["stream"], min_tokens_per_second=10)
        short = fail(nim.url, probes=["pace"])
    assert "2 tokens came, too few to tell their pace, wanted a longer answer" in result["msg"]
    assert "came in 2 pieces, wanted at least 8" in short["msg"]


@pytest.mark.parametrize("stream", [True, False])
def test_refused_by_policy(fail, stream):
    refused = completion(content=None)
    refused["choices"][0]["message"]["refusal"] = "I can't help with that."
    refused["choices"][0]["finish_reason"] = "content_filter"
    events = chunks(words=[])
    events[1]["choices"][0]["finish_reason"] = "content_filter"
    reply = send_stream(sse(events)) if stream else send(200, refused)
    with NimServer(replies={CHAT: reply}) as nim:
        result = fail(nim.url, probes=["stream" if stream else "completion"])
    assert result["failure_class"] == "refused_by_policy"
    assert result["next_command"].startswith("curl -sSi")


def test_profile(call, fail):
    metadata = {"selectedModelProfileId": "8835c317", "modelInfo": [{"shortName": MODEL}]}
    with NimServer(metadata=metadata) as nim:
        assert call(nim.url, expect_profile="8835c317")["phase"] == "verified"
        result = fail(nim.url, expect_profile="4f904d57", check_metadata=False)
    assert result["failure_class"] == "wrong_model"
    assert "GET /v1/metadata names profile 8835c317, wanted profile 4f904d57" in result["msg"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "url must be http:// or https://"),
        ({"url": "http://"}, "url must be"),
        ({"url": "http://h:99999"}, "url must be"),
        ({"url": "http://user:password@h"}, "no user"),
        ({"timeout": 0}, "timeout is 0, it must be above 0"),
        ({"max_wait": -1}, "max_wait is -1"),
        ({"journal_lines": -1}, "journal_lines is -1"),
        ({"ready_path": "health"}, "ready_path is 'health'"),
        ({"unit": "nim-*"}, "unit is 'nim-*'"),
        ({"api_key": "key\n"}, "trim it"),
        ({"expect_regex": "("}, "is no regular expression"),
        ({"ca_path": "/nowhere/ca.pem"}, "ca_path /nowhere/ca.pem cannot be read"),
        ({"client_key": "/nowhere/key.pem"}, "client_cert"),
        ({"prompt": "a", "messages": []}, "mutually exclusive"),
        ({"prompt": "a", "prompts": [{"prompt": "b"}]}, "mutually exclusive"),
        ({"prompt": " "}, "prompt is empty"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"content": "hi"}]}, "messages[0] has no role"),
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [{"prompt": ""}]}, "prompts[0]: prompt is empty"),
        ({"prompts": [{"expect_regex": "x"}]}, "one of the following is required: prompt, messages"),
        ({"prompts": [{"prompt": "x", "expect_regex": "["}]}, "prompts[0]: expect_regex '[' is no regular expression"),
        ({"prompts": [{"prompt": "x", "max_tokens": 0}]}, "prompts[0]: max_tokens is 0"),
        (
            {"prompts": [{"prompt": "x", "expect_min_tokens": 65}]},
            "prompts[0]: expect_min_tokens is 65, but max_tokens",
        ),
        ({"temperature": 3}, "temperature is 3, it must be from 0 to 2"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"expect_script": "Klingon"}, "expect_script must be one of"),
        ({"expect_finish_reason": "abort"}, "expect_finish_reason must be one of"),
        (
            {"expect_min_tokens": 9, "expect_max_tokens": 8},
            "expect_min_tokens is 9, it must not be above expect_max_tokens",
        ),
        ({"max_ttft": 0}, "max_ttft is 0, it must be above 0"),
        ({"min_tokens_per_second": -1}, "min_tokens_per_second is -1"),
        ({"max_ttft": 1, "probes": ["completion"]}, "max_ttft is measured on streams: add stream or pace to probes"),
        ({"probes": ["wrong_key"]}, "there is no api_key"),
        (
            {"probes": ["speech"], "expect_profile": "8835c317"},
            "expect_profile is compared with /v1/metadata, which speech does not",
        ),
        ({"request_timeout": float("nan")}, "request_timeout is nan, it must be above 0"),
        ({"tool_choice": "none"}, "tool_choice must be one of"),
        ({"probes": ["vision"], "image_file": "/nowhere.png"}, "image_file /nowhere.png cannot be read on this host"),
        ({"probes": ["vision"], "image_file": __file__}, "is no PNG, JPEG, GIF or WebP picture"),
        ({"probes": ["transcription"], "audio_file": "/nowhere.wav"}, "audio_file /nowhere.wav cannot be read"),
        ({"probes": ["telepathy"]}, "probes"),
        ({"probes": ["health", "stream"]}, "probes are health, stream, but health stands alone"),
    ],
)
def test_bad_options(call, args, words):
    result = call(**{"url": "http://127.0.0.1:9", **args})
    assert result["failed"] and words in result["msg"], result


def test_check_mode_asks_nothing(call):
    with NimServer() as nim:
        result = call(nim.url, _ansible_check_mode=True)
        assert nim.requests == []
    assert (result["skipped"], result["changed"]) == (True, False)
    assert result["msg"].startswith(f"Check mode: {nim.url} was not asked")


def test_without_requests_the_message_says_what_to_install(call, monkeypatch):
    monkeypatch.setattr(chat_completion, "REQUESTS_IMPORT_ERROR", "ImportError: no module named requests")
    result = call("http://127.0.0.1:9")
    assert result["failed"] and "requests" in result["msg"]


def test_a_proxy_in_the_environment_is_not_used(call, monkeypatch, port):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with NimServer() as nim:
        assert call(nim.url, timeout=30)["phase"] == "verified"


# The unit behind the endpoint.

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB."


@pytest.fixture
def seldom(monkeypatch):
    """systemd is asked where it must be, and not once more for each second that a busy machine takes."""
    monkeypatch.setattr(_unit, "_CHECK_EVERY", LONG)


@pytest.mark.usefixtures("seldom")
def test_a_living_unit_and_the_endpoint(call, host):
    folder = host(RUNNING)
    with NimServer() as nim:
        result = call(nim.url, unit=UNIT)
    assert result["phase"] == "verified"
    assert (result["unit"]["name"], result["unit"]["active_state"], result["unit"]["restarts"]) == (UNIT, "active", 0)
    calls = (folder / "calls").read_text().splitlines()
    # Once before the wait, once after the answers.
    assert len(calls) == 2
    assert calls[0].startswith("C show --property=LoadState,") and calls[0].endswith(f"-- {UNIT}")


def test_a_unit_in_a_crash_loop_fails_in_seconds(fail, host, port):
    folder = host(RUNNING, AUTO_RESTART, journal=["Loading weights", OOM, f"{UNIT}: Failed with result 'exit-code'."])
    url = f"http://127.0.0.1:{port}"
    result = fail(url, unit=UNIT, timeout=1800, journal_lines=5)
    assert result["failure_class"] == "out_of_memory"
    assert result["phase"] == "starting"
    assert f"unit {UNIT} crashed (result exit-code) and waits for its restart (last exit status 1)" in result["msg"]
    assert f"wanted active. Journal: {OOM} Free memory" in result["msg"]
    assert result["evidence"] == ["Loading weights", OOM, f"{UNIT}: Failed with result 'exit-code'."]
    assert result["next_command"] == "nvidia-smi"
    assert f"--unit={UNIT} -n 2000 -o cat --all --no-pager" in (folder / "journal.calls").read_text()


@pytest.mark.parametrize(
    ("state", "journal", "failure_class", "next_command"),
    [
        (AUTO_RESTART, "Segmentation fault", "crash_loop", f"journalctl -u {UNIT} -n 100 --no-pager"),
        (unit(ActiveState="failed", Result="exit-code"), "401 Client Error", "auth", f"journalctl -u {UNIT} -n 100 --no-pager"),
        (unit(ActiveState="inactive", SubState="dead"), "bye", "unit_stopped", f"journalctl -u {UNIT} -n 100 --no-pager"),
        (unit(LoadState="not-found", ActiveState="inactive"), "", "unit_not_found", f"systemctl status {UNIT}"),
        (AUTO_RESTART, "No space left on device", "disk_full", "df -h"),
        (AUTO_RESTART, "port is already allocated", "port_in_use", "ss -ltnp 'sport = :{port}'"),
    ],
)  # fmt: skip
def test_a_lost_unit_counts_more_than_a_green_endpoint(fail, host, state, journal, failure_class, next_command):
    host(state, journal=[journal])
    with NimServer() as nim:
        result = fail(nim.url, unit=UNIT)
        # Another process may hold the port: what it answers proves nothing.
        assert nim.requests == []
    assert (result["failure_class"], result["next_command"]) == (failure_class, next_command.format(port=nim.port))


@pytest.mark.usefixtures("seldom")
def test_restarts_are_counted_from_the_first_slice(call, fail, host, port):
    second = unit(NRestarts=7, InvocationID="0c1d5e7fb2aa4c0c8f7f5f3a39a5c2de")
    host(unit(NRestarts=4), second, journal=["Loading weights 3/4"])
    url = f"http://127.0.0.1:{port}"
    first = call(url, unit=UNIT, max_wait=0.3)
    assert (first["resume"]["restarts"], first["last_log"]) == (4, "Loading weights 3/4")
    result = fail(url, unit=UNIT, max_wait=0.3, resume=first["resume"])
    assert f"unit {UNIT} restarted 3 times during the wait, wanted active" in result["msg"]


def test_progress_shows_nothing_of_the_life_before(call, host, port):
    """The last line of the container before it is in the journal of the unit, and in that of its own start only."""
    folder = host(RUNNING, journal=["Uvicorn running on http://0.0.0.0:8000"])
    new = RUNNING["InvocationID"]
    script = f'case "$1" in *INVOCATION_ID={new}) cat life;; --unit=*) cat journal;; esac'
    (folder / "journalctl").write_text(f"#!/bin/sh\ncd {shlex.quote(str(folder))}\n{script}\n")
    (folder / "life").write_text("")
    url = f"http://127.0.0.1:{port}"
    first = call(url, unit=UNIT, max_wait=0.3)
    assert (first["waiting"], first["last_log"], first["stage"]) == (True, "", None)
    (folder / "life").write_text("waiting for the other ranks\n")
    second = call(url, unit=UNIT, max_wait=0.3, resume=first["resume"])
    assert second["last_log"] == "waiting for the other ranks"


def test_a_unit_that_dies_during_the_probe_tells_why(fail, host):
    host(RUNNING, RUNNING, AUTO_RESTART, journal=[OOM])
    with NimServer(replies={CHAT: send(500, {"error": {"message": "EngineCore died"}})}) as nim:
        result = fail(nim.url, unit=UNIT)
    assert result["failure_class"] == "out_of_memory"


def test_a_unit_that_restarts_behind_its_health_is_told(fail, host):
    host(RUNNING, AUTO_RESTART, journal=["boom"])
    with NimServer() as nim:
        result = fail(nim.url, unit="nim-llama.service", probes=["health"])
    assert result["failure_class"] == "crash_loop"


def test_a_unit_that_restarts_behind_good_answers_is_told(fail, host):
    host(RUNNING, AUTO_RESTART, journal=["bye"])
    with NimServer() as nim:
        result = fail(nim.url, unit=UNIT)
    assert result["failure_class"] == "crash_loop"


def test_a_dead_engine_in_a_living_unit_shows_the_journal(fail, host, monkeypatch):
    monkeypatch.setattr(_verify, "_SETTLE", 0.2)
    host(RUNNING, journal=["AsyncEngineDeadError: Background loop has errored already."])
    with NimServer(replies={CHAT: send(500, {"error": {"message": "Engine loop is not running."}})}) as nim:
        result = fail(nim.url, unit=UNIT)
    assert result["failure_class"] == "dead_engine"
    assert result["evidence"] == [
        "Engine loop is not running.",
        "AsyncEngineDeadError: Background loop has errored already.",
    ]
    assert result["next_command"] == f"journalctl -u {UNIT} -n 100 --no-pager"


def test_a_slow_start_of_a_living_unit_shows_the_journal(fail, host, port):
    host(RUNNING, journal=["Waiting for the other ranks"])
    result = fail(f"http://127.0.0.1:{port}", unit=UNIT, timeout=0.3)
    assert result["failure_class"] == "starting"
    assert result["stage"] is None
    assert "Journal: Waiting for the other ranks." in result["msg"]


def test_a_download_that_does_not_end_in_time_says_how_far_it_came(fail, host, port):
    bar = "model-00001-of-00004.safetensors:  45%|####5     | 2.26G/4.98G [00:12<00:14, 181MB/s]"
    host(RUNNING, journal=["INFO ngc_injector.py:141] Selected profile: 8835c317 (vllm-fp16-tp1)", bar])
    result = fail(f"http://127.0.0.1:{port}", unit=UNIT, timeout=0.3)
    assert (result["failure_class"], result["phase"], result["stage"]) == ("downloading", "starting", "downloading")
    assert "(last: downloading 2.3 GB of 5.0 GB)" in result["msg"]
    assert bar in result["evidence"]
    assert result["next_command"] == f"journalctl -u {UNIT} -n 100 --no-pager"
    assert [entry["stage"] for entry in result["history"]] == ["downloading"]


def test_gpus_that_no_profile_fits_are_told(fail, host, port):
    said = "ERROR 2026-03-03 12:00:10.079 ngc_profile.py:226] Detected 0 compatible profile(s)."
    host(AUTO_RESTART, journal=["Free GPUs:", said, f"{UNIT}: Failed with result 'exit-code'."])
    result = fail(f"http://127.0.0.1:{port}", unit=UNIT)
    assert (result["failure_class"], result["next_command"]) == ("no_profile", "nvidia-smi")
    assert said in result["evidence"] and "Choose a model that fits these GPUs" in result["msg"]


def test_a_driver_too_old_for_the_image_is_told(fail, host, port):
    said = "RuntimeError: The NVIDIA driver on your system is too old (found version 12020)."
    host(AUTO_RESTART, journal=[said, f"{UNIT}: Failed with result 'exit-code'."])
    result = fail(f"http://127.0.0.1:{port}", unit=UNIT)
    assert (result["failure_class"], result["next_command"]) == ("driver_mismatch", "nvidia-smi")
    assert said in result["evidence"]


def test_a_host_without_systemd(fail, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("ansible.module_utils.common.process.is_executable", lambda path: False)
    result = fail("http://127.0.0.1:9", unit=UNIT)
    assert result["failure_class"] == "unit_unreadable"
    assert "systemctl is not installed" in result["msg"]


# TLS.


def certificate(folder, name, issuer=None, ca=False):
    """Write name.pem (certificate and key) for 127.0.0.1; return its path and what signs with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    issuer_name, issuer_key = issuer or (subject, key)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        # Python 3.13 refuses certificates without these.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(True, False, False, False, False, ca, ca, False, False), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(path), (subject, key)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Return the paths of a CA, a server and a client certificate it signed, and a self-signed one."""
    folder = tmp_path_factory.mktemp("tls")
    ca, issuer = certificate(folder, "ca", ca=True)
    return {
        "ca": ca,
        "server": certificate(folder, "server", issuer)[0],
        "client": certificate(folder, "client", issuer)[0],
        "alone": certificate(folder, "alone")[0],
    }


def server_side(certificate_file, client_ca=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def test_tls_with_its_ca(call, tls):
    with NimServer(tls=server_side(tls["server"])) as nim:
        assert call(nim.url, ca_path=tls["ca"])["phase"] == "verified"


def test_tls_self_signed(call, fail, tls):
    with NimServer(tls=server_side(tls["alone"])) as nim:
        result = fail(nim.url)
        assert call(nim.url, validate_certs=False)["phase"] == "verified"
    assert result["failure_class"] == "tls"
    assert "certificate verify failed" in result["msg"]
    assert result["next_command"] == f"curl -sSi {nim.url}/v1/health/ready"


def test_tls_with_another_ca(fail, tls):
    with NimServer(tls=server_side(tls["server"])) as nim:
        result = fail(nim.url, ca_path=tls["alone"])
    assert result["failure_class"] == "tls"
    assert result["next_command"] == f"curl -sSi --cacert {tls['alone']} {nim.url}/v1/health/ready"


def test_tls_spoken_to_a_server_without(fail):
    with NimServer() as nim:
        result = fail(nim.url.replace("http:", "https:"))
    assert result["failure_class"] == "tls"


def test_tls_through_a_port_forwarder_that_has_no_server_yet(fail):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            with contextlib.suppress(OSError):
                while True:
                    connection, _address = listener.accept()
                    connection.recv(4096)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        result = fail(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.4)
        listener.shutdown(socket.SHUT_RDWR)
    assert result["failure_class"] == "unreachable"
    assert "EOF" in result["msg"]


def test_mutual_tls(call, fail, tls):
    with NimServer(tls=server_side(tls["server"], client_ca=tls["ca"])) as nim:
        assert call(nim.url, ca_path=tls["ca"], client_cert=tls["client"])["phase"] == "verified"
        result = fail(nim.url, ca_path=tls["ca"], timeout=5)
    assert result["failure_class"] == "tls"
