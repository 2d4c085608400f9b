# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects the raw texts of a host's hardware and system; what they mean is in _hardware.py and _system.py. Private.

Files are read here. Commands are run by what the caller hands in, as few as possible: each costs some milliseconds.
"""

from __future__ import annotations

import glob
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _hardware, _host, _kernel_module, _system

#: Runs a command: exit status (127 when there is none of that name), standard output, standard error.
Run = Callable[..., "tuple[int, str, str]"]


def read_bytes(path: str) -> bytes:
    """Content of a file, empty when it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except OSError:
        return b""


def read_text(path: str) -> str:
    """Text of a file, empty when it cannot be read."""
    return read_bytes(path).decode("utf-8", errors="replace")


def names_in(path: str) -> list[str]:
    """Sorted names in a folder, none when there is no such folder."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


class Survey:
    """One look at a host. ROOTS has the folders below which to look: ``proc``, ``sys``, ``etc``, ``lib_modules``…"""

    def __init__(self, run: Run, roots: Mapping[str, str]) -> None:
        self.run = run
        self.roots = roots
        self.sockets: dict[str, int] = {}
        self.holders: list[int] = []
        self.package_manager: int | None = None

    def path(self, root: str, *parts: str) -> str:
        """A path below one of the roots."""
        return os.path.join(self.roots[root], *parts)

    def text(self, root: str, *parts: str) -> str:
        """Text of a file below one of the roots."""
        return read_text(self.path(root, *parts))

    # -- processes -----------------------------------------------------------------------------------------------------

    def descriptors(self) -> None:
        """Looks once at every open file of every process: who holds which socket, who a GPU, who the package database."""
        self.sockets, self.holders, self.package_manager = {}, [], None
        proc = self.roots["proc"]
        for pid in names_in(proc):
            if not pid.isdigit():
                continue
            folder = f"{proc}/{pid}/fd"
            holds = False
            for name in names_in(folder):
                try:
                    target = os.readlink(f"{folder}/{name}")
                except OSError:
                    continue
                if target.startswith("socket:["):
                    self.sockets[target[8:-1]] = int(pid)
                elif target.startswith("/dev/nvidia"):
                    holds = True
                elif target in _system.PACKAGE_LOCKS:
                    self.package_manager = int(pid)
            if holds and int(pid) != os.getpid():
                self.holders.append(int(pid))
        self.holders.sort()

    def owner(self, pid: int) -> tuple[str | None, str | None]:
        """Service and container of a process."""
        return _system.owner(self.text("proc", str(pid), "cgroup"))

    def gpu_holders(self, services: Mapping[str, str | None]) -> list[dict[str, Any]]:
        """Processes that have a GPU's device node open. SERVICES has the NIM service by container id."""
        found = []
        for pid in self.holders:
            unit, container = self.owner(pid)
            found.append(
                {
                    "pid": pid,
                    "name": self.text("proc", str(pid), "comm").strip() or None,
                    "unit": unit,
                    "service": services.get(container or ""),
                }
            )
        return found

    # -- hardware and driver -------------------------------------------------------------------------------------------

    def functions(self) -> list[dict[str, Any]]:
        """PCI functions of NVIDIA and of what may stand before an NVSwitch."""
        found = []
        root = self.path("sys", "bus/pci/devices")
        for address in names_in(root):
            home = os.path.join(root, address)
            vendor = read_text(f"{home}/vendor").strip()[2:]
            # Virtual functions of a GPU belong to guests.
            if vendor not in (_hardware.NVIDIA, _hardware.MELLANOX) or os.path.lexists(f"{home}/physfn"):
                continue
            try:
                driver = os.path.basename(os.readlink(f"{home}/driver"))
            except OSError:
                driver = None
            found.append(
                {
                    "address": address,
                    "vendor": vendor,
                    "device": read_text(f"{home}/device").strip()[2:].lower(),
                    "class": read_text(f"{home}/class").strip()[2:6].lower(),
                    "driver": driver,
                    "home": home,
                }
            )
        return found

    def hardware(self) -> dict[str, Any]:
        """GPUs, switches and superchips."""
        functions = self.functions()
        # Read by PCI function: /sys/class/infiniband is empty while mlx5_ib, which is to be loaded, is not.
        homes: list[str] = []
        if _hardware.wants_nvlink5(functions):
            homes = [item["home"] for item in functions if _hardware.may_have_switch(item)]
            homes = homes or glob.glob(self.path("sys", "class/infiniband/*/device"))
        vpds = (read_bytes(f"{home}/vpd") for home in homes)
        soc_ids = [read_text(path) for path in glob.glob(self.path("sys", "devices/soc*/soc_id"))]
        return _hardware.describe(functions, vpds, soc_ids)

    def modules(self) -> dict[str, list[str]]:
        """Loaded modules with those that use each. What is built into the kernel has no state and is left out."""
        root = self.path("sys", "module")
        return {
            name: names_in(f"{root}/{name}/holders")
            for name in names_in(root)
            if os.path.exists(f"{root}/{name}/initstate")
        }

    def driver(self, hardware: Mapping[str, Any], units: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """The driver in the kernel and on disk, what competes with it, and the services around it."""
        loaded = self.text("proc", "driver/nvidia/version")
        names = (name for name in names_in(self.path("etc", "modprobe.d")) if name.endswith(".conf"))
        name = _system.module_name("\n".join(self.text("etc", "modprobe.d", name) for name in names))
        module = _system.parse_modinfo(self.run("modinfo", name)[1])
        return {
            "loaded_version": _host.parse_driver_version(loaded),
            "flavour": _system.flavour(loaded, module.get("license")),
            "module_version": module.get("version"),
            "module_license": module.get("license"),
            "module_signer": module.get("signer") or None,
            "nouveau": {
                "loaded": "nouveau" in self.modules(),
                "bound": [gpu["address"] for gpu in hardware["gpus"] if gpu["driver"] == "nouveau"],
            },
            "units": {name: _system.unit_state(units.get(name, {})) for name in _system.DRIVER_UNITS},
            "stopped_units": _kernel_module.parse_stopped(self.text("run", "nim/driver-stopped.json")),
        }

    # -- firmware and kernels ------------------------------------------------------------------------------------------

    def secure_boot(self) -> dict[str, Any]:
        """Secure Boot, and whether the key that DKMS signs with is enrolled."""
        folder = self.path("sys", "firmware/efi/efivars")
        variables = {name.split("-")[0]: os.path.join(folder, name) for name in names_in(folder)}
        variable = read_bytes(variables.get("SecureBoot", ""))
        shim = read_bytes(variables.get("MokSBStateRT", ""))
        state = "" if variable else self.run("mokutil", "--sb-state")[1]
        keys = [self.path("var", "lib/shim-signed/mok/MOK.der"), self.path("var", "lib/dkms/mok.pub")]
        enabled = _system.secure_boot(variable, shim, state)
        key = next((path for path in keys if os.path.exists(path)), None)
        enrolled = (
            _system.key_enrolled("".join(self.run("mokutil", "--test-key", key)[1:])) if enabled and key else None
        )
        return {"enabled": enabled, "mok_enrolled": enrolled, "mok_key": key}

    def kernel(self) -> dict[str, Any]:
        """Kernels, and headers of the running one."""
        running = platform.release()
        build = self.path("lib_modules", running, "build")
        try:
            target = os.readlink(build)
        except OSError:
            target = build
        # Distributions let it point to an absolute path there.
        if target.startswith("/usr/src/"):
            target = self.path("usr_src", target[len("/usr/src/") :])
        headers = os.path.exists(os.path.join(os.path.dirname(build), target))
        images = names_in(self.roots["boot"])
        images += [f"vmlinuz-{path.split('/')[-2]}" for path in glob.glob(self.path("lib_modules", "*/vmlinuz"))]
        return _system.kernels(running, images, headers)

    def reboot(self, driver: Mapping[str, Any], kernel: Mapping[str, Any]) -> dict[str, Any]:
        """Whether the host needs a reboot."""
        marker = os.path.exists(self.path("run", "reboot-required"))
        marked = self.text("run", "reboot-required.pkgs").split()
        return _system.reboot(driver, kernel, marker, marked)

    # -- packages ------------------------------------------------------------------------------------------------------

    def packages(self, patterns: Iterable[str], own: Iterable[str]) -> tuple[dict[str, str], dict[str, Any]]:
        """Installed packages that match PATTERNS or OWN, and what is held or unfinished.

        dpkg's whole database is one quick answer, and holds stand in it; rpm's takes long, so it is asked for a part.
        """
        patterns = [*patterns, *own]
        code, text, _err = self.run("dpkg-query", "-W", "-f", _system.DPKG_FORMAT)
        state = _system.package_state(text, names_in(self.path("var", "lib/dpkg/updates")), self.package_manager)
        if code == 127:
            text = self.run("rpm", "-qa", "--qf", _system.RPM_FORMAT, *patterns)[1]
            locks = ("dnf/plugins/versionlock.list", "dnf/versionlock.toml", "yum/pluginconf.d/versionlock.list")
            state["holds"] = sorted(
                {name for path in locks for name in _system.parse_versionlock(self.text("etc", path))}
            )
        return _system.match_packages(_host.parse_packages(text), patterns), state

    def repositories(self) -> list[dict[str, Any]]:
        """Package repositories, by the files that name them."""
        apt = self.path("etc", "apt/sources.list.d")
        yum = self.path("etc", "yum.repos.d")
        paths = [self.path("etc", "apt/sources.list")]
        paths += [os.path.join(apt, name) for name in names_in(apt) if name.endswith((".list", ".sources"))]
        paths += [os.path.join(yum, name) for name in names_in(yum) if name.endswith(".repo")]
        return [entry for path in paths for entry in _system.parse_repositories(path, read_text(path))]

    def keys(self, repositories: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
        """Fingerprints in the keyrings that package managers trust, as far as they matter here."""
        found = {
            path for name in ("keyrings", "trusted.gpg.d") for path in glob.glob(self.path("etc", "apt", name, "*"))
        }
        found |= {
            path
            for name in ("nvidia", "NVIDIA", "cuda")
            for path in glob.glob(self.path("etc", f"pki/rpm-gpg/*{name}*"))
        }
        found |= {
            path for name in ("nvidia", "cuda") for path in glob.glob(self.path("usr_share", f"keyrings/*{name}*"))
        }
        found.add(self.path("etc", "apt/trusted.gpg"))
        for entry in repositories:
            if entry["origin"] != "distribution":
                found |= {word for word in (entry["signed_by"] or "").split() if word.startswith("/")}
        return {path: _system.key_fingerprints(read_bytes(path)) for path in sorted(found) if os.path.isfile(path)}

    def updates(self, packages: Mapping[str, str], units: Mapping[str, Any]) -> dict[str, bool]:
        """What changes packages or restarts services by itself."""
        folder = self.path("etc", "apt/apt.conf.d")
        texts = [read_text(os.path.join(folder, name)) for name in names_in(folder) if not name.endswith((".bak", "~"))]
        return _system.updates([*texts, self.text("etc", "apt/apt.conf")], packages, units)

    def software(self, packages: Mapping[str, str], names: Iterable[str], program: str) -> str | None:
        """Version of a program: by the packages that bring it, else by what it says."""
        version = next((packages[name] for name in names if name in packages), None)
        return _system.upstream_version(version) or _system.software_version(self.run(program, "--version")[1])
