# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logins of Docker's client, wherever they are kept."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _credentials

LOGIN = "$oauthtoken:nvapi-AbC:123"
AUTH = base64.b64encode(LOGIN.encode()).decode()
DIGEST = hashlib.sha256(LOGIN.encode()).hexdigest()


@pytest.mark.parametrize(
    ("config", "logins", "helpers"),
    [
        pytest.param({"auths": {"nvcr.io": {"auth": AUTH}}}, {"nvcr.io": DIGEST}, {}, id="auth"),
        pytest.param({"auths": {"nvcr.io": {}}}, {}, {}, id="logged-out"),
        pytest.param({"auths": {"nvcr.io": {"auth": ""}}}, {}, {}, id="empty-auth"),
        pytest.param({"auths": {"nvcr.io": {"auth": "bnZhcGk"}}}, {}, {}, id="auth-is-no-base64"),
        pytest.param({"auths": {"nvcr.io": {"auth": "bnZhcGk="}}}, {}, {}, id="auth-without-colon"),
        pytest.param({"auths": {"nvcr.io": {"auth": "//79"}}}, {}, {}, id="auth-is-no-text"),
        pytest.param({"auths": {"nvcr.io": {"auth": 1}}}, {}, {}, id="auth-is-a-number"),
        pytest.param({"auths": {"nvcr.io": "token", "b": {"auth": AUTH}}}, {"b": DIGEST}, {}, id="one-is-no-object"),
        pytest.param({"auths": None}, {}, {}, id="no-logins"),
        pytest.param({"auths": ["nvcr.io"], "credHelpers": "pass"}, {}, {}, id="lists-and-words"),
        pytest.param({"detachKeys": "ctrl-e,e"}, {}, {}, id="no-auths"),
        pytest.param({"credHelpers": {"nvcr.io": "pass"}}, {}, {"nvcr.io": "pass"}, id="helper"),
        pytest.param(
            {"auths": {"nvcr.io": {"auth": AUTH}, "b": {"auth": AUTH}}, "credHelpers": {"nvcr.io": "pass"}},
            {"b": DIGEST},
            {"nvcr.io": "pass"},
            id="helper-is-asked-before-the-file",
        ),
        pytest.param(
            {"auths": {"nvcr.io": {}, "b": {}}, "credsStore": "secretservice", "credHelpers": {"b": "pass"}},
            {},
            {"nvcr.io": "secretservice", "b": "pass"},
            id="common-helper",
        ),
        pytest.param({"credHelpers": {"nvcr.io": "../evil", "b": None}}, {}, {}, id="no-names-of-programs"),
    ],
)
def test_logins_and_helpers(config, logins, helpers):
    assert (_credentials.logins(config), _credentials.helpers(config)) == (logins, helpers)
    assert "nvapi" not in json.dumps(_credentials.logins(config))


@pytest.mark.parametrize("text", ["", '{"auths": {"nvcr.io": {"au', "[]", "null"])
def test_broken_file_has_no_logins(text):
    assert _credentials.parse(text) == {}


@pytest.mark.parametrize(
    ("text", "login"),
    [
        pytest.param(
            '{"ServerURL": "nvcr.io", "Username": "$oauthtoken", "Secret": "nvapi-AbC:123"}',
            ("$oauthtoken", "nvapi-AbC:123"),
            id="login",
        ),
        pytest.param('{"Username": "", "Secret": ""}', None, id="what-pass-says-of-none"),
        pytest.param("credentials not found in native keychain\n", None, id="what-others-say-of-none"),
        pytest.param('{"Username": "u"}', None, id="no-secret"),
        pytest.param("[]", None, id="list"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_answer_of_a_helper(text, login):
    assert _credentials.answer(text) == login


def test_digest_is_that_of_the_login():
    assert _credentials.digest(("$oauthtoken", "nvapi-AbC:123")) == DIGEST
    assert _credentials.stored({"auths": {"nvcr.io": {"auth": AUTH}}}, "nvcr.io") == ("$oauthtoken", "nvapi-AbC:123")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({}, {"credHelpers": {"nvcr.io": "pass"}}, id="empty"),
        pytest.param(
            {"auths": {"nvcr.io": {"auth": AUTH}, "b": {"auth": AUTH}}, "detachKeys": "ctrl-e,e"},
            {
                "auths": {"nvcr.io": {}, "b": {"auth": AUTH}},
                "detachKeys": "ctrl-e,e",
                "credHelpers": {"nvcr.io": "pass"},
            },
            id="login-moves-and-the-rest-stays",
        ),
        pytest.param(
            {"credHelpers": {"b": "osxkeychain", "nvcr.io": "other"}, "credsStore": "secretservice"},
            {"credHelpers": {"b": "osxkeychain", "nvcr.io": "pass"}, "credsStore": "secretservice"},
            id="other-helpers",
        ),
        pytest.param(
            {"auths": None, "credHelpers": None}, {"auths": None, "credHelpers": {"nvcr.io": "pass"}}, id="nulls"
        ),
    ],
)
def test_with_helper(config, expected):
    before = json.dumps(config)
    after = _credentials.with_helper(config, "nvcr.io", "pass")
    assert after == expected == _credentials.with_helper(after, "nvcr.io", "pass")
    assert json.dumps(config) == before


@pytest.mark.parametrize("config", [{"auths": ["nvcr.io"]}, {"credHelpers": "pass"}])
def test_with_helper_refuses_what_docker_did_not_write(config):
    with pytest.raises(ValueError, match="wanted an object"):
        _credentials.with_helper(config, "nvcr.io", "pass")
