# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Metrics in the text format of Prometheus (0.0.4), read without a library: hosts are promised none. Pure.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_KEY, _QUOTED = r"[a-zA-Z_][a-zA-Z0-9_]*", r'"[^"\\]*(?:\\.[^"\\]*)*"'
_PAIR = rf"{_KEY}[ \t]*=[ \t]*{_QUOTED}"
_PAIRS = re.compile(rf"({_KEY})[ \t]*=[ \t]*({_QUOTED})")
_SAMPLE = re.compile(
    rf"({_NAME})(?:[ \t]*\{{[ \t]*((?:{_PAIR}(?:[ \t]*,[ \t]*{_PAIR})*(?:[ \t]*,)?)?)[ \t]*\}}[ \t]*|[ \t]+)"
    # A time, and an exemplar, which OpenMetrics adds.
    r"([^ \t#]+)(?:[ \t]+-?[0-9.]+)?(?:[ \t]+#[ \t]*\{.*)?"
)
_VALUE = re.compile(r"[+-]?(?:inf|nan|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)", re.IGNORECASE)
_TYPE = re.compile(rf"#[ \t]*TYPE[ \t]+({_NAME})[ \t]+(\S+)[ \t]*")
_TYPES = ("counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "stateset", "gaugehistogram")
#: Labels of a sample make a line long; an engine has some thousand lines.
_MOST_OF_A_LINE, _MOST_LINES = 16384, 200000
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """One measured value. It may be NaN or infinite."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """Return the samples of a text, in its order. Raises ValueError that names the first line that is none."""
    samples = []
    seen = set()
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > _MOST_OF_A_LINE or number > _MOST_LINES:
            raise ValueError(f"line {number}: is longer than {_MOST_OF_A_LINE} characters, or one of too many")
        stripped = line.strip()
        if not stripped:
            continue
        if stripped.startswith("#"):
            kind = _TYPE.fullmatch(stripped)
            if kind and kind[2] not in _TYPES:
                raise ValueError(f"line {number}: type {shorten(kind[2], 40)} of {kind[1]} is none of Prometheus")
            continue
        match = _SAMPLE.fullmatch(stripped)
        if not match or not _VALUE.fullmatch(match[3]):
            raise ValueError(f"line {number}: {shorten(stripped, 80)!r} is no metric")
        pairs = _PAIRS.findall(match[2] or "")
        labels = {key: _plain(value[1:-1]) for key, value in pairs}
        series = (match[1], frozenset(labels.items()))
        if len(labels) != len(pairs):
            raise ValueError(f"line {number}: {match[1]} has a label twice")
        if series in seen:
            raise ValueError(f"line {number}: {shorten(stripped, 80)!r} is there twice")
        seen.add(series)
        samples.append(Sample(match[1], labels, float(match[3])))
    return samples


def _plain(value: str) -> str:
    return re.sub(r"\\.", lambda match: _ESCAPES.get(match[0], match[0]), value)
