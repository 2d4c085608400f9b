# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_benchmark against real local servers. Times are only compared with what the server is known to take at least."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import ssl
import subprocess
import threading
import time
import uuid

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _job
from ansible_collections.baremetal.nim.plugins.modules import nim_benchmark
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, NimServer, chunks, send, send_stream, sse
from ansible_collections.baremetal.nim.tests.unit.steady_server import MODEL as STEADY
from ansible_collections.baremetal.nim.tests.unit.steady_server import steady

CHAT = ("POST", "/v1/chat/completions")
NOBODY = "http://127.0.0.1:9"
KEY = "sk-topsecret-topsecret"


@pytest.fixture
def call(capsys):
    """Runs the module; returns its result."""

    def run(url, check_mode=False, **args):
        common = {"url": url, "request_timeout": 5, "output_tokens": 4, "input_tokens": 32}
        with (
            patch_module_args({**common, **args, "_ansible_check_mode": check_mode}),
            pytest.raises(SystemExit) as caught,
        ):
            nim_benchmark.main()
        result = json.loads(capsys.readouterr().out)
        assert caught.value.code == (1 if result.get("failed") else 0)
        return result

    return run


@pytest.fixture
def warned(monkeypatch):
    """What the module warns of; beside the controller's code, Ansible shows that and returns it not."""
    texts = []
    monkeypatch.setattr(nim_benchmark.AnsibleModule, "warn", lambda _module, text: texts.append(text))
    return texts


def after(count, reply):
    """A chat reply that keeps to the contract so many times, and then is another."""
    left = [count]

    def answer(nim, handler, body):
        left[0] -= 1
        (send_stream(sse(chunks())) if left[0] >= 0 else reply)(nim, handler, body)

    return answer


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_closed_loop(call):
    with steady(ttft=0.05, itl=0.01) as url:
        result = call(url, concurrency=[1, 8], requests=16)
    assert not result["changed"] and not result["waiting"] and result["failure_class"] is None
    assert (result["model"], result["phase"], result["url"]) == (STEADY, "done", url)
    assert result["environment"]["definitions"] == "aiperf"
    one, eight = result["steps"]
    for step in (one, eight):
        assert (step["load"], step["requests"], step["completed"], step["errors"]) == ("closed", 16, 16, {})
        assert (step["output_tokens"], step["output_tokens_mean"], step["tokens_from"]) == (64, 4.0, "usage")
        # The server counts words; the module learned that from its answers.
        assert step["input_tokens_mean"] == 32
        assert step["ttft_ms"]["min"] > 49.5
        assert step["e2e_ms"]["min"] > 79.5
        # However late a busy machine reads them: four tokens are three pauses after the first one.
        rest = step["e2e_ms"]["mean"] - step["ttft_ms"]["mean"]
        assert step["itl_ms"]["mean"] == step["tpot_ms"]["mean"]
        # Answers that such a machine reads in one piece have no pause to be counted.
        assert step["itl_ms"]["mean"] >= rest / 3 - 0.1
        assert step["requests_per_s"] == pytest.approx(16 / step["duration_s"], rel=0.001)
        assert step["output_tokens_per_s"] == pytest.approx(64 / step["duration_s"], rel=0.001)
    # One after another.
    assert one["duration_s"] > 16 * 0.08


@pytest.mark.parametrize(
    ("load", "together", "requests"), [({"concurrency": [8]}, 8, 16), ({"request_rate": [400]}, 12, 12)]
)
def test_requests_do_not_wait_for_one_another(call, load, together, requests):
    """Nobody gets an answer until so many have asked."""
    meeting = threading.Barrier(together, timeout=60)

    def meet(_nim, handler, _body):
        meeting.wait()
        handler.send_stream(sse(chunks()))

    args = {"requests": requests, "warmup_requests": 0, "prompts": ["hello"], "request_timeout": 60, **load}
    with NimServer(replies={CHAT: after(1, meet)}) as nim:
        (step,) = call(nim.url, **args)["steps"]
    assert (step["completed"], step["failed_requests"]) == (requests, 0)


def test_open_loop(call):
    with steady(ttft=0.1) as url:
        result = call(url, request_rate=[40], requests=40, seed=3)
    (step,) = result["steps"]
    assert (step["load"], step["level"], step["completed"]) == ("open", 40, 40)
    assert 0 <= step["late_ms"]["min"] <= step["late_ms"]["p50"]


def test_duration_ends_a_step(call):
    with steady(ttft=0.02) as url:
        result = call(url, concurrency=[2], duration=0.5, warmup_requests=0)
    assert 2 <= result["steps"][0]["completed"] <= 60


def test_what_is_sent(call):
    with NimServer() as nim:
        result = call(nim.url + "/v1", concurrency=[2], requests=3, warmup_requests=2, extra_body={"top_k": 1}, seed=9)
        bodies = nim.asked("/v1/chat/completions")
    # Two to learn the length of a prompt, two to warm up, three that count.
    assert len(bodies) == 7
    assert [body["max_tokens"] for body in bodies] == [1, 1, 4, 4, 4, 4, 4]
    for body in bodies:
        assert (body["model"], body["stream"], body["stream_options"]) == (MODEL, True, {"include_usage": True})
        assert (body["ignore_eos"], body["min_tokens"], body["top_k"]) == (True, body["max_tokens"], 1)
    assert len({body["messages"][0]["content"] for body in bodies}) == 7
    # This server answers with two tokens, whatever it is asked for.
    assert result["workload"]["fixed_output"] is False


def test_given_prompts(call):
    with NimServer() as nim:
        call(nim.url, concurrency=[1], requests=3, warmup_requests=0, prompts=["one", "two"])
        texts = [body["messages"][0]["content"] for body in nim.asked("/v1/chat/completions")]
    assert sorted(set(texts)) == ["one", "two"] and len(texts) == 4


def test_a_strict_server_is_asked_without_its_extensions(call, warned):
    def strict(nim, handler, body):
        if "ignore_eos" in body:
            handler.send_json(422, {"detail": "extra fields not permitted"})
        else:
            send_stream(sse(chunks()))(nim, handler, body)

    with NimServer(replies={CHAT: strict}) as nim:
        result = call(nim.url, concurrency=[1], requests=2)
    assert result["workload"]["fixed_output"] is False
    assert "refuses ignore_eos" in warned[0]


def test_without_usage_chunks_are_counted_and_told(call, warned):
    with NimServer(replies={CHAT: send_stream(sse(chunks()[:-1]))}) as nim:
        result = call(nim.url, concurrency=[1], requests=2)
    (step,) = result["steps"]
    assert (step["tokens_from"], step["output_tokens"], step["input_tokens_mean"]) == ("chunks", 4, None)
    assert any("sends no usage" in text for text in warned)


# -- options -----------------------------------------------------------------------------------------------------------


def test_check_mode_asks_nothing(call):
    with NimServer() as nim:
        result = call(nim.url, check_mode=True)
        assert nim.requests == []
    assert result["skipped"] and not result["changed"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"concurrency": [1], "request_rate": [1]}, "mutually exclusive: concurrency|request_rate"),
        ({"concurrency": []}, "concurrency is empty"),
        ({"request_rate": [-1]}, "request_rate has -1"),
        ({"duration": -5, "requests": 0}, "duration is -5, it must be above 0; requests is 0"),
        ({"baseline": {}, "baseline_file": "x"}, "mutually exclusive: baseline|baseline_file"),
        ({"gates": [{"metric": "speed"}]}, "speed"),
        ({"slo": {"ttft": 1}}, "ttft"),
        ({"max_wait": 1}, "run_id"),
        ({"client_key": "x"}, "client_cert"),
        ({"baseline_file": "/nonexistent.json"}, "/nonexistent.json"),
    ],
)
def test_bad_options(call, args, words):
    result = call(NOBODY, **args)
    assert result["failed"] and words in result["msg"], result["msg"]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_nobody_listens(call):
    result = call(NOBODY)
    assert (result["failure_class"], result["steps"]) == ("unreachable", [])
    assert f"no connection to {NOBODY} (Connection refused)" in result["msg"] and "Start the service" in result["msg"]
    assert result["next_command"] == f"curl -sS {NOBODY}/v1/models"


def test_wrong_model(call):
    with NimServer() as nim:
        result = call(nim.url, model="other")
        assert nim.asked("/v1/chat/completions") == []
    assert result["failure_class"] == "wrong_model"


def test_a_key_opens_and_is_masked(call):
    with NimServer(api_key=KEY) as nim:
        result = call(nim.url, api_key=KEY, concurrency=[1], requests=1)
        assert not result.get("failed") and KEY not in json.dumps(result)
        refused = call(nim.url, api_key="sk-other-key-of-somebody", concurrency=[1], requests=1)
    assert refused["failure_class"] == "auth"
    assert "sk-other-key" not in json.dumps(refused)
    assert "$API_KEY" in refused["next_command"]


def test_a_server_that_dies_in_the_middle(call):
    def dead(_nim, handler, _body):
        handler.reset()

    with NimServer(replies={CHAT: after(20, dead)}) as nim:
        result = call(nim.url, concurrency=[4, 8], requests=500)
        asked = len(nim.asked("/v1/chat/completions"))
    assert result["failed"] and result["failure_class"] == "dead_engine"
    # The other step has not begun, and nobody was hammered.
    (step,) = result["steps"]
    assert step["aborted"] and step["completed"] == 14 and step["ttft_ms"] is not None
    assert step["errors"]["dead_engine"]["count"] == step["failed_requests"] < 40
    assert asked < 100
    assert "broke off" in result["msg"] and result["evidence"]


def test_a_server_whose_process_is_killed(call):
    with steady(ttft=0.02, dies_after=40) as url:
        result = call(url, concurrency=[4], duration=600)
    assert result["failure_class"] in ("unreachable", "dead_engine")
    (step,) = result["steps"]
    assert step["completed"] > 0 and step["aborted"] and step["errors"]["unreachable"]["count"] > 0
    assert result["elapsed"] < 300


def test_requests_that_are_refused(call):
    refuse = send(429, {"error": {"message": "Too many requests"}})
    with NimServer(replies={CHAT: after(6, refuse)}) as nim:
        result = call(nim.url, concurrency=[1], requests=10)
    assert result["failure_class"] == "overloaded"
    assert "Too many requests" in result["msg"]


def test_some_failures_may_be_allowed(call):
    once = [True]

    def flaky(nim, handler, body):
        if len(nim.requests) > 8 and once:
            once.clear()
            handler.send_json(500, {"error": {"message": "EngineCore"}})
        else:
            send_stream(sse(chunks()))(nim, handler, body)

    with NimServer(replies={CHAT: flaky}) as nim:
        result = call(nim.url, concurrency=[1], requests=20, max_error_rate=0.1)
    (step,) = result["steps"]
    assert not result.get("failed") and step["errors"]["dead_engine"]["count"] == 1
    assert (step["completed"], step["error_rate"]) == (19, 0.05)


def test_a_slow_server(call):
    over = threading.Event()

    def hang(_nim, handler, _body):
        handler.send_stream(_slowly())

    def _slowly():
        yield from sse(chunks())[:2]
        over.wait()

    with NimServer(replies={CHAT: after(3, hang)}) as nim:
        result = call(nim.url, concurrency=[1], requests=2, request_timeout=2)
        over.set()
    assert result["failure_class"] == "slow"
    assert "no whole answer to POST /v1/chat/completions within 2 s" in result["msg"]


def test_a_benchmark_has_an_end(call):
    with steady(ttft=0.2) as url:
        result = call(url, concurrency=[1], duration=600, timeout=1)
    assert result["failure_class"] == "slow" and "did not end within 1 s" in result["msg"]
    assert result["elapsed"] < 300


def test_no_http(call):
    with NimServer(replies={CHAT: lambda _nim, handler, _body: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")}) as nim:
        result = call(nim.url, concurrency=[1], requests=1)
    assert result["failure_class"] == "bad_response" and "SSH-2.0" in result["msg"]


# -- judgement ---------------------------------------------------------------------------------------------------------


def test_gates_fail_the_task_with_the_numbers(call):
    with steady(ttft=0.05) as url:
        result = call(
            url,
            concurrency=[1, 2],
            requests=4,
            slo={"ttft_ms": 20},
            gates=[
                {"metric": "ttft_ms", "stat": "p50", "max": 20, "at": 2},
                {"metric": "goodput_per_s", "min": 1, "at": 1},
                {"metric": "error_rate", "max": 0},
            ],
        )
    assert result["failed"] and result["failure_class"] == "slow"
    seen = re.search(r"concurrency 2: ttft_ms p50 ([\d.]+), wanted at most 20", result["msg"])
    assert seen and float(seen[1]) >= 49.5, result["msg"]
    assert [entry["passed"] for entry in result["gates"]] == [False, False, True, True]
    assert [step["goodput_per_s"] for step in result["steps"]] == [0.0, 0.0]
    assert result["next_command"] == f"curl -sS {url}/v1/metrics"


def scaled(step, factor):
    """A step of an earlier run in which everything took FACTOR times as long."""
    slower = {
        name: {stat: number * factor for stat, number in value.items()}
        for name, value in step.items()
        if name.endswith("_ms") and value
    }
    rates = {name: value / factor for name, value in step.items() if name.endswith("_per_s") and value}
    return {**step, **slower, **rates}


def test_baseline(call, tmp_path):
    path = tmp_path / "before.json"
    args = {"concurrency": [1], "requests": 5, "warmup_requests": 0, "baseline_tolerance": 80}
    with steady(ttft=0.05, itl=0.01) as url:
        (before,) = call(url, **args)["steps"]
        # A hundred times as slow: no busy machine makes it as bad as that.
        path.write_text(json.dumps({"steps": [scaled(before, 100)]}))
        again = call(url, **args, baseline_file=str(path))
        assert not again.get("failed") and not any(line["regression"] for line in again["comparison"])
        worse = call(url, **args, baseline={"steps": [scaled(before, 0.01)]})
    assert worse["failure_class"] == "slow" and "worse than the baseline" in worse["msg"]
    lines = {(line["metric"], line["stat"]): line for line in worse["comparison"]}
    assert lines["ttft_ms", "p50"]["regression"] and lines["ttft_ms", "p50"]["change_percent"] > 100
    assert lines["requests_per_s", None]["regression"] and lines["requests_per_s", None]["change_percent"] < -80


# -- slices ------------------------------------------------------------------------------------------------------------


def job_path(run_id):
    return pathlib.Path(_job.Job(run_id).path)


def test_slices(call):
    run_id = uuid.uuid4().hex
    with steady(ttft=0.05) as url:
        args = {"concurrency": [1, 4], "requests": 40, "run_id": run_id}
        seen = [call(url, **args, max_wait=0.4)]
        assert seen[0]["waiting"] and job_path(run_id).stat().st_mode & 0o777 == 0o700
        while seen[-1]["waiting"]:
            seen.append(call(url, **args, max_wait=0.4, resume={**seen[-1]["resume"], "elapsed": 1.0}))
    phases = {result["phase"] for result in seen}
    assert phases & {"concurrency 1", "concurrency 4"} and seen[-1]["phase"] == "done"
    assert any("requests" in result["history"][-1]["detail"] for result in seen[:-1])
    assert [step["level"] for step in seen[-1]["steps"]] == [1, 4]
    # Slices did not interrupt it.
    assert [step["completed"] for step in seen[-1]["steps"]] == [40, 40]
    assert not job_path(run_id).exists()


def test_a_slice_whose_answer_was_lost_starts_nothing_twice(call):
    run_id = uuid.uuid4().hex
    with NimServer() as nim:
        call(nim.url, concurrency=[1], requests=3, run_id=run_id, max_wait=0.01)
        result = call(nim.url, concurrency=[1], requests=3, run_id=run_id, max_wait=20)
        assert len(nim.asked("/v1/models")) == 1
    assert result["steps"][0]["completed"] == 3


def test_the_key_is_in_no_file(call):
    run_id = uuid.uuid4().hex
    with NimServer(api_key=KEY) as nim:
        args = {"concurrency": [1], "duration": 3, "run_id": run_id, "api_key": KEY}
        files = {}
        while "status" not in files:
            assert call(nim.url, **args, max_wait=0.3)["waiting"]
            for path in job_path(run_id).iterdir():
                # The job replaces files meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    files[path.name] = path.read_text()
            assert KEY not in json.dumps(files)
        assert not call(nim.url, **args, max_wait=20).get("failed")


def test_a_killed_benchmark_is_told(call):
    run_id = uuid.uuid4().hex
    with steady(ttft=0.05) as url:
        args = {"concurrency": [1], "duration": 30, "run_id": run_id}
        assert call(url, **args, max_wait=0.5)["waiting"]
        lock = str(job_path(run_id) / "lock")
        pid = next(
            int(path.name)
            for path in pathlib.Path("/proc").glob("[0-9]*")
            if path.name != str(os.getpid()) and lock in _open_files(path)
        )
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        result = call(url, **args, max_wait=5)
    assert result["failed"] and "was killed" in result["msg"]
    assert not job_path(run_id).exists()


def _open_files(process):
    found = set()
    with contextlib.suppress(OSError):
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(entry.readlink()))
    return found


def test_nobody_looks_any_more(call, monkeypatch):
    monkeypatch.setattr(_job, "LEASE", 0.5)
    run_id = uuid.uuid4().hex
    with steady(ttft=0.05) as url:
        assert call(url, concurrency=[1], duration=30, run_id=run_id, max_wait=0.3)["waiting"]
        for _ in range(600):
            if not job_path(run_id).exists():
                break
            time.sleep(0.1)
    assert not job_path(run_id).exists()


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Paths of a certificate with its key, for 127.0.0.1, and of another."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-subj", "/CN=nim", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
        command += ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
        subprocess.run(command, check=True, capture_output=True)
    return {path.name: str(path) for path in folder.iterdir()}


def test_tls(call, tls):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls["server.crt"], tls["server.key"])
    args = {"concurrency": [2], "requests": 4}
    with NimServer(tls=context) as nim:
        assert call(nim.url, ca_path=tls["server.crt"], **args)["steps"][0]["completed"] == 4
        assert call(nim.url, validate_certs=False, **args)["steps"][0]["completed"] == 4
        wrong = call(nim.url, ca_path=tls["other.crt"], **args)
        broken = call(
            nim.url, ca_path=tls["server.crt"], client_cert=tls["other.crt"], client_key=tls["server.key"], **args
        )
    assert (wrong["failure_class"], broken["failure_class"]) == ("tls", "tls")
    assert "Set ca_path" in wrong["msg"] and "certificates cannot be used" in broken["msg"]
    with NimServer() as plain:
        assert call("https" + plain.url[4:], **args)["failure_class"] == "tls"
