# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible_collections.baremetal.nim.plugins.plugin_utils import _run


@pytest.fixture
def books(monkeypatch):
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(args=("play/site.yml", "baremetal.nim.verify")))


def test_a_run_is_its_process(books):
    me = _run.identity({"inventory_hostname": "gpu01"})
    assert me == _run.identity({"inventory_hostname": "gpu01"})
    assert (me["name"], me["pid"], me["playbook"], me["job"]) == (
        "gpu01",
        os.getppid(),
        "site.yml, baremetal.nim.verify",
        "",
    )
    assert me["user"] and me["controller"] and len(me["run"]) == 16


def test_two_processes_are_two_runs():
    code = "from ansible_collections.baremetal.nim.plugins.plugin_utils import _run; print(_run.identity({})['run'])"
    # Each has a shell of its own for a parent.
    command = ["/bin/sh", "-c", f'{sys.executable} -c "{code}"; true']
    runs = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _number in range(2)}
    assert len(runs) == 2


def test_who_pressed_the_button(books):
    awx = {"awx_job_id": 42, "awx_user_name": "carol", "awx_job_template_name": "Site", "tower_job_id": 42}
    me = _run.identity(awx)
    assert (me["user"], me["job"]) == ("carol", "AWX job 42 Site")
    assert _run.job({"tower_job_id": "7"}) == ("AWX job 7", "")


def test_a_user_without_a_name(monkeypatch):
    for name in ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_uid):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert _run.user() == f"uid {os.getuid()}"
    monkeypatch.setenv("SUDO_USER", "dave")
    assert _run.user() == "dave"


def lease(pid, **changes):
    return {"machine": _run.machine(), "pid": pid, "started": _run.started(pid), **changes}


def test_this_process_is_there():
    assert _run.seen_from_here(lease(os.getpid())) == "alive"


def test_another_process_has_the_number_by_now():
    assert _run.seen_from_here(lease(os.getpid(), started="1")) == "dead"


def test_what_waits_for_its_parent_is_gone():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        told = lease(child.pid)
        assert _run.seen_from_here(told) == "alive"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert _run.seen_from_here(told) == "dead"
    assert _run.seen_from_here(told) == "dead"


@pytest.mark.parametrize(
    "told", [{}, {"machine": "elsewhere", "pid": 1}, *({**lease(1), "pid": pid} for pid in (0, None, -5, "1"))]
)
def test_of_others_nothing_is_known(told):
    assert _run.seen_from_here(told) == ""


def test_a_process_whose_beginning_is_hidden_may_be_there(monkeypatch):
    """As where /proc is mounted with hidepid."""
    told = lease(os.getpid())
    monkeypatch.setattr(_run, "started", lambda _pid: "")
    assert _run.seen_from_here(told) == ""


@pytest.mark.parametrize("stat", ["", "4711 (a b) c) S " + " ".join(map(str, range(4, 60))), "4711 (x) R 1"])
def test_beginning_of_a_process(monkeypatch, stat):
    monkeypatch.setattr(_run, "_text", lambda _path: stat)
    assert _run.started(4711) == ("22" if " S " in stat else "")


def test_who_has_a_host():
    assert _run.holder_of({"__nim_lock": {"held": True, "run": "r"}}) == "r"
    for registered in (
        {},
        {"__nim_lock": {"held": False, "run": "r"}},
        {"__nim_lock": {"skipped": True}},
        {"__nim_lock": "{{ x }}"},
    ):
        assert _run.holder_of(registered) == ""
