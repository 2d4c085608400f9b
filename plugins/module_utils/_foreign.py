# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the words of strangers come in: of containers, images, registries, endpoints, journals. Private to the collection; pure.

A line is cut before anything reads it, and has nothing in it that a terminal would obey. JSON is refused that is nested too deeply, or
has numbers that cost more to read than anything they could say.
"""

from __future__ import annotations

import json
import re
from typing import Any

#: Most characters of a line. What engines say is shorter; what is cut, is cut before any pattern sees it.
MOST_OF_A_LINE = 4096
#: How deep an answer is nested at most: none that is read here is deeper than ten.
MOST_DEPTH = 100
#: Most digits of a whole number: more than any count has.
_MOST_DIGITS = 30
_CONTAINERS = (dict, list)
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,40}[A-Za-z]|\x1b\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)")


def printable(text: str, limit: int = MOST_OF_A_LINE) -> str:
    """TEXT without what a terminal obeys (escapes, control characters, marks of direction), cut to LIMIT characters."""
    cut = text[: limit + 1]
    if not cut.isprintable():
        cut = "".join(char if char.isprintable() else " " for char in cut)
    return cut if len(cut) <= limit else f"{cut[: limit - 3]}..."


def line(raw: str, limit: int = MOST_OF_A_LINE) -> str:
    """A line of a container: without colours; of a progress bar what was seen last; printable, and cut. Indentation stays."""
    # The last words of a progress bar are the ones that count, so its end is looked at, and of all else the beginning.
    text = raw if len(raw) <= limit else raw[:limit] if "\r" not in raw.rstrip("\r")[-limit:] else raw[-limit:]
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    text = text.rstrip().rpartition("\r")[2]
    if not text.isprintable():
        text = "".join(char for char in text if char.isprintable() or char == "\t")
    return f"{text[: limit - 3]}..." if len(raw) > limit and text else text


def lines(text: str, most: int = 50000) -> list[str]:
    """The lines of a journal that say something, oldest first; the newest of them where there are too many."""
    found = (line(raw) for raw in text.split("\n")[-most:])
    return [one for one in found if one.strip()]


def parse_json(text: str) -> Any:
    """What a text of JSON says. Raises ValueError for what is none, for what is nested too deeply, and for numbers without end."""
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_fraction)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _depth(value) > MOST_DEPTH:
        raise ValueError("it is nested too deeply")
    return value


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    if len(digits) > 20 * _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} characters")
    return float(digits)


def _depth(value: Any) -> int:
    """How deep containers are nested, at most one more than may be."""
    depth, level = 0, [value] if isinstance(value, _CONTAINERS) else []
    while level and depth <= MOST_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _CONTAINERS)
        ]
    return depth
