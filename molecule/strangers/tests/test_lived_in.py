# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that somebody else uses too: what is theirs keeps running and keeps its configuration, or the run is refused."""

from __future__ import annotations

import base64
import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import ENGINE, ask, eventually, play

HOST = "gpu01"
pytestmark = pytest.mark.skipif(ENGINE != "docker", reason="Podman has no daemon whose containers could end with it")
CONFIG = "/etc/docker/daemon.json"
#: Docker restarts here more often in an hour than a service may, and takes it along where live-restore is off.
UNITS = "docker nim-llama"
DROP_IN = "/etc/systemd/system/docker.service.d/theirs.conf"


def theirs(host):
    """The container of somebody else, and since when it runs."""
    return host.check_output("docker inspect --format '{{.Id}} {{.State.StartedAt}} {{.State.Running}}' theirs")


def put(host, path, text):
    """Writes a file of the host."""
    data = base64.b64encode(text.encode()).decode()
    host.check_output(f"mkdir -p {pathlib.PurePath(path).parent} && echo {data} | base64 -d > {path}")


def restarted(host):
    """Docker as it starts with what lies there, and their container again."""
    host.check_output(
        f"systemctl daemon-reload && systemctl reset-failed {UNITS} && systemctl restart docker && docker start theirs"
    )


@pytest.fixture(autouse=True)
def found(host):
    """Docker as it was before anybody came: without live-restore and CDI, and with a container of theirs. All is put back."""
    ours = host.check_output(f"cat {CONFIG}")
    before = {key: value for key, value in json.loads(ours).items() if key not in ("live-restore", "features")}
    image = host.check_output("docker inspect --format '{{.Image}}' nim-llama")
    host.check_output(f"docker run -d --name theirs --entrypoint /bin/sh {image} -c 'sleep 3600'")
    put(host, CONFIG, json.dumps(before))
    restarted(host)
    yield before
    host.run(f"docker swarm leave --force; rm -f {DROP_IN}; docker rm -f theirs")
    put(host, CONFIG, ours)
    host.check_output(f"systemctl daemon-reload; systemctl reset-failed {UNITS}; systemctl restart docker")
    eventually(lambda: ask(HOST))


def refused(host, *told, **extra):
    """Preflight says why, and neither their container nor any configuration is touched."""
    before = theirs(host), host.check_output(f"cat {CONFIG}; cat {DROP_IN} 2>/dev/null; dpkg-query -W | sha256sum")
    run = play("preflight", limit=HOST, extra=extra)
    missing = [text for text in told if text not in run.stdout]
    assert run.returncode == 2 and not missing, f"not told: {missing}\n{run.stdout}"
    assert (
        theirs(host),
        host.check_output(f"cat {CONFIG}; cat {DROP_IN} 2>/dev/null; dpkg-query -W | sha256sum"),
    ) == before


def test_their_container_outlives_the_first_run(host, found):
    before = theirs(host)
    run = play("host", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert theirs(host) == before
    config = json.loads(host.check_output(f"cat {CONFIG}"))
    assert config == {**found, "live-restore": True, "features": {"cdi": True}}
    assert (
        host.check_output("docker info --format '{{.LiveRestoreEnabled}} {{.CDISpecDirs}}'")
        == "true [/etc/cdi /var/run/cdi]"
    )
    again = play("host", limit=HOST)
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout


def test_the_old_file_comes_back_and_docker_with_it(host, found):
    options = {"live-restore": True, "features": {"cdi": True}, "default-runtime": "nosuch"}
    before = theirs(host)
    run = play("host", limit=HOST, extra={"container_engine_options": options})
    assert run.returncode == 2, run.stdout
    # Docker refuses it when it reads the file anew, or when it starts.
    assert "nosuch" in run.stdout, "why is told"
    restored = f"The old {CONFIG} is back and Docker serves with it."
    assert restored in run.stdout or f"{CONFIG} was not changed" in run.stdout, run.stdout
    assert json.loads(host.check_output(f"cat {CONFIG}")) == found
    assert theirs(host) == before


def test_a_swarm_is_refused_and_its_restart_needs_permission(host):
    host.check_output("docker swarm init --advertise-addr 127.0.0.1")
    refused(host, "this is a node of a Docker swarm", "docker swarm leave")
    options = {"container_engine_options": {"features": {"cdi": True}}}
    refused(host, "theirs would end", "container_engine_restart_allowed=true", **options)


def test_a_flag_of_the_unit(host, found):
    line = "[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd -H fd:// --live-restore={}\n"
    put(host, DROP_IN, line.format("false"))
    restarted(host)
    refused(host, f"Docker gets live-restore = false by a flag ({DROP_IN}), wanted true")

    put(host, DROP_IN, line.format("true"))
    restarted(host)
    before = theirs(host)
    run = play("host", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert theirs(host) == before
    assert json.loads(host.check_output(f"cat {CONFIG}")) == {**found, "features": {"cdi": True}}, (
        "what a flag gives is in no file"
    )


def test_a_file_that_docker_would_not_start_with(host):
    put(host, CONFIG, '{"nosuch": 1}')
    refused(host, f"dockerd does not start with {CONFIG} as it is", "nosuch")
    put(host, CONFIG, "{broken")
    refused(host, f"{CONFIG} is no valid configuration")


def test_what_packages_would_take_away(host):
    """A package of theirs that holds on to the toolkit as it is."""
    control = "Package: site-monitoring\nVersion: 1\nArchitecture: all\nMaintainer: site <site@localhost>\nDescription: theirs\n"
    put(host, "/opt/theirs/DEBIAN/control", control + "Depends: nvidia-container-toolkit (= 1.20.0-1)\n")
    host.check_output("dpkg-deb -Znone -b /opt/theirs /opt/theirs.deb && dpkg -i /opt/theirs.deb")
    try:
        refused(
            host,
            # apt tells because of whom or not, by the order in which it takes them away.
            "nvidia-container-toolkit=1.19.1-1 would remove site-monitoring (1",
            nvidia_container_toolkit_version="1.19.1-1",
        )
    finally:
        host.check_output("dpkg --purge site-monitoring; rm -rf /opt/theirs /opt/theirs.deb")
