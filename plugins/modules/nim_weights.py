#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the weights on this host still what was staged?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_weights
short_description: Compare staged weights with their sums
version_added: 1.0.0
description:
  - Reads all files of the weights that M(baremetal.nim.nim_cache) has staged on a host and compares their sizes and SHA-256 sums with
    those of the day they were staged. Changes nothing.
  - The list of sums lies where only root writes. Files that came later, such as what an engine compiles for its GPU, are not in it.
  - Weights of a cache that was only read are compared by their sizes alone, since nobody made their sums.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes.sliced
  - baremetal.nim._attributes
options:
  names:
    description: Names of services. Without any, the weights of all that were staged on the host are compared.
    type: list
    elements: str
    default: []
  host_dir:
    description: Directory of what the collection remembers on this host.
    type: path
    default: /var/lib/nim
  timeout:
    description: Most seconds that the comparison may take.
    type: float
    default: 14400
  resume:
    description:
      - What an earlier slice of the same comparison handed over (RV(resume)). Set by the action plugin.
    type: dict
    suboptions:
      elapsed:
        description: Seconds that it took so far.
        type: float
        default: 0
      name:
        description: Name of the service whose weights are being compared.
        type: str
        default: ""
      next:
        description: Number of its files that were compared.
        type: int
        default: 0
      checked:
        description: What was found so far.
        type: list
        elements: dict
        default: []
seealso:
  - module: baremetal.nim.nim_cache
"""

EXAMPLES = r"""
- name: Compare the weights of all services
  baremetal.nim.nim_weights:
"""

RETURN = r"""
checked:
  description: For each service its C(name), the C(path) of its cache, the number of C(files) and their C(bytes), and what is wrong (C(problems)).
  type: list
  elements: dict
  returned: always
  sample:
    - {"name": "llama", "path": "/var/lib/nim/cache/llama", "files": 17, "bytes": 16059123456, "problems": []}
waiting:
  description: Whether there is more to compare.
  type: bool
  returned: always
phase:
  description: V(comparing) or V(done).
  type: str
  returned: always
history:
  description: The phase with what was done so far (C(detail)).
  type: list
  elements: dict
  returned: always
resume:
  description: What the next slice needs to know.
  type: dict
  returned: while waiting
"""

import functools
import glob
import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _command, _readback, _staged, _weights
from ansible_collections.baremetal.nim.plugins.module_utils._reasons import listed
from ansible_collections.baremetal.nim.plugins.module_utils._staging import amount

#: Seconds that the sum of one file may take: a terabyte from a slow disk.
FILE_SECONDS = 14400


class Comparison:
    """One slice of it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.host_dir = module.params["host_dir"]
        resume = module.params["resume"] or {}
        self.name, self.next = resume.get("name") or "", int(resume.get("next") or 0)
        self.checked: list[dict[str, Any]] = list(resume.get("checked") or [])
        now = time.monotonic()
        self.timeout = now + module.params["timeout"] - float(resume.get("elapsed") or 0)
        self.deadline = min(self.timeout, now + (module.params["max_wait"] or float("inf")))

    def wanted(self) -> list[str]:
        """Names of the services that are compared."""
        noted = glob.glob(os.path.join(glob.escape(_staged.folder(self.host_dir)), "*.json"))
        return sorted(self.module.params["names"]) or sorted(os.path.basename(path)[: -len(".json")] for path in noted)

    def compare(self, name: str) -> bool:
        """Goes on with the weights of a service; whether they are done."""
        note = _staged.parse_note(_readback.read(_staged.note_path(self.host_dir, name)))
        entries = _weights.parse_list(_readback.read(_staged.list_path(self.host_dir, name), _staged.LIST_LIMIT))
        item = next((item for item in self.checked if item["name"] == name), None)
        if item is None:
            size = sum(entry.size for entry in (entries or {}).values())
            item = {
                "name": name,
                "path": (note or {}).get("path"),
                "files": len(entries or {}),
                "bytes": size,
                "problems": [],
            }
            self.checked.append(item)
        if not note or entries is None:
            item["problems"] = ["nothing is known of its files"]
            return True
        path = note["path"]
        while self.next < len(entries):
            try:
                facts = os.stat(path)
                work = functools.partial(_weights.compare, path, entries, self.next, self.deadline)
                found = _command.as_user(facts.st_uid, facts.st_gid, work, FILE_SECONDS)
            except (OSError, _command.Silence) as error:
                item["problems"].append(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
                self.next = len(entries)
                return True
            item["problems"] += found["problems"]
            self.next = found["next"]
            if time.monotonic() > self.deadline:
                break
        return self.next >= len(entries)

    def run(self) -> dict[str, Any]:
        """All that there is time for."""
        wanted = [name for name in self.wanted() if name >= self.name]
        for number, name in enumerate(wanted):
            if name != self.name:
                self.name, self.next = name, 0
            done = self.compare(name)
            if done and number + 1 < len(wanted):
                self.name, self.next = wanted[number + 1], 0
            elif done:
                break
            if time.monotonic() > self.timeout:
                self.module.fail_json(
                    msg=f"the weights are not compared after {self.module.params['timeout']:.0f} s, wanted all of them."
                    " Next: run it again with a longer timeout, or for fewer services (names)",
                    **self.result(waiting=False),
                )
            if time.monotonic() > self.deadline:
                return self.result(waiting=True)
        return self.result(waiting=False)

    def result(self, waiting: bool) -> dict[str, Any]:
        """Return values."""
        done = sum(item["bytes"] for item in self.checked if item["name"] != self.name)
        detail = f"{self.name}, {self.next} files compared, {amount(done)} of others before" if self.name else ""
        result: dict[str, Any] = {
            "changed": False,
            "waiting": waiting,
            "phase": "comparing" if waiting else "done",
            "history": [{"phase": "comparing" if waiting else "done", "detail": detail}],
            "last_log": "",
            "checked": self.checked,
        }
        if waiting:
            result["resume"] = {"elapsed": 0.0, "name": self.name, "next": self.next, "checked": self.checked}
        return result


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "host_dir": {"type": "path", "default": "/var/lib/nim"},
            "timeout": {"type": "float", "default": 14400},
            "progress": {"type": "bool", "default": True},
            "max_wait": {"type": "float"},
            "resume": {
                "type": "dict",
                "options": {
                    "elapsed": {"type": "float", "default": 0.0},
                    "name": {"type": "str", "default": ""},
                    "next": {"type": "int", "default": 0},
                    "checked": {"type": "list", "elements": "dict", "default": []},
                },
            },
        },
        supports_check_mode=True,
    )
    result = Comparison(module).run()
    wrong = [item for item in result["checked"] if item["problems"]]
    if wrong and not result["waiting"]:
        folder = _staged.folder(module.params["host_dir"])
        reasons = [
            f"service {item['name']}: weights{' in ' + item['path'] if item['path'] else ''} are not what was staged:"
            f" {_weights.listing(item['problems'])}."
            f" Remove those files and {folder}/{item['name']}.json, then run baremetal.nim.services, which stages them again."
            for item in wrong
        ]
        module.fail_json(msg=listed(reasons) if len(reasons) > 1 else reasons[0], **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
