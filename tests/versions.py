#!/usr/bin/env python3
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads tests/versions.txt and finds the Pythons of this machine.

versions.py toolbox [NAME]    three lines: the Python of that toolbox, what pip installs into it, and a remark or nothing

It runs before any toolbox is there, by whatever Python the machine has, so it needs nothing else.
"""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
#: Where Pythons lie that are not on the PATH: pyenv's, uv's, and those of GitHub's runners. {} is a version such as 3.12.
PLACES = (
    "${PYENV_ROOT}/versions/{}.*/bin/python3",
    "~/.pyenv/versions/{}.*/bin/python3",
    "~/.local/share/uv/python/cpython-{}.*/bin/python3",
    "/opt/hostedtoolcache/Python/{}.*/*/bin/python3",
    "/opt/python{}/bin/python3",
)
#: Newest minor version that is looked for.
NEWEST = 30
HOSTS = "hosts"


class Missing(Exception):
    """What is wanted is not here; the message says what would do."""


class Version(NamedTuple):
    """One line of versions.txt."""

    name: str
    brings: str
    oldest: tuple[int, int]
    newest: tuple[int, int]
    #: As they are written there, such as 3.13.
    ran: list[str]

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return "the hosts' part" if self.name == HOSTS else f"ansible-core {self.name}"

    @property
    def span(self) -> str:
        """Its Pythons."""
        return text(self.oldest) if self.oldest == self.newest else f"{text(self.oldest)} to {text(self.newest)}"

    def supports(self, python: Python) -> bool:
        """Whether it runs on that Python."""
        return self.oldest <= python.number[:2] <= self.newest


class Python(NamedTuple):
    """A Python of this machine."""

    number: tuple[int, int, int]
    path: str


def number(word: str) -> tuple[int, int]:
    """3.13 as numbers."""
    major, minor = word.split(".")
    return int(major), int(minor)


def text(numbers: tuple[int, ...]) -> str:
    """Numbers as 3.13."""
    return ".".join(map(str, numbers))


def versions(path: pathlib.Path = HERE / "versions.txt") -> list[Version]:
    """The lines of versions.txt in their order."""
    lines = (line.split("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines())
    return [
        Version(name, brings, number(oldest), number(newest), [] if ran == "-" else ran.split(","))
        for name, brings, oldest, newest, ran in filter(None, lines)
    ]


def version(name: str, known: list[Version]) -> Version:
    """The line of that name; without one the first, which is .venv's."""
    for item in known:
        if name in ("", item.name):
            return item
    raise Missing(f"CORE={name} is not in tests/versions.txt, which has {', '.join(item.name for item in known)}")


def ask(command: str) -> Python | None:
    """The Python behind a command; None where it does not run, as a pyenv command of a version that is not active."""
    # A toolbox must not be built of another one.
    script = "import sys; print(*sys.version_info[:3]); print(sys.executable); print(sys.prefix == sys.base_prefix)"
    try:
        done = subprocess.run(
            [command, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=60
        )
        numbers, path, installed = done.stdout.decode().splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    major, minor, patch = map(int, numbers.split())
    return Python((major, minor, patch), path) if installed == "True" else None


def pythons(oldest: tuple[int, int] = (3, 9), newest: tuple[int, int] = (3, NEWEST)) -> Iterator[Python]:
    """The Pythons of this machine, the newest first; one of each minor version, that of the PATH before others."""
    usual = ask("python3")
    for minor in range(newest[1], oldest[1] - 1, -1):
        if usual and usual.number[:2] == (3, minor):
            yield usual
            continue
        wanted = f"3.{minor}"
        places = [os.path.expanduser(os.path.expandvars(place)).format(wanted) for place in PLACES]
        commands = [f"python{wanted}", *(path for place in places for path in sorted(glob.glob(place), reverse=True))]
        yield from itertools.islice((item for item in map(ask, commands) if item and item.number[:2] == (3, minor)), 1)


def choose(wanted: Version, named: str, usual: bool) -> tuple[Python, str]:
    """The Python of a toolbox, and a remark where a newer one would be better.

    named: the one that somebody asks for. usual: take what python3 is, if that will do; else the newest that will.
    """
    if named:
        python = ask(named)
        if python is None:
            raise Missing(f"PYTHON={named} does not run as a Python outside a virtual environment")
        if not wanted.supports(python):
            raise Missing(f"{named} is Python {text(python.number)}; {wanted.title} wants Python {wanted.span}")
        return python, ""
    python = ask("python3") if usual else None
    if python and wanted.supports(python):
        return python, ""
    for python in pythons(wanted.oldest, wanted.newest):
        newest = text(wanted.newest)
        remark = f"Python {newest} is missing on this machine: {text(python.number)} is the newest here that {wanted.title} runs on"
        return python, "" if python.number[:2] == wanted.newest or usual else remark
    seen = ", ".join(text(python.number) for python in pythons()) or "none"
    raise Missing(
        f"{wanted.title} wants Python {wanted.span}, and this machine has {seen}. "
        f"Install one, or name it: make ... PYTHON=/path/to/python{text(wanted.newest)}"
    )


def main(arguments: list[str]) -> int:
    """Command line."""
    if arguments[:1] != ["toolbox"] or len(arguments) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    name = arguments[1] if len(arguments) > 1 else ""
    try:
        wanted = version(name, versions())
        python, remark = choose(wanted, os.environ.get("PYTHON", ""), usual=not name)
    except Missing as problem:
        print(problem, file=sys.stderr)
        return 1
    packages = "requirements-hosts.txt" if wanted.name == HOSTS else f"requirements.txt {wanted.brings}"
    print(python.path, f"-r tests/{packages}", remark, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
