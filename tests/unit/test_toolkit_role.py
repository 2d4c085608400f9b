# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia_container_toolkit without a host: what it leaves alone, and its tasks with programs that only play their part."""

from __future__ import annotations

import pathlib
import sys

import pytest
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_role

sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugins/filter"))

import test_toolkit_plan as states

UUIDS = [gpu["uuid"] for gpu in states.GPUS]
DOCKER = """\
#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *--device=nvidia.com/gpu=all*) echo "GPU 0: NVIDIA H200 (UUID: {0})"; echo "GPU 1: NVIDIA H200 (UUID: {1})" ;;
  *--device=nvidia.com/gpu=0*) echo "GPU 0: NVIDIA H200 (UUID: {0})" ;;
  *--device=nvidia.com/gpu=1*) echo "GPU 0: NVIDIA H200 (UUID: {2})" ;;
esac
"""
NVIDIA_CTK = '#!/bin/sh\necho "$@" >> "$LOG"\necho "no-cgroups = true" >> "$CONFIG"\n'


@pytest.fixture
def play(tmp_path):
    """Runs tasks of the role; returns the exit status, what was told, and the calls of the programs."""

    def run(preflight_host, tasks="main", programs=None, *args, **variables):
        for name, text in (programs or {}).items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        given = {"preflight_host": preflight_host, **variables}
        environment = {"LOG": str(tmp_path / "log"), "CONFIG": str(tmp_path / "config.toml")}
        code, told = play_role(tmp_path, "nvidia_container_toolkit", given, *args, tasks=tasks, environment=environment)
        log = tmp_path / "log"
        return code, told, log.read_text().splitlines() if log.exists() else []

    return run


def test_nothing_to_do_needs_no_remote_call(play):
    code, told, _calls = play(states.host(), **AWAY)
    assert code == 0 and "changed=0 " in told, told


def test_what_is_to_do_needs_one(play):
    """The test above would notice."""
    code, told, _calls = play(states.host(cdi=states.cdi()), **AWAY)
    assert code == 4 and "unreachable=1" in told, told


def test_a_check_of_a_bare_host_tells_what_would_be_installed(play):
    # What preflight was told in this run is not asked again.
    packages = [f"{name}=1.20.0-1" for name in states._toolkit_plan.PACKAGES]
    answer = {
        "transactions": {
            "toolkit": {"packages": packages, "error": None, "problems": [], "unresolved": None, "installed": {}}
        }
    }
    code, told, _calls = play(states.bare(), "main", None, "--check", __preflight_simulated=answer, **AWAY)
    assert code == 0 and "changed=1 " in told, told
    assert "Would install libnvidia-container1=1.20.0-1" in told


def test_problems_are_told_before_anything_is_touched(play):
    state = states.enterprise(podman={"version": "4.9.3"}, packages={})
    code, told, _calls = play(state, nvidia_container_toolkit_engine="podman", **AWAY)
    assert code == 2 and "the container toolkit was not touched" in told, told
    assert states.FLAG in told


def test_smoke(play):
    docker = DOCKER.format(*UUIDS, UUIDS[1])
    code, told, calls = play(
        states.host(), "smoke", {"docker": docker}, nvidia_container_toolkit_smoke_image="img", **HERE
    )
    assert code == 0, told
    assert calls == [
        f"run --rm --network=none --device=nvidia.com/gpu={name} --entrypoint=nvidia-smi img -L" for name in ("0", "1", "all")
    ]  # fmt: skip


def test_smoke_finds_a_container_with_anothers_gpu(play):
    docker = DOCKER.format(*UUIDS, UUIDS[0])
    code, told, calls = play(states.host(), "smoke", {"docker": docker}, **HERE)
    assert code == 2 and len(calls) == 3
    assert f"nvidia.com/gpu=1: the container lists {UUIDS[0]}, wanted exactly {UUIDS[1]}" in told


def test_smoke_of_podman(play):
    podman = DOCKER.format(*UUIDS, UUIDS[1])
    state = states.enterprise()
    code, told, calls = play(state, "smoke", {"podman": podman}, nvidia_container_toolkit_engine="podman", **HERE)
    assert code == 0, told
    assert all(call.startswith("run --security-opt=label=disable --rm ") for call in calls)


def test_smoke_without_an_engine(play):
    code, told, _calls = play(states.host(), "smoke", {"docker": "#!/nonexistent\n"}, **HERE)
    assert code == 2 and "nvidia.com/gpu=all: the container failed" in told, told


@pytest.mark.parametrize(
    "config", [None, "[nvidia-container-cli]\n#no-cgroups = false\n", "[nvidia-container-cli]\nno-cgroups = false\n"]
)
def test_rootless_is_set_once(play, tmp_path, config):
    """The file is read, and the toolkit's own tool changes it only where it must."""
    if config is not None:
        (tmp_path / "config.toml").write_text(config)
    given = {**HERE, "__nvidia_container_toolkit_config": str(tmp_path / "config.toml")}
    code, told, calls = play(states.host(), "rootless", {"nvidia-ctk": NVIDIA_CTK}, **given)
    assert code == 0 and "changed=1 " in told, told
    # A host that another run had meanwhile is read again, which asks for the version.
    assert [call for call in calls if call != "--version"] == [
        "config --set=nvidia-container-cli.no-cgroups --in-place"
    ]
    code, told, calls = play(states.host(), "rootless", {"nvidia-ctk": NVIDIA_CTK}, **given)
    assert code == 0 and "changed=0 " in told, told
    assert len([call for call in calls if call != "--version"]) == 1
