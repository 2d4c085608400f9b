# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at Docker as it is on a host: its unit, its process, its flags and its file. Private; decisions are in _daemon.py and _engine.py.

SURVEY is a Survey of _survey.py, UNITS are properties by unit name, as ``systemctl show`` tells them.
"""

from __future__ import annotations

import glob
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _clock, _daemon, _system
from ansible_collections.baremetal.nim.plugins.module_utils._host import SERVICE_LABEL
from ansible_collections.baremetal.nim.plugins.module_utils._survey import Survey, read_text

UNIT, SOCKET, SNAP = "docker.service", "docker.socket", "snap.docker.dockerd.service"
#: Units that make a host a node of a Kubernetes cluster.
KUBERNETES = (
    "kubelet.service", "k3s.service", "k3s-agent.service", "rke2-server.service", "rke2-agent.service", "k0scontroller.service",
    "k0sworker.service", "snap.microk8s.daemon-kubelite.service",
)  # fmt: skip
#: What is asked of these units besides what is asked of all.
PROPERTIES = "MainPID,ExecStart,Environment,EnvironmentFiles,FragmentPath,DropInPaths"
#: What may be told of a configuration: other values may be secrets.
TOLD = ("live-restore", "features", "data-root", "userns-remap", "containerd")
#: Where containerd keeps the images that Docker leaves to it.
CONTAINERD_ROOT = "/var/lib/containerd"
_ALIVE = ("active", "activating", "reloading", "deactivating")

Units = Mapping[str, Mapping[str, str]]


def _host_path(survey: Survey, path: str) -> str:
    return survey.path("etc", path[len("/etc/") :]) if path.startswith("/etc/") else path


def runs_by_unit(units: Units) -> bool:
    """Whether the daemon is that of its unit."""
    return units.get(UNIT, {}).get("ActiveState") in _ALIVE


def process(survey: Survey, units: Units) -> int | None:
    """The daemon of this host: that of its unit, else the one that wrote the process id; None when none runs."""
    main = int(units.get(UNIT, {}).get("MainPID") or 0)
    if runs_by_unit(units) and main:
        return main
    text = survey.text("run", "docker.pid").strip()
    return int(text) if text.isdigit() and survey.text("proc", text, "comm").strip() == "dockerd" else None


def command(survey: Survey, units: Units, pid: int | None) -> list[str]:
    """The command line that the daemon has at its next start by its unit, or has now where no unit tells."""
    words = _daemon.unit_command(units.get(UNIT, {}), lambda path: read_text(_host_path(survey, path)))
    if _daemon.is_dockerd(words):
        return words
    return [word for word in survey.text("proc", str(pid), "cmdline").split("\0") if word] if pid else []


def unit_texts(survey: Survey, units: Units) -> dict[str, str]:
    """The files that make up the command line, by path; those that count last are first."""
    unit = units.get(UNIT, {})
    paths = [*reversed(unit.get("DropInPaths", "").split()), unit.get("FragmentPath", "")]
    paths = re.findall(r"(/\S+) \(ignore_errors=", unit.get("EnvironmentFiles", "")) + paths
    return {path: read_text(_host_path(survey, path)) for path in paths if path}


def validation(argv: list[str], path: str) -> list[str]:
    """The command that has dockerd check a file with its own flags."""
    words, own = [], list(argv[1:])
    while own:
        word = own.pop(0)
        if word == "--config-file":
            own = own[1:]
        elif not word.startswith("--config-file="):
            words.append(word)
    return ["dockerd", "--validate", "--config-file", path, *words]


def refusal(answer: tuple[int, str, str]) -> str | None:
    """Why dockerd would not start, out of what it said to validation(). Docker before 23 cannot be asked."""
    code, out, err = answer
    said = " ".join((err or out).split())
    return said if code and "unknown flag: --validate" not in said else None


def refused_file(survey: Survey, units: Units) -> str | None:
    """Why the daemon would not start with the file as it is; None when it would, or when there is none."""
    argv = command(survey, units, process(survey, units))
    path = _host_path(survey, file_path(argv))
    return refusal(survey.run(*validation(argv, path))) if os.path.exists(path) else None


def file_path(argv: list[str]) -> str:
    """Where the daemon reads its configuration."""
    return str(_daemon.flags(argv).get("config-file") or _daemon.CONFIG)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in TOLD if name in values}


def look(survey: Survey, units: Units) -> dict[str, Any]:
    """What is found without asking the daemon."""
    unit, snap = units.get(UNIT, {}), units.get(SNAP, {})
    pid = process(survey, units)
    argv = command(survey, units, pid)
    given = _daemon.flags(argv)
    path = file_path(argv)
    error, values = None, {}
    try:
        values = _daemon.parse(read_text(_host_path(survey, path)))
    except ValueError as problem:
        error = str(problem)
    texts = unit_texts(survey, units)
    rootless = glob.glob(survey.path("run", "user/*/docker.pid"))
    return {
        "masked": "masked" in (unit.get("LoadState"), unit.get("UnitFileState")),
        "unit": unit.get("LoadState") == "loaded",
        "by_hand": None if runs_by_unit(units) else pid,
        "snap": snap.get("LoadState") == "loaded",
        "rootless": sorted(path.split("/")[-2] for path in rootless),
        "flags": {
            name: {"value": given[name] if name in TOLD else None, "path": _daemon.flag_home(name, texts)}
            for name in sorted(given)
        },
        "config": {
            "path": path,
            "error": error,
            "refused": None,
            "keys": sorted(values),
            "link": os.path.islink(_host_path(survey, path)),
            **_told(values),
        },
    }


def newer(path: str, unit: Mapping[str, str]) -> bool:
    """Whether a file changed after the unit's daemon started: the daemon may run with something else."""
    try:
        changed = os.stat(path).st_mtime
    except OSError:
        return False
    entered = int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    at = _clock.stamp(unit.get("ActiveEnterTimestamp") or "")
    return bool(entered) and _clock.changed_since(changed, entered, at, time.time(), time.monotonic())


def swarm_state(survey: Survey, root: str) -> bool:
    """Whether a daemon that does not answer would come back as a node of a swarm."""
    try:
        return bool(json.loads(read_text(os.path.join(root, "swarm/docker-state.json"))).get("LocalAddr"))
    except (ValueError, AttributeError):
        return False


def image_dir(survey: Survey, engine: Mapping[str, Any]) -> str:
    """Where images lie, or will: in Docker's root, or in containerd's where Docker leaves them to it."""
    flags, config = engine["flags"], engine["config"]
    given = (flags.get("data-root") or {}).get("value") or config.get("data-root") or "/var/lib/docker"
    root = engine.get("root_dir") or given
    if not engine.get("snapshotter"):
        return str(root)
    match = re.search(r'^root\s*=\s*["\'](.+?)["\']', survey.text("etc", "containerd/config.toml"), re.MULTILINE)
    return match.group(1) if match else CONTAINERD_ROOT


def podman_image_dir(survey: Survey) -> str:
    """Where Podman keeps images."""
    texts = [survey.text("etc", "containers/storage.conf"), survey.text("usr_share", "containers/storage.conf")]
    for text in texts:
        match = re.search(r'^\s*graphroot\s*=\s*"(.+?)"', text, re.MULTILINE)
        if match:
            return match.group(1)
    return "/var/lib/containers"


def reason(out: str, err: str) -> str:
    """Why the daemon does not answer, out of what ``docker info`` said."""
    try:
        said = json.loads(out).get("ServerErrors") or []
    except (ValueError, AttributeError):
        said = []
    return " ".join((" ".join(said) or err or out).split())[-300:] or "no answer"


def strangers(text: str) -> list[str]:
    """Names in ``docker ps`` (PS_FORMAT) of running containers that are no NIM service's."""
    rows = (line.split("\t") for line in text.splitlines())
    named = (row[0] for row in rows if len(row) > 1 and not row[1].strip())
    return sorted(name for name in named if not name.startswith("nim-stage-"))


#: Name, and the service it belongs to, of each running container.
PS_FORMAT = '{{.Names}}\t{{.Label "' + SERVICE_LABEL + '"}}'


def kubernetes(units: Units) -> list[str]:
    """Units that say this host is a node of a cluster: those that run, or will at the next boot."""
    states = ((name, units.get(name, {})) for name in KUBERNETES)
    return [
        name
        for name, unit in states
        if unit.get("ActiveState") in _ALIVE
        or (_system.unit_state(unit)["enabled"] and unit.get("LoadState") == "loaded")
    ]
