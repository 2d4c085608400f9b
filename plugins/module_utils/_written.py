# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator wrote, where YAML made something else of it. Private to the collection; pure.

YAML 1.1 reads 1.10 as the number 1.1, 0755 as 493, 1:0 as 60, on as true and 2025-01-01 as a date. An option that is text is refused
unless it is text; an option that is a number or a truth is refused if it was written as something else. How it was written is known
where the controller can see the place in the file (Written); where it cannot, what may be lost decides.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ansible_collections.baremetal.nim.plugins.module_utils import _gate

#: What is above is no number that anybody writes.
MOST = 10**100
BOOLEANS = ("1", "yes", "true", "on", "y", "t", "0", "no", "false", "off", "n", "f")


class Written(NamedTuple):
    """A plain scalar as it stands in a file, and the place of it: ``inventory.yml:12``."""

    text: str
    place: str


#: Keys that lead to a value, and how it was written.
Sources = Mapping[tuple[Any, ...], Written]


def near(word: str, known: Iterable[str]) -> str:
    """ " Did you mean X?" where X is the nearest known word; empty when none is near."""
    match = difflib.get_close_matches(word, sorted(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def as_int(value: Any) -> int | None:
    """The integer that a YAML value, a survey answer or an extra variable means; None if it means none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value)
    # What has more digits is none that anybody wants, and Python refuses to read thousands.
    text = shown(value).strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def as_bool(value: Any) -> bool:
    """Truth of a YAML value or of a survey answer."""
    return value if isinstance(value, bool) else shown(value).strip().lower() in ("1", "yes", "true", "on", "y", "t")


def shown(value: Any) -> str:
    """A scalar as YAML would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return "empty" if value is None else str(value)
    except ValueError:
        return _gate.shown(value)


def kind(value: Any) -> str:
    """What a value is to YAML, in words; empty for text."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, (datetime.date, datetime.datetime)):
        return "a date"
    if isinstance(value, Mapping):
        return "a dictionary"
    if isinstance(value, (list, tuple, set)):
        return "a list"
    return "" if isinstance(value, str) else type(value).__name__


def seen(value: Any, written: Written | None) -> str:
    """What was seen, what YAML takes it for, and how it stands in the file."""
    stands = f", written {written.text} in {written.place}" if written else ""
    return f"{shown(value)[:200]}, {kind(value)} to YAML{stands}"


def text_problem(name: str, value: Any, written: Written | None = None) -> str:
    """Why an option that is text is none, with the cure; empty when it is text, or nothing at all."""
    if value is None or isinstance(value, str):
        return ""
    if isinstance(value, (Mapping, list, tuple, set)):
        return f"{name} is {kind(value)}, wanted text."
    example = f'{name.rpartition(".")[2]}: "{written.text if written else shown(value)}"'
    cure = f"quote it: {example}" if written else f"quote it as it is meant, such as {example}"
    return f"{name} is {seen(value, written)}, wanted text; {cure}."


def as_text(value: Any, written: Written | None = None) -> str | None:
    """Text of a scalar exactly as it was written; None where YAML has changed it, or may have."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and written is None:
        # Of a fraction only zeros at the end can be lost, which mean nothing; of a version, they mean another one.
        return str(value) if 0 <= value < 1 and re.fullmatch(r"0\.\d+", str(value)) else None
    if isinstance(value, (bool, int, float)):
        text = shown(value)
        # A number that Python does not print is none that was meant.
        meant = abs(value) < MOST if written is None else written.text == text
        return text if meant else None
    return None


def number_problem(name: str, value: Any, written: Written | None) -> str:
    """Why a whole number may not be the one that was meant; empty when it is, or is none."""
    if isinstance(value, bool) or not isinstance(value, int) or written is None:
        return ""
    # Digits in groups, 1_000, mean the same to everybody; 0755 and 1:30 do not.
    if re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", written.text):
        return ""
    return f"{name} is {seen(value, written)}; write the decimal number that you mean."


def option_problems(
    options: Mapping[str, Any], names: Mapping[str, str], written: Mapping[str, Written] | None = None
) -> list[str]:
    """Problems of OPTIONS that are text. NAMES has the variable of each by its key; what is a list has texts in it.

    A whole number passes: no zero of it can be lost, and what reads the option compares text.
    """
    problems = []
    for key, name in names.items():
        value = options.get(key)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, int) and not isinstance(item, bool):
                problems.append(number_problem(name, item, (written or {}).get(key)))
            else:
                problems.append(text_problem(name, item, (written or {}).get(key)))
            if isinstance(item, str):
                problems.append(_gate.variable_problem(name, item))
    return [problem for problem in problems if problem]


class Entry:
    """Reads the options of one entry of a list; collects problems instead of raising."""

    def __init__(self, spec: Mapping[str, Any], written: Sources | None = None) -> None:
        self.spec = spec
        self.written = written or {}
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        """Notes a problem of this entry."""
        self.problems.append(text)

    def refused(self, wrong: str) -> bool:
        """Notes a problem where there is one; whether there is."""
        if wrong:
            self.problem(wrong)
        return bool(wrong)

    def text(self, key: str, default: str = "") -> str:
        """An option that is text; the default where it is not set."""
        value = self.spec.get(key)
        if value is None:
            return default
        said = text_problem(key, value, self.written.get((key,)))
        if said:
            self.problem(said)
        return str(value) if isinstance(value, str) else shown(value)

    def line(self, key: str) -> str:
        """An option that is one line of text."""
        text = self.text(key)
        wrong = _gate.line_problem(key, text)
        if wrong:
            self.problem(wrong)
        return text

    def word(self, label: str, value: Any, path: tuple[Any, ...], example: str) -> str | None:
        """A scalar that becomes text as it was written; None, with a problem, where it cannot."""
        written = self.written.get(path)
        text = as_text(value, written)
        if text is not None:
            return text
        if value is None:
            self.problem(f"{label} without a value; leave it out, or write {example.format('')} for an empty one.")
        elif isinstance(value, (Mapping, list, tuple, set)):
            self.problem(f"{label}, which is {kind(value)}; write it as one text in quotes.")
        else:
            quoted = example.format(written.text if written else shown(value))
            self.problem(f"{label}: {seen(value, written)}; quote it as it is meant: {quoted}.")
        return None

    def words(self, key: str, given: Iterable[Any]) -> list[str]:
        """The items of a list that become text."""
        found = (self.word(f"{key} has an item", item, (key, index), '- "{}"') for index, item in enumerate(given))
        return [text for text in found if text is not None]

    def number(self, key: str, default: Any, low: int, high: int) -> int:
        """An integer option within bounds."""
        given = self.spec.get(key, default)
        value = as_int(given)
        if value is None or not low <= value <= high:
            self.problem(f"{key} is {_gate.shown(given)}, wanted an integer from {low} to {high}.")
            return 0
        said = number_problem(key, given, self.written.get((key,)))
        if said:
            self.problem(said)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """An option that is true or false."""
        value = self.spec.get(key)
        if value is None or value == "":
            return default
        if shown(value).strip().lower() not in BOOLEANS:
            self.problem(f"{key} is {_gate.shown(value)}, wanted true or false.")
        return as_bool(value)

    def choice(self, key: str, default: str, known: Iterable[str]) -> str:
        """An option with named values."""
        before = len(self.problems)
        value = self.text(key, default)
        if value not in set(known) and len(self.problems) == before:
            self.problem(
                f"{key} is {_gate.shown(value)}, wanted one of {', '.join(sorted(known))}.{near(value, known)}"
            )
        return value
