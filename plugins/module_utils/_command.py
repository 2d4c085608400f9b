# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that are told something on their standard input. Private to the collection."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import BinaryIO

#: Words that do not change with the operator's language.
PLAIN = {"LC_ALL": "C", "LANGUAGE": "C"}


def feed(argv: Sequence[str], data: str, seconds: float | None = None) -> tuple[int, str, str]:
    """Runs a command with a plain locale and DATA, a line, on its standard input: exit status, output, errors.

    ``run_command(data=...)`` of Ansible's modules fails the whole module where a command ends before it has read everything. Here
    that is the command's own affair: what it answered counts. All lies in memory, not in pipes, so nobody waits for what the command
    leaves behind. One that cannot be run at all has the exit status 126, one that takes longer than SECONDS has 124.
    """
    with _memory() as given, _memory() as out, _memory() as err:
        given.write(f"{data}\n".encode())
        given.seek(0)
        try:
            process = subprocess.Popen(list(argv), stdin=given, stdout=out, stderr=err, env={**os.environ, **PLAIN})
        except OSError as problem:
            return 126, "", f"{argv[0]} cannot be run: {problem.strerror}"
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 124, "", f"no answer within {seconds:g} s"
        return code, _text(out), _text(err)


def _memory() -> BinaryIO:
    """A file that never lies on a disk: what is told may be a secret."""
    return os.fdopen(os.memfd_create("nim"), "w+b")


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
