# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NVIDIA's NIM Metadata API says an image needs. Private to the collection; pure.

Source: docs.nvidia.com/nim/metadata-api 1.0 (response fields, notes for automated agents, limitations). By them a field
that is absent is unknown and never a default, unknown fields are none of our business, and a string may become a list.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._foreign import parse_json, printable

#: NVIDIA counts in 10^9 bytes: an H100 of 80 GB has 81559 MiB.
_GB, _MIB = 10**9, 2**20


def resource_of(repository: str) -> str:
    """An image without tag to the resourceId of the API; a mirror may keep the path below one of its own."""
    parts = repository.split("/")[1:]
    return "/".join(parts[parts.index("nim") :] if "nim" in parts else parts)


def query_of(url: str, repository: str, tag: str) -> str:
    """URL to ask for an image."""
    query = urllib.parse.urlencode({"resourceId": resource_of(repository), "tag": tag}, safe="/")
    return f"{url}{'&' if '?' in url else '?'}{query}"


def _positive(value: Any) -> float | None:
    # JSON's Infinity and NaN are read by Python and mean nothing here.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 10**6:
        return None
    return float(value)


def _driver(facts: Mapping[str, Any]) -> str | None:
    """Oldest driver that a part of the document names. The documentation tells of one, and not the field's name."""
    found = []
    for name, value in facts.items():
        match = re.search(r"\d{3}(?:\.\d{1,6}){0,2}", str(value)) if "driver" in str(name).lower() else None
        if match and isinstance(value, (str, int, float)):
            found.append(match.group())
    return min(found, key=numbers) if found else None


def numbers(version: str) -> tuple[int, ...]:
    """A version to what compares."""
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version))


def _profile(facts: Mapping[str, Any], driver: str | None) -> dict[str, Any]:
    sizes = [_positive(facts.get(name)) for name in ("tensor_parallel_size", "pipeline_parallel_size")]
    memory = _positive(facts.get("min_vram_per_device_gb"))
    devices = facts.get("gpu_device")
    names = devices if isinstance(devices, list) else [devices]
    return {
        "id": printable(str(facts.get("profile_id") or ""), 200),
        "memory_mib": None if memory is None else int(memory * _GB / _MIB),
        "gpus": None if None in sizes else int((sizes[0] or 1) * (sizes[1] or 1)),
        # "2335:10de", the PCI ids of device and vendor.
        "devices": [name.split(":")[0].lower() for name in names if isinstance(name, str) and name],
        "driver": _driver(facts) or driver,
    }


def parse_metadata(text: str) -> list[dict[str, Any]]:
    """The document to profiles: ``id``, ``memory_mib`` per GPU, ``gpus``, ``devices`` (PCI ids), ``driver``.

    What the document does not tell is None or empty. Raises ValueError when the text is not such a document.
    """
    document = parse_json(text)
    if not isinstance(document, Mapping):
        raise ValueError(f"its root is {type(document).__name__}, wanted an object")
    profiles = document.get("profiles")
    if not isinstance(profiles, list):
        return []
    release = document.get("release_details")
    driver = _driver(release) if isinstance(release, Mapping) else None
    return [_profile(facts, driver) for facts in profiles if isinstance(facts, Mapping)]


def unknown(source: str, note: str, answered: bool) -> dict[str, Any]:
    """Requirements of a service about which nothing was learned, and why."""
    return {"memory_mib": None, "gpus": None, "driver": None, "source": source, "note": note, "answered": answered}


def need_of(
    profiles: list[dict[str, Any]], profile: str, count: int, devices: Iterable[str], source: str
) -> dict[str, Any]:
    """What a service needs that is given COUNT GPUs of a host with DEVICES (PCI ids).

    Without a PROFILE the image chooses one itself; the least that any profile for these GPUs needs is needed then.
    """
    present = set(devices)
    if profile:
        candidates = [item for item in profiles if item["id"] == profile]
        missed = f"profile {profile} is not among the {len(profiles)} published"
    else:
        candidates = [
            item
            for item in profiles
            if (not count or (item["gpus"] or 0) <= count)
            and (not present or not item["devices"] or present & set(item["devices"]))
        ]
        missed = f"none of the {len(profiles)} profiles published is for {count} GPU(s) of this host"
    if not candidates:
        return unknown(source, missed, True)
    needs = [item["memory_mib"] for item in candidates]
    drivers = [item["driver"] for item in candidates]
    gpus = [item["gpus"] for item in candidates]
    return {
        "memory_mib": None if None in needs else min(needs),
        "gpus": None if None in gpus else min(gpus),
        "driver": None if None in drivers else min(drivers, key=numbers),
        "source": source,
        "note": f"profile {profile}" if profile else f"the least of {len(candidates)} profiles that may be chosen",
        "answered": True,
    }
