# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk has free, and what it would gain. Private to the collection; it reads and changes nothing.

A size is not what a disk gains: a hard link leaves the file where it is, a sparse file has less than it shows, and files and images may
share what they are made of.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: File systems on which two files may share their data.
REFLINKS = ("btrfs", "xfs", "bcachefs", "ocfs2")
#: <linux/fs.h> and <linux/fiemap.h>.
_FIEMAP = 0xC020660B
_HEADER, _EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
_LAST, _SHARED = 0x1, 0x2000
_AT_ONCE = 128
#: What a line of an image's history may be when it made a layer, also an empty one.
_LAYER = re.compile(r"(?:/bin/sh -c )?(?:#\(nop\)\s+)?(?:RUN|COPY|ADD|WORKDIR)\b|(?:\|\d+ .*)?/bin/sh -c (?!#\(nop\))")


def nearest(path: str) -> str:
    """A path, or the directory above it that is there."""
    while path != "/" and not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return path


def free(path: str) -> int:
    """Bytes that are free on the file system of a path, those that only root may use too."""
    facts = os.statvfs(nearest(path))
    return facts.f_bfree * facts.f_frsize


def shared_extents(answer: bytes) -> tuple[int, int, bool]:
    """Of the kernel's answer to FIEMAP the shared bytes, where the next question begins, and whether there is one to ask."""
    mapped = _HEADER.unpack_from(answer)[3]
    shared, end, last = 0, 0, mapped == 0
    for number in range(mapped):
        logical, _physical, length, _r1, _r2, flags, *_rest = _EXTENT.unpack_from(
            answer, _HEADER.size + number * _EXTENT.size
        )
        shared += length if flags & _SHARED else 0
        end, last = logical + length, last or bool(flags & _LAST)
    return shared, end, not last


def shared(path: str) -> int:
    """Bytes of a file that another file may share with it; none where the file system cannot tell."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        found, start, more = 0, 0, True
        while more:
            question = _HEADER.pack(start, 2**64 - 1 - start, 0, 0, _AT_ONCE, 0)
            answer = array.array("B", question + bytes(_AT_ONCE * _EXTENT.size))
            fcntl.ioctl(handle, _FIEMAP, answer)
            part, start, more = shared_extents(answer.tobytes())
            found += part
        return found
    except OSError:
        return 0
    finally:
        os.close(handle)


def frees(paths: Iterable[str], reflinks: bool = False) -> int:
    """Bytes that the disk gains when everything at PATHS goes: what is linked from elsewhere stays, a hole was never there.

    With REFLINKS, what another file shares is not counted; both may be among those that go, so it is the least that is gained.
    """
    total = 0
    #: File with several links to the links that go, its bytes and its links.
    links: dict[tuple[int, int], list[int]] = {}
    for path in paths:
        root = os.lstat(path)
        for found, facts in _below(path, root):
            size = facts.st_blocks * 512
            if reflinks and stat.S_ISREG(facts.st_mode) and size:
                size = max(0, size - shared(found))
            if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
                entry = links.setdefault((facts.st_dev, facts.st_ino), [0, size, facts.st_nlink])
                entry[0] += 1
            else:
                total += size
    return total + sum(size for going, size, there in links.values() if going >= there)


def _below(path: str, facts: os.stat_result) -> Iterable[tuple[str, os.stat_result]]:
    """A path and everything below it on the same file system; what cannot be looked at is left out."""
    yield path, facts
    if not stat.S_ISDIR(facts.st_mode):
        return
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            found = os.path.join(folder, name)
            try:
                seen = os.lstat(found)
            except OSError:
                continue
            if seen.st_dev == facts.st_dev:
                yield found, seen
        folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]


# -- images ------------------------------------------------------------------------------------------------------------


def layers(image: Mapping[str, Any]) -> list[str]:
    """The layers of an inspected image. One is another with other layers below it."""
    found = list((image.get("RootFS") or {}).get("Layers") or [])
    return ["+".join(found[: number + 1]) for number in range(len(found))]


def history(text: str) -> list[tuple[str, str]]:
    """History of an image, the oldest first: each a size and how it was made. TEXT is JSON, or ``SIZE<tab>HOW`` a line, newest first."""
    if text.lstrip().startswith("["):
        try:
            entries = [(str(item.get("size", "")), str(item.get("CreatedBy") or "")) for item in json.loads(text)]
        except (ValueError, AttributeError):
            return [("unknown", "")]
    else:
        parts = (line.partition("\t") for line in text.splitlines() if line.strip())
        entries = [(size.strip(), how.strip()) for size, _tab, how in parts]
    return entries[::-1]


def layer_sizes(made: Sequence[tuple[str, str]], count: int) -> list[int] | None:
    """Sizes of the COUNT layers of an image by its history; None when it does not tell."""
    if not all(size.isdigit() for size, _how in made):
        return None
    with_bytes = [int(size) for size, _how in made if int(size)]
    if len(with_bytes) == count:
        return with_bytes
    # A layer may be empty; most lines without bytes made none at all.
    likely = [int(size) for size, how in made if int(size) or _LAYER.match(how)]
    return likely if len(likely) == count else None


def gained(
    going: Sequence[Mapping[str, Any]], staying: Iterable[Mapping[str, Any]], sizes: Mapping[str, int]
) -> tuple[int, bool]:
    """Bytes that go with images, and whether that is all: the size (SIZES) of some layer may not be known."""
    kept = {layer for image in staying for layer in layers(image)}
    gone = {layer for image in going for layer in layers(image)} - kept
    return sum(sizes.get(layer, 0) for layer in gone), all(layer in sizes for layer in gone)
