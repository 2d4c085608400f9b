# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work of minutes and hours as transient units of systemd, which outlive the play that began it. Private to the collection."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from ansible_collections.baremetal.nim.plugins.module_utils import _command, _evidence, _names, _staging
from ansible_collections.baremetal.nim.plugins.module_utils._fault import sentence, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_systemctl_show
from ansible_collections.baremetal.nim.plugins.module_utils._unit import classify, parse_journal

KEY_DIR = "/run/nim"
POLL = 0.25


def key_path(unit: str) -> str:
    """Where the key waits until the unit has opened it."""
    return os.path.join(KEY_DIR, f"{unit}.key")


def env_path(unit: str) -> str:
    """Where variables wait that are secrets, until the unit has read them."""
    return os.path.join(KEY_DIR, f"{unit}.env")


class TransientUnits:
    """The units of one service: started, watched, forgotten."""

    params: Mapping[str, Any]
    run: _command.Runner
    changed: bool
    #: Ends of the wait and of this slice of it, by time.monotonic().
    timeout: float
    deadline: float

    def fail(self, text: str, failure_class: str, evidence: list[str] | None = None, command: str = "") -> NoReturn:
        """Leaves with what was seen, the cure and the next command."""
        raise NotImplementedError

    def unit_state(self, unit: str) -> dict[str, str]:
        """Properties of a unit."""
        wanted = (
            "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,ExecMainExitTimestampMonotonic,Description,InvocationID,"
            "Transient,FragmentPath"
        )
        code, out, err = self.run("systemctl", "show", "--property", wanted, unit)
        if code == _command.SILENT:
            # It may well run, and must not be started a second time.
            said, _next, command = err.partition(" Next: ")
            self.fail(f"whether {unit} runs is not known: {said}", "unit_unreadable", command=command)
        return parse_systemctl_show(out).get(unit, {})

    def journal(self, state: dict[str, str], lines: int = 200) -> list[str]:
        """What this run of the unit has printed."""
        match = f"_SYSTEMD_INVOCATION_ID={state.get('InvocationID', '')}"
        out = self.run("journalctl", match, "-n", str(lines), "-o", "cat", "--no-pager")[1]
        return parse_journal(out)

    def forget(self, unit: str) -> None:
        """Stops and unloads a transient unit, however it ended."""
        self.run("systemctl", "stop", unit, seconds=_command.CHANGE_SECONDS)
        self.run("systemctl", "reset-failed", unit)

    def description(self, what: str) -> str:
        """Description of a unit, by which a later run knows it."""
        return f"baremetal.nim: {what} [{self.params['stage_key'][:16]}]"

    def under_way(self, unit: str, what: str) -> bool:
        """Whether an earlier run has started just this."""
        state = self.unit_state(unit)
        return state.get("Description") == self.description(what) and state.get("ActiveState") in (
            "active",
            "activating",
        )

    def ended(self, unit: str, what: str) -> dict[str, str]:
        """State of a unit that ended just this well while nobody looked; empty when there is none.

        What it left may be gone by now, so that is looked at before the unit is believed.
        """
        state = self.unit_state(unit)
        same = state.get("Description") == self.description(what) and state.get("ActiveState") == "active"
        return state if same and state.get("SubState") == "exited" else {}

    def carry(
        self,
        unit: str,
        what: str,
        argv: list[str],
        key: str | None = None,
        before: list[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> bool:
        """Runs ARGV as a transient unit or attaches to the one that does; True when done, False when out of time.

        BEFORE is a command that clears the way for a new unit and may fail. ENV are variables that are secrets.
        """
        description = self.description(what)
        state = self.unit_state(unit)
        other = _names.foreign_unit(state)
        if other:
            self.fail(
                f"{unit} is a unit of this host ({other}) and none of a staging; it was left alone, and nothing was staged."
                " Give the service that it is of another name.",
                "staging_failed",
                command=f"systemctl status {unit}",
            )
        if state.get("LoadState") == "loaded" and state.get("Description") != description:
            # An earlier play wanted something else.
            self.forget(unit)
            state = {}
        if state.get("ActiveState") == "failed":
            self.forget(unit)
            state = {}
        if state.get("ActiveState") not in ("active", "activating"):
            if before:
                self.run(*before, seconds=_command.CHANGE_SECONDS)
            try:
                key_file = self.hide(key_path(unit), key + "\n") if key else None
                env_file = self.hide(env_path(unit), _staging.environment_file(env)) if env else None
                code, out, err = self.run(*_staging.transient_unit(unit, description, argv, key_file, env_file))
            finally:
                # The unit has the file open by now, or will never read it.
                self.drop_key(unit)
            if code:
                self.fail(
                    f"systemd-run did not start {unit}: {(err or out).strip()}.",
                    "unit_unreadable",
                    command=f"systemctl status {unit}",
                )
        else:
            # A play that was killed just after it started the unit may have left the file.
            self.drop_key(unit)
        self.changed = True
        while True:
            state = self.unit_state(unit)
            if state.get("ActiveState") == "failed" or state.get("SubState") == "exited":
                break
            if time.monotonic() > self.timeout:
                self.fail(
                    f"{what} is not done after {self.params['timeout']:.0f} s and goes on; run the play again to wait for it.",
                    "staging_failed",
                    self.journal(state, 5),
                    f"journalctl -fu {unit}",
                )
            if time.monotonic() > self.deadline:
                return False
            time.sleep(POLL)
        lines = self.journal(state)
        self.forget(unit)
        if state.get("ActiveState") == "failed":
            story = _evidence.read(lines)
            known = classify(story.own) or classify(story.words)
            failure_class = known[0] if known else "staging_failed"
            culprit = known[1] if known else story.culprit or _staging.last_line(story.words)
            self.fail(
                f"{what} failed (exit status {state.get('ExecMainStatus')}): {sentence(shorten(culprit, 500))}",
                failure_class,
                story.evidence(20, known[1] if known else ""),
                f"journalctl _SYSTEMD_INVOCATION_ID={state.get('InvocationID')}",
            )
        return True

    def hide(self, path: str, text: str) -> str:
        """Writes a secret where only root reads it, in memory."""
        os.makedirs(KEY_DIR, mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(text)
        return path

    def drop_key(self, unit: str) -> None:
        """Removes the files of the key and of other secrets, if there are any."""
        for path in (key_path(unit), env_path(unit)):
            if os.path.exists(path):
                os.unlink(path)
