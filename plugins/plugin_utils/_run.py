# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which run of Ansible this is, in words and by an id, and whether another run of this controller is still there.

The id follows from the process of ansible-playbook, so all plays of a run have the same, and nobody has to keep it.

This plugin util is private to the collection and may change at any time.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from ansible import context

#: What the roles register the result of nim_lock as, by which a later task knows that this run has the host.
REGISTERED = "__nim_lock"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PID_NAMESPACE = "/proc/self/ns/pid"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _digest(*words: object) -> str:
    return hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()[:16]


def machine() -> str:
    """Return what two processes have in common that can see each other: the boot of their machine and, in containers, the container."""
    try:
        namespace = os.readlink(_PID_NAMESPACE)
    except OSError:
        namespace = ""
    return _digest(_text(_BOOT_ID) or platform.system(), namespace, platform.node())


def started(pid: int) -> str:
    """Return when a process began, in the words of its system; empty when that cannot be told."""
    stat = _text(f"/proc/{pid}/stat")
    if stat:
        # The name, in brackets, may hold anything. Of what comes after it the first is the state, the twentieth the beginning.
        fields = stat.rpartition(")")[2].split()
        # One that has ended and was not asked for its end is gone as well.
        return "" if len(fields) < 20 else "ended" if fields[0] in "ZX" else fields[19]
    if os.path.isdir("/proc/self"):
        return ""
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def user() -> str:
    """Return who runs Ansible."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        # A container may run as somebody who has no name.
        return f"uid {os.getuid()}"


def job(variables: Mapping[str, Any]) -> tuple[str, str]:
    """Return the job of AWX that this is, and who pressed its button; both empty elsewhere."""
    for prefix in ("awx", "tower"):
        number = variables.get(f"{prefix}_job_id")
        if number:
            template = variables.get(f"{prefix}_job_template_name")
            return f"AWX job {number}{f' {template}' if template else ''}", str(
                variables.get(f"{prefix}_user_name") or ""
            )
    return "", ""


def identity(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return this run as a lease tells of it. VARIABLES are those of the task. Called in a worker, whose parent is ansible-playbook."""
    pid = os.getppid()
    since, here = started(pid), machine()
    words, button = job(variables)
    books = context.CLIARGS.get("args") or ()
    return {
        "run": _digest(here, pid, since),
        "name": str(variables.get("inventory_hostname") or ""),
        "user": button or user(),
        "controller": platform.node(),
        "machine": here,
        "pid": pid,
        "started": since,
        "playbook": ", ".join(os.path.basename(str(book)) for book in ([books] if isinstance(books, str) else books)),
        "job": words,
    }


def seen_from_here(lease: Mapping[str, Any]) -> str:
    """Return ``alive`` or ``dead`` for the run of a lease that this machine began, and nothing for any other."""
    pid = lease.get("pid")
    if lease.get("machine") != machine() or not isinstance(pid, int) or pid <= 0:
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "dead"
    except (PermissionError, OverflowError):
        # Somebody else's, which may be any process by now.
        pass
    now = started(pid)
    if not now:
        return ""
    return "alive" if now == lease.get("started") else "dead"


def holder_of(variables: Mapping[str, Any]) -> str:
    """Return the id under which this run has the host of a task, empty when it has not."""
    mine = variables.get(REGISTERED)
    return str(mine.get("run") or "") if isinstance(mine, Mapping) and mine.get("held") else ""
