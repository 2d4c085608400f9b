# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role ngc_registry without a host: its credential helper is a small script that keeps what it is told."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_role

SECRET = "nvapi-AbC-123"
AUTH = base64.b64encode(f"$oauthtoken:{SECRET}".encode()).decode()
HELPER = '#!/bin/sh\n[ "$1" != get ] || exec cat "$STORE"\ncat > "$STORE"\n'


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
        store = {"STORE": str(tmp_path / "store")}
        code, told = play_role(tmp_path, "ngc_registry", given, "-vvv", *args, environment=store)
        assert SECRET not in told and AUTH not in told
        return code, told, json.loads(config.read_text())

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
