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
  - No program and no file system of the host holds it up for ever. What does not answer in its time is in RV(unanswered).
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes.info_module
  - baremetal.nim._attributes
options:
  engine:
    description:
      - Container engine that is asked for itself and its images. V(auto) is Docker where it is installed, else Podman. NIM units and
        containers of the other one are told as well.
    type: str
    choices: [auto, docker, podman]
    default: auto
  paths:
    description:
      - Paths whose file system is measured, each at its nearest existing parent.
    type: list
    elements: path
    default: [/var/lib/docker, /var/lib/nim]
  packages:
    description:
      - Names of packages whose installed version is wanted. Shell globs are understood.
    type: list
    elements: str
    default: []
  files:
    description:
      - Paths of files whose SHA-256 is wanted.
    type: list
    elements: path
    default: []
  uids:
    description:
      - Numbers of users that are looked up.
    type: list
    elements: int
    default: [1000]
  cache_root:
    description:
      - Directory that holds one model cache per service.
    type: path
    default: /var/lib/nim/cache
  staged_dir:
    description: Directory of what this host remembers of staged weights.
    type: path
    default: /var/lib/nim/staged
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
  sys_root:
    description:
      - Where sysfs is mounted. Tests point it, and each of the following roots, at a tree made for them.
    type: path
    default: /sys
  etc_root:
    description:
      - Directory of the configuration.
    type: path
    default: /etc
  lib_modules:
    description:
      - Directory with the modules of each kernel.
    type: path
    default: /lib/modules
  usr_src:
    description:
      - Directory with the headers of each kernel.
    type: path
    default: /usr/src
  usr_share:
    description:
      - Directory whose C(keyrings) packages fill.
    type: path
    default: /usr/share
  boot_root:
    description:
      - Directory with the images of the kernels.
    type: path
    default: /boot
  run_root:
    description:
      - Directory of what lasts until the next boot.
    type: path
    default: /run
  var_root:
    description:
      - Directory of the package database and of the keys that sign modules.
    type: path
    default: /var
  cdi_spec_dirs:
    description:
      - Directories searched for CDI specifications.
    type: list
    elements: path
    default: [/etc/cdi, /var/run/cdi]
  strict:
    description:
      - Fail where something of the host did not answer in time, rather than return what is known without it. Who decides what to
        change must not take the one for the other.
    type: bool
    default: false
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
unanswered:
  description:
    - What did not answer in its time, and was not waited for any longer - the C(program), V(file system) for one of these, and a
      C(message) with the command that comes next.
  type: list
  elements: dict
  returned: always
  sample:
    [
      {
        "program": "nvidia-smi",
        "message": "nvidia-smi did not answer within 45 s and was ended. Next: dmesg | grep -i -e nvrm -e xid",
      },
    ]
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
  description: Seconds since 1970 by the clock of the host, when it began to read.
  type: float
  returned: always
read_s:
  description: Seconds that the host took to read its state, from then on.
  type: float
  returned: always
clock:
  description:
    - How many seconds the clock of the host is ahead of the controller's; negative where it is behind. It is at C(least) and at
      C(most) that. Both clocks are looked at around the same moment; how long the host reads, or waits for its turn, is not in it.
    - The controller compares them, so a result of C(async) has it not.
  type: dict
  returned: always
  sample: {"least": -0.412, "most": 0.093}
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
  description:
    - For each of O(paths), the file system it is or would be on - C(mount), C(free) and C(total) in bytes, C(read_only). V(null) where
      it did not answer.
  type: dict
  returned: always
  sample: {"/var/lib/nim": {"mount": "/", "free": 5000000000000, "total": 7000000000000, "read_only": false}}
listeners:
  description: Listening TCP sockets with the process that holds each, where it can be told.
  type: list
  elements: dict
  returned: always
  sample: [{"address": "127.0.0.1", "port": 8000, "pid": 4711, "process": "docker-proxy"}]
hardware:
  description:
    - What sysfs tells of NVIDIA's hardware, with or without a driver. C(gpus) are PCI functions of vendor 10de and class
      0300 or 0302, with C(address), C(device_id), C(class), C(name) and C(architecture) where the id is known, and the
      C(driver) that is bound (C(nvidia), C(nouveau), C(vfio-pci), V(null)…).
    - C(nvswitches) counts the NVSwitches that are PCI functions, as on HGX A100, H100 and H200. C(nvlink5) is true where
      they stand behind ConnectX functions, as on HGX B200 and B300. C(grace) is true on hosts with Grace CPUs,
      C(multi_node_nvlink) where NVLinks may leave the node, as with GB200 and GB300.
  type: dict
  returned: always
  sample:
    {
      "gpus":
        [
          {
            "address": "0000:18:00.0",
            "device_id": "2335",
            "class": "0302",
            "name": "H200 SXM",
            "architecture": "Hopper",
            "driver": "nvidia",
          },
        ],
      "nvswitches": 4,
      "nvlink5": false,
      "grace": false,
      "multi_node_nvlink": false,
    }
driver:
  description:
    - C(loaded_version) of the kernel module, the C(cuda_version) it supports, C(flavour) (V(open) or V(proprietary)), and
      why nvidia-smi failed if it did (C(error)).
    - C(module_version), C(module_license) and C(module_signer) of the module on disk for the running kernel.
    - C(nouveau), whether it is C(loaded) and the addresses of GPUs that it drives (C(bound)).
    - C(holders), the processes that have a GPU's device node open, with the systemd C(unit) or the NIM C(service) of each.
    - C(units), by name, whether each of the driver's units C(exists), is C(active) and comes back after a boot (C(enabled)).
    - C(stopped_units), those that a change of the driver stopped and did not start again yet.
  type: dict
  returned: always
  sample:
    {
      "loaded_version": "580.159.04",
      "cuda_version": "13.0",
      "error": null,
      "flavour": "open",
      "module_version": "580.159.04",
      "module_license": "Dual MIT/GPL",
      "module_signer": "DKMS module signing key",
      "nouveau": {"loaded": false, "bound": []},
      "holders": [{"pid": 812, "name": "nvidia-persiste", "unit": "nvidia-persistenced.service", "service": null}],
      "units": {"nvidia-persistenced.service": {"exists": true, "active": true, "enabled": true}},
      "stopped_units": [],
    }
gpus:
  description:
    - GPUs that nvidia-smi reports, in its order, with memory in MiB, C(device_id), C(compute_capability) by that id,
      C(ecc_enabled), C(mig_devices) by their CDI names, C(fabric_state), C(fabric_status), and the C(processes) on each with
      C(pid), C(name), C(used_mib), and the systemd C(unit), C(container) or NIM C(service) they belong to.
  type: list
  elements: dict
  returned: always
cdi:
  description:
    - CDI specifications found (C(specs), with C(path), C(kind), C(devices), C(driver_version), C(generated_by)), the GPU
      device names they define, those that several of them define (C(duplicates)), and whether one of them was made for
      another driver than the loaded one (C(stale)).
  type: dict
  returned: always
  sample: {"specs": [], "devices": ["nvidia.com/gpu=0", "nvidia.com/gpu=all"], "duplicates": [], "stale": false}
packages:
  description: Installed version of each package whose name matches one of O(packages).
  type: dict
  returned: always
package_state:
  description:
    - Packages on hold (C(holds)), whether an installation was broken off (C(interrupted)), the packages that it left
      unfinished (C(incomplete)), and the process that works on the packages right now (C(busy), V(null) when there is none).
  type: dict
  returned: always
  sample: {"holds": ["nvidia-open"], "interrupted": false, "incomplete": [], "busy": null}
repositories:
  description:
    - Package repositories, one for each entry of the files in C(/etc/apt) and C(/etc/yum.repos.d), with the C(path) of the
      file, C(name) (of a yum repository), C(enabled), C(types), C(uris), C(suites), C(components), C(signed_by) and
      C(origin) (V(cuda), V(toolkit), V(docker), V(distribution) or V(other)).
  type: list
  elements: dict
  returned: always
  sample:
    [
      {
        "path": "/etc/apt/sources.list.d/cuda.sources",
        "name": null,
        "enabled": true,
        "types": ["deb"],
        "uris": ["https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/"],
        "suites": ["/"],
        "components": [],
        "signed_by": "/etc/apt/keyrings/nvidia-cuda.asc",
        "origin": "cuda",
      },
    ]
keys:
  description: By path, the fingerprints in the keyrings of the package manager; an empty list for what is no keyring.
  type: dict
  returned: always
  sample: {"/etc/apt/keyrings/nvidia-container-toolkit.asc": ["C95B321B61E88C1809C4F759DDCAE044F796ECB0"]}
files:
  description: SHA-256 of each of O(files), V(null) for what is not there.
  type: dict
  returned: always
secure_boot:
  description:
    - Whether Secure Boot is C(enabled), the key that DKMS signs modules with (C(mok_key)), and, where Secure Boot is on,
      whether that key is trusted (C(mok_enrolled)). V(null) is what cannot be told.
  type: dict
  returned: always
  sample: {"enabled": true, "mok_enrolled": false, "mok_key": "/var/lib/dkms/mok.pub"}
kernel:
  description:
    - The C(running) kernel, whether its C(headers) are installed, the C(installed) kernels, the C(newest) of them, and
      whether that is newer than the running one (C(pending)).
  type: dict
  returned: always
  sample:
    {
      "running": "6.12.48+deb13-amd64",
      "headers": true,
      "newest": "6.12.48+deb13-amd64",
      "pending": false,
      "installed": ["6.12.43+deb13-amd64", "6.12.48+deb13-amd64"],
    }
updates:
  description: Whether packages are upgraded unattended, and whether needrestart is installed.
  type: dict
  returned: always
  sample: {"unattended_upgrades": true, "needrestart": false}
toolkit:
  description: Version of the NVIDIA Container Toolkit, V(null) where it is not installed.
  type: dict
  returned: always
  sample: {"version": "1.20.0"}
podman:
  description: Version of Podman, V(null) where it is not installed.
  type: dict
  returned: always
  sample: {"version": "5.4.2"}
reboot:
  description:
    - Whether a reboot is C(required), and the C(reasons) for one. A newer kernel that waits is a reason, but none that
      requires it.
  type: dict
  returned: always
  sample: {"required": true, "reasons": ["the loaded driver is 580.126.20, the module on disk is 580.159.04"]}
engine:
  description:
    - The container engine - C(kind), C(cdi) (whether it takes CDI devices), C(installed), C(active), C(enabled), C(version).
      Podman has no daemon - where it is installed, it is active.
    - C(logins) has, by registry, the SHA-256 of C(user:password) that root's configuration or its credential helper
      (C(credential_helpers), by registry) stores, to compare with and not to recover.
    - C(image_dir), where its images lie, or will.
    - Of Docker also C(root_dir), C(live_restore), C(cdi_spec_dirs), C(storage_driver), C(snapshotter) (whether containerd keeps the images),
      C(cgroup_driver), C(userns) (whether users are remapped), C(swarm), and whether daemon.json changed after the daemon started
      (C(config_newer_than_daemon)). A daemon that does not run is not asked, as that would start it; C(installed_version) is then what
      its program says, and C(error) why one that runs does not answer.
    - Of Docker as it was found, whether there is a C(client), whether its C(unit) is loaded or C(masked), the process of a daemon that was
      started C(by_hand), whether there is one in a C(snap), users whose daemon is C(rootless), its C(flags) with the C(path) of the file that
      has each, its C(config) (C(path), C(error) where it is no JSON, C(keys), whether it is a C(link), and values of a few keys), and the
      names of running containers of others that would end with the daemon (C(strangers)).
  type: dict
  returned: always
kubernetes:
  description: Units that make this host a node of a Kubernetes cluster.
  type: list
  elements: str
  returned: always
images:
  description:
    - Names of local images with their image id - C(repository:tag), and C(repository@sha256:…), the digests by which they were pulled.
  type: dict
  returned: always
native_images:
  description: Those names of local images whose label tells that they download their weights by themselves (contract C(native)).
  type: list
  elements: str
  returned: always
users:
  description: By number of those of O(uids) that the host knows, the C(name) of the user, the C(shell), and whether it C(logs_in).
  type: dict
  returned: always
  sample: {"1000": {"name": "ubuntu", "shell": "/bin/bash", "logs_in": true}}
lock:
  description:
    - The lease of the run that changes the host now (C(holder), V(null) when nobody does), what the C(last) run that did is known by, and
      when that was looked at - C(at), in seconds since the C(boot). M(baremetal.nim.nim_lock) says what a lease is.
  type: dict
  returned: always
  sample: {"holder": null, "last": "", "boot": "8a5b6c1e-5c0e-4f4e-9a39-0b1d3a1f6d0f", "at": 86403.25}
services:
  description:
    - By service name, the systemd unit (C(unit)), the container (C(container), that of O(engine) if both engines have one),
      the deployment record (C(record)), the SHA-256 sums of the files the record names as they are now (C(files)), the model
      cache (C(cache), with what is C(staged) there, or what speaks against it as C(doubt)), what each container engine has of
      the service (C(engines), lists of V(unit) and V(container)), units that stage it or have staged it (C(staging)), and
      whether its C(watchdog) exists, is C(enabled) and C(active), and C(failed), which is how it gives up.
  type: dict
  returned: always
"""

import functools
import glob
import hashlib
import os
import platform
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _clock,
    _command,
    _credentials,
    _deployment,
    _docker,
    _host,
    _lease,
    _readback,
    _staged,
    _survey,
    _system,
    _weights,
)
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import NATIVE_PROTOCOL, PROTOCOL_LABEL

UNIT_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,UnitFileState,NRestarts,Result,ExecMainStatus,"
    "ActiveEnterTimestamp,ActiveEnterTimestampMonotonic,Transient"
)
#: What stages image and weights of a service: transient units, as module_utils/_transient.py starts them.
STAGING = re.compile(r"nim-(?:pull|stage)-(.+)\.service")


#: Bytes of a file whose checksum is asked for.
CHECKSUM_LIMIT = 2**26
#: Seconds that a credential helper may take.
HELPER_SECONDS = 15
#: Seconds that a file system may take to say how it is.
FILE_SYSTEM_SECONDS = 20
#: What users have for a shell who are not to log in.
NO_SHELLS = ("nologin", "false", "sync", "shutdown", "halt", "git-shell")
#: Packages that are looked at whatever is asked for.
TOOLKIT_PACKAGES = ("nvidia-container-toolkit", "nvidia-container-toolkit-base")
OWN_PACKAGES = (*TOOLKIT_PACKAGES, "podman", "needrestart", "unattended-upgrades")
#: Options that say where a part of the host is, by the name that module_utils/_survey.py has for it.
ROOTS = {
    "proc": "proc_root",
    "sys": "sys_root",
    "etc": "etc_root",
    "lib_modules": "lib_modules",
    "usr_src": "usr_src",
    "usr_share": "usr_share",
    "boot": "boot_root",
    "run": "run_root",
    "var": "var_root",
}


class HostReader:
    """Collects what the host says; hardware, system and packages are in module_utils/_survey.py, the parsing in _host.py."""

    def __init__(self, module: AnsibleModule) -> None:
        # Before all that takes its time.
        self.time, self.begin = time.time(), _clock.elapsed()
        self.module = module
        self.params = module.params
        self.run = _command.Runner(module.get_bin_path)
        #: File systems that do not answer, and the directories on them that nobody must look into.
        self.silent_mounts: set[str] = set()
        self.dead: set[str] = set()
        self.survey = _survey.Survey(self.run, {name: module.params[option] for name, option in ROOTS.items()})

    def read(self, path: str) -> str:
        """Text of a file, empty when it cannot be read."""
        return _survey.read_text(path)

    def proc(self, path: str) -> str:
        """Text of a file below proc_root."""
        return self.read(os.path.join(self.params["proc_root"], path))

    def os(self) -> dict[str, Any]:
        """Operating system."""
        managers = (name for name in ("apt", "dnf", "zypper") if self.module.get_bin_path(name))
        return {
            **_host.parse_os_release(self.survey.text("etc", "os-release")),
            "architecture": platform.machine(),
            "kernel": platform.release(),
            "package_manager": next(managers, None),
        }

    def users(self) -> dict[str, Any]:
        """Users by their numbers, wherever the host knows them from; a directory that does not answer knows none."""
        program = self.module.get_bin_path("getent")
        numbers = [str(uid) for uid in self.params["uids"] if uid >= 0]
        if not program or not numbers:
            return {}
        told = _command.feed([program, "passwd", *numbers], "", HELPER_SECONDS)[1]
        users = (line.split(":") for line in told.splitlines())
        return {
            user[2]: {
                "name": user[0],
                "shell": user[6] or "/bin/sh",
                "logs_in": os.path.basename(user[6]) not in NO_SHELLS,
            }
            for user in users
            if len(user) == 7 and user[2] in numbers
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

    def apart(self, wanted: Mapping[str, str], look: Callable[[str, str], Any]) -> dict[str, Any]:
        """What LOOK finds for each key of WANTED at its path: all at once or, where that takes too long, each alone.

        A file system that does not answer (a server of files that is gone) has found nothing, and is told.
        """
        try:
            found: dict[str, Any] = _command.apart(
                lambda: {key: look(key, path) for key, path in wanted.items()}, FILE_SYSTEM_SECONDS
            )
            return found
        except _command.Silence:
            pass
        found = {}
        silent = self.silent_mounts
        for key, path in wanted.items():
            mount = _command.mount_of(path, self.proc("mounts")) or "file system unknown"
            # Whoever lies on one that is known to be silent is not asked.
            before = mount in silent
            try:
                found[key] = None if before else _command.apart(functools.partial(look, key, path), FILE_SYSTEM_SECONDS)
            except _command.Silence:
                found[key] = None
                silent |= {mount} - {"file system unknown"}
                told = (
                    f"the file system of {path} ({mount}) did not answer within {FILE_SYSTEM_SECONDS} s. Next: cat /proc/mounts;"
                    " see whether its server can be reached, or umount --lazy it"
                )
                self.run.unanswered.append({"program": "file system", "message": told})
        return found

    def file_systems(self) -> dict[str, Any]:
        """File systems of the paths that are asked for; takes note of the directories that nobody must look into."""
        own = [self.params[name] for name in ("cache_root", "state_dir", "staged_dir")]
        found = self.apart({path: path for path in [*self.params["paths"], *own]}, lambda _key, path: self.disk(path))
        self.dead = {path for path, disk in found.items() if disk is None}
        return {path: found[path] for path in self.params["paths"]}

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

    def open_ports(self) -> list[dict[str, Any]]:
        """Listening sockets as the kernel lists them."""
        return _host.parse_listeners(self.proc("net/tcp")) + _host.parse_listeners(self.proc("net/tcp6"))

    def listeners(self) -> list[dict[str, Any]]:
        """Listening sockets and who holds them."""
        found = self.open_ports()
        if any(item["inode"] not in self.survey.sockets for item in found):
            # Whoever came after the look at the processes, as the proxy of a container that restarts. Some are the kernel's own.
            self.survey.descriptors()
            found = self.open_ports()
        for item in found:
            pid = self.survey.sockets.get(item.pop("inode"))
            item["pid"] = pid
            item["process"] = self.proc(f"{pid}/comm").strip() or None if pid else None
        return found

    def gpus(self, services: Mapping[str, str | None]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What nvidia-smi says of driver and GPUs. SERVICES has the NIM service by container id."""
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
        for process in (process for gpu in report["gpus"] for process in gpu["processes"]):
            unit, container = self.survey.owner(process["pid"])
            process.update(unit=unit, container=container, service=services.get(container or ""))
        return {"cuda_version": report["cuda_version"], "error": error}, report["gpus"]

    def cdi(self, loaded: str | None) -> dict[str, Any]:
        """CDI specifications of GPUs."""
        specs = []
        seen = set()
        for folder in self.params["cdi_spec_dirs"]:
            for path in sorted(glob.glob(os.path.join(folder, "*.yaml")) + glob.glob(os.path.join(folder, "*.json"))):
                # /var/run is /run.
                real = os.path.realpath(path)
                text = "" if real in seen else self.read(path)
                seen.add(real)
                spec = _host.parse_cdi_spec(text)
                if spec["kind"] == "nvidia.com/gpu":
                    specs.append({"path": path, **spec, "generated_by": _host.cdi_generator(text)})
        return {
            "specs": specs,
            "duplicates": _host.duplicate_devices(specs),
            "devices": sorted({f"{spec['kind']}={name}" for spec in specs for name in spec["devices"]}),
            "stale": any(spec["driver_version"] != loaded for spec in specs) if loaded else bool(specs),
        }

    def logins(self) -> dict[str, Any]:
        """What the engine would show to registries, and which credential helper it would ask for it."""
        config = _credentials.parse(self.read("/root/.docker/config.json"))
        helpers, logins = _credentials.helpers(config), _credentials.logins(config)
        for registry, helper in helpers.items():
            # One that wants a passphrase would wait for ever. What it does not tell is not known, and no fault of the host.
            program = self.module.get_bin_path(_credentials.program(helper))
            told = _command.feed([program, "get"], registry, HELPER_SECONDS)[1] if program else ""
            login = _credentials.answer(told)
            if login:
                logins[registry] = _credentials.digest(login)
        return {"logins": logins, "credential_helpers": helpers}

    def podman(self, version: str | None) -> tuple[dict[str, Any], str, dict[str, str], list[str]]:
        """The same of Podman, which has no daemon: what is installed is active."""
        installed = bool(self.module.get_bin_path("podman"))
        engine: dict[str, Any] = {"installed": installed, "kind": "podman" if installed else None, "cdi": False}
        engine.update(active=installed, enabled=installed, config_newer_than_daemon=False)
        if not installed:
            return engine, "", {}, []
        engine.update(version=version, cdi=_host.takes_cdi(version))
        # Podman asks Docker's file for what its own does not have.
        engine.update(self.logins())
        listed = self.run("podman", "images", "--digests", "--no-trunc", "--format", "json")[1]
        images, labels = _host.parse_podman_images(listed)
        native = [name for name, said in labels.items() if said.get(PROTOCOL_LABEL) == NATIVE_PROTOCOL]
        return engine, self.containers("podman"), images, native

    def containers(self, engine: str) -> str:
        """What an engine tells of NIM containers."""
        ids = self.run(engine, "ps", "-aq", "--no-trunc", "--filter", f"label={_host.SERVICE_LABEL}")[1].split()
        return self.run(engine, "inspect", *ids)[1] if ids else ""

    def docker(self, units: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, Any], str, dict[str, str], list[str]]:
        """Engine, what it tells of NIM containers, ids of local images by name, and the names of those of the contract native."""
        installed, client = (bool(self.module.get_bin_path(name)) for name in ("dockerd", "docker"))
        engine: dict[str, Any] = {"installed": installed, "kind": "docker" if installed else None, "cdi": False}
        engine.update(_docker.look(self.survey, units), client=client, error=None, strangers=[])
        if not installed:
            return engine, "", {}, []
        if (_docker.UNIT in units and not _docker.runs_by_unit(units)) or self.config_newer(
            units.get(_docker.UNIT, {})
        ):
            # Nothing has proven the file yet.
            engine["config"]["refused"] = _docker.refused_file(self.survey, units)
        # To ask a daemon that does not run would start it where its socket listens.
        runs = _docker.runs_by_unit(units) or _docker.process(self.survey, units) or _docker.UNIT not in units
        info = {}
        if runs and client:
            _code, out, err = self.run("docker", "info", "--format", "{{json .}}")
            info = _host.parse_docker_info(out)
            engine["error"] = None if info else _docker.reason(out, err)
        if not info:
            said = self.run("dockerd", "--version")[1]
            engine["installed_version"] = _system.software_version(said)
            engine["swarm"] = _docker.swarm_state(self.survey, _docker.image_dir(self.survey, engine))
            return engine, "", {}, []
        # An engine that does not take CDI devices, or was told not to, names no folders of specifications.
        engine.update(info, cdi=bool(info.get("cdi_spec_dirs")))
        engine.update(self.logins())
        if info["containers_running"] and not info["live_restore"]:
            # Whoever ends with the daemon: with live-restore nobody does, and nobody is asked for.
            engine["strangers"] = _docker.strangers(self.run("docker", "ps", "--format", _docker.PS_FORMAT)[1])
        inspected = self.containers("docker")
        table = ("--digests", "--no-trunc", "--format", "{{.Repository}} {{.Tag}} {{.Digest}} {{.ID}}")
        images = _host.parse_docker_images(self.run("docker", "images", *table)[1])
        # The table has no labels. One more question, where there is something to answer.
        label = f"label={PROTOCOL_LABEL}={NATIVE_PROTOCOL}"
        labelled = self.run("docker", "images", "--filter", label, *table)[1] if images else ""
        return engine, inspected, images, list(_host.parse_docker_images(labelled))

    def config_newer(self, unit: Mapping[str, str]) -> bool:
        """Whether daemon.json changed after the daemon started: the daemon may run with something else."""
        return _docker.newer(self.survey.path("etc", "docker/daemon.json"), unit)

    def uptime(self, unit: dict[str, str]) -> float | None:
        """Seconds since a unit became active."""
        entered = int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        return round(time.monotonic() - entered, 1) if entered else None

    def record(self, name: str) -> dict[str, Any] | None:
        """Deployment record of a service."""
        if self.params["state_dir"] in self.dead:
            return None
        return _deployment.parse_record(_readback.read(os.path.join(self.params["state_dir"], f"{name}.json")))

    def checksum(self, path: str) -> str | None:
        """SHA-256 of a file, None when it is not there."""
        data = _readback.read(path, CHECKSUM_LIMIT)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def note(self, name: str) -> dict[str, Any] | None:
        """What this host remembers of the weights of a service; only root writes it."""
        folder = self.params["staged_dir"]
        return None if folder in self.dead else _staged.parse_note(_readback.read(os.path.join(folder, f"{name}.json")))

    def cache(self, name: str, path: str, known: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Ownership of a model cache and what is staged there, as far as KNOWN, the note of this host, tells and nothing speaks against it."""
        try:
            facts = os.stat(path)
        except OSError:
            return None
        said = _staged.parse_marker(_readback.read(os.path.join(path, _staged.MARKER)))
        doubt = _staged.doubt(known, said, path)
        if known and not doubt:
            listed = _weights.parse_list(
                _readback.read(os.path.join(self.params["staged_dir"], f"{name}.sums"), _staged.LIST_LIMIT)
            )
            # What an older version of this collection staged has none.
            doubt = "its files are not listed" if listed is None else _weights.listing(_weights.damage(path, listed))
        return {
            "path": path,
            "uid": facts.st_uid,
            "gid": facts.st_gid,
            "mode": f"{facts.st_mode & 0o7777:04o}",
            "staged": None if doubt else known,
            "doubt": doubt,
        }

    def caches(self, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """The model caches of services."""
        kept = {name: self.note(name) for name in names}
        paths = {
            name: (note or {}).get("path") or os.path.join(self.params["cache_root"], name)
            for name, note in kept.items()
        }
        return self.apart(paths, lambda name, path: self.cache(name, path, kept[name])) if paths else {}

    def recorded(self) -> set[str]:
        """Names of the services that have a deployment record."""
        if self.params["state_dir"] in self.dead:
            return set()
        return {os.path.basename(path)[:-5] for path in glob.glob(os.path.join(self.params["state_dir"], "*.json"))}

    def services(
        self,
        units: dict[str, dict[str, str]],
        files: Mapping[str, set[str]],
        found: Mapping[str, dict[str, Any]],
    ) -> dict[str, Any]:
        """All that the host knows of each NIM service, by name. FILES has the units, FOUND the containers, by engine; the wanted one last."""
        containers = {name: item for of_engine in found.values() for name, item in of_engine.items()}
        staging: dict[str, list[str]] = {}
        for name in sorted(units):
            match = STAGING.fullmatch(name)
            if match and units[name].get("Transient") == "yes":
                staging.setdefault(match[1], []).append(name)
        passing = {unit for of_service in staging.values() for unit in of_service}
        named = {
            unit[4:-8]: unit for unit in units if re.fullmatch(r"nim-[^@]+\.service", unit) and unit not in passing
        }
        root = self.params["cache_root"]
        cached = [] if root in self.dead else glob.glob(os.path.join(root, "*", ""))
        names = set(named) | self.recorded()
        names |= {item["service"] for item in containers.values() if item["service"]}
        names |= {os.path.basename(path.rstrip("/")) for path in cached} | set(staging)
        caches = self.caches(names)
        services = {}
        for name in sorted(names):
            record = self.record(name)
            unit = units.get(named.get(name, ""), {})
            timer = units.get(f"nim-watchdog@{name}.timer", {})
            services[name] = {
                "unit": {
                    "name": f"nim-{name}.service",
                    "exists": unit.get("LoadState") == "loaded",
                    "active": unit.get("ActiveState"),
                    "sub": unit.get("SubState"),
                    # Podman's generator makes the unit of a Quadlet file at every boot.
                    "enabled": unit.get("UnitFileState") in ("enabled", "generated"),
                    "restarts": int(unit.get("NRestarts") or 0),
                    "result": unit.get("Result"),
                    "uptime": self.uptime(unit),
                },
                "container": containers.get(f"nim-{name}"),
                "record": record,
                "files": {path: self.checksum(path) for path in (record or {}).get("files", {})},
                "cache": caches[name],
                "engines": _host.traces(f"nim-{name}", files, found),
                "staging": staging.get(name, []),
                "watchdog": {
                    "exists": timer.get("LoadState") == "loaded",
                    "enabled": timer.get("UnitFileState") == "enabled",
                    "active": timer.get("ActiveState") == "active",
                    "failed": units.get(f"nim-watchdog@{name}.service", {}).get("ActiveState") == "failed",
                },
            }
        return services

    def unit_files(self) -> dict[str, set[str]]:
        """Names of the NIM units that each engine has a file of, without their suffixes."""
        places = {"docker": "systemd/system/nim-*.service", "podman": "containers/systemd/nim-*.container"}
        found = {
            engine: {os.path.basename(path).rpartition(".")[0] for path in glob.glob(self.survey.path("etc", place))}
            for engine, place in places.items()
        }
        # A template is no unit.
        return {engine: {name for name in names if "@" not in name} for engine, names in found.items()}

    def engine(
        self, units: Mapping[str, dict[str, str]], podman: str | None, files: Mapping[str, set[str]]
    ) -> tuple[dict[str, Any], dict[str, str], dict[str, str], list[str]]:
        """The engine that is asked for, what each engine tells of NIM containers (that one last), local images, and the native ones.

        UNITS has that of Docker's daemon, PODMAN is the version of Podman.
        """
        unit = units.get(_docker.UNIT, {})
        kind = self.params["engine"]
        if kind == "auto":
            kind = "podman" if podman and not self.module.get_bin_path("dockerd") else "docker"
        if kind == "podman":
            engine, inspected, images, native = self.podman(podman)
            engine["image_dir"] = _docker.podman_image_dir(self.survey)
            active = unit.get("ActiveState") == "active" and self.module.get_bin_path("docker")
            return engine, {"docker": self.containers("docker") if active else "", "podman": inspected}, images, native
        engine, inspected, images, native = self.docker(units)
        engine.update(
            image_dir=_docker.image_dir(self.survey, engine),
            active=unit.get("ActiveState") == "active",
            enabled=unit.get("UnitFileState") == "enabled",
            config_newer_than_daemon=self.config_newer(unit),
        )
        # Its containers end with their units; without one there is nothing to ask for.
        others = self.containers("podman") if files["podman"] else ""
        return engine, {"podman": others, "docker": inspected}, images, native

    def result(self) -> dict[str, Any]:
        """The whole state."""
        # First: whoever begins to change the host while it is read, begins after this.
        lock = _lease.Leases(self.survey.path("run", "nim/lock.d")).state()
        disks = self.file_systems()
        version = self.run("systemctl", "--version")[1].split()
        files = self.unit_files()
        names = [*_system.DRIVER_UNITS, *_system.UPDATE_TIMERS, _docker.UNIT, _docker.SNAP, *_docker.KUBERNETES]
        own = set().union(*files.values())
        names += sorted(f"{name}.service" for name in own)
        watched = sorted({name[4:] for name in own} | self.recorded())
        names += [f"nim-watchdog@{name}.{kind}" for name in watched for kind in ("service", "timer")]
        names += ["nim-pull-*.service", "nim-stage-*.service"]
        shown = self.run("systemctl", "show", "--property", f"{UNIT_PROPERTIES},{_docker.PROPERTIES}", *names)[1]
        units = _host.parse_systemctl_show(shown)
        self.survey.descriptors()
        packages, package_state = self.survey.packages(self.params["packages"], OWN_PACKAGES)
        podman = self.survey.software(packages, ["podman"], "podman")
        engine, inspected, images, native = self.engine(units, podman, files)
        in_containers = {
            key: name for text in inspected.values() for key, name in _host.container_services(text).items()
        }
        smi, gpus = self.gpus(in_containers)
        hardware = self.survey.hardware()
        # After nvidia-smi, which may load the module.
        driver = {**smi, **self.survey.driver(hardware, units), "holders": self.survey.gpu_holders(in_containers)}
        # A Docker that is still to come may leave its images to containerd.
        places = [engine["image_dir"], *([] if engine["installed"] else [_docker.CONTAINERD_ROOT])]
        disks |= self.apart({path: path for path in places if path not in disks}, lambda _key, path: self.disk(path))
        repositories = self.survey.repositories()
        kernel = self.survey.kernel()
        return {
            "hostname": socket.gethostname(),
            "os": self.os(),
            "python": self.python(),
            "systemd": {
                "running": os.path.isdir(self.survey.path("run", "systemd/system")),
                "version": int(version[1]) if len(version) > 1 and version[1].isdigit() else None,
            },
            "time": self.time,
            "memory": _host.parse_meminfo(self.proc("meminfo")),
            "cpus": os.cpu_count(),
            "disks": disks,
            "listeners": self.listeners(),
            "hardware": hardware,
            "driver": driver,
            "gpus": gpus,
            "cdi": self.cdi(driver["loaded_version"]),
            "packages": _system.match_packages(packages, self.params["packages"]),
            "package_state": package_state,
            "repositories": repositories,
            "keys": self.survey.keys(repositories),
            "files": {path: self.checksum(path) for path in self.params["files"]},
            "secure_boot": self.survey.secure_boot(),
            "kernel": kernel,
            "updates": self.survey.updates(packages, units),
            "toolkit": {"version": self.survey.software(packages, TOOLKIT_PACKAGES, "nvidia-ctk")},
            "podman": {"version": podman} if podman else None,
            "kubernetes": _docker.kubernetes(units),
            "reboot": self.survey.reboot(driver, kernel),
            "engine": engine,
            "users": self.users(),
            "lock": lock,
            "images": images,
            "native_images": sorted(native),
            "services": self.services(
                units, files, {kind: _host.parse_containers(text) for kind, text in inspected.items()}
            ),
            "unanswered": self.run.unanswered,
        }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["auto", "docker", "podman"], "default": "auto"},
            "paths": {"type": "list", "elements": "path", "default": ["/var/lib/docker", "/var/lib/nim"]},
            "packages": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "path", "default": []},
            "uids": {"type": "list", "elements": "int", "default": [1000]},
            "cache_root": {"type": "path", "default": "/var/lib/nim/cache"},
            "state_dir": {"type": "path", "default": "/var/lib/nim/services"},
            "staged_dir": {"type": "path", "default": "/var/lib/nim/staged"},
            "proc_root": {"type": "path", "default": "/proc"},
            "sys_root": {"type": "path", "default": "/sys"},
            "etc_root": {"type": "path", "default": "/etc"},
            "lib_modules": {"type": "path", "default": "/lib/modules"},
            "usr_src": {"type": "path", "default": "/usr/src"},
            "usr_share": {"type": "path", "default": "/usr/share"},
            "boot_root": {"type": "path", "default": "/boot"},
            "run_root": {"type": "path", "default": "/run"},
            "var_root": {"type": "path", "default": "/var"},
            "cdi_spec_dirs": {"type": "list", "elements": "path", "default": ["/etc/cdi", "/var/run/cdi"]},
            "strict": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    reader = HostReader(module)
    result = {**reader.result(), "read_s": round(_clock.elapsed() - reader.begin, 3)}
    if module.params["strict"] and result["unanswered"]:
        told = " ".join(item["message"] for item in result["unanswered"])
        module.fail_json(
            msg=f"{result['hostname']} cannot be read, and nothing is decided from a part: {told}", **result
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
