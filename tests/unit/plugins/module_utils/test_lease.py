# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import concurrent.futures
import json
import os
import stat

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _lease
from hypothesis import given
from hypothesis import strategies as st

ALICE = {"run": "a" * 16, "name": "gpu01", "user": "alice", "controller": "deploy1", "machine": "m1", "pid": 4711,
         "started": "99", "playbook": "site.yml", "job": ""}  # fmt: skip
BOB = {**ALICE, "run": "b" * 16, "user": "bob", "controller": "awx-7", "machine": "m2", "pid": 20, "job": "AWX job 42"}


class Host:
    """A host whose clock and boot the test sets."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.at, self.boot = folder / "run/nim/lock.d", 1000.0, "boot-1"
        monkeypatch.setattr(_lease, "now", lambda: self.at)
        monkeypatch.setattr(_lease, "boot", lambda: self.boot)

    @property
    def leases(self):
        return _lease.Leases(str(self.folder))

    def take(self, holder, ttl=60, services=(), dead=(), alive=()):
        """Who holds the host then."""
        lease, _before = self.leases.take(holder, ttl, services, dead, alive)
        return lease

    def files(self):
        return sorted(path.name for path in self.folder.iterdir() if path.name.endswith(".json"))


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def test_nothing_is_held_where_nobody_was(host):
    assert host.leases.state() == {"holder": None, "last": "", "boot": "boot-1", "at": 1000.0}
    assert not host.folder.exists()
    assert not host.leases.renew(ALICE["run"]) and not host.leases.release(ALICE["run"])
    assert not host.folder.exists()


def test_the_first_has_it_and_the_second_learns_who(host):
    assert host.take(ALICE)["run"] == ALICE["run"]
    host.at += 30
    held = host.take(BOB)
    assert (held["run"], held["user"], held["pid"]) == (ALICE["run"], "alice", 4711)
    assert host.leases.state()["holder"]["run"] == ALICE["run"]
    assert host.files() == [f"{ALICE['run']}.json"]


def test_the_same_run_keeps_it(host):
    first = host.take(ALICE, services=["llama"])
    host.at += 50
    again = host.take(ALICE, services=["embed"])
    assert (again["token"], again["taken"], again["since"]) == (first["token"], 1000.0, first["since"])
    assert (again["seen"], again["services"]) == (1050.0, ["llama", "embed"])
    host.at += 50
    assert host.take(BOB)["run"] == ALICE["run"], "it gave a sign of life 50 s ago"


def test_a_silent_run_loses_it_only_to_another(host):
    mine = host.take(ALICE)
    host.at += 61
    assert host.leases.state()["holder"] is None
    assert host.take(ALICE)["token"] == mine["token"], "nobody was here meanwhile"
    host.at += 61
    theirs = host.take(BOB)
    assert theirs["run"] == BOB["run"] and host.files() == [f"{BOB['run']}.json"]
    assert not host.leases.renew(ALICE["run"]), "what was lost is not brought back by a sign of life"
    host.leases.release(BOB["run"])
    _mine, before = host.leases.take(ALICE, 60, (), (), ())
    assert before == theirs["token"] != mine["token"], "it can tell that somebody was here"


def test_a_dead_run_loses_it_at_once(host):
    host.take(ALICE)
    assert host.take(BOB, dead=[ALICE["run"]])["run"] == BOB["run"]


def test_a_silent_run_that_is_known_to_live_keeps_it(host):
    host.take(ALICE)
    host.at += 10**6
    assert host.take(BOB, alive=[ALICE["run"]])["run"] == ALICE["run"]
    assert host.take(BOB)["run"] == BOB["run"]


def test_one_machine_by_two_names_of_one_run(host):
    host.take(ALICE)
    held = host.take({**ALICE, "name": "gpu01-alias"})
    assert held["name"] == "gpu01"
    host.at += 10**6
    assert host.take({**ALICE, "name": "gpu01-alias"})["name"] == "gpu01", "the run is there: it asks"


def test_a_boot_ends_it(host):
    host.take(ALICE)
    host.boot, host.at = "boot-2", 5.0
    assert host.leases.state()["holder"] is None
    assert host.take(BOB)["run"] == BOB["run"] and host.files() == [f"{BOB['run']}.json"]


def test_a_sign_of_life(host):
    host.take(ALICE, services=["llama"])
    host.at += 59
    assert host.leases.renew(ALICE["run"], ["embed", "llama"])
    host.at += 59
    held = host.leases.state()["holder"]
    assert held["seen"] == 1059.0 and held["services"] == ["llama", "embed"]
    assert host.take(BOB)["run"] == ALICE["run"]


def test_what_is_given_back_is_free(host):
    token = host.take(ALICE)["token"]
    assert host.leases.release(ALICE["run"]) and not host.leases.release(ALICE["run"])
    state = host.leases.state()
    assert (state["holder"], state["last"]) == (None, token)
    assert host.take(BOB)["run"] == BOB["run"]


def test_only_root_reads_it(host, strict_umask):
    host.take(ALICE)
    for path in (host.folder.parent, host.folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in host.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 50000,
        '{"run": 5}',
        '{"run": "../../etc/passwd"}',
        json.dumps({**ALICE, "taken": "1", "seen": 1, "ttl": 1}),
        json.dumps({**ALICE, "taken": 1, "seen": True, "ttl": 1}),
        json.dumps({**ALICE, "taken": 1, "seen": 1, "ttl": 10**400}),
        json.dumps({**ALICE, "taken": 1, "seen": 1, "ttl": -1}),
        '{"run": "aaaaaaaaaaaaaaaa", "taken": NaN, "seen": 1, "ttl": 1}',
    ],
)
def test_what_is_no_lease_holds_nothing(host, text):
    host.folder.mkdir(parents=True)
    (host.folder / f"{ALICE['run']}.json").write_text(text)
    assert host.leases.state()["holder"] is None
    assert not host.leases.renew(ALICE["run"])
    assert host.take(BOB)["run"] == BOB["run"] and host.files() == [f"{BOB['run']}.json"]


def test_pipes_and_links_are_not_read(host, tmp_path):
    host.folder.mkdir(parents=True)
    os.mkfifo(host.folder / f"{ALICE['run']}.json")
    host.take(ALICE)
    (tmp_path / "elsewhere").write_text((host.folder / f"{ALICE['run']}.json").read_text())
    (host.folder / f"{ALICE['run']}.json").unlink()
    (host.folder / f"{ALICE['run']}.json").symlink_to(tmp_path / "elsewhere")
    assert host.leases.state()["holder"] is None


@given(st.text())
def test_any_text_is_read(text):
    assert _lease.parse(text) is None or _lease.parse(text)["run"]


def test_who_and_since_when(host):
    held = host.take(BOB)
    told = _lease.told({**held, "since": "2026-11-23 17:47:12 UTC"}, host.at + 750)
    assert told == (
        "bob on awx-7 (pid 20, site.yml, AWX job 42) since 2026-11-23 17:47:12 UTC, 12 min ago, last sign of life 12 min ago"
    )
    hostile = _lease.told({**held, "user": "a\x1b[2J\nb" + "c" * 500, "controller": "", "pid": 0}, host.at)
    assert "\x1b" not in hostile and "\n" not in hostile and len(hostile) < 400


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "0 s"), (5, "5 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")]
)
def test_span(seconds, words):
    assert _lease.span(seconds) == words


def test_of_many_at_once_one_has_it(tmp_path):
    leases = [_lease.Leases(str(tmp_path / "run/nim/lock.d")) for _number in range(16)]

    def ask(number):
        lease, _before = leases[number].take({**ALICE, "run": f"{number:016x}"}, 60, (), (), ())
        return lease["run"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
