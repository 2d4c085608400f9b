# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a host that cannot be read: its own words are told, and nothing else."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_role

NOTHING = "package_state"


@pytest.mark.parametrize("tasks", ["main", "read_host"])
def test_a_module_that_fails_tells_why(tmp_path, tasks):
    broken = {"module_defaults": {"baremetal.nim.gpu_host_info": {"of_another_version": True}}}
    code, told = play_role(tmp_path, "preflight", {"nim_services": [], **HERE}, tasks=tasks, play=broken)
    assert code == 2 and "Unsupported parameters" in told and "of_another_version" in told, told
    assert NOTHING not in told and "FAILED - RETRYING" not in told, told


@pytest.mark.parametrize("tasks", ["main", "read_host"])
def test_a_host_without_python_tells_why(tmp_path, tasks):
    given = {"nim_services": [], **HERE, "ansible_python_interpreter": "/nonexistent/python"}
    code, told = play_role(tmp_path, "preflight", given, tasks=tasks)
    assert code == 2 and "/nonexistent/python" in told, told
    assert NOTHING not in told and "FAILED - RETRYING" not in told, told


def test_a_host_that_is_away_is_unreachable(tmp_path):
    code, told = play_role(tmp_path, "preflight", {"nim_services": [], **AWAY})
    assert code == 4 and "unreachable=1" in told and NOTHING not in told, told
