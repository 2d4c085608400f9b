# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host cannot become a NIM server, each reason with its cure. Private to the collection; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._contracts import CONTRACTS

GB = 10**9
#: Every check by its name; each can be downgraded to a warning.
CHECKS = (
    "os", "architecture", "systemd", "python", "memory", "clock", "disk", "port", "gpu_missing", "nvidia_smi", "gpu_in_use",
    "secure_boot", "signed_by", "docker_version", "driver_branch", "driver",
)  # fmt: skip
#: Units of NVIDIA's that hold GPUs and are stopped for a change of the driver.
OWN_UNITS = (
    "nvidia-persistenced.service", "nvidia-fabricmanager.service", "nvidia-imex.service", "nvidia-dcgm.service", "dcgm-exporter.service",
)  # fmt: skip
#: Engines that NIM containers do not start on, and why.
BAD_DOCKER = {"29.5.": "NVIDIA names it as broken for GPU containers"}
Problem = dict[str, str]


def _problem(check: str, message: str) -> Problem:
    return {"check": check, "message": message}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _platform(host: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Problem]:
    problems = []
    system = f"{host['os']['distribution']} {host['os']['major']}"
    if system not in wanted["supported_systems"]:
        problems.append(
            _problem(
                "os",
                f"operating system is {system}, supported are {', '.join(wanted['supported_systems'])};"
                " add it to preflight_supported_systems to try it.",
            )
        )
    if host["os"]["architecture"] not in wanted["architectures"]:
        problems.append(
            _problem(
                "architecture",
                f"architecture is {host['os']['architecture']}, wanted {' or '.join(wanted['architectures'])}; use another host.",
            )
        )
    if not host["systemd"]["running"]:
        problems.append(
            _problem(
                "systemd", "systemd does not run this host (no /run/systemd/system); NIM services are systemd units."
            )
        )
    elif (host["systemd"]["version"] or 0) < int(wanted["min_systemd"]):
        problems.append(
            _problem(
                "systemd",
                f"systemd is {host['systemd']['version']}, wanted {wanted['min_systemd']} or newer; upgrade the system.",
            )
        )
    if _version(host["python"]["version"]) < _version(str(wanted["min_python"])):
        problems.append(
            _problem(
                "python",
                f"Python is {host['python']['version']}, wanted {wanted['min_python']} or newer;"
                " install one and set ansible_python_interpreter.",
            )
        )
    return problems


def _resources(host: Mapping[str, Any], wanted: Mapping[str, Any], installs: int) -> list[Problem]:
    problems = []
    memory = host["memory"]["total"]
    if memory is not None and memory < float(wanted["min_memory_gb"]) * GB:
        problems.append(
            _problem(
                "memory",
                f"memory is {memory / GB:.1f} GB, wanted {wanted['min_memory_gb']} GB (preflight_min_memory_gb);"
                " NIM loads weights through host memory.",
            )
        )
    if abs(host["time"] - wanted["controller_time"]) > float(wanted["max_clock_skew"]):
        problems.append(
            _problem(
                "clock",
                f"clock is {host['time'] - wanted['controller_time']:+.0f} s off the controller's, allowed are {wanted['max_clock_skew']} s;"
                " TLS and package signatures need true time: start systemd-timesyncd or chrony.",
            )
        )
    # Space is needed for what is still to be installed, and file systems may be shared by several needs.
    needs: dict[str, float] = {}
    for path, gigabytes in wanted["disk_gb"].items():
        disk = host["disks"].get(path)
        if disk is None:
            continue
        if disk["read_only"]:
            problems.append(
                _problem("disk", f"{path} is on {disk['mount']}, which is mounted read-only; remount it with -o rw.")
            )
        needs[disk["mount"]] = needs.get(disk["mount"], 0) + float(gigabytes) * GB * installs
    for mount, needed in needs.items():
        free = next(disk["free"] for disk in host["disks"].values() if disk["mount"] == mount)
        if free < needed:
            paths = [path for path in wanted["disk_gb"] if host["disks"].get(path, {}).get("mount") == mount]
            problems.append(
                _problem(
                    "disk",
                    f"{mount} has {free / GB:.1f} GB free, wanted {needed / GB:.1f} GB for {' and '.join(paths)}"
                    f" of {installs} new service(s); free space or mount a larger disk there.",
                )
            )
    return problems


def _gpus(host: Mapping[str, Any], source: str) -> list[Problem]:
    if not host["hardware"]["gpus"]:
        told = (
            "no NVIDIA GPU is on the PCI bus, wanted one at least;"
            " check lspci -d 10de:, the BIOS and, in a virtual machine, the passthrough."
        )
        return [_problem("gpu_missing", told)]
    # Every other source brings the driver in a later stage.
    if source != "preinstalled":
        return []
    if host["driver"]["error"]:
        seen = " ".join(host["driver"]["error"].split())
        told = (
            f"nvidia-smi does not work: {seen} Wanted a driver, as nvidia_driver_source is preinstalled;"
            " install or load it, or choose another source."
        )
        return [_problem("nvidia_smi", told)]
    if not host["gpus"]:
        return [_problem("nvidia_smi", "nvidia-smi reports no GPU; check dmesg | grep -i nvrm.")]
    return []


def _driver(host: Mapping[str, Any], plan: Mapping[str, Any], services: list[dict[str, Any]]) -> list[Problem]:
    """What speaks against the planned driver, and against the driver there will be."""
    problems = []
    if plan["source"] != "preinstalled":
        problems += [_problem("driver", text) for text in plan["problems"]]
    if plan["change"] != "none":
        problems += _driver_change(host, plan)
    branch = int(plan["branch"]) if plan["change"] != "none" and plan["branch"].isdigit() else None
    loaded = host["driver"]["loaded_version"]
    branch = branch or (int(loaded.split(".")[0]) if loaded else None)
    for service in services:
        floor = CONTRACTS[service["contract"]]["driver_floor"] if service["state"] == "present" else 0
        if branch is not None and branch < floor:
            told = (
                f"service {service['name']}: its driver would be of branch {branch}, images of contract"
                f" {service['contract']} want {floor} or newer; set nvidia_driver_branch."
            )
            problems.append(_problem("driver_branch", told))
    return problems


def _driver_change(host: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Problem]:
    """What makes a change of the driver dangerous now."""
    problems = []
    foreign = [item for item in host["driver"]["holders"] if not item["service"] and item["unit"] not in OWN_UNITS]
    # Containers of the services hold GPUs by processes that belong to no unit of their own.
    if foreign and host["driver"]["loaded_version"]:
        who = ", ".join(
            f"{item['name']} (pid {item['pid']}{', ' + item['unit'] if item['unit'] else ''})" for item in foreign
        )
        told = f"the driver is to change ({plan['change']}), but the GPUs are held by {who}, wanted nobody else; stop them first."
        problems.append(_problem("gpu_in_use", told))
    built = plan["source"] in ("cuda_repo", "mirror") or bool(plan["prerequisites"])
    boot = host["secure_boot"]
    if boot["enabled"] and built and not boot["mok_enrolled"]:
        key = boot["mok_key"] or "/var/lib/dkms/mok.pub"
        told = (
            f"Secure Boot is on and the key that DKMS signs modules with ({key}) is not enrolled, wanted enrolled: the kernel would reject"
            f" the driver. Run mokutil --import {key} and confirm it on the console at the next boot, use signed modules"
            " (nvidia_driver_source: distribution on Ubuntu), or switch Secure Boot off."
        )
        problems.append(_problem("secure_boot", told))
    return problems


def _software(host: Mapping[str, Any]) -> list[Problem]:
    """Versions and sources of packages that are known to fail."""
    problems = []
    version = str(host["engine"].get("version") or "")
    for prefix, why in BAD_DOCKER.items():
        if version.startswith(prefix):
            told = f"Docker is {version}, wanted another version: {why}; upgrade or downgrade it, and hold it."
            problems.append(_problem("docker_version", told))
    claims: dict[tuple[str, str], dict[str, str]] = {}
    for entry in host["repositories"]:
        if entry["enabled"] and "deb" in entry["types"]:
            for uri in entry["uris"]:
                for suite in entry["suites"]:
                    claims.setdefault((uri.rstrip("/"), suite), {})[entry["path"]] = str(entry["signed_by"])
    for (uri, suite), paths in sorted(claims.items()):
        if len(set(paths.values())) > 1:
            told = (
                f"{uri} {suite} is listed with conflicting Signed-By in {' and '.join(sorted(paths))}, wanted one of them;"
                " apt reads no list until one is removed."
            )
            problems.append(_problem("signed_by", told))
    return problems


def _restarting(service: dict[str, Any], host: Mapping[str, Any], holders: list[Mapping[str, Any]]) -> bool:
    # While its unit restarts, a service's container is not listed though Docker holds its port already, or still.
    now = host["services"].get(service["name"]) or {}
    if not (now.get("unit") or {}).get("exists") or any(item["process"] != "docker-proxy" for item in holders):
        return False
    record = now.get("record")
    return not record or str(record.get("url", "")).endswith(f":{service['port']}")


def _ports(host: Mapping[str, Any], services: list[dict[str, Any]]) -> list[Problem]:
    problems = []
    own = {port for now in host["services"].values() for port in (now.get("container") or {}).get("ports", [])}
    for service in services:
        if service["state"] == "absent" or service["port"] in own:
            continue
        holders = [item for item in host["listeners"] if item["port"] == service["port"]]
        if holders and not _restarting(service, host, holders):
            who = f"{holders[0]['process'] or 'a process'} (pid {holders[0]['pid'] or 'unknown'})"
            problems.append(
                _problem(
                    "port",
                    f"service {service['name']}: port {service['port']} is held by {who} on {holders[0]['address']};"
                    f" stop it (ss -ltnp 'sport = :{service['port']}') or give the service another port.",
                )
            )
    return problems


def preflight_problems(
    host: Mapping[str, Any], wanted: Mapping[str, Any], services: list[dict[str, Any]]
) -> list[Problem]:
    """Every reason against this host, as ``check`` and ``message``; empty when it is fit.

    HOST is the result of gpu_host_info, SERVICES are resolved services. WANTED holds ``supported_systems``,
    ``architectures``, ``min_systemd``, ``min_python``, ``min_memory_gb``, ``max_clock_skew`` (s), ``controller_time``
    (s since 1970), ``driver_plan`` (the result of driver_plan) and ``disk_gb`` (path to GB per service that is not
    deployed yet).
    """
    deployed = {name for name, now in host["services"].items() if now.get("record")}
    installs = sum(service["state"] == "present" and service["name"] not in deployed for service in services)
    plan = wanted["driver_plan"]
    return [
        *_platform(host, wanted),
        *_gpus(host, plan["source"]),
        *_driver(host, plan, services),
        *_software(host),
        *_resources(host, wanted, installs),
        *_ports(host, services),
    ]
