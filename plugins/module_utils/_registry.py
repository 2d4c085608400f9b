# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a registry tells of an image before it is pulled. Private to the collection; pure.

Source: the OCI distribution and image specifications 1.1, and Docker's registry token authentication.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _gate
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import parse_json, printable

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
#: Python's names of machines to those of images.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PREFIX = "com.nvidia.nim."


class RegistryError(ValueError):
    """Why a registry told nothing of an image, in words; they may be the registry's own."""

    def __init__(self, words: str) -> None:
        super().__init__(printable(words, 500))


def parse_reference(image: str) -> tuple[str, str, str]:
    """An image to its registry, its repository, and its digest or else its tag."""
    name, _at, digest = image.partition("@")
    registry, slash, path = name.partition("/")
    # What has neither dot nor colon is a part of a name on Docker's own registry.
    if not slash or not (re.search(r"[.:]", registry) or registry == "localhost"):
        raise RegistryError(f"{image!r} names no registry")
    head, colon, tag = path.rpartition(":")
    repository = head if colon else path
    if not repository or not (digest or (colon and tag)):
        raise RegistryError(f"{image!r} has neither tag nor digest")
    return registry, repository, digest or tag


def fault(url: str, error: Exception) -> str:
    """Why nobody answered at URL, in words."""
    place = url.partition("://")[2].partition("/")[0]
    # What urllib wraps is the error itself; some errors say nothing.
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{shorten(place)} cannot be asked: {shorten(str(cause)) or type(cause).__name__}"


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """A WWW-Authenticate header to its scheme, in lower case, and its parameters."""
    scheme, _space, rest = header.strip().partition(" ")
    return scheme.lower(), dict(re.findall(r'(?<!\w)(\w{1,40})="([^"]{0,2000})"', rest[:8192]))


def is_local(registry: str) -> bool:
    """Whether a registry is on this machine, where it may speak without TLS."""
    return bool(re.fullmatch(r"(localhost|127\.0\.0\.1)(:\d+)?", registry))


def token_url(realm: str, parameters: Mapping[str, str], repository: str, registry: str) -> str:
    """Where a token is asked for.

    A realm that would get the key in the clear, or that is no web address, is an error.
    """
    try:
        address = urllib.parse.urlsplit(realm)
    except ValueError as error:
        raise RegistryError(
            f"the registry sends to {_gate.shown(realm, 300)} for a token, which is no address: {error}"
        ) from error
    local = address.scheme == "http" and address.netloc == registry and is_local(registry)
    if not (address.scheme == "https" or local) or "@" in address.netloc:
        raise RegistryError(
            f"the registry sends to {_gate.shown(realm, 300)} for a token, wanted an https address without a login in it"
        )
    query = {"scope": parameters.get("scope") or f"repository:{repository}:pull"}
    if parameters.get("service"):
        query["service"] = parameters["service"]
    joint = "&" if address.query else "?"
    return f"{realm}{joint}{urllib.parse.urlencode(sorted(query.items()))}"


def parse_token(text: str) -> str:
    """The token in the answer of an authorization service."""
    answer = _document(text)
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not token:
        raise RegistryError("the answer to the login has no token")
    return token


def _document(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise RegistryError(f"the answer is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise RegistryError("the answer is no JSON object")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9+._-]{1,30}:[0-9a-fA-F]{32,256}", value):
        raise RegistryError(f"the answer has the digest {_gate.shown(value)}")
    return value


def platform_manifest(text: str, architecture: str) -> str | None:
    """The digest of the manifest for Linux on ARCHITECTURE that an index names; None when the text is a manifest itself."""
    document = _document(text)
    entries = document.get("manifests")
    if entries is None:
        return None
    for entry in entries if isinstance(entries, list) else []:
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if not isinstance(platform, dict):
            continue
        if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
            return _digest(entry.get("digest"))
    raise RegistryError(f"the image is not made for linux/{architecture}")


def parse_manifest(text: str) -> tuple[str, int]:
    """The digest of the configuration that a manifest names, and the bytes of the layers, as they are transferred."""
    document = _document(text)
    config, layers = document.get("config"), document.get("layers")
    if not isinstance(config, dict) or not isinstance(layers, list):
        raise RegistryError("the answer is no manifest of an image")
    sizes = [layer.get("size") for layer in layers if isinstance(layer, dict)]
    # What has another size is no layer: none is as large as all disks of a site.
    return _digest(config.get("digest")), sum(size for size in sizes if isinstance(size, int) and 0 <= size < 2**50)


def parse_labels(text: str) -> dict[str, str]:
    """NVIDIA's labels in the configuration of an image."""
    config = _document(text).get("config")
    labels = config.get("Labels") if isinstance(config, dict) else None
    found = labels if isinstance(labels, dict) else {}
    return {
        printable(name, 200): printable(str(value), 1000)
        for name, value in sorted(found.items())[:1000]
        if name.startswith(_PREFIX)
    }
