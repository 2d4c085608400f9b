# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host remembers of the weights that were staged on it, and what a cache says of itself. Private to the collection; pure.

Two files with two voices. The note lies where only root writes: it decides which weights are staged, and of which image. The marker
lies in the cache, which belongs to the image's user: it says that the weights there are complete, and nothing that it says decides
more than that they are staged once more.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _readback

#: The marker and the list of files in a cache.
MARKER, LIST = ".baremetal-nim.json", ".baremetal-nim.sums"
#: Why nothing is known of a cache, where nothing was ever staged.
NOT_STAGED = "no weights were staged"
#: Bytes of a list of files that is read: a hundred thousand files.
LIST_LIMIT = 2**25

#: An image by the digest it was pulled by, or by its id where it came some other way.
REFERENCE = re.compile(r"(?:[\w.:/-]+@)?sha256:[0-9a-f]{64}", re.ASCII)
_KEY = _readback.word(200)
_NOTE = _readback.fields(
    {
        "key": _KEY,
        "share_key": _KEY,
        "image": _readback.word(),
        "image_reference": _readback.matching(REFERENCE),
        "path": _readback.place,
        "read_only": _readback.flag,
        "marked": _readback.flag,
        "bytes": _readback.count,
        "files": _readback.count,
        "finished": _readback.count,
    },
    needed=("key", "image_reference", "path"),
)
_MARKER = _readback.fields(
    {
        "key": _KEY,
        "share_key": _KEY,
        "image": _readback.word(),
        "bytes": _readback.count,
        "files": _readback.count,
        "finished": _readback.count,
    },
    needed=("key",),
)


def folder(host_dir: str) -> str:
    """Where a host keeps its notes."""
    return os.path.join(host_dir, "staged")


def note_path(host_dir: str, name: str) -> str:
    """The note of a service."""
    return os.path.join(folder(host_dir), f"{name}.json")


def list_path(host_dir: str, name: str) -> str:
    """The list of the files of a service's weights, with their sums."""
    return os.path.join(folder(host_dir), f"{name}.sums")


def part_path(host_dir: str, name: str) -> str:
    """The same list while it is being made."""
    return os.path.join(folder(host_dir), f".{name}.sums.part")


def parse_note(data: bytes | str | None) -> dict[str, Any] | None:
    """What a host remembers, None where that is nothing."""
    found: dict[str, Any] | None = _readback.document(data, _NOTE)
    return found


def parse_marker(data: bytes | str | None) -> dict[str, Any] | None:
    """What a cache says of itself, None where it says nothing; a stranger's word."""
    found: dict[str, Any] | None = _readback.document(data, _MARKER)
    return found


def note(service: Mapping[str, Any], reference: str, size: int, files: int, finished: float, marked: bool) -> str:
    """Text of the note that the weights of SERVICE (options of nim_cache) are complete, and of which image (REFERENCE) they are.

    SIZE in bytes, FINISHED in seconds since 1970, MARKED whether the cache has a marker of its own.
    """
    content = {
        "key": service["stage_key"],
        "share_key": service["share_key"],
        "image": service["image"],
        "image_reference": reference,
        "path": service["path"],
        "read_only": service["read_only"],
        "marked": marked,
        "bytes": size,
        "files": files,
        "finished": int(finished),
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def marker(service: Mapping[str, Any], size: int, files: int, finished: float) -> str:
    """Text of the marker in a cache."""
    content = {
        "key": service["stage_key"],
        "share_key": service["share_key"],
        "image": service["image"],
        "bytes": size,
        "files": files,
        "finished": int(finished),
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def doubt(known: Mapping[str, Any] | None, said: Mapping[str, Any] | None, path: str) -> str:
    """What speaks against the weights that a note (KNOWN) tells of, by the marker (SAID) of the cache PATH; empty when nothing does."""
    if not known:
        return NOT_STAGED
    if known["path"] != path:
        return f"weights were staged in {known['path']}"
    if known.get("marked") and (said or {}).get("key") != known["key"]:
        return "the cache does not say any more that its weights are complete"
    return ""
