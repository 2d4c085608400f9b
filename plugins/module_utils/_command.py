# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that are told something on their standard input. Private to the collection."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

#: Words that do not change with the operator's language.
PLAIN = {"LC_ALL": "C", "LANGUAGE": "C"}


def feed(argv: Sequence[str], data: str) -> tuple[int, str, str]:
    """Runs a command with a plain locale and DATA, a line, on its standard input: exit status, output, errors.

    ``run_command(data=...)`` of Ansible's modules fails the whole module where a command ends before it has read everything. Here
    that is the command's own affair: what it answered counts. One that cannot be run at all has the exit status 126.
    """
    try:
        done = subprocess.run(
            list(argv), input=f"{data}\n".encode(), capture_output=True, env={**os.environ, **PLAIN}, check=False
        )
    except OSError as problem:
        return 126, "", f"{argv[0]} cannot be run: {problem.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
