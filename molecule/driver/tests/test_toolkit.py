# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container toolkit and its CDI specification: kept fresh, kept in step, and no GPU lost on the way."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import ask, eventually, machine, play

pytestmark = pytest.mark.usefixtures("journal")

HOST = "gpu01"
RUNTIME, HAND_MADE = "/var/run/cdi/nvidia.yaml", "/etc/cdi/nvidia.yaml"
VERSION, BEFORE = "1.20.0-1", "1.19.1-1"
PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
LIST = "/etc/apt/sources.list.d/nvidia-container-toolkit.list"


def run(*args, **toolkit):
    """host.yml with variables of nvidia_container_toolkit, without their prefix."""
    extra = {f"nvidia_container_toolkit_{key}": value for key, value in toolkit.items()}
    return play("host", *args, limit=HOST, extra=extra)


def changes(**toolkit):
    """How many tasks changed something in a run that must go well."""
    done = run(**toolkit)
    assert done.returncode == 0, done.stdout
    return int(re.search(rf"^{HOST} .*\bchanged=(\d+)", done.stdout, re.MULTILINE).group(1))


def refused(*told, **toolkit):
    """The play fails and says TOLD."""
    done = run(**toolkit)
    assert done.returncode == 2, done.stdout
    missing = [text for text in told if text not in done.stdout]
    assert not missing, f"not told: {missing}\n{done.stdout}"


def specification(host):
    """The specification of the lab's nvidia-ctk, which is JSON."""
    return json.loads(host.check_output(f"cat {RUNTIME}"))


WRITER = "import pathlib, sys; path = pathlib.Path(sys.argv[1]); path.parent.mkdir(exist_ok=True); path.write_text(sys.argv[2])"


def write(host, path, value):
    """Puts a specification there."""
    code, output = machine(HOST).exec_run(["python3", "-c", WRITER, path, json.dumps(value)])
    assert code == 0, output
    assert json.loads(host.check_output(f"cat {path}")) == value


def loaded(host):
    """Version of the driver in the kernel."""
    return re.search(r"Module for \S+\s+(\S+)", host.check_output("cat /proc/driver/nvidia/version")).group(1)


def versions(host):
    """Versions of the toolkit's packages."""
    return {name: host.check_output(f"dpkg-query -W -f '${{Version}}' {name}") for name in PACKAGES}


def image(host):
    """The image of the service, which is on the host."""
    return host.check_output("docker inspect --format '{{.Config.Image}}' nim-llama")


@pytest.fixture
def container(host):
    """A container with the first GPU, and nothing else of this collection."""
    host.run("docker rm --force toolkit-test")
    host.check_output(
        f"docker run --detach --name toolkit-test --device nvidia.com/gpu=0 --entrypoint sleep {image(host)} 600"
    )
    yield "toolkit-test"
    host.run("docker rm --force toolkit-test")


def access(host, container):
    """What a container sees of its GPU: the list, and what the kernel answers to who opens the node."""
    seen = host.run(f"docker exec {container} nvidia-smi -L")
    opened = host.run(f"docker exec {container} sh -c 'exec 3< /dev/nvidia0'")
    return seen.rc, seen.stdout, opened.rc, opened.stderr


def test_nothing_to_do_changes_nothing(host):
    assert changes() == 0
    assert versions(host) == dict.fromkeys(PACKAGES, VERSION)
    assert set(PACKAGES) <= set(host.check_output("apt-mark showhold").split())


def test_pain_4_specification_of_another_driver_is_refreshed_once(host):
    old = json.loads(json.dumps(specification(host)).replace(loaded(host), "550.54.15"))
    write(host, RUNTIME, old)
    assert changes() == 1
    assert f"libcuda.so.{loaded(host)}" in host.check_output(f"cat {RUNTIME}")
    assert "550.54.15" not in host.check_output(f"cat {RUNTIME}")
    assert changes() == 0


def test_pain_4_specification_that_lacks_a_device_is_refreshed_once(host):
    spec = specification(host)
    uuid = host.check_output("nvidia-smi --query-gpu=uuid --format=csv,noheader").splitlines()[0]
    write(host, RUNTIME, {**spec, "devices": [item for item in spec["devices"] if item["name"] not in ("0", uuid)]})
    assert changes() == 1
    assert specification(host)["devices"] == spec["devices"]
    assert changes() == 0


def test_pain_5_no_specification_after_a_boot(host):
    host.check_output(f"systemctl stop nvidia-cdi-refresh.service; rm {RUNTIME}")
    assert changes() == 1
    assert host.file(RUNTIME).exists
    assert changes() == 0


def test_pain_4_old_hand_made_specification_is_removed(host):
    write(host, HAND_MADE, json.loads(json.dumps(specification(host)).replace(loaded(host), "550.54.15")))
    assert changes() == 1
    assert not host.file(HAND_MADE).exists
    assert host.file(RUNTIME).exists
    assert changes() == 0


def test_hand_written_specification_of_another_kind_is_kept(host):
    node = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    camera = {
        "cdiVersion": "0.5.0",
        "kind": "example.com/camera",
        "devices": [{"name": "0", "containerEdits": {"deviceNodes": [node]}}],
    }
    write(host, HAND_MADE, camera)
    try:
        assert changes() == 0
        assert json.loads(host.check_output(f"cat {HAND_MADE}")) == camera
    finally:
        host.run(f"rm {HAND_MADE}")


def test_pain_1_daemon_reload_does_not_cost_a_container_its_gpu(host, container):
    before = access(host, container)
    assert before[0] == 0 and before[1].startswith("GPU 0: NVIDIA H200")
    host.check_output("systemctl daemon-reload")
    # Any update of a container's scope makes systemd apply its own idea of the devices again, as a reload does.
    host.check_output(
        f"systemctl set-property --runtime docker-$(docker inspect --format '{{{{.Id}}}}' {container}).scope CPUWeight=100 || true"
    )
    # The lab's own containers may not open these nodes anyway: that the answers are the same is what can be seen here.
    assert access(host, container) == before
    assert ask(HOST)


def test_refresh_does_not_cost_a_container_its_gpu(host, container):
    before = access(host, container)
    started = host.check_output("docker inspect --format '{{.State.StartedAt}}' nim-llama")
    host.check_output(f"rm {RUNTIME}")
    assert changes() == 1
    assert access(host, container) == before
    assert host.check_output("docker inspect --format '{{.State.StartedAt}}' nim-llama") == started


def test_containers_list_exactly_the_gpus_they_were_given(host):
    assert changes(smoke=True, smoke_image=image(host)) == 0


def test_smoke_test_finds_a_wrong_specification(host):
    spec = specification(host)
    uuid = host.check_output("nvidia-smi --query-gpu=uuid --format=csv,noheader")
    for item in spec["devices"]:
        if item["name"] == "0":
            item["containerEdits"] = {"deviceNodes": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}]}
    write(host, RUNTIME, spec)
    try:
        # The stand-in of nvidia-smi opens its device, as the real one does.
        told = "nvidia.com/gpu=0: the container failed (No devices were found)", f"wanted it to list {uuid}"
        refused(*told, smoke=True, smoke_image=image(host))
    finally:
        host.check_output("systemctl restart nvidia-cdi-refresh.service")
    assert changes(smoke=True, smoke_image=image(host)) == 0


def test_pain_10_held_packages_go_down_and_up_in_step(host):
    assert changes(version=BEFORE) > 0
    assert versions(host) == dict.fromkeys(PACKAGES, BEFORE)
    assert set(PACKAGES) <= set(host.check_output("apt-mark showhold").split())
    assert changes(version=BEFORE) == 0
    assert changes() > 0
    assert versions(host) == dict.fromkeys(PACKAGES, VERSION)
    assert set(PACKAGES) <= set(host.check_output("apt-mark showhold").split())
    assert changes() == 0
    assert ask(HOST)


def test_pain_2_only_the_missing_hold_is_set(host):
    host.check_output("apt-mark unhold nvidia-container-toolkit")
    assert changes() == 1
    assert set(PACKAGES) <= set(host.check_output("apt-mark showhold").split())
    assert changes() == 0


def test_pain_9_a_second_list_of_the_repository_is_removed(host):
    host.check_output(f"echo 'deb [signed-by=/usr/share/keyrings/other.gpg] http://apt.lab:8080/amd64 /' > {LIST}")
    assert "Conflicting values set for option Signed-By" in host.run("LC_ALL=C apt-get update").stderr
    assert changes() == 1
    assert not host.file(LIST).exists
    assert host.run("apt-get update").rc == 0
    assert changes() == 0


def test_pain_8_a_key_of_another_fingerprint_is_not_trusted(host):
    key = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
    before = host.check_output(f"sha256sum {key}")
    refused("the key has the fingerprint", "0" * 40, "was not changed", repository_key_fingerprint="0" * 40)
    assert host.check_output(f"sha256sum {key}") == before
    assert changes() == 0


def test_bad_version_is_told_before_anything_is_touched(host):
    refused("nvidia_container_toolkit_version is 1.20", "1.20.0-1", version="1.20")
    assert changes() == 0


def test_version_that_the_repository_does_not_have(host):
    refused("1.2.3-1", "apt-cache madison nvidia-container-toolkit", version="1.2.3-1")
    assert versions(host) == dict.fromkeys(PACKAGES, VERSION)
    assert changes() == 0


def test_unreachable_repository_is_told_and_healed(host):
    refused(
        "http://apt.lab:9/amd64",
        "nvidia_container_toolkit_repository_url",
        version=BEFORE,
        repository_url="http://apt.lab:9/amd64",
    )
    assert versions(host) == dict.fromkeys(PACKAGES, VERSION)
    assert ask(HOST)
    # The repository is written back.
    assert changes() == 1
    assert changes() == 0


def test_comes_back_after_a_reboot(host):
    machine(HOST).restart(timeout=180)
    eventually(lambda: host.run("true").rc == 0)
    eventually(lambda: ask(HOST), 90)
    assert host.file(RUNTIME).exists
    assert changes() == 0
