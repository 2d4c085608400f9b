# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role ngc_registry without a host: its credential helper is a small script that keeps what it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

SECRET = "nvapi-AbC-123"
AUTH = base64.b64encode(f"$oauthtoken:{SECRET}".encode()).decode()
HELPER = '#!/bin/sh\ncat > "$STORE"\n'
#: A host that no task can reach: whatever needs a remote call fails.
AWAY = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_common_args": "-F /dev/null"}
HERE = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


@pytest.fixture
def play(tmp_path):
    """Runs the role; returns the exit status, what was told, and the configuration that there is then."""
    helper = tmp_path / "docker-credential-pass"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {"nvcr.io": {"auth": AUTH}}, "detachKeys": "ctrl-e,e"}))

    def run(engine, *args, **variables):
        given = {"preflight_host": {"engine": engine}, "__ngc_registry_config": str(config), **variables}
        (tmp_path / "vars.json").write_text(json.dumps(given))
        task = {"name": "baremetal.nim.ngc_registry"}
        book = [{"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.include_role": task}]}]
        (tmp_path / "play.yml").write_text(json.dumps(book))
        collections = next(
            os.path.abspath(path)
            for path in sys.path
            if (pathlib.Path(path) / "ansible_collections/baremetal/nim").is_dir()
        )
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-vvv", "-i", "gpu01,", "-e", "@vars.json", *args, "play.yml"],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "LC_ALL": "C.UTF-8",
                "STORE": str(tmp_path / "store"),
                "ANSIBLE_COLLECTIONS_PATH": collections,
                "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
                "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
                "ANSIBLE_INJECT_FACT_VARS": "false",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        told = done.stdout + done.stderr
        assert SECRET not in told and AUTH not in told
        return done.returncode, told, json.loads(config.read_text())

    return run


def test_helper_takes_the_login_over(play, tmp_path):
    code, told, config = play({}, ngc_registry_credential_helper="pass", **HERE)
    assert code == 0 and "changed=1 " in told, told
    assert config == {"auths": {"nvcr.io": {}}, "detachKeys": "ctrl-e,e", "credHelpers": {"nvcr.io": "pass"}}
    assert json.loads((tmp_path / "store").read_text())["Secret"] == SECRET


def test_helper_that_is_in_charge_needs_no_remote_call(play):
    engine = {"credential_helpers": {"nvcr.io": "pass"}}
    code, told, _config = play(engine, ngc_registry_credential_helper="pass", **AWAY)
    assert code == 0 and "changed=0 " in told, told


def test_helper_that_is_not_wanted_here_is_left_alone(play):
    code, told, _config = play({"credential_helpers": {"nvcr.io": "pass"}}, **AWAY)
    assert code == 0 and "changed=0 " in told, told


def test_new_helper_gets_the_login_though_another_has_it(play):
    """Told in check mode, as a login needs an engine."""
    digest = hashlib.sha256(b"$oauthtoken:nvapi-new").hexdigest()
    given = {"ngc_registry_api_key": "nvapi-new", "ngc_registry_credential_helper": "pass", **HERE}
    code, told, _config = play({"logins": {"nvcr.io": digest}}, "--check", **given)
    assert code == 0 and "Would log in to nvcr.io" in told and "changed=2 " in told, told


def test_missing_helper_is_told_before_anything_is_changed(play):
    code, told, config = play({}, ngc_registry_credential_helper="secretservice", **HERE)
    assert code == 2 and "docker-credential-secretservice is not on this host" in told, told
    assert config["auths"] == {"nvcr.io": {"auth": AUTH}}
