# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one gate for what was written down on a host and is read again. Private to the collection.

Whoever wrote it may have been cut off, may be of another version, or may be a container that owns the place. So nothing is read
that is no plain file, or is larger than it can be; nothing is taken but known keys with values of their kind; and nothing that
lies there makes a reader fail.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _foreign

#: Bytes of a file that is read; records and notes are a hundredth of it.
LIMIT = 2**20
#: Numbers are kept below this: larger ones are no sizes, times or counts of this world, and programs of other languages lose them.
MOST = 2**53
#: How deep values may lie in each other, where any are allowed.
DEPTH = 12

#: Takes a value as it was read; returns what is kept of it. Raises ValueError where that is nothing.
Check = Callable[[Any], Any]


def read(path: str, limit: int = LIMIT, dir_fd: int | None = None) -> bytes | None:
    """Content of a plain file; None where there is none, or something else: a link, a pipe, a device, a file larger than LIMIT bytes.

    PATH is looked up below DIR_FD, where that is given.
    """
    try:
        # A pipe would be waited for, and a terminal would become this process's own.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with open(os.open(path, flags, dir_fd=dir_fd), "rb") as handle:
            facts = os.fstat(handle.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
                return None
            # It may grow meanwhile.
            data = handle.read(limit + 1)
    except (OSError, ValueError):
        return None
    return data if len(data) <= limit else None


def parse(data: bytes | str | None) -> Any:
    """A value of JSON, None where the text is none, is too deep, or has a number without end."""
    try:
        return _foreign.parse_json(data if isinstance(data, str) else (data or b"").decode("utf-8"))
    except ValueError:
        return None


# -- kinds of values ---------------------------------------------------------------------------------------------------


def word(most: int = 500) -> Check:
    """One printable line of at most MOST characters."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise ValueError
        return value

    return check


def matching(pattern: Any, most: int = 500) -> Check:
    """A line that a compiled pattern matches whole."""

    def check(value: Any) -> str:
        text: str = word(most)(value)
        if not pattern.fullmatch(text):
            raise ValueError
        return text

    return check


def place(value: Any) -> str:
    """An absolute path."""
    text: str = word(4096)(value)
    if not text.startswith("/"):
        raise ValueError
    return text


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def count(value: Any) -> int:
    """A whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise ValueError
    return value


def amount(value: Any) -> float:
    """A number from 0."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not 0 <= value <= MOST
    ):
        raise ValueError
    return value


def or_none(check: Check) -> Check:
    """What CHECK takes, or null."""
    return lambda value: None if value is None else check(value)


def items(check: Check, most: int) -> Check:
    """The items of a list that CHECK takes, of the last MOST."""

    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError
        return [kept for kept in map(_try(check), value[-most:]) if kept is not _NOTHING]

    return check_all


def table(key: Check, check: Check, most: int) -> Check:
    """A mapping of at most MOST keys, each of KEY's kind, each value of CHECK's; it is taken whole or not at all."""

    def check_all(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise ValueError
        return {key(name): check(item) for name, item in value.items()}

    return check_all


def fields(form: Mapping[str, Check], needed: Iterable[str] = ()) -> Check:
    """A mapping of known keys, each with the check of its value. What is unknown or of another kind is left out, unless it is NEEDED."""
    needed = tuple(needed)

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError
        found = {name: _try(form[name])(item) for name, item in value.items() if name in form}
        kept = {name: item for name, item in found.items() if item is not _NOTHING}
        if any(name not in kept for name in needed):
            raise ValueError
        return kept

    return check


def plain(value: Any, depth: int = DEPTH) -> Any:
    """Any value of JSON that is not too deep."""
    if depth < 0:
        raise ValueError
    if isinstance(value, dict):
        return {name: plain(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A mapping with any values that are not too deep."""
    if not isinstance(value, dict):
        raise ValueError
    found: dict[str, Any] = plain(value)
    return found


_NOTHING = object()


def _try(check: Check) -> Check:
    def tried(value: Any) -> Any:
        try:
            return check(value)
        except ValueError:
            return _NOTHING

    return tried


def document(data: bytes | str | None, check: Check) -> Any:
    """What CHECK keeps of a text of JSON, None where that is nothing."""
    found = _try(check)(parse(data))
    return None if found is _NOTHING else found
