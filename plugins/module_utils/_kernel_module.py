# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order NVIDIA's kernel modules and their users go and come back. Private to the collection; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Units that hold the GPUs, in the order they are stopped; the NIM services go before all of them.
TELEMETRY = ("dcgm-exporter.service", "nvidia-dcgm.service")
FABRIC = ("nvidia-imex.service", "nvidia-fabricmanager.service")
PERSISTENCE = ("nvidia-persistenced.service",)
#: Writes the CDI specification anew; containers that start before it did get the old libraries.
CDI_REFRESH = "nvidia-cdi-refresh.service"
#: Runs the former, and with it nvidia-smi, which loads modules, whenever DKMS has built some.
CDI_WATCH = "nvidia-cdi-refresh.path"
_FAMILY = re.compile(r"nvidia(_\w+)?$|gdrdrv$")


def unload_order(loaded: Mapping[str, Iterable[str]]) -> list[str]:
    """Loaded modules with the modules that use each, to those of NVIDIA's driver, users before what they use."""
    users = {name: set(others) & set(loaded) for name, others in loaded.items()}
    wanted = {name for name in users if _FAMILY.match(name)}
    # What uses nvidia must go first, whatever its name is.
    for name in list(wanted):
        wanted |= users[name]
    order: list[str] = []
    while wanted:
        free = sorted(name for name in wanted if not (users[name] & wanted))
        order += free or sorted(wanted)
        wanted -= set(free or wanted)
    return order


def stop_order(units: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Units by name, as ``systemctl show`` tells them, to those that run and must stop, in order."""
    running = [name for name, unit in units.items() if unit.get("ActiveState") in ("active", "activating", "reloading")]
    services = sorted(name for name in running if name.startswith("nim-"))
    watch = [CDI_WATCH] if CDI_WATCH in running else []
    return watch + services + [name for name in TELEMETRY + FABRIC + PERSISTENCE if name in running]


def start_order(stopped: Iterable[str], refresh: bool) -> list[str]:
    """What STOPPED names, backwards; with REFRESH, the CDI specification is written before the first NIM service."""
    order = list(reversed(list(stopped)))
    if refresh:
        first = next((at for at, name in enumerate(order) if name.startswith("nim-")), len(order))
        order.insert(first, CDI_REFRESH)
    return order


def parse_stopped(text: str) -> list[str]:
    """The record of stopped units, in the order they were stopped; empty when there is none."""
    try:
        names = json.loads(text)
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def describe_holders(holders: Iterable[Mapping[str, Any]]) -> str:
    """Processes that hold a GPU, in words for an error."""
    return ", ".join(
        f"{item['name']} (pid {item['pid']}{', ' + item['unit'] if item['unit'] else ''})" for item in holders
    )
