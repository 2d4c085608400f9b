# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host says of its packages, repositories, kernels and firmware, as plain data. Private to the collection; pure."""

from __future__ import annotations

import configparser
import fnmatch
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _openpgp

#: Units around the driver whose state decides what is done; one ``systemctl show`` tells them all.
DRIVER_UNITS = (
    "nvidia-persistenced.service",
    "nvidia-fabricmanager.service",
    "nvidia-imex.service",
    "nvidia-dcgm.service",
    "dcgm-exporter.service",
    "nvidia-cdi-refresh.service",
    "nvidia-cdi-refresh.path",
)
#: Timers that upgrade packages by themselves.
UPDATE_TIMERS = ("apt-daily-upgrade.timer", "dnf-automatic.timer", "dnf-automatic-install.timer")
# What `systemctl is-enabled` calls success: nothing is left to enable.
_ENABLED = frozenset({"enabled", "enabled-runtime", "static", "alias", "indirect", "generated"})

# -- packages ----------------------------------------------------------------------------------------------------------

#: Who has one of these open works on the packages.
PACKAGE_LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/rpm/.rpm.lock",
    "/usr/lib/sysimage/rpm/.rpm.lock",
)
#: Formats of the two package databases, one package a line: state, name, version.
DPKG_FORMAT = "${db:Status-Abbrev} ${Package} ${Version}\n"
RPM_FORMAT = "ii  %{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\n"


def match_packages(installed: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Installed packages whose names match one of PATTERNS, which are shell globs."""
    patterns = list(patterns)
    return {name: installed[name] for name in installed if any(fnmatch.fnmatchcase(name, glob) for glob in patterns)}


def package_state(text: str, updates: Iterable[str], busy: int | None = None) -> dict[str, Any]:
    """The database of dpkg (DPKG_FORMAT) and the names in its ``updates`` folder to holds and unfinished work.

    BUSY is the process that works on the database now: what is unfinished is then in good hands.
    """
    holds, incomplete, broken = [], [], False
    for line in text.splitlines():
        # Three letters: wanted, status, and R for a package that must be installed again.
        match = re.match(r"(\w)(\w)(.)? *(\S+)", line)
        if not match:
            continue
        wanted, status, error, name = match.groups()
        if wanted == "h":
            holds.append(name)
        if status in "HUFWt" or error == "R":
            incomplete.append(name)
            broken = broken or status in "HUF" or error == "R"
    # A running or killed dpkg leaves its journal there, in files whose names are numbers.
    journal = any(name.isdigit() for name in updates)
    return {
        "holds": sorted(set(holds)),
        "interrupted": (journal or broken) and busy is None,
        "incomplete": sorted(set(incomplete)) if busy is None else [],
        "busy": busy,
    }


def parse_versionlock(text: str) -> list[str]:
    """The list of dnf's versionlock plugin, or dnf5's versionlock.toml, to names (or patterns) that are locked."""
    names = re.findall(r'^\s*name\s*=\s*"([^"]+)"', text, re.MULTILINE)
    if not names:
        rows = (line.strip() for line in text.splitlines())
        for row in rows:
            if row and not row.startswith(("#", "!")):
                match = re.match(r"(.+)-(?:\d+:)?[^-]+-[^-]+$", row)
                names.append(match.group(1) if match else row)
    return sorted(set(names))


def upstream_version(version: str | None) -> str | None:
    """Version of a package to that of the software in it: without epoch, revision and what a distribution added."""
    match = re.match(r"(?:\d+:)?([0-9][0-9A-Za-z.]*)", version or "")
    return match.group(1) if match else None


def software_version(text: str) -> str | None:
    """First version in what a program says of itself."""
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)*)\b", text)
    return match.group(1) if match else None


# -- repositories ------------------------------------------------------------------------------------------------------


def _origin(entry: Mapping[str, Any]) -> str:
    places = [urllib.parse.urlsplit(uri) for uri in entry["uris"]]
    # What a mirror's address does not tell, the names of the file and of the key may.
    hints = [entry["path"].rsplit("/", 1)[-1], *(entry["signed_by"] or "").split()]
    texts = [f"{place.hostname or ''}{place.path}".lower() for place in places] + hints
    if any("libnvidia-container" in text or "nvidia-container-toolkit" in text for text in texts):
        return "toolkit"
    # NVIDIA's own place, a mirror that kept the folder, and the packages that lay a repository on the disk.
    if any(re.search(r"(^|/)cuda(-[^/]*)?(/|$)|/(nvidia-driver-local|cuda)-repo-", text) for text in texts):
        return "cuda"
    if any(text.startswith("download.docker.com") or re.search(r"(^|/)docker(-ce)?([/.]|$)", text) for text in texts):
        return "docker"
    hosts = r"(^|\.)(debian\.org|ubuntu\.com|redhat\.com|rockylinux\.org|almalinux\.org|centos\.org)$"
    if any(re.search(hosts, place.hostname or "") for place in places):
        return "distribution"
    # A mirror of a distribution keeps the names of its suites' components.
    known = {"main", "universe", "restricted", "multiverse", "contrib", "non-free", "non-free-firmware"}
    base = ("-updates", "-security", "-backports")
    parts = set(entry["components"])
    whole = {"universe", "contrib", "non-free"} & parts or any(suite.endswith(base) for suite in entry["suites"])
    if parts and parts <= known and whole:
        return "distribution"
    if any(re.search(r"/(debian|ubuntu|debian-security|baseos|appstream)(/|$)", text) for text in texts):
        return "distribution"
    return "other"


def _repository(path: str, **values: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": path,
        "name": None,
        "enabled": True,
        "types": [],
        "uris": [],
        "suites": [],
        "components": [],
        "signed_by": None,
        **values,
    }
    return {**entry, "origin": _origin(entry)}


def parse_sources_list(path: str, text: str) -> list[dict[str, Any]]:
    """A one-line-style sources.list(5) to its repositories; what is commented out is none."""
    found = []
    for raw in text.splitlines():
        match = re.match(
            r"\s*(deb|deb-src)\s+(?:\[([^\]]*)\]\s*)?(cdrom:\[[^\]]*\]\S*|\S+)\s+(\S+)((?:\s+[^\s#]+)*)", raw
        )
        if not match:
            continue
        kind, options, uri, suite, components = match.groups()
        values = dict(word.split("=", 1) for word in (options or "").split() if "=" in word)
        signed = {key.lower(): value for key, value in values.items()}.get("signed-by", "").replace(",", " ")
        found.append(
            _repository(
                path, types=[kind], uris=[uri], suites=[suite], components=components.split(), signed_by=signed or None
            )
        )
    return found


def parse_deb822(text: str) -> list[dict[str, str]]:
    """Stanzas of a deb822 file; field names in lower case, lines of a value joined by newlines."""
    stanzas: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                stanzas.append(fields)
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += f"\n{line.strip()}"
        elif ":" in line:
            last, value = line.split(":", 1)
            last = last.strip().lower()
            fields[last] = value.strip()
    return stanzas


def _signed_by(value: str | None) -> str | None:
    # A key that stands in the file is named as apt would name it elsewhere: by its fingerprint.
    if value and "-----BEGIN" in value:
        text = "\n".join("" if line == "." else line for line in value.splitlines())
        try:
            return " ".join(_openpgp.fingerprints(text.strip().encode()))
        except ValueError:
            return None
    return " ".join(value.split()) if value else None


def parse_sources(path: str, text: str) -> list[dict[str, Any]]:
    """A deb822-style .sources file to its repositories."""
    return [
        _repository(
            path,
            enabled=fields.get("enabled", "yes").lower() not in ("no", "false", "without", "off", "disable", "0"),
            types=fields.get("types", "").split(),
            uris=fields.get("uris", "").split(),
            suites=fields.get("suites", "").split(),
            components=fields.get("components", "").split(),
            signed_by=_signed_by(fields.get("signed-by")),
        )
        for fields in parse_deb822(text)
        if "uris" in fields
    ]


def parse_yum_repo(path: str, text: str) -> list[dict[str, Any]]:
    """A .repo file of yum and dnf to its repositories."""
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return []
    found = []
    for name in parser.sections():
        values = parser[name]
        uris = " ".join(values.get(key, "") for key in ("baseurl", "metalink", "mirrorlist")).replace(",", " ").split()
        keys = " ".join(values.get("gpgkey", "").replace(",", " ").split())
        found.append(
            _repository(
                path,
                name=name,
                enabled=values.get("enabled", "1").strip().lower() in ("1", "yes", "true", "on"),
                types=["rpm"],
                uris=uris,
                signed_by=keys or None,
            )
        )
    return found


def parse_repositories(path: str, text: str) -> list[dict[str, Any]]:
    """A file that names repositories, in the form that its name promises."""
    if path.endswith(".sources"):
        return parse_sources(path, text)
    return parse_yum_repo(path, text) if path.endswith(".repo") else parse_sources_list(path, text)


def key_fingerprints(data: bytes) -> list[str]:
    """Fingerprints in a keyring, none when it is not one."""
    try:
        return _openpgp.fingerprints(data)
    except ValueError:
        return []


# -- firmware and kernels ----------------------------------------------------------------------------------------------


def secure_boot(variable: bytes, shim_variable: bytes, sb_state: str) -> bool | None:
    """Whether only signed modules load: by the EFI variables SecureBoot and MokSBStateRT, else by mokutil --sb-state.

    A variable has four bytes of attributes before its value. MokSBStateRT is 1 where the operator has switched the
    validation off in shim, which the kernel believes.
    """
    if len(variable) >= 5:
        return variable[4] == 1 and shim_variable[4:5] != b"\x01"
    if re.search(r"^SecureBoot (validation is )?disabled", sb_state, re.MULTILINE):
        return False
    return True if re.search(r"^SecureBoot enabled", sb_state, re.MULTILINE) else None


def key_enrolled(text: str) -> bool | None:
    """``mokutil --test-key`` to whether the key is trusted. A request that waits for the console is not trust."""
    if re.search(r"is not enrolled|already in the enrollment request|is blocked", text):
        return False
    return True if re.search(r"is already (enrolled|in )", text) else None


def version_key(version: str) -> list[tuple[int, int, str]]:
    """Sort key of a kernel version: numbers by value, above words."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d+|[A-Za-z]+", version)]


def _release(version: str) -> str:
    # Flavours (-amd64, -cloud-amd64, -generic) of one release are no older and no newer than each other.
    return re.sub(r"-[a-z].*$", "", version)


def kernels(running: str, images: Iterable[str], headers: bool) -> dict[str, Any]:
    """The running kernel and the names of kernel images to what the roles decide from."""
    installed = {re.sub(r"^vmlinu[xz]-", "", name) for name in images if re.match(r"vmlinu[xz]-\d", name)}
    ordered = sorted((name for name in installed if not name.startswith("0-rescue")), key=version_key)
    newest = ordered[-1] if ordered else running
    return {
        "running": running,
        "headers": headers,
        "newest": newest,
        "pending": version_key(_release(newest)) > version_key(_release(running)),
        "installed": ordered,
    }


def parse_modinfo(text: str) -> dict[str, str]:
    """``modinfo`` to the first value of each field."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"(\w+):\s*(.*)$", line)
        if match:
            values.setdefault(match.group(1), match.group(2).strip())
    return values


def module_name(modprobe_configuration: str) -> str:
    """Name of the file that ``modprobe nvidia`` loads; Debian calls it by the driver's series and lets modprobe know."""
    match = re.search(r"^install\s+nvidia\s+modprobe\s.*?-i\s+(\S+)", modprobe_configuration, re.MULTILINE)
    return match.group(1) if match else "nvidia"


def flavour(loaded: str, license_on_disk: str | None) -> str | None:
    """``open`` or ``proprietary``, by /proc/driver/nvidia/version, else by the licence of the module on disk."""
    if "NVRM version" in loaded:
        return "open" if "Open Kernel Module" in loaded else "proprietary"
    if not license_on_disk:
        return None
    return "open" if license_on_disk == "Dual MIT/GPL" else "proprietary"


def unit_state(unit: Mapping[str, str]) -> dict[str, bool]:
    """Properties of ``systemctl show`` to whether a unit exists, runs, and comes back after a boot."""
    return {
        "exists": unit.get("LoadState") == "loaded",
        "active": unit.get("ActiveState") in ("active", "activating", "reloading"),
        "enabled": unit.get("UnitFileState") in _ENABLED,
    }


_CONTAINER = r"(?:docker|libpod(?:-payload)?|cri-containerd)[-/]([0-9a-f]{64})"
_SERVICE = r"([\w@.\\:-]+\.service)"
#: Units that processes of containers are in where both versions of cgroups are mounted.
_ENGINES = ("docker.service", "containerd.service", "podman.service")


def owner(cgroup: str) -> tuple[str | None, str | None]:
    """/proc/PID/cgroup to the systemd service and to the id of the container that a process belongs to, the innermost of several.

    Where the host is a container itself, the hierarchies of version 1 tell of that, and only the unified one of what is inside.
    """
    containers = re.findall(_CONTAINER, cgroup)
    unified = re.search(r"^0::(.*)$", cgroup, re.MULTILINE)
    own = unified.group(1) if unified else ""
    services = re.findall(_SERVICE, own)
    if services and services[-1] not in _ENGINES and not re.search(_CONTAINER, own):
        return services[-1], None
    containers = re.findall(_CONTAINER, own) or containers
    if containers:
        return None, containers[-1]
    services = services or re.findall(_SERVICE, cgroup)
    return (services[-1] if services else None), None


def updates(configuration: Iterable[str], packages: Mapping[str, str], units: Mapping[str, Any]) -> dict[str, bool]:
    """Texts of apt's configuration in their order, installed packages and units to what changes packages by itself."""
    value = "0"
    for text in configuration:
        plain = re.sub(r"/\*.*?\*/|(?m:^\s*(//|#).*$)", "", text, flags=re.DOTALL)
        found = re.findall(r"\bUnattended-Upgrade\s+\"([^\"]*)\"", plain)
        value = found[-1] if found else value
    timers = {name: units.get(name, {}).get("UnitFileState") for name in UPDATE_TIMERS}
    apt = (
        "unattended-upgrades" in packages
        and value not in ("", "0")
        and timers["apt-daily-upgrade.timer"] not in ("disabled", "masked")
    )
    dnf = any(timers[name] == "enabled" for name in UPDATE_TIMERS[1:])
    return {"unattended_upgrades": apt or dnf, "needrestart": "needrestart" in packages}


def reboot(driver: Mapping[str, Any], kernel: Mapping[str, Any], marker: bool, marked: Iterable[str]) -> dict[str, Any]:
    """Whether the host needs a reboot, and everything that speaks for one.

    MARKER is /run/reboot-required, MARKED the packages that asked for it. A newer kernel alone is no need: it is there
    after the next boot, and modules are built for it besides.
    """
    reasons, required = [], False
    loaded, on_disk = driver["loaded_version"], driver["module_version"]
    if loaded and on_disk and loaded != on_disk:
        reasons.append(f"the loaded driver is {loaded}, the module on disk is {on_disk}")
        required = True
    if driver["nouveau"]["bound"]:
        reasons.append(f"nouveau drives {', '.join(driver['nouveau']['bound'])}")
        required = True
    if marker:
        names = sorted(set(marked))
        reasons.append(f"{', '.join(names) or 'a package'} asked for it (/run/reboot-required)")
        required = required or not names or any(not re.match(r"linux-|kernel", name) for name in names)
    if kernel["pending"]:
        reasons.append(f"kernel {kernel['newest']} is installed, {kernel['running']} runs")
    return {"required": required, "reasons": reasons}
