# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import threading
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _lease
from ansible_collections.baremetal.nim.plugins.modules import nim_lock

ALICE = {"run": "a" * 16, "name": "gpu01", "user": "alice", "controller": "deploy1", "machine": "m1", "pid": 4711,
         "started": "99", "playbook": "site.yml", "job": ""}  # fmt: skip
BOB = {**ALICE, "run": "b" * 16, "user": "bob", "controller": "awx-7", "machine": "m2", "pid": 20, "job": "AWX job 42"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(nim_lock, "POLL", 0.01)
    return tmp_path / "run/nim/lock.d"


@pytest.fixture
def call(folder, capsys):
    """Runs the module as a holder; returns its result."""

    def run(holder=ALICE, **args):
        with patch_module_args({"path": str(folder), "holder": holder, **args}), pytest.raises(SystemExit):
            nim_lock.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_takes_what_is_free_and_keeps_it(call, folder):
    first = call(services=["llama"])
    assert (first["held"], first["stale"], first["changed"], first["run"]) == (True, False, False, ALICE["run"])
    again = call(own=first["token"])
    assert (again["held"], again["token"]) == (True, first["token"])
    assert json.loads((folder / f"{ALICE['run']}.json").read_text())["services"] == ["llama"]


def test_waits_no_longer_than_told_and_says_who_has_it(call):
    call()
    result = call(BOB, timeout=0.2)
    assert result["failed"] and not result["held"]
    assert "another run changes this host: alice on deploy1 (pid 4711, site.yml) since " in result["msg"]
    assert "last sign of life 0 s ago. Wanted it alone, waited 0 s for it, and changed nothing." in result["msg"]
    assert f"-e nim_lock_take_over={ALICE['run']}" in result["msg"]
    assert result["holder"]["user"] == "alice"


def test_a_slice_ends_with_whom_it_waits_for(call):
    call()
    result = call(BOB, max_wait=0.05)
    assert (result["waiting"], result["held"], result["resume"]) == (True, False, {"elapsed": 0.0})
    assert result["history"][0]["detail"].startswith("waits for alice on deploy1 (pid 4711, site.yml) since 20")


def test_the_time_of_earlier_slices_counts(call):
    call()
    begin = time.monotonic()
    result = call(BOB, timeout=600, max_wait=5, resume={"elapsed": 599.9})
    assert result["failed"] and "waited 600 s" in result["msg"] and time.monotonic() - begin < 3


def test_has_it_as_soon_as_it_is_given_back(call, folder):
    call()
    threading.Timer(0.3, lambda: _lease.Leases(str(folder)).release(ALICE["run"])).start()
    result = call(BOB, timeout=30)
    assert result["held"] and result["stale"], "whoever had it may have changed anything"


def test_a_run_that_is_gone_is_not_waited_for(call):
    call()
    result = call(BOB, dead=[ALICE["run"]])
    assert result["held"] and result["stale"]


def test_a_run_that_the_operator_knows_to_be_gone(call):
    call()
    assert call(BOB, take_over=ALICE["run"])["held"]


def test_one_machine_by_two_names_is_refused_at_once(call):
    call()
    result = call({**ALICE, "name": "gpu01-alias"}, timeout=600)
    assert result["failed"]
    assert "this host is gpu01 too, which this very run changes since " in result["msg"]
    assert (
        "one machine by two names, wanted one of them" in result["msg"]
        and "Nothing was changed as gpu01-alias." in result["msg"]
    )


@pytest.mark.parametrize(
    ("read", "stale"),
    [
        pytest.param({"last": "", "holder": None}, True, id="read before the other came"),
        pytest.param({"last": "TOKEN", "holder": {"run": BOB["run"]}}, True, id="read while the other had it"),
        pytest.param({"last": "TOKEN", "holder": None}, False, id="read after the other had gone"),
        pytest.param(None, True, id="nobody knows when it was read"),
    ],
)
def test_tells_when_another_was_here_since_the_read(call, folder, read, stale):
    token = call(BOB)["token"]
    _lease.Leases(str(folder)).release(BOB["run"])
    result = call(seen=read and {**read, "last": read["last"].replace("TOKEN", token)})
    assert (result["held"], result["stale"]) == (True, stale)
    assert call(seen=read, own=result["token"])["stale"] is False, "it was told once"


def test_nobody_was_ever_here(call):
    assert call(seen={"last": "", "holder": None})["stale"] is False


def test_a_run_that_was_silent_for_too_long_does_not_go_on(call, folder, monkeypatch):
    mine = call(ttl=5)
    at = _lease.now()
    monkeypatch.setattr(_lease, "now", lambda: at + 6)
    call(BOB)
    _lease.Leases(str(folder)).release(BOB["run"])
    result = call(own=mine["token"], again=True)
    assert result["failed"] and "another run has had this host since it was last read" in result["msg"]
    assert call(BOB)["held"], "the host is not kept by a run that gave up"


def test_whoever_may_not_write_is_told(call, folder):
    folder.parent.parent.mkdir(parents=True)
    folder.parent.write_text("")
    result = call()
    assert result["failed"] and "wanted to write there as root. Nothing was changed." in result["msg"]
