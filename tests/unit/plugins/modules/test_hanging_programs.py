# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules whose programs and file systems do not answer: each ends, in its time, with what did not and the next command."""

from __future__ import annotations

import json
import os
import time

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _command
from ansible_collections.baremetal.nim.plugins.modules import (
    docker_credential_helper,
    nim_cache,
    nim_deployment,
    nim_prune,
    nim_share,
    nvidia_kernel_module,
)

#: Of one copy.
PASSWORD = {"password": "of-this-copy"}
HANGS = "#!/bin/sh\ntrap '' TERM\nwhile :; do /bin/sleep 1; done\n"


@pytest.fixture
def bin_dir(tmp_path, monkeypatch):
    """The only programs that there are, and nobody has time."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("USUAL_SECONDS", "CHANGE_SECONDS", "ENDLESS_SECONDS"):
        monkeypatch.setattr(_command, name, 0.5)
    monkeypatch.setattr(_command, "SECONDS", {})
    monkeypatch.setattr(_command, "_GRACE", 0.2)
    monkeypatch.setattr(_command, "job_seconds", lambda *_limits: 0.5)
    for module in (nim_cache, nim_prune, nim_share):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(
        AnsibleModule,
        "get_bin_path",
        lambda _self, name, *_args, **_options: str(folder / name) if (folder / name).exists() else None,
    )
    return folder


@pytest.fixture
def call(bin_dir, capsys):
    """Runs a module, which fails in its time; returns its message."""

    def run(module, **args):
        began = time.monotonic()
        with patch_module_args({**args, "_ansible_check_mode": False}), pytest.raises(SystemExit) as caught:
            module.main()
        text = capsys.readouterr().out
        assert caught.value.code == 1, text
        assert time.monotonic() - began < 40, text
        return json.loads(text)["msg"]

    return run


def program(folder, name, text=HANGS):
    """A program of the host; one that hangs unless it says something."""
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


CACHE = {"name": "llama", "image": "nvcr.io/nim/meta/llama:1", "repository": "nvcr.io/nim/meta/llama", "stage_key": "x"}


def cache(tmp_path):
    """Options of nim_cache for a cache of this user's."""
    return {**CACHE, "path": str(tmp_path / "cache"), "uid": os.getuid(), "gid": os.getgid(), "host_dir": str(tmp_path)}


def test_staging_whose_engine_hangs(call, bin_dir, tmp_path):
    program(bin_dir, "systemctl", "#!/bin/sh\necho Id=$4; echo LoadState=not-found\n")
    program(bin_dir, "du", "#!/bin/sh\necho 1\n")
    program(bin_dir, "docker")
    message = call(nim_cache, **cache(tmp_path))
    assert "docker does not answer: docker image did not answer within 0.5 s and was ended" in message


def test_staging_that_systemd_does_not_tell_of(call, bin_dir, tmp_path):
    """A second unit must not be started beside one that may run."""
    program(bin_dir, "systemctl")
    program(bin_dir, "systemd-run", f"#!/bin/sh\ntouch {tmp_path}/started\n")
    message = call(nim_cache, **cache(tmp_path))
    assert "whether nim-stage-llama.service runs is not known: systemctl show did not answer within 0.5 s" in message
    assert "Next: systemctl list-jobs" in message and not (tmp_path / "started").exists()


def sleepy(monkeypatch, name, path):
    """Lets a call of the system hang at a path."""
    real = getattr(os, name)
    monkeypatch.setattr(
        os,
        name,
        lambda where, *args, **options: (
            time.sleep(1234) if str(where).startswith(path) else real(where, *args, **options)
        ),
    )


def test_cache_on_a_server_that_is_gone(call, tmp_path, monkeypatch):
    sleepy(monkeypatch, "stat", str(tmp_path / "cache"))
    message = call(nim_cache, **cache(tmp_path))
    assert (
        f"cache {tmp_path}/cache (" in message and "no answer within 0.5 s, wanted a file system that works" in message
    )
    assert "Next: cat /proc/mounts" in message


def noted(folder):
    """What a host remembers of weights that it can share."""
    note = {"path": str(folder / "cache"), "key": "s", "share_key": "x", "image_reference": f"sha256:{'a' * 64}"}
    (folder / "nim/staged").mkdir(parents=True)
    (folder / "nim/staged/llama.json").write_text(json.dumps(note))


def test_sharing_from_a_server_that_is_gone(call, tmp_path, monkeypatch):
    noted(tmp_path)
    sleepy(monkeypatch, "stat", str(tmp_path / "cache"))
    message = call(nim_share, host_dir=str(tmp_path / "nim"), path=str(tmp_path / "cache"), share_key="x", **PASSWORD)
    assert "no answer within 0.5 s" in message and "Next: cat /proc/mounts" in message


def test_sharing_that_systemd_does_not_start(call, bin_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(nim_share, "RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(nim_share, "START", 0.2)
    (tmp_path / "cache").mkdir()
    noted(tmp_path)
    for name in ("systemctl", "systemd-run", "rsync"):
        program(bin_dir, name)
    message = call(nim_share, host_dir=str(tmp_path / "nim"), path=str(tmp_path / "cache"), share_key="x", **PASSWORD)
    assert "nim-share.service did not start: systemd-run did not answer within 0.5 s" in message
    assert message.endswith("Next: systemctl list-jobs")


def test_prune_that_an_engine_does_not_tell_of(call, bin_dir, tmp_path):
    """Nothing is removed that may be in use."""
    program(bin_dir, "systemctl", "#!/bin/sh\n")
    program(bin_dir, "docker")
    program(bin_dir, "dockerd")
    folders = {name: str(tmp_path / name) for name in ("cache_root", "host_dir", "unit_dir", "quadlet_dir")}
    message = call(nim_prune, services=[], **folders)
    assert message.startswith(
        "docker ps did not answer within 0.5 s and was ended; wanted to know what is in use. Nothing was removed."
    )
    assert "Next: systemctl status docker" in message


def test_prune_of_caches_on_a_server_that_is_gone(call, tmp_path, monkeypatch):
    sleepy(monkeypatch, "stat", str(tmp_path / "cache_root"))
    folders = {name: str(tmp_path / name) for name in ("cache_root", "host_dir", "unit_dir", "quadlet_dir")}
    message = call(nim_prune, services=[], **folders)
    assert "no answer within 0.5 s" in message and "Nothing was removed. Next: cat /proc/mounts" in message


def test_way_back_that_systemd_does_not_go(call, bin_dir, tmp_path):
    program(bin_dir, "systemctl")
    places = {f"{name}_path": str(tmp_path / name) for name in ("unit", "env", "record")}
    kept = tmp_path / "kept/llama"
    kept.mkdir(parents=True)
    for name, text in (
        ("unit", "[Service]\nTimeoutStopSec=80\n"),
        ("env", ""),
        ("record", '{"config_hash": "x", "verified": true}'),
    ):
        (kept / name).write_text(text)
    message = call(nim_deployment, name="llama", state="restored", copy_dir=str(tmp_path / "kept"), **places)
    assert (
        "nim-llama.service: systemctl daemon-reload failed: systemctl daemon-reload did not answer within 0.5 s"
        in message
    )
    assert message.endswith("Next: systemctl list-jobs")


def test_driver_that_nobody_may_touch_while_systemd_is_silent(call, bin_dir, tmp_path):
    (tmp_path / "sys/module/nvidia/holders").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/initstate").write_text("live\n")
    program(bin_dir, "systemctl")
    message = call(
        nvidia_kernel_module,
        state="unloaded",
        state_file=str(tmp_path / "stopped.json"),
        proc_root=str(tmp_path / "proc"),
        sys_root=str(tmp_path / "sys"),
    )
    assert "systemctl show did not answer within 0.5 s" in message and message.endswith("Nothing more was changed.")


def test_credential_helper_that_wants_a_passphrase(call, bin_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(_command.feed, "__defaults__", (0.5,))
    program(bin_dir, "docker-credential-vault")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {"nvcr.io": {"auth": "JG9hdXRodG9rZW46bnZhcGk="}}}))
    before = config.read_text()
    message = call(docker_credential_helper, registry="nvcr.io", helper="vault", path=str(config))
    assert "did not take the login of nvcr.io: docker-credential-vault store did not answer within 0.5 s" in message
    assert config.read_text() == before


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ((), 300),
        (("90",), 390),
        (("1min 30s", "2min"), 510),
        (("infinity",), 3900),
        (("1h 2min 3s 500ms",), 4023.5),
        (("soon",), 3900),
    ],
)
def test_jobs_of_systemd_have_the_time_that_their_units_have(limits, seconds):
    assert _command.job_seconds(*limits) == seconds
