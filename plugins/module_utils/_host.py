# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands and files of a GPU host say, as plain data. Private to the collection.

Pure functions: text in, dictionaries out. Nothing here runs a command or knows Ansible. Sizes are bytes unless a name
ends in ``_mib``; a value that the host does not tell is ``None``.
"""

from __future__ import annotations

import ipaddress
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _foreign, _hardware

#: Label that carries the hash of the configuration a NIM container was started with.
CONFIG_HASH_LABEL = "com.github.baremetal-nim.config-hash"
#: Label that carries the name of the service a NIM container belongs to.
SERVICE_LABEL = "com.github.baremetal-nim.service"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def parse_os_release(text: str) -> dict[str, Any]:
    """os-release(5) to ``distribution`` (Debian, Ubuntu, RedHat…), ``version``, ``major`` and ``codename``."""
    values = {}
    for line in text.splitlines():
        key, sign, value = line.partition("=")
        if sign and not key.startswith("#"):
            values[key.strip()] = value.strip().strip("\"'")
    names = {"debian": "Debian", "ubuntu": "Ubuntu", "rhel": "RedHat", "rocky": "Rocky", "almalinux": "AlmaLinux"}
    version = values.get("VERSION_ID", "")
    return {
        "distribution": names.get(values.get("ID", ""), values.get("ID", "unknown").capitalize()),
        "version": version,
        "major": version.split(".")[0],
        "codename": values.get("VERSION_CODENAME") or None,
    }


def parse_meminfo(text: str) -> dict[str, int | None]:
    """/proc/meminfo to ``total`` and ``available`` bytes."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    return {
        "total": int(values["MemTotal"]) * 1024 if "MemTotal" in values else None,
        "available": int(values["MemAvailable"]) * 1024 if "MemAvailable" in values else None,
    }


def _mib(text: str | None) -> int | None:
    # "[N/A]" is the honest answer of cards with unified memory (GB10).
    match = re.match(r"(\d+) MiB$", (text or "").strip())
    return int(match.group(1)) if match else None


def _told(text: str | None) -> str | None:
    # nvidia-smi writes N/A, in brackets or not, for what a GPU does not have.
    value = (text or "").strip()
    return None if value.strip("[]") in ("", "N/A") else value


def _mig_devices(gpu: ET.Element, index: int) -> list[dict[str, Any]]:
    # The report has neither profiles nor, with most drivers, UUIDs: the name is the one that CDI gives the device.
    return [
        {
            "uuid": _told(device.findtext("uuid")),
            "name": f"{index}:{(device.findtext('index') or '').strip()}",
            "memory_total_mib": _mib(device.findtext("fb_memory_usage/total")),
            "memory_used_mib": _mib(device.findtext("fb_memory_usage/used")),
            "gpu_instance": _told(device.findtext("gpu_instance_id")),
        }
        for device in gpu.findall("mig_devices/mig_device")
    ]


def parse_nvidia_smi(text: str) -> dict[str, Any]:
    """``nvidia-smi -q -x`` to ``driver_version``, ``cuda_version`` and a list of ``gpus``.

    Raises ValueError when the text is not such a report.
    """
    try:
        # Names of processes are the words of strangers, and XML has no control characters.
        root = ET.fromstring(_CONTROL.sub(" ", text))
    except ET.ParseError as error:
        raise ValueError(f"not a report of nvidia-smi -q -x: {error}") from error
    if root.tag != "nvidia_smi_log":
        raise ValueError(f"not a report of nvidia-smi -q -x: its root is {root.tag}")
    gpus = []
    for index, gpu in enumerate(root.findall("gpu")):
        processes = [
            {
                "pid": int(pid) if re.fullmatch("[0-9]{1,9}", pid := (process.findtext("pid") or "").strip()) else 0,
                "name": name and _foreign.printable(name) if (name := process.findtext("process_name")) else name,
                "used_mib": _mib(process.findtext("used_memory")),
                **({"gpu_instance": instance} if (instance := _told(process.findtext("gpu_instance_id"))) else {}),
            }
            for process in gpu.findall("processes/process_info")
        ]
        # Device and vendor, four digits each: 233510DE.
        device_id = (_told(gpu.findtext("pci/pci_device_id")) or "")[:4].lower() or None
        architecture = _told(gpu.findtext("product_architecture"))
        ecc = _told(gpu.findtext("ecc_mode/current_ecc"))
        gpus.append(
            {
                "index": index,
                "uuid": gpu.findtext("uuid"),
                "name": gpu.findtext("product_name"),
                "architecture": architecture,
                "compute_capability": _hardware.compute_capability(device_id, architecture),
                "pci_bus_id": gpu.findtext("pci/pci_bus_id"),
                "device_id": device_id,
                "memory_total_mib": _mib(gpu.findtext("fb_memory_usage/total")),
                "memory_used_mib": _mib(gpu.findtext("fb_memory_usage/used")),
                "memory_free_mib": _mib(gpu.findtext("fb_memory_usage/free")),
                "ecc_enabled": None if ecc is None else ecc == "Enabled",
                "mig_enabled": gpu.findtext("mig_mode/current_mig") == "Enabled",
                "mig_devices": _mig_devices(gpu, index),
                "fabric_state": _told(gpu.findtext("fabric/state")),
                "fabric_status": _told(gpu.findtext("fabric/status")),
                "processes": processes,
            }
        )
    return {
        "driver_version": root.findtext("driver_version"),
        "cuda_version": root.findtext("cuda_version"),
        "gpus": gpus,
    }


def parse_driver_version(text: str) -> str | None:
    """/proc/driver/nvidia/version to the version of the loaded kernel module."""
    match = re.search(r"^NVRM version:.*?Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text, re.MULTILINE)
    return match.group(1) if match else None


def parse_cdi_spec(text: str) -> dict[str, Any]:
    """A CDI specification to ``kind``, ``devices`` (names) and ``driver_version``.

    The driver version is read from the library names in it. Reads JSON as well as the YAML that nvidia-ctk writes,
    without a YAML parser: hosts need not have one.
    """
    try:
        spec = json.loads(text)
        kind = spec.get("kind")
        devices = [device["name"] for device in spec.get("devices", [])]
    except ValueError:
        kind_match = re.search(r"^kind:\s*\"?([^\s\"]+)", text, re.MULTILINE)
        kind = kind_match.group(1) if kind_match else None
        block = re.search(r"^devices:\n((?:[ -].*\n?)*)", text, re.MULTILINE)
        devices = re.findall(r"^ *-? *name:\s*\"?([^\s\"]+)\"?\s*$", block.group(1), re.MULTILINE) if block else []
    versions = re.findall(r"lib(?:cuda|nvidia-ml)\.so\.(\d+\.\d+(?:\.\d+)?)", text)
    return {"kind": kind, "devices": devices, "driver_version": versions[0] if versions else None}


def cdi_generator(text: str) -> str | None:
    """Who wrote a CDI specification, by the hooks in it: ``nvidia-ctk``, or None."""
    return "nvidia-ctk" if re.search(r"nvidia-cdi-hook|nvidia-ctk", text) else None


def duplicate_devices(specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Devices that more than one of the CDI specifications defines."""
    seen: dict[str, int] = {}
    for spec in specs:
        for name in set(spec["devices"]):
            device = f"{spec['kind']}={name}"
            seen[device] = seen.get(device, 0) + 1
    return sorted(device for device, count in seen.items() if count > 1)


def parse_listeners(text: str) -> list[dict[str, Any]]:
    """/proc/net/tcp or tcp6 to the listening sockets: ``address``, ``port``, ``inode``."""
    listeners = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != "0A":
            continue
        raw, port = fields[1].split(":")
        # The words of an address are little-endian.
        words = bytes.fromhex(raw)
        address = ipaddress.ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4)))
        address = getattr(address, "ipv4_mapped", None) or address
        listeners.append({"address": str(address), "port": int(port, 16), "inode": fields[9]})
    return listeners


def parse_systemctl_show(text: str) -> dict[str, dict[str, str]]:
    """``systemctl show`` of several units (blocks parted by empty lines) to properties by unit name."""
    units = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        values: dict[str, str] = {}
        for name, value in (line.split("=", 1) for line in block.splitlines() if "=" in line):
            # Of what may be there several times, as EnvironmentFiles, each has a line.
            values[name] = f"{values[name]}\n{value}" if values.get(name) else value
        if values.get("Id"):
            units[values["Id"]] = values
    return units


def parse_packages(text: str) -> dict[str, str]:
    """``dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n'`` to versions of installed packages."""
    rows = (line.split() for line in text.splitlines())
    return {row[-2]: row[-1] for row in rows if len(row) >= 3 and row[0].startswith(("i", "h")) and row[0][1] == "i"}


def parse_docker_info(text: str) -> dict[str, Any]:
    """``docker info --format '{{json .}}'`` to what the roles decide from."""
    try:
        info = json.loads(text)
    except ValueError:
        return {}
    # An engine that does not answer leaves ServerVersion empty and tells why in ServerErrors.
    if not info.get("ServerVersion"):
        return {}
    options = [str(option) for option in info.get("SecurityOptions") or []]
    swarm = (info.get("Swarm") or {}).get("LocalNodeState") or "inactive"
    return {
        "version": info["ServerVersion"],
        "root_dir": info.get("DockerRootDir"),
        "live_restore": bool(info.get("LiveRestoreEnabled")),
        "cdi_spec_dirs": info.get("CDISpecDirs") or [],
        "storage_driver": info.get("Driver"),
        "snapshotter": any("io.containerd.snapshotter" in str(value) for _, value in info.get("DriverStatus") or []),
        "cgroup_driver": info.get("CgroupDriver"),
        # Whether users in containers are others outside of them.
        "userns": "name=userns" in options,
        "swarm": swarm != "inactive",
        "containers_running": int(info.get("ContainersRunning") or 0),
    }


def image_id(text: str) -> str:
    """The id of an image as Docker writes it; Podman leaves the name of the sum out."""
    return text if text.startswith("sha256:") or not text else f"sha256:{text}"


def takes_cdi(podman: str | None) -> bool:
    """Whether this version of Podman gives containers devices by their CDI names."""
    return tuple(int(part) for part in re.findall(r"\d+", podman or "")[:2]) >= (4, 1)


def traces(
    name: str, units: Mapping[str, Iterable[str]], containers: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """What each container engine has of the unit NAME (its ``unit``, its ``container``), of those that have anything."""
    found = {
        engine: [what for what, names in (("unit", units[engine]), ("container", containers[engine])) if name in names]
        for engine in sorted(units)
    }
    return {engine: what for engine, what in found.items() if what}


def parse_docker_images(text: str) -> dict[str, str]:
    """``docker images`` as rows of repository, tag, digest and id to image ids by ``repository:tag`` and ``repository@digest``."""
    images = {}
    for row in text.splitlines():
        fields = row.split()
        if len(fields) != 4:
            continue
        repository, tag, digest, identity = fields
        # A part of the name that an image does not have is <none>.
        names = {f"{repository}:{tag}": tag, f"{repository}@{digest}": digest}
        images.update({name: identity for name, part in names.items() if "<none>" not in (repository, part)})
    return images


def parse_podman_images(text: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """``podman images --format json`` to image ids, and to labels, both by ``repository:tag`` and ``repository@digest``.

    An image for several architectures has two digests, and the table of ``podman images`` only shows one.
    """
    images: dict[str, str] = {}
    labels: dict[str, dict[str, str]] = {}
    try:
        for item in json.loads(text) or []:
            for name in [*(item.get("Names") or []), *(item.get("RepoDigests") or [])]:
                images[name], labels[name] = image_id(item["Id"]), item.get("Labels") or {}
    except (ValueError, TypeError, KeyError):
        return {}, {}
    return images, labels


def parse_containers(text: str) -> dict[str, dict[str, Any]]:
    """``docker inspect`` or ``podman inspect`` of NIM containers to their state by container name."""
    containers = {}
    for item in json.loads(text or "[]"):
        labels = item["Config"].get("Labels") or {}
        containers[item["Name"].lstrip("/")] = {
            "service": labels.get(SERVICE_LABEL),
            "config_hash": labels.get(CONFIG_HASH_LABEL),
            "image": item["Config"]["Image"],
            "image_id": image_id(item["Image"]),
            "running": bool(item["State"].get("Running")),
            "started_at": item["State"].get("StartedAt"),
            "exit_code": item["State"].get("ExitCode"),
            "restart_count": item.get("RestartCount", 0),
            "ports": sorted(
                {
                    int(binding["HostPort"])
                    for bindings in (item["HostConfig"].get("PortBindings") or {}).values()
                    for binding in bindings or []
                    if binding.get("HostPort")
                }
            ),
        }
    return containers


def container_services(text: str) -> dict[str, str | None]:
    """``docker inspect`` or ``podman inspect`` of NIM containers to the service of each, by container id."""
    return {
        item["Id"]: (item["Config"].get("Labels") or {}).get(SERVICE_LABEL)
        for item in json.loads(text or "[]")
        if "Id" in item
    }
