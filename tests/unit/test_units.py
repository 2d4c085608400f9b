# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit files of both engines, rendered as the role renders them."""

from __future__ import annotations

import configparser
import pathlib
import re

import jinja2
import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _host
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import resolve_services

ROLE = pathlib.Path(__file__).parents[2] / "roles/nim_service"
IMAGE = "nvcr.io/nim/nvidia/parakeet-1-1b-ctc-en-us"
REFERENCE = f"{IMAGE}@sha256:{'6b' * 32}"
DEFAULTS = {
    "cache_root": "/srv/nim",
    "config_dir": "/etc/nim",
    "state_dir": "/var/lib/nim/services",
    "bind_address": "::1",
    "cache_size_gb": 0,
}
SPEC = {
    "name": "asr",
    "image": IMAGE,
    "tag": "1.5.0",
    "gpus": [0, 1],
    "port": 9000,
    "grpc_port": 50051,
    "stop_timeout": 90,
    "ulimits": ["memlock=-1", "nofile=65536:131072"],
}
TEMPLATES = {"docker": "nim.service.j2", "podman": "nim.container.j2"}


def service(engine, **changes):
    """The resolved service."""
    return resolve_services([{**SPEC, **changes}], {"gpus": []}, {**DEFAULTS, "engine": engine})[0]


def unit(engine, **changes):
    """The unit file, and the service that it is of."""
    item = service(engine, **changes)
    environment = jinja2.Environment(
        trim_blocks=True, autoescape=jinja2.select_autoescape(), loader=jinja2.FileSystemLoader(ROLE / "templates")
    )
    values = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    text = environment.get_template(TEMPLATES[engine]).render(
        {**values, "__nim_service_item": item, "__nim_service_image": REFERENCE}
    )
    return text, item


def section(text, name):
    """Keys of a section with their values, in order."""
    body = text.split(f"[{name}]\n")[1].split("\n[")[0]
    return [tuple(line.split("=", 1)) for line in body.splitlines() if "=" in line and line[0] not in "# "]


def test_container_of_podman():
    text, item = unit("podman")
    assert section(text, "Container") == [
        ("ContainerName", "nim-asr"),
        ("Image", REFERENCE),
        ("Pull", "never"),
        ("AddDevice", "nvidia.com/gpu=0"),
        ("AddDevice", "nvidia.com/gpu=1"),
        ("Ulimit", "memlock=-1"),
        ("Ulimit", "nofile=65536:131072"),
        ("ShmSize", "8g"),
        ("EnvironmentFile", "/etc/nim/asr.env"),
        ("Volume", "/srv/nim/asr:/opt/nim/.cache"),
        ("PublishPort", "[::1]:9000:9000"),
        ("PublishPort", "[::1]:50051:50051"),
        ("Label", f"{_host.SERVICE_LABEL}=asr"),
        ("Label", f"{_host.CONFIG_HASH_LABEL}={item['config_hash']}"),
        ("RunInit", "true"),
        ("NoNewPrivileges", "true"),
        ("SecurityLabelDisable", "true"),
        ("PodmanArgs", "--pids-limit=0 --stop-timeout=90"),
        ("LogDriver", "passthrough"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"capabilities": ["SYS_NICE", "IPC_LOCK"]},
        {"capabilities": None},
        {"read_only": True},
        {"cache_path": "/mnt/nfs/asr", "cache_read_only": True},
    ],
    ids=["usual", "capabilities", "capabilities of the engine", "read-only root", "cache of others"],
)
def test_both_engines_give_the_container_the_same(changes):
    """Whatever docker run is told of devices, limits, rights, files, ports and labels, Podman is told too."""
    docker, item = unit("docker", **changes)
    podman = section(unit("podman", **changes)[0], "Container")
    assert ("--read-only" in docker) == (("ReadOnly", "true") in podman)
    keys = {
        "device": "AddDevice",
        "ulimit": "Ulimit",
        "cap-drop": "DropCapability",
        "cap-add": "AddCapability",
        "tmpfs": "Tmpfs",
        "shm-size": "ShmSize",
        "env-file": "EnvironmentFile",
        "volume": "Volume",
        "publish": "PublishPort",
        "label": "Label",
    }
    command = docker.split("ExecStart=")[1].split("Restart=")[0].replace("--read-only ", "")
    given = re.findall(r"--([a-z-]+) (\S+)", command)
    assert {name for name, _value in given} <= set(keys)
    assert {(keys[name], value) for name, value in given if item["config_hash"] not in value} == {
        (key, value) for key, value in podman if key in keys.values() and not value.startswith(_host.CONFIG_HASH_LABEL)
    }


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("Unit", "Description Documentation StartLimitIntervalSec StartLimitBurst"),
        (
            "Service",
            "Restart RestartSec RestartSteps RestartMaxDelaySec KillMode TimeoutStopSec SyslogIdentifier LogRateLimitBurst",
        ),
        ("Install", "WantedBy"),
    ],
)
def test_both_engines_give_systemd_the_same(name, keys):
    docker, podman = (dict(section(unit(engine)[0], name)) for engine in TEMPLATES)
    assert {key: docker[key] for key in keys.split()} == {key: podman[key] for key in keys.split()}


@pytest.mark.parametrize("gpu_shared", [False, True])
def test_both_engines_wait_for_gpus_that_are_the_services_own(gpu_shared):
    """And hear who else is on those that they share."""
    changes = {"gpu_shared": True, "env": {"NIM_GPU_MEM_FRACTION": "0.4"}} if gpu_shared else {}
    waits = [
        re.findall(r"^ExecStartPre=[-+]+(.*nim-gpu-wait.*)$", unit(engine, **changes)[0], re.MULTILINE)
        for engine in TEMPLATES
    ]
    assert waits == [[f"/usr/local/libexec/nim-gpu-wait {0 if gpu_shared else 60} 0 1"]] * 2


def test_the_wait_of_both_engines_may_ask_nvidia_smi():
    """PrivateDevices closes devices by the cgroup, which no prefix of a command lifts; what is named opens them again."""
    docker, podman = (section(unit(engine)[0], "Service") for engine in TEMPLATES)
    assert ("PrivateDevices", "yes") in docker
    assert [value for key, value in docker if key == "DeviceAllow"] == ["char-nvidia* rw", "char-195 rw"]
    # Podman's container is in the unit: whatever is not named would be closed to it.
    assert not {"PrivateDevices", "DevicePolicy", "DeviceAllow"} & {key for key, _value in podman}
    for known in (docker, podman):
        # The wait, and nvidia-smi's patience after it.
        assert int(dict(known)["TimeoutStartSec"]) >= 60 + 2 * 15


def test_other_units_of_ours_that_close_devices_run_nothing_that_needs_one():
    """Whoever adds nvidia-smi to one of them must open its devices too."""
    files = ROLE / "files"
    closing = [path for path in files.iterdir() if "PrivateDevices" in path.read_text()]
    assert [path.name for path in closing] == ["nim-watchdog@.service"]
    assert "nvidia-smi" not in (files / "nim-watchdog").read_text()


def test_key_of_a_service_that_serves_with_it():
    """The units name its file, and nothing of it."""
    for engine in TEMPLATES:
        assert "/etc/nim/asr.key" not in unit(engine)[0]
    assert "--key-file /etc/nim/asr.key" in unit("docker", key_at_runtime=True)[0]
    podman = unit("podman", key_at_runtime=True)[0]
    assert ("Secret", "nim-asr,type=env,target=NGC_API_KEY") in section(podman, "Container")
    assert ("ExecStartPre", "/usr/local/libexec/nim-run --secret nim-asr /etc/nim/asr.key") in section(
        podman, "Service"
    )


def test_unit_of_podman_wants_no_docker():
    text, _item = unit("podman")
    assert "docker" not in text.lower().replace("as docker", "").replace("and docker sets", "")
    # systemd and Podman's generator read what Python reads, but for keys that come more than once.
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(text)
    assert parser.sections() == ["Unit", "Container", "Service", "Install"]


def test_both_engines_look_before_each_start_whether_the_files_are_of_one_deployment():
    for engine, prefix in (("docker", "+"), ("podman", "")):
        text, item = unit(engine)
        first = next(value for key, value in section(text, "Service") if key == "ExecStartPre")
        # It writes beside the environment and has systemd read its units, which the sandbox of Docker's unit forbids.
        assert first == f"{prefix}/usr/local/libexec/nim-settle asr {item['config_hash']}"
