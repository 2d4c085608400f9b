# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging options into Docker's daemon.json. Private to the collection; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def parse(text: str) -> dict[str, Any]:
    """daemon.json as a dictionary; an empty file is an empty one. Raises ValueError for anything else than an object."""
    if not text.strip():
        return {}
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, wanted an object")
    return value


def merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """WANTED laid over CURRENT: dictionaries merge, everything else is replaced, what WANTED does not name stays."""
    merged = dict(current)
    for key, value in wanted.items():
        have = merged.get(key)
        both = isinstance(have, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(have, value) if both else value  # type: ignore[arg-type]
    return merged


def render(config: Mapping[str, Any]) -> str:
    """Text of the file; the order of keys is kept, so that a diff shows only what changed."""
    return json.dumps(config, indent=2) + "\n"
