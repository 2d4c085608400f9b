# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchdog: its decisions as tables, and whole runs against a real endpoint with a systemctl that writes down its calls."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import time
from types import SimpleNamespace

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _lease, _refusal
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import CONTRACTS
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import Service
from nim_server import MODEL, NimServer, hang, send
from refusals import DEAD as DEAD_FORMS
from refusals import OVERLOADED

RECORDED = pathlib.Path(__file__).parents[1] / "fixtures/h200-vllm/metrics.txt"
SCRIPT = pathlib.Path(__file__).parents[2] / "roles/nim_service/files/nim-watchdog"


def load():
    """The script as a module; nothing is written beside it."""
    loader = importlib.machinery.SourceFileLoader("nim_watchdog", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


watchdog = load()
Answer, Seen, State = watchdog.Answer, watchdog.Seen, watchdog.State
#: As they stand in a record.
OPTIONS = {
    **Service({"name": "llama"}, {}, {}).watchdog(CONTRACTS["classic"], True, 1800),
    "failures": 3,
    "limit": 3,
    "idle": 300,
}
CHAT = "POST /v1/chat/completions"
DEAD = "Engine loop is not running."


def test_script_is_python_of_the_oldest_hosts():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    origins = [str(importlib.util.find_spec(name.split(".")[0]).origin) for name in imported()]
    assert not [origin for origin in origins if "-packages/" in origin]


def imported():
    """Modules that the script imports."""
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


# -- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "total"),
    [
        pytest.param("", None, id="nothing"),
        pytest.param("<html>503</html>", None, id="no-metrics"),
        pytest.param('num_requests_running{model_name="m"} 3\n', None, id="no-such-counter"),
        pytest.param('request_success_total{finished_reason="stop"} 3\n', 3, id="first-generation"),
        pytest.param(
            'vllm:request_success_total{finished_reason="stop",model_name="m"} 3.0\n'
            'vllm:request_success_total{finished_reason="length",model_name="m"} 2.0\n'
            'vllm:generation_tokens_total{model_name="m"} 1.5e2\n',
            155,
            id="vllm",
        ),
        pytest.param("generation_tokens_total 7\n", 7, id="without-labels"),
        pytest.param("generation_tokens_total 7 1763881200000\n", 7, id="with-a-time"),
        pytest.param("# TYPE generation_tokens_total counter\ngeneration_tokens_total 0\n", 0, id="comment"),
        pytest.param(
            'request_success_total{finished_reason="abort"} 9\nrequest_success_total{finished_reason="error"} 9\n'
            'request_success_total{finished_reason="stop"} 1\n',
            1,
            id="given-up-requests-are-no-life",
        ),
        pytest.param("generation_tokens_total NaN\nrequest_success_total many\n", None, id="no-numbers"),
        pytest.param('generation_tokens_total{model_name="a } b"} 4\n', 4, id="brace-in-a-label"),
        pytest.param("prompt_tokens_total 4\nrequest_success_total_created 4\n", None, id="other-names"),
        pytest.param(RECORDED.read_text(), 650, id="vLLM-on-an-H200"),
    ],
)
def test_traffic(text, total):
    assert watchdog.traffic(text) == total


@pytest.mark.parametrize(
    ("status", "text", "fault"),
    [
        (200, '{"choices": [{}]}', ""),
        (200, '{"choices": []}', f'HTTP 200 without choices from {CHAT} ({{"choices": []}})'),
        (200, "[]", f"HTTP 200 without choices from {CHAT} ([])"),
        (200, "OK", f"HTTP 200 without choices from {CHAT} (OK)"),
        (400, "", ""),
        (401, "", ""),
        (404, "", ""),
        (422, "", ""),
        (429, "", ""),
        (503, "queue full", ""),
        (500, json.dumps({"error": {"message": DEAD}}), f"HTTP 500 from {CHAT} ({DEAD})"),
        (500, json.dumps({"object": "error", "message": DEAD}), f"HTTP 500 from {CHAT} ({DEAD})"),
        (500, json.dumps({"detail": [1]}), f"HTTP 500 from {CHAT} ([1])"),
        (502, "<html>\n bad\tgateway", f"HTTP 502 from {CHAT} (<html> bad gateway)"),
        (504, "", f"HTTP 504 from {CHAT}"),
        (None, "no answer within 60 s", "no answer within 60 s"),
    ],
)
def test_completion_fault(status, text, fault):
    assert watchdog.completion_fault(Answer(CHAT, status, text)) == fault


@pytest.mark.parametrize(("status", "body", "headers"), OVERLOADED)
def test_who_has_too_much_to_do_lives(status, body, headers):
    answer = Answer(CHAT, status, body, any(name.lower() == "retry-after" for name in headers))
    assert watchdog.completion_fault(answer) == ""


@pytest.mark.parametrize(("status", "body", "words"), DEAD_FORMS)
def test_who_is_dead_does_not(status, body, words):
    # What says 503 without words may have too much to do.
    silent = status == 503 and not watchdog._DEAD.search(body) and not watchdog._UPSTREAM.search(body)
    assert bool(watchdog.completion_fault(Answer(CHAT, status, body))) is not silent
    assert silent or words != "(no)"


def test_an_error_that_came_with_http_200_is_read_too():
    full = '{"error": {"message": "The request queue is full.", "code": 503}}'
    assert watchdog.completion_fault(Answer(CHAT, 200, full)) == ""


@pytest.mark.parametrize("name", ["_DEAD", "_OVERLOAD", "_UPSTREAM"])
def test_the_watchdog_knows_the_words_that_the_verification_knows(name):
    assert getattr(watchdog, name) == getattr(_refusal, name)


# -- decisions ---------------------------------------------------------------------------------------------------------

START = 1000.0
NOW = 50000.0
READY = Answer("GET /v1/health/ready", 200, "")
STARTING = Answer("GET /v1/health/ready", 503, "loading")
REFUSED = Answer("GET /v1/health/ready", None, "GET /v1/health/ready broke off (Connection refused)")
GOOD = Answer(CHAT, 200, '{"choices": [{}]}')
BAD = Answer(CHAT, 500, DEAD)
FAULT = f"nim-llama: dead_engine: HTTP 500 from {CHAT} ({DEAD})"
IDLE = State(since=START, count=5.0, alive_at=NOW - 300)
BUSY = State(since=START, count=5.0, alive_at=NOW - 60)


def state(base=IDLE, **changes):
    """A state, changed."""
    return watchdog.changed(base, **changes)


def seen(**changes):
    """A look at a running, ready service with the counters of IDLE, changed."""
    return Seen(**{"since": START, "ready": READY, "count": 5.0, **changes})


@pytest.mark.parametrize(
    ("before", "look", "action", "after", "line"),
    [
        pytest.param(State(), Seen(None), "ok", State(), "", id="stopped"),
        pytest.param(
            state(failures=2, suspect=True, restarts=(NOW - 9,)),
            Seen(None),
            "ok",
            state(since=None, count=None, suspect=True, restarts=(NOW - 9,)),
            "",
            id="stopped-forgets-failures",
        ),
        pytest.param(State(), seen(), "ok", state(alive_at=NOW), "", id="first-look-starts-the-clock"),
        pytest.param(BUSY, seen(), "ok", BUSY, "", id="not-idle-for-long"),
        pytest.param(IDLE, seen(), "probe", IDLE, "", id="idle"),
        pytest.param(IDLE, seen(count=6.0), "ok", state(count=6.0, alive_at=NOW), "", id="traffic"),
        pytest.param(IDLE, seen(count=1.0), "probe", state(count=1.0), "", id="counters-began-anew"),
        pytest.param(IDLE, seen(count=None), "probe", IDLE, "", id="counters-away"),
        pytest.param(
            state(count=None), seen(count=None), "probe", state(count=None), "", id="no-counters-each-idle-time"
        ),
        pytest.param(
            state(BUSY, suspect=True), seen(), "probe", state(BUSY, suspect=True), "", id="suspect-need-not-be-idle"
        ),
        pytest.param(IDLE, seen(probe=GOOD), "ok", state(alive_at=NOW), "", id="answers"),
        pytest.param(
            state(failures=1, suspect=True),
            seen(probe=GOOD),
            "ok",
            state(alive_at=NOW),
            "nim-llama: answers again",
            id="answers-again",
        ),
        pytest.param(
            state(failures=3, suspect=True, gave_up=True),
            seen(count=6.0),
            "ok",
            state(count=6.0, alive_at=NOW),
            "nim-llama: answers again",
            id="traffic-again",
        ),
        pytest.param(
            IDLE,
            seen(probe=BAD),
            "wait",
            state(failures=1, suspect=True),
            f"{FAULT}: failure 1 of 3",
            id="first-failure",
        ),
        pytest.param(
            IDLE,
            seen(probe=BAD, count=6.0),
            "ok",
            state(count=6.0, alive_at=NOW),
            "",
            id="failure-while-others-are-served",
        ),
        pytest.param(
            state(failures=2, suspect=True),
            seen(probe=BAD),
            "restart",
            state(suspect=True, restarts=(NOW,)),
            f"{FAULT}: restarting (1 of 3 in an hour)",
            id="third-failure",
        ),
        pytest.param(
            state(failures=2, suspect=True, restarts=(NOW - 45,)),
            seen(probe=BAD),
            "wait",
            state(failures=3, suspect=True, restarts=(NOW - 45,)),
            f"{FAULT}: next restart in 15 s",
            id="back-off",
        ),
        pytest.param(
            state(failures=3, suspect=True, restarts=(NOW - 45,)),
            seen(probe=BAD),
            "wait",
            state(failures=3, suspect=True, restarts=(NOW - 45,)),
            "",
            id="back-off-is-told-once",
        ),
        pytest.param(
            state(failures=3, suspect=True, restarts=(NOW - 60,)),
            seen(probe=BAD),
            "restart",
            state(suspect=True, restarts=(NOW - 60, NOW)),
            f"{FAULT}: restarting (2 of 3 in an hour)",
            id="back-off-is-over",
        ),
        pytest.param(
            state(failures=3, suspect=True, restarts=(NOW - 180, NOW - 119)),
            seen(probe=BAD),
            "wait",
            state(failures=3, suspect=True, restarts=(NOW - 180, NOW - 119)),
            "",
            id="back-off-doubles",
        ),
        pytest.param(
            state(failures=2, suspect=True, restarts=(NOW - 900, NOW - 600, NOW - 300)),
            seen(probe=BAD),
            "give_up",
            state(failures=3, suspect=True, gave_up=True, restarts=(NOW - 900, NOW - 600, NOW - 300)),
            f"{FAULT}: gave up after 3 restarts in an hour; next: journalctl -u nim-llama -n 100",
            id="gives-up",
        ),
        pytest.param(
            state(failures=3, suspect=True, gave_up=True, restarts=(NOW - 900, NOW - 600, NOW - 300)),
            seen(probe=BAD),
            "give_up",
            state(failures=3, suspect=True, gave_up=True, restarts=(NOW - 900, NOW - 600, NOW - 300)),
            "",
            id="has-given-up-silently",
        ),
        pytest.param(
            state(failures=3, suspect=True, gave_up=True, restarts=(NOW - 3600, NOW - 600, NOW - 300)),
            seen(probe=BAD),
            "restart",
            state(suspect=True, restarts=(NOW - 600, NOW - 300, NOW)),
            f"{FAULT}: restarting (3 of 3 in an hour)",
            id="an-hour-later",
        ),
        pytest.param(
            state(failures=3, suspect=True, gave_up=True, restarts=(NOW - 9,)),
            seen(since=NOW - 5, count=0.0),
            "probe",
            state(since=NOW - 5, count=0.0, alive_at=NOW, suspect=True, restarts=(NOW - 9,)),
            "",
            id="another-start-is-looked-at-anew",
        ),
        pytest.param(
            IDLE,
            seen(ready=STARTING, since=NOW - 1800),
            "wait",
            state(since=NOW - 1800, alive_at=NOW),
            "",
            id="starting",
        ),
        pytest.param(
            state(suspect=True, failures=2),
            seen(ready=STARTING),
            "restart",
            state(suspect=True, restarts=(NOW,)),
            "nim-llama: starting: HTTP 503 from GET /v1/health/ready (loading), 49000 s after its start, wanted HTTP 200 within"
            " 1800 s: restarting (1 of 3 in an hour)",
            id="never-ready",
        ),
        pytest.param(
            state(suspect=True, failures=2),
            seen(ready=Answer("GET /v1/health/ready", 503, "The request queue is full.")),
            "ok",
            state(alive_at=NOW),
            "nim-llama: answers again",
            id="too-much-to-do-for-its-health",
        ),
        pytest.param(
            IDLE,
            seen(ready=REFUSED, count=None),
            "wait",
            state(failures=1, suspect=True),
            "nim-llama: unreachable: GET /v1/health/ready broke off (Connection refused), 49000 s after its start, wanted HTTP 200"
            " within 1800 s: failure 1 of 3",
            id="nothing-listens",
        ),
        pytest.param(
            IDLE, seen(ready=STARTING, count=6.0), "ok", state(count=6.0, alive_at=NOW), "", id="not-ready-but-serving"
        ),
    ],
)
def test_decide(before, look, action, after, line):
    assert watchdog.decide(before, look, OPTIONS, "llama", NOW) == watchdog.Verdict(action, after, line)


@pytest.mark.parametrize(("ready", "action"), [(READY, "ok"), (STARTING, "wait")])
def test_health_only_never_asks_for_a_completion(ready, action):
    verdict = watchdog.decide(IDLE, seen(ready=ready), {**OPTIONS, "probe": "health"}, "llama", NOW)
    assert verdict.action == action and bool(verdict.line) == (action == "wait")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"unknown": 1}'])
def test_unreadable_state_is_none(tmp_path, content):
    (tmp_path / "llama.json").write_text(content)
    assert watchdog.read_state(tmp_path / "llama.json") == State()


# -- whole runs --------------------------------------------------------------------------------------------------------

SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> {home}/calls
[ "$1" != show ] || cat {home}/unit
"""


class Host:
    """A host with one service, whose records and states are below a directory."""

    def __init__(self, home, capsys):
        self.home, self.capsys = home, capsys
        #: Seconds since its boot, whatever the machine's are. No time passes but by age().
        self.at = 10.0**6
        for folder in ("bin", "records", "states"):
            (home / folder).mkdir()
        (home / "bin/systemctl").write_text(SYSTEMCTL.format(home=home))
        (home / "bin/systemctl").chmod(0o755)
        self.unit()

    def now(self):
        """What its clock says."""
        return self.at

    def unit(self, active="active", ago=3600.0):
        """What systemd says of the unit."""
        entered = int((self.at - ago) * 1e6)
        (self.home / "unit").write_text(f"ActiveState={active}\nActiveEnterTimestampMonotonic={entered}\n")

    def record(self, url, model=MODEL, **changes):
        """The record of a deployment whose idle time is always over."""
        options = {**OPTIONS, "idle": 0, "timeout": 60, **changes}
        record = {"name": "llama", "url": url, "model": model, "watchdog": options}
        (self.home / "records/llama.json").write_text(json.dumps(record))

    def run(self):
        """One run: exit status and what was said."""
        code = watchdog.main("llama")
        return code, self.capsys.readouterr().out.strip()

    @property
    def restarts(self):
        """Calls of systemctl that were more than a question."""
        calls = self.home / "calls"
        return [
            line for line in (calls.read_text().splitlines() if calls.exists() else []) if not line.startswith("show")
        ]

    def age(self, seconds):
        """Let time pass."""
        self.at += seconds


@pytest.fixture
def host(tmp_path, monkeypatch, capsys):
    host = Host(tmp_path, capsys)
    monkeypatch.setattr(watchdog, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(watchdog, "STATES", tmp_path / "states")
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=host.now))
    monkeypatch.setattr(watchdog, "LEASES", tmp_path / "lock.d")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return host


class Counters:
    """Metrics whose counter grows by STEP with every look, as long as they are on."""

    def __init__(self, step):
        self.value, self.step = 0, step

    def __call__(self, _nim, handler, _body):
        self.value += self.step
        handler.send_body(200, "text/plain", f"vllm:generation_tokens_total{{}} {self.value}\n".encode())


DIES = {("POST", "/v1/chat/completions"): send(500, {"error": {"message": DEAD}})}
HANGS = {("POST", "/v1/chat/completions"): hang}


def test_idle_service_is_asked_for_one_token(host):
    with NimServer() as nim:
        host.record(nim.url)
        assert host.run() == (0, "")
    (asked,) = nim.asked("/v1/chat/completions")
    assert (asked["model"], asked["max_tokens"]) == (MODEL, 1)
    assert nim.asked("/v1/metrics") and nim.asked("/metrics")
    assert host.restarts == []


def test_record_without_a_model_asks_the_endpoint(host):
    with NimServer(models=["other"]) as nim:
        host.record(nim.url, model=None)
        assert host.run() == (0, "")
    assert nim.asked("/v1/chat/completions")[0]["model"] == "other"


@pytest.mark.parametrize("path", ["/v1/metrics", "/metrics"])
def test_service_with_traffic_is_not_asked(host, path):
    with NimServer(replies={("GET", path): Counters(10)}) as nim:
        host.record(nim.url, idle=300)
        assert [host.run() for _ in range(3)] == [(0, "")] * 3
        assert nim.asked("/v1/chat/completions") == []
        # Without the counters only the time since the last growth counts.
        host.record(nim.url, idle=0)
        nim.replies[("GET", path)] = Counters(0)
        assert host.run() == (0, "")
        assert len(nim.asked("/v1/chat/completions")) == 1


def test_health_only(host):
    with NimServer(replies=DIES) as nim:
        host.record(nim.url, probe="health")
        assert [host.run() for _ in range(2)] == [(0, "")] * 2
    assert nim.asked("/v1/chat/completions") == []


def test_dead_engine_is_restarted_once(host):
    with NimServer(replies=DIES) as nim:
        host.record(nim.url)
        assert [host.run() for _ in range(3)] == [
            (0, f"{FAULT}: failure 1 of 3"),
            (0, f"{FAULT}: failure 2 of 3"),
            (0, f"{FAULT}: restarting (1 of 3 in an hour)"),
        ]
        assert host.restarts == ["try-restart --no-block nim-llama.service"]
        nim.replies.clear()
        # The new start is loading, and then it answers.
        host.unit("activating")
        assert host.run() == (0, "")
        host.unit(ago=5)
        nim.ready_at = time.monotonic() + 3600
        assert host.run() == (0, "")
        nim.ready_at = 0
        assert host.run() == (0, "nim-llama: answers again")
    assert len(host.restarts) == 1


def test_limit_is_kept(host):
    with NimServer(replies=DIES) as nim:
        host.record(nim.url, failures=1, limit=2)
        assert host.run() == (0, f"{FAULT}: restarting (1 of 2 in an hour)")
        code, said = host.run()
        assert (code, said[: len(FAULT)]) == (0, FAULT) and "next restart in 60 s" in said
        host.age(61)
        assert host.run() == (0, f"{FAULT}: restarting (2 of 2 in an hour)")
        given_up = f"{FAULT}: gave up after 2 restarts in an hour; next: journalctl -u nim-llama -n 100"
        assert [host.run() for _ in range(3)] == [(1, given_up), (1, ""), (1, "")]
        assert len(host.restarts) == 2
        nim.replies.clear()
        assert host.run() == (0, "nim-llama: answers again")


def test_engine_that_hangs_is_dead(host):
    with NimServer(replies=HANGS) as nim:
        host.record(nim.url, timeout=0.3)
        fault = f"nim-llama: dead_engine: no answer to {CHAT} within 0.3 s"
        assert host.run() == (0, f"{fault}: failure 1 of 3")


def test_engine_that_serves_others_meanwhile_lives(host):
    with NimServer(replies={**HANGS, ("GET", "/metrics"): Counters(0)}) as nim:
        host.record(nim.url, timeout=0.3)
        nim.replies[("POST", "/v1/chat/completions")] = lambda nim, *rest: (
            nim.replies.update({("GET", "/metrics"): Counters(5)}),
            hang(nim, *rest),
        )
        assert host.run() == (0, "")
    assert len(nim.asked("/v1/chat/completions")) == 1


def test_connection_that_breaks_is_a_failure(host):
    replies = {("POST", "/v1/chat/completions"): lambda _nim, handler, _body: handler.reset()}
    with NimServer(replies=replies) as nim:
        host.record(nim.url)
        code, said = host.run()
    assert (code, said) == (
        0,
        f"nim-llama: dead_engine: {CHAT} broke off (Connection reset by peer): failure 1 of 3",
    )


@pytest.mark.parametrize("status", [400, 401, 404, 429, 503])
def test_refusal_is_an_answer(host, status):
    with NimServer(replies={("POST", "/v1/chat/completions"): send(status, {"detail": "no"})}) as nim:
        host.record(nim.url, failures=1)
        assert host.run() == (0, "")


def test_an_engine_with_too_much_to_do_is_never_restarted(host):
    """Its readiness says so, its completions do, and its counters stand still: so many looks, and no restart."""

    def busy(_nim, handler, _body):
        handler.send_response(503)
        handler.send_header("Retry-After", "30")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    full = send(500, {"error": "[StatusCode.UNAVAILABLE] Exceeds maximum queue size"})
    for replies in ({("POST", "/v1/chat/completions"): busy}, {("POST", "/v1/chat/completions"): full}):
        for ready in ({}, {("GET", "/v1/health/ready"): busy}):
            with NimServer(replies={**replies, **ready, ("GET", "/metrics"): Counters(0)}) as nim:
                host.record(nim.url, failures=1, start_timeout=1)
                assert [host.run() for _ in range(4)] == [(0, "")] * 4
    assert host.restarts == []


def test_a_proxy_with_nothing_behind_it_is_a_failure(host):
    gone = send(502, "<html><center><h1>502 Bad Gateway</h1></center></html>")
    with NimServer(replies={("POST", "/v1/chat/completions"): gone}) as nim:
        host.record(nim.url, failures=1)
        code, said = host.run()
    assert code == 0 and "dead_engine: HTTP 502" in said and "restarting (1 of 3 in an hour)" in said


def test_start_is_waited_for_as_long_as_it_may_take(host):
    with NimServer(starting_for=3600) as nim:
        host.record(nim.url, failures=1)
        host.unit(ago=60)
        assert host.run() == (0, "")
        host.record(nim.url, failures=1, start_timeout=30)
        code, said = host.run()
    assert code == 0 and "wanted HTTP 200 within 30 s: restarting (1 of 3 in an hour)" in said
    assert nim.asked("/v1/chat/completions") == []


def test_nothing_listens(host, port):
    host.record(f"http://127.0.0.1:{port}")
    code, said = host.run()
    assert code == 0 and said.startswith("nim-llama: unreachable: GET /v1/health/ready broke off (Connection refused)")


@pytest.mark.parametrize("active", ["inactive", "failed", "activating", "deactivating"])
def test_unit_that_does_not_run_is_left_alone(host, active):
    with NimServer() as nim:
        host.record(nim.url)
        host.unit(active)
        assert host.run() == (0, "")
    assert nim.requests == [] and host.restarts == []


@pytest.mark.parametrize("record", [None, "", "{}", '{"name": "llama"}', '{"watchdog": {"enabled": false}}'])
def test_service_without_a_watchdog_is_left_alone(host, record):
    if record is not None:
        (host.home / "records/llama.json").write_text(record)
    assert host.run() == (0, "")
    assert not (host.home / "calls").exists() and not list((host.home / "states").iterdir())


# -- beside a run that changes the host --------------------------------------------------------------------------------

RUN = {"run": "a" * 16, "name": "gpu01", "user": "alice", "controller": "deploy1", "machine": "m1", "pid": 4711,
       "started": "99", "playbook": "upgrade.yml", "job": "AWX job 42"}  # fmt: skip


def lease(host, ttl=60, services=(), **changes):
    """The host as a run of Ansible has it."""
    leases = _lease.Leases(str(host.home / "lock.d"))
    held, _before = leases.take(RUN, ttl, services, (), ())
    path = host.home / "lock.d" / f"{RUN['run']}.json"
    path.write_text(json.dumps({**held, **changes}))
    return leases, held["since"]


def test_service_that_a_run_replaces_is_not_restarted(host):
    leases, since = lease(host, services=["llama"])
    with NimServer(replies=DIES) as nim:
        host.record(nim.url, failures=2)
        assert host.run() == (0, f"{FAULT}: failure 1 of 2")
        who = f"alice on deploy1 changes it (upgrade.yml, AWX job 42) since {since}"
        assert [host.run() for _ in range(3)] == [(0, f"{FAULT}: no restart while {who}"), (0, ""), (0, "")]
        assert host.restarts == []
        leases.release(RUN["run"])
        assert host.run() == (0, f"{FAULT}: restarting (1 of 3 in an hour)")
    assert len(host.restarts) == 1


def test_engine_that_answers_again_meanwhile_is_left_alone(host):
    leases, _since = lease(host, services=["llama"])
    with NimServer(replies=DIES) as nim:
        host.record(nim.url, failures=1)
        assert "no restart while" in host.run()[1]
        nim.replies.clear()
        assert host.run() == (0, "nim-llama: answers again")
        leases.release(RUN["run"])
        assert host.run() == (0, "")
    assert host.restarts == []


def test_service_whose_files_are_half_replaced_is_not_restarted(host):
    lease(host)
    unit = host.home / "nim-llama.service"
    unit.write_text("old")
    with NimServer(replies=DIES) as nim:
        host.record(nim.url, failures=1)
        path = host.home / "records/llama.json"
        files = {str(unit): hashlib.sha256(b"old").hexdigest()}
        path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
        for change in (lambda: unit.write_text("new"), unit.unlink):
            change()
            assert "no restart while alice" in host.run()[1] or host.run() == (0, "")
            assert host.restarts == []
        unit.write_text("old")
        assert host.run() == (0, f"{FAULT}: restarting (1 of 3 in an hour)")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"services": ["embed"]}, id="another service"),
        pytest.param({"services": []}, id="weights are staged"),
        pytest.param({"services": ["llama"], "boot": "of another boot"}, id="before the boot"),
        pytest.param({"services": ["llama"], "seen": -(10.0**9)}, id="silent"),
        pytest.param({"services": ["llama"], "ttl": "long"}, id="no lease"),
        pytest.param({"services": ["llama"], "seen": None}, id="no lease either"),
    ],
)
def test_other_runs_keep_no_dead_engine_dead(host, changes):
    lease(host, **changes)
    with NimServer(replies=DIES) as nim:
        host.record(nim.url, failures=1)
        assert host.run() == (0, f"{FAULT}: restarting (1 of 3 in an hour)")
    assert len(host.restarts) == 1


def test_rubbish_beside_leases_is_passed_over(host):
    (host.home / "lock.d").mkdir()
    for number, text in enumerate(("", "[]", "{", '{"run": 1}', "\xff")):
        (host.home / "lock.d" / f"{number}.json").write_bytes(text.encode("latin-1"))
    with NimServer(replies=DIES) as nim:
        host.record(nim.url, failures=1)
        assert "restarting" in host.run()[1]
