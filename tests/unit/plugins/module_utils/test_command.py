# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that are told something, and need not listen."""

from __future__ import annotations

import ast
import os
import pathlib
import signal

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _command

PLUGINS = pathlib.Path(__file__).parents[4] / "plugins"
#: More than a pipe holds: the command that does not read it ends while it is still being written.
MUCH = "x" * 2**21


@pytest.mark.parametrize(
    ("script", "data", "answer"),
    [
        pytest.param("cat", "nvcr.io", (0, "nvcr.io\n", ""), id="reads"),
        pytest.param("exec 0<&-; echo answer", MUCH, (0, "answer\n", ""), id="closes-it-and-answers"),
        pytest.param("echo answer", MUCH, (0, "answer\n", ""), id="ends-before-it-has-read"),
        pytest.param("head -c 5; echo no >&2; exit 3", MUCH, (3, "xxxxx", "no\n"), id="reads-a-part-and-fails"),
        pytest.param("kill -9 $$", MUCH, (-9, "", ""), id="killed"),
        pytest.param("cat; cat >&2 /dev/null", MUCH, (0, f"{MUCH}\n", ""), id="answers-more-than-a-pipe-holds"),
        pytest.param("printf '\\303('", "", (0, "\ufffd(", ""), id="answers-no-text"),
        pytest.param('echo "$LC_ALL $LANGUAGE"', "", (0, "C C\n", ""), id="speaks-plainly"),
    ],
)
def test_feed(script, data, answer, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert _command.feed(["/bin/sh", "-c", script], data) == answer


@pytest.mark.parametrize("text", [None, "no program\n"])
def test_what_cannot_be_run(tmp_path, text):
    program = tmp_path / "helper"
    if text:
        program.write_text(text)
        program.chmod(0o755)
    code, out, err = _command.feed([str(program)], "nvcr.io")
    assert (code, out) == (126, "") and err.startswith(f"{program} cannot be run: ")


def test_nobody_waits_for_what_a_command_leaves_behind():
    code, out, _err = _command.feed(["/bin/sh", "-c", "sleep 600 & echo $!"], "")
    # It still runs, and holds what its parent wrote to.
    os.kill(int(out), signal.SIGKILL)
    assert code == 0


def test_deadline():
    code, _out, err = _command.feed(["/bin/sh", "-c", "echo so far; exec sleep 600"], "", 0.2)
    assert code == _command.SILENT
    assert err.startswith("sh did not answer within 0.2 s and was ended. Next: ")


def test_programs_are_asked_in_one_way():
    """By module_utils/_command.py, which has a deadline: Ansible's run_command waits for ever, and subprocess for what was killed."""
    asked = [
        f"{path.name}:{node.lineno}"
        for folder in ("modules", "module_utils")
        for path in (PLUGINS / folder).rglob("*.py")
        if path.name != "_command.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == "run_command")
        or (isinstance(node, ast.Import) and any(name.name == "subprocess" for name in node.names))
    ]
    assert asked == []


def test_nothing_is_told_to_commands_in_another_way():
    """Ansible's own way fails the whole module where the command does not listen."""
    told = [
        f"{path.name}:{node.lineno}"
        for path in PLUGINS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "run_command"
        and any(keyword.arg == "data" for keyword in node.keywords)
    ]
    assert told == []
