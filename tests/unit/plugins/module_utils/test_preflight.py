# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host is refused: each reason alone, and all at once."""

from __future__ import annotations

import copy
import pathlib
import re

import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _preflight
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_nvidia_smi

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
GB = 10**9
NOW = 1795423100.0
DOCKER, CACHE = "/var/lib/docker", "/var/lib/nim/cache"
#: A host with room for one service of 40 GB image and 40 GB weights on one file system.
HOST = {
    "hostname": "gpu01",
    "os": {"distribution": "Debian", "version": "13", "major": "13", "architecture": "x86_64"},
    "python": {"version": "3.13.5"},
    "systemd": {"running": True, "version": 257},
    "time": NOW + 1.5,
    "memory": {"total": 2164 * GB, "available": 2101 * GB},
    "disks": {
        DOCKER: {"mount": "/", "free": 80 * GB, "total": 500 * GB, "read_only": False},
        CACHE: {"mount": "/", "free": 80 * GB, "total": 500 * GB, "read_only": False},
    },
    "listeners": [{"address": "10.0.1.4", "port": 22, "pid": 811, "process": "sshd"}],
    "driver": {"loaded_version": "580.159.04", "cuda_version": "13.0", "error": None, "holders": []},
    "engine": {"version": "26.1.5"},
    "repositories": [],
    "secure_boot": {"enabled": False, "mok_enrolled": None, "mok_key": None},
    "gpus": parse_nvidia_smi((FIXTURES / "h200-x2" / "idle.xml").read_text())["gpus"],
    "hardware": {"gpus": [{"address": "0000:18:00.0", "device_id": "2335", "name": "H200 SXM"}]},
    "services": {},
}
WANTED = {
    "supported_systems": ["Debian 12", "Debian 13", "Ubuntu 24"],
    "architectures": ["x86_64", "aarch64"],
    "min_systemd": 249,
    "min_python": "3.9",
    "min_memory_gb": 16,
    "max_clock_skew": 120,
    "controller_time": NOW,
    "driver_plan": {"source": "preinstalled", "branch": "580", "change": "none", "problems": [], "prerequisites": []},
    "disk_gb": {DOCKER: 40, CACHE: 40},
}
LLAMA = {"name": "llama", "state": "present", "port": 8000, "contract": "classic"}
PHI = {"name": "phi", "state": "present", "port": 8001, "contract": "llm"}
#: llama as it is on a host where it runs.
RUNNING = {"record": {"name": "llama"}, "container": {"running": True, "ports": [8000]}}


def preflight_problems(*arguments):
    """The messages alone."""
    return [problem["message"] for problem in _preflight.preflight_problems(*arguments)]


def planned(change="upgrade", **plan):
    """WANTED with a change of the driver ahead."""
    return {**WANTED, "driver_plan": {**WANTED["driver_plan"], "source": "cuda_repo", "change": change, **plan}}


def host(**changes):
    """The host with other values; a name with two underscores is one level down."""
    changed = copy.deepcopy(HOST)
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            changed[outer][inner] = value
        else:
            changed[outer] = value
    return changed


def disks(docker, cache):
    """Disks of the two paths, each (mount, free GB)."""
    return {
        path: {"mount": mount, "free": free * GB, "total": 500 * GB, "read_only": False}
        for path, (mount, free) in ((DOCKER, docker), (CACHE, cache))
    }


BAD = [
    pytest.param(
        {"os": {"distribution": "Rocky", "major": "9", "architecture": "x86_64"}},
        ["operating system is Rocky 9", "Debian 12, Debian 13, Ubuntu 24", "preflight_supported_systems"],
        id="operating-system",
    ),
    pytest.param({"os__major": "11"}, ["operating system is Debian 11", "Debian 12"], id="old-release"),
    pytest.param(
        {"os__architecture": "ppc64le"},
        ["architecture is ppc64le", "wanted x86_64 or aarch64", "another host"],
        id="architecture",
    ),
    pytest.param(
        {"systemd": {"running": False, "version": 257}},
        ["systemd does not run this host", "/run/systemd/system"],
        id="no-systemd",
    ),
    pytest.param(
        {"systemd": {"running": False, "version": None}}, ["systemd does not run this host"], id="systemd-not-installed"
    ),
    pytest.param({"systemd__version": 247}, ["systemd is 247", "wanted 249 or newer", "upgrade"], id="old-systemd"),
    pytest.param({"systemd__version": None}, ["systemd is None", "wanted 249"], id="systemd-of-unknown-version"),
    pytest.param(
        {"python__version": "3.8.20"}, ["Python is 3.8.20", "wanted 3.9", "ansible_python_interpreter"], id="old-python"
    ),
    pytest.param(
        {"memory__total": 15.9 * GB}, ["memory is 15.9 GB", "wanted 16 GB", "preflight_min_memory_gb"], id="memory"
    ),
    pytest.param({"time": NOW - 121}, ["clock is -121 s off", "allowed are 120 s", "chrony"], id="clock-behind"),
    pytest.param({"time": NOW + 86400}, ["clock is +86400 s off", "systemd-timesyncd"], id="clock-ahead"),
    pytest.param(
        {"disks": disks(("/", 79), ("/", 79))},
        ["/ has 79.0 GB free", "wanted 80.0 GB", f"{DOCKER} and {CACHE}", "1 new service"],
        id="one-file-system-for-both",
    ),
    pytest.param(
        {"disks": disks(("/", 500), ("/srv", 39))},
        ["/srv has 39.0 GB free", f"wanted 40.0 GB for {CACHE} of", "larger disk"],
        id="file-system-of-the-cache",
    ),
    pytest.param(
        {
            "disks": {
                DOCKER: HOST["disks"][DOCKER],
                CACHE: {"mount": "/srv", "free": 900 * GB, "total": 900 * GB, "read_only": True},
            }
        },
        [f"{CACHE} is on /srv", "mounted read-only", "-o rw"],
        id="read-only",
    ),
    pytest.param(
        {
            "driver__error": "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n\nMake sure it runs.",
            "gpus": [],
        },
        [
            "nvidia-smi does not work: NVIDIA-SMI has failed",
            "driver. Make sure it runs. Wanted a driver, as nvidia_driver_source is preinstalled; install or load it",
        ],
        id="driver",
    ),
    pytest.param(
        {"driver__error": "nvidia-smi is not installed", "gpus": []}, ["nvidia-smi is not installed"], id="no-driver"
    ),
    pytest.param({"gpus": []}, ["reports no GPU", "dmesg"], id="no-gpu"),
    pytest.param({"hardware__gpus": []}, ["no NVIDIA GPU is on the PCI bus", "lspci -d 10de:"], id="no-gpu-on-the-bus"),
    pytest.param(
        {"listeners": [{"address": "10.0.1.4", "port": 8000, "pid": 4711, "process": "uvicorn"}]},
        ["service llama: port 8000 is held by uvicorn (pid 4711) on 10.0.1.4", "sport = :8000", "another port"],
        id="port",
    ),
    pytest.param(
        {"listeners": [{"address": "::", "port": 8000, "pid": None, "process": None}]},
        ["port 8000 is held by a process (pid unknown) on ::"],
        id="port-of-an-unknown-process",
    ),
]


def test_fit_host():
    assert preflight_problems(HOST, WANTED, [LLAMA]) == []


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_problem(changes, said):
    (problem,) = preflight_problems(host(**changes), WANTED, [LLAMA])
    for words in said:
        assert words in problem


@pytest.mark.parametrize("source", ["cuda_repo", "distribution", "mirror"])
def test_driver_that_a_later_stage_brings_is_not_missed(source):
    bare = host(driver__loaded_version=None, driver__error="nvidia-smi is not installed", gpus=[])
    assert preflight_problems(bare, planned("install", source=source), [LLAMA]) == []


TRAINING = {"pid": 4711, "name": "python3", "unit": "training.service", "service": None}


@pytest.mark.parametrize(
    ("holders", "wanted", "told"),
    [
        ([TRAINING], planned(), ["upgrade", "python3 (pid 4711, training.service)"]),
        ([TRAINING], WANTED, None),
        ([{**TRAINING, "unit": None, "service": "llama"}], planned(), None),
        ([{**TRAINING, "unit": "nvidia-persistenced.service"}], planned(), None),
    ],
)
def test_gpu_in_use_is_told_when_the_driver_is_to_change(holders, wanted, told):
    problems = preflight_problems(host(driver__holders=holders), wanted, [LLAMA])
    assert problems == [] if told is None else all(text in problems[0] for text in told)


@pytest.mark.parametrize(
    ("boot", "wanted", "refused"),
    [
        ({"enabled": True, "mok_enrolled": False, "mok_key": "/var/lib/dkms/mok.pub"}, planned("install"), True),
        ({"enabled": True, "mok_enrolled": None, "mok_key": None}, planned("install"), True),
        ({"enabled": True, "mok_enrolled": True, "mok_key": "/var/lib/dkms/mok.pub"}, planned("install"), False),
        ({"enabled": False, "mok_enrolled": None, "mok_key": None}, planned("install"), False),
        ({"enabled": None, "mok_enrolled": None, "mok_key": None}, planned("install"), False),
        ({"enabled": True, "mok_enrolled": None, "mok_key": None}, planned("install", source="distribution"), False),
        ({"enabled": True, "mok_enrolled": None, "mok_key": None}, WANTED, False),
    ],
)
def test_pain_19_secure_boot_is_told_before_unsigned_modules_are_built(boot, wanted, refused):
    problems = preflight_problems(host(secure_boot=boot), wanted, [LLAMA])
    assert bool(problems) == refused
    assert not problems or ("mokutil --import /var/lib/dkms/mok.pub" in problems[0] and "console" in problems[0])


def source(path, signed_by, uri="http://apt.example.com/cuda", **changes):
    entry = {"path": path, "enabled": True, "types": ["deb"], "uris": [uri], "suites": ["/"], "signed_by": signed_by}
    return {**entry, **changes}


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ([source("/a.list", "/k1.gpg"), source("/b.sources", "/k2.gpg", uri="http://apt.example.com/cuda/")], ["/a.list and /b.sources"]),
        ([source("/a.list", None), source("/b.sources", "/k2.gpg")], ["/a.list and /b.sources"]),
        ([source("/a.list", "/k.gpg"), source("/b.sources", "/k.gpg")], None),
        ([source("/a.list", "/k1.gpg"), source("/b.sources", "/k2.gpg", enabled=False)], None),
        ([source("/a.list", "/k1.gpg"), source("/b.sources", "/k2.gpg", suites=["stable"])], None),
    ],
)  # fmt: skip
def test_pain_9_conflicting_signed_by(sources, told):
    problems = preflight_problems(host(repositories=sources), WANTED, [LLAMA])
    assert problems == [] if told is None else all(text in problems[0] for text in told)


@pytest.mark.parametrize(
    ("version", "refused"), [("29.5.1", True), ("29.4.0", False), ("29.6.1", False), ("26.1.5", False), (None, False)]
)
def test_docker_that_is_known_to_fail(version, refused):
    problems = preflight_problems(host(engine={"version": version}), WANTED, [LLAMA])
    assert bool(problems) == refused and (not problems or "29.5.1" in problems[0])


@pytest.mark.parametrize(
    ("loaded", "wanted", "services", "told"),
    [
        ("570.86.15", WANTED, [PHI], "service phi: its driver would be of branch 570, images of contract llm want 580"),
        ("570.86.15", WANTED, [LLAMA], None),
        ("570.86.15", planned(branch="580"), [PHI], None),
        ("580.159.04", planned("downgrade", branch="570"), [PHI], "branch 570"),
        ("570.86.15", WANTED, [{**PHI, "state": "absent"}], None),
    ],
)
def test_driver_branch_that_the_images_need(loaded, wanted, services, told):
    problems = preflight_problems(host(driver__loaded_version=loaded), wanted, services)
    assert problems == [] if told is None else told in problems[0]


def test_problems_of_the_plan_are_told_with_the_others():
    wanted = planned("install", problems=["nvidia_driver_branch is 58, wanted three digits."])
    (problem,) = _preflight.preflight_problems(HOST, wanted, [LLAMA])
    assert problem == {"check": "driver", "message": "nvidia_driver_branch is 58, wanted three digits."}


def test_every_check_can_be_named():
    role = pathlib.Path(__file__).resolve().parents[4] / "roles/preflight"
    assert yaml.safe_load((role / "vars/main.yml").read_text())["__preflight_checks"] == list(_preflight.CHECKS)
    source_text = pathlib.Path(_preflight.__file__).read_text()
    assert set(re.findall(r'_problem\(\s*"(\w+)"', source_text)) == set(_preflight.CHECKS)


def test_the_driver_is_asked_for_as_its_role_asks():
    roles = pathlib.Path(__file__).resolve().parents[4] / "roles"
    defaults = yaml.safe_load((roles / "nvidia_driver/defaults/main.yml").read_text())
    asked = yaml.safe_load((roles / "preflight/vars/main.yml").read_text())["__preflight_driver"]
    own = yaml.safe_load((roles / "nvidia_driver/vars/main.yml").read_text())["__nvidia_driver_wanted"]
    assert asked.keys() == own.keys()
    for key, text in asked.items():
        default = re.search(r"default\((.*)\) }}", text).group(1)
        assert yaml.safe_load(default) == defaults[f"nvidia_driver_{key}"], key


def test_all_problems_at_once():
    unfit = host(
        os={"distribution": "Rocky", "major": "9", "architecture": "ppc64le"},
        systemd__version=239,
        python__version="3.6.8",
        memory__total=8 * GB,
        time=NOW + 600,
        disks=disks(("/", 10), ("/srv", 10)),
        driver__error="nvidia-smi is not installed",
        gpus=[],
        listeners=[{"address": "127.0.0.1", "port": port, "pid": 1, "process": "nginx"} for port in (8000, 8001)],
    )
    unfit["disks"][CACHE]["read_only"] = True
    problems = preflight_problems(unfit, WANTED, [LLAMA, PHI])
    assert [problem.split(" is ")[0].split(" has ")[0].split(" does ")[0] for problem in problems] == [
        "operating system",
        "architecture",
        "systemd",
        "Python",
        "nvidia-smi",
        "memory",
        "clock",
        CACHE,
        "/",
        "/srv",
        "service llama: port 8000",
        "service phi: port 8001",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"os": {"distribution": "Ubuntu", "major": "24", "architecture": "aarch64"}}, id="another-supported-system"
        ),
        pytest.param({"systemd__version": 249, "python__version": "3.9.2"}, id="oldest-versions"),
        pytest.param({"python__version": "3.10.12"}, id="versions-are-numbers-not-text"),
        pytest.param({"python__version": "3.14.0rc1"}, id="pre-release"),
        pytest.param({"memory__total": 16 * GB, "time": NOW - 120}, id="just-enough"),
        pytest.param({"memory__total": None}, id="memory-unknown"),
        pytest.param({"disks": disks(("/", 40), ("/srv", 40))}, id="two-file-systems"),
        pytest.param({"disks": {}}, id="disks-not-read"),
        pytest.param(
            {"listeners": [{"address": "10.0.1.4", "port": 8001, "pid": 1, "process": "nginx"}]},
            id="somebody-elses-port",
        ),
    ],
)
def test_no_problem(changes):
    assert preflight_problems(host(**changes), WANTED, [LLAMA]) == []


def test_numbers_from_a_survey():
    wanted = {
        **WANTED,
        "min_systemd": "249",
        "min_python": 3.9,
        "min_memory_gb": "16",
        "max_clock_skew": "120",
        "disk_gb": {DOCKER: "40"},
    }
    assert preflight_problems(HOST, wanted, [LLAMA]) == []


def test_space_of_new_services_adds_up():
    (problem,) = preflight_problems(host(disks=disks(("/", 159), ("/", 159))), WANTED, [LLAMA, PHI])
    assert "wanted 160.0 GB" in problem
    assert "2 new service(s)" in problem
    assert preflight_problems(host(disks=disks(("/", 160), ("/", 160))), WANTED, [LLAMA, PHI]) == []


@pytest.mark.parametrize(
    ("services", "now", "fits"),
    [
        pytest.param([LLAMA], {"llama": RUNNING}, True, id="deployed"),
        pytest.param([LLAMA], {"llama": {**RUNNING, "record": None}}, False, id="interrupted"),
        pytest.param([LLAMA, PHI], {"llama": RUNNING}, False, id="one-deployed-one-new"),
        pytest.param([{"name": "llama", "state": "absent"}], {}, True, id="absent"),
    ],
)
def test_only_new_services_need_space(services, now, fits):
    full = host(disks=disks(("/", 1), ("/", 1)), services=now)
    assert (preflight_problems(full, WANTED, services) == []) is fits


@pytest.mark.parametrize(
    ("now", "free"),
    [
        pytest.param({"llama": RUNNING}, True, id="own-container"),
        pytest.param({"llama": {**RUNNING, "container": None}}, False, id="own-container-gone"),
        pytest.param(
            {"llama": {**RUNNING, "container": {"running": True, "ports": [8001]}}},
            False,
            id="own-container-on-another-port",
        ),
        pytest.param(
            {"old": {"record": None, "container": {"running": True, "ports": [8000]}}}, True, id="another-nim"
        ),
    ],
)
def test_own_port_is_no_conflict(now, free):
    taken = host(listeners=[{"address": "127.0.0.1", "port": 8000, "pid": 9, "process": "docker-proxy"}], services=now)
    assert (preflight_problems(taken, WANTED, [LLAMA]) == []) is free


def test_absent_service_wants_no_port():
    taken = host(listeners=[{"address": "127.0.0.1", "port": 8000, "pid": 9, "process": "nginx"}])
    assert preflight_problems(taken, WANTED, [{"name": "llama", "state": "absent"}]) == []


@pytest.mark.parametrize(
    ("process", "now", "problems"),
    [
        pytest.param(
            "docker-proxy", {"unit": {"exists": True}, "record": {"url": "http://127.0.0.1:8000"}}, 0, id="own"
        ),
        pytest.param("docker-proxy", {"unit": {"exists": True}, "record": None}, 0, id="own-first-deployment"),
        pytest.param(
            "docker-proxy", {"unit": {"exists": True}, "record": {"url": "http://a:8005"}}, 1, id="moved-onto-it"
        ),
        pytest.param("docker-proxy", {"unit": {"exists": False}, "record": None}, 1, id="some-other-container"),
        pytest.param(
            "uvicorn", {"unit": {"exists": True}, "record": {"url": "http://127.0.0.1:8000"}}, 1, id="stranger"
        ),
    ],
)
def test_port_of_a_service_whose_container_is_between_two_lives(process, now, problems):
    seen = host(
        listeners=[{"address": "::", "port": 8000, "pid": 4296, "process": process}],
        services={"llama": {"container": None, **now}},
    )
    assert len(preflight_problems(seen, WANTED, [LLAMA])) == problems
