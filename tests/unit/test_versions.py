# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions stand in tests/versions.txt; what else names them agrees, and the ones installed here are among them."""

from __future__ import annotations

import json
import pathlib
import sys

import ansible
import pytest
import yaml
from ansible.release import __version__ as core
from ansible_collections.baremetal.nim.tests import versions
from packaging.specifiers import SpecifierSet

ROOT = pathlib.Path(__file__).parents[2]
KNOWN = versions.versions()
CORES = [item for item in KNOWN if item.name != versions.HOSTS]
HOSTS = versions.version(versions.HOSTS, KNOWN)
FIRST = CORES[0]


def test_this_ansible_core_is_one_of_them():
    item = versions.version(core.rpartition(".")[0], KNOWN)
    assert item.oldest <= sys.version_info[:2] <= item.newest


def test_the_collections_that_come_with_it_are_ones_that_galaxy_installs():
    wanted = yaml.safe_load((ROOT / "galaxy.yml").read_text())["dependencies"]
    home = pathlib.Path(ansible.__file__).parents[1] / "ansible_collections"
    for name, span in wanted.items():
        manifest = json.loads((home / name.replace(".", "/") / "MANIFEST.json").read_text())
        assert manifest["collection_info"]["version"] in SpecifierSet(span), name


def test_what_else_names_versions_agrees():
    assert yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["requires_ansible"] == f">={FIRST.name}.0"
    lint = yaml.safe_load((ROOT / ".config/ansible-lint.yml").read_text())["supported_ansible_also"]
    assert lint == [f"{item.name}." for item in CORES[1:]]
    for path in ROOT.glob("roles/*/meta/main.yml"):
        assert yaml.safe_load(path.read_text())["galaxy_info"]["min_ansible_version"] == FIRST.name, path
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"Python {FIRST.span}" in contributing and f"Python {HOSTS.span}" in contributing


def test_each_line_was_run_on_a_python_that_it_supports():
    for item in KNOWN:
        assert all(item.oldest <= versions.number(python) <= item.newest for python in item.ran), item


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return what gives this machine a Python; it has none otherwise."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.setattr(versions, "PLACES", ("~/.pyenv/versions/{}.*/bin/python3",))

    def give(number, *paths, installed=True):
        """Write commands that answer as that Python."""
        for path in paths:
            command = tmp_path / path
            command.parent.mkdir(parents=True, exist_ok=True)
            numbers = number.replace(".", " ")
            command.write_text(f"#!/bin/sh\necho '{numbers}'\necho {command}\necho {installed}\n")
            command.chmod(0o755)
        return str(tmp_path / paths[0])

    return give


LINE = versions.Version("2.20", "ansible==13.8.0", (3, 12), (3, 14), ["3.13"])


def test_the_newest_python_that_fits_is_taken_and_a_newer_one_is_missed(machine):
    machine("3.11.2", "bin/python3", "bin/python3.11")
    machine("3.12.1", "bin/python3.12")
    path = machine("3.13.0", ".pyenv/versions/3.13.0/bin/python3")
    machine("3.15.0", "bin/python3.15")
    python, remark = versions.choose(LINE, "", usual=False)
    assert python == ((3, 13, 0), path)
    assert remark == "Python 3.14 is missing on this machine: 3.13.0 is the newest here that ansible-core 2.20 runs on"


def test_where_the_newest_is_there_nothing_is_missed(machine):
    path = machine("3.14.0", "bin/python3", "bin/python3.14")
    machine("3.14.9", ".pyenv/versions/3.14.9/bin/python3")
    assert versions.choose(LINE, "", usual=False) == (((3, 14, 0), path), "")


def test_what_python3_is_will_do_for_the_usual_toolbox(machine):
    path = machine("3.12.3", "bin/python3", "bin/python3.12")
    machine("3.13.0", "bin/python3.13")
    assert versions.choose(LINE, "", usual=True) == (((3, 12, 3), path), "")


def test_another_one_is_found_where_python3_is_too_old_or_too_new(machine):
    machine("3.15.1", "bin/python3", "bin/python3.15")
    path = machine("3.12.0", ".pyenv/versions/3.12.0/bin/python3")
    assert versions.choose(LINE, "", usual=True) == (((3, 12, 0), path), "")


def test_a_command_that_does_not_run_or_is_of_a_toolbox_is_no_python(machine, tmp_path):
    (tmp_path / "bin/python3.13").write_text("#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n")
    (tmp_path / "bin/python3.13").chmod(0o755)
    machine("3.14.0", "bin/python3.14", installed=False)
    path = machine("3.12.0", "bin/python3.12")
    assert versions.choose(LINE, "", usual=False)[0].path == path


def test_without_any_the_message_tells_what_is_here_and_what_would_do(machine):
    machine("3.11.2", "bin/python3", "bin/python3.11")
    machine("3.9.18", "bin/python3.9")
    with pytest.raises(versions.Missing) as told:
        versions.choose(LINE, "", usual=False)
    assert str(told.value) == (
        "ansible-core 2.20 wants Python 3.12 to 3.14, and this machine has 3.11.2, 3.9.18. "
        "Install one, or name it: make ... PYTHON=/path/to/python3.14"
    )


def test_the_python_that_is_asked_for_is_taken_or_refused(machine):
    machine("3.14.0", "bin/python3.14")
    old, fits = machine("3.11.2", "old/python3"), machine("3.12.0", "new/python3")
    assert versions.choose(LINE, fits, usual=False) == (((3, 12, 0), fits), "")
    with pytest.raises(
        versions.Missing, match=r"old/python3 is Python 3.11.2; ansible-core 2.20 wants Python 3.12 to 3.14"
    ):
        versions.choose(LINE, old, usual=False)
    with pytest.raises(versions.Missing, match="does not run as a Python"):
        versions.choose(LINE, "/nonexistent/python3", usual=False)


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(versions.Missing, match=r"CORE=2.18 is not in tests/versions.txt, which has 2.19, .*hosts"):
        versions.version("2.18", KNOWN)
