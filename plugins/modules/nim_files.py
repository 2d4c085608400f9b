#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a service on this host, in one step."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_files
short_description: Write the files of NIM services in one step
version_added: 1.0.0
description:
  - Compares files with what they should be and writes those that differ. Each is written whole beside its place first; only when all of
    them are there do they go into their places, so a full disk changes nothing.
  - Files and directories belong to root. What lies in the place of a file and is a symbolic link is replaced itself.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  diff_mode:
    support: full
    details: Files that are secrets are compared and not shown, nor are the values in O(hidden).
options:
  files:
    description: Files to write.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Place of the file. Its directory must be there, or in O(directories).
        type: path
        required: true
      content:
        description: What is in it, in base64.
        type: str
        required: true
      mode:
        description: Its permissions, in octal digits.
        type: str
        default: "0644"
      secret:
        description: Whether it is shown to nobody.
        type: bool
        default: false
  directories:
    description: Directories to make.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Place of the directory. Those above it are made too.
        type: path
        required: true
      mode:
        description: Its permissions, in octal digits.
        type: str
        default: "0755"
  absent:
    description: Files and directories with all that is in them, to remove once the others are written.
    type: list
    elements: path
    default: []
  journal:
    description:
      - Where a journal lies while files that belong together go into their places and those in O(absent) go. With it, a run that is cut off
        in between is finished, or taken back, by the next one that names the same journal.
      - Of a service it is C(.NAME.switch) in the directory of its environment file, where M(baremetal.nim.nim_deployment) finds it.
    type: path
  hidden:
    description: Values that no output shows.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Write unit and environment
  baremetal.nim.nim_files:
    directories:
      - {path: /etc/nim, mode: "0700"}
    files:
      - {path: /etc/nim/llama.env, mode: "0600", content: "{{ environment_text | b64encode }}"}
      - {path: /etc/systemd/system/nim-llama.service, content: "{{ unit_text | b64encode }}"}
"""

RETURN = r"""
written:
  description: Places of the files that were written or, in check mode, would be; whether of their content or their permissions.
  type: list
  elements: str
  returned: always
removed:
  description: What was removed of O(absent), or would be.
  type: list
  elements: str
  returned: always
"""

import base64
import binascii
import contextlib
import os
import re
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _files, _switch


class Files:
    """What is wanted on this host, and what is there."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.written: list[str] = []
        #: Those of them that are in their places.
        self.done: list[str] = []
        self.removed: list[str] = []
        self.diff: list[dict[str, str]] = []
        self.changed = False

    def fail(self, text: str, command: str) -> NoReturn:
        """Leaves with the cure; nothing that lies in its place is half of anything."""
        self.module.fail_json(msg=f"{text} Next: {command}", written=self.done, removed=[])

    def mode(self, item: dict[str, Any]) -> int:
        """Permissions of an item."""
        if not re.fullmatch(r"0?[0-7]{3}", item["mode"]):
            self.fail(f"{item['path']}: mode is {item['mode']}, wanted three octal digits such as 0644.", "correct it")
        return int(item["mode"], 8)

    def data(self, item: dict[str, Any]) -> bytes:
        """Content of a file."""
        try:
            return base64.b64decode(item["content"], validate=True)
        except (binascii.Error, ValueError):
            self.fail(f"{item['path']}: the content is no base64.", "give it the filter b64encode")

    @staticmethod
    def owner() -> tuple[int, int] | None:
        """Who files belong to; nobody can give them away but root."""
        return (0, 0) if os.geteuid() == 0 else None

    def shown(self, item: dict[str, Any], data: bytes) -> str:
        """Content of a file for a diff."""
        if item["secret"]:
            return "(a secret)\n" if data else ""
        text = data.decode(errors="replace")
        for value in self.params["hidden"]:
            text = text.replace(value, "********") if value else text
        return text

    def compare(self, item: dict[str, Any]) -> tuple[str, bytes, int] | None:
        """A file that differs."""
        path, mode, data, now = item["path"], self.mode(item), self.data(item), _files.facts(item["path"])
        if now and now["kind"] == "directory":
            self.fail(f"{path} is a directory, wanted a file of this collection.", f"ls -la {path}")
        same = now is not None and now["kind"] == "file" and now["data"] == data
        if now and same and now["mode"] == mode and now["owner"] == (self.owner() or now["owner"]):
            return None
        before, after = "absent", f"{mode:04o}"
        if now:
            before = (
                f"{now['mode']:04o} of {now['owner'][0]}:{now['owner'][1]}" if now["kind"] == "file" else now["kind"]
            )
        told = {"before": self.shown(item, now["data"]) if now else "", "after": self.shown(item, data)}
        if item["secret"] and not same and now:
            told["after"] = "(another secret)\n"
        self.diff.append({"before_header": f"{path} ({before})", "after_header": f"{path} ({after})", **told})
        return path, data, mode

    def directory(self, item: dict[str, Any]) -> None:
        """Makes a directory, or gives it its permissions."""
        path, mode, now = item["path"], self.mode(item), _files.facts(item["path"])
        kind = "directory" if os.path.isdir(path) else (now or {}).get("kind")
        if kind not in (None, "directory"):
            self.fail(f"{path} is no directory but a {kind}.", f"ls -la {path}")
        # One that is a link to a directory is left as it is: somebody keeps it elsewhere.
        if now and (now["kind"] == "link" or (now["mode"], now["owner"]) == (mode, self.owner() or now["owner"])):
            return
        self.changed = True
        before = f"{now['mode']:04o} of {now['owner'][0]}:{now['owner'][1]}" if now else "absent"
        self.diff.append({"before": f"{path}: {before}\n", "after": f"{path}: directory, {mode:04o}\n"})
        if self.module.check_mode:
            return
        if not now:
            # Those above it are for everybody, whatever root's umask is.
            old = os.umask(0o022)
            os.makedirs(path, exist_ok=True)
            os.umask(old)
        os.chmod(path, mode)
        if self.owner():
            os.chown(path, 0, 0)

    def work(self) -> None:
        """All of it."""
        self.settle()
        for item in self.params["directories"]:
            self.directory(item)
        differing = [found for found in map(self.compare, self.params["files"]) if found]
        self.written = [path for path, _data, _mode in differing]
        self.removed = [path for path in self.params["absent"] if _files.facts(path)]
        self.diff += [{"before": f"{path}: there\n", "after": f"{path}: absent\n"} for path in self.removed]
        self.changed = bool(self.changed or self.written or self.removed)
        if self.module.check_mode:
            return
        if self.params["journal"]:
            self.exchange(differing)
        else:
            _files.write(differing)
        for path in self.params["absent"]:
            # It may be the directory that is gone.
            with contextlib.suppress(OSError):
                _files.forget(path)
        self.done = self.written
        if self.module.selinux_enabled() and not self.params["journal"]:
            for path in self.written:
                self.module.set_default_selinux_context(path, False)
        for path in self.removed:
            _switch.remove_tree(path)

    def settle(self) -> None:
        """Finishes what an earlier run was cut off in, before anything is compared."""
        if self.params["journal"] and not self.module.check_mode:
            files = [item["path"] for item in self.params["files"]]
            if _switch.Switch(self.params["journal"]).settle(files) is not None:
                self.changed = True

    def exchange(self, differing: list[tuple[str, bytes, int]]) -> None:
        """Brings files into their places and others away, as one."""
        gone = [path for path in self.removed if not os.path.isdir(path) or os.path.islink(path)]
        if not differing and not gone:
            return
        switch = _switch.Switch(self.params["journal"])
        switch.stage(differing, gone, label=self.label)
        switch.go()
        switch.close()

    def label(self, scratch: str, path: str) -> None:
        """Gives a file that waits the label of its place."""
        if self.module.selinux_enabled():
            self.module.set_context_if_different(scratch, self.module.selinux_default_context(path), False)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    # Whoever may read the journal sees how modules are called.
                    "content": {"type": "str", "required": True, "no_log": True},
                    "mode": {"type": "str", "default": "0644"},
                    "secret": {"type": "bool", "default": False},
                },
            },
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "mode": {"type": "str", "default": "0755"},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "journal": {"type": "path"},
            "hidden": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    files = Files(module)
    try:
        files.work()
    except OSError as error:
        path = str(error.filename2 or error.filename)
        files.fail(
            f"{path}: {error.strerror}, wanted to {'remove' if files.done else 'write'} it;"
            f" {'all files were written before that' if files.done else 'no file was changed'}.",
            f"df -h {os.path.dirname(path) or '/'}; ls -ld {os.path.dirname(path) or '/'}",
        )
    module.exit_json(
        changed=files.changed, written=files.written, removed=files.removed, diff=files.diff if module._diff else []
    )


if __name__ == "__main__":
    main()
