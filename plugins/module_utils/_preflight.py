# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host cannot become a NIM server, each reason with its cure. Private to the collection; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GB = 10**9


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _platform(host: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    problems = []
    system = f"{host['os']['distribution']} {host['os']['major']}"
    if system not in wanted["supported_systems"]:
        problems.append(
            f"operating system is {system}, supported are {', '.join(wanted['supported_systems'])};"
            " add it to preflight_supported_systems to try it."
        )
    if host["os"]["architecture"] not in wanted["architectures"]:
        problems.append(
            f"architecture is {host['os']['architecture']}, wanted {' or '.join(wanted['architectures'])}; use another host."
        )
    if not host["systemd"]["running"]:
        problems.append("systemd does not run this host (no /run/systemd/system); NIM services are systemd units.")
    elif (host["systemd"]["version"] or 0) < int(wanted["min_systemd"]):
        problems.append(
            f"systemd is {host['systemd']['version']}, wanted {wanted['min_systemd']} or newer; upgrade the system."
        )
    if _version(host["python"]["version"]) < _version(str(wanted["min_python"])):
        problems.append(
            f"Python is {host['python']['version']}, wanted {wanted['min_python']} or newer;"
            " install one and set ansible_python_interpreter."
        )
    return problems


def _resources(host: Mapping[str, Any], wanted: Mapping[str, Any], installs: int) -> list[str]:
    problems = []
    memory = host["memory"]["total"]
    if memory is not None and memory < float(wanted["min_memory_gb"]) * GB:
        problems.append(
            f"memory is {memory / GB:.1f} GB, wanted {wanted['min_memory_gb']} GB (preflight_min_memory_gb); NIM loads weights through host memory."
        )
    if abs(host["time"] - wanted["controller_time"]) > float(wanted["max_clock_skew"]):
        problems.append(
            f"clock is {host['time'] - wanted['controller_time']:+.0f} s off the controller's, allowed are {wanted['max_clock_skew']} s;"
            " TLS and package signatures need true time: start systemd-timesyncd or chrony."
        )
    # Space is needed for what is still to be installed, and file systems may be shared by several needs.
    needs: dict[str, float] = {}
    for path, gigabytes in wanted["disk_gb"].items():
        disk = host["disks"].get(path)
        if disk is None:
            continue
        if disk["read_only"]:
            problems.append(f"{path} is on {disk['mount']}, which is mounted read-only; remount it with -o rw.")
        needs[disk["mount"]] = needs.get(disk["mount"], 0) + float(gigabytes) * GB * installs
    for mount, needed in needs.items():
        free = next(disk["free"] for disk in host["disks"].values() if disk["mount"] == mount)
        if free < needed:
            paths = [path for path in wanted["disk_gb"] if host["disks"].get(path, {}).get("mount") == mount]
            problems.append(
                f"{mount} has {free / GB:.1f} GB free, wanted {needed / GB:.1f} GB for {' and '.join(paths)}"
                f" of {installs} new service(s); free space or mount a larger disk there."
            )
    return problems


def _gpus(host: Mapping[str, Any]) -> list[str]:
    if host["driver"]["error"]:
        return [
            f"nvidia-smi does not work: {' '.join(host['driver']['error'].split())} Install or load the NVIDIA driver, then try again."
        ]
    if not host["gpus"]:
        return ["nvidia-smi reports no GPU; check lspci -d 10de: and dmesg."]
    return []


def _restarting(service: dict[str, Any], host: Mapping[str, Any], holders: list[Mapping[str, Any]]) -> bool:
    # While its unit restarts, a service's container is not listed though Docker holds its port already, or still.
    now = host["services"].get(service["name"]) or {}
    if not (now.get("unit") or {}).get("exists") or any(item["process"] != "docker-proxy" for item in holders):
        return False
    record = now.get("record")
    return not record or str(record.get("url", "")).endswith(f":{service['port']}")


def _ports(host: Mapping[str, Any], services: list[dict[str, Any]]) -> list[str]:
    problems = []
    own = {port for now in host["services"].values() for port in (now.get("container") or {}).get("ports", [])}
    for service in services:
        if service["state"] == "absent" or service["port"] in own:
            continue
        holders = [item for item in host["listeners"] if item["port"] == service["port"]]
        if holders and not _restarting(service, host, holders):
            who = f"{holders[0]['process'] or 'a process'} (pid {holders[0]['pid'] or 'unknown'})"
            problems.append(
                f"service {service['name']}: port {service['port']} is held by {who} on {holders[0]['address']};"
                f" stop it (ss -ltnp 'sport = :{service['port']}') or give the service another port."
            )
    return problems


def preflight_problems(host: Mapping[str, Any], wanted: Mapping[str, Any], services: list[dict[str, Any]]) -> list[str]:
    """Every reason against this host, empty when it is fit.

    HOST is the result of gpu_host_info, SERVICES are resolved services. WANTED holds ``supported_systems``,
    ``architectures``, ``min_systemd``, ``min_python``, ``min_memory_gb``, ``max_clock_skew`` (s), ``controller_time``
    (s since 1970) and ``disk_gb`` (path to GB per service that is not deployed yet).
    """
    deployed = {name for name, now in host["services"].items() if now.get("record")}
    installs = sum(service["state"] == "present" and service["name"] not in deployed for service in services)
    return _platform(host, wanted) + _gpus(host) + _resources(host, wanted, installs) + _ports(host, services)
