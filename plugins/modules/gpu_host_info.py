#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One read of everything the roles decide from."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_host_info
short_description: Read the state of a GPU host in one go
version_added: 1.0.0
description:
  - Reads, in one run and without changing anything, what every role of this collection decides from - operating system,
    memory, disks, listening ports, GPUs and driver, CDI specifications, container engine, NIM units, containers and
    model caches.
  - What a host does not have is V(null), an empty list or an empty dictionary, never an error.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
  - baremetal.nim._attributes.actiongroup_nim
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details:
      - It changes nothing.
  idempotent:
    support: full
options:
  paths:
    description:
      - Paths whose file system is measured, each at its nearest existing parent.
    type: list
    elements: path
    default: [/var/lib/docker, /var/lib/nim]
  packages:
    description:
      - Names of packages whose installed version is wanted.
    type: list
    elements: str
    default: []
  cache_root:
    description:
      - Directory that holds one model cache per service.
    type: path
    default: /var/lib/nim/cache
  state_dir:
    description:
      - Directory with the deployment records of the services.
    type: path
    default: /var/lib/nim/services
  proc_root:
    description:
      - Where procfs is mounted. Tests point it at a recorded tree.
    type: path
    default: /proc
  cdi_spec_dirs:
    description:
      - Directories searched for CDI specifications.
    type: list
    elements: path
    default: [/etc/cdi, /var/run/cdi]
seealso:
  - module: baremetal.nim.chat_completion
"""

EXAMPLES = r"""
- name: Read the host
  baremetal.nim.gpu_host_info:
  register: preflight_host

- name: Stop where no GPU answers
  ansible.builtin.assert:
    that: preflight_host.gpus | length > 0
    fail_msg: "No NVIDIA GPU answers: {{ preflight_host.driver.error }}"
"""

RETURN = r"""
hostname:
  description: Name the host has for itself.
  type: str
  returned: always
  sample: gpu01
os:
  description: Distribution, version, major, codename, architecture, kernel and package manager of the host.
  type: dict
  returned: always
  sample:
    {
      "distribution": "Debian",
      "version": "13",
      "major": "13",
      "codename": "trixie",
      "architecture": "x86_64",
      "kernel": "6.12.48+deb13-amd64",
      "package_manager": "apt",
    }
python:
  description: Version of the Python that ran this, and which of the libraries that modules need it can import.
  type: dict
  returned: always
  sample: {"version": "3.13.5", "libraries": {"apt": true, "debian": false, "requests": true}}
systemd:
  description: Whether systemd manages the host, and its major version.
  type: dict
  returned: always
  sample: {"running": true, "version": 257}
time:
  description: Seconds since 1970 by the clock of the host.
  type: float
  returned: always
memory:
  description: Total and available memory in bytes.
  type: dict
  returned: always
  sample: {"total": 2164195454976, "available": 2101234000000}
cpus:
  description: Number of logical CPUs.
  type: int
  returned: always
disks:
  description: For each of O(paths), the file system it is or would be on - C(mount), C(free) and C(total) in bytes, C(read_only).
  type: dict
  returned: always
  sample: {"/var/lib/nim": {"mount": "/", "free": 5000000000000, "total": 7000000000000, "read_only": false}}
listeners:
  description: Listening TCP sockets with the process that holds each, where it can be told.
  type: list
  elements: dict
  returned: always
  sample: [{"address": "127.0.0.1", "port": 8000, "pid": 4711, "process": "docker-proxy"}]
driver:
  description: Version of the loaded kernel module, the CUDA version it supports, and why nvidia-smi failed if it did.
  type: dict
  returned: always
  sample: {"loaded_version": "580.159.04", "cuda_version": "13.0", "error": null}
gpus:
  description: GPUs that nvidia-smi reports, in its order, with memory in MiB.
  type: list
  elements: dict
  returned: always
cdi:
  description:
    - CDI specifications found, the GPU device names they define, and whether one of them was made for another driver than
      the loaded one (C(stale)).
  type: dict
  returned: always
  sample: {"specs": [], "devices": ["nvidia.com/gpu=0", "nvidia.com/gpu=all"], "stale": false}
packages:
  description: Installed version of each of O(packages) that is installed.
  type: dict
  returned: always
engine:
  description:
    - The Docker engine - C(installed), C(active), C(enabled), C(version), C(root_dir), C(live_restore), C(cdi_spec_dirs), and
      whether daemon.json changed after the daemon started (C(config_newer_than_daemon)). C(logins) has, by registry, the
      SHA-256 of C(user:password) that root's configuration stores, to compare with and not to recover.
  type: dict
  returned: always
images:
  description: Digests by which local images were pulled, as C(repository@sha256:…), with their image id.
  type: dict
  returned: always
services:
  description:
    - By service name, the systemd unit (C(unit)), the container (C(container)), the deployment record (C(record)), the
      SHA-256 sums of the files the record names as they are now (C(files)), and the model cache (C(cache)).
  type: dict
  returned: always
"""

import glob
import hashlib
import json
import os
import platform
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _host

UNIT_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,UnitFileState,NRestarts,Result,ExecMainStatus,ActiveEnterTimestampMonotonic"
)


class HostReader:
    """Collects the raw texts; the parsing is in module_utils/_host.py."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Runs a command with a plain locale; 127 when there is no such command."""
        if not self.module.get_bin_path(argv[0]):
            return 127, "", f"{argv[0]} is not installed"
        code, out, err = self.module.run_command(list(argv), environ_update={"LC_ALL": "C", "LANGUAGE": "C"})
        return code, out, err

    def read(self, path: str) -> str:
        """Text of a file, empty when it cannot be read."""
        try:
            with open(path, encoding="utf-8", errors="replace") as handle:
                return handle.read()
        except OSError:
            return ""

    def proc(self, path: str) -> str:
        """Text of a file below proc_root."""
        return self.read(os.path.join(self.params["proc_root"], path))

    def os(self) -> dict[str, Any]:
        """Operating system."""
        managers = (name for name in ("apt", "dnf", "zypper") if self.module.get_bin_path(name))
        return {
            **_host.parse_os_release(self.read("/etc/os-release")),
            "architecture": platform.machine(),
            "kernel": platform.release(),
            "package_manager": next(managers, None),
        }

    def python(self) -> dict[str, Any]:
        """Interpreter and importable libraries."""
        libraries = {}
        for name in ("apt", "debian", "requests"):
            try:
                __import__(name)
                libraries[name] = True
            except ImportError:
                libraries[name] = False
        return {"version": platform.python_version(), "libraries": libraries}

    def disk(self, path: str) -> dict[str, Any]:
        """File system of the nearest existing parent of a path."""
        while not os.path.exists(path) and path != "/":
            path = os.path.dirname(path)
        stat = os.statvfs(path)
        mount = path
        while not os.path.ismount(mount):
            mount = os.path.dirname(mount)
        return {
            "mount": mount,
            "free": stat.f_bavail * stat.f_frsize,
            "total": stat.f_blocks * stat.f_frsize,
            "read_only": bool(stat.f_flag & os.ST_RDONLY),
        }

    def listeners(self) -> list[dict[str, Any]]:
        """Listening sockets and who holds them."""
        found = _host.parse_listeners(self.proc("net/tcp")) + _host.parse_listeners(self.proc("net/tcp6"))
        wanted = {item["inode"] for item in found}
        owners: dict[str, int] = {}
        for link in glob.glob(os.path.join(self.params["proc_root"], "[0-9]*/fd/*")):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in wanted:
                owners[target[8:-1]] = int(link.split("/")[-3])
        for item in found:
            pid = owners.get(item.pop("inode"))
            item["pid"] = pid
            item["process"] = self.proc(f"{pid}/comm").strip() or None if pid else None
        return found

    def gpus(self) -> dict[str, Any]:
        """Driver and GPUs."""
        loaded = _host.parse_driver_version(self.proc("driver/nvidia/version"))
        code, out, err = self.run("nvidia-smi", "-q", "-x")
        report: dict[str, Any] = {"gpus": [], "cuda_version": None}
        error = None
        if code:
            error = (err or out).strip() or f"nvidia-smi left with exit status {code}"
        else:
            try:
                report = _host.parse_nvidia_smi(out)
            except ValueError as problem:
                error = str(problem)
        return {
            "driver": {"loaded_version": loaded, "cuda_version": report["cuda_version"], "error": error},
            "gpus": report["gpus"],
        }

    def cdi(self, loaded: str | None) -> dict[str, Any]:
        """CDI specifications of GPUs."""
        specs = []
        for folder in self.params["cdi_spec_dirs"]:
            for path in sorted(glob.glob(os.path.join(folder, "*.yaml")) + glob.glob(os.path.join(folder, "*.json"))):
                spec = _host.parse_cdi_spec(self.read(path))
                if spec["kind"] == "nvidia.com/gpu":
                    specs.append({"path": path, **spec})
        return {
            "specs": specs,
            "devices": sorted({f"{spec['kind']}={name}" for spec in specs for name in spec["devices"]}),
            "stale": any(spec["driver_version"] != loaded for spec in specs) if loaded else bool(specs),
        }

    def packages(self) -> dict[str, str]:
        """Installed versions of the asked packages."""
        if not self.params["packages"]:
            return {}
        query = "${db:Status-Abbrev} ${Package} ${Version}\n"
        # Unknown names make dpkg-query leave with 1; the known ones are printed all the same.
        out = self.run("dpkg-query", "-W", "-f", query, *self.params["packages"])[1]
        return _host.parse_packages(out)

    def docker(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Engine, NIM containers and local image digests."""
        engine: dict[str, Any] = {"installed": bool(self.module.get_bin_path("dockerd"))}
        if not engine["installed"] or not self.module.get_bin_path("docker"):
            return engine, {}, {}
        info = _host.parse_docker_info(self.run("docker", "info", "--format", "{{json .}}")[1])
        engine.update(info)
        if not info:
            return engine, {}, {}
        engine["logins"] = _host.parse_docker_logins(self.read("/root/.docker/config.json"))
        ids = self.run("docker", "ps", "-aq", "--no-trunc", "--filter", f"label={_host.SERVICE_LABEL}")[1].split()
        containers = _host.parse_containers(self.run("docker", "inspect", *ids)[1]) if ids else {}
        rows = self.run(
            "docker", "images", "--digests", "--no-trunc", "--format", "{{.Repository}}@{{.Digest}} {{.ID}}"
        )[1]
        images = dict(row.split(" ", 1) for row in rows.splitlines() if "<none>" not in row)
        return engine, containers, images

    def config_newer(self, unit: dict[str, str]) -> bool:
        """Whether daemon.json changed after the daemon started: the daemon then runs with something else."""
        try:
            changed = os.stat("/etc/docker/daemon.json").st_mtime
        except OSError:
            return False
        started = int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        return bool(started) and changed > time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) + started

    def uptime(self, unit: dict[str, str]) -> float | None:
        """Seconds since a unit became active."""
        entered = int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        return round(time.clock_gettime(time.CLOCK_MONOTONIC) - entered, 1) if entered else None

    def record(self, name: str) -> dict[str, Any] | None:
        """Deployment record of a service."""
        try:
            record = json.loads(self.read(os.path.join(self.params["state_dir"], f"{name}.json")))
        except ValueError:
            return None
        return record if isinstance(record, dict) else None

    def checksum(self, path: str) -> str | None:
        """SHA-256 of a file, None when it is not there."""
        try:
            with open(path, "rb") as handle:
                return hashlib.sha256(handle.read()).hexdigest()
        except OSError:
            return None

    def cache(self, name: str) -> dict[str, Any] | None:
        """Ownership of a model cache and what was staged there."""
        path = os.path.join(self.params["cache_root"], name)
        # The image's user may lay anything there: a pipe would never end.
        marker = os.path.join(path, _host.STAGED_MARKER)
        try:
            stat = os.stat(path)
        except OSError:
            return None
        return {
            "path": path,
            "uid": stat.st_uid,
            "gid": stat.st_gid,
            "mode": f"{stat.st_mode & 0o7777:04o}",
            "staged": _host.parse_marker(self.read(marker) if os.path.isfile(marker) else ""),
        }

    def services(self, units: dict[str, dict[str, str]], containers: dict[str, Any]) -> dict[str, Any]:
        """All that the host knows of each NIM service, by name."""
        named = {unit[4:-8]: unit for unit in units if unit.startswith("nim-") and unit.endswith(".service")}
        recorded = glob.glob(os.path.join(self.params["state_dir"], "*.json"))
        cached = glob.glob(os.path.join(self.params["cache_root"], "*", ""))
        names = set(named) | {os.path.basename(path)[:-5] for path in recorded}
        names |= {item["service"] for item in containers.values() if item["service"]}
        names |= {os.path.basename(path.rstrip("/")) for path in cached}
        services = {}
        for name in sorted(names):
            record = self.record(name)
            unit = units.get(named.get(name, ""), {})
            services[name] = {
                "unit": {
                    "name": f"nim-{name}.service",
                    "exists": unit.get("LoadState") == "loaded",
                    "active": unit.get("ActiveState"),
                    "sub": unit.get("SubState"),
                    "enabled": unit.get("UnitFileState") == "enabled",
                    "restarts": int(unit.get("NRestarts") or 0),
                    "result": unit.get("Result"),
                    "uptime": self.uptime(unit),
                },
                "container": containers.get(f"nim-{name}"),
                "record": record,
                "files": {path: self.checksum(path) for path in (record or {}).get("files", {})},
                "cache": self.cache(name),
            }
        return services

    def result(self) -> dict[str, Any]:
        """The whole state."""
        version = self.run("systemctl", "--version")[1].split()
        paths = glob.glob("/etc/systemd/system/nim-*.service")
        names = sorted({os.path.basename(path) for path in paths})
        shown = self.run("systemctl", "show", "--property", UNIT_PROPERTIES, "docker.service", *names)[1]
        units = _host.parse_systemctl_show(shown)
        docker_unit = units.pop("docker.service", {})
        engine, containers, images = self.docker()
        engine.update(
            active=docker_unit.get("ActiveState") == "active",
            enabled=docker_unit.get("UnitFileState") == "enabled",
            config_newer_than_daemon=self.config_newer(docker_unit),
        )
        gpus = self.gpus()
        return {
            "hostname": socket.gethostname(),
            "os": self.os(),
            "python": self.python(),
            "systemd": {
                "running": os.path.isdir("/run/systemd/system"),
                "version": int(version[1]) if len(version) > 1 and version[1].isdigit() else None,
            },
            "time": time.time(),
            "memory": _host.parse_meminfo(self.proc("meminfo")),
            "cpus": os.cpu_count(),
            "disks": {path: self.disk(path) for path in self.params["paths"]},
            "listeners": self.listeners(),
            **gpus,
            "cdi": self.cdi(gpus["driver"]["loaded_version"]),
            "packages": self.packages(),
            "engine": engine,
            "images": images,
            "services": self.services(units, containers),
        }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": ["/var/lib/docker", "/var/lib/nim"]},
            "packages": {"type": "list", "elements": "str", "default": []},
            "cache_root": {"type": "path", "default": "/var/lib/nim/cache"},
            "state_dir": {"type": "path", "default": "/var/lib/nim/services"},
            "proc_root": {"type": "path", "default": "/proc"},
            "cdi_spec_dirs": {"type": "list", "elements": "path", "default": ["/etc/cdi", "/var/run/cdi"]},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **HostReader(module).result())


if __name__ == "__main__":
    main()
