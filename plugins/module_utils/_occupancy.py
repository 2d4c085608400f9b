# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds the memory of a GPU besides the services of a play, and whether enough is left for these. Private to the collection; pure.

A process of a service that the play knows is no stranger: it goes when its service restarts. Everything else stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._contracts import CONTRACTS
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten
from ansible_collections.baremetal.nim.plugins.module_utils._gpus import WHOLE_UNIFIED, Device, fraction, of_service

MIB = 2**20
#: What a desktop or a monitor holds keeps nobody from starting: this much, or that part of the memory where that is more.
LITTLE, LITTLE_PART = 512 * MIB, 0.02
#: Memory that no process explains: less than this is the driver's own (vGPU, older drivers).
UNEXPLAINED, UNEXPLAINED_PART = 1024 * MIB, 0.05
#: Most holders that a message names.
NAMED = 4
#: What nvidia-smi writes in place of the name of a process that is in another namespace.
_NAMELESS = ("", "-", "N/A", "[N/A]", "[Not Found]", "[Insufficient Permissions]", "[Unknown Error]")


@dataclass(frozen=True)
class Strangers:
    """What strangers hold of a device: bytes, the holders in words, the largest first, and the processes that are seen."""

    memory: int = 0
    holders: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()

    def __str__(self) -> str:
        more = f" and {len(self.holders) - NAMED} more" if len(self.holders) > NAMED else ""
        return ", ".join(self.holders[:NAMED]) + more


@dataclass(frozen=True)
class Shortage:
    """Why a device has too little left for a service: bytes, why that much is needed, and who holds the rest."""

    device: Device
    total: int
    needed: int
    reason: str
    strangers: Strangers

    def __str__(self) -> str:
        left = max(0, self.total - self.strangers.memory)
        return (
            f"GPU {self.device.short} has {left // MIB} of {self.total // MIB} MiB left, wanted {self.needed // MIB} MiB ({self.reason});"
            f" the rest is held by {self.strangers}"
        )


def _amount(memory: int | None) -> str:
    return "unknown memory" if memory is None else f"{memory // MIB} MiB"


def _bytes(process: Mapping[str, Any]) -> int | None:
    used = process.get("used_mib")
    return None if used is None else int(used) * MIB


def _once(processes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each process once: what computes and draws may be listed for both."""
    found: dict[Any, Mapping[str, Any]] = {}
    for number, process in enumerate(processes):
        # Without a number nobody knows whether it is the same.
        key = process["pid"] or f"entry {number}"
        if key not in found or (_bytes(process) or 0) > (_bytes(found[key]) or 0):
            found[key] = process
    return list(found.values())


def _words(process: Mapping[str, Any], holder: Mapping[str, Any]) -> str:
    """A process in words. HOLDER is what the host itself knows of it."""
    pid, told = process["pid"], str(process.get("name") or "").strip()
    name = told if told not in _NAMELESS else str(holder.get("name") or "")
    if name.startswith("/"):
        name = name.split()[0].rpartition("/")[2]
    container = process.get("container")
    # Whoever starts a container or a unit names it.
    unit = shorten(str(holder.get("unit") or process.get("unit") or ""), 80)
    about = [f"pid {pid}", unit or (container and f"container {container[:12]}")]
    about.append(_amount(_bytes(process)))
    if process.get("service"):
        return f"service {shorten(str(process['service']), 60)}, which nim_services does not list ({', '.join(filter(None, about))})"
    return f"{shorten(name, 60) or 'a process that is not seen from here'} ({', '.join(filter(None, about))})"


def _runs_on(device: Device, host: Mapping[str, Any], ours: Iterable[str]) -> bool:
    """Whether a service of OURS runs on a device, by its record; one without a record may run anywhere."""
    for name in ours:
        now = (host.get("services") or {}).get(name) or {}
        if (now.get("container") or {}).get("running"):
            names = {str(gpu) for gpu in (now.get("record") or {}).get("gpus") or ["all"]}
            if "all" in names or names & set(device.names):
                return True
    return False


def total_of(device: Device, host: Mapping[str, Any]) -> int | None:
    """Memory of a device; that of the host where the GPU has none of its own (GB10)."""
    return device.memory if device.memory is not None else (host.get("memory") or {}).get("total")


def strangers(device: Device, host: Mapping[str, Any], ours: Iterable[str]) -> Strangers:
    """What of a device is held by others than the services OURS. HOST is the result of gpu_host_info."""
    ours = set(ours)
    holders = {item["pid"]: item for item in (host.get("driver") or {}).get("holders") or []}
    listed = _once(device.processes)
    engine = host.get("engine") or {}
    # Containers outlive an engine that was stopped (live-restore), and nobody else tells whose they are: it starts before anything is placed.
    untold = bool(engine.get("installed")) and engine.get("active") is False

    def is_own(process: Mapping[str, Any]) -> bool:
        return process.get("service") in ours or (
            untold and bool(process.get("container")) and not process.get("service")
        )

    processes = [process for process in listed if not is_own(process)]
    own = [process for process in listed if is_own(process)]
    explained = sum(_bytes(process) or 0 for process in listed)
    hidden = max(0, (device.used or 0) - explained)
    total = total_of(device, host) or 0
    if hidden <= max(UNEXPLAINED, int(UNEXPLAINED_PART * total)):
        hidden = 0
    if any(_bytes(process) is None for process in own):
        hidden = 0
    if not own and _runs_on(device, host, ours):
        # It is there, and what nvidia-smi calls it is a number of another namespace, or nothing.
        processes = [process for process in processes if process["pid"] in holders or process.get("service")]
        hidden = 0
    words = [(_bytes(process) or 0, _words(process, holders.get(process["pid"], {}))) for process in processes]
    if hidden and any(_bytes(process) is None for process in processes):
        # They hold it, and nobody tells how much each.
        memory = sum(size for size, _text in words) + hidden
    else:
        memory = sum(size for size, _text in words) + hidden
        if hidden:
            text = f"somebody who is not seen from here, as in another container or virtual machine ({_amount(hidden)})"
            words.append((hidden, text))
    words.sort(key=lambda item: -item[0])
    seen = sorted({int(process["pid"]) for process in processes if process["pid"]})
    return Strangers(memory, tuple(text for _size, text in words), tuple(seen))


def needed(service: Mapping[str, Any], device: Device, total: int, published: int | None) -> tuple[int, str]:
    """Bytes of a device that a service needs, and why. PUBLISHED are the MiB that NVIDIA tells of its image, None where that is not known."""
    facts = CONTRACTS[str(service.get("contract") or "classic")]
    try:
        said = fraction(service.get("env") or {})
    except ValueError:
        said = None
    if said is not None:
        return int(said * total), f"{said:g} of the GPU, by its env"
    usual = facts["memory_fraction"]
    if device.memory is None:
        usual = min(usual, WHOLE_UNIFIED)
    reason = f"{usual:g} of the GPU"
    if facts["memory_variable"]:
        reason += f", what its engine takes unless env says less by {facts['memory_variable']}"
    least = (published or 0) * MIB
    if least and (least >= usual * total or not facts["memory_at_start"]):
        return least, "what NVIDIA tells of its image"
    return int(usual * total), reason


def unchanged(service: Mapping[str, Any], host: Mapping[str, Any]) -> bool:
    """Whether a service runs as it is wanted: nothing will be started."""
    container = ((host.get("services") or {}).get(service["name"]) or {}).get("container") or {}
    return bool(container.get("running")) and container.get("config_hash") == service.get("config_hash")


def shortage(
    service: Mapping[str, Any],
    device: Device,
    host: Mapping[str, Any],
    services: Sequence[Mapping[str, Any]],
    needs: Mapping[str, Mapping[str, Any]] | None = None,
    present: Sequence[Device] = (),
) -> Shortage | None:
    """What keeps a service from a device that strangers hold, None when it has room.

    SERVICES are all of the play, resolved; those that share the device with it need their part too. NEEDS are the
    requirements of nim_requirements, PRESENT the devices of the host.
    """
    total = total_of(device, host)
    if not total:
        return None
    held = strangers(device, host, [item["name"] for item in services])
    if held.memory <= max(LITTLE, int(LITTLE_PART * total)):
        return None
    wanted, reason = 0, ""
    for item in services:
        beside = item is not service and item.get("gpu_shared") and service.get("gpu_shared")
        if item is service or (beside and item.get("gpus") and device.key in of_service(item, present or [device])):
            size, why = needed(item, device, total, ((needs or {}).get(item["name"]) or {}).get("memory_mib"))
            wanted += size
            reason += (
                f"{'; ' if reason else ''}{why}"
                if item is service
                else f"{'; ' if reason else ''}{item['name']}: {why}"
            )
    return Shortage(device, total, wanted, reason, held) if total - held.memory < wanted else None
