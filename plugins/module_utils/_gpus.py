# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which GPUs of a host its services get, and whether they get in each other's way. Private to the collection; pure.

What a service gets is one of a host's *devices*: a whole GPU, or a part that MIG made of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Variables that limit how much of a GPU's memory an engine takes, as a fraction. Source: NIM LLM 1.x and 2.x, VSS blueprint.
FRACTION_VARIABLES = ("NIM_GPU_MEM_FRACTION", "NIM_KVCACHE_PERCENT")
_FRACTION_ARGUMENT = re.compile(r"--(?:gpu-memory-utilization|mem-fraction-static)[= ]\s*(\S+)")
#: Most of a GPU's memory that services may promise each other; of memory that the GPU shares with the host, less.
WHOLE, WHOLE_UNIFIED = 1.0, 0.8


@dataclass(frozen=True)
class Device:
    """A whole GPU or a part of one: its names, the surest first, its memory in bytes (None when it has none of its own), its model.

    ``used`` are bytes in use (None when nobody tells), ``processes`` those that gpu_host_info tells of it.
    """

    names: tuple[str, ...]
    memory: int | None
    model: str | None = None
    used: int | None = None
    processes: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    @property
    def key(self) -> str:
        """The name by which two services are seen to want the same."""
        return self.names[0]

    @property
    def short(self) -> str:
        """The name that CDI gives it by its place."""
        return self.names[-1]

    def __str__(self) -> str:
        return f"{self.short} ({self.key})" if len(self.names) > 1 else self.short


def devices(gpus: Iterable[Mapping[str, Any]]) -> list[Device]:
    """The devices of a host, from what gpu_host_info says of its GPUs."""
    found = []
    for gpu in gpus:
        parts = gpu.get("mig_devices") or []
        processes = gpu.get("processes") or []
        if gpu.get("mig_enabled"):
            found += [
                Device(
                    tuple(name for name in (part["uuid"], part["name"]) if name),
                    _bytes(part["memory_total_mib"]),
                    gpu.get("name"),
                    _bytes(part.get("memory_used_mib")),
                    tuple(process for process in processes if _on_part(process, part)),
                )
                for part in parts
            ]
        else:
            names = (str(gpu["uuid"]), str(gpu["index"]))
            used = _bytes(gpu.get("memory_used_mib"))
            found.append(Device(names, _bytes(gpu.get("memory_total_mib")), gpu.get("name"), used, tuple(processes)))
    return found


def _on_part(process: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether a process computes on a part: instances of computing divide an instance of the GPU, and share its memory."""
    instance = part.get("gpu_instance")
    return instance is not None and process.get("gpu_instance") == instance


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * 2**20


def find(name: str, present: Iterable[Device]) -> Device | None:
    """The device of that name."""
    return next((device for device in present if name in device.names), None)


def divided(name: str, gpus: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the parts of a whole GPU that MIG divides; empty when NAME is no such GPU."""
    for gpu in gpus:
        if gpu.get("mig_enabled") and name in (str(gpu["index"]), gpu["uuid"]):
            return [part["name"] for part in gpu.get("mig_devices") or []] or ["none yet"]
    return []


def of_service(service: Mapping[str, Any], present: Sequence[Device]) -> list[str]:
    """Keys of the devices that a resolved service has."""
    if service["gpus"] == ["all"]:
        return [device.key for device in present] or ["all"]
    return [device.key if (device := find(name, present)) else name for name in service["gpus"]]


def fraction(env: Mapping[str, str]) -> float | None:
    """The fraction of a GPU's memory that a container may take by its variables; None when they do not say.

    Raises ValueError with the text that is no number from 0 to 1.
    """
    match = _FRACTION_ARGUMENT.search(env.get("NIM_PASSTHROUGH_ARGS", ""))
    texts = [env[name] for name in FRACTION_VARIABLES if name in env] + ([match.group(1)] if match else [])
    if not texts:
        return None
    try:
        value = float(texts[0])
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError(texts[0])
    return value


# -- services that say how many ----------------------------------------------------------------------------------------


def allocate(
    services: Sequence[dict[str, Any]],
    host: Mapping[str, Any],
    room: Callable[[Mapping[str, Any], Device], bool] = lambda _service, _device: True,
    held: Iterable[str] = (),
) -> list[str]:
    """Gives devices to the services that only say how many (``gpu_request``), in their order; returns problems.

    A service keeps what it has as long as that still does: adding another one moves nobody. HELD are keys of devices that are not
    free. ROOM says whether strangers leave a service enough of a device; one that is filled is given where there is no other, and
    whoever looks at the host tells why not.
    """
    present = devices(host.get("gpus") or [])
    asking = [service for service in services if service.get("gpu_request")]
    taken = {key for service in services if service.get("gpus") for key in of_service(service, present)} | set(held)
    problems = []
    before: dict[str, list[Device]] = {}
    for service in asking:
        now = (host.get("services") or {}).get(service["name"]) or {}
        names = [str(name) for name in (now.get("record") or {}).get("gpus") or []]
        had = [device for device in (find(name, present) for name in names) if device is not None]
        before[service["name"]] = had
        # What runs has the room that it needs.
        runs = bool((now.get("container") or {}).get("running"))
        if len(had) == len(names) == service["gpu_request"]["count"] and all(
            device.key not in taken and _large(device, service) and (runs or room(service, device)) for device in had
        ):
            _give(service, had, taken)
    for service in asking:
        if service["gpus"]:
            continue
        if not host.get("gpus"):
            # No driver answers yet: that many of them by number, for a plan that can be shown.
            numbers = (str(number) for number in range(1024))
            free = [Device((number,), None) for number in numbers if number not in taken][
                : service["gpu_request"]["count"]
            ]
        else:
            free = [device for device in present if device.key not in taken and _large(device, service)]
        # The smallest that do: the large ones are left to whoever needs them.
        filled = {device.key for device in free if not room(service, device)}
        theirs = {device.key for device in free if device in before[service["name"]]}
        free = sorted(
            free, key=lambda device: (device.key in filled, device.key in filled - theirs, device.memory or 0)
        )
        free = free[: service["gpu_request"]["count"]]
        if len(free) < service["gpu_request"]["count"]:
            problems.append(_too_few(service, present, taken))
        else:
            _give(service, [device for device in present or free if device in free], taken)
    return problems


def _large(device: Device, service: Mapping[str, Any]) -> bool:
    return device.memory is None or device.memory >= service["gpu_request"]["memory_bytes"]


def _give(service: dict[str, Any], given: Iterable[Device], taken: set[str]) -> None:
    service["gpus"] = [device.short for device in given]
    taken |= {device.key for device in given}


def _too_few(service: Mapping[str, Any], present: Iterable[Device], taken: Iterable[str]) -> str:
    wish = service["gpu_request"]
    size = f" of {wish['memory_bytes'] / 1e9:g} GB or more" if wish["memory_bytes"] else ""
    free = [
        f"{device}{f' with {device.memory / 1e9:.0f} GB' if device.memory else ''}"
        for device in present
        if device.key not in set(taken)
    ]
    return (
        f"service {service['name']}: gpus wants {wish['count']} GPU(s){size}; free on this host: {', '.join(free) or 'none'}."
        " Take GPUs from another service, or want less."
    )


# -- services that share -----------------------------------------------------------------------------------------------


def conflicts(services: Iterable[Mapping[str, Any]], host: Mapping[str, Any]) -> list[str]:
    """Problems between services that want the same device."""
    present = devices(host.get("gpus") or [])
    holders: dict[str, list[Mapping[str, Any]]] = {}
    problems: list[str] = []
    for service in services:
        for key in dict.fromkeys(of_service(service, present)):
            others = holders.setdefault(key, [])
            stranger = next((other for other in others if not (service["gpu_shared"] and other["gpu_shared"])), None)
            if stranger is not None:
                problems.append(
                    f"service {service['name']}: GPU {key} is also used by service {stranger['name']}; one NIM per GPU, or"
                    " gpu_shared: true on both with memory fractions in env."
                )
            others.append(service)
    # What is said of strangers comes first; who does not share needs no fraction.
    return problems + _promises({key: found for key, found in holders.items() if len(found) > 1}, present)


def _promises(shared: Mapping[str, Sequence[Mapping[str, Any]]], present: Sequence[Device]) -> list[str]:
    problems: dict[str, None] = {}
    for key, services in shared.items():
        if not all(service["gpu_shared"] for service in services):
            continue
        parts: dict[str, float] = {}
        for service in services:
            if not service["memory_variable"]:
                # An engine that takes what its model needs, no more, has nothing to be told.
                continue
            try:
                part = fraction(service["env"])
            except ValueError as error:
                part = None
                told = f"says {str(error)!r}, wanted a number from 0 to 1"
            else:
                told = "says no memory fraction"
            if part is None:
                problems[
                    f"service {service['name']}: shares a GPU and {told}; set {service['memory_variable']} in env,"
                    f" for instance {1 / len(services):.1f}."
                ] = None
            else:
                parts[service["name"]] = part
        device = find(key, present)
        most = WHOLE_UNIFIED if device is not None and device.memory is None else WHOLE
        if sum(parts.values()) > most + 1e-9:
            listed = ", ".join(f"{name} {part:g}" for name, part in parts.items())
            problems[
                f"GPU {key} is promised to {listed}, {sum(parts.values()):g} in all, wanted at most {most:g};"
                " lower the memory fractions in env."
            ] = None
    return list(problems)
