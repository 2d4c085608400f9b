# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which container engine a host gets, and what speaks against touching the one it has. Private to the collection; pure.

An engine that serves is used as it was found. HOST is always the result of gpu_host_info.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _daemon, _repositories
from ansible_collections.baremetal.nim.plugins.module_utils._system import upstream_version

Host = Mapping[str, Any]
Wanted = Mapping[str, Any]

#: The first Docker that gives containers devices by CDI.
DOCKER = (25,)
#: What distributions have that is older.
SYSTEM_DOCKER = {"Debian 11": "20.10.5", "Debian 12": "20.10.24", "Ubuntu 20": "24.0.7"}
#: By source: the engine's packages, which a version pins, and others of it; the first one is the daemon.
PACKAGES = {"distribution": ["docker.io"], "docker": ["docker-ce", "docker-ce-cli"]}
OTHERS = {"distribution": [], "docker": ["containerd.io"]}
#: Packages that bring a daemon, with what brings its client where that is another one.
FAMILIES = {
    "docker-ce": "docker-ce-cli", "docker.io": "docker-cli", "moby-engine": "moby-cli", "docker-engine": "", "docker": "", "docker-latest": "",
}  # fmt: skip
#: Packages of an engine that each source's would replace, or be replaced by.
RIVALS = {
    "distribution": r"docker-ce(-cli|-rootless-extras)?|containerd\.io|moby-(engine|cli|containerd|runc)|podman-docker|docker-engine",
    "docker": r"docker\.io|moby-(engine|cli|containerd|runc)|podman-docker|docker-engine",
}
#: crun runs containers, catatonit is their first process, netavark gives them a network by nft or, on Ubuntu 24.04, by iptables.
PODMAN = ["podman"]
PODMAN_HELPERS = ["crun", "catatonit", "netavark", "aardvark-dns"]
KEY = "/etc/apt/keyrings/docker.asc"
CONTAINERD = "/var/lib/containerd"


def _problem(check: str, message: str) -> dict[str, str]:
    return {"check": check, "message": message}


def version(text: str | None) -> tuple[int, ...]:
    """Numbers of a version, without an epoch and what a distribution added."""
    return tuple(int(part) for part in re.findall(r"\d+", upstream_version(text) or ""))


def _system(host: Host) -> str:
    return f"{host['os']['distribution']} {host['os']['major']}"


def family(packages: Mapping[str, str]) -> str | None:
    """The package that brought the daemon."""
    return next((name for name in FAMILIES if name in packages), None)


def found_version(host: Host) -> str | None:
    """Version of the Docker that a host has, running or not."""
    engine = host["engine"]
    brought = host["packages"].get(family(host["packages"]) or "")
    return engine.get("version") or engine.get("installed_version") or upstream_version(brought)


def _listed(packages: Mapping[str, str], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {packages[name]}" for name in names)


# -- packages ----------------------------------------------------------------------------------------------------------


def _client(host: Host, own: str) -> list[str]:
    """The package of the client of a daemon that has none; before Debian 13 docker.io has it in itself."""
    if own == "docker.io" and not (host["os"]["distribution"] == "Debian" and int(host["os"]["major"] or 0) >= 13):
        return []
    return [FAMILIES[own]] if FAMILIES[own] else []


def _libraries(host: Host, wanted: Wanted, repository: bool) -> list[str]:
    """What modules need on the host: to ask endpoints, and to manage repositories."""
    names = ["python3-requests"] + (["python3-debian"] if repository else [])
    return [name for name in names if name not in host["packages"]]


def _versioned(names: Iterable[str], wanted: Wanted, manager: str | None) -> list[str]:
    sign = "-" if manager == "dnf" else "="
    return [f"{name}{sign}{wanted['version']}" if wanted["version"] else name for name in names]


def _docker_packages(host: Host, wanted: Wanted) -> tuple[list[str], bool]:
    """Packages to install, and whether they are the daemon's own: what is there and was not asked for in a version is not named."""
    there, manager = host["packages"], host["os"]["package_manager"]
    own = family(there)
    source = wanted["source"]
    if not host["engine"].get("installed"):
        others = OTHERS[source] + (_client(host, "docker.io") if source == "distribution" else [])
        return [*_versioned(PACKAGES[source], wanted, manager), *others], True
    missing = [] if host["engine"].get("client", True) or own is None else _client(host, own)
    if wanted["version"] and own in PACKAGES[source]:
        wrong = [name for name in PACKAGES[source] if there.get(name) != wanted["version"]]
        if wrong:
            return [*_versioned(PACKAGES[source], wanted, manager), *missing], True
    return missing, False


def _podman_packages(host: Host, wanted: Wanted) -> list[str]:
    there, manager = host["packages"], host["os"]["package_manager"]
    helpers = [*PODMAN_HELPERS]
    if manager == "apt":
        helpers.append("iptables" if _system(host) == "Ubuntu 24" else "nftables")
    wrong = wanted["version"] and there.get("podman") != wanted["version"]
    own = _versioned(PODMAN, wanted, manager) if "podman" not in there or wrong else []
    return [*own, *(name for name in helpers if name not in there)]


# -- what speaks against it --------------------------------------------------------------------------------------------


def _bare(host: Host, wanted: Wanted) -> list[dict[str, str]]:
    """A host without Docker: what it has instead, and what it would get."""
    there = host["packages"]
    if host["engine"].get("snap"):
        return [
            _problem(
                "engine",
                "Docker is there as a snap (snap.docker.dockerd), which sees neither /etc/cdi nor /var/lib/nim, wanted one of the system;"
                " move its containers and remove it (snap remove docker), or set nim_container_engine: podman.",
            )
        ]
    found = []
    node = host.get("kubernetes") or [name for name in ("kubelet", "k3s", "k0s") if name in there]
    if node:
        found.append(
            _problem(
                "kubernetes_node",
                f"this is a node of a Kubernetes cluster ({', '.join(node)}) without Docker, wanted its containerd and network left alone:"
                " set nim_container_engine: podman, or install a Docker beside it yourself, which is then used.",
            )
        )
    rivals = [name for name in sorted(there) if re.fullmatch(RIVALS[wanted["source"]], name)]
    if rivals:
        other = "docker" if wanted["source"] == "distribution" else "distribution"
        whole = any(re.fullmatch(RIVALS[other], name) is None for name in rivals)
        found.append(
            _problem(
                "engine",
                f"{_listed(there, rivals)} is installed without a Docker daemon, wanted nothing that"
                f" {' and '.join(PACKAGES[wanted['source']])} would replace;"
                f" {f'complete it (container_engine_source: {other}), ' if whole else ''}remove it yourself if nothing needs it, or set"
                " nim_container_engine: podman.",
            )
        )
    system = SYSTEM_DOCKER.get(_system(host))
    if wanted["source"] == "distribution" and system and not wanted["version"]:
        found.append(
            _problem(
                "docker_version",
                f"Docker of {_system(host)} is {system}, wanted {DOCKER[0]} or newer, which knows CDI; set container_engine_source: docker,"
                " which takes Docker's own repository.",
            )
        )
    if host["os"]["package_manager"] != "apt":
        found.append(
            _problem(
                "package_manager",
                f"package manager is {host['os']['package_manager'] or 'none that is known'} and Docker is not installed, wanted apt or an"
                " engine that is there: container_engine installs Docker with apt only. Install Docker by other means, which is then used,"
                " or set nim_container_engine: podman.",
            )
        )
    return found


def _too_old(host: Host, wanted: Wanted, upgrades: bool) -> list[dict[str, str]]:
    """A Docker that is there and cannot give containers GPUs, or is not the one that was asked for."""
    there, own = host["packages"], family(host["packages"])
    seen = found_version(host)
    source = wanted["source"]
    found: list[dict[str, str]] = []
    if wanted["version"] and own not in PACKAGES[source]:
        found.append(
            _problem(
                "docker_version",
                f"Docker {seen or 'of an unknown version'} is there ({own or 'no package of it'}), wanted"
                f" {PACKAGES[source][0]} {wanted['version']} (container_engine_version): what serves is not replaced. Leave"
                " container_engine_version empty to use it, set container_engine_source to where it came from, or remove it yourself first.",
            )
        )
    elif seen and version(seen)[:1] < DOCKER and not (upgrades and version(wanted["version"])[:1] >= DOCKER):
        system = SYSTEM_DOCKER.get(_system(host))
        how = "upgrade it from where it came" if own != "docker.io" or not system else "the system has no newer one"
        named = f"{own} {there[own]}" if own else "no package of it"
        found.append(
            _problem(
                "docker_version",
                f"Docker is {seen} ({named}), wanted {DOCKER[0]} or newer, which knows CDI, and what serves is not replaced: {how}"
                f"{'' if own is None else f' (apt-get install --only-upgrade {own})' if how.startswith('upgrade') else ''}, or stop its"
                f" containers, remove it (images and volumes stay in {host['engine'].get('root_dir') or '/var/lib/docker'}) and set"
                " container_engine_source: docker.",
            )
        )
    if not host["engine"].get("client", True) and (own is None or not _client(host, own)):
        found.append(
            _problem("engine", "dockerd is there and its client docker is not, wanted both; install the client.")
        )
    return found


def _asked(wanted: Wanted) -> list[dict[str, str]]:
    """A version that was asked for and cannot do it."""
    if not wanted["version"] or version(wanted["version"])[:1] >= DOCKER:
        return []
    told = f"container_engine_version is {wanted['version']}, wanted {DOCKER[0]} or newer, which knows CDI; leave it empty, or take a newer one."
    return [_problem("docker_version", told)]


def _unit_problems(engine: Mapping[str, Any]) -> list[dict[str, str]]:
    """A daemon that systemd cannot start, or that somebody else did."""
    if engine.get("masked"):
        return [
            _problem(
                "engine",
                "docker.service is masked, wanted it to run; if Docker may run here: systemctl unmask docker.service docker.socket."
                " If not: nim_container_engine: podman.",
            )
        ]
    if engine.get("by_hand"):
        return [
            _problem(
                "engine",
                f"dockerd (pid {engine['by_hand']}) was not started by docker.service, wanted systemd to run it; stop it when its containers"
                " may end, then: systemctl enable --now docker.service.",
            )
        ]
    if not engine.get("unit", True):
        return [
            _problem(
                "engine",
                "dockerd is there and docker.service is not, wanted a unit that runs it; install Docker from packages, or write the unit.",
            )
        ]
    if engine.get("rootless") and not engine["active"] and not engine["enabled"]:
        return [
            _problem(
                "engine",
                f"Docker runs rootless (user {', '.join(engine['rootless'])}) and docker.service is disabled, wanted the system's, which runs"
                " the units; if both may run: systemctl enable --now docker.service. If not: nim_container_engine: podman.",
            )
        ]
    if engine["active"] and engine.get("error"):
        return [
            _problem(
                "engine",
                f"docker.service runs and does not answer: {engine['error'].rstrip('.')}. Wanted an answer to: docker info",
            )
        ]
    return []


def _config_problems(engine: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, str]]:
    """What Docker would not start with."""
    config, flags = engine["config"], engine["flags"]
    if config["error"]:
        return [
            _problem(
                "engine",
                f"{config['path']} is no valid configuration: {config['error']}. Correct it by hand, or move it away.",
            )
        ]
    given = {name: flag["value"] for name, flag in flags.items() if flag["value"] is not None}
    found = []
    for name in _daemon.beside_flags(options, given)[1]:
        where = flags[name]["path"] or "its command line"
        found.append(
            _problem(
                "engine",
                f"Docker gets {name} = {json.dumps(given[name])} by a flag ({where}), wanted {json.dumps(options[name])}"
                " (container_engine_options), and does not"
                " start with both; change the flag there, or take the option out of container_engine_options.",
            )
        )
    twice = sorted((set(config["keys"]) & set(flags)) - {"runtimes", *options})
    if twice and not (engine["active"] and not engine.get("config_newer_than_daemon")):
        found.append(
            _problem(
                "engine",
                f"{', '.join(twice)} is in {config['path']} and a flag"
                f" ({', '.join(sorted({flags[name]['path'] or 'command line' for name in twice}))}), wanted it in one of them: Docker does"
                " not start with both.",
            )
        )
    elif config.get("refused"):
        found.append(
            _problem(
                "engine",
                f"dockerd does not start with {config['path']} as it is: {config['refused'].rstrip('.')}. Correct it, or the flags, by hand.",
            )
        )
    if engine.get("swarm") and options.get("live-restore"):
        found.append(
            _problem(
                "engine",
                "this is a node of a Docker swarm, where Docker does not start with live-restore; leave the swarm (docker swarm leave), or set"
                " container_engine_options: {features: {cdi: true}}: NIM containers then restart with Docker.",
            )
        )
    return found


def _users(engine: Mapping[str, Any]) -> list[dict[str, str]]:
    remapped = (
        engine.get("userns")
        or engine["config"].get("userns-remap")
        or (engine["flags"].get("userns-remap") or {}).get("value")
    )
    if not remapped or remapped in ("host",):
        return []
    return [
        _problem(
            "engine",
            "Docker remaps the users of containers (userns-remap), wanted them as they are: the user of an image (1000) could not write its"
            f" model cache. Take userns-remap out of {engine['config']['path']} (images and containers of before are then out of sight), or set"
            " nim_container_engine: podman.",
        )
    ]  # fmt: skip


def will_restart(engine: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether the running daemon must restart to have the options, as far as it can be told from here."""
    if not engine["active"] or not engine.get("version"):
        return False
    given = {name: flag["value"] for name, flag in engine["flags"].items() if flag["value"] is not None}
    left, _clashes = _daemon.beside_flags(options, given)
    lacking = _daemon.outstanding(left, engine)
    config = engine["config"]
    newer = engine.get("config_newer_than_daemon")
    # Of other options nothing is known here but whether the file names them.
    return any(
        newer or (name not in config["keys"] if name not in ("live-restore", "features") else True) for name in lacking
    )


def _strangers(host: Host, wanted: Wanted, changes: bool) -> list[dict[str, str]]:
    """Containers of others that would end, because nothing keeps them while the daemon restarts."""
    engine, options = host["engine"], wanted["options"]
    if wanted["restart_allowed"] or not engine.get("strangers"):
        return []
    # With a live-restore that a reload switches on they go on.
    kept = options.get("live-restore") and not engine.get("swarm") and not set(options) & _daemon.MOVING
    if kept or not (changes or will_restart(engine, options)):
        return []
    why = "in a swarm" if engine.get("swarm") else "with these container_engine_options"
    return [
        _problem(
            "engine_restart",
            f"Docker must restart and cannot keep running containers {why}: {', '.join(engine['strangers'])} would end. Stop them yourself,"
            " or allow it: -e container_engine_restart_allowed=true",
        )
    ]


# -- the plan ----------------------------------------------------------------------------------------------------------


def _repository(host: Host, wanted: Wanted) -> dict[str, Any]:
    base = f"{wanted['repository_url']}/{str(host['os']['distribution']).lower()}"
    repository = {
        "name": "docker",
        "package_manager": "apt",
        "uris": [base],
        "suites": [wanted["repository_suite"] or host["os"]["codename"]],
        "components": ["stable"],
        "signed_by": KEY,
    }
    fingerprint = "".join(str(wanted["key_fingerprint"]).split()).upper()
    own = _repositories.repository_current(repository, host["repositories"])
    # apt stops at a second list of it with another Signed-By, so that of the operator serves.
    theirs = any(
        entry["enabled"]
        and "deb" in entry["types"]
        and base.rstrip("/") in {uri.rstrip("/") for uri in entry["uris"]}
        and repository["suites"][0] in entry["suites"]
        and not entry["path"].endswith("/docker.sources")
        for entry in host["repositories"]
    )
    return {
        **repository,
        "key_url": wanted["key_url"] or f"{base}/gpg",
        "fingerprints": [fingerprint],
        "current": theirs or (own and _repositories.key_current(KEY, [fingerprint], host["keys"])),
    }


def engine_plan(host: Host, wanted: Wanted) -> dict[str, Any]:
    """The plan for a host; see the documentation of the filter for its keys."""
    if wanted["kind"] == "podman":
        packages = _podman_packages(host, wanted) + _libraries(host, wanted, False)
        return _plan(
            packages=packages,
            own="podman" in re.split(r"[ =]|-(?=\d)", " ".join(packages)),
            image_dir=host["engine"]["image_dir"],
        )
    engine = host["engine"]
    packages, own = _docker_packages(host, wanted)
    if not engine.get("installed"):
        repository = _repository(host, wanted) if wanted["source"] == "docker" else None
        libraries = _libraries(host, wanted, repository is not None)
        # Docker 29 leaves the images of a new host to containerd.
        newest = wanted["source"] == "docker" and (not wanted["version"] or version(wanted["version"])[:1] >= (29,))
        place = CONTAINERD if newest else engine["image_dir"]
        return _plan(_asked(wanted) + _bare(host, wanted), packages, libraries, own, repository, image_dir=place)
    options = wanted["options"]
    repository = _repository(host, wanted) if own and wanted["source"] == "docker" else None
    problems = [
        *_asked(wanted),
        *_too_old(host, wanted, own),
        *(_unit_problems(engine) or _config_problems(engine, options)),
        *_users(engine),
        *_strangers(host, wanted, own),
    ]
    # Packages of a daemon that runs restart it.
    protect = bool(own and engine["active"] and not engine.get("live_restore"))
    libraries = _libraries(host, wanted, repository is not None)
    return _plan(problems, packages, libraries, own, repository, protect, engine["image_dir"])


def _plan(
    problems: Iterable[dict[str, str]] = (),
    packages: Iterable[str] = (),
    libraries: Iterable[str] = (),
    own: bool = False,
    repository: dict[str, Any] | None = None,
    protect: bool = False,
    image_dir: str = "",
) -> dict[str, Any]:
    added = repository is not None and not repository["current"]
    return {
        "problems": list(problems),
        "packages": list(packages),
        "libraries": list(libraries),
        "engine_changes": own,
        "repository": repository,
        "protect": protect,
        "image_dir": image_dir,
        # What the packages would do is asked of the package manager first.
        "transaction": {
            "name": "engine",
            "packages": [*packages, *libraries],
            "sources": [
                {
                    key: value
                    for key, value in repository.items()
                    if key in ("uris", "suites", "components", "key_url", "fingerprints")
                }
            ]
            if added and repository
            else [],
        },
    }
