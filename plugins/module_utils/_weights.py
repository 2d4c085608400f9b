# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of staged weights: listed with their sums, looked at in passing, compared whole. Private to the collection.

The files belong to the image's user, who may exchange any of them at any time: directories are entered by their descriptors, no
link is followed, and nothing but a plain file is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ansible_collections.baremetal.nim.plugins.module_utils import _readback, _share, _staged
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten
from ansible_collections.baremetal.nim.plugins.module_utils._staging import amount

#: Files from this size on are weights and what tells of them; smaller ones are locks and notes, which a server may write anew.
LASTING = 1024
#: Files that a list holds.
MOST_FILES = 100_000
#: Bytes read at a time.
_CHUNK = 2**22
#: Problems that are told; the first ones show what is wrong.
TOLD = 5
#: What in a cache is not of the weights: our own files, copies under way, what engines compile for their own GPU.
OURS = (_staged.MARKER, _staged.LIST, ".rsync-partial", *(name.lstrip("/") for name in _share.OWN))
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


class Entry(NamedTuple):
    """A file as it was when its sum was made: bytes, SHA-256 (empty where none was made), inode, time of its last change in ns."""

    size: int
    sum: str
    inode: int
    changed: int


def _entry(value: Any) -> Entry:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError
    size, total, inode, changed = value
    return Entry(_readback.count(size), _readback.word(64)(total), _stamp(inode), _stamp(changed))


def _stamp(value: Any) -> int:
    # Of nanoseconds there are more than a number of JSON holds everywhere, so both are text.
    text: str = _readback.word(20)(value)
    return int(text)


def _name(value: Any) -> str:
    if not value or value.startswith("/") or ".." in value.split("/"):
        raise ValueError
    return str(value)


_LIST = _readback.fields({"files": _readback.table(_name, _entry, MOST_FILES)}, needed=("files",))


def parse_list(data: bytes | str | None) -> dict[str, Entry] | None:
    """A list of files, by their paths below the cache; None where it is none."""
    found = _readback.document(data, _LIST)
    return None if found is None else dict(found["files"])


def list_text(entries: Mapping[str, Entry]) -> str:
    """Text of a list of files, for parse_list."""
    rows = {
        name: [entry.size, entry.sum, str(entry.inode), str(entry.changed)] for name, entry in sorted(entries.items())
    }
    return json.dumps({"files": rows}, indent=0, separators=(",", ":")) + "\n"


def shown(name: str) -> str:
    """The name of a file of a stranger's, for people."""
    return shorten(name.encode("utf-8", "replace").decode("utf-8"), 120)


def _walk(path: str) -> Iterator[tuple[str, str, int, os.stat_result]]:
    """Whatever lies below a cache and is of the weights: path below it, name, descriptor of its directory, facts. Raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names, descriptor in os.fwalk(path, onerror=refuse, follow_symlinks=False):
        here = os.path.relpath(folder, path)
        if here == ".":
            folders[:] = [name for name in folders if name not in OURS]
            names = [name for name in names if name not in OURS and not name.startswith(".write-test-")]
        folders.sort()
        for name in sorted(names):
            try:
                facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield (name if here == "." else f"{here}/{name}"), name, descriptor, facts


def _sum(name: str, descriptor: int) -> str:
    """SHA-256 of a plain file. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=descriptor), "rb", buffering=0) as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            return ""
        digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
        view = memoryview(buffer)
        while True:
            read = handle.readinto(buffer)
            if not read:
                return digest.hexdigest()
            digest.update(view[:read])


def take(path: str, known: Mapping[str, Entry], until: float, sums: bool = True) -> dict[str, Any]:
    """The files of the cache PATH as they are, by path: ``entries``, each a list for Entry.

    A sum that is KNOWN of a file that has not changed since is taken over; others are made until UNTIL (time.monotonic()), at least
    one. ``left`` are the bytes without a sum by then, ``bytes`` all; ``strange`` are names of what is no file, directory or link.
    Raises OSError.
    """
    entries: dict[str, list[Any]] = {}
    strange: list[str] = []
    left = total = made = 0
    for place, name, descriptor, facts in _walk(path):
        kind = next((word for test, word in _KINDS if test(facts.st_mode)), "")
        if kind:
            strange.append(f"{shown(place)} is {kind}")
        if not stat.S_ISREG(facts.st_mode) or len(entries) >= MOST_FILES:
            continue
        total += facts.st_size
        now = Entry(facts.st_size, "", facts.st_ino, facts.st_ctime_ns)
        before = known.get(place)
        if before and before.sum and before == now._replace(sum=before.sum):
            now = before
        elif sums and (not made or time.monotonic() < until):
            now = now._replace(sum=_sum(name, descriptor))
            made += 1
        elif sums:
            left += facts.st_size or 1
        entries[place] = list(now)
    return {"entries": entries, "left": left, "bytes": total, "strange": strange[:TOLD]}


def taken(report: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries of a report of take()."""
    return {name: Entry(*values) for name, values in report["entries"].items()}


def differences(listed: Mapping[str, Entry], found: Mapping[str, Entry]) -> list[str]:
    """What of a list is missing among the files FOUND, or has another size or sum there; further files are none of the list's."""
    problems = []
    for name, entry in sorted(listed.items()):
        now = found.get(name)
        if now is None:
            problems.append(f"{shown(name)} is missing")
        elif now.size != entry.size:
            problems.append(f"{shown(name)} has {exact(now.size)}, wanted {exact(entry.size)}")
        elif entry.sum and now.sum and now.sum != entry.sum:
            problems.append(f"{shown(name)} has another content (SHA-256 {now.sum[:12]}…, wanted {entry.sum[:12]}…)")
    return problems


def exact(size: int) -> str:
    """Bytes for people, all digits where few tell nothing: 16.1 GB (16059123456 B)."""
    return f"{size} B" if size < 1000 else f"{amount(size)} ({size} B)"


def damage(path: str, listed: Mapping[str, Entry]) -> list[str]:
    """What is missing of the weights in a cache, or is smaller than it was: a quick look at the sizes of its files."""
    problems = []
    if listed and not any(os.path.lexists(os.path.join(path, name)) for name in listed):
        return [f"none of its {len(listed)} files is there"]
    for name, entry in sorted(listed.items()):
        if entry.size < LASTING:
            continue
        try:
            size = os.lstat(os.path.join(path, name)).st_size
        except OSError:
            problems.append(f"{shown(name)} is missing")
            continue
        if size < entry.size:
            problems.append(f"{shown(name)} has {exact(size)}, wanted {exact(entry.size)}")
    return problems


def compare(path: str, listed: Mapping[str, Entry], start: int, until: float) -> dict[str, Any]:
    """Makes the sums of the files of a list anew, from its entry START on, until UNTIL (time.monotonic()), at least one.

    Returns ``next``, the number of the first entry that was not looked at, ``bytes`` that were read, and ``problems``.
    """
    names = sorted(listed)
    problems: list[str] = []
    number, size = start, 0
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while number < len(names):
            name = names[number]
            problem, read = _compare_one(root, name, listed[name])
            problems += [problem] if problem else []
            number, size = number + 1, size + read
            if time.monotonic() > until:
                break
    finally:
        os.close(root)
    return {"next": number, "bytes": size, "problems": problems}


def _compare_one(root: int, name: str, entry: Entry) -> tuple[str, int]:
    """What is wrong with a file of a list, and the bytes that were read of it."""
    *folders, last = name.split("/")
    descriptor = os.dup(root)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        facts = os.stat(last, dir_fd=descriptor, follow_symlinks=False)
        if facts.st_size != entry.size:
            return f"{shown(name)} has {exact(facts.st_size)}, wanted {exact(entry.size)}", 0
        found = _sum(last, descriptor) if entry.sum else ""
        if found != entry.sum:
            return f"{shown(name)} has another content (SHA-256 {found[:12]}…, wanted {entry.sum[:12]}…)", entry.size
        return "", entry.size
    except FileNotFoundError:
        return f"{shown(name)} is missing", 0
    except OSError as error:
        return f"{shown(name)} cannot be read: {error.strerror}", 0
    finally:
        os.close(descriptor)


def listing(problems: Iterable[str]) -> str:
    """The first problems in one line, and how many there are besides."""
    problems = list(problems)
    more = f", and {len(problems) - TOLD} more" if len(problems) > TOLD else ""
    return "; ".join(problems[:TOLD]) + more
