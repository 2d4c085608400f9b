# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible loads all filters of a collection in each process of each task that uses one."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import importlib, json, pkgutil, sys
import ansible.plugins.filter.core
import ansible_collections.baremetal.nim.plugins.filter as filters
before = set(sys.modules)
for _finder, name, _is_package in pkgutil.iter_modules(filters.__path__, f"{filters.__name__}."):
    importlib.import_module(name)
json.dump(sorted(set(sys.modules) - before), sys.stdout)
"""


def test_no_filter_brings_a_library_that_takes_long_to_load():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "ansible_collections" in loaded
    assert loaded.isdisjoint({"docker", "matplotlib", "numpy", "requests", "urllib3"})
