# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deployments that are kept and come back, on real files; systemctl is a small script that writes down what it is told."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import nim_deployment

IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
SYSTEMCTL = """\
#!/bin/sh
# Active unless told otherwise; fails the verb that it is told to.
echo "$@" >> "$0.calls"
[ "$1" != is-active ] || [ ! -e "$0.dead" ] || exit 3
[ "$(cat "$0.fails" 2>/dev/null)" != "$1" ] || { echo "Job for $2 failed." >&2; exit 1; }
"""


class Host:
    """A service as it lies on a host."""

    def __init__(self, root):
        self.root = root
        self.paths = {"unit": root / "nim-llama.service", "env": root / "llama.env", "record": root / "llama.json"}
        self.copy = root / "previous/llama"
        self.systemctl = root / "bin/systemctl"
        self.systemctl.parent.mkdir()
        self.systemctl.write_text(SYSTEMCTL)
        self.systemctl.chmod(0o755)

    def engine(self, name):
        """Lets another engine have the next deployment: the role removes the unit file of the one before."""
        self.paths["unit"].unlink(missing_ok=True)
        self.paths["unit"] = self.root / {"docker": "nim-llama.service", "podman": "nim-llama.container"}[name]

    def deploy(self, version, verified=True):
        """What the role writes: the files and, once it is verified, the record of them."""
        self.paths["unit"].write_text(f"ExecStart=nim-run {IMAGE}:{version}\n")
        self.paths["env"].write_text(f"VERSION={version}\n")
        if verified:
            sums = {
                str(self.paths[name]): hashlib.sha256(self.paths[name].read_bytes()).hexdigest()
                for name in ("unit", "env")
            }
            record = {"image": f"{IMAGE}:{version}", "config_hash": version, "files": sums, "verified": True}
            self.paths["record"].write_text(json.dumps(record))

    def version(self):
        """What lies in place."""
        return self.paths["env"].read_text()[8:].strip(), self.record()["config_hash"]

    def record(self):
        return json.loads(self.paths["record"].read_text())

    def calls(self):
        log = self.systemctl.with_name("systemctl.calls")
        return log.read_text().splitlines() if log.exists() else []

    def tell(self, what, text=""):
        self.systemctl.with_name(f"systemctl.{what}").write_text(text)


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return Host(tmp_path)


@pytest.fixture
def call(host, capsys):
    def run(state, check=False, **options):
        args = {
            "name": "llama",
            "state": state,
            "copy_dir": str(host.root / "previous"),
            "_ansible_tmpdir": str(host.root),
            **options,
        }
        args |= {f"{name}_path": str(path) for name, path in host.paths.items()}
        args |= {
            "unit_path": str(host.root / "nim-llama.service"),
            "quadlet_path": str(host.root / "nim-llama.container"),
        }
        with patch_module_args({**args, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            nim_deployment.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_what_works_is_kept_once(host, call):
    host.deploy("1")
    first, again = call("kept"), call("kept")
    assert (first["changed"], again["changed"]) == (True, False)
    assert first["kept"] and first["record"]["image"] == f"{IMAGE}:1"
    assert (host.copy / "env").read_text() == "VERSION=1\n"
    assert {path.stat().st_mode & 0o777 for path in host.copy.iterdir()} == {0o600}
    assert host.copy.stat().st_mode & 0o777 == 0o700
    assert host.calls() == []


def test_check_mode_touches_nothing(host, call):
    host.deploy("1")
    assert call("kept", check=True)["changed"] and not host.copy.exists()
    call("kept")
    host.deploy("2", verified=False)
    assert call("restored", check=True)["changed"]
    assert host.version() == ("2", "1")
    assert host.calls() == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda host: host.paths["record"].unlink(), id="never deployed"),
        pytest.param(lambda host: host.paths["record"].write_text("{"), id="record is broken"),
        pytest.param(lambda host: host.paths["env"].write_text("EDITED=1\n"), id="edited by hand"),
        pytest.param(lambda host: host.paths["unit"].unlink(), id="unit is gone"),
        pytest.param(
            lambda host: host.paths["record"].write_text(json.dumps({**host.record(), "verified": False})),
            id="not verified",
        ),
    ],
)
def test_what_is_not_known_to_work_is_not_kept(host, call, spoil):
    host.deploy("1")
    spoil(host)
    result = call("kept")
    assert (result["changed"], result["kept"], result["record"]) == (False, False, {})
    assert not host.copy.exists()


def test_upgrade_that_fails_comes_back(host, call):
    host.deploy("1")
    call("kept")
    host.deploy("2", verified=False)
    result = call("restored", failed_image=f"{IMAGE}:2", failed_reason="crash_loop:\n  died")
    assert result["changed"] and host.version() == ("1", "1")
    assert host.paths["env"].stat().st_mode & 0o777 == 0o600
    assert host.calls() == [
        "stop nim-llama.service",
        "reset-failed nim-llama.service",
        "daemon-reload",
        "enable nim-llama.service",
        "start nim-llama.service",
    ]
    (failed,) = host.record()["history"]
    assert (failed["image"], failed["verified"], failed["reason"]) == (f"{IMAGE}:2", False, "crash_loop: died")
    # What came back is kept again before the next attempt.
    assert call("kept")["kept"]


def test_killed_upgrade_still_has_its_way_back(host, call):
    host.deploy("1")
    call("kept")
    host.deploy("2", verified=False)
    # The play was killed here; the next one begins anew.
    result = call("kept")
    assert (result["changed"], result["kept"], result["record"]["image"]) == (False, True, f"{IMAGE}:1")
    assert (host.copy / "env").read_text() == "VERSION=1\n"


def test_copy_of_an_older_deployment_is_no_way_back_from_an_edited_one(host, call):
    host.deploy("1")
    call("kept")
    host.deploy("2")
    host.paths["env"].write_text("EDITED=1\n")
    assert not call("kept")["kept"]


def test_key_is_never_copied_and_never_taken_away(host, call):
    """A deployment that comes back serves with the key of today: the one it had may have been revoked since."""
    key = host.root / "llama.key"
    key.write_text("nvapi-old")
    host.deploy("1")
    call("kept")
    key.write_text("nvapi-new")
    host.deploy("2", verified=False)
    call("restored", failed_image=f"{IMAGE}:2")
    assert host.version() == ("1", "1") and key.read_text() == "nvapi-new"
    assert sorted(path.name for path in host.copy.iterdir()) == ["env", "record", "unit"]


def test_nothing_replaced_yet_means_nothing_to_do(host, call):
    """The disk was full when the first file was to be written."""
    host.deploy("1")
    call("kept")
    result = call("restored", failed_image=f"{IMAGE}:2")
    assert not result["changed"]
    assert host.calls() == ["is-active --quiet nim-llama.service"]
    host.tell("dead")
    assert call("restored")["changed"]


def test_on_demand_it_goes_back_and_forth(host, call):
    host.deploy("1")
    call("kept")
    host.deploy("2")
    assert call("restored", swap=True)["record"]["image"] == f"{IMAGE}:1"
    assert host.version() == ("1", "1")
    assert call("restored", swap=True)["record"]["image"] == f"{IMAGE}:2"
    assert host.version() == ("2", "2")


@pytest.mark.parametrize(("before", "after"), [("docker", "podman"), ("podman", "docker")])
def test_upgrade_to_another_engine_that_fails_comes_back(host, call, before, after):
    host.engine(before)
    host.deploy("1")
    call("kept")
    there = host.paths["unit"]
    host.engine(after)
    host.deploy("2", verified=False)
    assert call("restored")["changed"] and host.version() == ("1", "1")
    assert there.exists() and not host.paths["unit"].exists()
    verbs = [line.split()[0] for line in host.calls()]
    ends = ["daemon-reload", "enable", "start"] if before == "docker" else ["daemon-reload", "start"]
    assert verbs == ["stop", "disable", "reset-failed", *ends]
    # What came back is kept again before the next attempt.
    assert call("kept")["kept"]


def test_on_demand_it_goes_back_and_forth_between_engines(host, call):
    host.deploy("1")
    call("kept")
    host.engine("podman")
    host.deploy("2")
    docker, podman = host.root / "nim-llama.service", host.root / "nim-llama.container"
    for version, here, gone in (("1", docker, podman), ("2", podman, docker), ("1", docker, podman)):
        assert call("restored", swap=True)["record"]["image"] == f"{IMAGE}:{version}"
        assert host.version() == (version, version)
        assert here.read_text() == f"ExecStart=nim-run {IMAGE}:{version}\n" and not gone.exists()


def test_switch_that_was_cut_off_before_anything_was_written_heals(host, call):
    """The other engine's file is there already, that of the deployment not yet gone."""
    host.deploy("1")
    call("kept")
    (host.root / "nim-llama.container").write_text("[Container]\n")
    assert call("restored")["changed"] and not (host.root / "nim-llama.container").exists()


@pytest.mark.parametrize("lost", ["unit", "env", "record", None])
def test_no_way_back_is_told_and_nothing_is_touched(host, call, lost):
    host.deploy("1")
    if lost:
        call("kept")
        (host.copy / lost).unlink()
    host.deploy("2", verified=False)
    result = call("restored")
    assert result["failed"] and "no earlier deployment is kept in" in result["msg"] and "nim_services" in result["msg"]
    assert host.version() == ("2", "1")
    assert host.calls() == []


def test_unit_that_does_not_start_is_told(host, call):
    host.deploy("1")
    call("kept")
    host.deploy("2", verified=False)
    host.tell("fails", "start")
    result = call("restored")
    assert result["failed"] and "systemctl start failed: Job for nim-llama.service failed." in result["msg"]
    assert "journalctl -u nim-llama.service" in result["msg"]
    assert host.version() == ("1", "1")


def test_full_disk_is_told_before_anything_is_replaced(host, call, monkeypatch):
    host.deploy("1")

    def full(path, *_args, **_options):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(nim_deployment.os, "makedirs", full)
    result = call("kept")
    assert result["failed"] and "No space left on device" in result["msg"] and "df -h" in result["msg"]
    assert host.version() == ("1", "1")


def test_failed_upgrade_does_not_cost_the_way_back_before_it(host, call):
    host.deploy("1")
    call("kept")
    host.deploy("2")
    call("kept")
    host.deploy("3", verified=False)
    call("restored", failed_image=f"{IMAGE}:3", failed_reason="crash_loop")
    assert host.version() == ("2", "2")
    assert [path.name for path in host.copy.parent.iterdir()] == ["llama"]
    call("restored", swap=True)
    assert host.version() == ("1", "1")
    call("restored", swap=True)
    assert host.version() == ("2", "2")


def test_copy_that_was_put_aside_is_of_the_last_upgrade_only(host, call):
    for version in "1234":
        host.deploy(version)
        call("kept")
    assert json.loads((host.copy / "record").read_text())["config_hash"] == "4"
    before = host.copy.with_name("llama.before") / "record"
    assert json.loads(before.read_text())["config_hash"] == "3"


def test_same_deployment_kept_again_is_not_put_aside(host, call):
    host.deploy("1")
    call("kept")
    record = host.record()
    host.paths["record"].write_text(json.dumps({**record, "ready_after_s": 7}))
    assert call("kept")["changed"]
    assert not host.copy.with_name("llama.before").exists()


def test_a_lost_environment_comes_back_as_closed_as_it_was(host, call):
    """Also with the usual umask, under which a new file is for everybody to read."""
    host.deploy("1")
    call("kept")
    host.paths["env"].unlink()
    before = os.umask(0o022)
    try:
        assert call("restored")["changed"]
    finally:
        os.umask(before)
    assert host.paths["env"].stat().st_mode & 0o777 == 0o600
