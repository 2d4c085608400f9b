# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of nim_lock: who this run is, whether others of this controller are still there, and the wait in slices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.utils.display import Display
from ansible_collections.baremetal.nim.plugins.module_utils import _lease
from ansible_collections.baremetal.nim.plugins.plugin_utils import _run
from ansible_collections.baremetal.nim.plugins.plugin_utils._slices import SlicedAction, number

#: The result where this run has not the host.
NOT_HELD = {"changed": False, "held": False, "stale": False, "waiting": False}


class ActionModule(SlicedAction):
    """Takes a host for this run, and gives it back."""

    module = "baremetal.nim.nim_lock"
    timeout = 600.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Runs that had the host, and whether each is known to be there.
        self._known: dict[str, str] = {}

    def subject(self, args: Mapping[str, Any]) -> str:
        """Return what the wait is about."""
        return "lock"

    def success(self, result: Mapping[str, Any]) -> str:
        """Return the words for the end of a wait."""
        return "taken"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return whether this run has the host."""
        variables = task_vars or {}
        me = _run.identity(variables)
        mine = _held(variables, me["run"])
        if self._task.args.get("state") == "released":
            if boolean(self._task.args.get("keep", False), strict=False):
                return {**NOT_HELD, **mine, "stale": False}
            return {**NOT_HELD, "given_back": self._give_back(mine, variables)}
        if self._task.check_mode:
            return dict(NOT_HELD)
        seen = _seen(variables)
        args = dict(self._task.args)
        if mine and not _lost(mine, seen, me["run"]) and _fresh(mine, args):
            return {**NOT_HELD, **mine, "stale": False}
        self._judge(seen.get("holder"))
        self._task.args = {**args, "holder": me, "seen": seen or None, "own": mine.get("token") or ""}
        asked = time.monotonic()
        result = super().run(tmp, task_vars)
        if result.get("held"):
            # By this clock, which is that of all tasks of the run.
            result["asked"] = asked
        return result

    def _execute_module(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = kwargs.get("module_args")
        if given is not None:
            runs = self._known.items()
            given.update({word: [run for run, found in runs if found == word] for word in ("dead", "alive")})
        result: dict[str, Any] = super()._execute_module(*args, **kwargs)
        # By the next slice it may be gone.
        self._judge(result.get("holder"))
        return result

    def _judge(self, holder: Any) -> None:
        """Note whether the run of a lease is there, where this machine can tell."""
        if isinstance(holder, Mapping) and holder.get("run"):
            self._known[str(holder["run"])] = _run.seen_from_here(holder)

    def _give_back(self, mine: Mapping[str, Any], variables: Mapping[str, Any]) -> bool:
        if not mine:
            return False
        path = f"{self._task.args.get('path') or _lease.FOLDER}/{mine['run']}.json"
        try:
            # Only a file that bears the id of this run; so this takes the lease of no other.
            command: Any = self._low_level_execute_command
            done = command(self._connection._shell.remove(path))
            problem = "" if done["rc"] == 0 else str(done.get("stderr") or done.get("stdout")).strip()
        except AnsibleConnectionFailure as exc:
            problem = str(exc)
        if problem:
            # What else went wrong is the failure to tell.
            name = str(variables.get("inventory_hostname"))
            Display().warning(
                f"{name} was not given back: {problem}. Its lease lapses by itself; runs of this controller do not wait for it."
            )
        return not problem


def _held(variables: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return what an earlier task of this run registered for this host when it took it; empty when none did."""
    return dict(variables[_run.REGISTERED]) if _run.holder_of(variables) == run else {}


def _seen(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the last read of the host told of its leases."""
    host = variables.get("preflight_host")
    lock = host.get("lock") if isinstance(host, Mapping) else None
    return dict(lock) if isinstance(lock, Mapping) else {}


def _lost(mine: Mapping[str, Any], seen: Mapping[str, Any], run: str) -> bool:
    """Return whether a read of the host that is newer than the lease says that it is gone: a reboot ends it, and so may another run."""
    if not seen:
        return False
    if seen.get("boot") != mine.get("boot"):
        return True
    newer = number(seen.get("at"), 0.0) > number(mine.get("at"), 0.0)
    return newer and (seen.get("holder") or {}).get("run") != run


def _fresh(mine: Mapping[str, Any], args: Mapping[str, Any]) -> bool:
    """Return whether the host need not be asked again: the lease is far from lapsing."""
    silence = time.monotonic() - number(mine.get("asked"), float("-inf"))
    return silence < number(args.get("ttl"), _lease.TTL) / 3
