# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the programs and file systems of a host so that none of them can hold up whoever asks. Private to the collection.

A program that does not end in its time is told to end, then killed. One that the kernel does not let go (a GPU that hangs, a
server of files that is gone: state D in ps) cannot be killed; it is left behind, its pipes are closed, and the caller goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Exit statuses, as timeout(1) and shells have them; FLOOD is of a program that wrote without end.
SILENT, FLOOD, NOT_RUN, MISSING = 124, 125, 126, 127
#: Words that do not change with the operator's language, times that do not change with the host's place.
PLAIN = {"LC_ALL": "C", "LANGUAGE": "C", "TZ": "UTC"}
#: Most bytes that are read of each of a program's two outputs.
MOST = 64 * 2**20
#: Seconds that a question may take, by the program that is asked.
SECONDS = {
    # Without the persistence daemon it wakes every GPU first, which takes a host of eight some seconds.
    "nvidia-smi": 45,
    "docker": 60,
    "podman": 60,
    # rpm's database is slow to walk, and may have to be rebuilt.
    "rpm": 120,
    "dpkg-query": 60,
    "journalctl": 60,
    "du": 120,
}
USUAL_SECONDS = 30
#: Seconds that a change may take which is no matter of the network: what systemd, the kernel or an engine does on the host.
CHANGE_SECONDS = 300
#: Seconds for a unit that says that it may take for ever.
ENDLESS_SECONDS = 3600
#: What to look at when a program does not answer.
NEXT = {
    "nvidia-smi": "dmesg | grep -i -e nvrm -e xid; ps -eo pid,stat,wchan:32,args | grep nvidia",
    "modprobe": "dmesg | grep -i nvrm",
    "rmmod": "dmesg | grep -i nvrm",
    "docker": "systemctl status docker; journalctl -u docker -n 50",
    "podman": "ps -eo pid,stat,wchan:32,args | grep podman",
    "systemctl": "systemctl list-jobs",
    "systemd-run": "systemctl list-jobs",
    "journalctl": "journalctl --verify",
    "dpkg-query": "ps -eo pid,stat,wchan:32,args | grep dpkg",
    "rpm": "ps -eo pid,stat,wchan:32,args | grep rpm",
    "du": "cat /proc/mounts",
}
#: Seconds from SIGTERM to SIGKILL, and from there until a program is left behind.
_GRACE = 2.0
#: Seconds that something a program started may still write after the program has ended.
_LINGER = 0.5
_STEP = 0.1


class Silence(Exception):
    """Something of the host did not answer in its time."""


@dataclass(frozen=True)
class Answer:
    """What came of a program. ``silent`` where it did not answer in its time; ``left`` is the process that could not be ended, else None."""

    code: int
    out: str
    err: str
    silent: bool = False
    left: int | None = None


def _text(chunks: Sequence[bytes]) -> str:
    return b"".join(chunks).decode("utf-8", errors="replace")


def _converse(process: Any, data: bytes, end: float, most: int) -> tuple[int, list[list[bytes]]]:
    """Feeds PROCESS and reads what it writes: 0, SILENT or FLOOD, and what was read of its two outputs."""
    read: list[list[bytes]] = [[], []]
    sizes = [0, 0]
    ended = None
    with selectors.DefaultSelector() as selector:
        for number, pipe in enumerate((process.stdout, process.stderr)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, number)
        if data:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE, 2)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return SILENT, read
            if not selector.get_map():
                try:
                    process.wait(min(left, _STEP))
                    return 0, read
                except subprocess.TimeoutExpired:
                    continue
            events = selector.select(min(left, _STEP))
            if not events and process.poll() is not None:
                # What it has started keeps its pipes.
                ended = ended or time.monotonic()
                if time.monotonic() - ended > _LINGER:
                    return 0, read
            for key, _mask in events:
                if key.data == 2:
                    try:
                        data = data[os.write(key.fd, data) :]
                    except OSError:
                        # It does not want to read, and may answer all the same.
                        data = b""
                    if not data:
                        selector.unregister(key.fileobj)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 2**16)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                read[key.data].append(chunk)
                sizes[key.data] += len(chunk)
                if sizes[key.data] > most:
                    return FLOOD, read


def _end(process: Any) -> int | None:
    """Ends PROCESS and what it has started; returns its number where the kernel does not let it go."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        # It leads a session of its own.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    return process.pid if process.poll() is None else None


def run(
    argv: Sequence[str],
    seconds: float,
    data: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: str | None = None,
    most: int = MOST,
) -> Answer:
    """Runs ARGV with a plain locale, and DATA on its standard input, in the folder CWD, for SECONDS at most.

    What went wrong on the way is in ``err``: SILENT, FLOOD, NOT_RUN and MISSING are its exit statuses then.
    """
    plain = {**os.environ, **PLAIN, **(environ or {})}
    try:
        process = subprocess.Popen(
            list(argv),
            bufsize=0,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=plain,
            cwd=cwd,
        )
    except OSError as error:
        code = MISSING if isinstance(error, FileNotFoundError) else NOT_RUN
        return Answer(code, "", f"{argv[0]}: {error.strerror}")
    left = None
    try:
        if data == "" and process.stdin:
            process.stdin.close()
        why, read = _converse(process, (data or "").encode(), time.monotonic() + seconds, most)
        if why:
            left = _end(process)
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
    out, err = _text(read[0]), _text(read[1])
    if why == SILENT:
        return Answer(why, out, silence(argv, seconds, left), True, left)
    if why == FLOOD:
        return Answer(why, "", f"{words(argv)} wrote more than {most // 2**20} MiB and was ended.", left=left)
    return Answer(process.returncode, out, err)


def feed(argv: Sequence[str], data: str, seconds: float = USUAL_SECONDS) -> tuple[int, str, str]:
    """Runs a command that is told DATA, a line: exit status, output, errors.

    ``run_command(data=...)`` of Ansible's modules fails the whole module where a command ends before it has read everything. Here
    that is the command's own affair: what it answered counts. One that cannot be run at all has the exit status 126.
    """
    answer = run(argv, seconds, f"{data}\n")
    if answer.code in (MISSING, NOT_RUN) and answer.err.startswith(f"{argv[0]}: "):
        return NOT_RUN, "", answer.err.replace(f"{argv[0]}: ", f"{argv[0]} cannot be run: ", 1)
    return answer.code, answer.out, answer.err


def words(argv: Sequence[str]) -> str:
    """A command in a message: its name and what it was asked for."""
    return " ".join([os.path.basename(argv[0]), *(word for word in argv[1:2] if not word.startswith(("-", "/")))])


def silence(argv: Sequence[str], seconds: float, left: int | None) -> str:
    """A sentence about a command that did not answer, and the command that comes next."""
    end = "was ended" if left is None else f"cannot be ended, as it waits in the kernel (process {left})"
    following = NEXT.get(os.path.basename(argv[0]), "ps -eo pid,stat,wchan:32,args")
    return f"{words(argv)} did not answer within {seconds:g} s and {end}. Next: {following}"


class Runner:
    """Runs programs of this host. Who did not answer once is not asked AGAIN, unless that is wanted: one silence is enough.

    FIND gives the path of a program, None when there is none. ``unanswered`` has what did not answer, as ``program`` and ``message``.
    """

    def __init__(self, find: Callable[[str], str | None], again: bool = False) -> None:
        self.find = find
        self.again = again
        self.unanswered: list[dict[str, str]] = []

    def __call__(
        self,
        *argv: str,
        data: str | None = None,
        seconds: float | None = None,
        environ: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> tuple[int, str, str]:
        """Exit status (MISSING when there is no such program), standard output, standard error."""
        name = os.path.basename(argv[0])
        before = next((item["message"] for item in self.unanswered if item["program"] == name), "")
        if before and not self.again:
            return SILENT, "", before
        program = argv[0] if os.path.isabs(argv[0]) else self.find(argv[0])
        if not program:
            return MISSING, "", f"{argv[0]} is not installed"
        limit = SECONDS.get(name, USUAL_SECONDS) if seconds is None else seconds
        answer = run([program, *argv[1:]], limit, data, environ, cwd)
        if answer.silent:
            self.unanswered.append({"program": name, "message": answer.err})
            return answer.code, "", answer.err
        return answer.code, answer.out, answer.err


def job_seconds(*limits: str) -> float:
    """Seconds for a job of systemd's on a unit with these LIMITS, spans of time as ``systemctl show`` (1min 30s) or its file (90) have them.

    systemd keeps to them itself; this is for one that does not answer.
    """
    units = {"us": 1e-6, "ms": 1e-3, "s": 1, "": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
    total = float(CHANGE_SECONDS)
    for limit in limits:
        parts = re.findall(r"(\d+(?:\.\d+)?) ?([a-z]*)", limit)
        known = parts and all(unit in units for _number, unit in parts)
        total += sum(float(number) * units[unit] for number, unit in parts) if known else ENDLESS_SECONDS
    return total


def apart(work: Callable[[], Any], seconds: float) -> Any:
    """What WORK returns, as plain data, by a process of its own: a file system may never answer, and nothing wakes who asked it.

    Raises Silence after SECONDS, and an OSError that WORK raised.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _report(work, writer)
        finally:
            os._exit(0)
    os.close(writer)
    text = _drain(reader, time.monotonic() + seconds)
    if text is None:
        os.kill(child, signal.SIGKILL)
    _reap(child)
    if text is None:
        raise Silence(f"no answer within {seconds:g} s")
    report = json.loads(text or '{"errno": 0, "error": "it ended early", "path": null}')
    if "value" not in report:
        raise OSError(report["errno"], report["error"], report["path"])
    return report["value"]


def as_user(uid: int, gid: int, work: Callable[[], Any], seconds: float) -> Any:
    """What WORK returns when that user does it, in a process of its own. Raises Silence after SECONDS, and an OSError that WORK raised."""

    def changed() -> Any:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        return work()

    return apart(changed, seconds)


def _report(work: Callable[[], Any], writer: int) -> None:
    try:
        report = {"value": work()}
    except OSError as error:
        report = {"errno": error.errno, "error": error.strerror, "path": error.filename}
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(report).encode())


def _drain(reader: int, end: float) -> bytes | None:
    """All that comes through a pipe; None when that takes too long."""
    chunks: list[bytes] = []
    with os.fdopen(reader, "rb", buffering=0) as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, end - time.monotonic())):
                return None
            chunk = pipe.read(2**16)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)


def _reap(child: int) -> None:
    """Takes note of the end of a child, if it comes."""
    end = time.monotonic() + _GRACE
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            return
        time.sleep(0.01)


def mount_of(path: str, mounts: str) -> str:
    """The line of /proc/mounts (MOUNTS) of the file system that PATH lies on, in words, without touching PATH."""
    found = ("", "")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        place = fields[1].replace("\\040", " ").rstrip("/")
        if (path == place or path.startswith(f"{place}/")) and len(place) >= len(found[0]):
            found = (place, f"{fields[0]} on {place or '/'}, {fields[2]}")
    return found[1]
