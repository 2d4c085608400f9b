#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time changes a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_lock
short_description: Have a host alone while it is changed
version_added: 1.1.0
description:
  - Takes the lease of a host for this run of Ansible, and waits for another run that has it. Who waits is told who has it, since when,
    and when that run gave its last sign of life.
  - The roles of this collection do so before the first task that changes something. A run that has nothing to change takes no lease and
    is not held up by one. The run that has it already asks nobody again, as long as it is not silent for long.
  - A lease is a file in O(path). It names the run by its process on the controller, outlives the connections of its tasks, is renewed by
    them, and lapses when the run has been silent for O(ttl), and with the boot of the host. A run of this controller that is gone loses it
    at once.
  - The service that a lease names is not restarted by its watchdog.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes.sliced
  - baremetal.nim._attributes
attributes:
  check_mode:
    support: partial
    details:
      - In check mode nothing will be changed, so no lease is taken, and none is asked for.
options:
  state:
    description:
      - Whether the host is taken or given back. It is given back by the action plugin, without a call of this module; one that this run does
        not have costs nothing.
    type: str
    choices: [taken, released]
    default: taken
  keep:
    description:
      - With O(state=released), whether the host is kept after all, as a later play of this run goes on with it. A task that is skipped would
        forget that this run has the host.
    type: bool
    default: false
  services:
    description: Services that are to be replaced; watchdogs restart none of these meanwhile.
    type: list
    elements: str
    default: []
  again:
    description:
      - Whether this run has taken the host before and relies on what it read then. If another run had it in between, that is a failure.
    type: bool
    default: false
  timeout:
    description: Most seconds to wait for another run.
    type: float
    default: 600
  ttl:
    description: Seconds without a sign of life after which the lease of this run lapses.
    type: float
    default: 1800
  take_over:
    description: Id of a run that is known to be gone (RV(holder) of an earlier call names it), whose lease is not waited for.
    type: str
    default: ""
  path:
    description: Directory of the leases.
    type: path
    default: /run/nim/lock.d
  holder:
    description: This run, as its lease tells of it. Set by the action plugin.
    type: dict
    default: {}
  seen:
    description: What was known of the leases of the host when it was read (RV(baremetal.nim.gpu_host_info#module:lock)). Set by the action plugin.
    type: dict
  own:
    description: What this run was known by when it last had the host (RV(token)). Set by the action plugin.
    type: str
    default: ""
  dead:
    description: Runs that the controller knows to be gone. Set by the action plugin.
    type: list
    elements: str
    default: []
  alive:
    description: Runs that the controller knows to be there, however silent they are. Set by the action plugin.
    type: list
    elements: str
    default: []
  resume:
    description:
      - What an earlier slice of the same wait handed over (RV(resume)). Set by the action plugin.
    type: dict
    suboptions:
      elapsed:
        description: Seconds waited so far.
        type: float
        default: 0
notes:
  - Two runs that wait for hosts of each other both give up after O(timeout).
seealso:
  - module: baremetal.nim.gpu_host_info
"""

EXAMPLES = r"""
- name: Have the host alone; by this name the roles of this collection know that it is held
  baremetal.nim.nim_lock:
  register: __nim_lock

- name: Stage images and weights
  ansible.builtin.include_role:
    name: baremetal.nim.model_cache

- name: Give the host back; in "always" of a block with the tasks above, for the run that fails
  baremetal.nim.nim_lock:
    state: released
  register: __nim_lock
"""

RETURN = r"""
held:
  description: Whether this run has the host.
  type: bool
  returned: always
stale:
  description: Whether another run may have changed the host since it was read, so that it must be read again.
  type: bool
  returned: always
run:
  description: Id of this run.
  type: str
  returned: when it has the host
token:
  description: What this lease is known by.
  type: str
  returned: when it has the host
holder:
  description: The lease of the run that has the host - C(run), C(user), C(controller), C(pid), C(playbook), C(job), C(since) and others.
  type: dict
  returned: when another run has the host
waiting:
  description: Whether another run has the host still.
  type: bool
  returned: always
phase:
  description: V(waiting) or V(held).
  type: str
  returned: always
history:
  description: Whom it waited for (C(detail)).
  type: list
  elements: dict
  returned: always
resume:
  description: What the next slice needs to know.
  type: dict
  returned: while waiting
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _lease

POLL = 0.5


def refused(module: AnsibleModule, text: str, **facts: Any) -> None:
    """Leaves; nothing was changed."""
    module.fail_json(msg=text, held=False, stale=False, waiting=False, phase="waiting", history=[], **facts)


def stale(params: dict[str, Any], before: str, run: str) -> bool:
    """Whether another run has had the host since it was read. BEFORE: the last lease that was taken."""
    seen = params["seen"] or {}
    holder = (seen.get("holder") or {}).get("run")
    if params["own"] and before == params["own"]:
        # Nobody was here since this run had it last, and then it was told.
        return False
    if not seen:
        return bool(before)
    return before != str(seen.get("last") or "") or holder not in (None, run)


def take(module: AnsibleModule, leases: _lease.Leases) -> dict[str, Any]:
    """Takes the host, waits as long as the options say, or leaves."""
    params, holder = module.params, module.params["holder"]
    elapsed = (params["resume"] or {}).get("elapsed") or 0.0
    begin = time.monotonic()
    end = begin + min(params["timeout"] - elapsed, params["max_wait"] or float("inf"))
    dead = [*params["dead"], *([params["take_over"]] if params["take_over"] else [])]
    while True:
        lease, before = leases.take(holder, params["ttl"], params["services"], dead, params["alive"])
        if lease["run"] == holder["run"] and lease["name"] == holder["name"]:
            break
        who = _lease.told(lease, _lease.now())
        if lease["run"] == holder["run"]:
            refused(
                module,
                f"this host is {_lease.clean(lease['name'])} too, which this very run changes since {lease['since']}: one machine by two"
                f" names, wanted one of them among the hosts of the play. Nothing was changed as {_lease.clean(holder['name'])}.",
                holder=lease,
            )
        if time.monotonic() >= end:
            waited = elapsed + time.monotonic() - begin
            if waited >= params["timeout"]:
                refused(
                    module,
                    f"another run changes this host: {who}. Wanted it alone, waited {waited:.0f} s for it, and changed nothing. Run the play"
                    " again when that run has ended. If it is gone for certain, take the host from it:"
                    f" -e nim_lock_take_over={lease['run']}",
                    holder=lease,
                )
            words = {"phase": "waiting", "stage": "waiting", "detail": f"waits for {who}"}
            return {"waiting": True, "held": False, "stale": False, "holder": lease, "phase": "waiting", "stage": "waiting",
                    "history": [words], "resume": {"elapsed": 0.0}}  # fmt: skip
        time.sleep(POLL)
    late = stale(params, before, holder["run"])
    if late and params["again"]:
        leases.release(holder["run"])
        refused(
            module,
            "another run has had this host since it was last read, as this run had given no sign of life for too long. What was decided"
            " from that read may be wrong by now, so nothing more was changed. Run the play again; -e nim_lock_ttl=SECONDS allows longer"
            " silences.",
        )
    return {
        "waiting": False,
        "held": True,
        "stale": late,
        "run": lease["run"],
        "token": lease["token"],
        "boot": leases.boot,
        "at": lease["seen"],
        "phase": "held",
        "history": [{"phase": "held", "detail": "this run has the host"}],
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["taken", "released"], "default": "taken"},
            "keep": {"type": "bool", "default": False},
            "services": {"type": "list", "elements": "str", "default": []},
            "again": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 600},
            "ttl": {"type": "float", "default": 1800},
            "take_over": {"type": "str", "default": ""},
            "path": {"type": "path", "default": _lease.FOLDER},
            "progress": {"type": "bool", "default": True},
            "holder": {"type": "dict", "default": {}},
            "seen": {"type": "dict"},
            "own": {"type": "str", "default": ""},
            "dead": {"type": "list", "elements": "str", "default": []},
            "alive": {"type": "list", "elements": "str", "default": []},
            "max_wait": {"type": "float"},
            "resume": {"type": "dict", "options": {"elapsed": {"type": "float", "default": 0.0}}},
        },
        supports_check_mode=True,
    )
    leases = _lease.Leases(module.params["path"])
    try:
        module.exit_json(changed=False, **take(module, leases))
    except OSError as error:
        refused(
            module,
            f"{error.filename}: {error.strerror}, wanted to write there as root. Nothing was changed. Next: ls -ld /run/nim; id",
        )


if __name__ == "__main__":
    main()
