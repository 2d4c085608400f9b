# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of several endpoints in one wait; the slices themselves are tested with chat_completion."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.baremetal.nim.plugins.action import nim_verify
from ansible_collections.baremetal.nim.plugins.plugin_utils import _slices

ENDPOINTS = [
    {"name": "llama", "url": "http://127.0.0.1:8000", "unit": "nim-llama.service", "timeout": 1800},
    {"name": "far", "url": "http://10.0.0.9:8000"},
]


def starting(name, detail="HTTP 503"):
    return {"name": name, "waiting": True, "phase": "starting", "history": [{"phase": "starting", "detail": detail}]}


def done(name, ready_after=7.0):
    return {
        "name": name,
        "waiting": False,
        "failed": False,
        "phase": "verified",
        "ready_after": ready_after,
        "ttft": 0.043,
    }


def failed(name):
    return {"name": name, "waiting": False, "failed": True, "phase": "starting", "msg": f"{name} is down"}


@pytest.fixture
def wait(monkeypatch):
    """Runs the plugin with slices made up; returns its result, the lines it showed and what it sent."""

    def run(*slices, endpoints=ENDPOINTS, **args):
        at, lines, sent, left = [1000.0], [], [], list(slices)
        monkeypatch.setattr(_slices, "time", SimpleNamespace(monotonic=lambda: at[0], sleep=lambda _s: None))
        monkeypatch.setattr(
            _slices, "Display", lambda: SimpleNamespace(display=lambda line, stderr: lines.append(line))
        )
        task = Mock(args={"endpoints": endpoints, **args}, async_val=0, check_mode=False, no_log=False)
        connection = Mock()
        connection._shell.tmpdir = None
        action = nim_verify.ActionModule(
            task=task, connection=connection, play_context=Mock(), loader=Mock(), templar=Mock(), shared_loader_obj=None
        )

        def execute(module_name, module_args, task_vars):
            assert module_name == "baremetal.nim.nim_verify"
            sent.append(module_args)
            at[0] += module_args["max_wait"]
            results = left.pop(0)
            if isinstance(results, BaseException):
                raise results
            waiting = any(item["waiting"] for item in results)
            seen = {"resume": {"elapsed": 0.0, "endpoints": {"n": len(sent)}}} if waiting else {}
            return {
                "results": results,
                "waiting": waiting,
                "failed": any(item.get("failed") for item in results) and not waiting,
                **seen,
            }

        action._execute_module = execute
        return action.run(task_vars={"inventory_hostname": "gpu01"}), lines, sent

    return run


def test_endpoints_that_are_ready_cost_one_call_and_no_line(wait):
    result, lines, sent = wait([done("llama"), done("far")])
    assert (len(sent), lines, result["waiting"]) == (1, [], False)


def test_each_endpoint_has_its_own_lines(wait):
    _result, lines, sent = wait(
        [starting("llama"), starting("far", "Connection refused")],
        [done("llama"), starting("far", "Connection refused")],
        [done("llama"), done("far", 12.0)],
    )
    assert lines == [
        "gpu01: nim-llama starting, HTTP 503, 2 s of 1800 s",
        "gpu01: far starting, Connection refused, 2 s of 1800 s",
        "gpu01: nim-llama verified, ready after 7 s, first token after 0.043 s",
        "gpu01: far verified, ready after 12 s, first token after 0.043 s",
    ]
    assert sent[1]["resume"] == {"elapsed": 2.0, "endpoints": {"n": 1}}


def test_a_failed_endpoint_is_not_told_as_good(wait):
    result, lines, _sent = wait([starting("llama"), done("far")], [failed("llama"), done("far")])
    assert result["failed"]
    assert lines == ["gpu01: nim-llama starting, HTTP 503, 2 s of 1800 s"]


def test_a_lost_connection_is_told(wait):
    _result, lines, _sent = wait(AnsibleConnectionFailure("ssh: timed out"), [done("llama"), done("far")])
    assert len(lines) == 1 and "connection lost (ssh: timed out), trying again" in lines[0]


def test_the_wait_is_as_long_as_the_most_patient_endpoint(wait):
    plugin = nim_verify.ActionModule
    limits = [{"timeout": 60}, {"timeout": "4000"}, {}]
    assert plugin.limit(SimpleNamespace(timeout=plugin.timeout), {"endpoints": limits}) == 4000.0
    assert plugin.limit(SimpleNamespace(timeout=plugin.timeout), {"endpoints": []}) == 1800.0


def test_each_endpoint_has_the_history_of_all_slices(wait):
    def entry(at, phase, detail):
        return {"at": at, "phase": phase, "detail": detail}

    ready = [entry(0.1, "ready", "HTTP 200"), entry(0.2, "verified", "x answered")]
    far = [entry(6.0, "starting", "HTTP 503"), entry(9.0, "ready", "HTTP 200")]
    first = [
        {**done("llama"), "history": ready},
        {**starting("far"), "history": [entry(0.0, "unreachable", "refused"), entry(4.0, "starting", "HTTP 503")]},
    ]
    last = [{**done("llama"), "history": ready}, {**done("far"), "history": far}]
    result, *_ = wait(first, last)
    assert [part["history"] for part in result["results"]] == [
        ready,
        [
            entry(0.0, "unreachable", "refused"),
            entry(4.0, "starting", "HTTP 503"),
            entry(9.0, "ready", "HTTP 200"),
        ],
    ]
