# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wanted repositories and keys against those that gpu_host_info found. Private to the collection; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def wanted_repository(name: str, manager: str, url: str, suite: str, key: str) -> dict[str, Any]:
    """What deb822_repository or yum_repository is given; MANAGER is apt or dnf, KEY a path (apt) or URL (dnf)."""
    if manager == "dnf":
        return {"name": name, "package_manager": "dnf", "baseurl": url, "gpgkey": key}
    components = [] if suite.endswith("/") else ["main"]
    return {
        "name": name,
        "package_manager": "apt",
        "uris": [url],
        "suites": [suite],
        "components": components,
        "signed_by": key,
    }


def repository_current(wanted: Mapping[str, Any], found: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the host has that repository, in the file that the role writes."""
    for entry in found:
        if not entry["enabled"]:
            continue
        if wanted["package_manager"] == "dnf":
            if entry["path"].endswith(f"/{wanted['name']}.repo") and entry["uris"] == [wanted["baseurl"]]:
                return True
        elif entry["path"].endswith(f"/{wanted['name']}.sources") and all(
            entry[key] == wanted[key] for key in ("uris", "suites", "components", "signed_by")
        ):
            return True
    return False


def key_current(path: str, fingerprints: Iterable[str], found: Mapping[str, list[str]]) -> bool:
    """Whether the file holds just these keys."""
    return sorted(found.get(path, [])) == sorted(fingerprints)


def duplicates(wanted: Mapping[str, Any], found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Other files that name the repository and nothing else: apt stops where two of them differ in Signed-By."""
    if wanted["package_manager"] != "apt":
        return []
    url = wanted["uris"][0].rstrip("/")
    paths: dict[str, list[bool]] = {}
    for entry in found:
        paths.setdefault(entry["path"], []).append({uri.rstrip("/") for uri in entry["uris"]} == {url})
    own = f"/{wanted['name']}.sources"
    return sorted(path for path, ours in paths.items() if all(ours) and not path.endswith(own))
