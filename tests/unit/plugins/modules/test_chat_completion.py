# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module run for real against a real HTTP server; systemctl and journalctl are small scripts."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import shlex
import socket
import ssl
import threading
import time

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.doc_fragments import _endpoint
from ansible_collections.baremetal.nim.plugins.module_utils import _probe, _verify
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES
from ansible_collections.baremetal.nim.plugins.modules import chat_completion
from ansible_collections.baremetal.nim.tests.unit.nim_server import (
    MODEL,
    NimServer,
    chunks,
    completion,
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
# Long before the timeout of a wait that must end early.
SOON = 10.0


@pytest.fixture
def call(capsys):
    """Run the module; return its result."""

    def run(url, **args):
        args = {"url": url, "timeout": 60, "request_timeout": 5, "poll_interval": 0.05, **args}
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


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


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


def test_result_is_what_the_documentation_says(call):
    documented = yaml.safe_load(chat_completion.RETURN)
    always = {key for key, value in documented.items() if value["returned"] == "always"}
    with NimServer() as nim:
        result = call(nim.url)
    assert set(result) - {"changed", "invocation"} == always
    text = " ".join(documented["failure_class"]["description"])
    # The others are of staging and of benchmarks alone.
    others = ["cache_missing", "overloaded", "slow", "wrong_contract"]
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


def test_waits_through_503(call):
    with NimServer(starting_for=0.6) as nim:
        result = call(nim.url)
        polls = len(nim.asked("/v1/health/ready"))
    assert phases(result) == ["starting", "ready", "verified"]
    assert result["history"][0]["detail"] == "HTTP 503"
    assert result["ready_after"] >= 0.5
    assert polls > 3


def test_waits_through_a_refused_connection(call):
    port = free_port()
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
    assert result["ready_after"] >= 0.4


@pytest.mark.parametrize("body", ["true", {"status": "loading"}, {"message": "Service is not ready."}])
def test_only_the_status_of_the_health_counts(call, body):
    with NimServer(replies={READY: send(200, body)}) as nim:
        assert call(nim.url)["phase"] == "verified"


def test_a_wait_without_an_answer(fail):
    url = f"http://127.0.0.1:{free_port()}"
    result = fail(url, timeout=0.4)
    assert (result["failure_class"], result["phase"], result["status"]) == ("unreachable", "unreachable", None)
    assert (
        "GET /v1/health/ready was not ready within 0.4 s (last: Connection refused), wanted HTTP 200" in result["msg"]
    )
    assert result["next_command"] == f"curl -sSi {url}/v1/health/ready"


def test_a_wait_that_never_gets_ready(fail):
    with NimServer(starting_for=60) as nim:
        result = fail(nim.url, timeout=0.4)
    assert (result["failure_class"], result["status"], result["ready_after"]) == ("starting", 503, None)
    assert "last: HTTP 503" in result["msg"]


def test_a_health_check_that_hangs_counts_as_not_ready(fail):
    def hang(_nim, _handler, _body):
        time.sleep(2)

    with NimServer(replies={READY: hang}) as nim:
        result = fail(nim.url, timeout=0.4, request_timeout=0.3)
    assert "last: no answer within 0.3 s" in result["msg"]


def test_slices_add_up_to_one_wait(call, fail):
    with NimServer(starting_for=60) as nim:
        first = call(nim.url, max_wait=0.3)
        assert (first["waiting"], first["phase"], first["failure_class"]) == (True, "starting", None)
        assert first["resume"]["elapsed"] >= 0.3
        second = call(nim.url, max_wait=0.3, resume={**first["resume"], "elapsed": 30.0})
        assert second["resume"]["elapsed"] >= 30.3
        last = fail(nim.url, max_wait=0.3, resume={**second["resume"], "elapsed": 61.0})
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
    assert result["next_command"].startswith("curl -sSi -H 'Content-Type: application/json' -d ")


def test_an_engine_that_does_not_answer_in_time_is_dead(fail):
    def hang(_nim, _handler, _body):
        time.sleep(2)

    with NimServer(replies={CHAT: hang}) as nim:
        result = fail(nim.url, request_timeout=0.5)
    assert result["failure_class"] == "dead_engine"
    assert "no answer to POST /v1/chat/completions within 0.5 s, wanted a completion" in result["msg"]


def test_a_stream_that_stalls_is_dead(fail):
    def stall():
        yield sse(chunks())[0]
        time.sleep(2)

    with NimServer(replies={CHAT: send_stream(stall())}) as nim:
        result = fail(nim.url, probes=["stream"], request_timeout=0.5)
    assert result["failure_class"] == "dead_engine"
    assert "no answer to POST /v1/chat/completions within 0.5 s" in result["msg"]


def test_keep_alive_comments_do_not_stretch_a_stream(fail):
    def drip(_nim, handler, _body):
        def parts():
            for _count in range(200):
                yield b": keep-alive\n\n"
                time.sleep(0.05)

        handler.send_stream(parts())

    with NimServer(replies={CHAT: drip}) as nim:
        result = fail(nim.url, probes=["stream"], request_timeout=0.5)
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
        time.sleep(0.5)
        yield from events[2:]

    with NimServer(replies={CHAT: send_stream(slow())}) as nim:
        result = call(nim.url, probes=["stream"])
    assert result["stream_duration"] - result["ttft"] > 0.4


def test_expect_regex(call, fail):
    with NimServer() as nim:
        assert call(nim.url, expect_regex="^READY$|^ready$")["phase"] == "verified"
        result = fail(nim.url, expect_regex="(?i)paris")
    assert result["failure_class"] == "wrong_answer"
    assert "the answer is 'ready', wanted a match of '(?i)paris'" in result["msg"]
    assert result["evidence"] == ["ready"]


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
        ({"probes": ["embedding"]}, "probes"),
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


def test_a_proxy_in_the_environment_is_not_used(call, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with NimServer() as nim:
        assert call(nim.url, timeout=2)["phase"] == "verified"


# The unit behind the endpoint.

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB."


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


def test_a_unit_in_a_crash_loop_fails_in_seconds(fail, host):
    folder = host(RUNNING, AUTO_RESTART, journal=["Loading weights", OOM, f"{UNIT}: Failed with result 'exit-code'."])
    url = f"http://127.0.0.1:{free_port()}"
    result = fail(url, unit=UNIT, timeout=1800, journal_lines=5)
    assert result["failure_class"] == "out_of_memory"
    assert result["phase"] == "starting"
    assert f"unit {UNIT} crashed (result exit-code) and waits for its restart (last exit status 1)" in result["msg"]
    assert f"wanted active. Journal: {OOM} Free memory" in result["msg"]
    assert result["evidence"] == ["Loading weights", OOM, f"{UNIT}: Failed with result 'exit-code'."]
    assert result["next_command"] == "nvidia-smi"
    assert f"--unit={UNIT} -n 500 -o cat --no-pager" in (folder / "journal.calls").read_text()


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


def test_restarts_are_counted_from_the_first_slice(call, fail, host):
    second = unit(NRestarts=7, InvocationID="0c1d5e7fb2aa4c0c8f7f5f3a39a5c2de")
    host(unit(NRestarts=4), second, journal=["Loading weights 3/4"])
    url = f"http://127.0.0.1:{free_port()}"
    first = call(url, unit=UNIT, max_wait=0.3)
    assert (first["resume"]["restarts"], first["last_log"]) == (4, "Loading weights 3/4")
    result = fail(url, unit=UNIT, max_wait=0.3, resume=first["resume"])
    assert f"unit {UNIT} restarted 3 times during the wait, wanted active" in result["msg"]


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


def test_a_slow_start_of_a_living_unit_shows_the_journal(fail, host):
    host(RUNNING, journal=["Downloading model shard 3/61"])
    result = fail(f"http://127.0.0.1:{free_port()}", unit=UNIT, timeout=0.3)
    assert result["failure_class"] == "starting"
    assert "Journal: Downloading model shard 3/61." in result["msg"]


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
    now = datetime.datetime.now(datetime.UTC)
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
