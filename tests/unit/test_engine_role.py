# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role container_engine without a host: what it leaves alone, and what it refuses before any call."""

from __future__ import annotations

import pathlib
import sys

import pytest
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_role

sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugins/module_utils"))

import test_engine as states

#: apt of a host that has docker-ce, and docker.io would take its place.
APT = """\
#!/bin/sh
echo "Remv docker-ce [5:29.1.3-1~debian.13~trixie]"
echo "Inst docker.io (26.1.5+dfsg1-9 Debian:13.8/stable [amd64])"
"""


@pytest.fixture
def play(tmp_path):
    """Runs tasks of the role; returns the exit status and what was told."""

    def run(host, *args, tasks="main", **variables):
        return play_role(tmp_path, "container_engine", {"preflight_host": host, **variables}, *args, tasks=tasks)

    return run


def test_a_docker_that_serves_is_asked_once(play):
    """Only whether it runs with the options; no package manager is asked, and nothing is installed."""
    code, told = play(states.found(live_restore=True, cdi_spec_dirs=["/etc/cdi"]), **AWAY)
    assert code == 4 and "unreachable=1" in told, told
    assert told.count("UNREACHABLE!") == 1 and "configure | Merge options into daemon.json" in told
    assert "install |" not in told


def test_a_check_of_a_bare_host_tells_what_would_be_installed(play):
    answer = {
        "packages": ["docker.io", "docker-cli", "python3-requests"],
        "error": None,
        "problems": [],
        "unresolved": None,
        "installed": {},
    }
    simulated = {"transactions": {"engine": answer}}
    code, told = play(states.host(), "--check", tasks="install", __preflight_simulated=simulated, **AWAY)
    assert code == 0 and "changed=1 " in told, told
    assert "Would install docker.io, docker-cli, python3-requests from distribution" in told


@pytest.mark.parametrize("args", [(), ("--check",)], ids=["run", "check"])
def test_what_apt_would_take_away_is_refused(play, tmp_path, args):
    """The facts may be older than the packages."""
    for name, text in (
        ("apt-get", APT),
        ("apt-mark", "#!/bin/sh\n"),
        ("dpkg-query", "#!/bin/sh\n"),
        ("apt-cache", "#!/bin/sh\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    code, told = play(states.host(), *args, tasks="install", **HERE)
    assert code == 2 and "the container engine was not touched:" in told, told
    assert "installing docker.io, docker-cli, python3-requests would remove" in told
    assert "docker-ce (5:29.1.3-1~debian.13~trixie)" in told and "Would install" not in told


@pytest.mark.parametrize("args", [(), ("--check",)], ids=["run", "check"])
def test_every_reason_is_told_before_any_call(play, args):
    state = states.host({"containerd.io": "2.2.0", "kubelet": "1.34"}, kubernetes=["kubelet.service"])
    code, told = play(state, *args, **AWAY)
    assert code == 2 and "the container engine was not touched:" in told and "unreachable=0" in told, told
    assert "node of a Kubernetes cluster" in told and "containerd.io 2.2.0 is installed" in told


def test_foreign_containers_that_would_end_need_permission(play):
    state = states.found(swarm=True, strangers=["web"])
    options = {"features": {"cdi": True}}
    code, told = play(state, container_engine_options=options, **AWAY)
    assert code == 2 and "web would end" in told and "container_engine_restart_allowed=true" in told, told
    code, told = play(state, container_engine_options=options, container_engine_restart_allowed=True, **AWAY)
    assert code == 4, told
