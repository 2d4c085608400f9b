# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine a host gets: one that serves is used as it was found, or the host is refused with what to do about it."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _engine, _transactions

BARE = {
    "os": {"distribution": "Debian", "version": "13", "major": "13", "codename": "trixie", "package_manager": "apt"},
    "packages": {},
    "repositories": [],
    "keys": {},
    "kubernetes": [],
    "engine": {
        "installed": False,
        "kind": None,
        "cdi": False,
        "active": False,
        "enabled": False,
        "client": False,
        "error": None,
        "strangers": [],
        "masked": False,
        "unit": False,
        "by_hand": None,
        "snap": False,
        "rootless": [],
        "flags": {},
        "image_dir": "/var/lib/docker",
        "config_newer_than_daemon": False,
        "config": {"path": "/etc/docker/daemon.json", "error": None, "refused": None, "keys": [], "link": False},
    },
}
#: A Docker that serves, as it comes out of its package.
SERVES = {
    "installed": True,
    "kind": "docker",
    "active": True,
    "enabled": True,
    "client": True,
    "unit": True,
    "version": "29.1.3",
    "root_dir": "/var/lib/docker",
    "live_restore": False,
    "cdi_spec_dirs": [],
    "userns": False,
    "swarm": False,
    "containers_running": 0,
}
CE = {
    "docker-ce": "5:29.1.3-1~debian.13~trixie",
    "docker-ce-cli": "5:29.1.3-1~debian.13~trixie",
    "containerd.io": "2.2.0-1~debian.13~trixie",
}
IO = {
    "docker.io": "26.1.5+dfsg1-9+b1",
    "docker-cli": "26.1.5+dfsg1-9+b1",
    "containerd": "1.7.24~ds1-6",
    "runc": "1.1.15+ds1-2",
}
LIBRARY = {"python3-requests": "2.32.3+dfsg-5"}
OPTIONS = {"live-restore": True, "features": {"cdi": True}}
URL, FINGERPRINT = "https://download.docker.com/linux", "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"


def host(packages=None, engine=None, config=None, **changes):
    """A host with these packages and this of an engine."""
    state = copy.deepcopy({**BARE, **changes})
    state["packages"] = dict(packages or {})
    state["engine"].update(engine or {})
    state["engine"]["config"].update(config or {})
    return state


def found(packages=None, config=None, **engine):
    """A host whose Docker serves, with other values."""
    return host({**LIBRARY, **(CE if packages is None else packages)}, {**SERVES, **engine}, config)


def wanted(**changes):
    values = {
        "kind": "docker",
        "source": "distribution",
        "version": "",
        "options": OPTIONS,
        "restart_allowed": False,
        "repository_url": URL,
        "repository_suite": "",
        "key_url": "",
        "key_fingerprint": FINGERPRINT,
    }
    return {**values, **changes}


def told(state, **wish):
    """Checks and messages of the problems, in one text."""
    plan = _engine.engine_plan(state, wanted(**wish))
    return " ".join(f"{item['check']}: {item['message']}" for item in plan["problems"])


# -- packages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "wish", "packages", "libraries", "own"),
    [
        pytest.param(host(), {}, ["docker.io", "docker-cli"], ["python3-requests"], True, id="bare"),
        pytest.param(
            host(os={**BARE["os"], "distribution": "Ubuntu", "major": "24", "codename": "noble"}),
            {},
            ["docker.io"],
            ["python3-requests"],
            True,
            id="bare, and the client is in the package",
        ),
        pytest.param(
            host(LIBRARY),
            {"source": "docker", "version": "5:29.1.3-1"},
            ["docker-ce=5:29.1.3-1", "docker-ce-cli=5:29.1.3-1", "containerd.io"],
            ["python3-debian"],
            True,
            id="bare, from Docker's repository",
        ),
        pytest.param(found(), {}, [], [], False, id="docker-ce serves, whatever the source"),
        pytest.param(found(), {"source": "docker"}, [], [], False, id="docker-ce serves"),
        pytest.param(
            found(IO, version="26.1.5"), {"source": "docker"}, [], [], False, id="docker.io serves, whatever the source"
        ),
        pytest.param(found({"moby-engine": "28.2.2-1"}, version="28.2.2"), {}, [], [], False, id="moby serves"),
        pytest.param(found({}, version="28.2.2"), {}, [], [], False, id="one without packages serves"),
        pytest.param(
            found(packages={}, version="28.2.2", client=True), {"kind": "docker"}, [], [], False, id="static binaries"
        ),
        pytest.param(host(CE, SERVES), {}, [], ["python3-requests"], False, id="the library alone"),
        pytest.param(
            found({"docker.io": "26"}, client=False, version=None),
            {},
            ["docker-cli"],
            [],
            False,
            id="a daemon without its client",
        ),
        pytest.param(
            found(),
            {"source": "docker", "version": "5:29.2.0-1"},
            ["docker-ce=5:29.2.0-1", "docker-ce-cli=5:29.2.0-1"],
            ["python3-debian"],
            True,
            id="another version was asked for",
        ),
        pytest.param(
            found(), {"source": "docker", "version": CE["docker-ce"]}, [], [], False, id="this version was asked for"
        ),
    ],
)
def test_packages(state, wish, packages, libraries, own):
    plan = _engine.engine_plan(state, wanted(**wish))
    assert (plan["packages"], plan["libraries"], plan["engine_changes"]) == (packages, libraries, own)
    assert plan["problems"] == []
    assert plan["transaction"]["packages"] == packages + libraries
    # Nothing that is there is named, so nothing of it is upgraded or replaced.
    assert not set(packages) & set(state["packages"])


def test_podman():
    plan = _engine.engine_plan(host(IO), wanted(kind="podman"))
    assert plan["packages"] == [
        "podman",
        "crun",
        "catatonit",
        "netavark",
        "aardvark-dns",
        "nftables",
        "python3-requests",
    ]
    there = dict.fromkeys(plan["packages"], "1")
    assert _engine.engine_plan(host(there), wanted(kind="podman"))["transaction"]["packages"] == []
    # Whatever is the matter with Docker does not matter.
    assert told(host({"containerd.io": "2"}, kubernetes=["kubelet.service"]), kind="podman") == ""


@pytest.mark.parametrize(
    ("repositories", "keys", "current"),
    [
        pytest.param([], {}, False, id="none"),
        pytest.param([{"path": "/etc/apt/sources.list.d/docker.sources"}], {}, False, id="ours, without the key"),
        pytest.param(
            [{"path": "/etc/apt/sources.list.d/docker.sources"}], {_engine.KEY: [FINGERPRINT]}, True, id="ours"
        ),
        pytest.param(
            [{"path": "/etc/apt/sources.list.d/docker.list", "signed_by": "/usr/share/keyrings/docker.gpg"}],
            {},
            True,
            id="theirs",
        ),
        pytest.param(
            [{"path": "/etc/apt/sources.list.d/docker.list", "enabled": False}], {}, False, id="theirs, switched off"
        ),
        pytest.param(
            [{"path": "/etc/apt/sources.list.d/docker.list", "suites": ["bookworm"]}],
            {},
            False,
            id="theirs, of another system",
        ),
    ],
)
def test_repository_of_docker(repositories, keys, current):
    entry = {
        "enabled": True,
        "types": ["deb"],
        "uris": [f"{URL}/debian"],
        "suites": ["trixie"],
        "components": ["stable"],
        "signed_by": _engine.KEY,
        "origin": "docker",
    }
    state = host(LIBRARY, repositories=[{**entry, **item} for item in repositories], keys=keys)
    plan = _engine.engine_plan(state, wanted(source="docker"))
    assert plan["repository"]["current"] is current
    assert plan["repository"]["key_url"] == f"{URL}/debian/gpg"
    assert [source["uris"] for source in plan["transaction"]["sources"]] == ([] if current else [[f"{URL}/debian"]])


@pytest.mark.parametrize(
    ("state", "wish", "place"),
    [
        (host(), {}, "/var/lib/docker"),
        (host(), {"source": "docker"}, "/var/lib/containerd"),
        (host(), {"source": "docker", "version": "5:28.5.2-1"}, "/var/lib/docker"),
        (found(image_dir="/data/docker"), {"source": "docker"}, "/data/docker"),
    ],
)
def test_where_images_will_lie(state, wish, place):
    assert _engine.engine_plan(state, wanted(**wish))["image_dir"] == place


# -- refused -----------------------------------------------------------------------------------------------------------

DEBIAN12 = {**BARE["os"], "version": "12", "major": "12", "codename": "bookworm"}
UBUNTU22 = {**BARE["os"], "distribution": "Ubuntu", "version": "22.04", "major": "22", "codename": "jammy"}
ROCKY = {**BARE["os"], "distribution": "Rocky", "version": "9.6", "major": "9", "package_manager": "dnf"}


@pytest.mark.parametrize(
    ("state", "wish", "words"),
    [
        pytest.param(
            host({"containerd.io": "2.2.0"}, kubernetes=["kubelet.service"]),
            {},
            [
                "kubernetes_node: ",
                "(kubelet.service) without Docker",
                "nim_container_engine: podman",
                "engine: containerd.io 2.2.0 is installed",
                "docker.io would replace",
                "container_engine_source: docker",
            ],
            id="a node of Kubernetes with containerd.io",
        ),
        pytest.param(
            host({"kubelet": "1.34.1", "containerd": "1.7"}),
            {},
            ["kubernetes_node: ", "(kubelet)"],
            id="a node of Kubernetes",
        ),
        pytest.param(
            host({"kubelet": "1"}), {"source": "docker"}, ["kubernetes_node: "], id="a node, whatever the source"
        ),
        pytest.param(
            host(CE | {}, {"installed": False}),
            {},
            ["engine: containerd.io 2.2.0-1", "docker-ce-cli 5:29"],
            id="packages and no daemon",
        ),
        pytest.param(
            host({"podman-docker": "5.4.2"}),
            {},
            ["podman-docker 5.4.2 is installed", "; remove it yourself"],
            id="podman-docker",
        ),
        pytest.param(
            host({"docker.io": "26"}, {}),
            {"source": "docker"},
            ["docker.io 26 is installed", "docker-ce"],
            id="docker.io half gone",
        ),
        pytest.param(
            host(engine={"snap": True}), {}, ["engine: Docker is there as a snap", "snap remove docker"], id="snap"
        ),
        pytest.param(
            host(os=DEBIAN12),
            {},
            ["docker_version: Docker of Debian 12 is 20.10.24, wanted 25", "container_engine_source: docker"],
            id="a system whose Docker is too old",
        ),
        pytest.param(
            host(os=ROCKY),
            {},
            [
                "package_manager: package manager is dnf and Docker is not installed, wanted apt or an engine that is there"
            ],
            id="dnf installs none",
        ),
        pytest.param(
            found({"docker.io": "24.0.7-0ubuntu2~22.04.1"}, version="24.0.7"),
            {},
            [
                "docker_version: Docker is 24.0.7 (docker.io 24.0.7-0ubuntu2~22.04.1), wanted 25",
                "--only-upgrade docker.io",
                "stay in /var/lib/docker",
            ],
            id="too old, and serves others",
        ),
        pytest.param(
            found({"docker-ce": "5:24.0.9-1"}, version="24.0.9"),
            {"source": "docker"},
            ["--only-upgrade docker-ce"],
            id="docker-ce too old",
        ),
        pytest.param(
            found({}, active=False, version=None, installed_version="20.10.24"),
            {},
            ["Docker is 20.10.24 (no package of it)"],
            id="too old, does not run, and nobody's",
        ),
        pytest.param(
            found(),
            {"version": "26.1.5+dfsg1-9"},
            ["Docker 29.1.3 is there (docker-ce), wanted docker.io 26.1.5", "Leave container_engine_version empty"],
            id="a version of another source",
        ),
        pytest.param(
            host(),
            {"version": "24.0.9"},
            ["container_engine_version is 24.0.9, wanted 25"],
            id="an old version was asked for",
        ),
        pytest.param(
            found({}, client=False),
            {},
            ["engine: dockerd is there and its client docker is not"],
            id="no client, and nobody's",
        ),
        pytest.param(
            found(masked=True, active=False, version=None),
            {},
            ["docker.service is masked", "systemctl unmask docker.service"],
            id="masked",
        ),
        pytest.param(
            found(by_hand=4711, active=False),
            {},
            ["dockerd (pid 4711) was not started by docker.service"],
            id="by hand",
        ),
        pytest.param(found(unit=False, active=False, version=None), {}, ["docker.service is not"], id="no unit"),
        pytest.param(
            found(rootless=["1000"], active=False, enabled=False, version=None),
            {},
            ["rootless (user 1000)"],
            id="rootless",
        ),
        pytest.param(
            found(version=None, error="permission denied"),
            {},
            ["runs and does not answer: permission denied. Wanted"],
            id="no answer",
        ),
        pytest.param(
            found(config={"error": "Expecting value: line 1"}),
            {},
            ["/etc/docker/daemon.json is no valid configuration: Expecting value"],
            id="no JSON",
        ),
        pytest.param(
            found(config={"refused": "unknown option: x"}),
            {},
            ["dockerd does not start with /etc/docker/daemon.json as it is: unknown"],
            id="a file that dockerd refuses",
        ),
        pytest.param(
            found(flags={"live-restore": {"value": False, "path": "/etc/default/docker"}}),
            {},
            ["gets live-restore = false by a flag (/etc/default/docker), wanted true"],
            id="a flag says otherwise",
        ),
        pytest.param(
            found(
                config={"keys": ["log-level"]},
                flags={"log-level": {"value": None, "path": "/etc/default/docker"}},
                config_newer_than_daemon=True,
            ),
            {},
            ["log-level is in /etc/docker/daemon.json and a flag (/etc/default/docker)"],
            id="a flag and the file",
        ),
        pytest.param(
            found(swarm=True),
            {},
            ["node of a Docker swarm", "docker swarm leave", "container_engine_options: {features"],
            id="swarm",
        ),
        pytest.param(
            found(userns=True),
            {},
            ["remaps the users", "userns-remap out of /etc/docker/daemon.json"],
            id="users are remapped",
        ),
        pytest.param(
            found(config={"userns-remap": "default"}, active=False, version=None, installed_version="29"),
            {},
            ["remaps the users"],
            id="users will be remapped",
        ),
        pytest.param(
            found(swarm=True, strangers=["web", "db"]),
            {"options": {"features": {"cdi": True}}},
            [
                "engine_restart: Docker must restart",
                "in a swarm: web, db would end",
                "container_engine_restart_allowed=true",
            ],
            id="foreign containers",
        ),
        pytest.param(
            found(strangers=["web"], cdi_spec_dirs=["/etc/cdi"]),
            {"options": {**OPTIONS, "data-root": "/raid"}},
            ["with these container_engine_options: web would end"],
            id="foreign containers, and their files move",
        ),
    ],
)
def test_refused(state, wish, words):
    said = told(state, **wish)
    missing = [text for text in words if text not in said]
    assert not missing, said


@pytest.mark.parametrize(
    ("state", "wish"),
    [
        pytest.param(host(), {}, id="bare"),
        pytest.param(host(os=UBUNTU22), {}, id="a system that may have a newer one by now"),
        pytest.param(host(os=DEBIAN12), {"source": "docker"}, id="Docker's repository on an old system"),
        pytest.param(host({"containerd.io": "2"}), {"source": "docker"}, id="containerd.io gets its engine"),
        pytest.param(found(), {}, id="docker-ce serves"),
        pytest.param(host({**LIBRARY, **CE}, SERVES, os=DEBIAN12), {}, id="docker-ce on an old system"),
        pytest.param(host({"docker-ce": "3:29.1.3-1.el9"}, SERVES, os=ROCKY), {}, id="docker-ce on Enterprise Linux"),
        pytest.param(
            host({**CE, "kubelet": "1"}, SERVES, kubernetes=["kubelet.service"]), {}, id="Docker beside a kubelet"
        ),
        pytest.param(found(strangers=["web"]), {}, id="live-restore keeps foreign containers"),
        pytest.param(
            found(swarm=True, strangers=["web"], cdi_spec_dirs=["/etc/cdi"]),
            {"options": {"features": {"cdi": True}}},
            id="nothing to restart for",
        ),
        pytest.param(
            found(swarm=True, strangers=["web"]),
            {"options": {"features": {"cdi": True}}, "restart_allowed": True},
            id="allowed",
        ),
        pytest.param(
            found(flags={"live-restore": {"value": True, "path": None}}, live_restore=True),
            {},
            id="a flag says the same",
        ),
        pytest.param(found(flags={"hosts": {"value": None, "path": None}}), {}, id="flags of others"),
        pytest.param(
            found(active=False, enabled=False, version=None, installed_version="29.1.3"),
            {},
            id="one that does not run yet",
        ),
        pytest.param(
            found({"docker-ce": "5:24.0.9-1"}, version="24.0.9"),
            {"source": "docker", "version": "5:29.1.3-1"},
            id="an upgrade that was asked for",
        ),
        pytest.param(found(flags={"userns-remap": {"value": "host", "path": None}}), {}, id="users are not remapped"),
    ],
)
def test_not_refused(state, wish):
    assert told(state, **wish) == ""


def test_running_containers_are_kept_through_a_change_of_packages():
    wish = wanted(source="docker", version="5:29.2.0-1")
    assert _engine.engine_plan(found(), wish)["protect"] is True
    assert _engine.engine_plan(found(live_restore=True), wish)["protect"] is False
    assert _engine.engine_plan(found(), wanted())["protect"] is False
    # In a swarm nothing keeps them.
    swarm = found(swarm=True, strangers=["web"], cdi_spec_dirs=["/etc/cdi"])
    assert "web would end" in told(swarm, source="docker", version="5:29.2.0-1", options={"features": {"cdi": True}})


# -- what the package manager is asked, and says -----------------------------------------------------------------------


def answer(**parts):
    empty = {
        "installed": {},
        "upgraded": {},
        "downgraded": {},
        "removed": {},
        "error": None,
        "problems": [],
        "unresolved": None,
    }
    return {**empty, **parts}


@pytest.mark.parametrize(
    ("transaction", "words"),
    [
        (answer(installed={"docker.io": "26.1.5+dfsg1-9"}), ""),
        (
            answer(installed={"docker.io": "24.0.7-0ubuntu2"}),
            "Docker would be docker.io 24.0.7-0ubuntu2, wanted 25 or newer",
        ),
        (answer(installed={"docker-ce": "5:24.0.9-1"}), "ask for a newer one"),
        (answer(problems=["installing docker.io would remove docker-ce."]), "would remove docker-ce"),
        (
            answer(error="held", unresolved="you have held broken packages."),
            "cannot be installed beside what is there: you have held broken packages.",
        ),
        (answer(error="Unable to locate package docker.io"), ""),
    ],
)
def test_what_is_simulated(transaction, words):
    said = " ".join(_transactions.transaction_problems({"engine": transaction}))
    assert words in said and bool(said) == bool(words)


def test_what_was_answered_in_this_run_is_not_asked_again():
    state = host()
    plan = _engine.engine_plan(state, wanted())
    asked = _transactions.package_transactions(state, engine=plan)
    assert [item["name"] for item in asked] == ["engine"]
    known = {"engine": answer(packages=asked[0]["packages"])}
    assert _transactions.package_transactions(state, engine=plan, simulated=known) == []
    for other in ({"packages": ["docker.io"]}, {"error": "no answer"}, {"problems": ["x"]}):
        again = {"engine": {**known["engine"], **other}}
        assert _transactions.package_transactions(state, engine=plan, simulated=again) == asked
    refused = _engine.engine_plan(host({"kubelet": "1"}), wanted())
    assert _transactions.package_transactions(state, engine=refused) == []
