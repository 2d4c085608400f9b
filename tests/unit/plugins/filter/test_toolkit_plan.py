# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done about the container toolkit, from the recorded host and what may differ on others."""

from __future__ import annotations

import copy
import hashlib
import pathlib

import pytest
from ansible_collections.baremetal.nim.plugins.filter.toolkit_plan import FilterModule
from ansible_collections.baremetal.nim.plugins.filter.toolkit_smoke_problems import FilterModule as SmokeModule
from ansible_collections.baremetal.nim.plugins.module_utils import _host, _system, _toolkit_plan

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures/h200-x2"
toolkit_plan = FilterModule().filters()["toolkit_plan"]
smoke_problems = SmokeModule().filters()["toolkit_smoke_problems"]

VERSION = "1.20.0-1"
NAMES = [
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
]
KEY = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
KEY_URL = "https://nvidia.github.io/libnvidia-container/gpgkey"
DEB_URL = "https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)"
RPM_URL = "https://nvidia.github.io/libnvidia-container/stable/rpm/$basearch"
KEY_PATH = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
RPM_KEY_PATH = "/etc/pki/rpm-gpg/RPM-GPG-KEY-nvidia-container-toolkit"
SOURCES = f"Types: deb\nURIs: {DEB_URL}\nSuites: /\nSigned-By: {KEY_PATH}\n"
REPO = f"[nvidia-container-toolkit]\nname=NVIDIA\nbaseurl={RPM_URL}\nenabled=1\ngpgcheck=0\nrepo_gpgcheck=1\ngpgkey=file://{RPM_KEY_PATH}\n"
#: The list that NVIDIA's installation guide has users write.
GUIDE = "".join(
    f"{mark}deb [signed-by=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg]"
    f" https://nvidia.github.io/libnvidia-container/{channel}/deb/$(ARCH) /\n"
    for mark, channel in (("", "stable"), ("#", "experimental"))
)
WANTED = {
    "version": VERSION,
    "repository_url": "",
    "key_url": KEY_URL,
    "key_fingerprint": KEY,
    "hold": True,
    "engine": "docker",
    "rootless": False,
    "feature_flags": [],
}
GPUS = _host.parse_nvidia_smi((FIXTURES / "idle.xml").read_text())["gpus"]
LOADED = "580.159.04"
RUNTIME = "/var/run/cdi/nvidia.yaml"
HAND_MADE = "/etc/cdi/nvidia.yaml"
GENERATED = "/etc/cdi/baremetal-nim.yaml"
FLAG = "no-additional-gids-for-device-nodes"
ON = {"exists": True, "active": True, "enabled": True}
OFF = {"exists": False, "active": False, "enabled": False}


def recorded_spec(path, **changes):
    """The specification that nvidia-ctk wrote on the recorded host, with the UUIDs of the recorded report."""
    text = (FIXTURES / "cdi-nvidia.yaml").read_text()
    found = [name for name in _host.parse_cdi_spec(text)["devices"] if name.startswith("GPU-")]
    for old, gpu in zip(found, GPUS, strict=True):
        text = text.replace(old, gpu["uuid"])
    return {"path": path, **_host.parse_cdi_spec(text), "generated_by": _host.cdi_generator(text), **changes}


def cdi(*specs):
    """The part of gpu_host_info about CDI."""
    return {
        "specs": list(specs),
        "devices": sorted({f"{spec['kind']}={name}" for spec in specs for name in spec["devices"]}),
        "duplicates": _host.duplicate_devices(specs),
    }


def host(**changes):
    """A host with nothing to do, changed."""
    state = {
        "os": {"distribution": "Debian", "version": "13", "major": "13", "architecture": "x86_64", "package_manager": "apt"},
        "driver": {
            "loaded_version": LOADED,
            "error": None,
            "units": {"nvidia-cdi-refresh.service": ON, "nvidia-cdi-refresh.path": ON},
        },
        "gpus": copy.deepcopy(GPUS),
        "cdi": cdi(recorded_spec(RUNTIME)),
        "packages": dict.fromkeys(NAMES, VERSION),
        "package_state": {"holds": list(NAMES), "interrupted": False, "incomplete": []},
        "repositories": _system.parse_repositories("/etc/apt/sources.list.d/nvidia-container-toolkit.sources", SOURCES),
        "keys": {KEY_PATH: [KEY]},
        "files": {_toolkit_plan.DROP_IN: None},
        "toolkit": {"version": "1.20.0"},
        "engine": {"kind": "docker", "installed": True, "version": "28.5.2", "cdi": True},
        "podman": None,
    }  # fmt: skip
    return {**state, **changes}


def enterprise(**changes):
    """A host with Rocky Linux and nothing to do, changed."""
    state = {
        "os": {"distribution": "Rocky", "version": "9.6", "major": "9", "architecture": "x86_64", "package_manager": "dnf"},
        "repositories": _system.parse_repositories("/etc/yum.repos.d/nvidia-container-toolkit.repo", REPO),
        "keys": {RPM_KEY_PATH: [KEY]},
        "engine": {"kind": None, "installed": False, "cdi": False},
        "podman": {"version": "5.4.0"},
    }  # fmt: skip
    return host(**{**state, **changes})


def bare(base=host, **changes):
    """A host with a driver and nothing else of ours."""
    units = {"nvidia-cdi-refresh.service": OFF, "nvidia-cdi-refresh.path": OFF}
    state = {
        "driver": {"loaded_version": LOADED, "error": None, "units": units},
        "cdi": cdi(),
        "packages": {},
        "package_state": {"holds": [], "interrupted": False, "incomplete": []},
        "repositories": [],
        "keys": {},
        "toolkit": {"version": None},
    }
    return base(**{**state, **changes})


def plan(state, **wanted):
    """The plan for a host; the input is left as it was."""
    before = copy.deepcopy(state)
    result = toolkit_plan(state, {**WANTED, **wanted})
    assert state == before
    return result


# -- golden plans ------------------------------------------------------------------------------------------------------

NOTHING = {
    "problems": [],
    "install": False,
    "retired": [],
    "packages": [],
    "unlock": [],
    "missing_holds": [],
    "refresh": "unit",
    "enable_units": [],
    "stale_spec": False,
    "stale_reason": None,
    "spec": RUNTIME,
    "generate": RUNTIME,
    "remove_specs": [],
    "drop_in": {"path": _toolkit_plan.DROP_IN, "content": None, "changed": False},
    "rootless": False,
    "smoke": [
        {"device": "nvidia.com/gpu=0", "gpus": [GPUS[0]["uuid"]]},
        {"device": "nvidia.com/gpu=1", "gpus": [GPUS[1]["uuid"]]},
        {"device": "nvidia.com/gpu=all", "gpus": [GPUS[0]["uuid"], GPUS[1]["uuid"]]},
    ],
    "current": True,
}
NO_SPEC = {
    "stale_spec": True,
    "stale_reason": "there is no CDI specification that nvidia-ctk made of this driver",
    "spec": None,
    "generate": GENERATED,
}
DEB = {
    "key": {"url": KEY_URL, "path": KEY_PATH, "fingerprint": KEY, "current": True},
    "repository": {
        "name": "nvidia-container-toolkit",
        "package_manager": "apt",
        "uris": [DEB_URL],
        "suites": ["/"],
        "components": [],
        "signed_by": KEY_PATH,
        "current": True,
    },
}
RPM = {
    "key": {"url": KEY_URL, "path": RPM_KEY_PATH, "fingerprint": KEY, "current": True},
    "repository": {
        "name": "nvidia-container-toolkit",
        "package_manager": "dnf",
        "baseurl": RPM_URL,
        "gpgkey": f"file://{RPM_KEY_PATH}",
        "current": True,
    },
}


def missing(origin):
    """Key and repository that are not there yet."""
    return {name: {**part, "current": False} for name, part in origin.items()}


@pytest.mark.parametrize(
    ("state", "wanted", "expected"),
    [
        pytest.param(host(), {}, {**NOTHING, **DEB}, id="apt, nothing to do"),
        pytest.param(enterprise(), {"engine": "podman"}, {**NOTHING, **RPM}, id="dnf, nothing to do"),
        pytest.param(
            bare(),
            {},
            {
                **NOTHING,
                **missing(DEB),
                **NO_SPEC,
                "install": True,
                "packages": [f"{name}={VERSION}" for name in NAMES],
                "missing_holds": NAMES,
                "current": False,
            },
            id="apt, bare",
        ),
        pytest.param(
            bare(enterprise),
            {"engine": "podman"},
            {
                **NOTHING,
                **missing(RPM),
                **NO_SPEC,
                "install": True,
                "packages": [f"{name}-{VERSION}" for name in NAMES],
                "missing_holds": NAMES,
                "current": False,
            },
            id="dnf, bare",
        ),
        pytest.param(
            enterprise(packages=dict.fromkeys(NAMES, "1.19.0-1")),
            {"engine": "podman"},
            {
                **NOTHING,
                **RPM,
                "install": True,
                "packages": [f"{name}-{VERSION}" for name in NAMES],
                "unlock": NAMES,
                "current": False,
            },
            id="dnf, upgrade of locked packages",
        ),
        pytest.param(
            bare(),
            {"version": "1.17.8-1", "hold": False, "repository_url": "http://mirror.site/toolkit/"},
            {
                **NOTHING,
                **NO_SPEC,
                "key": {**DEB["key"], "current": False},
                "repository": {**DEB["repository"], "uris": ["http://mirror.site/toolkit/"], "current": False},
                "install": True,
                "packages": [f"{name}=1.17.8-1" for name in NAMES],
                "refresh": "generate",
                "current": False,
            },
            id="apt, old toolkit from a mirror",
        ),
    ],
)
def test_golden(state, wanted, expected):
    assert plan(state, **wanted) == expected


def test_a_second_look_after_all_was_done_finds_nothing():
    """What the plan for a bare host brings about is what the plan of a host with nothing to do was made from."""
    first = plan(bare())
    done = host(
        keys={first["key"]["path"]: [first["key"]["fingerprint"]]},
        packages=dict(spec.split("=") for spec in first["packages"]),
        package_state={"holds": first["missing_holds"], "interrupted": False, "incomplete": []},
    )
    assert plan(done)["current"]


# -- packages, keys and repositories -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packages",
    [
        pytest.param({**dict.fromkeys(NAMES, VERSION), "libnvidia-container1": "1.19.1-1"}, id="one behind"),
        pytest.param({**dict.fromkeys(NAMES, VERSION), "nvidia-container-toolkit": "1.20.1-1"}, id="one ahead"),
        pytest.param(dict.fromkeys(NAMES[:3], VERSION), id="one missing"),
        pytest.param(dict.fromkeys(NAMES, "1.21.0-1"), id="all ahead"),
    ],
)
def test_packages_move_together(packages):
    result = plan(host(packages=packages))
    assert result["packages"] == [f"{name}={VERSION}" for name in NAMES]
    assert result["install"] and not result["current"]


@pytest.mark.parametrize(
    ("holds", "hold", "missing_holds"),
    [
        (NAMES, True, []),
        (NAMES[1:], True, NAMES[:1]),
        ([], True, NAMES),
        ([], False, []),
        (["docker-ce"], True, NAMES),
    ],
)
def test_pain_2_only_missing_holds(holds, hold, missing_holds):
    result = plan(host(package_state={"holds": holds, "interrupted": False, "incomplete": []}), hold=hold)
    assert result["missing_holds"] == missing_holds
    assert not result["install"]
    assert result["current"] is not bool(missing_holds)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="no key"),
        pytest.param({KEY_PATH: ["AE09FE4BBD223A84B2CCFCE3F60F4B3D7FA2AF80"]}, id="another"),
        pytest.param({KEY_PATH: [KEY, "AE09FE4BBD223A84B2CCFCE3F60F4B3D7FA2AF80"]}, id="one too many"),
        pytest.param({KEY_PATH: []}, id="no keyring"),
        pytest.param({"/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg": [KEY]}, id="elsewhere"),
    ],
)
def test_pain_8_the_key_counts_by_its_fingerprint(keys):
    result = plan(host(keys=keys))
    assert not result["key"]["current"] and result["install"]
    assert result["packages"] == [] and result["problems"] == []


def test_pain_8_fingerprints_may_be_written_in_groups():
    assert plan(host(), key_fingerprint="c95b 321b 61e8 8c18 09c4  f759 ddca e044 f796 ecb0")["current"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        pytest.param("/etc/apt/sources.list.d/nvidia-container-toolkit.list", GUIDE, id="of NVIDIA's guide"),
        pytest.param(
            "/etc/apt/sources.list.d/libnvidia-container.list",
            "deb https://nvidia.github.io/libnvidia-container/stable/deb/amd64/ /\n",
            id="architecture spelled out",
        ),
        pytest.param(
            "/etc/apt/sources.list.d/toolkit.sources",
            f"Types: deb\nURIs: {DEB_URL}/\nSuites: /\n",
            id="in the new form",
        ),
    ],
)
def test_pain_9_a_second_list_goes(path, text):
    state = host(repositories=[*host()["repositories"], *_system.parse_repositories(path, text)])
    result = plan(state)
    assert result["retired"] == [path]
    assert result["problems"] == [] and result["install"]


def test_pain_9_a_list_with_other_repositories_is_not_ours_to_remove():
    path = "/etc/apt/sources.list"
    text = "deb http://deb.debian.org/debian trixie main\ndeb https://nvidia.github.io/libnvidia-container/stable/deb/amd64 /\n"
    result = plan(host(repositories=[*host()["repositories"], *_system.parse_repositories(path, text)]))
    assert result["retired"] == []
    (problem,) = result["problems"]
    assert (
        path in problem and "Conflicting values set for option Signed-By" in problem and "remove the entry" in problem
    )


@pytest.mark.parametrize(
    "text",
    [
        SOURCES.replace("stable", "experimental"),
        SOURCES.replace(KEY_PATH, "/usr/share/keyrings/other.gpg"),
        SOURCES + "Enabled: no\n",
        "",
    ],
    ids=["another", "another key", "switched off", "empty"],
)
def test_repository_is_written_again_when_it_differs(text):
    path = "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"
    result = plan(host(repositories=_system.parse_repositories(path, text)))
    assert not result["repository"]["current"] and result["install"]
    assert result["problems"] == []


@pytest.mark.parametrize(
    "text",
    [
        REPO.replace("stable", "experimental"),
        REPO.replace(f"file://{RPM_KEY_PATH}", KEY_URL),
        REPO.replace("enabled=1", "enabled=0"),
    ],
    ids=["another", "key from the network", "switched off"],
)
def test_yum_repository_is_written_again_when_it_differs(text):
    path = "/etc/yum.repos.d/nvidia-container-toolkit.repo"
    assert not plan(enterprise(repositories=_system.parse_repositories(path, text)))["repository"]["current"]


# -- problems ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "1.20.0"}, ["nvidia_container_toolkit_version is 1.20.0", "1.20.0-1"]),
        ({"version": "latest"}, ["latest", "apt-cache madison"]),
        ({"key_fingerprint": "F796ECB0"}, ["F796ECB0", "40 hexadecimal digits"]),
        ({"engine": "containerd"}, ["containerd", "docker or podman"]),
    ],
)
def test_bad_input(changes, told):
    result = plan(host(), **changes)
    (problem,) = result["problems"]
    assert not [text for text in told if text not in problem]
    assert not result["current"] and result["packages"] == []


def test_every_problem_is_told_at_once():
    assert len(plan(host(), version="x", key_fingerprint="y", engine="z")["problems"]) == 3


def test_a_system_with_another_package_manager():
    (problem,) = plan(host(os={**host()["os"], "package_manager": "zypper"}))["problems"]
    assert "zypper" in problem and "apt or dnf" in problem


def test_interrupted_dpkg_matters_only_when_something_is_installed():
    state = {"holds": NAMES, "interrupted": True, "incomplete": ["libcuda1"]}
    assert plan(host(package_state=state))["problems"] == []
    (problem,) = plan(host(package_state=state, packages={}))["problems"]
    assert "libcuda1" in problem and "dpkg --configure -a" in problem


@pytest.mark.parametrize(
    ("podman", "version", "flags", "refused"),
    [
        ("3.4.4", "1.17.8-1", [], "knows no CDI"),
        ("4.9.3", "1.18.2-1", [], None),
        ("4.9.3", "1.19.0-1", [], None),
        ("4.9.3", "1.19.1-1", [], "CDI 0.7.0"),
        ("4.9.3", "1.20.0-1", [], "CDI 0.7.0"),
        ("4.9.3", "1.20.0-1", [FLAG], None),
        ("5.0.3", "1.19.1-1", [], "CDI 0.7.0"),
        ("5.1.0", "1.19.1-1", [], None),
        ("5.10.0", "1.20.0-1", [], None),
        (None, "1.20.0-1", [], None),
    ],
)
def test_pain_3_podman_before_5_1_does_not_read_what_1_19_1_writes(podman, version, flags, refused):
    state = enterprise(podman={"version": podman} if podman else None)
    problems = plan(state, engine="podman", version=version, feature_flags=flags)["problems"]
    if refused is None:
        assert problems == []
    else:
        (problem,) = problems
        assert f"Podman is {podman}" in problem and refused in problem
        assert refused == "knows no CDI" or (FLAG in problem and "1.19.0-1" in problem)


def test_pain_3_podman_does_not_matter_where_docker_is_used():
    assert plan(host(podman={"version": "4.9.3"}))["problems"] == []


@pytest.mark.parametrize(
    ("docker", "flags", "refused"),
    [
        ("20.10.24", [], "knows no CDI"),
        ("24.0.7", [FLAG], "knows no CDI"),
        ("25.0.5", [], "CDI 0.7.0"),
        ("25.0.5", [FLAG], None),
        ("26.1.5+dfsg1", [], None),
        ("27.5.1", [], None),
        ("28.5.2", [], None),
        ("29.2.0", [], None),
    ],
)
def test_versions_of_docker(docker, flags, refused):
    problems = plan(host(engine={"kind": "docker", "version": docker}), feature_flags=flags)["problems"]
    assert [refused in problem for problem in problems] == ([] if refused is None else [True])
    assert not [problem for problem in problems if "container_engine_source: docker" not in problem]


# -- CDI ---------------------------------------------------------------------------------------------------------------

MIG = [
    {"uuid": None, "name": "0:0", "memory_total_mib": 16384},
    {"uuid": None, "name": "0:1", "memory_total_mib": 16384},
]
PARTS = [{**part, "uuid": f"MIG-{number}"} for number, part in enumerate(MIG)]


def with_mig(parts):
    """The recorded GPUs, the first one in parts."""
    return [{**copy.deepcopy(GPUS[0]), "mig_enabled": True, "mig_devices": parts}, copy.deepcopy(GPUS[1])]


def spec_of(*names):
    return recorded_spec(RUNTIME, devices=[*names, "all"])


@pytest.mark.parametrize(
    ("gpus", "spec", "reason"),
    [
        pytest.param(GPUS, recorded_spec(RUNTIME), None, id="recorded"),
        pytest.param(
            GPUS,
            recorded_spec(RUNTIME, driver_version="595.71.05"),
            f"{RUNTIME} is of driver 595.71.05, loaded is {LOADED}",
            id="of another driver",
        ),
        pytest.param(GPUS, recorded_spec(RUNTIME, driver_version=None), None, id="tells no driver"),
        pytest.param(GPUS, spec_of("0", GPUS[0]["uuid"]), f"{RUNTIME} lacks 1", id="a GPU was added"),
        pytest.param(
            GPUS[:1],
            recorded_spec(RUNTIME),
            f"{RUNTIME} has 1, {GPUS[1]['uuid']}, no longer there",
            id="a GPU was taken out",
        ),
        pytest.param(
            [GPUS[0], {**GPUS[1], "uuid": "GPU-new"}],
            recorded_spec(RUNTIME),
            f"{RUNTIME} has {GPUS[1]['uuid']}, no longer there",
            id="a GPU was exchanged",
        ),
        pytest.param(GPUS, spec_of("gpu0", "gpu1"), None, id="other naming"),
        pytest.param(GPUS, spec_of(*(gpu["uuid"] for gpu in GPUS)), None, id="UUIDs only"),
        pytest.param(with_mig(MIG), recorded_spec(RUNTIME), f"{RUNTIME} lacks 0:0, 0:1", id="MIG was switched on"),
        pytest.param(with_mig(MIG), spec_of("0:0", "0:1", "MIG-a", "MIG-b", "1", GPUS[1]["uuid"]), None, id="MIG"),
        pytest.param(
            with_mig(MIG), spec_of("0:0", "0:1", "0:2", "1"), f"{RUNTIME} has 0:2, no longer there", id="fewer parts"
        ),
        pytest.param(with_mig([]), spec_of("1", GPUS[1]["uuid"]), None, id="MIG without parts"),
        pytest.param(GPUS, spec_of("0:0", "1"), f"{RUNTIME} lacks 0", id="MIG was switched off"),
        pytest.param(with_mig(PARTS), spec_of("mig0:0", "mig0:1", "gpu1"), None, id="other naming of parts"),
        pytest.param(
            with_mig(PARTS),
            spec_of("0:0", "0:1", "MIG-0", "MIG-old", "1"),
            f"{RUNTIME} has MIG-old, no longer there",
            id="parts were made anew",
        ),
    ],
)
def test_pain_4_stale_specifications(gpus, spec, reason):
    result = plan(host(gpus=gpus, cdi=cdi(spec)))
    assert result["stale_reason"] == reason
    assert result["stale_spec"] is (reason is not None)
    assert result["current"] is (reason is None)
    assert not result["install"] and result["problems"] == []


def test_pain_5_no_specification_after_a_boot():
    result = plan(host(cdi=cdi()))
    assert result["stale_spec"] and result["refresh"] == "unit" and result["remove_specs"] == []


def test_pain_5_units_that_would_not_start_at_boot():
    units = {"nvidia-cdi-refresh.service": ON, "nvidia-cdi-refresh.path": {**ON, "enabled": False}}
    result = plan(host(driver={"loaded_version": LOADED, "error": None, "units": units}))
    assert result["enable_units"] == ["nvidia-cdi-refresh.path"] and not result["current"]


def test_without_a_loaded_driver_nothing_can_be_refreshed():
    state = host(driver={**host()["driver"], "loaded_version": None, "error": "no driver"}, gpus=[], cdi=cdi())
    result = plan(state)
    assert not result["stale_spec"] and result["smoke"] == []


@pytest.mark.parametrize(
    ("specs", "removed", "stale"),
    [
        pytest.param([recorded_spec(HAND_MADE), recorded_spec(RUNTIME)], [HAND_MADE], False, id="beside the unit's"),
        pytest.param(
            [recorded_spec(HAND_MADE, driver_version="550.54.15"), recorded_spec(RUNTIME)],
            [HAND_MADE],
            False,
            id="stale, beside the unit's",
        ),
        pytest.param([recorded_spec(HAND_MADE, driver_version="550.54.15")], [HAND_MADE], True, id="stale, alone"),
        # What the unit was told to write elsewhere, or what serves where the unit cannot.
        pytest.param([recorded_spec(HAND_MADE)], [], False, id="fresh, alone"),
        pytest.param(
            [recorded_spec(HAND_MADE, generated_by=None), recorded_spec(RUNTIME)], [], False, id="not made by nvidia-ctk"
        ),
        pytest.param([recorded_spec(HAND_MADE, generated_by=None)], [], True, id="not made by nvidia-ctk, alone"),
        pytest.param(
            [recorded_spec("/etc/cdi/site.yaml"), recorded_spec(RUNTIME)], [], False, id="of another name"
        ),
        pytest.param([recorded_spec(GENERATED), recorded_spec(RUNTIME)], [GENERATED], False, id="ours of before"),
    ],
)  # fmt: skip
def test_pain_4_only_what_nvidia_ctk_made_by_hand_is_removed(specs, removed, stale):
    result = plan(host(cdi=cdi(*specs)))
    assert (result["remove_specs"], result["stale_spec"]) == (removed, stale)
    assert result["current"] is not (bool(removed) or stale)


def test_specifications_of_another_kind_are_nobodys_business():
    other = recorded_spec(HAND_MADE, kind="example.com/camera", generated_by=None, driver_version=None)
    assert plan(host(cdi=cdi(other, recorded_spec(RUNTIME))))["current"]


def test_two_files_of_one_folder_that_define_the_same_devices():
    one = recorded_spec("/etc/cdi/site.yaml", generated_by=None)
    two = recorded_spec("/etc/cdi/other.yaml", generated_by=None)
    (problem,) = plan(host(cdi=cdi(one, two, recorded_spec(RUNTIME))))["problems"]
    assert "/etc/cdi/other.yaml and /etc/cdi/site.yaml" in problem


NO_UNIT = {"loaded_version": LOADED, "error": None, "units": {"nvidia-cdi-refresh.service": OFF}}


@pytest.mark.parametrize(
    ("specs", "stale", "path"),
    [
        ([], True, GENERATED),
        ([recorded_spec(GENERATED)], False, GENERATED),
        ([recorded_spec(GENERATED, driver_version="550.54.15")], True, GENERATED),
        ([recorded_spec(HAND_MADE, driver_version="550.54.15")], True, HAND_MADE),
        ([recorded_spec(HAND_MADE, generated_by=None)], True, GENERATED),
    ],
)
def test_without_a_unit_the_role_generates(specs, stale, path):
    state = host(driver=NO_UNIT, cdi=cdi(*specs), packages=dict.fromkeys(NAMES, "1.17.8-1"))
    result = plan(state, version="1.17.8-1")
    assert (result["refresh"], result["stale_spec"], result["generate"]) == ("generate", stale, path)
    assert result["remove_specs"] == [] and result["drop_in"]["changed"] is False


@pytest.mark.parametrize(
    ("flags", "found", "changed"),
    [
        ([], None, False),
        ([], "somebody's", True),
        ([FLAG], None, True),
        ([FLAG], "somebody's", True),
        ([FLAG], "ours", False),
        ([FLAG, "other"], "ours", True),
    ],
)
def test_settings_of_the_unit(flags, found, changed):
    ours = f"# Managed by Ansible (baremetal.nim.nvidia_container_toolkit).\n[Service]\nEnvironment=NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS={FLAG}\n"
    sums = {"ours": hashlib.sha256(ours.encode()).hexdigest(), "somebody's": "0" * 64, None: None}
    result = plan(host(files={_toolkit_plan.DROP_IN: sums[found]}), feature_flags=flags)
    assert result["drop_in"]["changed"] is changed
    assert result["current"] is not changed
    if flags == [FLAG]:
        assert result["drop_in"]["content"] == ours


@pytest.mark.parametrize(
    ("engine", "rootless", "looked_at"), [("docker", True, True), ("docker", False, False), ("podman", True, False)]
)
def test_rootless(engine, rootless, looked_at):
    assert plan(enterprise(), engine=engine, rootless=rootless)["rootless"] is looked_at


# -- smoke test --------------------------------------------------------------------------------------------------------


def test_pain_1_and_11_devices_are_given_by_cdi_names():
    """No --gpus, no runtime of the toolkit, no key of daemon.json: nothing that a daemon-reload could take away again."""
    names = [case["device"] for case in plan(host())["smoke"]]
    assert set(names) <= set(host()["cdi"]["devices"])
    assert plan(host(cdi=cdi(spec_of("gpu0", "gpu1"))))["smoke"][0]["device"] == "nvidia.com/gpu=gpu0"


def test_smoke_cases_of_mig():
    result = plan(host(gpus=with_mig(MIG), cdi=cdi(spec_of("0:0", "0:1", "1"))))
    assert [case["device"].split("=")[1] for case in result["smoke"]] == ["0:0", "0:1", "1", "all"]
    assert result["smoke"][-1]["gpus"] == [None, None, GPUS[1]["uuid"]]


LISTING = (FIXTURES / "host-and-list.txt").read_text()
MIG_LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.71gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.71gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA H200 (UUID: GPU-caeb3268-9936-df2a-bc13-35e47524eda0)
"""


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        (
            LISTING,
            ["GPU-3db224f2-8b7b-3d0b-797e-4fe0482b468b", "GPU-caeb3268-9936-df2a-bc13-35e47524eda0"],
        ),
        (
            MIG_LISTING,
            [
                "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
                "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
                "GPU-caeb3268-9936-df2a-bc13-35e47524eda0",
            ],
        ),
        ("", []),
        ("No devices found.\n", []),
    ],
    ids=["recorded", "mig", "empty", "none"],
)
def test_listed(text, uuids):
    assert _toolkit_plan.listed(text) == uuids


def ran(device, gpus, seen=(), **result):
    """One result of the loop."""
    lines = "".join(f"GPU {number}: NVIDIA H200 (UUID: {uuid})\n" for number, uuid in enumerate(seen))
    return {"item": {"device": device, "gpus": gpus}, "rc": 0, "stdout": lines, **result}


@pytest.mark.parametrize(
    ("result", "told"),
    [
        pytest.param(ran("nvidia.com/gpu=0", ["GPU-a"], ["GPU-a"]), [], id="its GPU"),
        pytest.param(ran("nvidia.com/gpu=all", ["GPU-a", "GPU-b"], ["GPU-b", "GPU-a"]), [], id="all"),
        pytest.param(ran("nvidia.com/gpu=0:0", [None], ["MIG-x"]), [], id="a MIG device of unknown UUID"),
        pytest.param(
            ran("nvidia.com/gpu=0", ["GPU-a"], ["GPU-a", "GPU-b"]), ["lists GPU-a, GPU-b, wanted exactly GPU-a"], id="too many"
        ),
        pytest.param(ran("nvidia.com/gpu=1", ["GPU-b"], ["GPU-a"]), ["lists GPU-a, wanted exactly GPU-b"], id="another"),
        pytest.param(ran("nvidia.com/gpu=0", ["GPU-a"]), ["lists no GPU"], id="none"),
        pytest.param(ran("nvidia.com/gpu=0:0", [None]), ["lists no GPU, wanted exactly 1 MIG device(s)"], id="no MIG device"),
        pytest.param(
            ran("nvidia.com/gpu=0", ["GPU-a"], rc=125, stderr="docker: Error response from daemon:\nunresolvable CDI devices"),
            ["the container failed (docker: Error response from daemon: unresolvable CDI devices)", "nvidia-ctk cdi list"],
            id="failed",
        ),
        pytest.param(
            {"item": {"device": "nvidia.com/gpu=0", "gpus": ["GPU-a"]}, "msg": "[Errno 2] No such file or directory: b'docker'"},
            ["No such file or directory: b'docker'"],
            id="no engine",
        ),
    ],
)  # fmt: skip
def test_smoke_problems(result, told):
    problems = smoke_problems([result, ran("nvidia.com/gpu=9", ["GPU-z"], ["GPU-z"])])
    assert len(problems) == bool(told)
    assert not [text for text in told if text not in problems[0]]
    assert not problems or problems[0].startswith(f"{result['item']['device']}: ")
