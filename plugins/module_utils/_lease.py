# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who works on a host: the lease of a run that changes things there. Private to the collection.

A lease is a file that bears the id of its run, in a directory that only root writes. Each module of a run is a process of its own, so
no process can hold a lock for all of them: the file says who holds the host and when it last gave a sign of life. All times are seconds
since the boot that is named beside them, so no clock that is set, and no reboot, makes a lease longer. What is written anew is put in
place as a whole, under a lock of the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: No service can have a name with a dot, and what is in /run goes with the boot.
FOLDER = "/run/nim/lock.d"
#: Seconds without a sign of life after which a lease has lapsed, where it does not say.
TTL = 1800
#: Most bytes of a lease.
MOST = 2**16
BOOT_ID = "/proc/sys/kernel/random/boot_id"
_TEXTS = ("run", "token", "name", "user", "controller", "machine", "started", "playbook", "job", "since", "boot")
_NUMBERS = ("taken", "seen", "ttl")
_RUN = re.compile(r"[0-9a-f]{8,64}")


def now() -> float:
    """Seconds since the boot, those that the machine slept included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot() -> str:
    """Id of this boot."""
    try:
        with open(BOOT_ID, encoding="ascii") as handle:
            return handle.read(64).strip()
    except OSError:
        return ""


def clean(text: Any, limit: int = 80) -> str:
    """A text as one printable line."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def parse(text: str) -> dict[str, Any] | None:
    """A lease, None when the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _RUN.fullmatch(str(found.get("run"))):
        return None
    lease: dict[str, Any] = {key: str(found.get(key) or "") for key in _TEXTS}
    for key in _NUMBERS:
        value = found.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**12:
            return None
        lease[key] = float(value)
    pid, services = found.get("pid"), found.get("services")
    lease["pid"] = pid if isinstance(pid, int) and pid > 0 else 0
    lease["services"] = [str(name) for name in services] if isinstance(services, list) else []
    return lease


def silent(lease: Mapping[str, Any], at: float) -> bool:
    """Whether a run gave no sign of life for too long."""
    return bool(at - lease["seen"] > lease["ttl"])


def span(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def told(lease: Mapping[str, Any], at: float) -> str:
    """Who holds a lease, and since when."""
    details = [f"pid {lease['pid']}"] if lease["pid"] else []
    details += [clean(lease[key]) for key in ("playbook", "job") if lease[key]]
    who = f"{clean(lease['user']) or 'somebody'} on {clean(lease['controller']) or 'another controller'}"
    who += f" ({', '.join(details)})" if details else ""
    return f"{who} since {clean(lease['since'])}, {span(at - lease['taken'])} ago, last sign of life {span(at - lease['seen'])} ago"


def read(path: str) -> dict[str, Any] | None:
    """The lease in a file, None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        try:
            return parse(file.read(MOST).decode("utf-8", "replace"))
        except OSError:
            return None


def write(path: str, text: str) -> None:
    """Writes a file that only root reads, all of it or nothing."""
    handle, scratch = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.rename(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


class Leases:
    """The leases of a host."""

    def __init__(self, folder: str = "") -> None:
        self.folder = folder or FOLDER
        self.boot = boot()

    def path(self, run: str) -> str:
        """Where the lease of a run is."""
        return os.path.join(self.folder, f"{run}.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile. Whoever dies lets go."""
        # The mode that is asked for is that of the last directory only.
        for path in (os.path.dirname(self.folder), self.folder):
            os.makedirs(path, mode=0o700, exist_ok=True)
        handle = os.open(os.path.join(self.folder, "flock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def last(self) -> str:
        """What the last lease that was taken here is known by; it stays when that is over, and goes with the boot."""
        try:
            with open(os.path.join(self.folder, "last"), encoding="utf-8", errors="replace") as handle:
                return clean(handle.read(200))
        except OSError:
            return ""

    def all(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Files of leases with what is in them; None for what is no lease of this boot."""
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(".json"))
        except OSError:
            return
        for name in names:
            lease = read(os.path.join(self.folder, name))
            mine = lease is not None and lease["boot"] == self.boot and name == f"{lease['run']}.json"
            yield os.path.join(self.folder, name), lease if mine else None

    def state(self) -> dict[str, Any]:
        """What a read of the host tells: who holds it, the last who did, and when that was looked at."""
        at = now()
        held = [lease for _path, lease in self.all() if lease and not silent(lease, at)]
        return {"holder": held[0] if held else None, "last": self.last(), "boot": self.boot, "at": round(at, 3)}

    def take(
        self, holder: Mapping[str, Any], ttl: float, services: Iterable[str], dead: Iterable[str], alive: Iterable[str]
    ) -> tuple[dict[str, Any], str]:
        """Takes the host for HOLDER, or keeps it; returns the lease that holds it then, and the last that was taken before.

        DEAD are runs that are known to be gone, ALIVE those that are known to be there though they are silent.
        """
        alive, dead = set(alive), set(dead)
        with self.locked():
            before, mine, at = self.last(), None, now()
            for path, lease in self.all():
                if lease is not None and lease["run"] == holder["run"]:
                    mine = lease
                elif lease is None or lease["run"] in dead or (silent(lease, at) and lease["run"] not in alive):
                    os.unlink(path)
                else:
                    return lease, before
            if mine and mine["name"] != holder["name"]:
                # One machine by two names.
                return mine, before
            names = list(dict.fromkeys([*(mine or {}).get("services", []), *services]))
            lease = {**(mine or {}), **holder, "boot": self.boot, "seen": at, "ttl": ttl, "services": names}
            if not mine or mine["token"] != before:
                since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
                lease.update(token=os.urandom(8).hex(), since=since, taken=at)
                write(os.path.join(self.folder, "last"), lease["token"])
            write(self.path(lease["run"]), json.dumps(lease))
            return lease, before

    def renew(self, run: str, services: Iterable[str] = ()) -> bool:
        """A sign of life of a run, which replaces SERVICES; whether it holds the host."""
        if not _RUN.fullmatch(run) or not os.path.exists(self.path(run)):
            return False
        try:
            with self.locked():
                lease = read(self.path(run))
                # Another run may have taken the host from one that it knows to be gone.
                if lease is None or lease["boot"] != self.boot:
                    return False
                names = list(dict.fromkeys([*lease["services"], *services]))
                write(self.path(run), json.dumps({**lease, "seen": now(), "services": names}))
                return True
        except OSError:
            # A sign of life that cannot be given is no reason to stop what works.
            return False

    def release(self, run: str) -> bool:
        """Gives the host back; whether the run had it."""
        try:
            os.unlink(self.path(run))
        except FileNotFoundError:
            return False
        return True
