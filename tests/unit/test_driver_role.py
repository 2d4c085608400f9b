# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of the role nvidia_driver without a host: Red Hat's tool, modprobe and systemctl are programs that only play their part."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, path_without, play_role

sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugins/filter"))
sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugins/modules"))

import test_driver_plan as states
import test_nvidia_kernel_module as machines

TOOL = '#!/bin/sh\necho "rhel-drivers $*" >> "$LOG"\n'
FAILS = f"{TOOL}echo Looking for drivers\necho 'no drivers available for detected hardware' >&2\nexit 1\n"
EXACT = "rhel-drivers install --batch nvidia:595.71.05"
STOPS = ["stop nvidia-dcgm.service", "stop nvidia-persistenced.service", "modprobe -r nvidia_uvm nvidia"]
COMES_BACK = [
    "modprobe nvidia",
    "modprobe nvidia_uvm",
    "start nvidia-persistenced.service",
    "start nvidia-dcgm.service",
    "restart nvidia-cdi-refresh.service",
]


@pytest.fixture
def machine(tmp_path):
    """A machine with driver 580.159.04 loaded and services on its GPUs."""
    return machines.Host(tmp_path)


@pytest.fixture
def play(tmp_path):
    """Runs tasks of the role with Red Hat's driver wanted; returns the exit status and what was told."""

    def run(preflight_host, tasks, *args, path=None, **variables):
        kernel = {
            "proc_root": str(tmp_path / "proc"),
            "sys_root": str(tmp_path / "sys"),
            "state_file": str(tmp_path / "run/nim/driver-stopped.json"),
        }
        given = {
            "preflight_host": preflight_host,
            **{f"nvidia_driver_{name}": value for name, value in states.RED_HATS.items()},
            **({} if "ansible_host" in variables else HERE),
            **variables,
        }
        return play_role(
            tmp_path,
            "nvidia_driver",
            given,
            *args,
            tasks=tasks,
            programs=tmp_path / "bin",
            environment={"LOG": str(tmp_path / "calls"), **({"PATH": path} if path else {})},
            play={"module_defaults": {"baremetal.nim.nvidia_kernel_module": kernel}},
        )

    return run


def tool(machine, text):
    path = machine.home / "bin/rhel-drivers"
    path.write_text(text)
    path.chmod(0o755)


def test_pain_13_rhel_drivers_is_called_with_an_exact_version(play, machine):
    tool(machine, TOOL)
    code, told = play(states.rhel(), "exchange_dnf")
    assert code == 0 and "changed=1 " in told, told
    # No driver is loaded, so nobody is in the way.
    assert machine.calls == [EXACT]


def test_pain_13_rhel_drivers_has_the_gpus_to_itself(play, machine):
    tool(machine, TOOL)
    code, told = play(states.with_red_hats("580.159.04"), "exchange_dnf")
    assert code == 0 and "changed=2 " in told, told
    assert machine.calls == [*STOPS, EXACT]


def test_pain_13_words_of_rhel_drivers_are_told_and_what_was_stopped_comes_back(play, machine):
    tool(machine, FAILS)
    (machine.home / "disk").write_text("580.159.04")
    code, told = play(states.with_red_hats("580.159.04"), "exchange_dnf")
    assert code == 2, told
    assert "Have the driver installed: no drivers available for detected hardware." in told
    assert "Loaded is driver 580.159.04; started again: nvidia-persistenced.service, nvidia-dcgm.service" in told
    assert machine.calls == [*STOPS, EXACT, *COMES_BACK]
    assert not machine.state_file.exists()


def test_pain_13_missing_rhel_drivers_is_told(play, machine, tmp_path):
    path = f"{tmp_path}/bin{os.pathsep}{path_without(tmp_path, 'rhel-drivers')}"
    code, told = play(states.rhel(), "exchange_dnf", path=path)
    assert code == 2 and "No such file or directory" in told and "rhel-drivers" in told, told
    assert "started again: nothing was stopped" in told


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            states.rhel(),
            (
                "Would install the driver from none: rhel-drivers, python3-dnf-plugin-versionlock, kmod-nvidia-open-595.71.05*"
                f" by {EXACT}"
            ),
        ),
        (
            states.with_red_hats("595.58.03", repositories=[states.cdn("", name=name) for name in states.RHUI]),
            f"by {EXACT} out of rhel-10-extensions-rhui-rpms, rhel-10-supplementary-rhui-rpms, which are disabled",
        ),
    ],
)
def test_a_check_tells_who_would_install_and_out_of_what(play, state, said):
    code, told = play(state, "install_check", "--check", **AWAY)
    assert code == 0 and said in told, told
