# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands and files say, read from recordings of real hosts and from texts in the form that they have there."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _host

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"


def recording(path):
    """Text of a recording."""
    return (FIXTURES / path).read_text()


# -- operating system --------------------------------------------------------------------------------------------------

DEBIAN_13 = """\
PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION="13 (trixie)"
VERSION_CODENAME=trixie
DEBIAN_VERSION_FULL=13.1
ID=debian
HOME_URL="https://www.debian.org/"
SUPPORT_URL="https://www.debian.org/support"
BUG_REPORT_URL="https://bugs.debian.org/"
"""
DEBIAN_12 = """\
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
HOME_URL="https://www.debian.org/"
"""
DEBIAN_SID = """\
PRETTY_NAME="Debian GNU/Linux forky/sid"
NAME="Debian GNU/Linux"
VERSION_CODENAME=forky
ID=debian
"""
UBUNTU_24 = """\
PRETTY_NAME="Ubuntu 24.04.3 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.3 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=noble
LOGO=ubuntu-logo
"""
UBUNTU_22 = """\
PRETTY_NAME="Ubuntu 22.04.5 LTS"
NAME="Ubuntu"
VERSION_ID="22.04"
VERSION="22.04.5 LTS (Jammy Jellyfish)"
VERSION_CODENAME=jammy
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=jammy
"""
ROCKY_9 = """\
NAME="Rocky Linux"
VERSION="9.6 (Blue Onyx)"
ID="rocky"
ID_LIKE="rhel centos fedora"
VERSION_ID="9.6"
PLATFORM_ID="platform:el9"
PRETTY_NAME="Rocky Linux 9.6 (Blue Onyx)"
ANSI_COLOR="0;32"
"""


@pytest.mark.parametrize(
    ("text", "distribution", "version", "major", "codename"),
    [
        pytest.param(DEBIAN_13, "Debian", "13", "13", "trixie", id="debian-13"),
        pytest.param(DEBIAN_12, "Debian", "12", "12", "bookworm", id="debian-12"),
        pytest.param(DEBIAN_SID, "Debian", "", "", "forky", id="debian-without-version"),
        pytest.param(UBUNTU_24, "Ubuntu", "24.04", "24", "noble", id="ubuntu-24.04"),
        pytest.param(UBUNTU_22, "Ubuntu", "22.04", "22", "jammy", id="ubuntu-22.04"),
        pytest.param(ROCKY_9, "Rocky", "9.6", "9", None, id="rocky-9"),
        pytest.param("ID='rhel'\nVERSION_ID='10.0'\n", "RedHat", "10.0", "10", None, id="rhel-in-single-quotes"),
        pytest.param("ID=almalinux\nVERSION_ID=9.4\n", "AlmaLinux", "9.4", "9", None, id="almalinux"),
        pytest.param(
            "# ID=debian\n\nID=opensuse-leap\nVERSION_ID=15.6\n", "Opensuse-leap", "15.6", "15", None, id="comment"
        ),
        pytest.param("", "Unknown", "", "", None, id="no-file"),
    ],
)
def test_os_release(text, distribution, version, major, codename):
    assert _host.parse_os_release(text) == {
        "distribution": distribution,
        "version": version,
        "major": major,
        "codename": codename,
    }


@pytest.mark.parametrize(
    ("text", "total", "available"),
    [
        pytest.param(
            "MemTotal:       2113472124 kB\nMemFree:        1994562540 kB\nMemAvailable:   2051987000 kB\nHugePages_Total:       0\n",
            2113472124 * 1024,
            2051987000 * 1024,
            id="h200",
        ),
        pytest.param("MemTotal:       4028440 kB\n", 4028440 * 1024, None, id="without-available"),
        pytest.param("", None, None, id="no-file"),
    ],
)
def test_meminfo(text, total, available):
    assert _host.parse_meminfo(text) == {"total": total, "available": available}


# -- GPUs --------------------------------------------------------------------------------------------------------------


def test_nvidia_smi_of_one_h200():
    assert _host.parse_nvidia_smi(recording("h200/smi-q-x.xml")) == {
        "driver_version": "580.159.04",
        "cuda_version": "13.0",
        "gpus": [
            {
                "index": 0,
                "uuid": "GPU-3a7332dc-2d69-133b-989c-54768b2e9fed",
                "name": "NVIDIA H200",
                "architecture": "Hopper",
                "compute_capability": "9.0",
                "pci_bus_id": "00000000:00:06.0",
                "device_id": "2335",
                "memory_total_mib": 143771,
                "memory_used_mib": 0,
                "memory_free_mib": 143156,
                "ecc_enabled": True,
                "mig_enabled": False,
                "mig_devices": [],
                "fabric_state": None,
                "fabric_status": None,
                "processes": [],
            }
        ],
    }


def test_nvidia_smi_of_two_idle_gpus():
    gpus = _host.parse_nvidia_smi(recording("h200-x2/idle.xml"))["gpus"]
    assert [(gpu["index"], gpu["uuid"], gpu["pci_bus_id"]) for gpu in gpus] == [
        (0, "GPU-3db224f2-8b7b-3d0b-797e-4fe0482b468b", "00000000:00:06.0"),
        (1, "GPU-caeb3268-9936-df2a-bc13-35e47524eda0", "00000000:00:07.0"),
    ]
    assert [gpu["processes"] for gpu in gpus] == [[], []]


def test_nvidia_smi_of_two_busy_gpus():
    gpus = _host.parse_nvidia_smi(recording("h200-x2/busy.xml"))["gpus"]
    assert [(gpu["memory_used_mib"], gpu["memory_free_mib"], gpu["processes"]) for gpu in gpus] == [
        (41487, 101670, [{"pid": 571, "name": "python3", "used_mib": 41478}]),
        (1011, 142146, [{"pid": 571, "name": "python3", "used_mib": 1002}]),
    ]


def test_nvidia_smi_of_a_gpu_that_serves():
    """vLLM behind a NIM on an H200."""
    (gpu,) = _host.parse_nvidia_smi(recording("h200-vllm/smi-q-x-busy.xml"))["gpus"]
    assert (gpu["memory_total_mib"], gpu["memory_used_mib"], gpu["memory_free_mib"]) == (143771, 131715, 11442)
    assert gpu["processes"] == [{"pid": 3411, "name": "VLLM::EngineCore", "used_mib": 131706}]


@pytest.mark.parametrize(("told", "pid"), [("3411", 3411), ("[N/A]", 0), ("", 0)])
def test_nvidia_smi_of_a_process_without_a_number(told, pid):
    text = recording("h200-vllm/smi-q-x-busy.xml").replace("<pid>3411<", f"<pid>{told}<")
    assert _host.parse_nvidia_smi(text)["gpus"][0]["processes"][0]["pid"] == pid


def test_nvidia_smi_of_a_process_on_a_part():
    text = recording("h200-vllm/smi-q-x-busy.xml")
    text = text.replace(
        "<gpu_instance_id>N/A</gpu_instance_id>\n\t\t\t\t<compute", "<gpu_instance_id>2</gpu_instance_id><compute"
    )
    assert _host.parse_nvidia_smi(text)["gpus"][0]["processes"][0]["gpu_instance"] == "2"


def test_nvidia_smi_of_unified_memory():
    """GB10 and its like share the host's memory and say so."""
    text = recording("h200-x2/busy.xml")
    for value in ("143771 MiB", "41487 MiB", "101670 MiB", "41478 MiB"):
        text = text.replace(value, "[N/A]")
    gpu = _host.parse_nvidia_smi(text)["gpus"][0]
    assert [gpu[f"memory_{name}_mib"] for name in ("total", "used", "free")] == [None, None, None]
    assert gpu["processes"] == [{"pid": 571, "name": "python3", "used_mib": None}]


def test_nvidia_smi_of_a_gpu_in_mig_mode():
    text = recording("h200/smi-q-x.xml").replace("<current_mig>Disabled<", "<current_mig>Enabled<")
    assert [gpu["mig_enabled"] for gpu in _host.parse_nvidia_smi(text)["gpus"]] == [True]


MIG_DEVICES = """\
<mig_devices>
  <mig_device><index>0</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>0</compute_instance_id>
    <fb_memory_usage><total>40448 MiB</total><used>298 MiB</used><free>40151 MiB</free></fb_memory_usage></mig_device>
  <mig_device><index>1</index><uuid>MIG-0c5a</uuid><gpu_instance_id>2</gpu_instance_id></mig_device>
</mig_devices>"""


def test_nvidia_smi_of_mig_devices():
    """Most drivers leave out the UUID and all leave out the profile; CDI names them by their numbers."""
    text = recording("h200-x2/idle.xml")
    first, second = re.split(r"(?=<gpu id=\"00000000:00:07)", text)
    text = first + re.sub(r"<mig_devices>.*?</mig_devices>", MIG_DEVICES, second, flags=re.DOTALL)
    gpus = _host.parse_nvidia_smi(text)["gpus"]
    assert [gpu["mig_devices"] for gpu in gpus] == [
        [],
        [
            {"uuid": None, "name": "1:0", "memory_total_mib": 40448, "memory_used_mib": 298, "gpu_instance": "1"},
            {"uuid": "MIG-0c5a", "name": "1:1", "memory_total_mib": None, "memory_used_mib": None, "gpu_instance": "2"},
        ],
    ]


def test_nvidia_smi_of_a_fabric():
    """Pain 7: a GPU that is no member of its fabric yet answers CUDA with 802."""
    text = recording("h200-x2/idle.xml")
    waiting = text.replace("<state>Completed</state>", "<state>In Progress</state>")
    waiting = waiting.replace("<status>Success</status>", "<status>N/A</status>")
    for report, told in ((text, ("Completed", "Success")), (waiting, ("In Progress", None))):
        gpus = _host.parse_nvidia_smi(report)["gpus"]
        assert {(gpu["fabric_state"], gpu["fabric_status"]) for gpu in gpus} == {told}


@pytest.mark.parametrize(("told", "enabled"), [("Enabled", True), ("Disabled", False), ("N/A", None), ("[N/A]", None)])
def test_nvidia_smi_of_ecc(told, enabled):
    text = recording("h200/smi-q-x.xml").replace("<current_ecc>Enabled<", f"<current_ecc>{told}<")
    assert _host.parse_nvidia_smi(text)["gpus"][0]["ecc_enabled"] is enabled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        recording("h200/smi-q-x.xml")[:9000],
        recording("h200/smi.txt"),
        "<html><body>It works!</body></html>",
    ],
    ids=["nothing", "no-driver", "cut-off", "table", "another-document"],
)
def test_nvidia_smi_that_is_no_report(text):
    with pytest.raises(ValueError, match="not a report of nvidia-smi -q -x: "):
        _host.parse_nvidia_smi(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param(recording("h200/proc.txt"), "580.159.04", id="open-modules"),
        pytest.param(recording("h200-x2/host-and-list.txt"), "580.159.04", id="open-modules-two-gpus"),
        pytest.param(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
            "535.104.05",
            id="closed-modules",
        ),
        pytest.param(
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  570.86  Release Build\n",
            "570.86",
            id="two-numbers",
        ),
        pytest.param("", None, id="no-driver"),
        pytest.param("GCC version:  gcc version 12.2.0\n", None, id="without-the-line"),
    ],
)
def test_driver_version(text, version):
    assert _host.parse_driver_version(text) == version


# -- CDI ---------------------------------------------------------------------------------------------------------------

CDI_JSON = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
        {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
    ],
    "containerEdits": {
        "mounts": [
            {
                "hostPath": "/usr/lib/x86_64-linux-gnu/libcuda.so.535.104.05",
                "containerPath": "/usr/lib/x86_64-linux-gnu/libcuda.so.535.104.05",
                "options": ["ro", "nosuid", "nodev", "bind"],
            }
        ]
    },
}


def test_cdi_spec_recorded_from_nvidia_ctk():
    """The driver's libraries are in /usr/local/nvidia/lib64 there, which no distribution does."""
    spec = _host.parse_cdi_spec(recording("h200-x2/cdi-nvidia.yaml"))
    listed = recording("h200-x2/cdi-list.txt").splitlines()[1:]
    assert [f"{spec['kind']}={name}" for name in spec["devices"]] == listed
    assert len(spec["devices"]) == 5
    assert spec["driver_version"] == "580.159.04"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(json.dumps(CDI_JSON), ("nvidia.com/gpu", ["0", "all"], "535.104.05"), id="json"),
        pytest.param(
            json.dumps(CDI_JSON, indent=2), ("nvidia.com/gpu", ["0", "all"], "535.104.05"), id="json-of-many-lines"
        ),
        pytest.param(
            "cdiVersion: 0.3.0\ncontainerEdits:\n  mounts:\n  - containerPath: /usr/lib64/libnvidia-ml.so.550.54.15\n"
            'devices:\n- containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia0\n  name: "0"\n'
            "- containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia0\n  name: all\nkind: nvidia.com/gpu\n",
            ("nvidia.com/gpu", ["0", "all"], "550.54.15"),
            id="yaml-with-sorted-keys",
        ),
        pytest.param(
            'cdiVersion: 0.6.0\nkind: amd.com/gpu\ndevices:\n- name: "0"\n  containerEdits: {}\n',
            ("amd.com/gpu", ["0"], None),
            id="another-vendor",
        ),
        pytest.param(
            "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices: []\n", ("nvidia.com/gpu", [], None), id="no-devices"
        ),
        pytest.param("", (None, [], None), id="empty-file"),
        pytest.param('{"kind": "nvidia.com/gpu", "devices": [{"na', (None, [], None), id="cut-off-json"),
    ],
)
def test_cdi_spec(text, expected):
    spec = _host.parse_cdi_spec(text)
    assert (spec["kind"], spec["devices"], spec["driver_version"]) == expected


def test_libraries_of_one_digit_are_no_driver_version():
    assert _host.parse_cdi_spec("kind: nvidia.com/gpu\nhostPath: /usr/lib64/libcuda.so.1\n")["driver_version"] is None


CTK_SPEC = recording("h200-x2/cdi-nvidia.yaml")


@pytest.mark.parametrize(
    ("text", "writer"),
    [(CTK_SPEC, "nvidia-ctk"), (re.sub(r"nvidia-(ctk|cdi-hook)", "hook", CTK_SPEC), None), ("", None)],
    ids=["nvidia-ctk", "by-hand", "empty"],
)
def test_who_wrote_a_cdi_specification(text, writer):
    assert _host.cdi_generator(text) == writer


def test_duplicate_cdi_devices():
    """Pain 4: a specification made by hand beside the one that is refreshed."""
    spec = {"kind": "nvidia.com/gpu", "devices": ["0", "all"]}
    other = {"kind": "nvidia.com/gpu", "devices": ["0", "1", "0"]}
    foreign = {"kind": "amd.com/gpu", "devices": ["all"]}
    assert _host.duplicate_devices([spec, other, foreign]) == ["nvidia.com/gpu=0"]
    assert _host.duplicate_devices([spec]) == []
    assert _host.duplicate_devices([]) == []


# -- sockets -----------------------------------------------------------------------------------------------------------

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 154313 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20731 1 0000000000000000 100 0 0 10 0
   2: 0401000A:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 154399 1 0000000000000000 100 0 0 10 0
   3: 0401000A:0016 0201000A:D1E6 01 00000000:00000000 02:000A7214 00000000     0        0 98311 2 0000000000000000 20 4 31 10 -1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20733 1
   1: 00000000000000000000000001000000:1F40 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 154315 1
   2: 0000000000000000FFFF00000100007F:2328 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   107        0 33012 1
   3: 000000FD000000000000000007000000:1F42 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33013 1
   4: 000080FE00000000FF005450654A8AFE:1F40 000080FE00000000FF005450614A8AFE:C350 01 00000000:00000000 00:00000000 00000000     0        0 40001 1
"""


def test_listeners():
    assert _host.parse_listeners(TCP) == [
        {"address": "127.0.0.1", "port": 8000, "inode": "154313"},
        {"address": "0.0.0.0", "port": 22, "inode": "20731"},  # noqa: S104 - what sshd does
        {"address": "10.0.1.4", "port": 8001, "inode": "154399"},
    ]


def test_listeners_of_ipv6():
    listeners = _host.parse_listeners(TCP6)
    assert [(item["address"], item["port"], item["inode"]) for item in listeners] == [
        ("::", 22, "20733"),
        ("::1", 8000, "154315"),
        ("127.0.0.1", 9000, "33012"),
        ("fd00::7", 8002, "33013"),
    ]


@pytest.mark.parametrize(
    "text", ["", TCP.splitlines()[0] + "\n", TCP[: TCP.index("0A") + 2]], ids=["no-file", "nothing-listens", "cut-off"]
)
def test_no_listeners(text):
    assert _host.parse_listeners(text) == []


# -- systemd and packages ----------------------------------------------------------------------------------------------


def test_systemctl_show():
    text = """\
Id=docker.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
ActiveEnterTimestampMonotonic=9021345

Result=exit-code
NRestarts=3
Id=nim-llama.service
Description=NVIDIA NIM llama (nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6) a=b
LoadState=loaded
ActiveState=failed

Id=nim-gone.service
LoadState=not-found
ActiveState=inactive
UnitFileState=
"""
    units = _host.parse_systemctl_show(text)
    assert list(units) == ["docker.service", "nim-llama.service", "nim-gone.service"]
    assert units["docker.service"]["ActiveEnterTimestampMonotonic"] == "9021345"
    assert units["nim-llama.service"]["NRestarts"] == "3"
    assert units["nim-llama.service"]["Description"].endswith(":1.8.6) a=b")
    assert units["nim-gone.service"] == {
        "Id": "nim-gone.service",
        "LoadState": "not-found",
        "ActiveState": "inactive",
        "UnitFileState": "",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "System has not been booted with systemd as init system (PID 1). Can't operate.\n",
        "LoadState=loaded\nActiveState=active\n",
    ],
    ids=["nothing", "empty-lines", "no-systemd", "block-without-id"],
)
def test_systemctl_show_without_units(text):
    assert _host.parse_systemctl_show(text) == {}


def test_packages():
    text = """\
ii  containerd.io 1.7.27-1
hi  docker-ce 5:28.3.3-1~debian.13~trixie
rc  docker.io 26.1.5+dfsg1-9
un  docker-cli
iU  nvidia-container-toolkit 1.20.0-1
iF  nvidia-container-toolkit-base 1.20.0-1
ii  libnvidia-container1 1.20.0-1
"""
    assert _host.parse_packages(text) == {
        "containerd.io": "1.7.27-1",
        "docker-ce": "5:28.3.3-1~debian.13~trixie",
        "libnvidia-container1": "1.20.0-1",
    }


def test_no_packages():
    assert _host.parse_packages("") == {}


# -- Docker ------------------------------------------------------------------------------------------------------------

DOCKER_INFO = {
    "ID": "2b4e7d5e-8a5b-4b7f-9f3a-0d5a4c0e9a11",
    "Containers": 1,
    "Driver": "overlay2",
    "LiveRestoreEnabled": True,
    "DockerRootDir": "/var/lib/docker",
    "ServerVersion": "26.1.5+dfsg1",
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "ServerErrors": None,
}
DEAD_DAEMON = {
    "ID": "",
    "Containers": 0,
    "LiveRestoreEnabled": False,
    "DockerRootDir": "",
    "ServerVersion": "",
    "CDISpecDirs": None,
    "ServerErrors": [
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    ],
    "ClientInfo": {"Debug": False, "Version": "26.1.5+dfsg1", "Context": "default"},
}


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        pytest.param(
            DOCKER_INFO,
            {
                "version": "26.1.5+dfsg1",
                "root_dir": "/var/lib/docker",
                "live_restore": True,
                "cdi_spec_dirs": ["/etc/cdi", "/var/run/cdi"],
            },
            id="with-cdi",
        ),
        pytest.param(
            {"ServerVersion": "20.10.24+dfsg1", "DockerRootDir": "/data/docker", "LiveRestoreEnabled": False},
            {"version": "20.10.24+dfsg1", "root_dir": "/data/docker", "live_restore": False, "cdi_spec_dirs": []},
            id="older-than-cdi",
        ),
        pytest.param({**DOCKER_INFO, "CDISpecDirs": None}, {"cdi_spec_dirs": []}, id="cdi-switched-off"),
        pytest.param(DEAD_DAEMON, {}, id="dead-daemon"),
    ],
)
def test_docker_info(info, expected):
    found = _host.parse_docker_info(json.dumps(info))
    assert {key: found[key] for key in expected} == expected
    assert bool(found) is bool(expected)


@pytest.mark.parametrize("text", ["", "Cannot connect to the Docker daemon", "{"], ids=["nothing", "words", "cut-off"])
def test_docker_info_without_json(text):
    assert _host.parse_docker_info(text) == {}


CONTAINER = {
    "Id": "c1f7",
    "Name": "/nim-llama",
    "Image": "sha256:0c58bd6b",
    "RestartCount": 0,
    "State": {"Status": "running", "Running": True, "ExitCode": 0, "StartedAt": "2026-11-23T07:11:05.123456789Z"},
    "Config": {
        "Image": "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6",
        "Labels": {
            "com.github.baremetal-nim.config-hash": "f3d4",
            "com.github.baremetal-nim.service": "llama",
            "maintainer": "NVIDIA",
        },
    },
    "HostConfig": {
        "PortBindings": {
            "8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}, {"HostIp": "::1", "HostPort": "8000"}],
            "9000/tcp": [{"HostIp": "", "HostPort": ""}],
            "7000/tcp": None,
        }
    },
}


def test_containers():
    exited = json.loads(json.dumps(CONTAINER))
    exited["Name"] = "/stray"
    exited["State"].update(Running=False, ExitCode=137)
    exited["Config"]["Labels"] = None
    exited["HostConfig"]["PortBindings"] = None
    assert _host.parse_containers(json.dumps([CONTAINER, exited])) == {
        "nim-llama": {
            "service": "llama",
            "config_hash": "f3d4",
            "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6",
            "image_id": "sha256:0c58bd6b",
            "running": True,
            "started_at": "2026-11-23T07:11:05.123456789Z",
            "exit_code": 0,
            "restart_count": 0,
            "ports": [8000],
        },
        "stray": {
            "service": None,
            "config_hash": None,
            "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6",
            "image_id": "sha256:0c58bd6b",
            "running": False,
            "started_at": "2026-11-23T07:11:05.123456789Z",
            "exit_code": 137,
            "restart_count": 0,
            "ports": [],
        },
    }


def test_containers_of_podman_are_told_as_those_of_docker():
    text = (FIXTURES / "podman/inspect.json").read_text()
    assert _host.parse_containers(text) == {
        "nim-test": {
            "service": "test",
            "config_hash": "abc",
            "image": "nvcr.lab:5000/nim/meta/llama-3.1-8b-instruct:1.8.6",
            "image_id": "sha256:4e943acfe4bdf557691f1d290be0274d2e46991a1f42adeb3b2225ab527987a4",
            "running": True,
            "started_at": "2026-11-24T00:08:23.604978067Z",
            "exit_code": 0,
            "restart_count": 0,
            "ports": [8001],
        }
    }
    (known,) = _host.container_services(text).items()
    assert known == ("fabc97546dc2e8e9017ccfdb75161284fb6033600ae0673ede597f91d2d595d5", "test")


RECORDED = (
    "nvcr.lab:5000/nim/meta/llama-3.1-8b-instruct:1.8.6",
    "nvcr.lab:5000/nim/meta/llama-3.1-8b-instruct@sha256:ba636482fdab82d3326c2e280aa7fcb0092a538d776a29df52ce11c62255ffd2",
)
REPOSITORY, SUMS = "nvcr.io/nim/meta/llama", ("sha256:" + "1" * 64, "sha256:" + "2" * 64)


@pytest.mark.parametrize(
    ("text", "images"),
    [
        pytest.param(
            (FIXTURES / "podman/images.json").read_text(),
            dict.fromkeys(RECORDED, "sha256:4e943acfe4bdf557691f1d290be0274d2e46991a1f42adeb3b2225ab527987a4"),
            id="recorded",
        ),
        pytest.param(
            json.dumps([{"Id": "ab", "RepoDigests": [f"{REPOSITORY}@{digest}" for digest in SUMS]}]),
            {f"{REPOSITORY}@{digest}": "sha256:ab" for digest in SUMS},
            id="several-architectures",
        ),
        pytest.param(json.dumps([{"Id": "ab", "RepoDigests": None}]), {}, id="built-here"),
        pytest.param("[]", {}, id="none"),
        pytest.param("null", {}, id="null"),
        pytest.param("", {}, id="no-answer"),
    ],
)
def test_images_of_podman(text, images):
    found, labels = _host.parse_podman_images(text)
    assert found == images and labels.keys() == images.keys()


def test_labels_of_images_of_podman():
    _images, labels = _host.parse_podman_images((FIXTURES / "podman/images.json").read_text())
    assert {name: said["org.opencontainers.image.version"] for name, said in labels.items()} == dict.fromkeys(
        RECORDED, "1.8.6"
    )
    without = [{"Id": "ab", "Names": [f"{REPOSITORY}:1"], "Labels": None}]
    assert _host.parse_podman_images(json.dumps(without))[1] == {f"{REPOSITORY}:1": {}}


@pytest.mark.parametrize(
    ("text", "images"),
    [
        pytest.param(
            f"{REPOSITORY} 1.8.6 {SUMS[0]} sha256:ab\n{REPOSITORY} 1.8 {SUMS[0]} sha256:ab\n",
            {f"{REPOSITORY}{name}": "sha256:ab" for name in (":1.8.6", ":1.8", f"@{SUMS[0]}")},
            id="two-tags",
        ),
        pytest.param(
            f"{REPOSITORY} <none> {SUMS[0]} sha256:ab\n", {f"{REPOSITORY}@{SUMS[0]}": "sha256:ab"}, id="by-digest"
        ),
        pytest.param("debian trixie <none> sha256:ab\n", {"debian:trixie": "sha256:ab"}, id="built-here"),
        pytest.param("<none> <none> <none> sha256:ab\n", {}, id="nameless"),
        pytest.param("", {}, id="no-answer"),
        pytest.param("Cannot connect\n", {}, id="no-table"),
    ],
)
def test_images_of_docker(text, images):
    assert _host.parse_docker_images(text) == images


@pytest.mark.parametrize(
    ("text", "told"), [("ab", "sha256:ab"), ("sha256:ab", "sha256:ab"), ("", "")], ids=["podman", "docker", "none"]
)
def test_image_id(text, told):
    assert _host.image_id(text) == told


@pytest.mark.parametrize(
    ("version", "takes"),
    [("5.4.2", True), ("4.10", True), ("4.1.0", True), ("4.0.3", False), ("3.4.4", False), (None, False)],
)
def test_podman_that_takes_cdi_devices(version, takes):
    assert _host.takes_cdi(version) is takes


@pytest.mark.parametrize(
    ("units", "containers", "told"),
    [
        ({"docker": ["nim-llama"], "podman": []}, {"docker": {"nim-llama": {}}, "podman": {}}, {"docker": ["unit", "container"]}),
        ({"docker": [], "podman": ["nim-llama"]}, {"docker": {"nim-llama": {}}, "podman": {}}, {"docker": ["container"], "podman": ["unit"]}),
        ({"docker": ["nim-other"], "podman": []}, {"docker": {}, "podman": {"nim-other": {}}}, {}),
    ],
    ids=["docker", "in-between", "another"],
)  # fmt: skip
def test_traces_of_a_unit(units, containers, told):
    assert _host.traces("nim-llama", units, containers) == told


@pytest.mark.parametrize("text", ["", "[]\n"], ids=["nothing", "empty-list"])
def test_no_containers(text):
    assert _host.parse_containers(text) == {}


def test_services_by_container():
    assert _host.container_services(json.dumps([CONTAINER, {"Id": "ff00", "Config": {"Labels": None}}])) == {
        "c1f7": "llama",
        "ff00": None,
    }
    assert _host.container_services("") == {}
