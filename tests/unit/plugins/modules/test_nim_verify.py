# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_verify against real local servers; what it says of one endpoint is tested with chat_completion."""

from __future__ import annotations

import json
import threading

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _lease
from ansible_collections.baremetal.nim.plugins.modules import nim_verify
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, NimServer
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def call(capsys):
    """Runs the module; returns its result."""

    def run(*endpoints, check_mode=False, **args):
        common = {"timeout": PATIENCE, "request_timeout": PATIENCE, "poll_interval": 0.05}
        args = {"endpoints": [{**common, **endpoint} for endpoint in endpoints], **args}
        with patch_module_args({**args, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit) as caught:
            nim_verify.main()
        result = json.loads(capsys.readouterr().out)
        assert caught.value.code == (1 if result.get("failed") else 0)
        return result

    return run


def test_endpoints_are_verified_in_one_call(call):
    with NimServer() as one, NimServer() as two:
        result = call(
            {"name": "llama", "url": one.url}, {"name": "phi", "url": two.url, "prompt": "Hi", "probes": ["stream"]}
        )
        assert [body["stream"] for body in two.asked("/v1/chat/completions")] == [True]
    assert (result["changed"], result["waiting"]) == (False, False)
    assert [(item["name"], item["phase"], item["model"], item["failed"]) for item in result["results"]] == [
        ("llama", "verified", MODEL, False),
        ("phi", "verified", MODEL, False),
    ]


def test_endpoints_are_waited_for_side_by_side(call):
    """None is ready until all have been asked."""
    meeting = threading.Barrier(8, timeout=PATIENCE)

    def meet(_nim, handler, _body):
        meeting.wait()
        handler.send_json(200, {"message": "ready"})

    with NimServer(replies={("GET", "/v1/health/ready"): meet}) as nim:
        result = call(*({"name": str(number), "url": nim.url, "probes": ["health"]} for number in range(8)))
    assert [item["phase"] for item in result["results"]] == ["verified"] * 8


def test_one_that_fails_stops_nobody_and_is_told(call):
    with NimServer() as nim:
        result = call({"name": "gone", "url": NOBODY, "timeout": 0.3}, {"name": "llama", "url": nim.url})
    gone, llama = result["results"]
    assert result["failed"] and result["msg"] == gone["msg"]
    assert (gone["failure_class"], llama["phase"], llama["failed"]) == ("unreachable", "verified", False)


def test_every_failure_is_in_the_message(call):
    result = call({"name": "a", "url": NOBODY, "timeout": 0.2}, {"name": "b", "url": f"{NOBODY}1", "timeout": 0.2})
    assert len(result["msg"].splitlines()) == 2


def test_slices(call):
    """What is final stays so and is not asked again; what is not goes on where it was."""
    with NimServer() as nim:
        endpoints = [{"name": "llama", "url": nim.url}, {"name": "late", "url": NOBODY}]
        first = call(*endpoints, max_wait=0.2)
        asked = len(nim.asked("/v1/chat/completions"))
        assert (first["waiting"], first["results"][0]["phase"], first["results"][1]["waiting"]) == (
            True,
            "verified",
            True,
        )
        resume = {**first["resume"], "elapsed": PATIENCE - 0.1}
        last = call(*endpoints, max_wait=0.3, resume=resume)
        assert len(nim.asked("/v1/chat/completions")) == asked
    assert last["failed"] and not last["waiting"]
    llama, late = last["results"]
    assert llama == first["results"][0]
    assert late["failure_class"] == "unreachable" and late["elapsed"] > PATIENCE - 0.1


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ({"name": "llama"}, "endpoint llama: missing required arguments: url"),
        ({"url": NOBODY}, "endpoint (without a name): missing required arguments: name"),
        ({"name": "llama", "url": "h:1"}, "endpoint llama: url must be http:// or https://"),
        ({"name": "llama", "url": NOBODY, "timeout": 0}, "endpoint llama: timeout is 0"),
        ({"name": "llama", "url": NOBODY, "promt": "x"}, "promt"),
        ({"name": "llama", "url": NOBODY, "prompt": "x", "messages": []}, "mutually exclusive"),
        ({"name": "other", "url": NOBODY}, "endpoint other: is listed twice"),
    ],
)
def test_bad_options(call, endpoint, words):
    result = call({"name": "other", "url": NOBODY}, endpoint)
    assert result["failed"] and words in result["msg"], result


def test_a_key_is_masked(call):
    with NimServer() as nim:
        result = call({"name": "llama", "url": nim.url, "api_key": "sk-topsecret-topsecret"})
    assert "sk-topsecret" not in json.dumps(result)


def test_check_mode_asks_nothing(call):
    with NimServer() as nim:
        result = call({"name": "llama", "url": nim.url}, check_mode=True)
        assert nim.requests == []
    assert result["results"] == [{"name": "llama", "skipped": True}]


def test_no_endpoints(call):
    assert call()["results"] == []


def test_a_slice_is_a_sign_of_life_of_the_run_that_has_the_host(call, tmp_path, monkeypatch):
    monkeypatch.setattr(_lease, "FOLDER", str(tmp_path / "lock.d"))
    holder = {"run": "a" * 16, "name": "gpu01"}
    leases = _lease.Leases(str(tmp_path / "lock.d"))
    leases.take(holder, 60, [], (), ())
    seen = leases.state()["holder"]["seen"]
    call({"name": "llama", "url": NOBODY, "timeout": 0.1}, resume={"run": "b" * 16})
    assert leases.state()["holder"]["services"] == [], "it is not this run that has the host"
    call({"name": "llama", "url": NOBODY, "timeout": 0.1}, resume={"run": "a" * 16})
    held = leases.state()["holder"]
    assert held["services"] == ["llama"] and held["seen"] > seen
