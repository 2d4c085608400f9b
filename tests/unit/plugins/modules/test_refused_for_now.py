# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""chat_completion against real servers that refuse and may not for long: too much to do, a model that loads, a proxy before nothing."""

from __future__ import annotations

import json
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _refusal, _verify
from ansible_collections.baremetal.nim.plugins.modules import chat_completion
from ansible_collections.baremetal.nim.tests.unit.nim_server import NimServer, chunks, send, send_stream, sse, usage

CHAT = ("POST", "/v1/chat/completions")
MODELS = ("GET", "/v1/models")
FULL = {"error": {"message": "The request queue is full.", "type": "ServiceUnavailableError", "code": 503}}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Whoever does not say when is asked again sooner than in use."""
    monkeypatch.setattr(_verify, "_BACK_OFF", (0.3, 1.0))


@pytest.fixture
def call(capsys):
    """Runs the module; returns its result and the seconds it took."""

    def run(url, **args):
        begin = time.monotonic()
        with patch_module_args({"url": url, "timeout": 6, "request_timeout": 2, **args}), pytest.raises(SystemExit):
            chat_completion.main()
        return json.loads(capsys.readouterr().out), time.monotonic() - begin

    return run


def refuse(status, body, **fields):
    """A reply that refuses with these header fields."""

    def reply(_nim, handler, _body):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": len(data), **fields}.items():
            handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


class First:
    """A reply that refuses the first requests and leaves; then its server keeps to the contract."""

    def __init__(self, times, key, reply):
        self.left, self.key, self.reply, self.at = times, key, reply, []

    def __call__(self, nim, handler, body):
        self.left -= 1
        self.at.append(time.monotonic())
        if self.left <= 0:
            del nim.replies[self.key]
        self.reply(nim, handler, body)


@pytest.mark.parametrize("key", [CHAT, MODELS], ids=["chat", "models"])
@pytest.mark.parametrize(
    "reply",
    [
        refuse(503, FULL, Retry_After=0.3),
        refuse(429, "", Retry_After=0.3),
        refuse(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Retry_After=0.3),
        refuse(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
        refuse(502, "<html><h1>502 Bad Gateway</h1></html>"),
        refuse(503, "no healthy upstream"),
        refuse(504, ""),
    ],
    ids=["queue full", "429", "529", "loading", "502", "envoy", "504"],
)
def test_who_refuses_for_now_is_asked_again(call, key, reply):
    with NimServer() as nim:
        first = nim.replies[key] = First(1, key, reply)
        result, took = call(nim.url)
    assert result["phase"] == "verified", result["msg"]
    # When it was asked to, and not sooner.
    assert took >= 0.3 and len(first.at) == 1
    assert result["history"][1]["detail"].endswith("asking again after 0.3 s")


def test_the_time_to_come_back_is_kept(call):
    with NimServer() as nim:
        first = nim.replies[CHAT] = First(2, CHAT, refuse(503, FULL, Retry_After=0.8))
        result, took = call(nim.url, timeout=20)
    assert result["phase"] == "verified" and took >= 1.6
    assert first.at[1] - first.at[0] >= 0.8
    # Meanwhile nobody is asked for anything.
    assert len([path for _method, path, _body in nim.requests if path == "/v1/health/ready"]) == 3


@pytest.mark.parametrize(
    "reply",
    [
        refuse(503, FULL, Retry_After=0.3),
        refuse(429, {"error": {"message": "Rate limit reached"}}),
        refuse(
            503, "<html><center><h1>503 Service Temporarily Unavailable</h1></center><hr><center>nginx</center></html>"
        ),
        refuse(500, {"error": "[StatusCode.UNAVAILABLE] Exceeds maximum queue size"}),
        send(200, FULL),
        lambda nim, handler, body: send_stream([sse(chunks())[0], b"data: " + json.dumps(FULL).encode() + b"\n\n"])(
            nim, handler, body
        ),
    ],
    ids=["SGLang", "429", "nginx", "Triton", "HTTP 200", "in the stream"],
)
def test_who_has_too_much_to_do_to_the_end_is_no_dead_engine(call, reply):
    with NimServer(replies={CHAT: reply}) as nim:
        result, took = call(nim.url, timeout=1.5)
        asked = len(nim.asked("/v1/chat/completions"))
    assert result["failure_class"] == "overloaded", result["msg"]
    assert "Restart" not in result["msg"] and "Wait, send fewer at a time, add instances" in result["msg"]
    assert result["next_command"] == f"curl -sSi {nim.url}/v1/metrics"
    assert any(line.startswith("refused for ") for line in result["evidence"])
    assert took < 10 and asked <= 6


def test_who_wants_to_be_left_alone_for_longer_than_there_is_time_is_not_waited_for(call):
    with NimServer(replies={CHAT: refuse(503, FULL, Retry_After=3600)}) as nim:
        result, took = call(nim.url)
    assert (result["failure_class"], took < 5) == ("overloaded", True)
    assert "it wants to be asked again in 3600 s, the wait ends after 6 s" in result["evidence"][-1]


@pytest.mark.parametrize(
    ("status", "body", "words", "cure"),
    [
        (
            502,
            "<html><h1>502 Bad Gateway</h1></html>",
            "a proxy that reaches nothing behind it",
            "Start the service that the proxy",
        ),
        (503, "no healthy upstream", "a proxy that reaches nothing behind it", "correct the proxy's address"),
        (504, "", "a proxy that waited too long for what is behind it", "See whether the engine hangs"),
    ],
)
def test_a_proxy_that_stays_before_nothing_says_so(call, monkeypatch, status, body, words, cure):
    monkeypatch.setattr(_refusal, "UPSTREAM_PATIENCE", 0.8)
    with NimServer(replies={CHAT: refuse(status, body)}) as nim:
        result, took = call(nim.url, timeout=60)
    assert result["failure_class"] == "dead_engine" and took < 10
    assert words in result["msg"] and cure in result["msg"] and "Restart" not in result["msg"]


@pytest.mark.parametrize("status", [500, 503])
def test_an_engine_that_says_that_it_is_dead_is_not_waited_for(call, status):
    body = {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause."}}
    with NimServer(replies={CHAT: refuse(status, body, Retry_After=0.3)}) as nim:
        result, took = call(nim.url)
    assert (result["failure_class"], took < 5) == ("dead_engine", True)
    assert "Restart the service" in result["msg"]


def test_a_refusal_is_remembered_over_the_slices(call):
    """A slice that comes before the time that the server wants asks nothing, and says why it waits."""
    with NimServer() as nim:
        nim.replies[CHAT] = First(1, CHAT, refuse(503, FULL, Retry_After=2))
        first, _took = call(nim.url, max_wait=0.2)
        asked = len(nim.requests)
        second, _took = call(nim.url, max_wait=0.2, resume={**first["resume"], "elapsed": 0.5})
        assert len(nim.requests) == asked
        third, _took = call(nim.url, max_wait=5, resume={**second["resume"], "elapsed": 2.1})
    assert (first["waiting"], second["waiting"], third["phase"]) == (True, True, "verified")
    for result in (first, second):
        assert result["phase"] == "ready" and "The request queue is full." in result["history"][-1]["detail"]


def test_a_busy_endpoint_says_nothing_of_what_it_refuses(call):
    """unknown_model wants a 404; a 503 is another thing, and passes."""
    with NimServer() as nim:
        nim.replies[CHAT] = First(1, CHAT, refuse(503, FULL, Retry_After=0.3))
        result, _took = call(nim.url, probes=["unknown_model"])
        assert result["phase"] == "verified" and result["checks"][0]["detail"].startswith("HTTP 404")
        nim.replies[CHAT] = refuse(429, "")
        result, _took = call(nim.url, probes=["unknown_model"], timeout=1)
    assert result["failure_class"] == "overloaded" and "wanted HTTP 404" in result["msg"]


# -- how streams come --------------------------------------------------------------------------------------------------


def paced(steps, each, gap, tokens=1):
    """A reply that streams so many times so many pieces at once, a step of an engine apart, each of so many tokens."""

    def parts():
        events = sse(chunks(words=["word " * tokens] * (steps * each)))
        before, after = usage(), usage(completion=steps * each * tokens)
        events[-2] = events[-2].replace(json.dumps(before).encode(), json.dumps(after).encode())
        yield events[0]
        for number in range(steps):
            time.sleep(gap)
            yield b"".join(events[1 + number * each : 1 + (number + 1) * each])
        yield from events[1 + steps * each :]

    return lambda nim, handler, body: send_stream(parts())(nim, handler, body)


@pytest.mark.parametrize("probe", ["stream", "pace"])
@pytest.mark.parametrize("each", [1, 2, 4, 8, 20])
def test_several_tokens_in_a_step_are_no_buffer(call, probe, each):
    """Speculative decoding: all that a step accepts comes at once, and the steps come one after another."""
    with NimServer(replies={CHAT: paced(12, each, 0.03)}) as nim:
        result, _took = call(nim.url, probes=[probe])
    assert result["phase"] == "verified", result["msg"]


@pytest.mark.parametrize(("steps", "each", "gap"), [(1, 40, 0.3), (4, 100, 0.3)], ids=["whole", "a part at a time"])
def test_a_buffer_is_found(call, steps, each, gap):
    with NimServer(replies={CHAT: paced(steps, each, gap)}) as nim:
        result, _took = call(nim.url, probes=["stream"])
    assert result["failure_class"] == "buffered_stream"


def test_many_tokens_in_a_piece_have_a_pace(call):
    """vLLM with --stream-interval 16: seven pieces for 96 tokens."""
    with NimServer(replies={CHAT: paced(6, 1, 0.05, tokens=16)}) as nim:
        result, _took = call(nim.url, probes=["stream", "pace"], min_tokens_per_second=5)
    assert result["phase"] == "verified", result["msg"]
    # 95 tokens in five gaps of 50 ms and more.
    assert 5 < result["tokens_per_second"] < 390


def test_an_answer_in_one_piece_has_none(call):
    with NimServer(replies={CHAT: paced(1, 1, 0.05, tokens=96)}) as nim:
        result, _took = call(nim.url, probes=["pace"])
    assert result["failure_class"] == "buffered_stream" and "1 piece of a stream" in result["msg"]
