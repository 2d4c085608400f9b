# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How values stand in the files of the operator, on the controller only.

Ansible tags what it loads with its origin (file, line, column). What is found there is believed only if YAML makes exactly this value
of it, so a file that changed meanwhile, an encrypted one and an Ansible without tags tell nothing, which is no error.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from ansible_collections.baremetal.nim.plugins.module_utils._written import Written, shown

_ORIGIN: Any = None
try:
    from ansible._internal._datatag import _tags

    _ORIGIN = getattr(_tags, "Origin", None)
except ImportError:
    # Another Ansible keeps it elsewhere, or has none.
    pass

#: A tenth of the other one's time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: What a file of variables may be large; a larger one is not looked at.
_LIMIT = 4 << 20
_PLAIN = re.compile(r"[^\s,\[\]{}#&*!|>'\"%@`][^\s,\[\]{}]*")
_KEY = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s:,{]+)\s*:\s+""")
#: The value was made by a template, which stands there or begins there.
_TEMPLATE = re.compile(r"""["'][^"']*\{[{%]|[|>][-+0-9]*\s*$""")


@functools.lru_cache(maxsize=64)
def _lines(path: str) -> tuple[str, ...]:
    try:
        if os.path.getsize(path) > _LIMIT:
            return ()
        with open(path, encoding="utf-8", errors="replace") as handle:
            return tuple(handle.read().split("\n"))
    except OSError:
        return ()


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> Any:
    """What the loader of YAML 1.1, as Ansible's own, makes of a plain scalar."""
    return yaml.load(text, Loader=_LOADER)  # noqa: S506 # It is the safe one.


def _at(tagged: Any, value: Any, behind_key: bool) -> Written | None:
    """What stands where TAGGED comes from, or behind that key, if YAML or a template makes VALUE of it."""
    origin = _ORIGIN.get_tag(tagged) if _ORIGIN else None
    path, line, column = (getattr(origin, name, None) for name in ("path", "line_num", "col_num"))
    if not path or not line or not column or line > len(_lines(path)):
        return None
    rest, place = _lines(path)[line - 1][column - 1 :], f"{_short(path)}:{line}"
    if behind_key:
        key = _KEY.match(rest)
        rest = rest[key.end() :] if key else ""
    if _TEMPLATE.match(rest):
        return Written(shown(value), place)
    match = _PLAIN.match(rest)
    try:
        read = _read(match.group()) if match else None
    except (yaml.YAMLError, ValueError):
        return None
    same = match and read == value and isinstance(read, bool) == isinstance(value, bool)
    return Written(match.group(), place) if match and same else None


def _short(path: str) -> str:
    """The path as somebody who works in the current directory names it."""
    below = os.path.relpath(path)
    return path if below.startswith(os.pardir) else below


def written(value: Any, key: Any = None) -> Written | None:
    """How a scalar that is no text was written; KEY is the one that it belongs to, if any."""
    if value is None or isinstance(value, str):
        return None
    # Python has but one true, which can carry no tag; its key can.
    return _at(key, value, True) if isinstance(value, bool) else _at(value, value, False)


def of_options(options: Mapping[Any, Any]) -> dict[Any, Written]:
    """How the values of OPTIONS that are no text were written, as far as that is known."""
    found = {name: written(options[name]) for name in options}
    return {name: text for name, text in found.items() if text}


def sources(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Written]]:
    """Of every scalar below NODE that is no text and whose place is known, the keys that lead to it and how it was written."""
    if isinstance(node, Mapping):
        for key in node:
            found = written(node[key], key)
            if found:
                yield (*path, key), found
            yield from sources(node[key], (*path, key))
    elif isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            found = written(item)
            if found:
                yield (*path, index), found
            yield from sources(item, (*path, index))
