# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host cannot become a NIM server, each reason with its cure. Private to the collection; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import (
    _clock,
    _driver_data,
    _gpus,
    _occupancy,
    _toolkit_plan,
    _transactions,
)
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import CONTRACTS
from ansible_collections.baremetal.nim.plugins.module_utils._written import Written, near, option_problems

GB = 10**9
#: Every check by its name; each can be downgraded to a warning.
CHECKS = (
    "os", "architecture", "package_manager", "systemd", "python", "memory", "clock", "disk", "port", "gpu_missing", "nvidia_smi",
    "gpu_in_use", "gpu_memory", "secure_boot", "kernel_headers", "kernel_pending", "mixed_origins", "duplicate_sources",
    "signed_by", "docker_version", "podman_version", "driver_branch", "driver", "login_uid", "engine", "engine_restart",
    "kubernetes_node", "transaction",
)  # fmt: skip
PACKAGE_MANAGERS = ("apt", "dnf")
#: Units of NVIDIA's that hold GPUs and are stopped for a change of the driver, or end by themselves.
OWN_UNITS = (
    "nvidia-persistenced.service", "nvidia-fabricmanager.service", "nvidia-imex.service", "nvidia-dcgm.service", "dcgm-exporter.service",
    "nvidia-cdi-refresh.service",
)  # fmt: skip
#: Engines that do not do it, by the beginning of their version, and why.
BAD_DOCKER = {"29.5.": "it fails to pull from nvcr.io (Incorrect Repository Format)"}
#: The first Podman that does it (Quadlet with all keys that are used, logins in Docker's file), and the older ones that systems bring.
PODMAN = (4, 8)
SYSTEM_PODMAN = {"Debian 12": "4.3.1", "Ubuntu 22": "3.4.4", "Ubuntu 24": "4.9.3"}
#: What holds a published port while its unit restarts.
PORT_HOLDERS = {"docker": "docker-proxy", "podman": "conmon"}
Problem = dict[str, str]


def _problem(check: str, message: str, severity: str = "error") -> Problem:
    return {"check": check, "message": message, "severity": severity}


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
    manager = host["os"].get("package_manager")
    if manager not in PACKAGE_MANAGERS:
        told = (
            f"package manager is {manager or 'none that is known'}, wanted {' or '.join(PACKAGE_MANAGERS)};"
            " no role can install anything: use another system."
        )
        problems.append(_problem("package_manager", told))
    busy = host["package_state"].get("busy")
    if busy:
        told = (
            f"process {busy} has been working on the packages for minutes, wanted nobody; wait for it, or see what it does:"
            f" ps -fp {busy}"
        )
        problems.append(_problem("package_manager", told))
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
    skewed = _clock.sentence(host["clock"], host["time"], float(wanted["max_clock_skew"]))
    if skewed:
        problems.append(_problem("clock", skewed))
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
        free = next(disk["free"] for disk in host["disks"].values() if disk and disk["mount"] == mount)
        if free < needed:
            paths = [path for path in wanted["disk_gb"] if (host["disks"].get(path) or {}).get("mount") == mount]
            problems.append(
                _problem(
                    "disk",
                    f"{mount} has {free / GB:.1f} GB free, wanted {needed / GB:.1f} GB for {' and '.join(paths)}"
                    f" of {installs} new service(s); free space or mount a larger disk there.",
                )
            )
    return problems


def _unanswered(host: Mapping[str, Any]) -> list[Problem]:
    """What of the host did not answer. No warning can be made of these: what it would have said is not known."""
    return [
        {"check": "unanswered", "message": item["message"], "severity": "error"}
        for item in host.get("unanswered") or []
    ]


def _gpu_problems(host: Mapping[str, Any], source: str) -> list[Problem]:
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


def _driver(
    host: Mapping[str, Any], plan: Mapping[str, Any], services: list[dict[str, Any]], needs: Mapping[str, Any]
) -> list[Problem]:
    """What speaks against the planned driver, and against the driver there will be."""
    problems = []
    if plan["source"] != "preinstalled":
        problems += [_problem("driver", text) for text in plan["problems"]]
    changes = plan["change"] != "none"
    if changes:
        problems += _driver_change(host, plan)
    version = str((plan.get("version") or plan["branch"]) if changes else host["driver"]["loaded_version"] or "")
    if not re.match(r"\d{3}(\.|$)", version):
        return problems
    branch = int(version.split(".")[0])
    for service in services:
        if service["state"] != "present":
            continue
        floor = CONTRACTS[service["contract"]]["driver_floor"]
        if branch < floor:
            told = (
                f"service {service['name']}: its driver would be of branch {branch}, images of contract"
                f" {service['contract']} want {floor} or newer; set nvidia_driver_branch."
            )
            problems.append(_problem("driver_branch", told))
            continue
        need = needs.get(service["name"], {}).get("driver")
        # Of a branch without a version, the newest is taken.
        least = _version(need or "")[: None if "." in version else 1]
        if _version(version) < least:
            told = (
                f"service {service['name']}: its driver would be {version}, the image wants {need} or newer"
                f" ({needs[service['name']]['source']}); set nvidia_driver_branch, or nvidia_driver_version."
            )
            problems.append(_problem("driver_branch", told))
    return problems


def _driver_change(host: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Problem]:
    """What makes a change of the driver impossible or dangerous now."""
    problems = []
    # Canonical and Red Hat build and sign the modules of their archives; DKMS builds all others on the host.
    built = plan["source"] != "distribution" or host["os"]["distribution"] not in _driver_data.SIGNED
    boot = host["secure_boot"]
    if boot["enabled"] and built and not boot["mok_enrolled"]:
        key = boot["mok_key"] or "/var/lib/dkms/mok.pub"
        told = (
            f"Secure Boot is on and the key that DKMS signs modules with ({key}) is not enrolled, wanted enrolled: the kernel would reject"
            f" the driver. Run mokutil --import {key} and confirm it on the console at the next boot, use signed modules"
            " (nvidia_driver_source: distribution on Ubuntu or Red Hat Enterprise Linux), or switch Secure Boot off."
        )
        problems.append(_problem("secure_boot", told))
    kernel = host["kernel"]
    # A repository of unknown origin may be a mirror of the distribution, and the driver's own mirror may have them too.
    sources = [
        entry for entry in host["repositories"] if entry["enabled"] and entry["origin"] in ("distribution", "other")
    ]
    headers = [name for name in plan["prerequisites"] if name.startswith(("linux-headers-", "kernel-devel-"))]
    if headers and not kernel["headers"] and not sources and plan["source"] != "mirror":
        told = (
            f"headers of the running kernel {kernel['running']} are not installed and no repository of"
            f" {host['os']['distribution']} is enabled, wanted {', '.join(headers)}: the driver's modules are built"
            " with them. Install them, or enable a repository that has them."
        )
        problems.append(_problem("kernel_headers", told))
    if kernel["pending"] and built:
        told = (
            f"kernel {kernel['running']} runs and {kernel['newest']} is installed: the driver is built for the one that runs."
            " Reboot before the driver changes, or install the headers of both, so that DKMS builds it for the next boot too."
        )
        problems.append(_problem("kernel_pending", told, "warning"))
    return problems


def _in_use(host: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Problem]:
    """Processes on the GPUs that nobody will stop. Containers of the services hold GPUs too, and belong to no unit."""
    users = {item["pid"]: item for item in host["driver"]["holders"]}
    for gpu in host["gpus"]:
        for item in gpu.get("processes") or []:
            users.setdefault(item["pid"], {**item, "unit": None})
    foreign = [item for _, item in sorted(users.items()) if not item.get("service") and item["unit"] not in OWN_UNITS]
    if not foreign or not host["driver"]["loaded_version"]:
        return []
    who = ", ".join(
        f"{item['name'] or 'a process'} (pid {item['pid']}{', ' + item['unit'] if item['unit'] else ''})"
        for item in foreign
    )
    if plan["change"] == "none":
        told = f"the GPUs are also held by {who}, wanted NIM services alone; they share memory with them: stop them if it runs short."
        return [_problem("gpu_in_use", told, "warning")]
    told = f"the driver is to change ({plan['change']}), but the GPUs are held by {who}, wanted nobody else; stop them first."
    return [_problem("gpu_in_use", told)]


def _memory(host: Mapping[str, Any], services: list[dict[str, Any]], needs: Mapping[str, Any]) -> list[Problem]:
    """GPUs that are too small for what NVIDIA published about an image, or filled by others; without a driver their memory is unknown."""
    problems = []
    present = _gpus.devices(host["gpus"])
    for service in services:
        need = needs.get(service["name"])
        if service["state"] != "present":
            continue
        if need and not need["answered"]:
            told = (
                f"service {service['name']}: what it needs of a GPU is not known, {need['source']}: {need['note']};"
                " wanted an answer, or an empty preflight_metadata_url where there is no way out."
            )
            problems.append(_problem("gpu_memory", told, "warning"))
        keys = _gpus.of_service(service, present) if service.get("gpus") else []
        given = [device for device in present if device.key in keys]
        least, count = (need or {}).get("memory_mib") or 0, (need or {}).get("gpus")
        large = [device for device in given if device.memory is None or device.memory >= least * 2**20]
        if need and given and len(large) < (count or 1):
            seen = ", ".join(
                f"GPU {device.short} ({device.model}, {device.memory // 2**20 if device.memory else 'unknown'} MiB)"
                for device in given
            )
            told = (
                f"service {service['name']}: it gets {seen}, wanted {count or 1} GPU(s) with {least or 'any number of'} MiB each"
                f" ({need['note']}; {need['source']}); give it other GPUs or choose another profile."
            )
            problems.append(_problem("gpu_memory", told))
        elif not _occupancy.unchanged(service, host):
            # Of all GPUs an engine takes those that it finds free, of GPUs that are named it takes all.
            wanted = count or (1 if service.get("gpus") == ["all"] else len(given))
            problems += _filled(host, service, services, needs, large, wanted)
    return problems


def _filled(
    host: Mapping[str, Any],
    service: Mapping[str, Any],
    services: list[dict[str, Any]],
    needs: Mapping[str, Any],
    given: list[_gpus.Device],
    count: int,
) -> list[Problem]:
    """GPUs of a service that will be started whose memory others hold: not enough is left on COUNT of those that it is GIVEN."""
    present = _gpus.devices(host["gpus"])
    found = [_occupancy.shortage(service, device, host, services, needs, present) for device in given]
    short = [item for item in found if item is not None]
    if not short:
        return []
    told = f"service {service['name']}: {'; '.join(map(str, short))}."
    pids = sorted({pid for item in short for pid in item.strangers.pids})
    look = f" Next: ps -fp {','.join(map(str, pids))}" if pids else " Next: nvidia-smi"
    if len(given) - len(short) >= count:
        told += " It has others beside; name those by gpus if its engine takes the wrong one."
        return [_problem("gpu_memory", told + look, "warning")]
    lower = CONTRACTS[str(service.get("contract") or "classic")]["memory_variable"]
    cure = " Stop who holds it, give the service other GPUs" + (
        f", or let it take less ({lower} in env)." if lower else "."
    )
    return [_problem("gpu_memory", told + cure + look)]


def _origin_of(name: str, version: str, origins: Mapping[str, str]) -> str | None:
    # A few names are the same in Ubuntu's archive and in NVIDIA's repository; Ubuntu's updates tell of their release.
    if re.fullmatch(origins["distribution"], name) or "-0ubuntu0." in version:
        return "distribution"
    return "cuda_repo" if re.fullmatch(origins["cuda_repo"], name) else None


def _mixed(host: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Problem]:
    """Packages of the driver from the distribution next to those of NVIDIA's repository."""
    # A plan that has to change them says so itself, with the packages to remove.
    if plan["change"] != "none" and plan["problems"]:
        return []
    origins = _driver_data.ORIGINS.get(str(host["os"].get("package_manager")))
    if not origins:
        return []
    found: dict[str, list[str]] = {}
    for name, version in sorted(host["packages"].items()):
        if re.fullmatch("|".join(origins.values()), name):
            found.setdefault(_origin_of(name, version, origins) or "", []).append(name)
    ours, theirs = found.get("distribution"), found.get("cuda_repo")
    cure = "keep one origin: the other's packages break the next upgrade."
    if ours and theirs:
        told = f"driver packages are of the distribution ({', '.join(ours)}) and of NVIDIA's repository ({', '.join(theirs)}); {cure}"
        return [_problem("mixed_origins", told)]
    enabled = sorted(
        {entry["path"] for entry in host["repositories"] if entry["enabled"] and entry["origin"] == "cuda"}
    )
    if ours and enabled and plan["source"] in ("distribution", "preinstalled"):
        told = (
            f"driver packages are of the distribution ({', '.join(ours)}) and NVIDIA's repository is enabled"
            f" ({', '.join(enabled)}); {cure} Disable it, or hold the driver."
        )
        return [_problem("mixed_origins", told, "warning")]
    return []


def _podman(host: Mapping[str, Any]) -> str:
    """Version of the Podman that a host has or would get, empty where that is new or not known."""
    system = f"{host['os']['distribution']} {host['os']['major']}"
    return str((host.get("podman") or {}).get("version") or SYSTEM_PODMAN.get(system, ""))


def podman_problems(host: Mapping[str, Any]) -> list[str]:
    """What speaks against Podman as the engine of a host: the one that it has, or would get."""
    version = _podman(host)
    if not version or _version(version) >= PODMAN:
        return []
    told = (
        f"Podman of this host ({host['os']['distribution']} {host['os']['major']}) is {version}, wanted {'.'.join(map(str, PODMAN))}"
        " or newer, which runs Quadlet files as they are"
        " written here; use Debian 13, Ubuntu 24.04 or newer, install another Podman, or set nim_container_engine: docker."
    )
    return [told]


def _engines(host: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Problem]:
    """Engines that are known to fail."""
    if wanted.get("engine") == "podman":
        return [_problem("podman_version", text) for text in podman_problems(host)] or _podman_cdi(host, wanted)
    problems = []
    # The role container_engine brings the version that is asked for.
    version = str(wanted.get("docker_version") or host["engine"].get("version") or "").split(":")[-1]
    for prefix, why in BAD_DOCKER.items():
        if version.startswith(prefix):
            told = (
                f"Docker is {version}, wanted none of {prefix}x: {why}; install another, 29.4.3 for instance"
                " (container_engine_version), and hold it."
            )
            problems.append(_problem("docker_version", told))
    return problems + _podman_cdi(host, wanted)


def _packages(wanted: Mapping[str, Any]) -> list[Problem]:
    """What stages would take away, as the package manager says."""
    return [
        _problem("transaction", text) for text in _transactions.transaction_problems(wanted.get("transactions") or {})
    ]


def _found_engine(wanted: Mapping[str, Any]) -> list[Problem]:
    """What speaks against the engine that is there, or against bringing one."""
    return [_problem(item["check"], item["message"]) for item in (wanted.get("engine_plan") or {}).get("problems", [])]


def _podman_cdi(host: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Problem]:
    """A Podman that does not read the toolkit's specifications."""
    problems = []
    podman = _podman(host) if wanted.get("engine") == "podman" or host.get("podman") else ""
    toolkit = wanted.get("toolkit") or {}
    bad = _version(str(toolkit.get("version") or "").split("-")[0]) >= _toolkit_plan.FIRST_WITH_CDI_07
    if podman and bad and _toolkit_plan.CDI_05_FLAG not in (toolkit.get("feature_flags") or []):
        first = _toolkit_plan.ENGINES["podman"][2]
        if _version(podman) < first:
            told = (
                f"Podman is {podman} and does not read the CDI specifications of toolkit {toolkit['version']}, wanted"
                f" {'.'.join(map(str, first))} or newer; upgrade Podman, set nvidia_container_toolkit_cdi_feature_flags:"
                f" [{_toolkit_plan.CDI_05_FLAG}], or, if it runs no GPU containers, preflight_warn_only: [podman_version]."
            )
            # Beside Docker it may run no GPU container at all.
            severity = "error" if toolkit.get("engine") == "podman" else "warning"
            problems.append(_problem("podman_version", told, severity))
    return problems


def _sources(host: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Problem]:
    """Repositories of apt that are listed more than once."""
    # What the driver's role is about to remove is no problem.
    retired = set(plan["retired"]["files"]) if plan["change"] != "none" and "retired" in plan else set()
    claims: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in host["repositories"]:
        if entry["enabled"] and "deb" in entry["types"] and entry["path"] not in retired:
            for uri in entry["uris"]:
                for suite in entry["suites"]:
                    claims.setdefault((uri.rstrip("/"), suite), []).append(entry)
    problems = []
    for (uri, suite), entries in sorted(claims.items()):
        paths = sorted({entry["path"] for entry in entries})
        if len({str(entry["signed_by"]) for entry in entries}) > 1:
            told = (
                f"{uri} {suite} is listed with conflicting Signed-By in {' and '.join(paths)}, wanted one of them;"
                " apt reads no list until one is removed."
            )
            problems.append(_problem("signed_by", told))
        elif len(paths) > 1 and any(_watched(entry, host) for entry in entries):
            told = f"{uri} {suite} is listed in {' and '.join(paths)}, wanted one of them; remove the others."
            problems.append(_problem("duplicate_sources", told))
    return problems


def _watched(entry: Mapping[str, Any], host: Mapping[str, Any]) -> bool:
    # A distribution's own lists may overlap as they like, and nvidia_container_toolkit removes files that only name its own.
    if entry["origin"] != "toolkit":
        return entry["origin"] in ("cuda", "docker")
    return any(other["path"] == entry["path"] and other["origin"] != "toolkit" for other in host["repositories"])


def _restarting(service: dict[str, Any], port: int, host: Mapping[str, Any], holders: list[Mapping[str, Any]]) -> bool:
    # While its unit restarts, a service's container is not listed though the engine holds its port already, or still.
    now = host["services"].get(service["name"]) or {}
    names = [PORT_HOLDERS[engine] for engine in now.get("engines") or ("docker",)]
    if not (now.get("unit") or {}).get("exists") or any(item["process"] not in names for item in holders):
        return False
    record = now.get("record")
    return not record or str(record.get("url", "")).endswith(f":{port}") or record.get("grpc_port") == port


def _ports(host: Mapping[str, Any], services: list[dict[str, Any]]) -> list[Problem]:
    problems = []
    own = {port for now in host["services"].values() for port in (now.get("container") or {}).get("ports", [])}
    wanted = [
        (service, service[key])
        for service in services
        if service["state"] != "absent"
        for key in ("port", "grpc_port")
        if service[key] and service[key] not in own
    ]
    for service, port in wanted:
        holders = [item for item in host["listeners"] if item["port"] == port]
        if holders and not _restarting(service, port, host, holders):
            who = f"{holders[0]['process'] or 'a process'} (pid {holders[0]['pid'] or 'unknown'})"
            problems.append(
                _problem(
                    "port",
                    f"service {service['name']}: port {port} is held by {who} on {holders[0]['address']};"
                    f" stop it (ss -ltnp 'sport = :{port}') or give the service another port.",
                )
            )
    return problems


def _logins(host: Mapping[str, Any], services: list[dict[str, Any]]) -> list[Problem]:
    """Users of the host who are to its kernel the same as those of containers."""
    problems = []
    same: dict[int, list[str]] = {}
    for service in services:
        if service["state"] == "present" and service.get("uid"):
            same.setdefault(service["uid"], []).append(service["name"])
    for uid, names in same.items():
        user = (host.get("users") or {}).get(str(uid)) or {}
        if user.get("logs_in"):
            told = (
                f"uid {uid}, as which the containers of {', '.join(names)} run, is also that of {user['name']}, who logs in to this host"
                f" ({user['shell']}), wanted nobody's: {user['name']} can read their environment in /proc, with the key in it while weights are"
                " staged and where a service says key_at_runtime, and can change their caches. Give the user another uid"
                f" (usermod -u), or take {user['name']}'s login away; docs/security.md says more."
            )
            problems.append(_problem("login_uid", told, "warning"))
    return problems


def _downgraded(problems: Iterable[Problem], asked: str | Iterable[str]) -> list[Problem]:
    """Problems with those warnings that are asked to be; a name that is none is a problem itself."""
    # On a command line a list is a text.
    names = re.findall(r"[^\s,]+", asked) if isinstance(asked, str) else list(asked)
    unknown = [
        {
            "check": "preflight_warn_only",
            "message": f"preflight_warn_only has {name!r}, wanted names of checks: {', '.join(CHECKS)}.{near(str(name), CHECKS)}",
            "severity": "error",
        }
        for name in names
        if name not in CHECKS
    ]
    return unknown + [
        {**problem, "severity": "warning"} if problem["check"] in names else problem for problem in problems
    ]


#: What is text of that which preflight is asked for.
_TEXTS = {
    "supported_systems": "preflight_supported_systems",
    "architectures": "preflight_architectures",
    "min_python": "preflight_min_python",
    "docker_version": "container_engine_version",
}


def _unquoted(wanted: Mapping[str, Any], written: Mapping[str, Written]) -> list[Problem]:
    """Versions and names of which YAML has made numbers. It is no check of the host, so none that could only warn."""
    python, source = wanted["min_python"], written.get("min_python")
    if isinstance(python, float) and (source.text == str(python) if source else python != 3.1):
        # Nothing is lost of 3.11; only 3.10 is another one without its zero.
        wanted = {**wanted, "min_python": str(python)}
    toolkit = {"version": (wanted.get("toolkit") or {}).get("version")}
    told = option_problems(wanted, _TEXTS, written)
    told += option_problems(toolkit, {"version": "nvidia_container_toolkit_version"})
    return [{"check": "options", "message": text, "severity": "error"} for text in told]


def preflight_problems(
    host: Mapping[str, Any],
    wanted: Mapping[str, Any],
    services: list[dict[str, Any]],
    requirements: Mapping[str, Any] | None = None,
    written: Mapping[str, Written] | None = None,
) -> list[Problem]:
    """Every reason against this host, as ``check``, ``message`` and ``severity`` (error or warning); empty when it is fit.

    HOST is the result of gpu_host_info, SERVICES are resolved services, REQUIREMENTS those of nim_requirements. WANTED
    holds ``supported_systems``, ``architectures``, ``min_systemd``, ``min_python``, ``min_memory_gb``, ``max_clock_skew``
    (s), ``driver_plan`` (the result of driver_plan), ``disk_gb`` (path to GB per service that is not deployed yet) and, where they
    are known, ``engine_plan`` (the result of engine_plan), ``transactions`` (simulated by package_transaction), ``engine``,
    ``docker_version`` (to be installed), ``toolkit`` (``version``, ``feature_flags``) and ``warn_only`` (names of checks). WRITTEN: how
    of it what is no text stands in a file.
    """
    silent = _unanswered(host)
    programs = {item["program"] for item in host.get("unanswered") or []}
    if programs - {"nvidia-smi", "file system"}:
        # What was not told looks like what is not there.
        return silent
    deployed = {name for name, now in host["services"].items() if now.get("record")}
    installs = sum(service["state"] == "present" and service["name"] not in deployed for service in services)
    plan = wanted["driver_plan"]
    needs = requirements or {}
    problems = [
        *silent,
        *_unquoted(wanted, written or {}),
        *_platform(host, wanted),
        *([] if "nvidia-smi" in programs else _gpu_problems(host, plan["source"])),
        *_in_use(host, plan),
        *_memory(host, services, needs),
        *_driver(host, plan, services, needs),
        *_mixed(host, plan),
        *_sources(host, plan),
        *_engines(host, wanted),
        *_found_engine(wanted),
        *_packages(wanted),
        *_resources(host, wanted, installs),
        *_ports(host, services),
        *_logins(host, services),
    ]
    return _downgraded(problems, wanted.get("warn_only") or [])
