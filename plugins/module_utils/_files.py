# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are written whole beside their place before any of them goes into it. Private to the collection.

A full disk is noticed while everything is still as it was, and nobody ever reads half a file, or one with another's mode.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from typing import Any


def facts(path: str) -> dict[str, Any] | None:
    """``kind`` (file, directory, link or other), ``mode``, ``owner`` and, of a file, ``data``; None where there is nothing."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "directory"), (stat.S_ISLNK, "link"))
    kind = next((name for test, name in kinds if test(found.st_mode)), "other")
    data = b""
    if kind == "file":
        with open(path, "rb") as handle:
            data = handle.read()
    return {"kind": kind, "mode": stat.S_IMODE(found.st_mode), "owner": (found.st_uid, found.st_gid), "data": data}


def waiting_name(path: str) -> str:
    """What a file is called until it goes into its place: always the same, so that the next writer finds what a killed one left."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")


def old_name(path: str) -> str:
    """The second name of a file that is about to be replaced, by which it can come back."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.old")


def forget(path: str) -> None:
    """Removes what a killed writer left beside a place; it may be a secret."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(waiting_name(path))


def beside(path: str, data: bytes, mode: int) -> str:
    """Writes DATA next to PATH, down to the disk; returns the name. The directory's kind of label is the file's."""
    scratch = waiting_name(path)
    try:
        forget(path)
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            os.fchmod(handle, mode)
            if os.geteuid() == 0:
                os.fchown(handle, 0, 0)
            out.flush()
            os.fsync(handle)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        # What is full or broken is the place, not a name that nobody knows.
        raise OSError(error.errno, error.strerror, path) from error
    return scratch


def switch(waiting: Iterable[tuple[str, str]]) -> None:
    """Brings files that wait (name, place) into their places, and the directories down to the disk."""
    folders = set()
    for scratch, path in waiting:
        os.rename(scratch, path)
        folders.add(os.path.dirname(path))
    flush(folders)


def flush(folders: Iterable[str]) -> None:
    """Brings directories down to the disk."""
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            raise OSError(error.errno, error.strerror, folder) from error
        finally:
            os.close(handle)


def write(files: Iterable[tuple[str, bytes, int]]) -> None:
    """Writes files (place, data, mode): all of them beside their places first, then into them."""
    waiting: list[tuple[str, str]] = []
    try:
        for path, data, mode in files:
            waiting.append((beside(path, data, mode), path))
    except OSError:
        for scratch, _path in waiting:
            with contextlib.suppress(OSError):
                os.unlink(scratch)
        raise
    switch(waiting)
