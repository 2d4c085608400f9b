# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done about the container toolkit and its CDI specification. Private to the collection; pure.

HOST is always the result of gpu_host_info. Sources of the facts: NVIDIA's installation guide, release notes and units
of the toolkit (1.18 to 1.20), Docker's release notes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _gate, _repositories
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten
from ansible_collections.baremetal.nim.plugins.module_utils._written import Written, option_problems

Host = Mapping[str, Any]
Wanted = Mapping[str, Any]

#: What of the wanted toolkit is text, and how its variable ends.
_TEXTS = {
    "version": "version",
    "repository_url": "repository_url",
    "key_url": "repository_key_url",
    "key_fingerprint": "repository_key_fingerprint",
    "engine": "engine",
    "feature_flags": "cdi_feature_flags",
}
#: They only work in one and the same version.
PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
NAME = "nvidia-container-toolkit"
#: Package manager to NVIDIA's repository, and to where its key is kept. The managers fill in the architecture.
REPOSITORIES = {
    "apt": "https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)",
    "dnf": "https://nvidia.github.io/libnvidia-container/stable/rpm/$basearch",
}
KEYS = {
    "apt": "/etc/apt/keyrings/nvidia-container-toolkit.asc",
    "dnf": "/etc/pki/rpm-gpg/RPM-GPG-KEY-nvidia-container-toolkit",
}
DEB_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

KIND = "nvidia.com/gpu"
#: From this version on a unit of the package makes the specification at boot and when a driver is installed.
FIRST_WITH_UNIT = (1, 18)
REFRESH_UNITS = ("nvidia-cdi-refresh.service", "nvidia-cdi-refresh.path")
#: What NVIDIA's guide had made by hand before there was the unit, and what this role makes where there is none: in a
#: folder that outlives a boot, under a name that nobody's own file has.
HAND_MADE_SPEC = "/etc/cdi/nvidia.yaml"
GENERATED_SPEC = "/etc/cdi/baremetal-nim.yaml"
RUNTIME_FOLDERS = ("/var/run/cdi/", "/run/cdi/")
#: From this version on specifications may be of CDI 0.7.0, unless the flag is set.
FIRST_WITH_CDI_07 = (1, 19, 1)
CDI_05_FLAG = "no-additional-gids-for-device-nodes"
#: Engine to the first versions that take CDI devices at all, and those of CDI 0.7.0.
ENGINES = {"docker": ("Docker", (25,), (26, 1)), "podman": ("Podman", (4, 1), (5, 1))}
#: The unit's own environment file belongs to the package; this one is ours.
DROP_IN = "/etc/systemd/system/nvidia-cdi-refresh.service.d/baremetal-nim.conf"
#: What gpu_host_info is asked to checksum.
FILES = (DROP_IN,)


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version or ""))


def _dotted(numbers: Iterable[int]) -> str:
    return ".".join(str(part) for part in numbers)


def _fingerprint(wanted: Wanted) -> str:
    return "".join(str(wanted["key_fingerprint"]).split()).upper()


# -- problems ----------------------------------------------------------------------------------------------------------


def _input_problems(wanted: Wanted, written: Mapping[str, Written]) -> list[str]:
    names = {key: f"nvidia_container_toolkit_{name}" for key, name in _TEXTS.items()}
    problems = option_problems(wanted, names, written)
    if problems:
        return problems
    for flag in wanted.get("feature_flags") or []:
        # They stand in a drop-in of systemd's.
        if not isinstance(flag, str) or not re.fullmatch("[A-Za-z0-9_-]{1,100}", flag):
            problems.append(
                f"nvidia_container_toolkit_cdi_feature_flags has {_gate.shown(flag)}, wanted names such as {CDI_05_FLAG}."
            )
    version = str(wanted["version"])
    if not re.fullmatch(r"\d+\.\d+\.\d+(~rc\.\d+)?-\d+", version):
        problems.append(
            f"nvidia_container_toolkit_version is {version}, wanted version and revision of the packages, such as 1.20.0-1;"
            " apt-cache madison nvidia-container-toolkit, or dnf list --showduplicates, tells those there are."
        )
    if not re.fullmatch(r"[0-9A-F]{40}", _fingerprint(wanted)):
        problems.append(
            f"nvidia_container_toolkit_repository_key_fingerprint is {wanted['key_fingerprint']}, wanted 40 hexadecimal digits:"
            " gpg --show-keys FILE"
        )
    if wanted["engine"] not in ENGINES:
        problems.append(f"nvidia_container_toolkit_engine is {wanted['engine']}, wanted {' or '.join(ENGINES)}.")
    return problems


def _engine_problems(host: Host, wanted: Wanted) -> list[str]:
    """Engines that do not read what the toolkit writes."""
    name, first, first_with_07 = ENGINES[wanted["engine"]]
    version = ((host["podman"] if wanted["engine"] == "podman" else host["engine"]) or {}).get("version")
    if not version:
        return []
    found = _numbers(version)
    cure = {
        "docker": "container_engine_source: docker has a newer one",
        "podman": "upgrade the system or install a newer Podman",
    }[wanted["engine"]]
    if found < first:
        return [f"{name} is {version} and knows no CDI, wanted {_dotted(first)} or newer; {cure}."]
    toolkit = _numbers(str(wanted["version"]))[:3]
    if toolkit >= FIRST_WITH_CDI_07 and found < first_with_07 and CDI_05_FLAG not in wanted["feature_flags"]:
        return [
            (
                f"{name} is {version} and does not read CDI 0.7.0, which toolkit {wanted['version']} writes, wanted"
                f" {name} {_dotted(first_with_07)} or newer; {cure}, or set nvidia_container_toolkit_cdi_feature_flags:"
                f" [{CDI_05_FLAG}], or nvidia_container_toolkit_version: 1.19.0-1."
            )
        ]
    return []


def _package_problems(host: Host, packages: list[str]) -> list[str]:
    state = host["package_state"]
    if not packages or not state["interrupted"]:
        return []
    names = ", ".join(state["incomplete"]) or "unknown packages"
    return [f"the package manager was interrupted ({names} not configured), wanted none; run: dpkg --configure -a"]


def _source_problems(
    repository: Mapping[str, Any], found: Iterable[Mapping[str, Any]], retired: list[str]
) -> list[str]:
    """Files that name the repository among others, with another key: apt stops at them, and they are not ours to remove."""
    if repository["package_manager"] != "apt":
        return []
    own = f"/{repository['name']}.sources"
    url, suite = repository["uris"][0].rstrip("/"), repository["suites"][0]
    problems = []
    for entry in found:
        if not entry["enabled"] or entry["path"] in retired or entry["path"].endswith(own):
            continue
        named = url in {uri.rstrip("/") for uri in entry["uris"]} and suite in entry["suites"]
        if named and entry["signed_by"] != repository["signed_by"]:
            problems.append(
                f"{entry['path']} names {url} too, signed by {entry['signed_by'] or 'any key'}, wanted it in one file;"
                " apt refuses such lists (Conflicting values set for option Signed-By): remove the entry there."
            )
    return problems


def _spec_problems(specs: list[Mapping[str, Any]]) -> list[str]:
    """Devices that are defined twice in one folder: engines then give none of the two. Of two folders the later counts."""
    homes: dict[tuple[str, str], list[str]] = {}
    for spec in specs:
        for name in set(spec["devices"]):
            homes.setdefault((spec["path"].rsplit("/", 1)[0], name), []).append(spec["path"])
    clashes = sorted({tuple(sorted(paths)) for paths in homes.values() if len(paths) > 1})
    return [
        (
            f"{' and '.join(paths)} define the same devices of {KIND}, wanted them in one file; remove those you made,"
            " or give them a kind of their own."
        )
        for paths in clashes
    ]


# -- origin and packages -----------------------------------------------------------------------------------------------


def _resolved(host: Host, manager: str, repositories: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries with the architecture filled in: apt knows that they mean the same."""
    name = DEB_ARCHITECTURES.get(host["os"]["architecture"], host["os"]["architecture"])
    return [
        {**entry, "uris": [uri.replace("$(ARCH)", name) for uri in entry["uris"]] if manager == "apt" else entry["uris"]}
        for entry in repositories
    ]  # fmt: skip


def _origin(host: Host, wanted: Wanted, manager: str) -> tuple[dict[str, Any], dict[str, Any], list[str], list[str]]:
    """Key, repository, files to remove because they name it again, and problems."""
    path = KEYS[manager]
    url = wanted["repository_url"] or REPOSITORIES[manager]
    signed_by = path if manager == "apt" else f"file://{path}"
    repository = _repositories.wanted_repository(NAME, manager, url, "/", signed_by)
    current = _repositories.repository_current(repository, host["repositories"])
    if manager == "dnf":
        current = current and any(
            entry["uris"] == [url] and entry["signed_by"] == signed_by for entry in host["repositories"]
        )
    fingerprint = _fingerprint(wanted)
    key = {
        "url": wanted["key_url"],
        "path": path,
        "fingerprint": fingerprint,
        "current": _repositories.key_current(path, [fingerprint], host["keys"]),
    }
    found = _resolved(host, manager, host["repositories"])
    retired: list[str] = []
    problems: list[str] = []
    if manager == "apt":
        ((same),) = _resolved(host, manager, [repository])
        retired = _repositories.duplicates(same, found)
        problems = _source_problems(same, found, retired)
    return key, {**repository, "current": current}, retired, problems


def _packages(host: Host, wanted: Wanted, manager: str) -> list[str]:
    """The whole set when one of it is missing or of another version: one transaction, in step."""
    version = str(wanted["version"])
    if all(host["packages"].get(name) == version for name in PACKAGES):
        return []
    sign = "=" if manager == "apt" else "-"
    return [f"{name}{sign}{version}" for name in PACKAGES]


# -- CDI ---------------------------------------------------------------------------------------------------------------


def _devices(host: Host) -> list[dict[str, Any]]:
    """What containers can be given: each with the names it may have in a specification, and its UUID where it is told."""
    found = []
    for gpu in host["gpus"]:
        # The toolkit names the parts of a GPU under MIG, not the whole.
        if gpu["mig_enabled"]:
            for part in gpu.get("mig_devices") or []:
                uuid = part.get("uuid")
                found.append({"names": [part["name"], f"mig{part['name']}", *([uuid] if uuid else [])], "uuid": uuid})
        else:
            found.append({"names": [str(gpu["index"]), f"gpu{gpu['index']}", gpu["uuid"]], "uuid": gpu["uuid"]})
    return found


def _spec_differs(spec: Mapping[str, Any], host: Host) -> str | None:
    """Why a specification is not of this driver and these GPUs."""
    loaded = host["driver"]["loaded_version"]
    # A specification without versioned libraries tells nothing of its driver.
    if spec["driver_version"] and spec["driver_version"] != loaded:
        return f"{spec['path']} is of driver {spec['driver_version']}, loaded is {loaded}"
    devices = _devices(host)
    names = set(spec["devices"]) - {"all"}
    missing = [device["names"][0] for device in devices if not names & set(device["names"])]
    known = {name for device in devices for name in device["names"]}
    # nvidia-smi -q -x does not always tell the UUIDs of MIG devices.
    told = all(device["uuid"] for device in devices)
    gone = sorted(name for name in names - known if told or not name.startswith("MIG-"))
    if missing:
        return f"{spec['path']} lacks {', '.join(missing)}"
    return f"{spec['path']} has {', '.join(gone)}, no longer there" if gone else None


def _refresh(host: Host, wanted: Wanted, packages: list[str]) -> str:
    """Whether a unit of the package makes the specification, or the role has to."""
    units = host["driver"]["units"]
    if packages:
        return "unit" if _numbers(str(wanted["version"]))[:2] >= FIRST_WITH_UNIT else "generate"
    return "unit" if units.get(REFRESH_UNITS[0], {}).get("exists") else "generate"


def _specification(host: Host, refresh: str) -> dict[str, Any]:
    """State of the specification that counts."""
    own = [spec for spec in host["cdi"]["specs"] if spec["kind"] == KIND and spec["generated_by"] == "nvidia-ctk"]
    runtime = [spec for spec in own if spec["path"].startswith(RUNTIME_FOLDERS)]
    static = [spec for spec in own if spec["path"] in (HAND_MADE_SPEC, GENERATED_SPEC)]
    # A fresh one that is the only one is what the unit was told to write, or what serves where the unit cannot.
    removed = [spec for spec in static if refresh == "unit" and (runtime or _spec_differs(spec, host))]
    counts = [spec for spec in runtime + static if spec not in removed]
    if not host["driver"]["loaded_version"] or not host["gpus"]:
        reason = None
    elif counts:
        reason = _spec_differs(counts[0], host)
    else:
        reason = "there is no CDI specification that nvidia-ctk made of this driver"
    return {
        "stale_spec": reason is not None,
        "stale_reason": reason,
        "spec": counts[0]["path"] if counts else None,
        "generate": counts[0]["path"] if counts else GENERATED_SPEC,
        "remove_specs": [spec["path"] for spec in removed],
    }


def _drop_in(host: Host, wanted: Wanted) -> dict[str, Any]:
    """Settings of the unit, written only where there are any."""
    flags = ",".join(wanted["feature_flags"])
    content = (
        "# Managed by Ansible (baremetal.nim.nvidia_container_toolkit).\n"
        f"[Service]\nEnvironment=NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS={flags}\n"
    )
    found = host["files"].get(DROP_IN)
    wants = hashlib.sha256(content.encode()).hexdigest() if flags else None
    return {"path": DROP_IN, "content": content if flags else None, "changed": found != wants}


def _smoke(host: Host) -> list[dict[str, Any]]:
    """Containers that prove the access: one per GPU, one with all; with the UUIDs that each must list."""
    offered = set(host["cdi"]["devices"])
    cases = []
    for device in _devices(host):
        names = [f"{KIND}={name}" for name in device["names"]]
        name = next((name for name in names if name in offered), names[0])
        cases.append({"device": name, "gpus": [device["uuid"]]})
    whole = [uuid for case in cases for uuid in case["gpus"]]
    return [*cases, {"device": f"{KIND}=all", "gpus": whole}] if cases else []


# -- the plan ----------------------------------------------------------------------------------------------------------


def toolkit_plan(host: Host, wanted: Wanted, written: Mapping[str, Written] | None = None) -> dict[str, Any]:
    """The plan for a host; see the documentation of the filter for its keys. WRITTEN: how what is no text stands in a file."""
    wanted = {"feature_flags": [], **wanted}
    problems = _input_problems(wanted, written or {})
    manager = host["os"]["package_manager"]
    if manager not in REPOSITORIES:
        problems.append(
            f"the package manager is {manager}, wanted {' or '.join(REPOSITORIES)};"
            " install the toolkit by other means and leave this role out."
        )
    if problems:
        return _empty(problems)
    key, repository, retired, source_problems = _origin(host, wanted, manager)
    packages = _packages(host, wanted, manager)
    refresh = _refresh(host, wanted, packages)
    specification = _specification(host, refresh)
    kept = [
        spec
        for spec in host["cdi"]["specs"]
        if spec["kind"] == KIND and spec["path"] not in specification["remove_specs"]
    ]
    held = host["package_state"]["holds"]
    units = host["driver"]["units"]
    drop_in = _drop_in(host, wanted) if refresh == "unit" else {"path": DROP_IN, "content": None, "changed": False}
    plan = {
        **_empty(
            _engine_problems(host, wanted)
            + _package_problems(host, packages)
            + source_problems
            + _spec_problems(kept)
        ),
        "key": key,
        "repository": repository,
        "retired": retired,
        "packages": packages,
        # dnf does not change what is locked; apt can be told to.
        "unlock": [name for name in PACKAGES if name in held] if packages and manager == "dnf" else [],
        "missing_holds": [name for name in PACKAGES if name not in held] if wanted["hold"] else [],
        "refresh": refresh,
        "enable_units": [name for name in REFRESH_UNITS if units.get(name, {}).get("exists") and not units[name]["enabled"]]
        if refresh == "unit"
        else [],
        **specification,
        "drop_in": drop_in,
        "rootless": bool(wanted["rootless"]) and wanted["engine"] == "docker",
        "smoke": _smoke(host),
    }  # fmt: skip
    plan["install"] = bool(packages or retired or not key["current"] or not repository["current"])
    plan["current"] = not (
        plan["problems"]
        or plan["install"]
        or plan["missing_holds"]
        or plan["stale_spec"]
        or plan["remove_specs"]
        or plan["enable_units"]
        or drop_in["changed"]
    )
    return plan


def _empty(problems: list[str]) -> dict[str, Any]:
    return {
        "problems": problems,
        "install": False,
        "key": None,
        "repository": None,
        "retired": [],
        "packages": [],
        "unlock": [],
        "missing_holds": [],
        "refresh": None,
        "enable_units": [],
        "stale_spec": False,
        "stale_reason": None,
        "spec": None,
        "generate": None,
        "remove_specs": [],
        "drop_in": {"path": DROP_IN, "content": None, "changed": False},
        "rootless": False,
        "smoke": [],
        "current": False,
    }


# -- smoke test --------------------------------------------------------------------------------------------------------


def listed(text: str) -> list[str]:
    """``nvidia-smi -L`` to the UUIDs of what can be computed on: GPUs, or their parts where they have any."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        match = re.match(r"(\s*)(?:GPU|MIG)\b.*\(UUID:\s*(\S+?)\)\s*$", line)
        if not match:
            continue
        if match.group(1) and found:
            found[-1][1].append(match.group(2))
        else:
            found.append((match.group(2), []))
    return [uuid for whole, parts in found for uuid in parts or [whole]]


def smoke_problems(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """What RESULTS, those of a loop over the plan's ``smoke`` cases, tell against the access to the GPUs."""
    problems = []
    for result in results:
        case = result["item"]
        wanted = [uuid for uuid in case["gpus"] if uuid]
        unknown = len(case["gpus"]) - len(wanted)
        told = ", ".join([*wanted, *([f"{unknown} MIG device(s)"] if unknown else [])])
        if result.get("rc") != 0:
            words = str(result.get("stderr") or result.get("stdout") or result.get("msg") or "no reason")
            problems.append(
                f"{case['device']}: the container failed ({shorten(words, 500)}), wanted it to list {told};"
                " see: nvidia-ctk cdi list"
            )
            continue
        seen = listed(str(result.get("stdout") or ""))
        if len(seen) != len(case["gpus"]) or set(wanted) - set(seen):
            problems.append(
                f"{case['device']}: the container lists {shorten(', '.join(seen), 1000) or 'no GPU'}, wanted exactly {told};"
                " refresh the specification: systemctl restart nvidia-cdi-refresh"
            )
    return problems
