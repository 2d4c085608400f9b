#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deployment that worked: kept before it is replaced, brought back when its successor fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_deployment
short_description: Keep the deployment of a NIM service that works, and bring it back
version_added: 1.0.0
description:
  - A deployment is a unit, its environment file and its record, as M(baremetal.nim.gpu_host_info) reads it. Image and weights of
    an earlier one stay on the host, so it comes back without network.
  - V(kept) copies the deployment that was verified last, before another one replaces its files. What was edited since, or never
    verified, is not kept; a copy that a cut-off upgrade made is. The copy of the one before that is put aside, and is the way back again
    when the new one fails.
  - V(restored) stops the unit, brings the copy back and starts it. It does not wait for the endpoint.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  idempotent:
    support: partial
    details: V(restored) does nothing where the unit runs from the very files of the copy; with O(swap), it goes back and forth.
options:
  name:
    description: Name of the service.
    type: str
    required: true
  state:
    description: What to do.
    type: str
    choices: [kept, restored]
    required: true
  unit_path:
    description: The unit file of a service that Docker runs.
    type: path
    required: true
  quadlet_path:
    description: The Quadlet file of a service that Podman runs. Of the two, the record names the one that its deployment has.
    type: path
  env_path:
    description: The environment file.
    type: path
    required: true
  record_path:
    description: The deployment record.
    type: path
    required: true
  copy_dir:
    description: Directory of the copies, one directory per service.
    type: path
    default: /var/lib/nim/previous
  swap:
    description: With V(restored), whether what is replaced becomes the copy, so that the way back is open.
    type: bool
    default: false
  failed_image:
    description: With V(restored), the image that failed, for the history in the record.
    type: str
    default: ""
  failed_reason:
    description: With V(restored), why it failed.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Keep what works
  baremetal.nim.nim_deployment: &deployment
    name: llama
    state: kept
    unit_path: /etc/systemd/system/nim-llama.service
    env_path: /etc/nim/llama.env
    record_path: /var/lib/nim/services/llama.json
  register: before

- name: Bring it back
  baremetal.nim.nim_deployment:
    name: llama
    state: restored
    unit_path: /etc/systemd/system/nim-llama.service
    env_path: /etc/nim/llama.env
    record_path: /var/lib/nim/services/llama.json
    failed_image: nvcr.io/nim/meta/llama-3.1-8b-instruct:2.0.5
    failed_reason: crash_loop
"""

RETURN = r"""
kept:
  description: Whether there is a deployment to come back to.
  type: bool
  returned: always
record:
  description: Record of the deployment that is kept or was brought back, empty when there is none.
  type: dict
  returned: always
"""

import hashlib
import json
import os
import re
import shutil
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _clock, _command, _deployment, _files
from ansible_collections.baremetal.nim.plugins.module_utils._deployment import parse_record


def read(path: str) -> bytes | None:
    """Content of a file, None when it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except OSError:
        return None


class Deployment:
    """The deployment of one service on this host, and its copy."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.unit = f"nim-{module.params['name']}.service"
        self.run = _command.Runner(module.get_bin_path, again=True)
        #: Files that the unit may be made of.
        self.units = [path for path in (module.params["unit_path"], module.params["quadlet_path"]) if path]
        #: Name in the copy to the place on the host and the mode there; the unit's is that of the deployment at hand.
        self.files = {
            "unit": (self.units[0], 0o644),
            "env": (module.params["env_path"], 0o600),
            "record": (module.params["record_path"], 0o644),
        }
        self.copy = os.path.join(module.params["copy_dir"], module.params["name"])
        #: The copy that was there before: when an upgrade fails, it is the way back again. No service can have its name.
        self.before = f"{self.copy}.before"

    def place(self, record: bytes | None) -> None:
        """Lets the unit's place be that of the deployment that RECORD tells of: another engine has another one."""
        self.files["unit"] = (_deployment.unit_place(parse_record(record), self.units), 0o644)

    def current(self) -> dict[str, bytes | None]:
        """What lies in place."""
        self.place(read(self.files["record"][0]))
        return {name: read(path) for name, (path, _mode) in self.files.items()}

    def kept(self) -> dict[str, bytes | None]:
        """What lies in the copy."""
        return {name: read(os.path.join(self.copy, name)) for name in self.files}

    def write_copy(self, content: dict[str, bytes | None]) -> None:
        """Makes CONTENT the copy, all of it or nothing."""
        scratch = f"{self.copy}.new"
        shutil.rmtree(scratch, ignore_errors=True)
        os.makedirs(scratch, mode=0o700)
        for name, data in content.items():
            with open(os.open(os.path.join(scratch, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(data or b"")
        shutil.rmtree(self.copy, ignore_errors=True)
        os.rename(scratch, self.copy)

    def put_aside(self) -> None:
        """Keeps the copy that another one is about to replace."""
        if os.path.isdir(self.copy):
            shutil.rmtree(self.before, ignore_errors=True)
            os.rename(self.copy, self.before)

    def take_up(self) -> None:
        """Brings back the copy that was put aside: what it was put aside for is in place now."""
        if os.path.isdir(self.before):
            shutil.rmtree(self.copy, ignore_errors=True)
            os.rename(self.before, self.copy)

    def put(self, content: dict[str, bytes]) -> None:
        """Writes files into their places, all of them or none."""
        # What lies there may have been lost or opened up; its mode is not to be taken over.
        _files.write((self.files[name][0], data, self.files[name][1]) for name, data in content.items())
        if self.module.selinux_enabled():
            for name in content:
                self.module.set_default_selinux_context(self.files[name][0], False)

    def systemctl(self, *argv: str) -> str:
        """Runs systemctl; returns what it said when it failed."""
        limits = re.findall(
            rb"^Timeout(?:Start|Stop)Sec=(.*)$", b"\n".join(filter(None, map(read, self.units))), re.MULTILINE
        )
        seconds = _command.job_seconds(*(limit.decode(errors="replace") for limit in limits))
        code, out, err = self.run("systemctl", *argv, seconds=seconds)
        return ((err or out).strip() or f"exit status {code}") if code else ""

    def keep(self) -> dict[str, Any]:
        """Copies what works."""
        current, kept = self.current(), self.kept()
        record = parse_record(current["record"])
        sums = {
            path: None if (data := current[name]) is None else hashlib.sha256(data).hexdigest()
            for name, (path, _mode) in self.files.items()
            if name != "record"
        }
        todo = _deployment.keepable(record, sums, parse_record(kept["record"]))
        changed = todo == "copy" and current != kept
        if changed and not self.module.check_mode:
            if _deployment.another(record, parse_record(kept["record"])):
                self.put_aside()
            self.write_copy(current)
        return {"changed": changed, "kept": todo != "none", "record": record if todo != "none" else {}}

    def restore(self) -> dict[str, Any]:
        """Brings the copy back."""
        kept, current = self.kept(), self.current()
        record = parse_record(kept["record"])
        self.place(kept["record"])
        others = [path for path in self.units if path != self.files["unit"][0] and os.path.exists(path)]
        if record is None or not kept["unit"] or kept["env"] is None:
            self.module.fail_json(
                msg=(
                    f"service {self.module.params['name']}: no earlier deployment is kept in {self.copy}, wanted one that was"
                    " verified; deploy the version you want by nim_services instead. Nothing was changed."
                )
            )
        if self.module.params["failed_image"]:
            now = _clock.iso(time.time())
            record = _deployment.with_failure(
                record, self.module.params["failed_image"], self.module.params["failed_reason"], now
            )
        result: dict[str, Any] = {"changed": True, "kept": True, "record": record}
        replaced = bool(others) or any(current[name] != kept[name] for name in ("unit", "env"))
        if not replaced and not self.systemctl("is-active", "--quiet", self.unit):
            return {**result, "changed": False}
        if self.module.check_mode:
            return result
        # Units that fail to stop, or never existed, are no reason to stay broken.
        self.systemctl("stop", self.unit)
        if others:
            # A unit that is made of a Quadlet file cannot be disabled, and needs not be.
            self.systemctl("disable", self.unit)
        for path in others:
            os.unlink(path)
        told = (json.dumps(record, indent=4, sort_keys=True) + "\n").encode()
        self.put({"env": kept["env"], "unit": kept["unit"], "record": told})
        if self.module.params["swap"] and current["record"]:
            self.write_copy(current)
        self.systemctl("reset-failed", self.unit)
        generated = self.files["unit"][0] == self.module.params["quadlet_path"]
        for argv in (("daemon-reload",), ("enable", self.unit), ("start", self.unit)):
            if generated and argv[0] == "enable":
                continue
            said = self.systemctl(*argv)
            if said:
                following = "" if " Next: " in said else f" Next: journalctl -u {self.unit} -n 50"
                self.module.fail_json(msg=f"{self.unit}: systemctl {argv[0]} failed: {said}{following}", **result)
        if not self.module.params["swap"]:
            self.take_up()
        return result


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["kept", "restored"], "required": True},
            "unit_path": {"type": "path", "required": True},
            "quadlet_path": {"type": "path"},
            "env_path": {"type": "path", "required": True},
            "record_path": {"type": "path", "required": True},
            "copy_dir": {"type": "path", "default": "/var/lib/nim/previous"},
            "swap": {"type": "bool", "default": False},
            "failed_image": {"type": "str", "default": ""},
            "failed_reason": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    deployment = Deployment(module)
    try:
        result = deployment.keep() if module.params["state"] == "kept" else deployment.restore()
    except OSError as error:
        module.fail_json(
            msg=(
                f"service {module.params['name']}: {error.filename}: {error.strerror}, wanted to write it."
                " Next: df -h /var/lib/nim /etc; then run the play again"
            )
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
