# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_share with a real rsync daemon; systemd is played by scripts that start and stop it."""

from __future__ import annotations

import json
import os
import stat
import subprocess

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _share, _staged
from ansible_collections.baremetal.nim.plugins.modules import nim_share

PASSWORD = "p4ssw0rd-of-one-play"
IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
COMMANDS = {
    # Starts what stands behind "--" and leaves its process id, as the unit would.
    "systemd-run": 'while [ "$1" != -- ]; do shift; done; shift; setsid "$@" >/dev/null 2>&1 & echo $! > {lab}/pid',
    "systemctl": (
        "case $1 in is-active) [ -f {lab}/pid ] && echo active || echo inactive ;;"
        " stop) [ -f {lab}/pid ] || exit 0; pid=$(cat {lab}/pid); kill $pid 2>/dev/null; rm {lab}/pid;"
        # As systemd does, it comes back when the daemon is gone.
        " while [ -d /proc/$pid ] && ! grep -q '^State:.Z' /proc/$pid/status; do sleep 0.05; done ;; esac"
    ),
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A cache with staged weights, and programs that play systemd."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/log\n{body.format(lab=tmp_path)}\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(nim_share, "RUN_DIR", str(tmp_path / "run"))
    if os.getuid():
        # Only root may change its root directory.
        real = _share.daemon_config
        monkeypatch.setattr(_share, "daemon_config", lambda *args: real(*args).replace("chroot = yes", "chroot = no"))
    cache = tmp_path / "cache"
    (cache / "ngc").mkdir(parents=True)
    (cache / "ngc/blob").write_text("weights")
    note = {
        "path": str(cache),
        "share_key": "k1",
        "key": "s1",
        "image": f"{IMAGE}:1.8.6",
        "image_reference": f"{IMAGE}@sha256:{'a' * 64}",
        "bytes": 7,
    }
    (tmp_path / "nim/staged").mkdir(parents=True)
    (tmp_path / "nim/staged/llama.json").write_text(json.dumps(note))
    yield tmp_path
    subprocess.run([str(tmp_path / "bin/systemctl"), "stop", "nim-share.service"], check=False)


@pytest.fixture
def call(lab, port, capsys):
    """Runs the module; returns its result."""

    def run(check_mode=False, **args):
        args = {"path": str(lab / "cache"), "share_key": "k1", "password": PASSWORD, "port": port, **args}
        args = {"host_dir": str(lab / "nim"), **args}
        with patch_module_args({**args, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit):
            nim_share.main()
        text = capsys.readouterr().out
        log = (lab / "log").read_text() if (lab / "log").exists() else ""
        assert PASSWORD not in text + log
        return json.loads(text)

    return run


def copy(port, there):
    """What another host does."""
    there.mkdir(exist_ok=True)
    command = _share.copy_command("127.0.0.1", port, str(there), os.getuid(), os.getgid())
    return subprocess.run(command, input=f"{PASSWORD}\n", text=True, capture_output=True, check=False)


def test_serves_what_is_staged_until_told_otherwise(lab, call, port):
    result = call()
    assert (result["changed"], result["bytes"]) == (True, 7)
    for name in ("conf", "secrets"):
        assert stat.S_IMODE((lab / "run" / f"share.{name}").stat().st_mode) == 0o600
    done = copy(port, lab / "there")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (lab / "there").rglob("*") if path.is_file()] == ["blob"]
    assert call(state="absent")["changed"] is True
    assert list((lab / "run").iterdir()) == []
    assert copy(port, lab / "there").returncode != 0
    assert call(state="absent")["changed"] is False


@pytest.mark.parametrize(
    ("said", "warned"),
    [
        ("Failed to stop nim-share.service: Unit nim-share.service not loaded.", False),
        ("Failed to stop nim-share.service: Connection timed out", True),
    ],
)
def test_a_daemon_that_does_not_end_is_told(lab, call, monkeypatch, said, warned):
    told = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text: told.append(text))
    (lab / "bin/systemctl").write_text(f'#!/bin/sh\n[ "$1" = is-active ] || {{ echo "{said}" >&2; exit 5; }}\n')
    result = call(state="absent")
    assert result["changed"] is False
    assert [said in text for text in told] == [True] * warned


def test_an_earlier_daemon_makes_way(lab, call, port):
    call()
    (lab / "cache/ngc/blob").write_text("newer weights")
    call()
    assert copy(port, lab / "there").returncode == 0
    assert (lab / "there/ngc/blob").read_text() == "newer weights"


@pytest.mark.parametrize("note", [None, "{", '{"share_key": "k1"}'], ids=["none", "cut-off", "no-reference"])
def test_what_is_not_staged_is_not_served(lab, call, note):
    path = lab / "nim/staged/llama.json"
    # A word of the cache's own is none.
    (lab / "cache" / _staged.MARKER).write_text(path.read_text())
    path.unlink()
    if note:
        path.write_text(note)
    result = call()
    assert result["failed"] and "holds nothing that was staged, wanted the weights" in result["msg"]
    assert not (lab / "log").exists()


def test_another_identity_is_not_served(lab, call):
    result = call(share_key="k2")
    assert result["failed"] and f"holds {IMAGE}:1.8.6, wanted the weights" in result["msg"]
    assert not (lab / "log").exists()


def test_check_mode_starts_nothing(lab, call):
    assert call(check_mode=True)["changed"] is True
    assert not (lab / "log").exists() and not (lab / "run").exists()


def test_a_daemon_that_does_not_start(lab, call, monkeypatch):
    monkeypatch.setattr(nim_share, "START", 0.3)
    (lab / "bin/systemd-run").write_text("#!/bin/sh\nexit 0\n")
    result = call()
    assert result["failed"] and "nim-share.service did not start: nothing listens on port" in result["msg"]
    assert "Next: journalctl -u nim-share.service" in result["msg"]
    assert list((lab / "run").iterdir()) == []


def test_a_service_of_that_name_is_left_alone(lab, call):
    shown = (
        "Id=nim-share.service\\nLoadState=loaded\\nTransient=no\\nFragmentPath=/etc/systemd/system/nim-share.service\\n"
    )
    (lab / "bin/systemctl").write_text(f"#!/bin/sh\necho \"$@\" >> {lab}/calls\n[ $1 != show ] || printf '{shown}'\n")
    result = call()
    assert (
        result["failed"]
        and "nim-share.service is a unit of this host (/etc/systemd/system/nim-share.service)" in result["msg"]
    )
    assert call(state="absent")["changed"] is False
    assert {line.split()[0] for line in (lab / "calls").read_text().splitlines()} == {"show"}
    assert not (lab / "run").exists()
