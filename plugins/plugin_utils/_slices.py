# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of a long wait: the module is called slice by slice, and progress is printed meanwhile.

This plugin util is private to the collection and may change at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import printable
from ansible_collections.baremetal.nim.plugins.plugin_utils import _run

# The first slice is short, so that a fault and the first line of progress come fast.
_FIRST_SLICE = 2.0
_SLICE = 5.0
# Consecutive slices a lost connection may cost.
_LOSSES = 5
_LINE_EVERY = 10.0
_HEARTBEAT_EVERY = 60.0
# Entries of a history, as many as a module keeps.
_REMEMBERED = 100


class Progress:
    """Prints what the slices of one wait saw: a new phase at once, else seldom, and what did not change rarer still.

    label: str, begins each line. timeout: seconds the wait may take. show: prints a line.
    """

    def __init__(self, label: str, timeout: float, show: Callable[[str], None], now: Callable[[], float]) -> None:
        self._label = label
        self._timeout = timeout
        self._show = show
        self._now = now
        self._phases: set[str] = set()
        self._said = ""
        self._at = float("-inf")

    def waiting(self, result: Mapping[str, Any], elapsed: float) -> None:
        """Tell of a slice that ended without a final result."""
        history = result.get("history") or [{}]
        log = result.get("last_log")
        stage, phase, detail = result.get("stage"), str(result.get("phase")), history[-1].get("detail")
        # The words of a stage say more than the line they were read from.
        last = f"; last log: {log}" if log and not stage else ""
        self._tell(stage or phase, str(detail) if stage else f"{phase}, {detail}", elapsed, last)

    def lost(self, reason: str, elapsed: float) -> None:
        """Tell of a slice that was lost with the connection."""
        self._tell("lost", f"connection lost ({reason}), trying again", elapsed)

    def ended(self, text: str) -> None:
        """Tell of the good end of a wait that has been told of."""
        if self._phases:
            self._show(f"{self._label} {text}")

    def _tell(self, phase: str, news: str, elapsed: float, log: str = "") -> None:
        since = self._now() - self._at
        changed = news + log != self._said
        # A phase that comes back is no news: a flapping endpoint must not flood the screen.
        if phase not in self._phases or (changed and since >= _LINE_EVERY) or since >= _HEARTBEAT_EVERY:
            self._phases.add(phase)
            self._said = news + log
            self._at = self._now()
            self._show(f"{self._label} {news}, {elapsed:.0f} s of {self._timeout:.0f} s{log}")


class SlicedAction(ActionBase):
    """Calls a module slice by slice until its result is final.

    The module takes max_wait and resume (a dict with at least elapsed) and returns waiting, phase, history (list of
    phase and detail), last_log and resume.
    """

    _supports_check_mode = True
    _supports_async = False

    #: FQCN of the module, and its default timeout in seconds.
    module = ""
    timeout = 0.0
    #: Whether its slices are signs of life of a run that has the host, by its id in resume.
    renews = False

    def subject(self, args: Mapping[str, Any]) -> str:
        """Return what the wait is about, for progress lines."""
        raise NotImplementedError

    def success(self, result: Mapping[str, Any]) -> str:
        """Return the words for the good end, empty when there are none."""
        raise NotImplementedError

    def parts(
        self, args: Mapping[str, Any], result: Mapping[str, Any]
    ) -> Iterator[tuple[str, float, Mapping[str, Any]]]:
        """Return what a result tells of: subjects, each with its timeout in seconds and what is known of it."""
        yield self.subject(args), self.limit(args), result

    def limit(self, args: Mapping[str, Any]) -> float:
        """Return the seconds that the wait may take."""
        # Values of a wrong type are the module's to refuse.
        return number(args.get("timeout"), self.timeout)

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result for the whole wait. Raises AnsibleConnectionFailure when the host stays away."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = self._task.args
        holder = _run.holder_of(task_vars) if self.renews else ""
        sign = {"run": holder} if holder else {}
        timeout = self.limit(args)
        length = number(args.get("max_wait"), _SLICE)
        tellers: dict[str, Progress] = {}
        ended: set[str] = set()

        def teller(subject: str, limit: float) -> Progress:
            label = f"{task_vars.get('inventory_hostname', 'host')}: {subject}"
            return tellers.setdefault(subject, Progress(label, limit, self._show, time.monotonic))

        def tell(result: Mapping[str, Any]) -> None:
            for subject, limit, part in self.parts(args, result):
                if part.get("waiting"):
                    teller(subject, limit).waiting(part, time.monotonic() - start)
                    continue
                words = "" if part.get("failed") or part.get("skipped") else self.success(part)
                if words and subject not in ended:
                    ended.add(subject)
                    teller(subject, limit).ended(words)

        start = time.monotonic()
        resume: dict[str, Any] = {}
        histories: dict[int, list[dict[str, Any]]] = {}
        final: set[int] = set()

        def remember(result: Mapping[str, Any]) -> None:
            """Give each part what all slices saw of it; one that is final is the same in every later slice."""
            for number, (_subject, _limit, part) in enumerate(self.parts(args, result)):
                history = histories.setdefault(number, [])
                if number not in final:
                    _join(history, part.get("history") or [])
                if not part.get("waiting"):
                    final.add(number)
                if history and isinstance(part, dict):
                    part["history"] = list(history)

        changed = False
        losses = 0
        while True:
            elapsed = time.monotonic() - start
            max_wait = length if resume else min(length, _FIRST_SLICE)
            # The clock of the controller counts: it knows of the time between the slices.
            slice_args = dict(args, max_wait=max_wait, resume=dict(resume, elapsed=elapsed, **sign))
            try:
                answer = self._execute_module(module_name=self.module, module_args=slice_args, task_vars=task_vars)
                result = cast("dict[str, Any]", answer)
                if result.get("unreachable"):
                    raise AnsibleConnectionFailure(str(result.get("msg") or "unreachable"))
            except AnsibleAuthenticationFailure:
                raise
            except AnsibleConnectionFailure as exc:
                losses += 1
                if losses > _LOSSES or elapsed >= timeout:
                    raise
                for one in tellers.values() or [teller(self.subject(args), timeout)]:
                    one.lost(str(exc), elapsed)
                self._reconnect()
                continue
            losses = 0
            changed = changed or bool(result.get("changed"))
            remember(result)
            if result.get("waiting"):
                resume = result["resume"]
                tell(result)
                continue
            if changed:
                result["changed"] = True
            tell(result)
            return result

    def _show(self, line: str) -> None:
        if not self._task.no_log and boolean(self._task.args.get("progress", True), strict=False):
            # Ansible flushes its standard output when the next task starts: in a pipe, as CI has one, that is when all is over.
            Display().display(printable(line, 1000), stderr=True)

    def _reconnect(self) -> None:
        """Forget the broken connection and what it knew of the host, which may have rebooted meanwhile."""
        time.sleep(_SLICE)
        self._connection._shell.tmpdir = None
        try:
            self._connection.reset()
        except (AttributeError, AnsibleConnectionFailure):
            # Not every connection can be reset, and the next slice tells whether the host is back.
            return


def _join(history: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    """Append the history of a slice, which begins by telling again where the one before ended."""
    if history and more:
        before, after = history[-1], more[0]
        staged = bool(after.get("stage")) and before.get("stage") == after["stage"]
        if before.get("phase") == after.get("phase") and (staged or before.get("detail") == after.get("detail")):
            before["detail"] = after.get("detail")
            more = more[1:]
    history += more
    del history[:-_REMEMBERED]


def verified(result: Mapping[str, Any]) -> str:
    """Return how long the verification of an endpoint took, empty when it was not verified."""
    if result.get("phase") != "verified":
        return ""
    ttft = result.get("ttft")
    first = "" if ttft is None else f", first token after {ttft:.3g} s"
    return f"verified, ready after {result.get('ready_after') or 0.0:.0f} s{first}"


def number(value: Any, default: float) -> float:
    """Return a value as a number of seconds, DEFAULT when it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return default
