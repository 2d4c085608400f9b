#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deployment that worked: kept before it is replaced, brought back when its successor fails, removed whole."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_deployment
short_description: Keep the deployment of a NIM service that works, bring it back, and remove it
version_added: 1.0.0
description:
  - A deployment is a unit, its environment file and its record, as M(baremetal.nim.gpu_host_info) reads it. Image and weights of
    an earlier one stay on the host, so it comes back without network.
  - V(kept) copies the deployment that was verified last, before another one replaces its files. What was edited since, or never
    verified, is not kept; a copy that a cut-off upgrade made is. The copy of the one before that is put aside, and is the way back again
    when the new one fails.
  - V(restored) stops the unit, brings the copy back and starts it. It does not wait for the endpoint.
  - V(removed) stops the unit and removes the deployment with its copies. Container, image and weights are left.
  - Everything is written beside its place before the unit is stopped, so a full disk or a read-only directory costs no service. A
    journal beside the environment file, C(.NAME.switch), tells what is being exchanged. A run that is cut off between any two steps is
    finished, or taken back, by the next call for that service, whatever O(state) it wants, and by C(nim-settle) when the unit starts.
    What lies in place is one whole deployment then.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  idempotent:
    support: partial
    details:
      - V(kept) and V(removed) do nothing twice. V(restored) does nothing where the unit runs from the very files of the copy; with O(swap),
        it goes back and forth.
options:
  name:
    description: Name of the service.
    type: str
    required: true
  state:
    description: What to do.
    type: str
    choices: [kept, restored, removed]
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
  key_path:
    description: The file of the key that a service gets at runtime. No copy has it; V(removed) removes it.
    type: path
  record_path:
    description: The deployment record.
    type: path
    required: true
  copy_dir:
    description: Directory of the copies, one directory per service.
    type: path
    default: /var/lib/nim/previous
  successor:
    description: With V(kept), hash of the configuration that comes next. The same once more has nothing to come back to, and is not kept.
    type: str
    default: ""
  swap:
    description: With V(restored), whether what is replaced becomes the copy, so that the way back is open. What was edited is no copy.
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

- name: Remove the service
  baremetal.nim.nim_deployment:
    name: llama
    state: removed
    unit_path: /etc/systemd/system/nim-llama.service
    env_path: /etc/nim/llama.env
    key_path: /etc/nim/llama.key
    record_path: /var/lib/nim/services/llama.json
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
removed:
  description: What was removed, or would be.
  type: list
  elements: str
  returned: with O(state=removed)
"""

import hashlib
import json
import os
import re
import time
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _clock, _command, _deployment, _files, _switch
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
        self.params = module.params
        self.unit = f"nim-{self.params['name']}.service"
        self.run = _command.Runner(module.get_bin_path, again=True)
        #: Files that the unit may be made of.
        self.units = [path for path in (self.params["unit_path"], self.params["quadlet_path"]) if path]
        #: Name in the copy to the place on the host and the mode there; the unit's is that of the deployment at hand.
        self.files = {
            "unit": (self.units[0], 0o644),
            "env": (self.params["env_path"], 0o600),
            "record": (self.params["record_path"], 0o644),
        }
        self.key = [self.params["key_path"]] if self.params["key_path"] else []
        self.copy = os.path.join(self.params["copy_dir"], self.params["name"])
        #: The copy that was there before: when an upgrade fails, it is the way back again. No service can have its name.
        self.before = f"{self.copy}.before"
        #: The copy that is not yet the copy.
        self.coming = f"{self.copy}.new"
        self.switch = _switch.Switch(_switch.journal_place(self.params["env_path"], self.params["name"]))
        #: Whether the service was stopped, and what its start said when it failed.
        self.stopped, self.said = False, ""
        self.result: dict[str, Any] = {"changed": True, "kept": True, "record": {}}

    # -- what is there -------------------------------------------------------------------------------------------------

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

    def sums(self, content: dict[str, bytes | None]) -> dict[str, str | None]:
        """Sums of the files of a deployment, by the places that its record knows."""
        places = {**self.files, "unit": (_deployment.unit_place(parse_record(content["record"]), self.units), 0)}
        return {
            path: None if (data := content[name]) is None else hashlib.sha256(data).hexdigest()
            for name, (path, _mode) in places.items()
            if name != "record"
        }

    def whole(self, content: dict[str, bytes | None]) -> bool:
        """Whether files and record are those of one deployment that was verified."""
        return _deployment.keepable(parse_record(content["record"]), self.sums(content), None) == "copy"

    def mixed(self, content: dict[str, bytes | None]) -> bool:
        """Whether the record tells other sums of the files than they have."""
        told = (parse_record(content["record"]) or {}).get("files") or {}
        return any(told.get(path, found) != found for path, found in self.sums(content).items())

    def settle(self) -> str:
        """Finishes what an earlier run began to switch and was cut off in; the state that it wanted."""
        if self.module.check_mode:
            return ""
        beside = [*self.units, self.files["env"][0], self.files["record"][0], self.copy, *self.key]
        settled = self.switch.settle(beside) or ""
        self.forget_copy()
        return settled

    # -- changes -------------------------------------------------------------------------------------------------------

    def write_copy(self, content: dict[str, bytes | None]) -> str:
        """Writes CONTENT beside the copy, down to the disk; returns the name."""
        try:
            _switch.remove_tree(self.coming)
            os.makedirs(self.coming, mode=0o700)
            _files.write((os.path.join(self.coming, name), data or b"", 0o600) for name, data in content.items())
            _files.flush([os.path.dirname(self.coming)])
        except OSError:
            self.forget_copy()
            raise
        return self.coming

    def forget_copy(self) -> None:
        """Removes a copy that does not become the copy."""
        try:
            _switch.remove_tree(self.coming)
        except OSError:
            # The next one begins with it.
            return

    def move(self, source: str, aside: str = "") -> None:
        """Lets a directory become the copy; what was the copy goes ASIDE, or away."""
        self.switch.stage([], folders=[{"source": source, "place": self.copy, "aside": aside}])
        self.switch.go()
        self.switch.close()

    def label(self, scratch: str, path: str) -> None:
        """Gives a file that waits the label of its place: a refusal is noticed while the service runs."""
        if self.module.selinux_enabled():
            self.module.set_context_if_different(scratch, self.module.selinux_default_context(path), False)

    def systemctl(self, *argv: str) -> str:
        """Runs systemctl; returns what it said when it failed."""
        limits = re.findall(
            rb"^Timeout(?:Start|Stop)Sec=(.*)$", b"\n".join(filter(None, map(read, self.units))), re.MULTILINE
        )
        seconds = _command.job_seconds(*(limit.decode(errors="replace") for limit in limits))
        code, out, err = self.run("systemctl", *argv, seconds=seconds)
        return ((err or out).strip() or f"exit status {code}") if code else ""

    def start(self) -> str:
        """Starts the deployment that lies in place, whatever of it fails on the way; returns what failed first."""
        self.systemctl("reset-failed", self.unit)
        failed = ""
        for argv in (("daemon-reload",), ("enable", self.unit), ("start", self.unit)):
            # A unit that is made of a Quadlet file cannot be enabled, and needs not be.
            if argv[0] == "enable" and not os.path.exists(self.units[0]):
                continue
            said = self.systemctl(*argv)
            if said and not failed:
                following = "" if " Next: " in said else f" Next: journalctl -u {self.unit} -n 50"
                failed = f"{self.unit}: systemctl {argv[0]} failed: {said}{following}"
        return failed

    def exchange(self, leave: bool = False, removal: bool = False) -> None:
        """Stops the service, brings what is staged into its places, and starts what lies there then, whatever happened.

        LEAVE: the engine of the unit is left. After a REMOVAL there is nothing to start, unless it failed and the service was active.
        """
        again = not removal or not self.systemctl("is-active", "--quiet", self.unit)
        # Units that fail to stop, or never existed, are no reason to stay broken.
        self.systemctl("stop", self.unit)
        self.stopped, through = True, False
        try:
            if leave:
                # A unit that is made of a Quadlet file cannot be disabled, and needs not be.
                self.systemctl("disable", self.unit)
            self.switch.go()
            through = True
        finally:
            if again and not (removal and through):
                self.said = self.start()
        self.switch.close()
        self.told()

    def told(self) -> None:
        """Leaves when the start failed."""
        if self.said:
            self.module.fail_json(msg=self.said, **self.result)

    # -- states --------------------------------------------------------------------------------------------------------

    def keep(self) -> dict[str, Any]:
        """Copies what works."""
        self.settle()
        current, kept = self.current(), self.kept()
        record = parse_record(current["record"])
        # A copy that is of two deployments is nobody's way back.
        copied = parse_record(kept["record"]) if self.whole(kept) else None
        todo = _deployment.keepable(record, self.sums(current), copied)
        if record and record.get("config_hash") == self.params["successor"]:
            todo = "none"
        changed = todo == "copy" and current != kept
        if changed and not self.module.check_mode:
            aside = self.before if _deployment.another(record, copied) else ""
            self.move(self.write_copy(current), aside)
        return {"changed": changed, "kept": todo != "none", "record": record if todo != "none" else {}}

    def refuse(self, kept: dict[str, bytes | None]) -> None:
        """Leaves when the copy is nothing to come back to."""
        why = ""
        if not parse_record(kept["record"]) or not kept["unit"] or kept["env"] is None:
            why = f"no earlier deployment is kept in {self.copy}, wanted one that was verified"
        elif self.mixed(kept):
            why = f"the copy in {self.copy} is of two deployments, wanted files of the sums that its record tells"
        if why:
            told = f"service {self.params['name']}: {why}; deploy the version you want by nim_services instead."
            self.module.fail_json(msg=f"{told} Nothing was changed.")

    def restore(self) -> dict[str, Any]:
        """Brings the copy back."""
        swap, settled = self.params["swap"], self.settle()
        current, kept = self.current(), self.kept()
        if settled == "restored":
            # A call was cut off after it had decided. To begin anew would lead on to another deployment.
            self.result["record"] = parse_record(current["record"]) or {}
            self.said = self.start()
            self.told()
            return self.result
        known = self.whole(current)
        again = os.path.isdir(self.before)
        if swap and again and known and not self.differs(current, kept) and not self.module.check_mode:
            # An upgrade was cut off before it replaced anything: the copy is of what serves, and the way back is the one before.
            self.move(self.before)
            kept, again = self.kept(), False
        self.refuse(kept)
        record = parse_record(kept["record"]) or {}
        self.place(kept["record"])
        others = [path for path in self.units if path != self.files["unit"][0] and os.path.lexists(path)]
        if self.params["failed_image"]:
            now = _clock.iso(time.time())
            record = _deployment.with_failure(record, self.params["failed_image"], self.params["failed_reason"], now)
        self.result = {"changed": True, "kept": True, "record": record}
        if not others and not self.differs(current, kept) and not self.systemctl("is-active", "--quiet", self.unit):
            # Nothing was replaced. What was put aside for a successor that never came is the way back still.
            if again and not swap and not self.module.check_mode:
                self.move(self.before)
            return {**self.result, "changed": again and not swap}
        if self.module.check_mode:
            return self.result
        told = (json.dumps(record, indent=4, sort_keys=True) + "\n").encode()
        content = {"env": kept["env"] or b"", "unit": kept["unit"] or b"", "record": told}
        folders = []
        if swap and known and self.differs(current, kept):
            folders = [{"source": self.write_copy(current), "place": self.copy, "aside": ""}]
        elif again:
            # What it was put aside for is in place now.
            folders = [{"source": self.before, "place": self.copy, "aside": ""}]
        try:
            # What lies there may have been lost or opened up; its mode is not to be taken over.
            files = [(self.files[name][0], data, self.files[name][1]) for name, data in content.items()]
            self.switch.stage(files, others, folders, self.label, "restored")
        except BaseException:
            self.forget_copy()
            raise
        self.exchange(bool(others))
        return self.result

    @staticmethod
    def differs(one: dict[str, bytes | None], other: dict[str, bytes | None]) -> bool:
        """Whether two are not of one deployment. Of a record only that counts: it learns more while the deployment is the same."""
        hashes = [(parse_record(content["record"]) or {}).get("config_hash") for content in (one, other)]
        return hashes[0] != hashes[1] or any(one[name] != other[name] for name in ("unit", "env"))

    def remove(self) -> dict[str, Any]:
        """Takes the deployment and its copies from the host; the record goes last, so that a cut removal is found and finished."""
        self.settle()
        link = os.path.join(os.path.dirname(self.units[0]), "multi-user.target.wants", self.unit)
        env, record = self.files["env"][0], self.files["record"][0]
        gone = [path for path in (*self.units, link, env, *self.key) if os.path.lexists(path)]
        copies = [path for path in (self.copy, self.before, self.coming) if os.path.lexists(path)]
        removed = [*gone, *copies, *([record] if os.path.lexists(record) else [])]
        self.result = {"changed": bool(removed), "kept": False, "record": {}, "removed": removed}
        if self.module.check_mode or not removed:
            return self.result
        # What cannot be removed later is noticed now.
        for path in [*removed[-1:], *copies[:1]]:
            _files.beside(path, b"", 0o600)
            _files.forget(path)
        self.switch.stage([], gone)
        self.exchange(removal=True)
        for argv in (("daemon-reload",), ("reset-failed", self.unit)):
            self.systemctl(*argv)
        for path in copies:
            _switch.remove_tree(path)
        _switch.remove_tree(record)
        return self.result

    def fail(self, error: OSError) -> NoReturn:
        """Leaves with what could not be written, and what that means for the service."""
        path = str(error.filename2 or error.filename or self.files["env"][0])
        folder = os.path.dirname(path) or "/"
        wanted = {"kept": "keep what works", "restored": "bring back what worked", "removed": "remove the service"}
        if not self.stopped and self.switch.pending():
            state = "An earlier run was cut off, and what it began can be neither finished nor taken back. The service was not stopped."
        elif not self.stopped:
            state = "The service was not stopped, and its files are as they were."
        elif self.switch.pending():
            state = "The service was started again; what is left to do, the next run does first."
        elif os.path.lexists(self.files["env"][0]):
            state = "The files are those of before, and the service was started again with them."
        else:
            state = "The service is stopped and its unit is gone; the next run removes what is left."
        if self.said:
            state += f" But {self.said.rstrip('.')}."
        self.module.fail_json(
            msg=(
                f"{os.uname().nodename}: service {self.params['name']}: {path}: {error.strerror}, wanted to write there as root to"
                f" {wanted[self.params['state']]}. {state} Next: df -h {folder}; findmnt -T {folder}; ls -ld {folder};"
                " then run the play again"
            )
        )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["kept", "restored", "removed"], "required": True},
            "unit_path": {"type": "path", "required": True},
            "quadlet_path": {"type": "path"},
            "env_path": {"type": "path", "required": True},
            # It is the place of a key, and no key.
            "key_path": {"type": "path", "no_log": False},
            "record_path": {"type": "path", "required": True},
            "copy_dir": {"type": "path", "default": "/var/lib/nim/previous"},
            "successor": {"type": "str", "default": ""},
            "swap": {"type": "bool", "default": False},
            "failed_image": {"type": "str", "default": ""},
            "failed_reason": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    deployment = Deployment(module)
    work = {"kept": deployment.keep, "restored": deployment.restore, "removed": deployment.remove}
    try:
        result = work[module.params["state"]]()
    except OSError as error:
        deployment.fail(error)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
