# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for every system, source, branch and hardware against golden files, and the decisions in them one by one.

The golden files are read by people: after a wanted change, UPDATE_GOLDEN=1 pytest tests/unit/plugins/filter/test_driver_plan.py
writes them anew, and the difference is what the review is about.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pathlib

import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _driver_data as data
from ansible_collections.baremetal.nim.plugins.module_utils import _driver_plan
from ansible_collections.baremetal.nim.plugins.module_utils._driver_plan import (
    driver_plan,
    reboot_reason,
    transaction_problems,
)

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden/driver_plan"
KERNELS = {
    ("Debian", "12"): "6.1.0-40-amd64",
    ("Debian", "13"): "6.12.48+deb13-amd64",
    ("Ubuntu", "22.04"): "5.15.0-157-generic",
    ("Ubuntu", "24.04"): "6.8.0-85-generic",
    ("Ubuntu", "26.04"): "7.0.0-14-generic",
    ("RedHat", "8.10"): "4.18.0-553.el8_10.x86_64",
    ("RedHat", "9.6"): "5.14.0-570.el9.x86_64",
    ("RedHat", "10.1"): "6.12.0-124.el10.x86_64",
    ("Rocky", "8.10"): "4.18.0-553.el8_10.x86_64",
    ("Rocky", "9.6"): "5.14.0-570.el9.x86_64",
    ("Rocky", "10.1"): "6.12.0-124.el10.x86_64",
}
HARDWARE = {
    "pcie": {"device": ("2331", "H100 PCIe", "Hopper")},
    "hgx_h200": {"device": ("2335", "H200 SXM", "Hopper"), "nvswitches": 4},
    "hgx_b200": {"device": ("2901", "B200", "Blackwell"), "nvlink5": True},
    "gb200": {"device": ("2941", "GB200", "Blackwell"), "grace": True, "multi_node_nvlink": True},
}
WANTED = {
    "source": "cuda_repo", "branch": "580", "version": "", "flavour": "open", "compute_only": True, "kernel": "", "hold": True,
    "persistence": True, "mirror_url": "", "mirror_suite": "/", "mirror_key_url": "", "mirror_key_fingerprint": "",
}  # fmt: skip
MIRROR = {
    "source": "mirror",
    "mirror_url": "https://mirror.example.com/nvidia/",
    "mirror_key_url": "https://mirror.example.com/nvidia/key.asc",
    "mirror_key_fingerprint": "0123 4567 89AB CDEF 0123 4567 89AB CDEF 0123 4567",
}
INSTALLED = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "libnvidia-ml1", "nvidia-persistenced")


def wanted(**changes):
    return {**WANTED, **changes}


def host(distribution="Debian", version="13", arch="x86_64", hardware="pcie", **changes):
    """A bare host, with what CHANGES says; a name with two underscores is one level down."""
    facts = HARDWARE[hardware]
    device, name, architecture = facts["device"]
    state = {
        "os": {"distribution": distribution, "version": version, "major": version.split(".")[0], "architecture": arch},
        "hardware": {
            "gpus": [{"address": "0000:18:00.0", "device_id": device, "class": "0302", "name": name, "architecture": architecture, "driver": None}],
            "nvswitches": facts.get("nvswitches", 0),
            **{key: facts.get(key, False) for key in ("nvlink5", "grace", "multi_node_nvlink")},
        },
        "driver": {
            "loaded_version": None, "module_version": None, "error": "nvidia-smi is not installed",
            "nouveau": {"loaded": False, "bound": []}, "units": {}, "stopped_units": [],
        },
        "kernel": {"running": KERNELS.get((distribution, version), "6.0"), "headers": False},
        "packages": {},
        "package_state": {"holds": [], "interrupted": False, "incomplete": []},
        "repositories": [],
        "keys": {},
        "files": {},
        "updates": {"unattended_upgrades": True, "needrestart": False},
    }  # fmt: skip
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            state[outer][inner] = value
        else:
            state[outer] = value
    return state


def with_driver(version="580.159.04", names=INSTALLED, **changes):
    """A Debian 13 host where the role has done its work."""
    done = host(
        packages=dict.fromkeys(names, f"{version}-1"),
        package_state={"holds": list(names), "interrupted": False, "incomplete": []},
        kernel={"running": KERNELS["Debian", "13"], "headers": True},
    )
    done["driver"].update(
        loaded_version=version,
        module_version=version,
        error=None,
        units={"nvidia-persistenced.service": {"exists": True, "active": True, "enabled": True}},
    )
    for path, content, _effect in (data.NOUVEAU, data.UNATTENDED, data.PERSISTENCED):
        done["files"][path] = hashlib.sha256(content.encode()).hexdigest()
    plan = driver_plan(done, WANTED)
    for repository in plan["repositories"]:
        done["repositories"].append(
            {**repository, "path": f"/etc/apt/sources.list.d/{repository['name']}.sources", "enabled": True, "types": ["deb"], "origin": "cuda"}
        )  # fmt: skip
    done["keys"] = {key["path"]: key["fingerprints"] for key in plan["keys"]}
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            done[outer][inner] = value
        else:
            done[outer] = value
    return done


# -- golden plans --------------------------------------------------------------------------------------------------

CASES = {
    f"{distribution.lower()}-{version}-{source}": (distribution, version, source)
    for distribution, version in KERNELS
    for source in ("cuda_repo", "distribution", "mirror")
}
# The system makes no difference to a driver that is not touched.
CASES["ubuntu-24.04-preinstalled"] = ("Ubuntu", "24.04", "preinstalled")


def of_branch(wish):
    """A branch, or a version and its branch."""
    return {"branch": wish.split(".")[0], "version": wish if "." in wish else ""}


def cdn(kind, arch="x86_64", **changes):
    """A repository of a registered Red Hat Enterprise Linux as gpu_host_info tells it."""
    entry = {"name": f"rhel-10-for-{arch}-{kind}-rpms", "path": "/etc/yum.repos.d/redhat.repo", "enabled": False, "types": ["rpm"],
             "uris": ["https://cdn.redhat.com/"], "suites": [], "components": [], "signed_by": None, "origin": "distribution"}  # fmt: skip
    return {**entry, **changes}


def golden(distribution, version, source):
    """What the plans of one system and source say, for the branches, architectures and hardware worth telling apart."""
    plans = {}
    combinations = [("580", "x86_64", hardware) for hardware in HARDWARE if hardware != "gb200"]
    combinations += [(branch, "x86_64", "hgx_h200") for branch in ("570", "595", "620")]
    combinations += [("580", "aarch64", "gb200"), ("620", "aarch64", "gb200")]
    if distribution == "Debian" and source == "distribution":
        combinations.append((data.DEBIAN_BRANCH[version], "x86_64", "pcie"))
    if (distribution, version, source) == ("RedHat", "10.1", "distribution"):
        combinations += [
            ("595.71.05", "x86_64", "pcie"),
            ("595.71.05", "aarch64", "pcie"),
            ("595.71.05", "x86_64", "hgx_h200"),
        ]
    for wish, arch, hardware in combinations:
        repositories = [{"enabled": True, "origin": "distribution", "components": ["main", *data.DEBIAN_COMPONENTS], "path": "/etc/apt/sources.list",
                         "uris": ["http://deb.debian.org/debian"], "suites": ["stable"], "signed_by": None}]  # fmt: skip
        repositories += (
            [cdn(kind, arch) for kind in ("extensions", "supplementary")] if distribution == "RedHat" else []
        )
        changes = wanted(**(MIRROR if source == "mirror" else {"source": source}), **of_branch(wish))
        plan = driver_plan(host(distribution, version, arch, hardware, repositories=repositories), changes)
        kept = {
            key: plan[key]
            for key in (
                "problems",
                "keys",
                "repositories",
                "module_stream",
                "versionlock",
                "prerequisites",
                "enable",
                "pins",
                "packages",
                "command",
            )
        }
        kept["services"] = [item["name"] for item in plan["services"] if item["needed"]]
        kept["files"] = [item["path"] for item in plan["files"]]
        plans[f"{wish} {arch} {hardware}"] = {key: value for key, value in kept.items() if value}
    return plans


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    path = GOLDEN / f"{name}.json"
    plans = golden(*CASES[name])
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
    assert plans == json.loads(path.read_text(encoding="utf-8"))


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CASES)


# -- decisions -----------------------------------------------------------------------------------------------------


def test_bare_host_gets_everything_in_order():
    plan = driver_plan(host(), wanted())
    assert plan["change"] == "install" and not plan["current"] and plan["problems"] == []
    assert plan["prerequisites"] == ["linux-headers-6.12.48+deb13-amd64"]
    assert plan["pins"] == ["nvidia-driver-pinning-580"]
    assert plan["packages"] == [
        "nvidia-driver-cuda=580.*",
        "nvidia-kernel-open-dkms=580.*",
        "nvidia-persistenced=580.*",
    ]
    assert plan["missing_holds"] == []


def test_host_where_all_is_done_needs_nothing():
    plan = driver_plan(with_driver(), wanted())
    assert plan["current"] and plan["change"] == "none" and plan["installed_version"] == "580.159.04"
    for key in ("problems", "prerequisites", "pins", "packages", "missing_holds"):
        assert plan[key] == []
    assert all(item["current"] for item in plan["keys"] + plan["repositories"] + plan["services"])
    assert plan["retired"] == {"files": [], "packages": []}


@pytest.mark.parametrize(
    ("installed", "changes", "change", "spec"),
    [
        ("580.126.20", {}, "none", None),
        ("580.126.20", {"version": "580.159.04"}, "upgrade", "nvidia-driver-cuda=580.159.04-*"),
        ("580.159.04", {"version": "580.126.20"}, "downgrade", "nvidia-driver-cuda=580.126.20-*"),
        ("580.159.04", {"branch": "595"}, "upgrade", "nvidia-driver-cuda=595.*"),
        ("595.71.05", {}, "downgrade", "nvidia-driver-cuda=580.*"),
        ("580.95.05", {"version": "580.105.08"}, "upgrade", "nvidia-driver-cuda=580.105.08-*"),
    ],
)
def test_up_down_or_nothing(installed, changes, change, spec):
    plan = driver_plan(with_driver(installed), wanted(**changes))
    assert plan["change"] == change
    assert (spec in plan["packages"]) if spec else plan["packages"] == []


def test_pain_10_held_packages_are_named_or_apt_would_leave_them_behind():
    plan = driver_plan(with_driver(), wanted(branch="595"))
    assert {spec.split("=")[0] for spec in plan["packages"]} == set(INSTALLED)
    assert all(spec.endswith("=595.*") for spec in plan["packages"])


def test_installation_of_the_driver_that_was_cut_off_is_finished():
    state = with_driver(
        package_state={"holds": [], "interrupted": True, "incomplete": ["libcuda1", "nvidia-kernel-support"]}
    )
    del state["packages"]["libcuda1"]
    plan = driver_plan(state, wanted())
    assert plan["problems"] == [] and plan["interrupted"] and plan["change"] == "switch"
    assert {"libcuda1=580.*", "nvidia-kernel-support=580.*"} <= set(plan["packages"])
    state["packages"]["nvidia-kernel-common"] = "570.86.15-1"
    assert "nvidia-kernel-common=580.*" in driver_plan(state, wanted())["packages"]
    assert not driver_plan(with_driver(), wanted())["interrupted"]


def test_pain_12_headers_that_went_missing_come_back_without_a_change_of_the_driver():
    plan = driver_plan(with_driver(kernel__headers=False), wanted())
    assert plan["change"] == "none" and plan["packages"] == [] and not plan["current"]
    assert plan["prerequisites"] == ["linux-headers-6.12.48+deb13-amd64"]


@pytest.mark.parametrize(
    ("system", "branch", "names"),
    [
        (
            ("Ubuntu", "24.04"), "580",
            (
                "libnvidia-compute-580 nvidia-compute-utils-580 nvidia-utils-580 nvidia-dkms-580-open"
                " nvidia-fabricmanager libnvidia-nscq nvlsm libnvsdm"
            ),
        ),
        (
            ("Ubuntu", "24.04"), "595",
            "libnvidia-compute nvidia-dkms-open nvidia-persistenced nvidia-fabricmanager libnvidia-nscq nvlsm libnvsdm",
        ),
        (
            ("Debian", "12"), "570",
            (
                "nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced"
                " nvidia-fabricmanager-570 libnvidia-nscq-570 nvlsm libnvsdm-570"
            ),
        ),
        (
            ("Rocky", "9.6"), "570",
            "nvidia-driver-cuda kmod-nvidia-open-dkms nvidia-persistenced nvidia-fabric-manager libnvidia-nscq-570 nvlsm libnvsdm-570",
        ),
    ],
)  # fmt: skip
def test_pain_6_and_7_names_before_and_after_they_lost_their_branch(system, branch, names):
    plan = driver_plan(host(*system, hardware="hgx_b200"), wanted(branch=branch))
    assert [spec.split("=")[0] for spec in plan["packages"]] == names.split()


def test_pain_7_imex_of_rpm_carried_its_branch_too():
    plan = driver_plan(host("Rocky", "9.6", arch="aarch64", hardware="gb200"), wanted(branch="570"))
    assert "nvidia-imex-570" in plan["packages"]


def test_packages_named_after_their_branch_are_left_to_conflicts():
    names = (
        "libnvidia-compute-580",
        "nvidia-dkms-580-open",
        "nvidia-utils-580",
        "nvidia-compute-utils-580",
        "libnvidia-cfg1-580",
    )
    old = host("Ubuntu", "24.04", packages=dict.fromkeys(names, "580.159.04-1ubuntu1"))
    plan = driver_plan(old, wanted(branch="595"))
    assert plan["change"] == "upgrade"
    assert [spec for spec in plan["packages"] if "580" in spec] == []
    plan = driver_plan(old, wanted(version="580.173.02"))
    assert "libnvidia-cfg1-580=580.173.02-*" in plan["packages"]


def test_pain_6_packages_out_of_step_are_brought_into_step():
    plan = driver_plan(
        with_driver(packages={**dict.fromkeys(INSTALLED, "580.159.04-1"), "libnvidia-ml1": "580.126.20-1"}), wanted()
    )
    assert plan["change"] == "switch"
    assert "libnvidia-ml1 580.126.20" in plan["notes"][0]


@pytest.mark.parametrize(
    ("hardware", "manager", "imex"), [("pcie", False, False), ("hgx_h200", True, False), ("gb200", False, True)]
)
def test_pain_6_and_7_fabric_only_where_there_is_one(hardware, manager, imex):
    plan = driver_plan(host(hardware=hardware, arch="aarch64"), wanted())
    names = [spec.split("=")[0] for spec in plan["packages"]]
    assert ("nvidia-fabricmanager" in names, "nvidia-imex" in names) == (manager, imex)


def test_pain_7_nvlink5_gets_its_subnet_manager_and_infiniband_modules():
    plan = driver_plan(host(hardware="hgx_b200"), wanted(version="580.159.04"))
    assert {"nvlsm", "libnvsdm=580.159.04-*"} <= set(plan["packages"])
    assert any("ib_umad" in item["content"] for item in plan["files"])


def test_pain_2_everything_of_the_driver_is_held_and_nothing_else():
    state = with_driver(package_state__holds=["nvidia-driver-cuda"])
    state["packages"].update(
        {"nvidia-container-toolkit": "1.20.0-1", "nvidia-driver-pinning-580": "580-1", "docker.io": "26.1"}
    )
    plan = driver_plan(state, wanted())
    assert plan["missing_holds"] == sorted(set(INSTALLED) - {"nvidia-driver-cuda"})
    assert driver_plan(state, wanted(hold=False))["missing_holds"] == []


def test_pain_16_needrestart_is_told_where_it_is_installed():
    paths = [item["path"] for item in driver_plan(host(updates__needrestart=True), wanted())["files"]]
    assert "/etc/needrestart/conf.d/baremetal-nim.conf" in paths
    assert "/etc/needrestart/conf.d/baremetal-nim.conf" not in [
        item["path"] for item in driver_plan(host(), wanted())["files"]
    ]


def test_pain_22_initramfs_follows_the_blacklist():
    (item,) = [item for item in driver_plan(host(), wanted())["files"] if "nouveau" in item["path"]]
    assert item["effect"] == "initramfs" and item["changed"] and "blacklist nouveau" in item["content"]


def test_every_file_of_a_plan_is_one_that_the_host_is_asked_for():
    asked = yaml.safe_load((pathlib.Path(__file__).parents[4] / "roles/preflight/vars/main.yml").read_text())[
        "__preflight_files"
    ]
    assert set(data.FILES) <= set(asked)
    plan = driver_plan(host(hardware="hgx_b200", updates__needrestart=True), wanted())
    assert {item["path"] for item in plan["files"]} == set(data.FILES)


def test_pain_8_withdrawn_key_goes():
    plan = driver_plan(host(keys={"/etc/apt/trusted.gpg.d/nvidia.asc": [data.RETIRED_KEY]}), wanted())
    assert plan["retired"]["files"] == ["/etc/apt/trusted.gpg.d/nvidia.asc"]


def test_pain_9_other_files_that_name_our_repository_go():
    url = driver_plan(host(), wanted())["repositories"][0]["uris"][0]
    other = {"path": "/etc/apt/sources.list.d/cuda-debian13-x86_64.list", "enabled": True, "types": ["deb"], "uris": [url.rstrip("/")],
             "suites": ["/"], "components": [], "signed_by": "/usr/share/keyrings/cuda-archive-keyring.gpg", "origin": "cuda"}  # fmt: skip
    mixed = {**other, "path": "/etc/apt/sources.list", "uris": ["http://deb.debian.org/debian"]}
    plan = driver_plan(host(repositories=[other, mixed], packages={"cuda-keyring": "1.1-1"}), wanted())
    assert plan["retired"] == {"files": [other["path"]], "packages": ["cuda-keyring"]}


@pytest.mark.parametrize(
    ("system", "stream", "lock"),
    [
        (("Rocky", "8.10"), "nvidia-driver:580-open", []),
        (("RedHat", "9.6"), "nvidia-driver:580-open", []),
        (("Rocky", "10.1"), None, ["*nvidia*580*"]),
    ],
)
def test_pain_13_streams_before_10_and_version_locks_from_10_on(system, stream, lock):
    plan = driver_plan(host(*system), wanted())
    assert (plan["module_stream"], plan["versionlock"]) == (stream, lock)
    assert ("python3-dnf-plugin-versionlock" in plan["prerequisites"]) == bool(lock)


def test_pain_12_headers_are_of_the_running_kernel_or_of_the_one_asked_for():
    assert driver_plan(host(kernel__headers=True), wanted())["prerequisites"] == []
    assert driver_plan(host(kernel__headers=True), wanted(kernel="6.12.57+deb13-amd64"))["prerequisites"] == [
        "linux-headers-6.12.57+deb13-amd64"
    ]
    assert driver_plan(host("Rocky", "9.6"), wanted())["prerequisites"] == ["kernel-devel-5.14.0-570.el9.x86_64"]


def test_pain_19_signed_modules_of_ubuntu_need_no_headers():
    plan = driver_plan(host("Ubuntu", "24.04"), wanted(source="distribution"))
    assert plan["prerequisites"] == [] and plan["pins"] == []
    assert "nvidia-headless-no-dkms-580-server-open=580.*" in plan["packages"]


@pytest.mark.parametrize(
    ("kernel", "changes", "modules"),
    [
        ({}, {}, ["6.8.0-85-generic"]),
        # A kernel of the hardware enablement stack has the same suffix, so a suffix would bring the modules of another one.
        ({"running": "7.0.0-43-generic"}, {}, ["7.0.0-43-generic"]),
        ({"running": "6.8.0-1030-nvidia"}, {}, ["6.8.0-1030-nvidia"]),
        ({}, {"kernel": "6.8.0-90-generic"}, ["6.8.0-90-generic"]),
        ({"pending": True, "newest": "6.8.0-90-generic"}, {}, ["6.8.0-85-generic", "6.8.0-90-generic"]),
        ({"pending": True, "newest": "6.8.0-90-generic"}, {"version": "580.178.04"}, ["6.8.0-85-generic", "6.8.0-90-generic"]),
    ],
)  # fmt: skip
def test_pain_12_and_19_ubuntus_modules_are_of_a_kernel_and_have_its_version(kernel, changes, modules):
    state = host("Ubuntu", "24.04")
    state["kernel"].update(kernel)
    packages = driver_plan(state, wanted(source="distribution", **changes))["packages"]
    found = [spec for spec in packages if spec.startswith("linux-modules-")]
    assert found == [f"linux-modules-nvidia-580-server-open-{release}" for release in modules]


def test_the_archives_persistence_daemon_of_debian_is_built_apart():
    archive = {
        "path": "/etc/apt/sources.list",
        "enabled": True,
        "origin": "distribution",
        "uris": [],
        "components": data.DEBIAN_COMPONENTS,
    }
    plan = driver_plan(
        host("Debian", "12", repositories=[archive]),
        wanted(source="distribution", branch="535", version="535.261.03"),
    )
    assert plan["problems"] == [] and "nvidia-persistenced" in plan["packages"]
    assert "nvidia-open-kernel-dkms=535.261.03-*" in plan["packages"]


def test_pain_14_persistence_daemon_starts_after_the_module_and_again():
    (item,) = [item for item in driver_plan(host(), wanted())["files"] if "persistenced" in item["path"]]
    for line in ("After=systemd-modules-load.service", "Restart=on-failure"):
        assert line in item["content"].splitlines()
    assert item["effect"] == "daemon_reload"
    plan = driver_plan(host(), wanted(persistence=False))
    assert not [item for item in plan["files"] if "persistenced" in item["path"]]
    assert not [spec for spec in plan["packages"] if "persistenced" in spec]
    assert not [item for item in plan["services"] if item["needed"]]


@pytest.mark.parametrize(
    ("system", "key", "fingerprint"),
    [
        (("Debian", "12"), "3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC"),
        (("Debian", "13"), "8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
        (("Ubuntu", "24.04"), "3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC"),
        (("Ubuntu", "26.04"), "60DF8A40.pub", "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40"),
        (("Rocky", "9.6"), "D42D0685.pub", "610C7B14E068A878070DA4E99CD0A493D42D0685"),
    ],
)
def test_pain_8_every_repository_of_nvidia_has_the_key_of_its_system(system, key, fingerprint):
    (found,) = driver_plan(host(*system), wanted(branch="595"))["keys"]
    assert found["url"].endswith(f"/x86_64/{key}") and found["fingerprints"] == [fingerprint]


def test_pain_8_fingerprints_end_in_the_name_of_their_file():
    for system in data.SYSTEMS.values():
        name, fingerprint = system["key"]
        assert fingerprint == "" or (len(fingerprint) == 40 and fingerprint.endswith(name.split(".")[0].upper()))


def test_pain_8_a_key_that_nobody_could_tell_is_the_operators_to_tell():
    plan = driver_plan(host("Rocky", "10.1"), wanted())
    assert plan["keys"] == [] and plan["repositories"] == []
    told = plan["problems"][0]
    url = "https://developer.download.nvidia.com/compute/cuda/repos/rhel10/x86_64/"
    assert f"{url}CDF6BA43.pub" in told and "gpg --show-keys" in told
    cure = {**MIRROR, "mirror_url": url, "mirror_key_url": f"{url}CDF6BA43.pub"}
    plan = driver_plan(host("Rocky", "10.1"), wanted(**cure))
    assert plan["problems"] == [] and plan["repositories"][0]["baseurl"] == url


UBUNTU_SUFFIXED = [name.format(branch=580) for name in data.COMPUTE["ubuntu_suffixed"]["open"]]
# All but the modules; the headless package brings the library.
UBUNTU_ARCHIVE = [
    "libnvidia-compute-580-server",
    *(name.format(branch=580) for name in data.COMPUTE["ubuntu_archive"]["open"] if "{kernel}" not in name),
]


def test_what_a_repository_lacks_matters_only_where_something_comes_from_it():
    state = done("Ubuntu", "26.04", "mirror", UBUNTU_SUFFIXED, "580.159.04-1ubuntu1")
    assert driver_plan(state, wanted())["problems"] == []
    state = done("Rocky", "10.1", "mirror", data.COMPUTE["el"]["open"], "3:580.159.04-1.el10")
    assert driver_plan(state, wanted())["problems"] == []


def done(distribution, version, source, names, package):
    """A host of another kind where nothing is left to do."""
    state = host(distribution, version, packages=dict.fromkeys(names, package))
    if source == "distribution":
        modules = f"linux-modules-nvidia-580-server-open-{KERNELS[distribution, version]}"
        state["packages"][modules] = "6.8.0-85.85"
    state["package_state"]["holds"] = list(names)
    state["kernel"]["headers"] = True
    state["driver"].update(
        loaded_version="580.159.04",
        module_version="580.159.04",
        error=None,
        units={"nvidia-persistenced.service": {"exists": True, "active": True, "enabled": True}},
    )
    plan = driver_plan(state, wanted(**(MIRROR if source == "mirror" else {"source": source})))
    state["files"] = {item["path"]: hashlib.sha256(item["content"].encode()).hexdigest() for item in plan["files"]}
    for repository in plan["repositories"]:
        path = f"/etc/yum.repos.d/{repository['name']}.repo"
        if repository["package_manager"] == "apt":
            path = f"/etc/apt/sources.list.d/{repository['name']}.sources"
        uris = repository.get("uris") or [repository["baseurl"]]
        state["repositories"].append({**repository, "uris": uris, "path": path, "enabled": True})
    state["keys"] = {key["path"]: key["fingerprints"] for key in plan["keys"] if key["path"]}
    return state


@pytest.mark.parametrize(
    ("distribution", "version", "source", "names", "package"),
    [
        ("Rocky", "9.6", "cuda_repo", data.COMPUTE["el"]["open"], "3:580.159.04-1.el9"),
        (
            "Ubuntu", "24.04", "cuda_repo",
            UBUNTU_SUFFIXED, "580.159.04-1ubuntu1",
        ),
        (
            "Ubuntu", "24.04", "distribution",
            UBUNTU_ARCHIVE, "580.159.04-0ubuntu0.24.04.1",
        ),
    ],
)  # fmt: skip
def test_other_hosts_where_all_is_done_need_nothing(distribution, version, source, names, package):
    plan = driver_plan(done(distribution, version, source, names, package), wanted(source=source))
    assert plan["current"] and plan["change"] == "none" and plan["installed_version"] == "580.159.04"
    for key in ("problems", "notes", "prerequisites", "pins", "packages", "missing_holds"):
        assert plan[key] == []
    assert all(item["current"] for item in plan["keys"] + plan["repositories"] + plan["services"])


def test_modules_of_ubuntu_that_a_new_kernel_lacks_are_brought():
    state = done("Ubuntu", "24.04", "distribution", UBUNTU_ARCHIVE, "580.159.04-0ubuntu0.24.04.1")
    state["kernel"]["running"] = "6.8.0-90-generic"
    plan = driver_plan(state, wanted(source="distribution"))
    assert plan["change"] == "switch" and plan["notes"] == [
        "missing: linux-modules-nvidia-580-server-open-6.8.0-90-generic"
    ]


# -- Red Hat's own driver ------------------------------------------------------------------------------------------

RED_HATS = {"source": "distribution", "branch": "595", "version": "595.71.05"}
RHUI = ("rhel-10-extensions-rhui-rpms", "rhel-10-supplementary-rhui-rpms")


def rhel(**changes):
    """A registered Red Hat Enterprise Linux."""
    return host("RedHat", "10.1", **{"repositories": [cdn("extensions"), cdn("supplementary")], **changes})


def with_red_hats(version="595.71.05", **changes):
    """The same where the role has done its work."""
    names = ("kmod-nvidia-open", "nvidia-driver-cuda", "nvidia-driver-libs")
    state = rhel(packages=dict.fromkeys(names, f"3:{version}-1.el10_1"), **changes)
    state["driver"].update(loaded_version=version, module_version=version, error=None)
    plan = driver_plan(state, wanted(**RED_HATS))
    state["files"] = {item["path"]: hashlib.sha256(item["content"].encode()).hexdigest() for item in plan["files"]}
    return state


def test_pain_13_red_hats_driver_is_installed_by_red_hats_tool():
    plan = driver_plan(rhel(), wanted(**RED_HATS))
    assert plan["problems"] == [] and plan["change"] == "install"
    assert plan["prerequisites"] == ["rhel-drivers", "python3-dnf-plugin-versionlock"]
    assert plan["command"] == ["rhel-drivers", "install", "--batch", "nvidia:595.71.05"]
    assert plan["packages"] == ["kmod-nvidia-open-595.71.05*"] and plan["versionlock"] == ["*nvidia*595.71.05*"]
    for key in ("keys", "repositories", "enable", "pins"):
        assert plan[key] == []
    tools = {"rhel-drivers": "0.1-1.el10", "python3-dnf-plugin-versionlock": "4.7-1.el10"}
    assert driver_plan(rhel(packages=tools), wanted(**RED_HATS))["prerequisites"] == []


def test_pain_13_host_with_red_hats_driver_needs_nothing():
    # Neither its repositories nor its tool.
    plan = driver_plan(with_red_hats(repositories=[]), wanted(**RED_HATS))
    assert plan["current"] and plan["change"] == "none" and plan["command"] is None
    for key in ("problems", "notes", "prerequisites", "enable", "packages"):
        assert plan[key] == []


@pytest.mark.parametrize(
    ("installed", "version", "change"),
    [
        ("595.71.05", "595.71.05", "none"),
        ("595.58.03", "595.71.05", "upgrade"),
        ("595.71.05", "595.58.03", "downgrade"),
        ("580.159.04", "595.71.05", "upgrade"),
        ("595.71.05", "580.159.04", "downgrade"),
    ],
)
def test_pain_13_red_hats_driver_up_down_or_nothing(installed, version, change):
    plan = driver_plan(with_red_hats(installed), wanted(source="distribution", **of_branch(version)))
    assert plan["problems"] == [] and plan["change"] == change
    assert plan["command"] == (
        None if change == "none" else ["rhel-drivers", "install", "--batch", f"nvidia:{version}"]
    )


def test_pain_6_red_hats_modules_and_libraries_are_brought_into_step():
    state = with_red_hats()
    state["packages"]["kmod-nvidia-open"] = "3:595.58.03-1.el10_1"
    plan = driver_plan(state, wanted(**RED_HATS))
    assert plan["change"] == "switch" and "kmod-nvidia-open 595.58.03" in plan["notes"][0] and plan["command"]
    del state["packages"]["kmod-nvidia-open"]
    assert driver_plan(state, wanted(**RED_HATS))["notes"] == ["missing: kmod-nvidia-open"]


@pytest.mark.parametrize(
    ("repositories", "enable", "unknown"),
    [
        ([cdn("extensions"), cdn("supplementary")], [], []),
        ([cdn("", name=name) for name in RHUI], [*RHUI], []),
        ([cdn("", name=RHUI[0], enabled=True), cdn("", name=RHUI[1])], [RHUI[1]], []),
        ([cdn("", name=name, enabled=True) for name in RHUI], [], []),
        ([cdn("extensions"), cdn("", name=RHUI[1])], [RHUI[1]], []),
        ([cdn("extensions")], [], ["rhel-10-for-x86_64-supplementary-rpms (or rhel-10-supplementary-rhui-rpms)"]),
        ([cdn("extensions", "aarch64"), cdn("supplementary", "aarch64")], [], ["x86_64-extensions-rpms", "x86_64-supplementary-rpms"]),
        ([cdn("baseos"), {**cdn(""), "name": None}], [], ["extensions", "supplementary", "subscription-manager register"]),
    ],
)  # fmt: skip
def test_pain_13_repositories_of_a_clouds_image_are_enabled_and_missing_ones_told(repositories, enable, unknown):
    plan = driver_plan(rhel(repositories=repositories), wanted(**RED_HATS))
    assert plan["enable"] == enable and ("dnf-plugins-core" in plan["prerequisites"]) == bool(enable)
    assert len(plan["problems"]) == bool(unknown)
    assert all(text in plan["problems"][0] for text in unknown)
    told = driver_plan(rhel(repositories=repositories), wanted(**{**RED_HATS, "version": ""}))["problems"][0]
    assert ("--set-enabled" in told) == bool(enable) and " ".join(enable) in told


def test_pain_19_red_hats_modules_need_no_headers_and_no_dkms():
    state = with_red_hats()
    state["packages"]["dkms"] = "3.2.1-1.el10"
    state["driver"].update(loaded_version=None, module_version=None)
    plan = driver_plan(state, wanted(**RED_HATS))
    assert not state["kernel"]["headers"] and plan["prerequisites"] == [] and not plan["build"]


@pytest.mark.parametrize(
    ("units", "changes", "needed"),
    [
        ({}, {}, []),
        ({"nvidia-persistenced.service": {"exists": False, "active": False, "enabled": False}}, {}, []),
        ({"nvidia-persistenced.service": {"exists": True, "active": False, "enabled": False}}, {}, ["nvidia-persistenced.service"]),
        ({"nvidia-persistenced.service": {"exists": True, "active": True, "enabled": True}}, {"persistence": False}, []),
    ],
)  # fmt: skip
def test_pain_14_persistence_daemon_of_red_hat_runs_where_there_is_one(units, changes, needed):
    state = with_red_hats()
    state["driver"]["units"] = units
    plan = driver_plan(state, wanted(**RED_HATS, **changes))
    assert [item["name"] for item in plan["services"] if item["needed"]] == needed


def test_pain_2_red_hats_version_is_locked_unless_nothing_is_to_be_held():
    assert driver_plan(rhel(), wanted(**RED_HATS, hold=False))["versionlock"] == []
    # dnf needs the lock to find the branch.
    assert driver_plan(host("Rocky", "10.1"), wanted(hold=False))["versionlock"] == ["*nvidia*580*"]


V100 = [
    {
        "address": "0000:18:00.0",
        "device_id": "1db4",
        "class": "0302",
        "name": "V100",
        "architecture": "Volta",
        "driver": None,
    }
]


@pytest.mark.parametrize(
    ("state", "changes", "told"),
    [
        (host(), {"source": "runfile"}, ["runfile", "cuda_repo, distribution, mirror, preinstalled"]),
        (host(), {"branch": "580.159"}, ["580.159", "nvidia_driver_version"]),
        (host(), {"branch": ""}, ["nvidia_driver_branch is ,", "580"]),
        (host(), {"version": "595.71.05"}, ["595.71.05", "branch 580", "own branch: 595"]),
        (host(), {"version": "580"}, ["nvidia_driver_version is 580"]),
        (host(), {"flavour": "closed"}, ["closed", "open or proprietary"]),
        (host(), {"source": "mirror"}, ["nvidia_driver_mirror_url is empty"]),
        (host(), {**MIRROR, "mirror_key_fingerprint": "3BF863CC"}, ["3BF863CC", "40 hexadecimal digits"]),
        (host("Fedora", "44"), {}, ["Fedora 44", "preinstalled"]),
        (host("Ubuntu", "25.10"), {}, ["Ubuntu 25.10"]),
        (host(arch="ppc64le"), {}, ["ppc64le"]),
        (host(hardware="hgx_b200"), {"flavour": "proprietary"}, ["Blackwell", "open"]),
        (host(hardware="gb200", arch="aarch64"), {"flavour": "proprietary"}, ["Grace"]),
        (host(), {"flavour": "proprietary", "branch": "620"}, ["620", "open modules only"]),
        (host(hardware="hgx_b200"), {"branch": "550"}, ["550", "Blackwell", "570"]),
        (host(hardware__gpus=V100), {}, ["Volta", "proprietary", "580"]),
        (host(hardware__gpus=V100), {"branch": "595", "flavour": "proprietary"}, ["595", "Volta", "580"]),
        (host(), {"source": "distribution"}, ["Debian 13 carries branch 550", "cuda_repo"]),
        (host(), {"source": "distribution", "branch": "550"}, ["contrib, non-free, non-free-firmware", "debian.sources"]),
        (host(hardware="hgx_h200"), {"source": "distribution", "branch": "550"}, ["Debian 13 has no nvidia-fabricmanager-550", "cuda_repo"]),
        (host("Ubuntu", "24.04", hardware="hgx_b200"), {"source": "distribution"}, ["Ubuntu 24.04 has no nvlsm, libnvsdm-580", "cuda_repo"]),
        (host("Ubuntu", "26.04"), {}, ["580", "NVIDIA's repository for Ubuntu 26.04 begins with 595", "distribution"]),
        (host(), {"branch": "570"}, ["570", "Debian 13 begins with 580", "mirror"]),
        (host("Rocky", "10.1"), {"source": "distribution"}, ["Rocky 10 has no driver of its own", "Red Hat Enterprise Linux 10.1", "cuda_repo"]),
        (host("RedHat", "10.0"), RED_HATS, ["Red Hat Enterprise Linux is 10.0, wanted 10.1", "upgrade it", "cuda_repo"]),
        (host("RedHat", "9.6"), RED_HATS, ["is 9.6, wanted 10.1"]),
        (rhel(), {**RED_HATS, "flavour": "proprietary"}, ["is proprietary", "wanted open", "cuda_repo"]),
        (rhel(), {**RED_HATS, "version": ""}, ["nvidia_driver_version is empty, wanted a version of branch 595", "list --available"]),
        (rhel(hardware="hgx_h200"), RED_HATS, ["RedHat 10 has no nvidia-fabricmanager, libnvidia-nscq", "cuda_repo"]),
        (rhel(hardware__gpus=V100), RED_HATS, ["Volta", "open modules do not drive"]),
        (rhel(packages={"kmod-nvidia-open-dkms": "3:595.71.05-1.el10"}), RED_HATS, ["kmod-nvidia-open-dkms of another origin", "dnf remove"]),
        (rhel(packages={"kmod-nvidia-open": "3:595.71.05-1.el10"}), {"branch": "595"}, ["kmod-nvidia-open of another origin", "dnf remove"]),
        (host(package_state__interrupted=True, package_state__incomplete=["libcuda1", "grub-pc"]), {}, ["libcuda1, grub-pc", "dpkg --configure -a"]),
        (with_driver(package_state__interrupted=True), {}, ["unknown packages", "dpkg --configure -a"]),
        (host(packages={"nvidia-open-kernel-dkms": "550.163.01-2"}), {}, ["nvidia-open-kernel-dkms of another origin", "apt-get purge"]),
    ],
)  # fmt: skip
def test_bad_input_is_told_with_its_cure(state, changes, told):
    problems = driver_plan(state, wanted(**changes))["problems"]
    assert any(all(text in problem for text in told) for problem in problems), problems


def test_names_that_red_hat_shares_with_nvidia_are_no_mixture():
    shared = {"nvidia-driver-cuda": "3:595.71.05-1.el10", "nvidia-persistenced": "3:595.71.05-1.el10"}
    assert driver_plan(rhel(packages=shared), wanted(**RED_HATS))["problems"] == []
    mirrored = wanted(**{**MIRROR, "branch": "595"})
    assert driver_plan(rhel(packages=shared), mirrored)["problems"] == []


def test_names_that_ubuntus_archive_shares_with_nvidia_are_no_mixture():
    archive = host("Ubuntu", "24.04", packages={"nvidia-dkms-580-open": "580.95.05-0ubuntu0.24.04.1"})
    assert driver_plan(archive, wanted(source="distribution"))["problems"] == []
    nvidia = host("Ubuntu", "24.04", packages={"nvidia-dkms-580-open": "580.95.05-1ubuntu1"})
    assert "of another origin" in driver_plan(nvidia, wanted(source="distribution"))["problems"][0]


def test_all_problems_at_once():
    state = host("Fedora", "44", hardware="hgx_b200")
    assert len(driver_plan(state, wanted(flavour="proprietary", branch="550"))["problems"]) == 3
    state = rhel(hardware="hgx_h200", repositories=[], packages={"kmod-nvidia-open-dkms": "3:580.159.04-1.el10"})
    assert len(driver_plan(state, wanted(source="distribution", flavour="proprietary"))["problems"]) == 5


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        ({"loaded_version": "580.159.04", "error": None}, None),
        ({"loaded_version": "595.71.05", "error": None}, None),
        ({"loaded_version": "570.86.15", "error": None}, "570.86.15 is loaded, wanted branch 580"),
        ({"loaded_version": None, "error": None}, "no driver is loaded"),
        (
            {"loaded_version": None, "error": "nvidia-smi is not installed"},
            "nvidia-smi is not installed. Wanted a driver",
        ),
    ],
)
def test_preinstalled_is_only_looked_at(driver, told):
    state = host("Fedora", "44")
    state["driver"].update(driver)
    plan = driver_plan(state, wanted(source="preinstalled"))
    assert bool(plan["problems"]) == bool(told) and (not told or told in plan["problems"][0])
    for key in ("keys", "repositories", "packages", "pins", "files", "services", "holds"):
        assert plan[key] == []


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        ({}, None),
        ({"loaded_version": "580.126.20"}, "580.126.20 is loaded, 580.159.04 is installed"),
        ({"loaded_version": None}, "no module of it is loaded"),
        ({"loaded_version": None, "module_version": None}, None),
        ({"nouveau": {"loaded": True, "bound": ["0000:18:00.0"]}}, "nouveau drives 0000:18:00.0"),
        ({"nouveau": {"loaded": True, "bound": []}}, None),
    ],
)
def test_pain_17_reboot_only_when_nothing_else_helps(driver, told):
    state = with_driver()
    state["driver"].update(driver)
    reason = reboot_reason(state, wanted())
    assert reason is None if told is None else told in reason


def test_no_reboot_for_a_host_without_a_gpu():
    assert reboot_reason(host(hardware__gpus=[], driver__module_version="580.159.04"), wanted()) is None


def test_driver_built_for_another_kernel_waits_for_that_kernel():
    """Pain 11: an image, or the kernel of the next boot."""
    state = with_driver()
    state["driver"].update(loaded_version=None, module_version=None)
    plan = driver_plan(state, wanted(kernel="6.8.0-99-generic"))
    assert f"built for kernel 6.8.0-99-generic, {KERNELS['Debian', '13']} runs" in plan["reboot_reason"]
    assert not plan["build"]
    # Before there is a driver, there is nothing to reboot for.
    assert driver_plan(host(), wanted(kernel="6.8.0-99-generic"))["reboot_reason"] is None


@pytest.mark.parametrize(
    ("packages", "module", "builds"),
    [
        ({"dkms": "3.0.11-1ubuntu13"}, None, True),
        ({"dkms": "3.0.11-1ubuntu13"}, "580.159.04", False),
        ({}, None, False),
    ],
    ids=["module gone", "module there", "modules are packages"],
)
def test_pain_11_modules_that_are_gone_are_built_again(packages, module, builds):
    state = with_driver()
    state["packages"].update(packages)
    state["driver"]["module_version"] = module
    plan = driver_plan(state, wanted())
    assert (plan["change"], plan["build"], plan["current"]) == ("none", builds, not builds)


SIMULATED = """\
Reading package lists...
Remv nvidia-kernel-dkms [580.126.20-1]
Inst libcuda1 [580.126.20-1] (580.159.04-1 NVIDIA [amd64])
Inst nvidia-driver-cuda [580.126.20-1] (580.159.04-1 NVIDIA [amd64])
Conf nvidia-driver-cuda (580.159.04-1 NVIDIA [amd64])
"""


# Of an upgrade, dnf tells both versions; the first has an epoch.
DNF = [
    "Installed: nvidia-driver-cuda-3:580.159.04-1.el9.x86_64",
    "Installed: dkms-3.2.1-1.el9.noarch",
    "Removed: nvidia-driver-cuda-3:580.126.20-1.el9.x86_64",
    "Removed: dkms-3.2.0-1.el9.noarch",
    "Removed: kmod-nvidia-latest-dkms-3:580.126.20-1.el9.x86_64",
]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"stdout": SIMULATED}, None),
        ({"stdout": SIMULATED + "Remv nvidia-driver-pinning-580 [580-1]\n"}, None),
        ({"stdout": SIMULATED + "Inst linux-image-6.12.57+deb13-amd64 (6.12.57-1 Debian)\n"}, "would install linux-image-6.12.57"),
        ({"stdout": SIMULATED + "Remv linux-image-6.12.48+deb13-amd64 [6.12.48-1]\n"}, "would remove linux-image-6.12.48"),
        ({"stdout": SIMULATED + "Remv site-monitoring [1.0]\n"}, "would remove site-monitoring"),
        ({"stdout": SIMULATED + "Inst libc6 [2.41-12] (2.40-1 site [amd64])\n"}, "would downgrade libc6"),
        ({"stdout": SIMULATED + "Inst libnvidia-ml1 [595.71.05-1] (580.159.04-1 NVIDIA [amd64])\n"}, None),
        ({"failed": True, "msg": "E: Unable to correct problems,\nyou have held broken packages."}, "you have held broken packages"),
        ({"failed": True, "msg": "no available installation candidate for nvidia-driver-cuda=999.*"}, "999.*"),
        ({"failed": False, "changed": False, "msg": "no available installation candidate for libcuda1=595.*"}, "candidate for libcuda1=595.*"),
        ({"stdout": SIMULATED + "Inst linux-image-unsigned-6.8.0-90-generic (6.8.0-90.91 Ubuntu)\n"}, "would install linux-image-unsigned"),
        ({"stdout": SIMULATED + "Inst linux-generic-hwe-24.04 (7.0.0-43 Ubuntu)\n"}, "would install linux-generic-hwe-24.04"),
        ({"stdout": SIMULATED + "Inst linux-headers-6.12.48+deb13-amd64 (6.12.48-1 Debian)\n"}, None),
        ({"changed": True, "results": DNF, "msg": "Check mode: No changes made"}, None),
        ({"changed": True, "results": [*DNF, "Installed: kernel-core-6.12.0-130.el10.x86_64"]}, "would install kernel-core"),
        ({"changed": True, "results": [*DNF, "Installed: kernel-devel-5.14.0-570.el9.x86_64"]}, None),
        ({"changed": True, "results": [*DNF, "Removed: kernel-5.14.0-570.el9.x86_64"]}, "would remove kernel,"),
        ({"changed": True, "results": [*DNF, "Removed: site-monitoring-1.0-1.noarch"]}, "would remove site-monitoring"),
        ({"changed": False}, None),
    ],
)  # fmt: skip
def test_pain_10_and_12_simulated_transactions(result, told):
    problems = transaction_problems(result, driver_plan(host(), wanted()))
    assert any(told in problem for problem in problems) if told else problems == []


def test_plan_changes_nothing_it_is_given():
    state, wish = with_driver(), wanted(branch="595")
    before = copy.deepcopy((state, wish))
    driver_plan(state, wish)
    assert (state, wish) == before


@pytest.mark.parametrize(
    ("packages", "version"),
    [
        ({}, None),
        ({"kmod-nvidia-open": "3:595.71.05-1.el10_1"}, "595.71.05"),
        ({"libnvidia-compute-580-server": "580.95.05-0ubuntu0.24.04.1"}, "580.95.05"),
        ({"nvidia-driver-cuda": "3:580.159.04-1.el9"}, "580.159.04"),
        ({"nvidia-container-toolkit": "1.20.0-1", "libnvidia-container1": "1.20.0-1"}, None),
    ],
)
def test_installed_version(packages, version):
    assert _driver_plan.installed_version(packages) == version


def test_real_h200_with_a_driver_of_its_own():
    """What gpu_host_info said on a real host; tests/fixtures/h200/preinstalled.txt has the play."""
    recorded = json.loads((pathlib.Path(__file__).parents[3] / "fixtures/h200/gpu_host_info.json").read_text())
    assert driver_plan(recorded, wanted(source="preinstalled"))["current"]
    assert (
        "580.159.04 is loaded, wanted branch 595"
        in driver_plan(recorded, wanted(source="preinstalled", branch="595"))["problems"][0]
    )
    plan = driver_plan(recorded, wanted())
    assert plan["change"] == "install" and plan["packages"][0] == "libnvidia-compute-580=580.*"
    assert [item["name"] for item in plan["services"] if item["needed"]] == ["nvidia-persistenced.service"]
