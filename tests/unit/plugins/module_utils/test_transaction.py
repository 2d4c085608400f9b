# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What package managers said they would do, and what of it is refused."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _transaction

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures/transactions"
PARSERS = {"apt": _transaction.parse_apt, "dnf": _transaction.parse_dnf}
CE = {"docker-ce", "docker-ce-cli", "containerd.io"}


def recorded(manager, name):
    """A recorded answer, as a transaction."""
    text = (FIXTURES / f"{manager}.txt").read_text()
    code, answer = re.search(rf"^##### {name} (\d+) .*\n((?:(?!#####).*\n)*)", text, re.MULTILINE).groups()
    return PARSERS[manager](answer, int(code))


def test_every_recorded_answer_is_looked_at():
    for manager in PARSERS:
        found = set(re.findall(r"^##### (\S+)", (FIXTURES / f"{manager}.txt").read_text(), re.MULTILINE))
        asked = {case.values[1] for case in RECORDED if case.values[0] == manager}
        assert found == asked


RECORDED = [
    pytest.param("apt", "bare", {"installed": {"docker.io", "containerd", "runc"}}, id="apt: bare"),
    *(
        pytest.param("apt", f"ce-is-there{language}", {"removed": CE}, id=f"apt: docker-ce goes{language}")
        for language in ("", "-german", "-chinese")
    ),
    pytest.param("apt", "older-refused", {"error": "without --allow-downgrades"}, id="apt: a downgrade nobody allowed"),
    pytest.param("apt", "older-allowed", {"downgraded": {"docker-ce", "docker-ce-cli"}}, id="apt: a downgrade"),
    pytest.param("apt", "held", {"error": "held packages"}, id="apt: held"),
    pytest.param("apt", "held-allowed", {"error": "held packages"}, id="apt: held, and may change"),
    pytest.param("apt", "held-german", {"error": "zurückgehaltene Pakete"}, id="apt: held, in German"),
    pytest.param("apt", "held-chinese", {"error": "pkgProblemResolver"}, id="apt: held, in Chinese"),
    pytest.param("apt", "nothing", {}, id="apt: nothing to do"),
    pytest.param("apt", "unknown", {"error": "Unable to locate package nosuch"}, id="apt: unknown"),
    pytest.param("apt", "unknown-german", {"error": "nosuch"}, id="apt: unknown, in German"),
    pytest.param("apt", "unknown-chinese", {"error": "nosuch"}, id="apt: unknown, in Chinese"),
    pytest.param("apt", "unknown-version", {"error": "Version '9' for 'docker-ce'"}, id="apt: unknown version"),
    pytest.param("apt", "kubelet", {"removed": {"containerd.io"}}, id="apt: containerd.io of a kubelet goes"),
    pytest.param("apt", "complete", {"installed": {"docker-ce", "docker-ce-cli"}}, id="apt: containerd.io gets its engine"),
    pytest.param("apt", "podman-docker-alone", {"installed": {"podman", "podman-docker"}}, id="apt: podman-docker"),
    pytest.param("apt", "io-is-there", {"removed": {"docker.io", "containerd", "runc"}}, id="apt: docker.io goes"),
    pytest.param("apt", "podman-docker", {"removed": {"docker.io"}}, id="apt: podman-docker over docker.io"),
    pytest.param("dnf", "bare", {"installed": CE | {"container-selinux", "libcgroup"}}, id="dnf: bare"),
    pytest.param("dnf", "upgrades", {"installed": {"docker-ce", "docker-ce-cli"}, "upgraded": {"libcgroup"}}, id="dnf: upgrades"),
    pytest.param("dnf", "nothing", {}, id="dnf: nothing to do"),
    pytest.param("dnf", "remove", {"removed": {"containerd.io", "podman", "container-selinux"}}, id="dnf: what depends goes too"),
    pytest.param("dnf", "conflict", {"error": "conflicts with docker provided by docker-1.13.1"}, id="dnf: conflict"),
    pytest.param(
        "dnf", "conflict-erasing",
        {"removed": {"docker"}, "installed": {"docker-ce-cli", "a-package-with-quite-a-long-name-for-a-column-of-a-table"}},
        id="dnf: what conflicts goes",
    ),
    pytest.param("dnf", "unknown", {"error": "Unable to find a match: nosuchpackage"}, id="dnf: unknown"),
    pytest.param("dnf", "downgrade-epoch", {"downgraded": {"docker-ce"}}, id="dnf: downgrade"),
    pytest.param("dnf", "downgrade", {"downgraded": {"docker-ce"}}, id="dnf: downgrade, by version alone"),
    pytest.param("dnf", "nothing-newer", {}, id="dnf: what is there stays"),
    pytest.param("dnf", "upgrade", {"upgraded": {"docker-ce"}, "installed": {"libcgroup"}}, id="dnf: upgrade"),
    pytest.param("dnf", "replaces-runc", {"removed": {"runc"}}, id="dnf: runc is replaced"),
    pytest.param("dnf", "replaces-containerd", {"removed": {"containerd"}}, id="dnf: containerd is replaced"),
]  # fmt: skip


@pytest.mark.parametrize(("manager", "name", "expected"), RECORDED)
def test_recorded(manager, name, expected):
    found = recorded(manager, name)
    for part in ("upgraded", "downgraded", "removed"):
        assert set(found[part]) == expected.get(part, set()), part
    assert expected.get("installed", set()) <= set(found["installed"])
    assert expected["error"] in found["error"] if "error" in expected else found["error"] is None


def test_versions_are_told():
    found = recorded("apt", "ce-is-there")
    assert found["removed"]["docker-ce"] == "5:29.1.3-1~debian.13~trixie"
    assert found["installed"]["docker.io"] == "26.1.5+dfsg1-9+deb13u1+b1"
    older = recorded("apt", "older-allowed")["downgraded"]["docker-ce"]
    assert older == "5:29.1.3-1~debian.13~trixie to 5:28.5.2-1~debian.13~trixie"


#: dnf 5 writes what an upgrade replaces in the same way as what goes for good.
DNF5 = """\
Updating and loading repositories:
Repositories loaded.
Package              Arch   Version        Repository             Size
Upgrading:
 libcgroup           x86_64 3.0-8.fc42     fedora            218.1 KiB
   replacing libcgroup x86_64 3.0-7.fc42   fedora            217.9 KiB
Installing:
 docker-ce           x86_64 3:29.1.3-1     docker-ce-stable   89.6 MiB
Installing dependencies:
 containerd.io       x86_64 2.2.0-2        docker-ce-stable  124.5 MiB
   replacing runc    x86_64 2:1.3.0-1      fedora             35.5 MiB

Transaction Summary:
 Installing:        2 packages
 Upgrading:         1 package
 Replacing:         2 packages

Total size of inbound packages is 60 MiB. Need to download 60 MiB.
Is this ok [y/N]:
Operation aborted by the user.
"""


def test_dnf5():
    found = _transaction.parse_dnf(DNF5, 1)
    assert (set(found["installed"]), set(found["upgraded"])) == ({"docker-ce", "containerd.io"}, {"libcgroup"})
    assert (found["removed"], found["causes"], found["error"]) == (
        {"runc": "2:1.3.0-1"},
        {"runc": "containerd.io"},
        None,
    )
    failed = "Failed to resolve the transaction:\nProblem: conflicting requests\nYou can try to add to command line:\n  --skip-broken"
    assert _transaction.parse_dnf(failed, 1)["error"] == "Problem: conflicting requests"


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.0", "1.1"), ("1.9", "1.10"), ("1.0~rc1", "1.0"), ("1.0", "1.0+dfsg1"), ("9", "1:1"), ("1.0-1", "1.0-2"), ("1.0", "1.0-1"),
        ("26.1.5+dfsg1-9", "26.1.5+dfsg1-9+b1"), ("5:28.5.2-1~debian.13~trixie", "5:29.1.3-1~debian.13~trixie"), ("1.0a", "1.0+"),
    ],
)  # fmt: skip
def test_order_of_versions(older, newer):
    assert _transaction.version_key(older) < _transaction.version_key(newer)
    assert _transaction.version_key(older) == _transaction.version_key(older)


def test_a_package_that_comes_back_is_not_gone():
    text = "Remv foo [1.0-1]\nInst bar [1.0-1] (1.1-1 lab [amd64])\nInst foo (1.1-1 lab [amd64])\nInst libx:i386 [1] (2 lab [i386])\n"
    found = _transaction.parse_apt(text)
    assert (found["removed"], set(found["upgraded"]), set(found["installed"])) == ({}, {"bar", "libx"}, {"foo"})


# -- what is refused ---------------------------------------------------------------------------------------------------


def transaction(**parts):
    return {**_transaction.parse_apt(""), **parts}


@pytest.mark.parametrize(
    ("parts", "rules", "told"),
    [
        pytest.param({"installed": {"docker.io": "26"}}, {}, [], id="new ones"),
        pytest.param({"upgraded": {"libc6": "2.40 to 2.41"}}, {}, [], id="what it needs is upgraded"),
        pytest.param(
            {"removed": {"docker-ce": "5:29.1.3", "containerd.io": "2.2.0"}, "causes": {"containerd.io": "runc"}},
            {}, ["docker.io would remove containerd.io (2.2.0, because of runc), docker-ce (5:29.1.3)", "remove it yourself"], id="removal",
        ),
        pytest.param({"removed": {"libnvidia-old": "1"}}, {"replaces": "libnvidia-.*"}, [], id="removal of its own"),
        pytest.param({"removed": {"xlibnvidia-old": "1"}}, {"replaces": "libnvidia-.*"}, ["would remove xlibnvidia-old"], id="whole names"),
        pytest.param({"downgraded": {"libc6": "2.41 to 2.40"}}, {}, ["would downgrade libc6 (2.41 to 2.40)"], id="downgrade"),
        pytest.param({"downgraded": {"libcuda1": "595 to 580"}}, {"downgrades": "libcuda1"}, [], id="downgrade of its own"),
        pytest.param(
            {"upgraded": {"containerd": "1.7 to 1.8"}}, {"held": ["containerd", "other"]},
            ["would change containerd (1.7 to 1.8), which is on hold", "apt-mark unhold containerd"], id="held",
        ),
        pytest.param({"upgraded": {"docker.io": "26 to 27"}}, {"held": ["docker.io"]}, [], id="held and asked for"),
        pytest.param({"upgraded": {"libcuda1": "1 to 2"}}, {"held": ["libcuda1"], "replaces": "libcuda1"}, [], id="held of its own"),
        pytest.param({"error": "Unable to locate package x"}, {}, [], id="what nobody knows harms nothing"),
    ],
)  # fmt: skip
def test_problems(parts, rules, told):
    found = _transaction.problems(transaction(**parts), ["docker.io"], **rules)
    assert all(any(text in problem for problem in found) for text in told) and bool(found) == bool(told), found


@pytest.mark.parametrize(
    ("manager", "name", "cannot"),
    [("apt", "held", True), ("apt", "unknown", False), ("apt", "unknown-version", False), ("apt", "older-refused", False), ("apt", "bare", False),
     ("dnf", "conflict", True), ("dnf", "unknown", False)],
)  # fmt: skip
def test_what_cannot_be_together_and_what_is_not_known(manager, name, cannot):
    assert bool(_transaction.unresolved(recorded(manager, name))) is cannot


def test_an_installation_that_was_cut_off_is_another_matter():
    for said in (
        "E: Unmet dependencies. Try 'apt --fix-broken install'",
        "E: dpkg was interrupted, you must manually run 'dpkg'",
    ):
        assert _transaction.unresolved(_transaction.parse_apt("x : Depends: held packages\n" + said, 100)) is None


def test_causes():
    there = "Package: docker-ce\nConflicts: docker (<< 1.5~), docker-engine, docker.io\nDepends: containerd.io (>= 1.7.27)\n\n"
    there += "Package: containerd.io\nProvides: containerd, runc\nConflicts: containerd, runc\n\nPackage: needy\nDepends: docker-ce (>= 1) | x\n"
    coming = "Package: docker.io\nDepends: runc\n\nPackage: containerd\nBreaks: old (<< 2)\n\nPackage: shim\nProvides: runc (= 1)\n"
    data = _transaction.relations(there + "\n" + coming)
    found = _transaction.causes(["docker-ce", "containerd.io", "needy", "stray"], data, ["docker.io", "shim"])
    assert found == {"docker-ce": "docker.io", "containerd.io": "shim", "needy": "docker-ce"}
    assert _transaction.causes(["old"], data, ["containerd"]) == {"old": "containerd"}
