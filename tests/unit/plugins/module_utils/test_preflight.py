# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host is refused: each reason alone, and all at once."""

from __future__ import annotations

import copy
import json
import pathlib
import re

import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _engine, _preflight
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_nvidia_smi

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
GB = 10**9
NOW = 1795423100.0
DOCKER, CACHE = "/var/lib/docker", "/var/lib/nim/cache"
#: A host with room for one service of 40 GB image and 40 GB weights on one file system.
HOST = {
    "package_state": {"holds": [], "interrupted": False, "incomplete": [], "busy": None},
    "hostname": "gpu01",
    "os": {
        "distribution": "Debian",
        "version": "13",
        "major": "13",
        "architecture": "x86_64",
        "package_manager": "apt",
    },
    "python": {"version": "3.13.5"},
    "systemd": {"running": True, "version": 257},
    "time": NOW,
    "clock": {"least": -0.6, "most": 1.5},
    "memory": {"total": 2164 * GB, "available": 2101 * GB},
    "disks": {
        DOCKER: {"mount": "/", "free": 80 * GB, "total": 500 * GB, "read_only": False},
        CACHE: {"mount": "/", "free": 80 * GB, "total": 500 * GB, "read_only": False},
    },
    "listeners": [{"address": "10.0.1.4", "port": 22, "pid": 811, "process": "sshd"}],
    "driver": {"loaded_version": "580.159.04", "cuda_version": "13.0", "error": None, "holders": []},
    "engine": {"version": "26.1.5", "installed": True},
    "podman": None,
    "kernel": {"running": "6.12.48+deb13-amd64", "headers": True, "newest": "6.12.48+deb13-amd64", "pending": False},
    "packages": {},
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
    "driver_plan": {"source": "preinstalled", "branch": "580", "change": "none", "problems": [], "prerequisites": []},
    "disk_gb": {DOCKER: 40, CACHE: 40},
}
LLAMA = {"name": "llama", "state": "present", "port": 8000, "grpc_port": 0, "contract": "classic"}
PHI = {"name": "phi", "state": "present", "port": 8001, "grpc_port": 0, "contract": "llm"}
#: llama as it is on a host where it runs.
RUNNING = {"record": {"name": "llama"}, "container": {"running": True, "ports": [8000]}}


def preflight_problems(*arguments):
    """The messages of errors alone; a test that expects none means warnings too."""
    problems = _preflight.preflight_problems(*arguments)
    assert all(problem["severity"] in ("error", "warning") for problem in problems)
    return [problem["message"] for problem in problems]


def told_of(check, *arguments):
    """Message and severity of the only problem of a check, None when there is none."""
    found = [item for item in _preflight.preflight_problems(*arguments) if item["check"] == check]
    assert len(found) <= 1
    return (found[0]["message"], found[0]["severity"]) if found else None


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
        {"os__distribution": "Rocky", "os__major": "9"},
        ["operating system is Rocky 9", "Debian 12, Debian 13, Ubuntu 24", "preflight_supported_systems"],
        id="operating-system",
    ),
    pytest.param({"os__major": "11"}, ["operating system is Debian 11", "Debian 12"], id="old-release"),
    pytest.param(
        {"os__package_manager": "zypper"},
        ["package manager is zypper", "wanted apt or dnf", "another system"],
        id="package-manager",
    ),
    pytest.param({"os__package_manager": None}, ["package manager is none that is known"], id="no-package-manager"),
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
    pytest.param(
        {"clock": {"least": -122.0, "most": -121.0}},
        ["clock is 121 to 122 s behind the controller's", "2026-11-23 08:38:20 UTC", "allowed are 120 s", "chrony"],
        id="clock-behind",
    ),
    pytest.param(
        {"clock": {"least": 86400.1, "most": 86400.4}},
        ["clock is 86400 s ahead of the controller's", "systemd-timesyncd"],
        id="clock-ahead",
    ),
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
        ([{**TRAINING, "name": None, "unit": None}], planned(), ["held by a process (pid 4711), wanted nobody"]),
        ([{**TRAINING, "unit": None, "service": "llama"}], planned(), None),
        ([{**TRAINING, "unit": "nvidia-persistenced.service"}], planned(), None),
        ([{**TRAINING, "unit": "nvidia-cdi-refresh.service"}], planned(), None),
    ],
)
def test_pain_20_gpu_in_use_is_told_when_the_driver_is_to_change(holders, wanted, told):
    problem = told_of("gpu_in_use", host(driver__holders=holders), wanted, [LLAMA])
    assert problem is None if told is None else (problem[1] == "error" and all(text in problem[0] for text in told))


def test_gpu_in_use_is_a_warning_while_the_driver_stays():
    message, severity = told_of("gpu_in_use", host(driver__holders=[TRAINING]), WANTED, [LLAMA])
    assert severity == "warning" and "python3 (pid 4711, training.service)" in message


def test_processes_that_only_nvidia_smi_sees_use_the_gpu_too():
    gpus = copy.deepcopy(HOST["gpus"])
    gpus[0]["processes"] = [
        {"pid": 4711, "name": "python3", "used_mib": 500, "service": None},
        {"pid": 4712, "name": "VLLM::EngineCore", "used_mib": 500, "service": "llama"},
        {"pid": 4713, "name": "jupyter", "used_mib": 500},
    ]
    message, _ = told_of("gpu_in_use", host(gpus=gpus, driver__holders=[TRAINING]), planned(), [LLAMA])
    assert "held by python3 (pid 4711, training.service), jupyter (pid 4713), wanted" in message


@pytest.mark.parametrize(
    ("boot", "wanted", "refused"),
    [
        ({"enabled": True, "mok_enrolled": False, "mok_key": "/var/lib/dkms/mok.pub"}, planned("install"), True),
        ({"enabled": True, "mok_enrolled": None, "mok_key": None}, planned("install"), True),
        ({"enabled": True, "mok_enrolled": True, "mok_key": "/var/lib/dkms/mok.pub"}, planned("install"), False),
        ({"enabled": False, "mok_enrolled": None, "mok_key": None}, planned("install"), False),
        ({"enabled": None, "mok_enrolled": None, "mok_key": None}, planned("install"), False),
        # Debian's archive brings sources too.
        ({"enabled": True, "mok_enrolled": None, "mok_key": None}, planned("install", source="distribution"), True),
        ({"enabled": True, "mok_enrolled": None, "mok_key": None}, WANTED, False),
    ],
)
def test_pain_19_secure_boot_is_told_before_unsigned_modules_are_built(boot, wanted, refused):
    problems = preflight_problems(host(secure_boot=boot), wanted, [LLAMA])
    assert bool(problems) == refused
    ubuntu = host(secure_boot=boot, os__distribution="Ubuntu", os__major="24")
    signed = wanted["driver_plan"]["source"] == "distribution"
    assert bool(preflight_problems(ubuntu, wanted, [LLAMA])) == (refused and not signed)
    for distribution, has_signed in (("RedHat", True), ("Rocky", False)):
        enterprise = host(secure_boot=boot, os__distribution=distribution, os__package_manager="dnf")
        told = told_of("secure_boot", enterprise, wanted, [LLAMA])
        assert bool(told) == (refused and not (signed and has_signed))
    assert not problems or ("mokutil --import /var/lib/dkms/mok.pub" in problems[0] and "console" in problems[0])
    assert not problems or "on Ubuntu or Red Hat Enterprise Linux" in problems[0]


def source(path, signed_by, uri="http://apt.example.com/cuda", **changes):
    entry = {
        "path": path,
        "enabled": True,
        "types": ["deb"],
        "uris": [uri],
        "suites": ["/"],
        "signed_by": signed_by,
        "origin": "other",
    }
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
def test_docker_that_cannot_pull_from_nvidia(version, refused):
    problems = preflight_problems(host(engine={"version": version}), WANTED, [LLAMA])
    assert bool(problems) == refused and (not problems or ("29.5.1" in problems[0] and "nvcr.io" in problems[0]))


@pytest.mark.parametrize(
    ("found", "wanted", "refused"),
    [("29.4.3", "5:29.5.0-1~debian.13~trixie", True), ("29.5.1", "5:29.4.3-1~debian.13~trixie", False), (None, "", False)],
)  # fmt: skip
def test_docker_that_is_going_to_be_installed_counts(found, wanted, refused):
    problem = told_of("docker_version", host(engine={"version": found}), {**WANTED, "docker_version": wanted}, [LLAMA])
    assert bool(problem) == refused


@pytest.mark.parametrize(
    ("system", "podman", "told"),
    [
        (("Debian", "12"), None, "4.3.1"),
        (("Ubuntu", "22"), None, "3.4.4"),
        (("Ubuntu", "22"), "4.9.4", None),
        (("Debian", "13"), None, None),
        (("Debian", "13"), "5.4.2", None),
        (("Debian", "13"), "4.7.2", "4.7.2"),
        (("Ubuntu", "24"), "4.9.3", None),
    ],
)
def test_podman_that_is_too_old_for_quadlet(system, podman, told):
    distribution, major = system
    system = {**host()["os"], "distribution": distribution, "major": major}
    seen = host(podman={"version": podman} if podman else None, os=system)
    problem = told_of("podman_version", seen, {**WANTED, "engine": "podman"}, [LLAMA])
    assert bool(problem) == bool(told)
    for words in [f"({distribution} {major}) is {told}, wanted 4.8 or newer", "nim_container_engine: docker"] * bool(
        told
    ):
        assert words in problem[0]
    # Beside Docker it may be as old as it likes.
    assert not told_of("podman_version", seen, WANTED, [LLAMA])


def test_podman_that_the_system_would_bring_must_read_what_the_toolkit_writes():
    noble = host(podman=None, os={**host()["os"], "distribution": "Ubuntu", "major": "24"})
    wanted = {**WANTED, "engine": "podman", "toolkit": {"version": "1.20.0-1", "feature_flags": [], "engine": "podman"}}
    problem = told_of("podman_version", noble, wanted, [LLAMA])
    assert "Podman is 4.9.3" in problem[0] and "cdi_feature_flags" in problem[0]
    assert not told_of("podman_version", noble, {**wanted, "engine": "docker"}, [LLAMA])


def test_docker_is_not_looked_at_when_podman_is_wanted():
    wanted = {**WANTED, "engine": "podman", "docker_version": "29.5.0"}
    assert preflight_problems(host(engine={"version": "29.5.1"}, podman={"version": "5.4.2"}), wanted, [LLAMA]) == []


def test_what_the_plan_of_the_engine_says_is_told_early():
    plan = {
        "problems": [
            {"check": "kubernetes_node", "message": "this is a node."},
            {"check": "engine", "message": "masked."},
        ]
    }
    wanted = {**WANTED, "engine_plan": plan, "warn_only": ["engine"]}
    assert told_of("kubernetes_node", host(), wanted, [LLAMA]) == ("this is a node.", "error")
    assert told_of("engine", host(), wanted, [LLAMA]) == ("masked.", "warning")


def test_what_packages_would_take_away_is_told_early():
    answer = {"problems": ["installing docker.io would remove docker-ce."], "unresolved": None, "installed": {}}
    wanted = {**WANTED, "transactions": {"engine": answer}}
    assert told_of("transaction", host(), wanted, [LLAMA]) == (answer["problems"][0], "error")


@pytest.mark.parametrize(
    ("podman", "toolkit", "flags", "refused"),
    [
        ("4.9.3", "1.19.1-1", [], True),
        ("5.0.3", "1.20.0-1", [], True),
        ("5.1.0", "1.20.0-1", [], False),
        ("4.9.3", "1.19.0-1", [], False),
        ("4.9.3", "1.20.0-1", ["no-additional-gids-for-device-nodes"], False),
        (None, "1.20.0-1", [], False),
        ("4.9.3", "", [], False),
    ],
)
def test_pain_3_podman_that_does_not_read_what_the_toolkit_writes(podman, toolkit, flags, refused):
    wanted = {**WANTED, "toolkit": {"version": toolkit, "feature_flags": flags}}
    found = {"version": podman} if podman else None
    problem = told_of("podman_version", host(podman=found), wanted, [LLAMA])
    assert bool(problem) == refused
    for words in [f"Podman is {podman}", f"toolkit {toolkit}", "wanted 5.1 or newer", "[podman_version]"] * refused:
        assert words in problem[0]


@pytest.mark.parametrize(("engine", "severity"), [("docker", "warning"), ("podman", "error")])
def test_pain_3_podman_beside_docker_only_warns(engine, severity):
    wanted = {**WANTED, "toolkit": {"version": "1.20.0-1", "feature_flags": [], "engine": engine}}
    (problem,) = _preflight.preflight_problems(host(podman={"version": "4.9.3"}), wanted, [LLAMA])
    assert (problem["check"], problem["severity"]) == ("podman_version", severity)


NEEDS_HEADERS = {"prerequisites": ["linux-headers-6.12.48+deb13-amd64"]}


@pytest.mark.parametrize(
    ("headers", "plan", "sources", "refused"),
    [
        (False, planned("install", **NEEDS_HEADERS), [], True),
        (False, planned("install", **NEEDS_HEADERS), [("distribution", False), ("cuda", True)], True),
        (False, planned("install", **NEEDS_HEADERS), [("distribution", True)], False),
        # It may be a mirror of the distribution.
        (False, planned("install", **NEEDS_HEADERS), [("other", True)], False),
        (False, planned("install", source="mirror", **NEEDS_HEADERS), [], False),
        # Modules that the distribution built.
        (False, planned("install"), [], False),
        (False, planned("install", source="distribution", prerequisites=["rhel-drivers"]), [], False),
        (True, planned("install", **NEEDS_HEADERS), [], False),
        (False, WANTED, [], False),
    ],
)
def test_pain_12_headers_that_nobody_has_are_told_before_anything_is_installed(headers, plan, sources, refused):
    entries = [source("/a", "/k", origin=origin, enabled=enabled) for origin, enabled in sources]
    problem = told_of("kernel_headers", host(kernel__headers=headers, repositories=entries), plan, [LLAMA])
    assert bool(problem) == refused
    for words in ["6.12.48+deb13-amd64", "wanted linux-headers-6.12.48+deb13-amd64", "enable a repository"] * refused:
        assert words in problem[0]


def test_pain_12_kernel_that_waits_is_a_warning_when_the_driver_changes():
    waiting = host(kernel__newest="6.12.57+deb13-amd64", kernel__pending=True)
    message, severity = told_of("kernel_pending", waiting, planned(), [LLAMA])
    assert severity == "warning" and "6.12.48+deb13-amd64 runs and 6.12.57+deb13-amd64 is installed" in message
    assert told_of("kernel_pending", waiting, WANTED, [LLAMA]) is None
    # Nothing is built where modules come built.
    signed = {**waiting, "os": {**waiting["os"], "distribution": "RedHat"}}
    assert told_of("kernel_pending", signed, planned(source="distribution"), [LLAMA]) is None


ARCHIVE = {"nvidia-headless-no-dkms-580-server": "580.126.20-0ubuntu0.24.04.1"}
CUDA = {"nvidia-driver-cuda": "580.159.04-1", "nvidia-driver-pinning-580": "580-1"}


@pytest.mark.parametrize(
    ("packages", "sources", "plan", "severity"),
    [
        pytest.param({**ARCHIVE, **CUDA}, [], WANTED, "error", id="both"),
        pytest.param(ARCHIVE, [], WANTED, None, id="distribution"),
        pytest.param(CUDA, [], WANTED, None, id="cuda"),
        pytest.param({}, [], WANTED, None, id="none"),
        pytest.param(
            {**ARCHIVE, "nvidia-dkms-580-open": "580.126.20-0ubuntu0.24.04.1"}, [], WANTED, None, id="same-name-of-the-archive"
        ),
        pytest.param(
            {**ARCHIVE, "nvidia-dkms-580-open": "580.159.04-0ubuntu1"}, [], WANTED, "error", id="same-name-of-nvidia"
        ),
        pytest.param(ARCHIVE, [True], WANTED, "warning", id="the-other-repository-is-enabled"),
        pytest.param(ARCHIVE, [False], WANTED, None, id="the-other-repository-is-disabled"),
        pytest.param(CUDA, [True], WANTED, None, id="its-own-repository"),
        pytest.param({**ARCHIVE, **CUDA}, [], planned(problems=["of another origin"]), None, id="the-plan-tells-it"),
    ],
)  # fmt: skip
def test_packages_of_two_origins(packages, sources, plan, severity):
    entries = [source("/cuda.list", "/k", origin="cuda", enabled=enabled) for enabled in sources]
    problem = told_of("mixed_origins", host(packages=packages, repositories=entries), plan, [LLAMA])
    assert (problem and problem[1]) == severity
    assert severity != "error" or "nvidia-headless-no-dkms-580-server" in problem[0]


@pytest.mark.parametrize(
    ("names", "enabled", "severity"),
    [
        ("kmod-nvidia-open nvidia-driver-cuda nvidia-persistenced", False, None),
        ("kmod-nvidia-open-dkms nvidia-driver-cuda nvidia-persistenced", True, None),
        ("kmod-nvidia-open kmod-nvidia-open-dkms", False, "error"),
        ("kmod-nvidia-open kmod-nvidia-latest-dkms", False, "error"),
        ("kmod-nvidia-open nvidia-driver-cuda", True, "warning"),
    ],
)
def test_packages_of_two_origins_of_enterprise_linux(names, enabled, severity):
    packages = dict.fromkeys(names.split(), "3:595.71.05-1.el10")
    state = host(
        packages=packages,
        repositories=[source("/cuda.repo", "/k", origin="cuda", enabled=enabled)],
        os__package_manager="dnf",
    )
    problem = told_of("mixed_origins", state, WANTED, [LLAMA])
    assert (problem and problem[1]) == severity
    assert not problem or "kmod-nvidia-open" in problem[0]


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ([("/a.list", "cuda"), ("/b.sources", "cuda")], True),
        ([("/a.list", "docker"), ("/b.sources", "docker")], True),
        ([("/a.list", "cuda"), ("/a.list", "cuda")], False),
        # Debian's and Ubuntu's own lists overlap often, and apt takes it.
        ([("/a.list", "distribution"), ("/b.sources", "distribution")], False),
        # The toolkit's role removes a file that only names its repository.
        ([("/a.list", "toolkit"), ("/b.sources", "toolkit")], False),
    ],
)
def test_pain_9_duplicate_sources(sources, told):
    entries = [source(path, "/k", origin=origin) for path, origin in sources]
    problem = told_of("duplicate_sources", host(repositories=entries), WANTED, [LLAMA])
    assert bool(problem) == told
    assert not problem or "http://apt.example.com/cuda / is listed in /a.list and /b.sources" in problem[0]


def test_pain_9_duplicate_of_the_toolkit_among_others_stays():
    other = source("/a.list", "/k", uri="http://example.com/other", origin="other")
    twice = [source(path, "/k", origin="toolkit") for path in ("/a.list", "/b.sources")]
    assert told_of("duplicate_sources", host(repositories=[*twice, other]), WANTED, [LLAMA])


@pytest.mark.parametrize(("change", "told"), [("install", False), ("none", True)])
def test_pain_9_what_the_driver_is_about_to_remove_is_no_problem(change, told):
    entries = [source("/old.list", "/k1", origin="cuda"), source("/new.sources", "/k2", origin="cuda")]
    plan = planned(change, retired={"files": ["/old.list"], "packages": []})
    assert bool(told_of("signed_by", host(repositories=entries), plan, [LLAMA])) == told


def need(memory=None, gpus=None, driver=None, answered=True):
    told = {"memory_mib": memory, "gpus": gpus, "driver": driver, "answered": answered}
    return {"llama": {**told, "source": "https://api.example.com/?tag=1.8.6", "note": "profile 4f90"}}


@pytest.mark.parametrize(
    ("gpus", "needs", "severity"),
    [
        pytest.param(["all"], {}, None, id="not-asked"),
        pytest.param(["all"], need(), None, id="nothing-published"),
        pytest.param(["all"], need(143771, 2), None, id="just-enough"),
        pytest.param(["0"], need(143772), "error", id="too-small"),
        pytest.param(["all"], need(76293, 4), "error", id="too-few"),
        pytest.param(["0"], need(None, 2), "error", id="too-few-of-any-size"),
        pytest.param([HOST["gpus"][1]["uuid"]], need(76293, 1), None, id="by-uuid"),
        pytest.param(["0"], need(answered=False), "warning", id="no-answer"),
    ],
)
def test_gpu_memory_below_what_the_profile_needs(gpus, needs, severity):
    problem = told_of("gpu_memory", HOST, WANTED, [{**LLAMA, "gpus": gpus}, {**PHI, "gpus": ["all"]}], needs)
    assert (problem and problem[1]) == severity
    if severity == "error":
        assert "GPU 0 (NVIDIA H200, 143771 MiB)" in problem[0] and "https://api.example.com/?tag=1.8.6" in problem[0]


@pytest.mark.parametrize(("part", "severity"), [("0:0", "error"), ("0:1", None)])
def test_gpu_memory_of_a_part_of_a_gpu(part, severity):
    parts = [
        {"uuid": None, "name": f"0:{number}", "memory_total_mib": mib} for number, mib in enumerate((16384, 71680))
    ]
    divided = host(gpus=[{**HOST["gpus"][0], "mig_enabled": True, "mig_devices": parts}])
    problem = told_of("gpu_memory", divided, WANTED, [{**LLAMA, "gpus": [part]}], need(40000, 1))
    assert (problem and problem[1]) == severity
    assert not severity or "GPU 0:0 (NVIDIA H200, 16384 MiB)" in problem[0]


def test_package_manager_that_never_ends():
    busy = host(package_state={**HOST["package_state"], "busy": 812})
    problem = told_of("package_manager", busy, WANTED, [LLAMA])
    assert "process 812 has been working on the packages" in problem[0] and "ps -fp 812" in problem[0]


@pytest.mark.parametrize("change", [{"gpus": []}, {"gpus": [{**HOST["gpus"][0], "memory_total_mib": None}]}])
def test_gpu_memory_that_is_not_known_is_enough(change):
    assert told_of("gpu_memory", host(**change), WANTED, [{**LLAMA, "gpus": ["all"]}], need(10**6, 1)) is None


@pytest.mark.parametrize(
    ("plan", "loaded", "driver", "refused"),
    [
        (WANTED, "580.95.05", "580.126.20", True),
        (WANTED, "580.126.20", "580.126.20", False),
        (WANTED, "580.95.05", "580", False),
        (WANTED, "580.95.05", "595", True),
        (WANTED, None, "595", False),
        # The newest of the branch will be taken.
        (planned("install", branch="580"), None, "580.126.20", False),
        (planned("install", branch="580"), None, "595.71.05", True),
        (planned("install", branch="580", version="580.95.05"), None, "580.126.20", True),
    ],
)
def test_driver_that_the_image_needs(plan, loaded, driver, refused):
    seen = host(driver__loaded_version=loaded)
    problem = told_of("driver_branch", seen, plan, [{**LLAMA, "gpus": ["all"]}], need(driver=driver))
    assert bool(problem) == refused
    assert not problem or f"the image wants {driver} or newer" in problem[0]


@pytest.mark.parametrize("asked", [["gpu_in_use", "memory"], "gpu_in_use, memory"])
def test_checks_are_downgraded_by_name(asked):
    seen = host(driver__holders=[TRAINING], memory__total=GB, os__major="11")
    problems = _preflight.preflight_problems(seen, {**planned(), "warn_only": asked}, [LLAMA])
    assert {item["check"]: item["severity"] for item in problems} == {
        "os": "error",
        "gpu_in_use": "warning",
        "memory": "warning",
    }


def test_check_that_is_none_is_told_with_the_right_names():
    wanted = {**WANTED, "warn_only": ["gpu_inuse", "memory"]}
    (problem,) = _preflight.preflight_problems(HOST, wanted, [LLAMA])
    assert problem["severity"] == "error"
    assert "has 'gpu_inuse', wanted names of checks: os, " in problem["message"]
    assert problem["message"].endswith("Did you mean 'gpu_in_use'?")


def test_real_host_with_a_driver_that_came_with_it():
    """As read on a server with an H200 whose image brought driver 580.159.04."""
    real = json.loads((FIXTURES / "h200" / "gpu_host_info.json").read_text())
    seen = {**HOST, **real, **{key: HOST[key] for key in ("systemd", "time", "clock", "memory", "disks", "listeners")}}
    assert _preflight.preflight_problems(seen, WANTED, [PHI]) == []


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
    assert problem == {
        "check": "driver",
        "message": "nvidia_driver_branch is 58, wanted three digits.",
        "severity": "error",
    }


def test_every_check_can_be_named():
    role = pathlib.Path(__file__).resolve().parents[4] / "roles/preflight"
    option = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert re.findall(r"V\((\w+)\)", option["preflight_warn_only"]["description"]) == list(_preflight.CHECKS)
    comment = (role / "defaults/main.yml").read_text().split("Checks that only warn, by name: ")[1].split(".")[0]
    assert re.findall(r"\w+", comment) == list(_preflight.CHECKS)
    source_text = "".join(pathlib.Path(module.__file__).read_text() for module in (_preflight, _engine))
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


@pytest.mark.parametrize(("role", "ours"), [("nvidia_container_toolkit", "toolkit"), ("container_engine", "engine")])
def test_engine_and_toolkit_are_asked_for_as_their_roles_ask(role, ours):
    roles = pathlib.Path(__file__).resolve().parents[4] / "roles"
    defaults = yaml.safe_load((roles / role / "defaults/main.yml").read_text())
    asked = yaml.safe_load((roles / "preflight/vars/main.yml").read_text())[f"__preflight_{ours}"]
    own = yaml.safe_load((roles / role / "vars/main.yml").read_text())[f"__{role}_wanted"]
    assert asked.keys() == own.keys()
    for key, text in asked.items():
        if text == "{{ preflight_engine }}":
            continue
        name, default = re.fullmatch(r"{{ (\w+) \| default\((.*)\)(?: \| bool)? }}", text).groups()
        assert name in own[key] and (
            yaml.safe_load(default) == defaults[name] or f"{{{{ {default} }}}}" == defaults[name]
        ), name
    wanted = yaml.safe_load((roles / "preflight/vars/main.yml").read_text())["__preflight_wanted"]
    assert wanted["docker_version"] == "{{ container_engine_version | default('') }}"


def test_all_problems_at_once():
    unfit = host(
        os={"distribution": "Rocky", "major": "9", "architecture": "ppc64le", "package_manager": "dnf"},
        engine={"installed": False},
        systemd__version=239,
        python__version="3.6.8",
        memory__total=8 * GB,
        clock={"least": 600.0, "most": 601.0},
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
            {"os__distribution": "Ubuntu", "os__major": "24", "os__architecture": "aarch64"},
            id="another-supported-system",
        ),
        pytest.param({"os__package_manager": "dnf"}, id="docker-that-somebody-else-installed"),
        pytest.param({"systemd__version": 249, "python__version": "3.9.2"}, id="oldest-versions"),
        pytest.param({"python__version": "3.10.12"}, id="versions-are-numbers-not-text"),
        pytest.param({"python__version": "3.14.0rc1"}, id="pre-release"),
        pytest.param({"memory__total": 16 * GB, "clock": {"least": -900.0, "most": -120.0}}, id="just-enough"),
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
            "conmon", {"unit": {"exists": True}, "record": None, "engines": {"podman": ["unit"]}}, 0, id="own-of-podman"
        ),
        pytest.param(
            "conmon",
            {"unit": {"exists": True}, "record": None, "engines": {"docker": ["unit"]}},
            1,
            id="of-another-engine",
        ),
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


# -- users that are the same as those of containers ------------------------------------------------------------------------

UBUNTU = {"1000": {"name": "ubuntu", "shell": "/bin/bash", "logs_in": True}}


def logins(users, *services, **wanted):
    """What is said of users who log in."""
    found = _preflight.preflight_problems(host(users=users), {**WANTED, **wanted}, list(services))
    found = [problem for problem in found if problem["check"] == "login_uid"]
    assert all(problem["severity"] == "warning" for problem in found)
    return [problem["message"] for problem in found]


def test_login_with_the_number_of_containers_is_told_once():
    one, two = {**LLAMA, "uid": 1000}, {**LLAMA, "name": "embed", "port": 8001, "uid": 1000}
    (told,) = logins(UBUNTU, one, two)
    assert told.startswith(
        "uid 1000, as which the containers of llama, embed run, is also that of ubuntu, who logs in to this host (/bin/bash)"
    )
    assert (
        "with the key in it while weights are staged and where a service says key_at_runtime" in told
        and "usermod -u" in told
    )


@pytest.mark.parametrize(
    ("users", "service"),
    [
        pytest.param({}, {"uid": 1000}, id="nobody has it"),
        pytest.param({"1000": {"name": "nim", "shell": "/usr/sbin/nologin", "logs_in": False}}, {"uid": 1000}, id="nobody logs in"),
        pytest.param(UBUNTU, {"uid": 1001}, id="another number"),
        pytest.param({"0": {"name": "root", "shell": "/bin/bash", "logs_in": True}}, {"uid": 0}, id="root reads everything anyway"),
        pytest.param(UBUNTU, {"uid": 1000, "state": "absent"}, id="a service that goes"),
    ],
)  # fmt: skip
def test_login_that_is_nobodys(users, service):
    assert logins(users, {**LLAMA, **service}) == []
