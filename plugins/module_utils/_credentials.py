# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logins of Docker's client: in its config.json, or in the care of a credential helper. Private to the collection; pure."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any


def program(helper: str) -> str:
    """Name of a helper's program."""
    return f"docker-credential-{helper}"


def parse(text: str) -> dict[str, Any]:
    """The file as a dictionary; an empty one for what cannot be read."""
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def digest(login: tuple[str, str]) -> str:
    """What is told of a login: the SHA-256 of ``user:password``, to compare with and not to recover."""
    return hashlib.sha256(":".join(login).encode()).hexdigest()


def stored(config: Mapping[str, Any], registry: str) -> tuple[str, str] | None:
    """User and password of a registry that the file itself holds."""
    try:
        text = base64.b64decode(config["auths"][registry]["auth"], validate=True).decode()
    except (ValueError, TypeError, KeyError):
        return None
    user, _colon, password = text.partition(":")
    return (user, password) if password else None


def helpers(config: Mapping[str, Any]) -> dict[str, str]:
    """Helper by registry: the registry's own, or the common one (credsStore) for a registry that the file names a login of."""
    common, own, auths = (config.get(key) for key in ("credsStore", "credHelpers", "auths"))
    found = dict.fromkeys(auths, common) if common and isinstance(auths, Mapping) else {}
    found.update(own if isinstance(own, Mapping) else {})
    return {registry: helper for registry, helper in found.items() if isinstance(helper, str) and "/" not in helper}


def logins(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests, by registry, of the logins that the file itself holds and the client would use."""
    auths = config.get("auths")
    kept = {registry: stored(config, registry) for registry in auths} if isinstance(auths, Mapping) else {}
    elsewhere = helpers(config)
    return {registry: digest(login) for registry, login in kept.items() if login and registry not in elsewhere}


def answer(text: str) -> tuple[str, str] | None:
    """User and password that a helper's program gave; it gives empty ones, or an error, where it has none."""
    try:
        given = json.loads(text)
        user, password = given["Username"], given["Secret"]
    except (ValueError, TypeError, KeyError):
        return None
    return (user, password) if user and password else None


def with_helper(config: Mapping[str, Any], registry: str, helper: str) -> dict[str, Any]:
    """CONFIG with HELPER in charge of a registry, and no password of it. Raises ValueError where it is not what Docker wrote."""
    found: dict[str, Any] = {**config}
    for key in ("auths", "credHelpers"):
        if not isinstance(found.get(key) or {}, Mapping):
            raise ValueError(f"{key} is a {type(found[key]).__name__}, wanted an object")
    found["credHelpers"] = {**(found.get("credHelpers") or {}), registry: helper}
    if (found.get("auths") or {}).get(registry):
        # What docker login leaves of a login that a helper keeps.
        found["auths"] = {**found["auths"], registry: {}}
    return found
