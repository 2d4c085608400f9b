# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run on real files; the helper is a small script."""

from __future__ import annotations

import base64
import json
import os
import stat

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import docker_credential_helper

SECRET = "nvapi-AbC-123"
AUTH = base64.b64encode(f"$oauthtoken:{SECRET}".encode()).decode()
OTHER = {"auth": base64.b64encode(b"ci:token").decode()}
HELPER = """\
#!/bin/sh
# Keeps what it is told and gives it back; says no, and more than it should, when there is a file that tells it to.
[ ! -e "$0.deaf" ] || exit 0
[ "$1" != get ] || exec /bin/cat "$0.store"
/bin/cat > "$0.$1"
[ ! -e "$0.refuses" ] || { echo "gpg: no public key for $(/bin/cat "$0.$1")"; exit 1; }
[ ! -e "$0.garbles" ] || echo '{"ServerURL": "nvcr.io", "Username": "$oauthtoken", "Secret": "nvapi"}' > "$0.store"
"""


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """A helper's program on the PATH."""
    script = tmp_path / "bin/docker-credential-pass"
    script.parent.mkdir()
    script.write_text(HELPER)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return script


@pytest.fixture
def path(tmp_path):
    """Where the configuration is; its directory is not there yet."""
    return tmp_path / "root/.docker/config.json"


@pytest.fixture
def call(path, helper, tmp_path, capsys):
    def run(name="pass", check=False):
        args = {"registry": "nvcr.io", "helper": name, "path": str(path), "_ansible_tmpdir": str(tmp_path)}
        before = os.umask(0o022)
        try:
            with patch_module_args({**args, "_ansible_check_mode": check}), pytest.raises(SystemExit):
                docker_credential_helper.main()
        finally:
            os.umask(before)
        text = capsys.readouterr().out
        assert SECRET not in text and AUTH not in text
        return json.loads(text)

    return run


def put(path, config):
    """Writes the configuration as somebody else left it."""
    path.parent.mkdir(parents=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    path.chmod(0o600)


def test_new_file_is_roots_alone(call, path, helper):
    assert call()["changed"] and not call()["changed"]
    assert json.loads(path.read_text()) == {"credHelpers": {"nvcr.io": "pass"}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not helper.with_name("docker-credential-pass.store").exists()


def test_login_moves_into_the_helper(call, path, helper):
    put(path, {"auths": {"nvcr.io": {"auth": AUTH}, "ghcr.io": OTHER}, "detachKeys": "ctrl-e,e"})
    assert call()["changed"] and not call()["changed"]
    assert json.loads(path.read_text()) == {
        "auths": {"nvcr.io": {}, "ghcr.io": OTHER},
        "detachKeys": "ctrl-e,e",
        "credHelpers": {"nvcr.io": "pass"},
    }
    stored = json.loads(helper.with_name("docker-credential-pass.store").read_text())
    assert stored == {"ServerURL": "nvcr.io", "Username": "$oauthtoken", "Secret": SECRET}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_check_mode_touches_nothing(call, path, helper):
    put(path, {"auths": {"nvcr.io": {"auth": AUTH}}})
    before = path.read_text()
    assert call(check=True)["changed"] and path.read_text() == before
    assert not helper.with_name("docker-credential-pass.store").exists()


@pytest.mark.parametrize("check", [False, True])
def test_missing_program_is_told_before_anything_is_changed(call, path, check):
    put(path, {"auths": {"nvcr.io": {"auth": AUTH}}})
    before = path.read_text()
    result = call("secretservice", check=check)
    assert result["failed"] and "docker-credential-secretservice is not on this host" in result["msg"]
    assert path.read_text() == before


def test_helper_that_refuses_leaves_all_as_it_was(call, path, helper):
    helper.with_name("docker-credential-pass.refuses").touch()
    put(path, {"auths": {"nvcr.io": {"auth": AUTH}}})
    before = path.read_text()
    result = call()
    assert result["failed"] and "did not take the login of nvcr.io: gpg: no public key" in result["msg"]
    assert path.read_text() == before


@pytest.mark.parametrize("how", ["deaf", "garbles"])
def test_login_that_does_not_come_back_stays_where_it_was(call, path, helper, how):
    """A helper that ends well without having read what it was told has not taken it."""
    helper.with_name(f"docker-credential-pass.{how}").touch()
    put(path, {"auths": {"nvcr.io": {"auth": AUTH}}})
    before = path.read_text()
    result = call()
    assert result["failed"] and "did not take the login of nvcr.io: it does not give back" in result["msg"]
    assert path.read_text() == before


@pytest.mark.parametrize("text", ['{"auths": {', "[]", '{"auths": ["nvcr.io"]}', "\ufffd{"])
def test_what_docker_did_not_write_is_not_overwritten(call, path, text):
    put(path, text)
    result = call()
    assert result["failed"] and "is no valid configuration" in result["msg"]
    assert path.read_text() == text
