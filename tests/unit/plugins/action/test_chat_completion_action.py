# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure
from ansible_collections.baremetal.nim.plugins.action import chat_completion
from ansible_collections.baremetal.nim.plugins.plugin_utils import _slices
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, NimServer
from ansible_collections.baremetal.nim.tests.unit.role_play import surroundings

URL = "http://127.0.0.1:8000"


def waiting(detail="HTTP 503", phase="starting", log="", **resume):
    """What a slice returns that ends before the endpoint is ready."""
    return {
        "waiting": True,
        "phase": phase,
        "history": [{"at": 0.0, "phase": phase, "detail": detail}],
        "last_log": log,
        "resume": {"elapsed": 0.0, "breaks": 0, **resume},
    }


DONE = {
    "waiting": False,
    "changed": False,
    "phase": "verified",
    "history": [{"at": 0.0, "phase": "ready", "detail": "HTTP 200"}, {"at": 0.1, "phase": "verified", "detail": "x"}],
    "ready_after": 38.6,
    "ttft": 0.043,
}
CRASHED = {"waiting": False, "failed": True, "phase": "starting", "history": [], "failure_class": "crash_loop"}
LOST = AnsibleConnectionFailure("ssh: connection timed out")


class Wait:
    """Runs the action plugin with slices made up: results are returned, exceptions raised, each after its time."""

    def __init__(self, monkeypatch):
        self.at = 1000.0
        self.lines = []
        self.sent = []
        self.connection = Mock()
        self.connection._shell.tmpdir = None
        monkeypatch.setattr(_slices, "time", SimpleNamespace(monotonic=lambda: self.at, sleep=self._sleep))
        monkeypatch.setattr(
            _slices, "Display", lambda: SimpleNamespace(display=lambda line, stderr: self.lines.append(line))
        )

    def _sleep(self, seconds):
        self.at += seconds

    def run(self, *slices, no_log=False, check_mode=False, **args):
        args = {"url": URL, "unit": "nim-llama.service", **args}
        task = Mock(
            args=args, async_val=0, check_mode=check_mode, no_log=no_log, action="baremetal.nim.chat_completion"
        )
        action = chat_completion.ActionModule(
            task=task,
            connection=self.connection,
            play_context=Mock(),
            loader=Mock(),
            templar=Mock(),
            shared_loader_obj=None,
        )
        left = list(slices)

        def execute(module_name, module_args, task_vars):
            assert module_name == "baremetal.nim.chat_completion"
            assert task_vars["inventory_hostname"] == "gpu01"
            self.sent.append(module_args)
            outcome = left.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome.get("waiting"):
                self.at += module_args["max_wait"]
            return dict(outcome)

        action._execute_module = execute
        result = action.run(task_vars={"inventory_hostname": "gpu01"})
        assert left == []
        # The arguments of the task stay as they were, for a loop or a retry.
        assert args.keys() & {"resume"} == set()
        return result


@pytest.fixture
def wait(monkeypatch):
    return Wait(monkeypatch)


def test_a_ready_endpoint_costs_one_call_and_no_line(wait):
    result = wait.run(DONE, model=MODEL)
    assert result == DONE
    assert wait.lines == []
    assert wait.sent == [
        {"url": URL, "unit": "nim-llama.service", "model": MODEL, "max_wait": 2.0, "resume": {"elapsed": 0.0}}
    ]


def test_slices_hand_over_what_they_saw(wait):
    result = wait.run(waiting(restarts=3, invocation_id="a"), waiting(restarts=3, invocation_id="a", breaks=1), DONE)
    assert [args["max_wait"] for args in wait.sent] == [2.0, 5.0, 5.0]
    assert [args["resume"] for args in wait.sent] == [
        {"elapsed": 0.0},
        {"elapsed": 2.0, "breaks": 0, "restarts": 3, "invocation_id": "a"},
        {"elapsed": 7.0, "breaks": 1, "restarts": 3, "invocation_id": "a"},
    ]
    assert (result["ready_after"], result["phase"], result["waiting"]) == (38.6, "verified", False)


def test_history_is_joined_without_the_seams(wait):
    result = wait.run(
        waiting("Connection refused", "unreachable"),
        waiting("Connection refused", "unreachable"),
        waiting("HTTP 503"),
        DONE,
    )
    assert [(entry["phase"], entry["detail"]) for entry in result["history"]] == [
        ("unreachable", "Connection refused"),
        ("starting", "HTTP 503"),
        ("ready", "HTTP 200"),
        ("verified", "x"),
    ]


def test_a_failure_ends_the_wait_at_once(wait):
    result = wait.run(waiting(), CRASHED)
    assert (result["failed"], result["failure_class"], len(wait.sent)) == (True, "crash_loop", 2)
    assert [entry["detail"] for entry in result["history"]] == ["HTTP 503"]
    # Ansible prints the failure itself.
    assert len(wait.lines) == 1


def test_a_module_that_fails_without_a_history_is_passed_on(wait):
    assert wait.run({"failed": True, "msg": "unsupported parameter"}) == {
        "failed": True,
        "msg": "unsupported parameter",
    }


def test_the_lines_of_a_wait(wait):
    wait.run(
        waiting("Connection refused", "unreachable"),
        waiting("HTTP 503", log="Loading weights 3/4"),
        DONE,
    )
    assert wait.lines == [
        "gpu01: nim-llama unreachable, Connection refused, 2 s of 1800 s",
        "gpu01: nim-llama starting, HTTP 503, 7 s of 1800 s; last log: Loading weights 3/4",
        "gpu01: nim-llama verified, ready after 39 s, first token after 0.043 s",
    ]


def test_without_a_unit_the_lines_name_the_url(wait):
    wait.run(waiting(), DONE, unit=None, timeout="60")
    assert wait.lines[0] == f"gpu01: {URL} starting, HTTP 503, 2 s of 60 s"


def test_a_line_that_changes_comes_every_ten_seconds_at_most(wait):
    wait.run(*[waiting(log=f"shard {number}") for number in range(13)], DONE)
    # Slices end at 2, 7, 12, 17, ... 62 s.
    assert [line.split("; last log: ")[1] for line in wait.lines[:-1]] == [
        "shard 0", "shard 2", "shard 4", "shard 6", "shard 8", "shard 10", "shard 12",
    ]  # fmt: skip


def test_a_line_that_does_not_change_is_repeated_once_a_minute(wait):
    wait.run(*[waiting(log="Loading weights")] * 25, DONE)
    assert [line.split(", ")[2].split(" s")[0] for line in wait.lines[:-1]] == ["2", "62", "122"]


def test_a_flapping_endpoint_does_not_flood_the_screen(wait):
    wait.run(*[waiting("Connection refused", "unreachable"), waiting("HTTP 503")] * 6, DONE)
    told = [line for line in wait.lines if "verified" not in line]
    assert len(told) <= 2 + 60 / 10


@pytest.mark.parametrize("args", [{"progress": False}, {"progress": "no"}, {"no_log": True}])
def test_silence(wait, args):
    wait.run(waiting(), waiting(), DONE, **args)
    assert wait.lines == []


@pytest.mark.parametrize("progress", [True, "yes", "nonsense"])
def test_progress_is_judged_as_the_module_does_or_left_to_it(wait, progress):
    wait.run(waiting(), DONE, progress=progress)
    assert len(wait.lines) == (2 if progress != "nonsense" else 0)


def test_max_wait_is_the_length_of_a_slice(wait):
    wait.run(waiting(), waiting(), DONE, max_wait=30)
    assert [args["max_wait"] for args in wait.sent] == [2.0, 30.0, 30.0]


def test_values_of_a_wrong_type_are_left_to_the_module(wait):
    wait.run({"failed": True}, timeout="soon", max_wait="long")
    assert (wait.sent[0]["timeout"], wait.sent[0]["max_wait"]) == ("soon", 2.0)


def test_a_lost_connection_costs_one_slice(wait):
    wait.connection._shell.tmpdir = "/tmp/ansible-gone"
    result = wait.run(waiting(restarts=3), LOST, {"unreachable": True, "msg": "away"}, waiting(restarts=3), DONE)
    assert result["phase"] == "verified"
    # What the first slice saw is not lost with the connection.
    assert [args["resume"].get("restarts") for args in wait.sent] == [None, 3, 3, 3, 3]
    assert wait.connection.reset.call_count == 2
    # A host that rebooted has no such folder any more.
    assert wait.connection._shell.tmpdir is None
    assert wait.lines[1] == "gpu01: nim-llama connection lost (ssh: connection timed out), trying again, 2 s of 1800 s"


def test_a_connection_that_cannot_be_reset_is_tried_again_all_the_same(wait):
    wait.connection.reset.side_effect = AnsibleConnectionFailure("still away")
    assert wait.run(LOST, DONE)["phase"] == "verified"


def test_a_host_that_stays_away_is_unreachable(wait):
    losses = _slices._LOSSES
    with pytest.raises(AnsibleConnectionFailure, match="timed out"):
        wait.run(waiting(), *[LOST] * (losses + 1))
    assert len(wait.sent) == losses + 2


def test_losses_count_only_in_a_row(wait):
    losses = _slices._LOSSES
    assert wait.run(*[LOST] * losses, waiting(), *[LOST] * losses, DONE)["phase"] == "verified"


def test_a_lost_connection_after_the_timeout_is_final(wait):
    with pytest.raises(AnsibleConnectionFailure):
        wait.run(waiting(), LOST, timeout=2)


def test_a_refused_login_is_final(wait):
    with pytest.raises(AnsibleAuthenticationFailure):
        wait.run(AnsibleAuthenticationFailure("Permission denied"))


def test_an_interrupt_gets_through(wait):
    with pytest.raises(KeyboardInterrupt):
        wait.run(waiting(), KeyboardInterrupt())


def test_check_mode_is_one_call(wait):
    skipped = {"skipped": True, "changed": False, "msg": "Check mode"}
    assert wait.run(skipped, check_mode=True) == skipped
    assert len(wait.sent) == 1


def test_a_task_from_end_to_end(tmp_path):
    """The module with all it needs reaches the host, in slices, and its lines are read while it still waits."""
    seen = threading.Event()

    def ready(_nim, handler, _body):
        # Ready once the reader of a pipe has seen that it is not.
        handler.send_json(200 if seen.is_set() else 503, {})

    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    environment = {
        # Nothing that tells Python not to buffer.
        **surroundings(tmp_path),
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(Path(chat_completion.__file__).parents[5]),
    }
    with NimServer(replies={("GET", "/v1/health/ready"): ready}) as nim:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "ansible", "adhoc", "gpu01", "-i", "gpu01,", "-c", "local",
                "-e", f"ansible_python_interpreter={sys.executable}",
                "-m", "baremetal.nim.chat_completion",
                "-a", json.dumps({"url": nim.url, "model": MODEL, "timeout": 600}),
            ],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        told = []
        for line in process.stdout:
            told.append(line)
            if " starting, HTTP 503, " in line:
                seen.set()
        code = process.wait()
    text = "".join(told)
    assert code == 0, text
    assert f"gpu01: {nim.url} starting, HTTP 503, " in text
    assert f"gpu01: {nim.url} verified, ready after " in text
    assert '"content": "ready"' in text
