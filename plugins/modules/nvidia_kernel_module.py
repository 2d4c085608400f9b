#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's kernel modules, exchanged under services that come back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_kernel_module
short_description: Unload or load NVIDIA's kernel modules and the services that use them
version_added: 1.0.0
description:
  - V(unloaded) stops what the collection and NVIDIA run on the GPUs - NIM services, telemetry, fabric manager, persistence
    daemon, in this order - and removes the kernel modules, users before what they use. Processes that belong to nobody of
    these are never stopped - while one holds a GPU, everything is started again and the module fails.
  - V(loaded) loads the module that is on disk and starts, in reverse order, what was stopped. The CDI specification is
    written anew before the first NIM service starts.
  - What was stopped is recorded in O(state_file), on a file system that a reboot clears. So a play that was interrupted
    between the two is finished by the next run, and after a reboot the units start as they are enabled.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
options:
  state:
    description: Whether the kernel modules are wanted in the kernel.
    type: str
    choices: [loaded, unloaded]
    required: true
  restore:
    description:
      - With O(state=unloaded), what happens when the modules cannot be removed though no process holds a GPU. V(true) starts
        the stopped units again and fails; V(false) leaves them stopped and returns RV(unloaded=false), for a host that will
        be rebooted.
    type: bool
    default: true
  state_file:
    description: Where the stopped units are recorded.
    type: path
    default: /run/nim/driver-stopped.json
  proc_root:
    description: Where procfs is mounted. Tests point it at a constructed tree.
    type: path
    default: /proc
  sys_root:
    description: Where sysfs is mounted. Tests point it at a constructed tree.
    type: path
    default: /sys
seealso:
  - module: baremetal.nim.gpu_host_info
"""

EXAMPLES = r"""
- name: Make room for another driver
  baremetal.nim.nvidia_kernel_module:
    state: unloaded

- name: Load what is installed now and start what was stopped
  baremetal.nim.nvidia_kernel_module:
    state: loaded
"""

RETURN = r"""
loaded_version:
  description: Version of the driver in the kernel afterwards, V(null) when none is loaded.
  type: str
  returned: always
unloaded:
  description: Whether no module of the driver is in the kernel any more.
  type: bool
  returned: when O(state=unloaded)
error:
  description: What modprobe said when it failed, else V(null).
  type: str
  returned: always
stopped:
  description: Units that were stopped, in that order.
  type: list
  elements: str
  returned: always
started:
  description: Units that were started, in that order.
  type: list
  elements: str
  returned: always
"""

import glob
import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _command, _host, _kernel_module
from ansible_collections.baremetal.nim.plugins.module_utils._survey import Survey

UNIT_PROPERTIES = "Id,LoadState,ActiveState,TimeoutStartUSec,TimeoutStopUSec"
UNIT_FILES = "/etc/systemd/system"
#: Podman's generator makes units of these.
QUADLET_FILES = "/etc/containers/systemd"


class Swap:
    """Stops, unloads, loads and starts on this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.run = _command.Runner(module.get_bin_path)
        self.proc_root = module.params["proc_root"]
        self.state_file = module.params["state_file"]
        self.result: dict[str, Any] = {"changed": False, "error": None, "stopped": [], "started": []}

    def read(self, path: str) -> str:
        """Text of a file, empty when it cannot be read."""
        try:
            with open(path, encoding="utf-8", errors="replace") as handle:
                return handle.read()
        except OSError:
            return ""

    def survey(self) -> Survey:
        """A look at this host as it is now."""
        return Survey(self.run, {"proc": self.proc_root, "sys": self.module.params["sys_root"]})

    def modules(self) -> list[str]:
        """The driver's modules in the kernel, in the order they can go."""
        return _kernel_module.unload_order(self.survey().modules())

    def loaded_version(self) -> str | None:
        """Version of the driver in the kernel."""
        return _host.parse_driver_version(self.read(os.path.join(self.proc_root, "driver/nvidia/version")))

    def holders(self) -> list[dict[str, Any]]:
        """Processes that have a GPU's device node open, and the service or container they belong to."""
        survey = self.survey()
        survey.descriptors()
        found = []
        for pid in survey.holders:
            unit, container = survey.owner(pid)
            name = survey.text("proc", str(pid), "comm").strip() or "a process"
            found.append({"pid": pid, "name": name, "unit": unit or (container and f"container {container[:12]}")})
        return found

    def units(self) -> dict[str, dict[str, str]]:
        """State of every unit that may hold a GPU."""
        paths = glob.glob(f"{UNIT_FILES}/nim-*.service") + glob.glob(f"{QUADLET_FILES}/nim-*.container")
        # A template is no unit.
        names = sorted({f"{os.path.basename(path).rpartition('.')[0]}.service" for path in paths if "@" not in path})
        names += [*_kernel_module.TELEMETRY, *_kernel_module.FABRIC, *_kernel_module.PERSISTENCE]
        names += [_kernel_module.CDI_REFRESH, _kernel_module.CDI_WATCH]
        code, out, err = self.run("systemctl", "show", "--property", UNIT_PROPERTIES, *names)
        if code == _command.SILENT:
            # What holds the GPUs would go unseen.
            self.module.fail_json(
                msg=f"{err} Nothing more was changed.", loaded_version=self.loaded_version(), **self.result
            )
        return _host.parse_systemctl_show(out)

    def job(self, verb: str, name: str, units: Mapping[str, Mapping[str, str]]) -> tuple[int, str, str]:
        """Starts, restarts or stops a unit."""
        limits = (units.get(name, {}).get(f"Timeout{phase}USec", "") for phase in ("Start", "Stop"))
        return self.run("systemctl", verb, name, seconds=_command.job_seconds(*filter(None, limits)))

    def recorded(self) -> list[str]:
        """Units that an earlier run stopped and did not start again."""
        return _kernel_module.parse_stopped(self.read(self.state_file))

    def record(self, names: list[str]) -> None:
        """Writes down what is stopped before it is stopped; removes the file when nothing is."""
        if not names:
            if os.path.exists(self.state_file):
                os.unlink(self.state_file)
            return
        os.makedirs(os.path.dirname(self.state_file), mode=0o700, exist_ok=True)
        scratch = f"{self.state_file}.new"
        with open(scratch, "w", encoding="utf-8") as out:
            json.dump(names, out)
        os.replace(scratch, self.state_file)

    def start(self) -> list[str]:
        """Starts what is recorded, backwards; returns sentences about units that did not start."""
        stopped = self.recorded()
        units = self.units()
        refresh = units.get(_kernel_module.CDI_REFRESH, {}).get("LoadState") == "loaded"
        failures = []
        for name in _kernel_module.start_order(stopped, refresh and bool(stopped)):
            # A unit may have gone with the packages that brought it.
            if units.get(name, {}).get("LoadState") != "loaded":
                continue
            verb = "restart" if name == _kernel_module.CDI_REFRESH else "start"
            code, out, err = self.job(verb, name, units)
            if code:
                failures.append(f"{name} did not start: {(err or out).strip()} Next: journalctl -u {name} -n 50")
            else:
                self.result["started"].append(name)
        self.record([])
        return failures

    def give_up(self, message: str) -> NoReturn:
        """Starts again what was stopped, then fails."""
        failures = self.start()
        self.module.fail_json(
            msg=" ".join([message, "What was stopped runs again." if not failures else "", *failures]).strip(),
            loaded_version=self.loaded_version(),
            **self.result,
        )

    def remove_modules(self) -> str:
        """Takes the driver out of the kernel; returns what stands in the way, else an empty text."""
        code, out, err = self.run("modprobe", "-r", *self.modules(), seconds=_command.CHANGE_SECONDS)
        if code and "not found" in out + err and self.modules():
            # Its files are gone from the disk already; rmmod needs none.
            code, out, err = self.run("rmmod", *self.modules(), seconds=_command.CHANGE_SECONDS)
        return (err or out).strip() if code and self.modules() else ""

    def unload(self) -> dict[str, Any]:
        """Makes room for another driver."""
        if not self.modules():
            return {**self.result, "unloaded": True, "loaded_version": None}
        units = self.units()
        stopping = _kernel_module.stop_order(units)
        self.result.update(changed=True, stopped=stopping)
        if self.module.check_mode:
            return {**self.result, "unloaded": True, "loaded_version": None}
        # What an interrupted run stopped was stopped first.
        self.record([*(name for name in self.recorded() if name not in stopping), *stopping])
        for name in stopping:
            code, out, err = self.job("stop", name, units)
            if code:
                self.give_up(f"{name} does not stop: {(err or out).strip()}")
        holders = self.holders()
        if holders:
            self.give_up(
                f"The GPUs are held by {_kernel_module.describe_holders(holders)}, wanted nobody while the driver changes;"
                " the driver was not touched. Stop these processes, then run the play again."
            )
        error = self.remove_modules()
        if error:
            self.result["error"] = error
            if self.module.params["restore"]:
                self.give_up(
                    f"The loaded driver {self.loaded_version()} does not unload: {self.result['error']}"
                    " Nothing was installed. Allow a reboot of this host, or find what uses the module: lsmod"
                )
        return {**self.result, "unloaded": not self.modules(), "loaded_version": self.loaded_version()}

    def load(self) -> dict[str, Any]:
        """Loads what is on disk and starts what was stopped."""
        loaded = self.modules()
        missing = [name for name in ("nvidia", "nvidia_uvm") if name not in loaded]
        stopped = self.recorded()
        self.result["changed"] = bool(missing or stopped)
        if self.module.check_mode:
            return {**self.result, "loaded_version": self.loaded_version()}
        for name in missing:
            code, out, err = self.run("modprobe", name, seconds=_command.CHANGE_SECONDS)
            if code:
                # The caller decides whether a reboot helps; a GPU service could not run anyway.
                self.result.update(error=(err or out).strip(), changed=False)
                return {**self.result, "loaded_version": self.loaded_version()}
        failures = self.start() if stopped else []
        if failures:
            self.module.fail_json(msg=" ".join(failures), loaded_version=self.loaded_version(), **self.result)
        return {**self.result, "loaded_version": self.loaded_version()}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["loaded", "unloaded"], "required": True},
            "restore": {"type": "bool", "default": True},
            "state_file": {"type": "path", "default": "/run/nim/driver-stopped.json"},
            "proc_root": {"type": "path", "default": "/proc"},
            "sys_root": {"type": "path", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    swap = Swap(module)
    module.exit_json(**(swap.unload() if module.params["state"] == "unloaded" else swap.load()))


if __name__ == "__main__":
    main()
