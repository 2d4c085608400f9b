# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which driver a host gets, from where and how. Private to the collection; pure.

Names, URLs and version rules are in ``_driver_data.py``; HOST is always the result of gpu_host_info.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _driver_data as data
from ansible_collections.baremetal.nim.plugins.module_utils import _repositories, _transaction
from ansible_collections.baremetal.nim.plugins.module_utils._system import upstream_version
from ansible_collections.baremetal.nim.plugins.module_utils._written import Written, option_problems

Host = Mapping[str, Any]
Wanted = Mapping[str, Any]
_FAMILY = re.compile(f"(?:{data.FAMILY})$")
_LOCKSTEP = re.compile(f"(?:{data.LOCKSTEP})$")
_KERNEL = re.compile(f"(?:{data.KERNELS})$")


#: What of the wanted driver is text.
_TEXTS = (
    "source",
    "branch",
    "version",
    "flavour",
    "kernel",
    "mirror_url",
    "mirror_suite",
    "mirror_key_url",
    "mirror_key_fingerprint",
)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def sentence(text: str) -> str:
    """What a program said, in one line that another sentence may follow."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


# -- the system ----------------------------------------------------------------------------------------------------


def _system(host: Host) -> dict[str, Any] | None:
    """The entry of this system in the data, with its package manager; None when there is none."""
    system = host["os"]
    enterprise = system["distribution"] in data.ENTERPRISE_LINUX
    name = "EL" if enterprise else system["distribution"]
    version = system["version"] if name == "Ubuntu" else system["major"]
    found = data.SYSTEMS.get((name, version))
    return {**found, "name": name, "version": version, "manager": "dnf" if enterprise else "apt"} if found else None


def _naming(system: Mapping[str, Any], wanted: Wanted) -> str:
    """Which list of package names applies."""
    naming = str(system["naming"])
    if wanted["source"] == "distribution":
        return f"{naming}_archive"
    return "ubuntu_suffixed" if naming == "ubuntu" and int(wanted["branch"]) < data.UNSUFFIXED else naming


def _has_fabric(host: Host) -> bool:
    return bool(host["hardware"]["nvswitches"] or host["hardware"]["nvlink5"])


def _is_archive(wanted: Wanted, system: Mapping[str, Any], distribution: str) -> bool:
    """Whether the driver comes out of the archive of DISTRIBUTION."""
    return bool(wanted["source"] == "distribution" and system["name"] == distribution)


def _is_signed(host: Host, wanted: Wanted) -> bool:
    """Whether the modules come built and signed."""
    return bool(wanted["source"] == "distribution" and host["os"]["distribution"] in data.SIGNED)


def _red_hat_has_one(host: Host) -> bool:
    """Whether Red Hat has a driver of its own for this system; who rebuilds its system has none."""
    system = host["os"]
    return bool(system["distribution"] == "RedHat" and _numbers(system["version"]) >= _numbers(data.RHEL_FIRST))


def _url(host: Host, system: Mapping[str, Any]) -> str:
    """Of the system's folder in NVIDIA's repository."""
    return data.REPOSITORY.format(folder=system["folder"], architecture=data.ARCHITECTURES[host["os"]["architecture"]])


# -- problems ------------------------------------------------------------------------------------------------------


def _input_problems(wanted: Wanted, written: Mapping[str, Written]) -> list[str]:
    problems = option_problems(wanted, {key: f"nvidia_driver_{key}" for key in _TEXTS}, written)
    if problems:
        return problems
    source, branch, version = wanted["source"], str(wanted["branch"]), str(wanted["version"] or "")
    if source not in data.SOURCES:
        problems.append(f"nvidia_driver_source is {source}, wanted one of {', '.join(data.SOURCES)}.")
    if not re.fullmatch(r"\d{3}", branch):
        problems.append(
            f"nvidia_driver_branch is {branch}, wanted three digits such as 580; an exact version goes into nvidia_driver_version."
        )
    elif version and not re.fullmatch(rf"{branch}\.\d+(\.\d+)?", version):
        problems.append(
            f"nvidia_driver_version is {version}, wanted a version of branch {branch} such as {branch}.159.04;"
            f" set nvidia_driver_branch to the version's own branch: {version.split('.')[0]}."
        )
    if wanted["flavour"] not in data.FLAVOURS:
        problems.append(f"nvidia_driver_flavour is {wanted['flavour']}, wanted {' or '.join(data.FLAVOURS)}.")
    if source == "mirror":
        for key in ("mirror_url", "mirror_key_url", "mirror_key_fingerprint"):
            if not wanted[key]:
                problems.append(f"nvidia_driver_{key} is empty, wanted with nvidia_driver_source mirror.")
        fingerprint = "".join(str(wanted["mirror_key_fingerprint"]).split())
        if fingerprint and not re.fullmatch(r"[0-9A-Fa-f]{40}", fingerprint):
            problems.append(
                f"nvidia_driver_mirror_key_fingerprint is {fingerprint}, wanted 40 hexadecimal digits: gpg --show-keys FILE"
            )
    return problems


def _module_problems(host: Host, wanted: Wanted) -> list[str]:
    """Modules that do not fit the GPUs."""
    problems = []
    branch = int(wanted["branch"])
    architectures = sorted({gpu["architecture"] for gpu in host["hardware"]["gpus"] if gpu["architecture"]})
    if wanted["flavour"] == "proprietary":
        needs = [name for name in architectures if name in data.NEED_OPEN] + ["Grace"] * host["hardware"]["grace"]
        if needs:
            problems.append(
                f"nvidia_driver_flavour is proprietary, but {' and '.join(needs)} need open; leave nvidia_driver_flavour at open."
            )
        if branch >= data.OPEN_ONLY:
            problems.append(
                f"nvidia_driver_flavour is proprietary, but branch {branch} has open modules only; use open or a branch below {data.OPEN_ONLY}."
            )
    old = [name for name in architectures if name in data.NEED_PROPRIETARY]
    if old and wanted["flavour"] == "open":
        problems.append(
            f"the GPUs are {' and '.join(old)}, which the open modules do not drive;"
            f" set nvidia_driver_flavour: proprietary and a branch up to {data.LAST_OF_OLD}."
        )
    elif old and branch > data.LAST_OF_OLD:
        problems.append(
            f"nvidia_driver_branch is {branch}, but {' and '.join(old)} are driven up to {data.LAST_OF_OLD}; use that."
        )
    for name in architectures:
        if branch < data.FIRST_BRANCH.get(name, 0):
            problems.append(
                f"nvidia_driver_branch is {branch}, but {name} is driven from {data.FIRST_BRANCH[name]} on; use a newer branch."
            )
    return problems


def _system_problems(host: Host, wanted: Wanted, system: Mapping[str, Any] | None) -> list[str]:
    here = f"{host['os']['distribution']} {host['os']['version']}"
    if system is None:
        names = sorted({f"{name} {version}" for name, version in data.SYSTEMS})
        return [
            (
                f"{here} is not known to the driver's sources, wanted {', '.join(names)}; install the driver yourself and"
                " set nvidia_driver_source: preinstalled."
            )
        ]
    if host["os"]["architecture"] not in data.ARCHITECTURES:
        return [
            (
                f"architecture is {host['os']['architecture']}, wanted {' or '.join(data.ARCHITECTURES)};"
                " install the driver yourself and set nvidia_driver_source: preinstalled."
            )
        ]
    return _distribution_problems(host, wanted, system) if wanted["source"] == "distribution" else []


def _repository_problems(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[str]:
    """What NVIDIA's repository does not have for this system, or what is not known of it."""
    problems = []
    here, url = f"{system['name']} {system['version']}", _url(host, system)
    first = data.FIRST_OF_SYSTEM.get((system["name"], system["version"]), 0)
    if int(wanted["branch"]) < first:
        others = "distribution (Ubuntu's archive has older ones) or " if system["name"] == "Ubuntu" else ""
        problems.append(
            f"nvidia_driver_branch is {wanted['branch']}, but NVIDIA's repository for {here} begins with {first};"
            f' set nvidia_driver_branch: "{first}" or newer, or nvidia_driver_source: {others}mirror.'
        )
    key, fingerprint = system["key"]
    if not fingerprint:
        problems.append(
            f"the fingerprint of {key}, which signs NVIDIA's repository for {here}, is not known here, wanted 40 hexadecimal digits:"
            f" see gpg --show-keys {key}, compare with what NVIDIA publishes, and set nvidia_driver_source: mirror,"
            f" nvidia_driver_mirror_url: {url}, nvidia_driver_mirror_key_url: {url}{key} and nvidia_driver_mirror_key_fingerprint."
        )
    return problems


def _red_hat_problems(host: Host, wanted: Wanted) -> list[str]:
    """What speaks against Red Hat's own driver on Red Hat's own system."""
    problems = []
    if not _red_hat_has_one(host):
        problems.append(
            f"Red Hat Enterprise Linux is {host['os']['version']}, wanted {data.RHEL_FIRST} or newer, which has {data.RHEL_TOOL};"
            " upgrade it, or set nvidia_driver_source: cuda_repo."
        )
    if wanted["flavour"] == "proprietary":
        problems.append(
            "nvidia_driver_flavour is proprietary, but Red Hat builds open modules only, wanted open;"
            " leave it at that, or set nvidia_driver_source: cuda_repo."
        )
    if not wanted["version"]:
        disabled = " ".join(_disabled(host))
        enable = f" dnf config-manager --set-enabled {disabled};" if disabled else ""
        problems.append(
            f"nvidia_driver_version is empty, wanted a version of branch {wanted['branch']}, as {data.RHEL_TOOL} knows no branches;"
            f" choose one on the host: dnf install {data.RHEL_TOOL};{enable} {data.RHEL_TOOL} list --available"
        )
    return problems


def _rhel_repositories(host: Host) -> list[tuple[str, str]]:
    """Where Red Hat's driver comes from, by the name on a registered host and that on an image of a cloud."""
    architecture = host["os"]["architecture"]
    return [(name.format(architecture=architecture), image) for name, image in data.RHEL_REPOSITORIES]


def _unknown_repositories(host: Host) -> list[str]:
    """Those of them that the host does not know; whether they are enabled makes no difference."""
    known = {entry.get("name") for entry in host["repositories"]}
    unknown = [f"{name} (or {image})" for name, image in _rhel_repositories(host) if not known & {name, image}]
    if not unknown:
        return []
    return [
        (
            f"the host has no repository {' and no '.join(unknown)}, wanted them, enabled or not: Red Hat's driver comes from there;"
            f" register the host: subscription-manager register; or, where they have other names, install with {data.RHEL_TOOL} and set"
            " nvidia_driver_source: preinstalled."
        )
    ]


def _disabled(host: Host) -> list[str]:
    """Those of them that are on a cloud's image and disabled; of the others Red Hat's tool takes care."""
    off = {entry.get("name") for entry in host["repositories"] if not entry["enabled"]}
    return [image for _, image in _rhel_repositories(host) if image in off]


def _distribution_problems(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[str]:
    problems = []
    here = f"{host['os']['distribution']} {system['version']}"
    if system["name"] == "EL":
        if host["os"]["distribution"] != "RedHat":
            # What it would want besides says nothing to who has to choose another source.
            return [
                (
                    f"nvidia_driver_source is distribution, but {here} has no driver of its own, wanted Red Hat Enterprise Linux"
                    f" {data.RHEL_FIRST} or newer; set nvidia_driver_source: cuda_repo."
                )
            ]
        problems += _red_hat_problems(host, wanted)
    lacking = [name for name in _fabric_names(host, wanted, system) if not _in_archive(name, system)]
    if lacking:
        problems.append(
            f"the archive of {here} has no {', '.join(lacking)}, wanted for how these GPUs are connected;"
            " set nvidia_driver_source: cuda_repo."
        )
    if system["name"] != "Debian":
        return problems
    carried = data.DEBIAN_BRANCH[system["version"]]
    if str(wanted["branch"]) != carried:
        problems.append(
            f"{here} carries branch {carried}, wanted {wanted['branch']};"
            f' set nvidia_driver_branch: "{carried}" or nvidia_driver_source: cuda_repo.'
        )
    enabled = {
        name for entry in host["repositories"] if entry["enabled"] and entry["origin"] == "distribution" for name in entry["components"]
    }  # fmt: skip
    missing = [name for name in data.DEBIAN_COMPONENTS if name not in enabled]
    if missing:
        problems.append(
            f"Debian's sources have the components {', '.join(sorted(enabled)) or 'none'}, wanted {', '.join(missing)} too;"
            " add them in /etc/apt/sources.list.d/debian.sources or /etc/apt/sources.list."
        )
    return problems


def _own_interruption(host: Host) -> bool:
    """Whether just packages of the driver are half installed, as an installation leaves them that was cut off."""
    incomplete = host["package_state"]["incomplete"]
    own = re.compile(r"nvidia-driver-pinning-.*|linux-headers-.*|kernel-devel.*")
    return bool(incomplete) and all(_FAMILY.match(name) or own.match(name) for name in incomplete)


def _package_problems(host: Host, wanted: Wanted, manager: str, change: str) -> list[str]:
    if change == "none" and not host["package_state"]["interrupted"]:
        return []
    problems = []
    state = host["package_state"]
    if state["interrupted"] and not _own_interruption(host):
        names = ", ".join(state["incomplete"]) or "unknown packages"
        problems.append(
            f"the package manager was interrupted ({names} not configured), wanted none; run: dpkg --configure -a"
        )
    other = "cuda_repo" if wanted["source"] == "distribution" else "distribution"
    # Ubuntu's archive has some of NVIDIA's names; its own versions tell.
    mixed = sorted(
        name
        for name, version in host["packages"].items()
        if re.fullmatch(data.ORIGINS[manager][other], name) and (other == "distribution" or "-0ubuntu" not in version)
    )
    if mixed:
        remove = "apt-get purge" if manager == "apt" else "dnf remove"
        problems.append(
            f"{', '.join(mixed)} of another origin are installed, wanted packages of one origin;"
            f" remove them first: {remove} {' '.join(mixed)}"
        )
    return problems


# -- the parts of the plan -----------------------------------------------------------------------------------------


def installed_version(packages: Mapping[str, str]) -> str | None:
    """Version of the installed driver, None when there is none."""
    for witness in data.WITNESSES:
        for name in sorted(packages):
            if re.fullmatch(witness, name):
                return upstream_version(packages[name])
    return None


def _fabric_names(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[str]:
    """Packages that the connections between the GPUs need."""
    manager, hardware = system["manager"], host["hardware"]
    # Ubuntu's archive kept the branch in these names.
    old = int(wanted["branch"]) < data.FABRIC_UNSUFFIXED or _is_archive(wanted, system, "Ubuntu")
    names: list[str] = []
    if _has_fabric(host):
        names.append((data.FABRIC_MANAGER_OLD if old else data.FABRIC_MANAGER)[manager])
        names.append((data.FABRIC_LIBRARY_OLD if old else data.FABRIC_LIBRARY)[manager])
    if hardware["nvlink5"]:
        names += data.NVLINK5_OLD if old else data.NVLINK5
    if hardware["multi_node_nvlink"]:
        names.append((data.IMEX_OLD if old else data.IMEX)[manager])
    return [name.format(branch=wanted["branch"]) for name in names]


def _in_archive(name: str, system: Mapping[str, Any]) -> bool:
    return not re.fullmatch(data.ARCHIVE_LACKS.get(system["name"], ""), name)


def _names(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[str]:
    """Packages that must be there, in the order they are named to the package manager."""
    archive = wanted["source"] == "distribution"
    if wanted["compute_only"] or archive:
        names = list(data.COMPUTE[_naming(system, wanted)][wanted["flavour"]])
    else:
        names = list(data.FULL[wanted["flavour"]])
    kernel = str(wanted.get("kernel") or host["kernel"]["running"])
    names = [
        name.format(branch=wanted["branch"], kernel=kernel)
        for name in names
        if wanted["persistence"] or name != "nvidia-persistenced"
    ]
    return names + [name for name in _fabric_names(host, wanted, system) if not archive or _in_archive(name, system)]


def _next_kernel(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[str]:
    """Ubuntu's modules of a kernel that is installed and runs from the next boot on; they come along with a change."""
    kernel = host["kernel"]
    if not _is_archive(wanted, system, "Ubuntu") or wanted.get("kernel") or not kernel.get("pending"):
        return []
    names = data.COMPUTE["ubuntu_archive"][wanted["flavour"]]
    return [name.format(branch=wanted["branch"], kernel=kernel["newest"]) for name in names if "{kernel}" in name]


def _lockstep(packages: Mapping[str, str]) -> dict[str, str | None]:
    """Upstream versions of the packages that must agree."""
    return {name: upstream_version(version) for name, version in packages.items() if _LOCKSTEP.match(name)}


def _satisfied(version: str | None, wanted: Wanted) -> bool:
    if not version:
        return False
    return version == wanted["version"] if wanted["version"] else version.startswith(f"{wanted['branch']}.")


def _change(host: Host, wanted: Wanted, names: Iterable[str]) -> tuple[str, list[str]]:
    """What is to be done, and remarks on why."""
    version = installed_version(host["packages"])
    if version is None:
        return "install", []
    incomplete = [name for name in host["package_state"]["incomplete"] if _FAMILY.match(name)]
    if incomplete and _satisfied(version, wanted):
        return "switch", [f"half installed: {', '.join(incomplete)}"]
    if not _satisfied(version, wanted):
        target = _numbers(wanted["version"] or wanted["branch"])
        return ("upgrade" if target > _numbers(version)[: len(target)] else "downgrade"), []
    apart = {name: found for name, found in _lockstep(host["packages"]).items() if found != version}
    if apart:
        told = ", ".join(f"{name} {found}" for name, found in sorted(apart.items()))
        return "switch", [f"not in step with {version}: {told}"]
    missing = [name for name in names if name not in host["packages"]]
    if missing:
        return "switch", [f"missing: {', '.join(missing)}"]
    return "none", []


def _companions(host: Host, wanted: Wanted, names: Iterable[str]) -> list[str]:
    """Installed packages that move together with NAMES: a held one stays where it is unless it is named.

    A name that carries the number of another branch does not exist in the wanted one; those are left to conflicts.
    """
    version = installed_version(host["packages"])
    foreign = re.compile(rf"-(?!{wanted['branch']}\b)\d{{3}}\b")
    incomplete = host["package_state"]["incomplete"]
    # Where an installation was cut off, some have the old version yet; apt wants the whole way out of that named.
    moving = {
        name
        for name, found in host["packages"].items()
        if upstream_version(found) == version
        or (incomplete and re.fullmatch(r"\d{3}(\.\d+)+", upstream_version(found) or ""))
    }
    moving |= set(incomplete)
    return sorted(name for name in moving - set(names) if _FAMILY.match(name) and not foreign.search(name))


def _specs(names: Iterable[str], wanted: Wanted, manager: str) -> list[str]:
    """Names with the version that the package manager is to take."""
    version = wanted["version"]
    own = data.OWN_VERSION + (f"|{data.OWN_VERSION_ARCHIVE}" if wanted["source"] == "distribution" else "")
    specs = []
    for name in names:
        if re.fullmatch(own, name):
            specs.append(name)
        elif manager == "dnf":
            # The stream or the version lock keeps the branch.
            specs.append(f"{name}-{version}*" if version else name)
        else:
            specs.append(f"{name}={version}-*" if version else f"{name}={wanted['branch']}.*")
    return specs


def _origin(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Keys and repositories of the source, each with whether the host has it already."""
    manager = system["manager"]
    if wanted["source"] == "cuda_repo":
        url = _url(host, system)
        name, fingerprint = system["key"]
        if not fingerprint:
            return [], []
        key_url, suite = url + name, "/"
    elif wanted["source"] == "mirror":
        url, key_url, suite = wanted["mirror_url"], wanted["mirror_key_url"], wanted["mirror_suite"]
        fingerprint = "".join(str(wanted["mirror_key_fingerprint"]).split()).upper()
    else:
        return [], []
    signed_by = data.KEY_PATH if manager == "apt" else key_url
    repository = _repositories.wanted_repository(data.SOURCE_NAME, manager, url, suite, signed_by)
    repository["current"] = _repositories.repository_current(repository, host["repositories"])
    # rpm keeps keys in its own database: what is in the repository's file counts.
    known = (
        repository["current"]
        if manager == "dnf"
        else _repositories.key_current(data.KEY_PATH, [fingerprint], host["keys"])
    )
    key = {
        "url": key_url,
        "path": data.KEY_PATH if manager == "apt" else None,
        "fingerprints": [fingerprint],
        "current": known,
    }
    return [key], [repository]


def _retired(host: Host, repositories: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Files and packages that would fight with the wanted source."""
    files = [path for path, found in host["keys"].items() if found == [data.RETIRED_KEY]]
    for repository in repositories:
        files += _repositories.duplicates(repository, host["repositories"])
    return {
        "files": sorted(files),
        "packages": ["cuda-keyring"] if files and "cuda-keyring" in host["packages"] else [],
    }


def _files(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings on the host, each with whether it differs from what is there."""
    items = [data.NOUVEAU]
    if system["manager"] == "apt":
        items.append(data.UNATTENDED)
        if host["updates"]["needrestart"]:
            items.append(data.NEEDRESTART)
    if wanted["persistence"]:
        items.append(data.PERSISTENCED)
    if host["hardware"]["nvlink5"]:
        items.append(data.INFINIBAND)
    return [
        {
            "path": path,
            "content": content,
            "mode": "0644",
            "changed": host["files"].get(path) != hashlib.sha256(content.encode()).hexdigest(),
            "effect": effect,
        }
        for path, content, effect in items
    ]


def _services(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[dict[str, Any]]:
    units = host["driver"]["units"]
    persistence = units.get("nvidia-persistenced.service", {})
    needs = {
        # Which package of Red Hat's brings it, if any does, is written nowhere: it runs where it is.
        "nvidia-persistenced.service": bool(
            wanted["persistence"] and (persistence.get("exists") or not _is_archive(wanted, system, "EL"))
        ),
        "nvidia-fabricmanager.service": _has_fabric(host),
        "nvidia-imex.service": bool(host["hardware"]["multi_node_nvlink"]),
    }
    return [
        {
            "name": name,
            "needed": needed,
            "current": not needed or bool(units.get(name, {}).get("active") and units[name]["enabled"]),
        }
        for name, needed in needs.items()
    ]


def _locks(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> dict[str, Any]:
    """How Enterprise Linux is kept on the branch."""
    if system["manager"] != "dnf":
        return {"module_stream": None, "versionlock": []}
    branch = wanted["branch"]
    if system["version"] == "10":
        # Red Hat's tool takes an exact version, so a lock only holds; dnf needs it to find the branch.
        locked = bool(wanted["hold"]) or not _is_archive(wanted, system, "EL")
        return {"module_stream": None, "versionlock": [f"*nvidia*{wanted['version'] or branch}*"] * locked}
    suffix = "open" if wanted["flavour"] == "open" else "dkms"
    return {"module_stream": f"nvidia-driver:{branch}-{suffix}", "versionlock": []}


def _prerequisites(host: Host, wanted: Wanted, system: Mapping[str, Any]) -> list[str]:
    """Headers for the modules that DKMS builds, now and when a kernel is upgraded."""
    if _is_signed(host, wanted):
        return []
    kernel = str(wanted.get("kernel") or "")
    if not kernel and host["kernel"]["headers"]:
        return []
    kernel = kernel or host["kernel"]["running"]
    return [f"linux-headers-{kernel}" if system["manager"] == "apt" else f"kernel-devel-{kernel}"]


def _tools(host: Host, rhel: bool, enables: bool, locks: bool) -> list[str]:
    """What a change is made with and the host does not have."""
    needs = {data.RHEL_TOOL: rhel, data.CONFIG_MANAGER: enables, data.VERSIONLOCK: locks}
    return [name for name, needed in needs.items() if needed and name not in host["packages"]]


def _other_kernel(host: Host, wanted: Wanted) -> str | None:
    """The kernel that modules are built for, when it is not the one that runs."""
    kernel = str(wanted.get("kernel") or "")
    return kernel if kernel and kernel != host["kernel"]["running"] else None


def _unbuilt(host: Host, wanted: Wanted) -> bool:
    """Whether the packages are there and the modules that DKMS makes of them are not: the next boot had no driver."""
    return (
        not _is_signed(host, wanted)
        and "dkms" in host["packages"]
        and installed_version(host["packages"]) is not None
        and host["driver"]["module_version"] is None
        and _other_kernel(host, wanted) is None
    )


def reboot_reason(host: Host, wanted: Wanted) -> str | None:
    """Why only a reboot brings the installed driver into the kernel, None when nothing of that kind is seen."""
    driver = host["driver"]
    other = _other_kernel(host, wanted)
    if other and installed_version(host["packages"]) and driver["loaded_version"] is None:
        return f"the driver is built for kernel {other}, {host['kernel']['running']} runs; see that {other} is the one that boots."
    if driver["nouveau"]["bound"]:
        return f"nouveau drives {', '.join(driver['nouveau']['bound'])}, wanted nvidia; it is kept out from the next boot on."
    if not driver["module_version"] or not host["hardware"]["gpus"]:
        return None
    if driver["loaded_version"] is None:
        return f"driver {driver['module_version']} is installed, but no module of it is loaded."
    if driver["loaded_version"] != driver["module_version"]:
        return f"driver {driver['loaded_version']} is loaded, {driver['module_version']} is installed."
    return None


# -- the plan ------------------------------------------------------------------------------------------------------


def _empty(host: Host, wanted: Wanted, problems: list[str]) -> dict[str, Any]:
    return {
        "source": wanted["source"],
        "branch": str(wanted["branch"]),
        "version": wanted["version"] or None,
        "flavour": wanted["flavour"],
        "problems": problems,
        "notes": [],
        "change": "none",
        "installed_version": installed_version(host["packages"]) or host["driver"]["module_version"],
        "keys": [],
        "repositories": [],
        "retired": {"files": [], "packages": []},
        "module_stream": None,
        "versionlock": [],
        "interrupted": False,
        "prerequisites": [],
        "enable": [],
        "pins": [],
        "packages": [],
        "command": None,
        "build": False,
        "holds": [],
        "missing_holds": [],
        "files": [],
        "services": [],
        "reboot_reason": None,
        "current": not problems,
    }


def _preinstalled(host: Host, wanted: Wanted) -> dict[str, Any]:
    driver = host["driver"]
    problems = []
    cure = "install or load it as your system does, or choose another nvidia_driver_source."
    if driver["error"]:
        problems.append(f"nvidia-smi does not work: {sentence(driver['error'])} Wanted a driver that works; {cure}")
    elif not driver["loaded_version"]:
        problems.append(f"no driver is loaded, wanted one of branch {wanted['branch']} or newer; {cure}")
    elif int(driver["loaded_version"].split(".")[0]) < int(wanted["branch"]):
        problems.append(
            f"driver {driver['loaded_version']} is loaded, wanted branch {wanted['branch']} or newer;"
            " upgrade it, or lower nvidia_driver_branch."
        )
    return _empty(host, wanted, problems)


def driver_plan(host: Host, wanted: Wanted, written: Mapping[str, Written] | None = None) -> dict[str, Any]:
    """The plan for a host; see the documentation of the filter for its keys. WRITTEN: how what is no text stands in a file."""
    problems = _input_problems(wanted, written or {})
    wanted = {**wanted, "version": str(wanted["version"] or "")}
    if problems:
        return _empty(host, wanted, problems)
    if wanted["source"] == "preinstalled":
        return _preinstalled(host, wanted)
    system = _system(host)
    problems = _system_problems(host, wanted, system) + _module_problems(host, wanted)
    unknown = system is None or host["os"]["architecture"] not in data.ARCHITECTURES
    if system is None or unknown or (_is_archive(wanted, system, "EL") and not _red_hat_has_one(host)):
        return _empty(host, wanted, problems)
    names = _names(host, wanted, system)
    change, notes = _change(host, wanted, names)
    if change != "none" and wanted["source"] == "cuda_repo":
        problems += _repository_problems(host, wanted, system)
    rhel = change != "none" and _is_archive(wanted, system, "EL")
    if rhel:
        problems += _unknown_repositories(host)
    problems += _package_problems(host, wanted, system["manager"], change)
    keys, repositories = _origin(host, wanted, system)
    locks = _locks(host, wanted, system)
    enable = _disabled(host) if rhel else []
    prerequisites = _prerequisites(host, wanted, system)
    if change != "none":
        prerequisites += _tools(host, rhel, bool(enable), bool(locks["versionlock"]))
    version = installed_version(host["packages"])
    family = sorted(
        name for name, found in host["packages"].items() if _FAMILY.match(name) and upstream_version(found) == version
    )
    holds = family if wanted["hold"] and change == "none" and system["manager"] == "apt" else []
    companions = _companions(host, wanted, names) if system["manager"] == "apt" else []
    pinned = (
        system["manager"] == "apt" and wanted["source"] != "distribution" and int(wanted["branch"]) >= data.PINNABLE
    )
    plan = {
        **_empty(host, wanted, problems),
        "notes": notes,
        "change": change,
        "installed_version": version,
        "keys": keys,
        "repositories": repositories,
        "retired": _retired(host, repositories),
        **locks,
        "interrupted": host["package_state"]["interrupted"] and not problems,
        "prerequisites": prerequisites,
        "enable": enable,
        "pins": [f"nvidia-driver-pinning-{wanted['version'] or wanted['branch']}"]
        if pinned and change != "none"
        else [],
        "packages": _specs([*names, *companions, *_next_kernel(host, wanted, system)], wanted, system["manager"])
        if change != "none"
        else [],
        "command": [word.format(version=wanted["version"]) for word in data.RHEL_INSTALL]
        if rhel and wanted["version"]
        else None,
        "holds": holds,
        "missing_holds": [name for name in holds if name not in host["package_state"]["holds"]],
        "files": _files(host, wanted, system),
        "services": _services(host, wanted, system),
        "build": change == "none" and _unbuilt(host, wanted),
        "reboot_reason": reboot_reason(host, wanted),
    }
    plan["current"] = (
        not problems
        and change == "none"
        and not plan["prerequisites"]
        and not plan["build"]
        and plan["reboot_reason"] is None
        and not plan["missing_holds"]
        and not any(item["changed"] for item in plan["files"])
        and all(item["current"] for item in plan["services"])
    )
    return plan


def _simulated(simulated: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of packages that would come, go and become older, out of the lines of apt-get -s or the results of dnf."""
    found = _transaction.parse_apt(str(simulated.get("stdout") or ""))
    installed = [*found["installed"], *found["upgraded"], *found["downgraded"]]
    removed = [*found["removed"]]
    for result in simulated.get("results") or []:
        verb, _, package = str(result).partition(": ")
        # NAME-VERSION-RELEASE.ARCHITECTURE
        name = package.rsplit("-", 2)[0]
        if verb in ("Installed", "Removed"):
            (installed if verb == "Installed" else removed).append(name)
    # dnf counts the old version of what it upgrades as removed.
    gone = [name for name in removed if name not in installed]
    return {"installed": installed, "removed": gone, "downgraded": [*found["downgraded"]]}


def transaction_problems(simulated: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Why a simulated transaction must not run. SIMULATED is the result of apt or dnf in check mode."""
    wanted = ", ".join(plan["packages"])
    # failed_when: false hides a failure from "failed"; a module that got somewhere tells what it would do.
    done = (
        simulated.get("stdout")
        or simulated.get("results")
        or (simulated.get("changed") is not None and not simulated.get("msg"))
    )
    if simulated.get("failed") or simulated.get("rc") or not done:
        said = sentence(str(simulated.get("msg") or simulated.get("stderr") or "unknown"))
        return [
            (
                f"the transaction cannot be resolved: {said} Wanted {wanted}. Look at: apt-cache policy"
                f" {' '.join(spec.split('=')[0] for spec in plan['packages'])}; apt-mark showhold"
            )
        ]
    problems = []
    would = _simulated(simulated)
    for words, names in (("install", would["installed"]), ("remove", would["removed"])):
        kernels = [name for name in names if _KERNEL.match(name)]
        if kernels:
            problems.append(
                f"the transaction would {words} {', '.join(kernels)}, wanted the kernel left alone;"
                " bring kernel and headers to what you want first."
            )
    foreign = sorted(
        name
        for name in would["removed"]
        if not (_FAMILY.match(name) or _KERNEL.match(name) or name.startswith("nvidia-driver-pinning"))
    )
    if foreign:
        problems.append(
            f"the transaction would remove {', '.join(foreign)}, wanted only packages of the driver;"
            " remove them yourself if they may go, or install what they need."
        )
    older = sorted(
        name for name in would["downgraded"] if not (_FAMILY.match(name) or name.startswith("nvidia-driver-pinning"))
    )
    if older:
        problems.append(
            f"the transaction would downgrade {', '.join(older)}, wanted no package but the driver's older than it is;"
            " choose a driver that goes with them."
        )
    return problems
