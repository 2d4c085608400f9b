# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions and other texts of the roles that were written without quotes, in real plays of each role."""

from __future__ import annotations

import pathlib
import sys

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils._preflight import preflight_problems
from ansible_collections.baremetal.nim.plugins.module_utils._written import Written
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, play_role

sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugins/filter"))
sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugins/module_utils"))

import test_driver_plan as driver_states
import test_preflight as preflight_states
import test_toolkit_plan as toolkit_states


@pytest.mark.parametrize(
    ("role", "variable", "value", "refused"),
    [
        ("nvidia_driver", "nvidia_driver_version", 580.1, True),
        ("nvidia_driver", "nvidia_driver_branch", 570.0, True),
        ("nvidia_driver", "nvidia_driver_branch", 580, False),
        ("nvidia_driver", "nvidia_driver_kernel", 6.1, True),
        ("nvidia_driver", "nvidia_driver_mirror_suite", True, True),
        ("nvidia_container_toolkit", "nvidia_container_toolkit_version", 1.2, True),
        ("nvidia_container_toolkit", "nvidia_container_toolkit_cdi_feature_flags", ["a", 1.5], True),
        ("container_engine", "container_engine_version", 28.1, True),
        ("container_engine", "container_engine_repository_suite", 13.0, True),
    ],
)
def test_a_role_refuses_what_yaml_has_changed(tmp_path, role, variable, value, refused):
    host = toolkit_states.host() if role == "nvidia_container_toolkit" else driver_states.host("Debian", "13")
    code, told = play_role(tmp_path, role, {"preflight_host": host, variable: value, **AWAY}, tasks="assert")
    seen = value[-1] if isinstance(value, list) else value
    assert (f"- {variable} is {str(seen).lower() if seen is True else seen}, " in told) is refused, told
    assert (code == 2) is refused, told


@pytest.mark.parametrize(
    ("changes", "written", "said"),
    [
        ({"min_python": 3.1}, {}, "preflight_min_python is 3.1, a number to YAML"),
        (
            {"min_python": 3.1},
            {"min_python": "3.10"},
            'written 3.10 in hosts.yml:7, wanted text; quote it: preflight_min_python: "3.10".',
        ),
        ({"min_python": 3.1}, {"min_python": "3.1"}, None),
        ({"min_python": 3.11}, {}, None),
        ({"min_python": 3.11}, {"min_python": "3.11"}, None),
        ({"docker_version": 28.1}, {}, "container_engine_version is 28.1, a number to YAML"),
        ({"toolkit": {"version": 1.2}}, {}, "nvidia_container_toolkit_version is 1.2, a number to YAML"),
        ({"supported_systems": ["Debian 13", 24.04]}, {}, "preflight_supported_systems is 24.04, a number to YAML"),
    ],
)
def test_preflight_tells_it_beside_all_else(changes, written, said):
    wanted = {**preflight_states.WANTED, **changes}
    stands = {key: Written(text, "hosts.yml:7") for key, text in written.items()}
    found = preflight_problems(preflight_states.HOST, wanted, [preflight_states.LLAMA], None, stands)
    told = [problem["message"] for problem in found if problem["check"] == "options"]
    assert [said in message for message in told] == ([True] if said else [])
    assert all(problem["severity"] == "error" for problem in found if problem["check"] == "options")
