# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work that must not stop between two slices: it runs in a process of its own, and each slice looks how far it is.

The process is forked, so that what it needs to know, a key among it, is in no argument list and no file.
This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

_POLL = 0.1
#: Seconds without a look after which the work ends by itself. A slice that is lost with its connection may cost a minute.
LEASE = 180.0


class Gone(Exception):
    """Nobody looks any more."""


class Job:
    """One work in the background.

    run_id: str, its name, safe in a path. The directory below is the user's own.
    """

    def __init__(self, run_id: str) -> None:
        self.path = os.path.join(tempfile.gettempdir(), f"nim-benchmark-{run_id}")

    def begin(self, work: Callable[[Callable[[str, str], None]], dict[str, Any]]) -> None:
        """Start the work, unless an earlier slice did, whose answer may have been lost. Raises OSError.

        work: gets what it tells its phase and detail to, and returns a result that JSON can hold.
        """
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            found = os.lstat(self.path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise
            return
        # Taken here and inherited: the lock is held for as long as the process lives, however it ends.
        lock = os.open(self._file("lock"), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._touch()
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            self._child(work)
        os.close(lock)

    def look(self, seconds: float) -> dict[str, Any] | None:
        """Wait for the result so long; None when it is not there yet. Raises RuntimeError when there will be none."""
        self._touch()
        end = time.monotonic() + seconds
        while True:
            alive = self._alive()
            result = self._read("result")
            if result is not None:
                shutil.rmtree(self.path, ignore_errors=True)
                return result
            if not alive:
                shutil.rmtree(self.path, ignore_errors=True)
                raise RuntimeError("the process of the benchmark was killed")
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(_POLL, left))

    def status(self) -> tuple[str, str]:
        """Return phase and detail as told last."""
        told = self._read("status") or {}
        return told.get("phase", "preparing"), told.get("detail", "starting")

    def _child(self, work: Callable[[Callable[[str, str], None]], dict[str, Any]]) -> None:
        status = 1
        try:
            os.setsid()
            # The connection waits for everybody who holds its ends.
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            seen = [os.stat(self._file("lease")).st_mtime_ns, time.monotonic()]

            def tell(phase: str, detail: str) -> None:
                stamp = os.stat(self._file("lease")).st_mtime_ns
                if stamp != seen[0]:
                    seen[:] = [stamp, time.monotonic()]
                elif time.monotonic() - seen[1] > LEASE:
                    raise Gone
                self._write("status", {"phase": phase, "detail": detail})

            try:
                self._write("result", work(tell))
            except (Gone, FileNotFoundError):
                shutil.rmtree(self.path, ignore_errors=True)
            status = 0
        finally:
            if status:
                # Nobody reads what a process in the background says when it dies.
                words = {"failed": True, "msg": "the benchmark failed", "exception": traceback.format_exc()}
                with contextlib.suppress(OSError):
                    self._write("result", words)
            # Nothing of the module that was forked may run a second time.
            os._exit(status)

    def _alive(self) -> bool:
        try:
            lock = os.open(self._file("lock"), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _touch(self) -> None:
        with contextlib.suppress(OSError), open(self._file("lease"), "w", encoding="utf-8"):
            os.utime(self._file("lease"))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with open(self._file(name), encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
        except (OSError, ValueError):
            return None
        return found

    def _write(self, name: str, value: dict[str, Any]) -> None:
        with open(self._file(name + ".new"), "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(self._file(name + ".new"), self._file(name))
