# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that run on a host and are not listed any more: whoever renames one leaves the old one. Private to the collection; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _gpus

_RUNS = ("active", "activating", "reloading", "deactivating")
Present = Sequence[_gpus.Device]


def _left(
    services: Iterable[Mapping[str, Any]], host: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Names of services that nobody lists and that run, or come back with the next boot; what is known of each; whether it runs."""
    listed = {service["name"] for service in services}
    for name, now in sorted((host.get("services") or {}).items()):
        unit, container = now.get("unit") or {}, now.get("container") or {}
        runs = bool(container.get("running")) or unit.get("active") in _RUNS
        if name not in listed and (runs or (unit.get("exists") and unit.get("enabled"))):
            yield name, now, runs


def _ports(now: Mapping[str, Any]) -> set[int]:
    record = now.get("record") or {}
    match = re.search(r":(\d{1,5})$", str(record.get("url") or ""))
    told = [int(match.group(1)) if match else 0, record.get("grpc_port")]
    bound = (now.get("container") or {}).get("ports") or []
    return {port for port in (*told, *bound) if isinstance(port, int) and port > 0}


def _devices(name: str, now: Mapping[str, Any], host: Mapping[str, Any], present: Present) -> list[str]:
    """Keys of the devices that a service has by its record, or by what runs on them."""
    gpus = (now.get("record") or {}).get("gpus")
    keys = _gpus.of_service({"gpus": [str(gpu) for gpu in gpus]}, present) if isinstance(gpus, list) else []
    for gpu in host.get("gpus") or []:
        if any(process.get("service") == name for process in gpu.get("processes") or []):
            device = _gpus.find(str(gpu["uuid"]), present)
            keys += [device.key] if device else []
    return list(dict.fromkeys(keys))


def held(services: Iterable[Mapping[str, Any]], host: Mapping[str, Any]) -> list[str]:
    """Keys of the devices that services have which nobody lists any more: not free for one that only says how many it wants."""
    present = _gpus.devices(host.get("gpus") or [])
    found = (_devices(name, now, host, present) for name, now, runs in _left(services, host) if runs)
    return [key for keys in found for key in keys]


def _claims(service: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str], present: Present) -> list[str]:
    """What a service wants of another one's, in words."""
    wanted = {service["port"], service["grpc_port"]} - {0}
    words = [f"port {port}" for port in sorted(wanted & _ports(now))]
    # One that says how many, and got none, would have taken any.
    mine = _gpus.of_service(service, present) if service["gpus"] else [device.key for device in present]
    shared = [] if service["gpu_shared"] else [key for key in keys if key in mine or "all" in (key, *mine)]
    names = [device.short if (device := _gpus.find(key, present)) else key for key in shared]
    return words + ([f"GPU {', '.join(names)}"] if names else [])


def conflicts(services: Sequence[dict[str, Any]], host: Mapping[str, Any]) -> list[str]:
    """What resolved services want of those that run and that nobody lists; what would start with the next boot is noted with them."""
    present = _gpus.devices(host.get("gpus") or [])
    problems = []
    for name, now, runs in _left(services, host):
        keys = _devices(name, now, host, present)
        for service in services:
            claims = _claims(service, now, keys, present) if service["state"] == "present" else []
            if not claims:
                continue
            what = f"{' and '.join(claims)} {'is' if len(claims) == 1 else 'are'} also"
            cure = (
                f"if it was renamed, or is not wanted any more, list it as {{name: {name}, state: absent}}; else list it as it is, and give"
                " one of them another port or other GPUs."
            )
            if runs:
                problems.append(
                    f"service {service['name']}: {what} of nim-{name}.service, which runs on this host and is not in nim_services; {cure}"
                )
            else:
                service["notes"].append(
                    f"service {service['name']}: {what} of nim-{name}.service, which is not in nim_services and comes back with the next"
                    f" boot; {cure}"
                )
    return problems
