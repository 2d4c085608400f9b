# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What systemd and the journal say about the unit behind an endpoint.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _evidence, _foreign
from ansible_collections.baremetal.nim.plugins.module_utils._evidence import ACCESS_LOG
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._startup import Startup, startup

# argv -> (exit status, standard output, standard error)
Run = Callable[[list[str]], tuple[int, str, str]]

UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]*")

_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "ExecMainCode",
    "ExecMainStatus",
    "InvocationID",
)
# The cause of a crash stands far above the last lines: every process of the engine adds its own traceback, one for each GPU at least.
_WINDOW = 2000
_LONG_WINDOW = 20000
_PROGRESS_WINDOW = 500
# So much of the line that matters most is shown.
_CULPRIT = 500
_CHECK_EVERY = 1.0
_READ_EVERY = 2.0
_MISSES = 3

# First match wins within one line. Each text is what an engine, NIM, Docker, Podman or systemd prints.
_CAUSES = {
    "cache_permission": r"os error 13\b|errno 13\b.{0,300}(/opt/nim|/model|cache)|cache\b.{0,300} is not writable",
    "disk_full": r"no space left on device|os error 28\b|disk quota exceeded",
    "port_in_use": r"address already in use|port is already allocated",
    "no_profile": r"detected 0 compatible profile|could not find a profile that is currently runnable",
    "out_of_memory": (
        r"out of memory|OutOfMemoryError|oom.kill|no available memory for the cache blocks"
        r"|free memory on device .{0,200} is less than desired|larger than the available kv cache memory"
    ),
    "driver_mismatch": (
        r"driver/library version mismatch|cuda driver version is insufficient|unsatisfied condition: (cuda|driver|brand)"
        r"|unsupported display driver / cuda driver combination|forward compatibility was attempted on non supported hw"
        r"|error 80[34]: |nvidia driver on your system is too old|provided ptx was compiled with an unsupported toolchain"
    ),
    "gpu_unavailable": (
        r"could not select device driver|unresolvable cdi devices|failed to initialize nvml"
        r"|libcuda\.so\S{0,60}: cannot open|nvidia-container-cli: "
        r"|cuda error: system not yet initialized|error 802: |no cuda-capable device"
    ),
    "image_missing": (
        r"manifest unknown|manifest for \S{1,500} not found|no matching manifest|no such image|image not known"
        r"|name_unknown|repository name not known"
    ),
    "auth": (
        r"\bunauthorized\b|\bforbidden\b|authentication (error|failed|required)|requires an api key|invalid api key"
        r"|pull access denied|requested access .{0,200} denied|payment required"
        r"|(status|http|error)\W{0,3}(code)?\W{0,3}40[123]\b|\b40[13] client error"
    ),
}
_CAUSE_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _CAUSES.items()}
# One life of the unit ends here; systemd writes these after the last words of the container.
_END_OF_LIFE = re.compile(r"\.service: (Failed with result|Deactivated successfully|Succeeded\.|Scheduled restart job)")
# Podman and its monitor tell of the life of the container as well, and by its id.
_SYSTEMD_LINE = re.compile(
    r"^\S+\.service: |^(Started|Starting|Stopped|Stopping) .*\.$"
    r"|^conmon [0-9a-f]+ <|^[-0-9]+ [0-9:.]+ \S+ \S+ m=\S+ (container|image) |^[0-9a-f]{64}$"
)
_EXIT_STATUS = re.compile(r"\.service: Main process exited, code=(\w{1,20}), status=(\d{1,9})")
# What nim-gpu-wait said before the container started; names of processes are the words of strangers.
_GPU_HELD = re.compile(r"^GPU memory is (?:still held after .*?|held by others too): (GPU .*|all GPUs: .*)")
_GPU_UNKNOWN = re.compile(r"^nvidia-smi .*, so it is not known whether others hold the memory of GPU ")
# Failure classes that somebody else's memory may explain.
_OF_MEMORY = ("out_of_memory", "no_profile", "crash_loop")


@dataclass(frozen=True)
class UnitState:
    """A unit as `systemctl show` tells it. exit_code is the CLD_ number: 1 exited, 2 and 3 killed by a signal."""

    name: str
    load_state: str = ""
    active_state: str = ""
    sub_state: str = ""
    result: str = ""
    restarts: int = 0
    exit_code: int = 0
    exit_status: int = 0
    invocation_id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain data for a module result."""
        return asdict(self)

    @property
    def last_exit(self) -> str:
        """How the main process ended, or empty while that is unknown."""
        return _exit_words(self.exit_code == 1, self.exit_status) if self.exit_code else ""


def show_command(unit: str) -> list[str]:
    """Return the argv that reads the state of a unit."""
    return ["systemctl", "show", "--property=" + ",".join(_PROPERTIES), "--", unit]


def journal_command(unit: str, lines: int) -> list[str]:
    """Return the argv that reads the last lines of a unit's journal."""
    return _read_command("--unit=" + unit, lines)


def life_command(invocation_id: str, lines: int) -> list[str]:
    """Return the argv that reads the last lines that one life of a unit wrote itself."""
    return _read_command("_SYSTEMD_INVOCATION_ID=" + invocation_id, lines)


def _read_command(match: str, lines: int) -> list[str]:
    # Without --all a progress bar, which has carriage returns, is but "blob data".
    return ["journalctl", match, "-n", str(lines), "-o", "cat", "--all", "--no-pager"]


def parse_journal(text: str) -> list[str]:
    """Return the lines of a journal, oldest first, printable and without colour codes; of a progress bar, what was seen last."""
    return _foreign.lines(text)


def parse_show(unit: str, text: str) -> UnitState:
    """Return the state told by the output of show_command. What is absent or no number counts as empty or 0."""
    values = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)

    def number(key: str) -> int:
        value = values.get(key, "")
        return int(value) if re.fullmatch("[0-9]{1,18}", value) else 0

    return UnitState(
        name=unit,
        load_state=values.get("LoadState", ""),
        active_state=values.get("ActiveState", ""),
        sub_state=values.get("SubState", ""),
        result=values.get("Result", ""),
        restarts=number("NRestarts"),
        exit_code=number("ExecMainCode"),
        exit_status=number("ExecMainStatus"),
        invocation_id=values.get("InvocationID", ""),
    )


def verdict(state: UnitState, restarts: int, invocation_id: str) -> tuple[str, str] | None:
    """Say whether the unit cannot become ready any more: (failure class, what is seen), or None while it may.

    restarts and invocation_id: what the unit had when the wait began.
    """
    name = f"unit {state.name}"
    if state.load_state not in ("loaded", ""):
        return "unit_not_found", f"{name} is {state.load_state}"
    if state.active_state == "failed":
        return "crash_loop", f"{name} is failed (result {state.result})"
    if state.active_state == "inactive":
        return "unit_stopped", f"{name} is inactive (result {state.result})"
    if state.sub_state.startswith("auto-restart"):
        return "crash_loop", f"{name} crashed (result {state.result}) and waits for its restart"
    if state.restarts > restarts:
        return "crash_loop", f"{name} restarted {_times(state.restarts - restarts)} during the wait"
    if invocation_id and state.invocation_id and state.invocation_id != invocation_id:
        return "crash_loop", f"{name} was started anew during the wait"
    return None


def last_life(lines: Sequence[str]) -> list[str]:
    """Return the journal lines of the last life of a unit that has ended, or all lines when no end is recorded.

    Older lives are left out: what killed them may have been cured since.
    """
    ended: list[str] = []
    life: list[str] = []
    for line in lines:
        life.append(line)
        if _END_OF_LIFE.search(line):
            # systemd ends one life with several lines: only a life with words of its own replaces the one before.
            ended = life if last_words(life) else ended + life
            life = []
    return ended or life


def this_life(lines: Sequence[str]) -> list[str]:
    """Return the journal lines since the last end of a life of the unit."""
    ends = [number for number, line in enumerate(lines, 1) if _END_OF_LIFE.search(line)]
    return list(lines[ends[-1] if ends else 0 :])


def classify(lines: Sequence[str]) -> tuple[str, str] | None:
    """Return (failure class, the line that tells it) from the journal of a dead unit, None when nothing is known.

    The newest telling line wins. Lines that log requests of clients tell nothing about the service.
    """
    for line in reversed(lines):
        if ACCESS_LOG.search(line) or _GPU_HELD.search(line):
            continue
        for failure_class, pattern in _CAUSE_PATTERNS.items():
            if pattern.search(line):
                return failure_class, line
    return None


def before_start(lines: Sequence[str]) -> str:
    """Return the newest line that the wait for the GPUs wrote, or empty: who holds their memory, or that this is not known."""
    return next((line for line in reversed(lines) if _GPU_HELD.search(line) or _GPU_UNKNOWN.search(line)), "")


def last_error(lines: Sequence[str]) -> str:
    """Return the line with the exception of the process that failed first, or what tells best of its end; or empty."""
    return shorten(_evidence.read(lines).culprit, _CULPRIT)


def last_words(lines: Sequence[str]) -> str:
    """Return the newest line the service itself wrote (neither systemd nor an access log), or empty."""
    for line in reversed(lines):
        if line and not ACCESS_LOG.search(line) and not _SYSTEMD_LINE.search(line) and not _GPU_HELD.search(line):
            return shorten(line)
    return ""


class UnitWatch:
    """Looks at a unit now and then and raises a Fault as soon as it cannot become ready any more.

    run: runs systemctl and journalctl. restarts and invocation_id: what an earlier slice of the same wait saw first.
    """

    def __init__(
        self,
        unit: str,
        run: Run,
        lines: int = 20,
        restarts: int | None = None,
        invocation_id: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unit = unit
        self.state = UnitState(unit)
        self.restarts = restarts
        self.invocation_id = invocation_id
        self._run = run
        self._lines = lines
        self._now = now
        self._checked: float | None = None
        self._read: float | None = None
        self._startup: Startup | None = None
        self._misses = 0

    @property
    def starts(self) -> bool:
        """Whether what the unit runs has yet to start. What answers meanwhile is left over from a life before."""
        return self.state.active_state == "activating"

    def check(self, force: bool = False) -> None:
        """Raise a Fault when the unit is lost. Asks systemd at most once a second, unless forced."""
        if not force and self._checked is not None and self._now() - self._checked < _CHECK_EVERY:
            return
        self._checked = self._now()
        rc, out, err = self._run(show_command(self.unit))
        if rc != 0:
            # A systemd that re-executes itself does not answer for a moment; one that never answered is another thing.
            self._misses += 1
            if self._misses >= _MISSES or not self.state.active_state:
                said = shorten(err or out) or f"exit status {rc}"
                raise Fault("unit_unreadable", f"systemctl cannot read unit {self.unit} ({said})", "its state")
            return
        self._misses = 0
        self.state = parse_show(self.unit, out)
        if self.restarts is None:
            self.restarts = self.state.restarts
        self.invocation_id = self.invocation_id or self.state.invocation_id
        lost = verdict(self.state, self.restarts, self.invocation_id)
        if lost:
            raise self._fault(*lost)

    def journal(self, lines: int | None = None) -> list[str]:
        """Return the last lines of the journal, oldest first, free of colour codes; empty when it cannot be read."""
        rc, out, _err = self._run(journal_command(self.unit, lines or self._lines))
        return parse_journal(out) if rc == 0 else []

    def startup(self) -> Startup | None:
        """Return how far the present life of the unit says it has come. Reads the journal at most every two seconds."""
        if self._read is None or self._now() - self._read >= _READ_EVERY:
            self._read = self._now()
            self._startup = startup(self.life(_PROGRESS_WINDOW))
        return self._startup

    def life(self, lines: int | None = None) -> list[str]:
        """Return the last lines of the present life of the unit, oldest first, and none of the life before."""
        invocation_id = self.state.invocation_id
        if not invocation_id:
            return this_life(self.journal(lines))
        rc, out, _err = self._run(life_command(invocation_id, lines or self._lines))
        return parse_journal(out) if rc == 0 else []

    def evidence(self) -> tuple[list[str], str]:
        """Return what the present life shows of its state, in lines and in the one line that tells of a failure or is the last."""
        story = _evidence.read(self.life(_WINDOW))
        return story.evidence(self._lines), shorten(story.culprit, _CULPRIT) or last_words(story.words)

    def _fault(self, failure_class: str, seen: str) -> Fault:
        if failure_class == "unit_not_found":
            return Fault(failure_class, seen, "an installed unit")
        window = max(_WINDOW, self._lines)
        lines = self.journal(window)
        whole = last_life(lines)
        # What strangers call their processes tells nothing about the service.
        life = [line for line in whole if not _GPU_HELD.search(line)]
        story = _evidence.read(life)
        # The process that failed first knows why, the others know it from hearsay.
        cause = classify(story.own) or classify(story.words)
        culprit = shorten(story.culprit, _CULPRIT) or last_words(life)
        if cause:
            failure_class = cause[0]
            culprit = shorten(cause[1], _CULPRIT)
        evidence = story.evidence(self._lines, cause[1] if cause else "")
        if self.state.result == "oom-kill":
            failure_class = "out_of_memory"
        gpus = before_start(whole)
        if not gpus and failure_class in _OF_MEMORY and len(lines) >= window:
            # It was said before all the others, and an engine of several GPUs says much.
            gpus = before_start(last_life(self.journal(_LONG_WINDOW)))
        if gpus and gpus not in evidence:
            evidence.insert(0, gpus)
        last_exit = self.state.last_exit or _journal_exit(life)
        seen += f" (last {last_exit})" if last_exit else ""
        held = _GPU_HELD.search(gpus)
        if held and failure_class in _OF_MEMORY and self.state.result != "oom-kill":
            seen += f"; at its start GPU memory was held by others: {shorten(held.group(1), 300)}"
        return Fault(failure_class, seen, "active", evidence, culprit, of_unit=True)


def _journal_exit(lines: Sequence[str]) -> str:
    found = [match.groups() for match in map(_EXIT_STATUS.search, lines) if match]
    return _exit_words(found[-1][0] == "exited", int(found[-1][1])) if found else ""


def _exit_words(exited: bool, status: int) -> str:
    return f"exit status {status}" if exited else f"killed by signal {status}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
