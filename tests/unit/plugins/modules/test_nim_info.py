# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_info against real local servers that are no NIM, or half of one. tests/unit/lab has those that are one."""

from __future__ import annotations

import json
import re
import time

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _endpoint
from ansible_collections.baremetal.nim.plugins.modules import nim_info
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, NimServer, hang, send

PATHS = ("models", "metadata", "version", "manifest", "metrics")


@pytest.fixture
def call(capsys):
    """Runs the module; returns its result."""

    def run(url, check_mode=False, **args):
        args = {"url": url, "request_timeout": 60, **args, "_ansible_check_mode": check_mode}
        with patch_module_args(args), pytest.raises(SystemExit) as caught:
            nim_info.main()
        result = json.loads(capsys.readouterr().out)
        assert caught.value.code == (1 if result.get("failed") else 0)
        assert result.get("failed") or result["changed"] is False
        return result

    return run


def everywhere(reply):
    return {("GET", f"/v1/{name}"): reply for name in PATHS}


def test_what_is_missing_is_told_and_no_error(call):
    with NimServer(replies={("GET", "/v1/metrics"): send(404, {"detail": "Not Found"})}) as nim:
        result = call(nim.url + "/v1/", check_mode=True)
    assert (result["ready"], result["live"], result["model"], result["adapters"]) == (True, True, MODEL, [])
    assert [result[name] for name in PATHS[1:]] == [None] * 4
    assert result["responses"]["models"] == {"path": "/v1/models", "status": 200, "problem": None}
    assert {name: result["responses"][name] for name in PATHS[1:]} == {
        name: {"path": f"/v1/{name}", "status": 404, "problem": "HTTP 404 (Not Found)"} for name in PATHS[1:]
    }


def test_a_nim_that_starts(call):
    """The front of 2.x answers before its engine does."""
    with NimServer(starting_for=60, replies=everywhere(send(502, "<html><h1>502 Bad Gateway</h1></html>"))) as nim:
        result = call(nim.url)
    assert (result["ready"], result["live"], result["model"], result["models"]) == (False, True, None, None)
    assert result["responses"]["ready"] == {"path": "/v1/health/ready", "status": 503, "problem": "HTTP 503"}
    assert {result["responses"][name]["problem"] for name in PATHS} == {"HTTP 502"}


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (
            send(200, "num_requests_running 1\nnonsense\n"),
            "has no metrics of Prometheus: line 2: 'nonsense' is no metric",
        ),
        (send(200, {"detail": "no"}), 'has no metrics of Prometheus: line 1: \'{"detail": "no"}\' is no metric'),
        (send(500, {"error": {"message": "boom"}}), "HTTP 500 (boom)"),
        (lambda _nim, handler, _body: handler.reset(), "GET /v1/metrics broke off (Connection reset by peer)"),
    ],
)
def test_one_bad_answer_hides_nothing_else(call, reply, problem):
    with NimServer(metadata={"version": "2.0.5"}, replies={("GET", "/v1/metrics"): reply}) as nim:
        result = call(nim.url)
    assert (result["metrics"], result["metadata"]["version"], result["model"]) == (None, "2.0.5", MODEL)
    assert result["responses"]["metrics"]["problem"] == problem


def test_answers_that_hang_cost_their_time_once(call):
    def drip(nim, handler, _body):
        handler.send_stream(b"# still here\n" for _ in iter(lambda: nim.over.wait(0.1), True))

    replies = {**everywhere(hang), ("GET", "/v1/metrics"): drip}
    with NimServer(replies=replies) as nim:
        began = time.monotonic()
        result = call(nim.url, request_timeout=3)
        # One after another they take it five times.
        assert time.monotonic() - began < 4 * 3
    for name in PATHS:
        response = result["responses"][name]
        assert (response["status"], response["problem"]) == (None, f"no answer to GET /v1/{name} within 3 s")


def test_an_answer_without_end_is_cut(call, monkeypatch):
    monkeypatch.setattr(_endpoint, "_MOST", 2**20)

    def flood(_nim, handler, _body):
        handler.send_stream(b"#" * 65536 for _ in range(64))

    with NimServer(replies={("GET", "/v1/metrics"): flood}) as nim:
        result = call(nim.url)
    assert result["responses"]["metrics"]["problem"] == "is longer than 1 MiB"


@pytest.mark.parametrize(
    "reply",
    [send(200, "<html>Welcome to nginx!</html>"), send(200, {"status": "ok"}), send(200, "")],
    ids=["page", "another API", "nothing"],
)
def test_a_stranger(call, reply):
    replies = {**everywhere(reply), ("GET", "/v1/health/ready"): reply, ("GET", "/v1/health/live"): reply}
    with NimServer(replies=replies) as nim:
        result = call(nim.url)
    assert result["failure_class"] == "bad_response"
    assert "GET /v1/models" in result["evidence"][0] and len(result["evidence"]) == 4
    assert result["next_command"] == f"curl -sSi {nim.url}/v1/models"
    assert "See whether something other than a NIM answers at this address" in result["msg"]


def test_nobody(call):
    result = call("http://127.0.0.1:9")
    assert result["failure_class"] == "unreachable"
    assert re.fullmatch(
        r"\S+: http://127\.0\.0\.1:9: GET /v1/health/ready found no endpoint \(Connection refused\), wanted an answer of any "
        r"status\. Start the service, or correct host, port and firewall\. "
        r"Next: curl -sSi http://127\.0\.0\.1:9/v1/health/ready",
        result["msg"],
    )


def test_key(call):
    with NimServer(api_key="secret-key") as nim:
        refused, accepted = call(nim.url, api_key="wrong-key"), call(nim.url, api_key="secret-key")
    assert refused["failure_class"] == "auth"
    assert refused["next_command"] == f'curl -sSi -H "Authorization: Bearer $API_KEY" {nim.url}/v1/models'
    assert "wrong-key" not in refused["msg"]
    assert accepted["model"] == MODEL


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"url": "llm.example.com"}, "url must be http:// or https://"),
        ({"request_timeout": 0}, "request_timeout is 0, it must be above 0"),
        ({"ready_path": "health"}, "ready_path is 'health', it must begin with a slash"),
        ({"ca_path": "/nowhere/ca.pem"}, "ca_path /nowhere/ca.pem cannot be read"),
        ({"client_key": "/etc/hostname"}, "client_cert"),
    ],
)
def test_options(call, args, words):
    result = call(**{"url": "http://127.0.0.1:9", **args})
    assert result["failed"] and words in result["msg"]


def test_documentation_names_what_is_returned(call):
    documented = yaml.safe_load(nim_info.RETURN)
    with NimServer(replies={("GET", "/v1/metrics"): send(200, "num_requests_running 1\n")}) as nim:
        result = call(nim.url)
    given = set(result) - {"changed", "invocation"}
    assert given == {key for key, value in documented.items() if value["returned"] == "when the endpoint answers"}
    assert set(result["metrics"]) == set(documented["metrics"]["contains"]) == set(documented["metrics"]["sample"])
    assert set(result["models"][0]) == set(documented["models"]["contains"])
    assert set(call("http://127.0.0.1:9")) - {"failed", "msg", "invocation", "changed"} == {
        key for key, value in documented.items() if value["returned"] == "failure"
    }
