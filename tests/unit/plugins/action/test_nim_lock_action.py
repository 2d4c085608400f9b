# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of nim_lock, with a host made up: what it asks of it, and when it asks nothing."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.baremetal.nim.plugins.action import nim_cache, nim_lock, nim_verify
from ansible_collections.baremetal.nim.plugins.plugin_utils import _run, _slices

ME = {"run": "a" * 16, "name": "gpu01"}
HELD = {
    "held": True,
    "stale": False,
    "waiting": False,
    "run": ME["run"],
    "token": "t1",
    "boot": "b1",
    "at": 100.0,
    "changed": False,
}
OTHER = {"run": "b" * 16, "machine": "elsewhere", "pid": 1, "started": "1"}


class Controller:
    """Runs an action plugin; what it sends to the host is kept."""

    def __init__(self, monkeypatch):
        self.at, self.sent, self.commands, self.lines = 1000.0, [], [], []
        self.connection = Mock()
        self.connection._shell.remove = lambda path: f"rm -f {path}"
        clock = SimpleNamespace(monotonic=lambda: self.at, sleep=lambda _seconds: None)
        for module in (nim_lock, _slices):
            monkeypatch.setattr(module, "time", clock)
            monkeypatch.setattr(
                module,
                "Display",
                lambda: SimpleNamespace(
                    display=lambda line, stderr: self.lines.append(line), warning=self.lines.append
                ),
            )
        monkeypatch.setattr(_run, "identity", lambda _variables: dict(ME))

    def run(self, *slices, plugin=nim_lock, check_mode=False, variables=None, rc=0, **args):
        task = Mock(args=args, async_val=0, check_mode=check_mode, no_log=False, action="x")
        action = plugin.ActionModule(
            task=task,
            connection=self.connection,
            play_context=Mock(),
            loader=Mock(),
            templar=Mock(),
            shared_loader_obj=None,
        )
        left = list(slices)

        def execute(_self, module_name, module_args, task_vars):
            self.sent.append(dict(module_args))
            return dict(left.pop(0))

        def command(text):
            if isinstance(rc, Exception):
                raise rc
            self.commands.append(text)
            return {"rc": rc, "stdout": "", "stderr": "no such luck"}

        action._low_level_execute_command = command
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_slices.ActionBase, "_execute_module", execute)
            result = action.run(None, {"inventory_hostname": "gpu01", **(variables or {})})
        assert not left
        return result


@pytest.fixture
def controller(monkeypatch):
    return Controller(monkeypatch)


def test_first_task_asks_the_host_once(controller):
    result = controller.run(HELD, services=["llama"])
    assert result["held"] and result["asked"] == 1000.0
    assert len(controller.sent) == 1
    sent = controller.sent[0]
    assert (sent["holder"], sent["seen"], sent["own"], sent["services"]) == (ME, None, "", ["llama"])
    assert (sent["dead"], sent["alive"]) == ([], [])
    assert controller.lines == []


def test_later_tasks_ask_nobody(controller):
    first = controller.run(HELD)
    controller.at += 599
    second = controller.run(variables={"__nim_lock": first})
    assert second["held"] and not second["stale"] and len(controller.sent) == 1


def test_after_a_long_silence_it_asks_again(controller):
    first = controller.run(HELD)
    controller.at += 601
    controller.run(HELD, variables={"__nim_lock": {**first, "stale": True}})
    assert controller.sent[1]["own"] == "t1"
    controller.at += 21
    controller.run(HELD, variables={"__nim_lock": first}, ttl=60)
    assert len(controller.sent) == 3


@pytest.mark.parametrize(
    ("read", "asks"),
    [
        pytest.param({"boot": "b1", "at": 101.0, "holder": {"run": ME["run"]}}, False, id="read since, still held"),
        pytest.param({"boot": "b1", "at": 99.0, "holder": None}, False, id="read before it was taken"),
        pytest.param({"boot": "b1", "at": 101.0, "holder": None}, True, id="lapsed"),
        pytest.param({"boot": "b1", "at": 101.0, "holder": OTHER}, True, id="another has it"),
        pytest.param({"boot": "b2", "at": 5.0, "holder": None}, True, id="rebooted"),
    ],
)
def test_a_read_of_the_host_tells_that_it_is_gone(controller, read, asks):
    held = {**HELD, "asked": 1000.0}
    controller.run(*([HELD] * asks), variables={"__nim_lock": held, "preflight_host": {"lock": read}})
    assert len(controller.sent) == asks
    if asks:
        assert controller.sent[0]["seen"] == read


def test_what_another_run_registered_is_not_this_runs(controller):
    """Facts may be cached."""
    controller.run(HELD, variables={"__nim_lock": {**HELD, "run": "c" * 16, "asked": 1000.0}})
    assert len(controller.sent) == 1 and controller.sent[0]["own"] == ""


def test_a_check_asks_nobody(controller):
    result = controller.run(check_mode=True)
    assert not result["held"] and not result["stale"] and controller.sent == []


def test_waits_and_tells_for_whom(controller):
    words = "waits for bob on awx-7 (pid 20, site.yml) since 2026-11-23 17:47:12 UTC"
    wait = {"waiting": True, "held": False, "stale": False, "holder": OTHER, "phase": "waiting", "stage": "waiting",
            "history": [{"phase": "waiting", "stage": "waiting", "detail": words}], "resume": {"elapsed": 0.0}}  # fmt: skip
    result = controller.run(wait, wait, HELD)
    assert result["held"]
    assert controller.lines == [f"gpu01: lock {words}, 0 s of 600 s", "gpu01: lock taken"]


@pytest.fixture
def process():
    """Another process of this machine."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def lease_of(pid):
    """The lease of the run that such a process is."""
    return {"run": "d" * 16, "machine": _run.machine(), "pid": pid, "started": _run.started(pid)}


def test_a_run_of_this_controller_that_is_there(controller, process):
    controller.run(HELD, variables={"preflight_host": {"lock": {"holder": lease_of(process.pid)}}})
    assert (controller.sent[0]["dead"], controller.sent[0]["alive"]) == ([], ["d" * 16])


def test_a_run_of_this_controller_that_was_killed(controller, process):
    lease = lease_of(process.pid)
    process.kill()
    process.wait()
    controller.run(HELD, variables={"preflight_host": {"lock": {"holder": lease}}})
    assert (controller.sent[0]["dead"], controller.sent[0]["alive"]) == (["d" * 16], [])


def test_a_run_that_ends_while_it_is_waited_for(controller, process):
    lease = lease_of(process.pid)
    process.kill()
    process.wait()
    wait = {"waiting": True, "holder": lease, "phase": "waiting", "history": [], "resume": {"elapsed": 0.0}}
    controller.run(wait, HELD)
    assert [sent["dead"] for sent in controller.sent] == [[], ["d" * 16]]


def test_nothing_is_known_of_runs_of_other_controllers(controller, process):
    lease = {**lease_of(process.pid), "machine": "elsewhere"}
    controller.run(HELD, variables={"preflight_host": {"lock": {"holder": lease}}})
    assert (controller.sent[0]["dead"], controller.sent[0]["alive"]) == ([], [])


def test_gives_back_what_it_has_by_a_plain_command(controller):
    result = controller.run(state="released", variables={"__nim_lock": {**HELD, "asked": 1000.0}})
    assert result["given_back"] and not result["held"]
    assert controller.commands == [f"rm -f /run/nim/lock.d/{ME['run']}.json"] and controller.sent == []


def test_gives_back_nothing_that_it_has_not(controller):
    for registered in (
        {},
        {"__nim_lock": {"held": False}},
        {"__nim_lock": {**HELD, "run": "c" * 16}},
        {"__nim_lock": {"skipped": True}},
    ):
        result = controller.run(state="released", variables=registered)
        assert not result["given_back"] and controller.commands == [] and controller.sent == []


@pytest.mark.parametrize("rc", [1, AnsibleConnectionFailure("gone")])
def test_a_host_that_cannot_be_given_back_is_no_failure(controller, rc):
    result = controller.run(state="released", variables={"__nim_lock": HELD}, rc=rc)
    assert not result["given_back"] and not result.get("failed")
    assert "gpu01 was not given back" in controller.lines[0]


@pytest.mark.parametrize("plugin", [nim_cache, nim_verify])
@pytest.mark.parametrize("held", [True, False])
def test_long_waits_are_signs_of_life(controller, plugin, held):
    done = {"waiting": False, "phase": "done", "history": [], "results": []}
    variables = {"__nim_lock": {**HELD, "held": held}}
    controller.run(done, plugin=plugin, variables=variables, name="llama", endpoints=[])
    assert controller.sent[0]["resume"].get("run") == (ME["run"] if held else None)
