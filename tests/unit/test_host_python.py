# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module as Ansible sends it, run by the oldest Python that a host may have, without anything installed there."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import yaml
from ansible_collections.baremetal.nim.tests import versions
from ansible_collections.baremetal.nim.tests.unit.role_play import ROOT, play_book

MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("[a-z]*.py"))
HOSTS = versions.version(versions.HOSTS, versions.versions())


@pytest.fixture(scope="module")
def python():
    """Return the path of that Python."""
    try:
        return versions.choose(HOSTS, "", usual=False)[0].path
    except versions.Missing as problem:
        pytest.skip(str(problem))


def test_the_oldest_python_is_the_one_that_preflight_accepts():
    defaults = yaml.safe_load((ROOT / "roles/preflight/defaults/main.yml").read_text())
    assert defaults["preflight_min_python"] == versions.text(HOSTS.oldest)


def test_every_module_starts(tmp_path: pathlib.Path, python):
    tasks = [
        {f"baremetal.nim.{name}": {"no_such_option": 1}, "register": f"said_{name}", "ignore_errors": True}
        for name in MODULES
    ]
    said = "{{ {" + ", ".join(f"'{name}': said_{name}.msg" for name in MODULES) + "} | to_json }}"
    tasks.append({"ansible.builtin.copy": {"content": said, "dest": str(tmp_path / "said.json"), "mode": "0600"}})
    book = tmp_path / "book.yml"
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    host = {"ansible_connection": "local", "ansible_python_interpreter": python}
    code, told = play_book(tmp_path, str(book), {"gpu01": host}, extra={})
    assert code == 0, told
    answers = json.loads((tmp_path / "said.json").read_text())
    # They came as far as their arguments.
    refusal = re.compile(r"missing required arguments: |.* are missing: |Unsupported parameters for \(baremetal\.nim\.")
    assert not {name: text for name, text in answers.items() if not refusal.match(text)}
    assert list(answers) == MODULES
