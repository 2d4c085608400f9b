# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What registries say, as text, to what it means."""

from __future__ import annotations

import json
import re
import urllib.error

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _registry
from ansible_collections.baremetal.nim.plugins.module_utils._registry import RegistryError

DIGEST, OTHER = f"sha256:{'a1' * 32}", f"sha256:{'b2' * 32}"
REALM = "https://nvcr.io/proxy_auth"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("nvcr.io/nim/meta/llama:1.8.6", ("nvcr.io", "nim/meta/llama", "1.8.6")),
        ("nvcr.lab:5000/nim/meta/llama:1.8.6", ("nvcr.lab:5000", "nim/meta/llama", "1.8.6")),
        (f"nvcr.io/nim/meta/llama@{DIGEST}", ("nvcr.io", "nim/meta/llama", DIGEST)),
        (f"nvcr.io/nim/meta/llama:1.8.6@{DIGEST}", ("nvcr.io", "nim/meta/llama", DIGEST)),
        ("localhost/llama:1", ("localhost", "llama", "1")),
    ],
)
def test_reference(image, parts):
    assert _registry.parse_reference(image) == parts


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("llama:1.8.6", "names no registry"),
        ("nim/llama:1.8.6", "names no registry"),
        ("nvcr.io/nim/llama", "neither tag nor digest"),
        ("nvcr.io/nim/llama:", "neither tag nor digest"),
        ("nvcr.io/:1", "neither tag nor digest"),
    ],
)
def test_what_is_no_reference(image, told):
    with pytest.raises(RegistryError, match=told):
        _registry.parse_reference(image)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            f'Bearer realm="{REALM}",service="reg,istry",scope="repository:nim/llama:pull,push"',
            ("bearer", {"realm": REALM, "service": "reg,istry", "scope": "repository:nim/llama:pull,push"}),
        ),
        ('Basic realm="Registry Realm"', ("basic", {"realm": "Registry Realm"})),
        ("Negotiate", ("negotiate", {})),
        ("", ("", {})),
    ],
)
def test_challenge(header, expected):
    assert _registry.parse_challenge(header) == expected


@pytest.mark.parametrize(
    ("realm", "parameters", "expected"),
    [
        (
            REALM,
            {"service": "registry", "scope": "repository:nim/llama:pull"},
            f"{REALM}?scope=repository%3Anim%2Fllama%3Apull&service=registry",
        ),
        (f"{REALM}?account=x", {}, f"{REALM}?account=x&scope=repository%3Anim%2Fllama%3Apull"),
        ("http://127.0.0.1:5000/token", {}, "http://127.0.0.1:5000/token?scope=repository%3Anim%2Fllama%3Apull"),
    ],
)
def test_address_of_a_token(realm, parameters, expected):
    assert _registry.token_url(realm, parameters, "nim/llama", "127.0.0.1:5000") == expected


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "[Errno 111] Connection refused"),
        (urllib.error.URLError("no host given"), "no host given"),
        (ValueError("Invalid IPv6 URL"), "Invalid IPv6 URL"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=["wrapped", "urllib's own", "plain", "without words"],
)
def test_why_nobody_answered(error, reason):
    assert _registry.fault("https://nvcr.io:443/v2/nim/llama", error) == f"nvcr.io:443 cannot be asked: {reason}"


@pytest.mark.parametrize("realm", ["https://[::1/token", "https://somebody@nvcr.io/token"])
def test_address_of_a_token_that_is_none(realm):
    with pytest.raises(RegistryError, match=re.escape(f"sends to {realm!r} for a token")):
        _registry.token_url(realm, {}, "nim/llama", "nvcr.io")


@pytest.mark.parametrize("realm", ["http://nvcr.io/proxy_auth", "file:///etc/passwd", "", "nvcr.io/token"])
def test_key_is_not_sent_in_the_clear(realm):
    for registry in ("nvcr.io", "127.0.0.1:5000"):
        with pytest.raises(RegistryError, match="wanted an https address"):
            _registry.token_url(realm, {}, "nim/llama", registry)


@pytest.mark.parametrize(
    ("text", "token"), [('{"token": "t1", "expires_in": 300}', "t1"), ('{"access_token": "t2"}', "t2")]
)
def test_token(text, token):
    assert _registry.parse_token(text) == token


INDEX = {
    "manifests": [
        {"digest": OTHER, "platform": {"os": "linux", "architecture": "arm64"}},
        {"digest": DIGEST, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": OTHER, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
}
MANIFEST = {"config": {"digest": DIGEST}, "layers": [{"size": 1000}, {"size": 24}, {}]}


def test_manifest_of_this_machine():
    assert _registry.platform_manifest(json.dumps(INDEX), "amd64") == DIGEST
    assert _registry.platform_manifest(json.dumps(INDEX), "arm64") == OTHER
    assert _registry.platform_manifest(json.dumps(MANIFEST), "amd64") is None
    assert _registry.parse_manifest(json.dumps(MANIFEST)) == (DIGEST, 1024)


def test_only_labels_of_nvidia_count():
    labels = {"com.nvidia.nim.model_download_protocol": "native-v1", "maintainer": "x", "com.nvidia.nim.version": 2}
    text = json.dumps({"config": {"Labels": labels}})
    assert _registry.parse_labels(text) == {
        "com.nvidia.nim.model_download_protocol": "native-v1",
        "com.nvidia.nim.version": "2",
    }


@pytest.mark.parametrize("text", ["{}", '{"config": null}', '{"config": {"Labels": null}}', '{"config": []}'])
def test_image_without_labels(text):
    assert _registry.parse_labels(text) == {}


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (_registry.parse_token, "{}", "no token"),
        (_registry.parse_token, '{"token": 1}', "no token"),
        (_registry.parse_token, "<html>", "no JSON"),
        (_registry.parse_manifest, "[]", "no JSON object"),
        (_registry.parse_manifest, "{}", "no manifest"),
        (_registry.parse_manifest, '{"config": {"digest": "../../etc"}, "layers": []}', "has the digest"),
        (_registry.parse_labels, "[" * 100_000, "no JSON"),
        (lambda text: _registry.platform_manifest(text, "riscv64"), json.dumps(INDEX), "not made for linux/riscv64"),
        (lambda text: _registry.platform_manifest(text, "amd64"), '{"manifests": 7}', "not made for linux/amd64"),
    ],
)
def test_what_is_no_answer(parse, text, told):
    with pytest.raises(RegistryError, match=told):
        parse(text)
