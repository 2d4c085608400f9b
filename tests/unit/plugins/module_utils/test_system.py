# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages, repositories, kernels and firmware: texts in the form hosts have them, and trees made for the purpose."""

from __future__ import annotations

import os
import platform

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _survey, _system
from ansible_collections.baremetal.nim.tests.unit.openpgp_keys import FINGERPRINT
from ansible_collections.baremetal.nim.tests.unit.openpgp_keys import KEY as KEY_BYTES

KEY = KEY_BYTES.decode()
CUDA = "https://developer.download.nvidia.com/compute/cuda/repos"
ROOTS = ("proc", "sys", "etc", "lib/modules", "usr/src", "usr/share", "boot", "run", "var")


class Host:
    """A host below a directory, and what its commands say."""

    def __init__(self, root):
        self.root = root
        self.said = {}
        self.asked = []

    def write(self, path, content=""):
        """A file of the host."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(target)

    def run(self, *argv):
        """Says what was laid down for a command and its first word, or that there is no such command."""
        self.asked.append(argv)
        for words, answer in self.said.items():
            if " ".join(argv).startswith(words):
                return answer
        return 127, "", f"{argv[0]} is not installed"

    def survey(self):
        """A look at it."""
        roots = {name.replace("/", "_"): str(self.root / name) for name in ROOTS}
        return _survey.Survey(self.run, roots)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path / "root")


# -- packages ----------------------------------------------------------------------------------------------------------

WHOLE = "ii  nvidia-open 580.159.04-1\nii  dkms 3.2.0-1\nrc  libcuda1-340 340.108-1\n"


@pytest.mark.parametrize(
    ("text", "updates", "holds", "interrupted", "incomplete"),
    [
        pytest.param(WHOLE, [], [], False, [], id="whole"),
        pytest.param("", [], [], False, [], id="no-dpkg"),
        pytest.param(WHOLE, ["0000", "0001"], [], True, [], id="journal-of-a-killed-dpkg"),
        pytest.param(WHOLE, ["tmp.i"], [], False, [], id="scratch-file-of-dpkg"),
        pytest.param(
            "iF  nvidia-kernel-open-dkms 580.159.04-1\n",
            [],
            [],
            True,
            ["nvidia-kernel-open-dkms"],
            id="configured-half",
        ),
        pytest.param("iHR nvidia-open 580.159.04-1\n", [], [], True, ["nvidia-open"], id="must-be-installed-again"),
        pytest.param("iU  nvidia-open 580.159.04-1\n", [], [], True, ["nvidia-open"], id="unpacked"),
        pytest.param("it  man-db 2.13.1-1\n", [], [], False, ["man-db"], id="trigger-waits"),
        pytest.param(
            "hi  nvidia-open 1\nhi  libcuda1 1\nhF  dkms 1\n",
            [],
            ["dkms", "libcuda1", "nvidia-open"],
            True,
            ["dkms"],
            id="held",
        ),
        pytest.param("hn  nvidia-open \n", [], ["nvidia-open"], False, [], id="held-before-it-is-installed"),
    ],
)
def test_pain_10_state_of_the_package_database(text, updates, holds, interrupted, incomplete):
    assert _system.package_state(text, updates) == {
        "holds": holds,
        "interrupted": interrupted,
        "incomplete": incomplete,
        "busy": None,
    }


@pytest.mark.parametrize("lock", _system.PACKAGE_LOCKS)
def test_packages_that_somebody_works_on_are_not_broken(host, lock):
    """What a killed play left running on the host, or the host's own updates."""
    host.said["dpkg-query"] = (0, "iF  docker.io 26.1.5-1\n", "")
    host.write("/var/lib/dpkg/updates/0004")
    host.write("/proc/812/comm", "apt-get\n")
    (host.root / "proc/812/fd").mkdir()
    (host.root / "proc/812/fd/4").symlink_to(lock)
    survey = host.survey()
    survey.descriptors()
    assert survey.packages(["*"], [])[1] == {"holds": [], "interrupted": False, "incomplete": [], "busy": 812}


def test_packages_of_dpkg(host):
    host.said["dpkg-query"] = (0, WHOLE, "")
    host.write("/var/lib/dpkg/updates/0004")
    packages, state = host.survey().packages(["*nvidia*", "libcuda1*"], ["dkms"])
    assert packages == {"nvidia-open": "580.159.04-1", "dkms": "3.2.0-1"}
    assert state == {"holds": [], "interrupted": True, "incomplete": [], "busy": None}
    assert len(host.asked) == 1


def test_packages_of_rpm(host):
    host.said["rpm -qa"] = (0, "ii  nvidia-driver-cuda 3:580.159.04-1.el9\nii  podman 5:5.4.0-1.el9\n", "")
    host.write(
        "/etc/dnf/plugins/versionlock.list", "# Added\nnvidia-driver-cuda-3:580.159.04-1.el9.*\n!kernel-0:5.14.0-1.*\n"
    )
    packages, state = host.survey().packages(["*nvidia*"], ["podman"])
    assert packages == {"nvidia-driver-cuda": "3:580.159.04-1.el9", "podman": "5:5.4.0-1.el9"}
    assert state == {"holds": ["nvidia-driver-cuda"], "interrupted": False, "incomplete": [], "busy": None}
    assert [argv[0] for argv in host.asked] == ["dpkg-query", "rpm"]
    assert host.asked[1][-2:] == ("*nvidia*", "podman")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("*nvidia*580*\n", ["*nvidia*580*"]),
        (
            'version = "1.0"\n[[packages]]\nname = "nvidia-open"\n[[packages.conditions]]\nkey = "evr"\n',
            ["nvidia-open"],
        ),
        ("", []),
    ],
    ids=["pattern", "dnf5", "none"],
)
def test_versionlocks(text, names):
    assert _system.parse_versionlock(text) == names


@pytest.mark.parametrize(
    ("version", "upstream"),
    [
        ("1.20.0-1", "1.20.0"),
        ("5.4.2+ds1-2+b1", "5.4.2"),
        ("3:4.9.3+ds1-1ubuntu0.2", "4.9.3"),
        ("580.159.04-1.el9", "580.159.04"),
        (None, None),
        ("", None),
    ],
)
def test_version_of_the_software_in_a_package(version, upstream):
    assert _system.upstream_version(version) == upstream


def test_globs_are_those_of_a_shell():
    installed = {"nvidia-open": "1", "libcuda1": "2", "libcuda1-dev": "3", "linux-nvidia": "4"}
    assert _system.match_packages(installed, ["*nvidia*", "libcuda1"]) == {
        "nvidia-open": "1",
        "libcuda1": "2",
        "linux-nvidia": "4",
    }
    assert _system.match_packages(installed, []) == {}


# -- repositories ------------------------------------------------------------------------------------------------------


def entry(**values):
    """A repository, as far as it is not what most are."""
    whole = {"name": None, "enabled": True, "types": ["deb"], "suites": ["/"], "components": [], "signed_by": None}
    return {**whole, **values}


ONE_LINE = {
    "plain": (f"deb {CUDA}/debian13/x86_64/ /\n", [entry(uris=[f"{CUDA}/debian13/x86_64/"], origin="cuda")]),
    "options": (
        f"deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg arch=amd64] {CUDA}/debian13/x86_64/ /\n",
        [
            entry(
                uris=[f"{CUDA}/debian13/x86_64/"],
                signed_by="/usr/share/keyrings/cuda-archive-keyring.gpg",
                origin="cuda",
            )
        ],
    ),
    "options-with-spaces": (
        "deb [ arch=amd64 Signed-By=/etc/apt/keyrings/a.asc,/etc/apt/keyrings/b.asc ]  https://nvidia.github.io/libnvidia-container/stable/deb/x /\n",
        [
            entry(
                uris=["https://nvidia.github.io/libnvidia-container/stable/deb/x"],
                signed_by="/etc/apt/keyrings/a.asc /etc/apt/keyrings/b.asc",
                origin="toolkit",
            )
        ],
    ),
    "components": (
        "deb http://deb.debian.org/debian trixie main contrib  # all of it\ndeb-src http://deb.debian.org/debian trixie main\n",
        [
            entry(
                uris=["http://deb.debian.org/debian"],
                suites=["trixie"],
                components=["main", "contrib"],
                origin="distribution",
            ),
            entry(
                uris=["http://deb.debian.org/debian"],
                types=["deb-src"],
                suites=["trixie"],
                components=["main"],
                origin="distribution",
            ),
        ],
    ),
    "cdrom": (
        "deb cdrom:[Debian GNU/Linux 13 _Trixie_]/ trixie main\n",
        [entry(uris=["cdrom:[Debian GNU/Linux 13 _Trixie_]/"], suites=["trixie"], components=["main"], origin="other")],
    ),
    "commented-out": (f"# deb {CUDA}/debian13/x86_64/ /\n#deb-src http://x/ /\n\nnonsense\ndeb\n", []),
}


@pytest.mark.parametrize(("text", "found"), ONE_LINE.values(), ids=ONE_LINE)
def test_repositories_of_one_line(text, found):
    path = "/etc/apt/sources.list.d/x.list"
    assert _system.parse_repositories(path, text) == [{"path": path, **item} for item in found]


INDENTED = "\n".join(f" {line or '.'}" for line in KEY.strip().splitlines())
TWO_STANZAS = """\
Types: deb deb-src
URIs: http://deb.debian.org/debian
Suites: trixie trixie-updates
Components: main
  contrib
Enabled: yes
#
\x20

Types: deb
URIs: http://security.debian.org/debian-security
Suites: trixie-security
Components: main
Enabled: no
"""
DEB822 = {
    "whole": (
        "# Written by Ansible\nX-Repolib-Name: cuda\nTypes: deb\nURIs: http://apt.lab:8080/cuda/\nSuites: /\nSigned-By: /etc/apt/keyrings/x.asc\n",
        [entry(uris=["http://apt.lab:8080/cuda/"], signed_by="/etc/apt/keyrings/x.asc", origin="cuda")],
    ),
    "two-stanzas": (
        TWO_STANZAS,
        [
            entry(
                types=["deb", "deb-src"],
                uris=["http://deb.debian.org/debian"],
                suites=["trixie", "trixie-updates"],
                components=["main", "contrib"],
                origin="distribution",
            ),
            entry(
                enabled=False,
                uris=["http://security.debian.org/debian-security"],
                suites=["trixie-security"],
                components=["main"],
                origin="distribution",
            ),
        ],
    ),
    "key-in-the-file": (
        f"Types: deb\nURIs: https://download.docker.com/linux/debian\nSuites: trixie\nComponents: stable\nSigned-By:\n{INDENTED}\n",
        [
            entry(
                uris=["https://download.docker.com/linux/debian"],
                suites=["trixie"],
                components=["stable"],
                signed_by=FINGERPRINT,
                origin="docker",
            )
        ],
    ),
    "broken-key-in-the-file": (
        "Types: deb\nURIs: http://x.example/\nSuites: /\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n eHg=\n",
        [entry(uris=["http://x.example/"], origin="other")],
    ),
    "empty": ("", []),
    "unfinished": ("Types: deb\n", []),
}


@pytest.mark.parametrize(("text", "found"), DEB822.values(), ids=DEB822)
def test_repositories_of_stanzas(text, found):
    path = "/etc/apt/sources.list.d/x.sources"
    assert _system.parse_repositories(path, text) == [{"path": path, **item} for item in found]


YUM = f"""\
[cuda-rhel9-x86_64]
name=cuda-rhel9-x86_64
baseurl={CUDA}/rhel9/x86_64
enabled=1
gpgcheck=1
gpgkey={CUDA}/rhel9/x86_64/D42D0685.pub

[baseos]
name=Rocky Linux $releasever - BaseOS
mirrorlist=https://mirrors.rockylinux.org/mirrorlist?arch=$basearch&repo=BaseOS-$releasever
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-Rocky-9

[off]
name=100% off
baseurl=https://a.example/x https://b.example/x
enabled=0
"""


def test_repositories_of_yum():
    found = _system.parse_repositories("/etc/yum.repos.d/cuda.repo", YUM)
    assert [(item["name"], item["enabled"], item["uris"], item["signed_by"], item["origin"]) for item in found[:1]] == [
        ("cuda-rhel9-x86_64", True, [f"{CUDA}/rhel9/x86_64"], f"{CUDA}/rhel9/x86_64/D42D0685.pub", "cuda")
    ]
    assert [(item["name"], item["enabled"], len(item["uris"])) for item in found[1:]] == [
        ("baseos", True, 1),
        ("off", False, 2),
    ]
    assert {tuple(item["suites"]) for item in found} == {()}
    assert _system.parse_repositories("/etc/yum.repos.d/broken.repo", "nonsense\n[") == []


ORIGINS = [
    (f"{CUDA}/ubuntu2404/sbsa/", "x.list", "cuda"),
    ("file:///var/nvidia-driver-local-repo-debian13-580.159.04", "x.list", "cuda"),
    ("http://mirror.example/cuda-frozen/", "x.list", "cuda"),
    ("http://mirror.example/amd64", "cuda-debian13-x86_64.list", "cuda"),
    ("http://mirror.example/amd64", "nvidia-container-toolkit.list", "toolkit"),
    ("https://download.docker.com/linux/ubuntu", "x.list", "docker"),
    ("http://mirror.example/linux/", "docker.list", "docker"),
    ("http://archive.ubuntu.com/ubuntu", "x.list", "distribution"),
    ("http://mirror.example/debian", "x.list", "distribution"),
    ("https://packages.example/barracuda/", "x.list", "other"),
    ("https://dl.grafana.com/apt", "x.list", "other"),
]


@pytest.mark.parametrize(("uri", "name", "origin"), ORIGINS)
def test_origins(uri, name, origin):
    found = _system.parse_repositories(f"/etc/apt/sources.list.d/{name}", f"deb {uri} trixie main\n")
    assert [item["origin"] for item in found] == [origin]


def test_pain_8_and_9_duplicated_repositories_and_their_keys(host):
    """Two files name one repository with different keys, and the key that was retired in 2022 is still trusted."""
    keyring = host.write("/usr/share/keyrings/cuda-archive-keyring.gpg", KEY)
    host.write("/usr/share/keyrings/debian-archive-keyring.gpg", KEY)
    old = host.write("/etc/apt/trusted.gpg.d/7fa2af80.asc", KEY)
    broken = host.write("/etc/apt/keyrings/notes.txt", "not a key\n")
    secret = host.write("/opt/docker.asc", KEY)
    host.write("/etc/apt/sources.list", "deb http://deb.debian.org/debian trixie main\n")
    host.write("/etc/apt/sources.list.d/b.list", f"deb {CUDA}/debian13/x86_64/ /\n")
    host.write("/etc/apt/sources.list.d/a.list", f"deb [signed-by={keyring}] {CUDA}/debian13/x86_64/ /\n")
    host.write("/etc/apt/sources.list.d/c.list.disabled", f"deb {CUDA}/debian13/x86_64/ /\n")
    host.write(
        "/etc/apt/sources.list.d/docker.list",
        f"deb [signed-by={secret}] https://download.docker.com/linux/debian trixie stable\n",
    )
    survey = host.survey()
    found = survey.repositories()
    assert [(os.path.basename(item["path"]), item["origin"], item["signed_by"]) for item in found] == [
        ("sources.list", "distribution", None),
        ("a.list", "cuda", keyring),
        ("b.list", "cuda", None),
        ("docker.list", "docker", secret),
    ]
    assert survey.keys(found) == {
        keyring: [FINGERPRINT],
        old: [FINGERPRINT],
        broken: [],
        secret: [FINGERPRINT],
    }


# -- Secure Boot -------------------------------------------------------------------------------------------------------

GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
ATTRIBUTES = b"\x06\x00\x00\x00"


@pytest.mark.parametrize(
    ("variables", "said", "enabled"),
    [
        pytest.param({f"SecureBoot-{GUID}": b"\x01"}, None, True, id="on"),
        pytest.param({f"SecureBoot-{GUID}": b"\x00", f"SetupMode-{GUID}": b"\x01"}, None, False, id="off"),
        pytest.param({f"SecureBoot-{GUID}": b"\x01", f"MokSBStateRT-{SHIM}": b"\x01"}, None, False, id="off-in-shim"),
        pytest.param({f"SecureBoot-{GUID}": b"\x01", f"MokSBStateRT-{SHIM}": b"\x00"}, None, True, id="on-in-shim"),
        pytest.param({}, "SecureBoot enabled\n", True, id="mokutil-on"),
        pytest.param({}, "SecureBoot disabled\nPlatform is in Setup Mode\n", False, id="mokutil-off"),
        pytest.param(
            {}, "SecureBoot enabled\nSecureBoot validation is disabled in shim\n", False, id="mokutil-off-in-shim"
        ),
        pytest.param({}, "EFI variables are not supported on this system\n", None, id="no-efi"),
        pytest.param({}, None, None, id="absent"),
    ],
)
def test_pain_19_secure_boot(host, variables, said, enabled):
    for name, value in variables.items():
        host.write(f"/sys/firmware/efi/efivars/{name}", ATTRIBUTES + value)
    if said is not None:
        host.said["mokutil --sb-state"] = (0, said, "")
    assert host.survey().secure_boot() == {"enabled": enabled, "mok_enrolled": None, "mok_key": None}
    assert bool(host.asked) is not bool(variables)


@pytest.mark.parametrize(
    ("answer", "enrolled"),
    [
        # mokutil leaves with 1 where the key is known.
        ((1, "{key} is already enrolled\n", ""), True),
        ((1, "{key} is already in db\n", ""), True),
        ((0, "{key} is not enrolled\n", ""), False),
        ((1, "{key} is already in the enrollment request\n", ""), False),
        ((255, "", "Failed to read MokListRT\n"), None),
        ((127, "", "mokutil is not installed"), None),
    ],
    ids=["enrolled", "in-the-firmware", "not-enrolled", "waits-for-the-console", "no-access", "no-mokutil"],
)
@pytest.mark.parametrize("place", ["/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der"])
def test_pain_19_key_of_dkms(host, answer, enrolled, place):
    host.write(f"/sys/firmware/efi/efivars/SecureBoot-{GUID}", ATTRIBUTES + b"\x01")
    key = host.write(place, b"\x30\x82")
    code, out, err = answer
    host.said["mokutil --test-key"] = (code, out.replace("{key}", key), err)
    assert host.survey().secure_boot() == {"enabled": True, "mok_enrolled": enrolled, "mok_key": key}


def test_pain_19_key_does_not_matter_without_secure_boot(host):
    host.write(f"/sys/firmware/efi/efivars/SecureBoot-{GUID}", ATTRIBUTES + b"\x00")
    key = host.write("/var/lib/dkms/mok.pub", b"\x30\x82")
    assert host.survey().secure_boot() == {"enabled": False, "mok_enrolled": None, "mok_key": key}
    assert host.asked == []


# -- kernels -----------------------------------------------------------------------------------------------------------

DEBIAN = "6.12.48+deb13-amd64"


@pytest.mark.parametrize(
    ("running", "images", "newest", "pending"),
    [
        pytest.param(DEBIAN, [f"vmlinuz-{DEBIAN}"], DEBIAN, False, id="one"),
        pytest.param(DEBIAN, ["vmlinuz-6.12.9+deb13-amd64", f"vmlinuz-{DEBIAN}"], DEBIAN, False, id="older"),
        pytest.param("6.12.9+deb13-amd64", [f"vmlinuz-{DEBIAN}"], DEBIAN, True, id="newer"),
        pytest.param(
            "6.8.0-9-generic",
            ["vmlinuz-6.8.0-10-generic", "vmlinuz-6.8.0-9-generic"],
            "6.8.0-10-generic",
            True,
            id="ubuntu",
        ),
        pytest.param(
            "5.14.0-570.el9.x86_64",
            ["vmlinuz-0-rescue-5b6d0f", "vmlinuz-5.14.0-570.el9.x86_64", "vmlinuz-5.14.0-570.12.1.el9_6.x86_64"],
            "5.14.0-570.12.1.el9_6.x86_64",
            True,
            id="el",
        ),
        pytest.param(
            DEBIAN,
            ["vmlinuz-6.12.48+deb13-cloud-amd64", f"vmlinuz-{DEBIAN}"],
            "6.12.48+deb13-cloud-amd64",
            False,
            id="flavours",
        ),
        pytest.param(DEBIAN, ["config-7.0.0", "initrd.img-7.0.0", "vmlinuz.old", "grub"], DEBIAN, False, id="none"),
    ],
)
def test_kernels(running, images, newest, pending):
    found = _system.kernels(running, images, headers=False)
    assert (found["newest"], found["pending"], found["running"]) == (newest, pending, running)


@pytest.mark.parametrize(
    ("link", "content", "headers"),
    [
        pytest.param(
            f"/usr/src/linux-headers-{DEBIAN}", f"/usr/src/linux-headers-{DEBIAN}/Makefile", True, id="debian"
        ),
        pytest.param(f"/usr/src/kernels/{DEBIAN}", f"/usr/src/kernels/{DEBIAN}/Makefile", True, id="el"),
        pytest.param(
            f"/usr/src/linux-headers-{DEBIAN}", "/usr/src/linux-headers-6.1.0/Makefile", False, id="of-another-kernel"
        ),
        pytest.param("../../../usr/src/here", "/usr/src/here/Makefile", True, id="relative"),
        pytest.param(None, f"/usr/src/linux-headers-{DEBIAN}/Makefile", False, id="no-link"),
        pytest.param(None, f"/lib/modules/{DEBIAN}/build/Makefile", True, id="folder"),
    ],
)
def test_pain_12_headers_of_the_running_kernel(host, monkeypatch, link, content, headers):
    monkeypatch.setattr(platform, "release", lambda: DEBIAN)
    host.write(content)
    if link:
        home = host.root / "lib/modules" / DEBIAN
        home.mkdir(parents=True)
        (home / "build").symlink_to(link)
    assert host.survey().kernel()["headers"] is headers


def test_kernels_that_lie_with_their_modules(host, monkeypatch):
    """As on EL, where /boot may be another file system."""
    monkeypatch.setattr(platform, "release", lambda: "5.14.0-503.el9.x86_64")
    host.write("/lib/modules/5.14.0-570.el9.x86_64/vmlinuz")
    host.write("/lib/modules/5.14.0-427.el9.x86_64/extra/left.ko")
    kernel = host.survey().kernel()
    assert (kernel["installed"], kernel["pending"]) == (["5.14.0-570.el9.x86_64"], True)


# -- updates and reboots -----------------------------------------------------------------------------------------------

PERIODIC = 'APT::Periodic::Update-Package-Lists "1";\nAPT::Periodic::Unattended-Upgrade "1";\n'
INSTALLED = {"unattended-upgrades": "2.12", "needrestart": "3.8"}


@pytest.mark.parametrize(
    ("texts", "packages", "timers", "expected"),
    [
        pytest.param([PERIODIC], INSTALLED, {}, (True, True), id="on"),
        pytest.param([PERIODIC], {}, {}, (False, False), id="not-installed"),
        pytest.param([], INSTALLED, {}, (False, True), id="not-configured"),
        pytest.param(
            [PERIODIC, PERIODIC.replace('Upgrade "1"', 'Upgrade "0"')], INSTALLED, {}, (False, True), id="off-later"
        ),
        pytest.param(["// " + PERIODIC.splitlines()[1]], INSTALLED, {}, (False, True), id="commented-out"),
        pytest.param(['APT { Periodic { Unattended-Upgrade "3"; }; };'], INSTALLED, {}, (True, True), id="nested"),
        pytest.param([PERIODIC], INSTALLED, {"apt-daily-upgrade.timer": "masked"}, (False, True), id="timer-masked"),
        pytest.param([PERIODIC], INSTALLED, {"apt-daily-upgrade.timer": "enabled"}, (True, True), id="timer-on"),
        pytest.param([], {}, {"dnf-automatic.timer": "enabled"}, (True, False), id="dnf-automatic"),
        pytest.param([], {}, {"dnf-automatic.timer": "disabled"}, (False, False), id="dnf-automatic-off"),
    ],
)
def test_pain_16_what_upgrades_and_restarts_by_itself(host, texts, packages, timers, expected):
    for number, text in enumerate(texts):
        host.write(f"/etc/apt/apt.conf.d/{number}0x", text)
    units = {name: {"Id": name, "UnitFileState": state} for name, state in timers.items()}
    found = host.survey().updates(packages, units)
    assert (found["unattended_upgrades"], found["needrestart"]) == expected


LOADED = {"loaded_version": "580.159.04", "module_version": "580.159.04", "nouveau": {"bound": []}}
QUIET = {"running": "6.1", "newest": "6.1", "pending": False}


@pytest.mark.parametrize(
    ("driver", "kernel", "marker", "required", "words"),
    [
        pytest.param({}, {}, None, False, [], id="nothing"),
        pytest.param(
            {"module_version": "595.71.05"}, {}, None, True, ["580.159.04", "595.71.05"], id="driver-was-upgraded"
        ),
        pytest.param({"loaded_version": None}, {}, None, False, [], id="not-loaded"),
        pytest.param({"module_version": None}, {}, None, False, [], id="not-on-disk"),
        pytest.param(
            {"nouveau": {"bound": ["0000:01:00.0"]}}, {}, None, True, ["nouveau", "0000:01:00.0"], id="nouveau"
        ),
        pytest.param({}, {"newest": "6.2", "pending": True}, None, False, ["6.2", "6.1"], id="newer-kernel"),
        pytest.param(
            {},
            {"newest": "6.2", "pending": True},
            "linux-image-6.2-amd64\nlinux-base\n",
            False,
            ["linux-image"],
            id="kernel-asked",
        ),
        pytest.param({}, {}, "libc6\nlibc6\n", True, ["libc6 asked"], id="library-asked"),
        pytest.param({}, {}, "", True, ["a package asked"], id="nobody-knows-who-asked"),
    ],
)
def test_pain_17_reboot(host, driver, kernel, marker, required, words):
    if marker is not None:
        host.write("/run/reboot-required")
        host.write("/run/reboot-required.pkgs", marker)
    found = host.survey().reboot({**LOADED, **driver}, {**QUIET, **kernel})
    assert found["required"] is required
    assert all(word in " ".join(found["reasons"]) for word in words)
    assert bool(found["reasons"]) is bool(words)


# -- a host without anything -------------------------------------------------------------------------------------------


def test_host_without_anything(host):
    survey = host.survey()
    survey.descriptors()
    assert (survey.sockets, survey.holders) == ({}, [])
    assert survey.packages(["*"], []) == ({}, {"holds": [], "interrupted": False, "incomplete": [], "busy": None})
    assert (survey.repositories(), survey.keys([])) == ([], {})
    assert survey.software({}, ["podman"], "podman") is None
    driver = survey.driver(survey.hardware(), {})
    assert driver["flavour"] is None
    assert survey.reboot(driver, survey.kernel())["reasons"] == []
    assert survey.updates({}, {}) == {"unattended_upgrades": False, "needrestart": False}


def test_one_look_at_all_open_files(host):
    """Sockets and GPUs are found in one pass; who looks is no holder."""
    for pid, target in ((12, "socket:[77]"), (9, "/dev/nvidia0"), (os.getpid(), "/dev/nvidiactl"), (13, "/dev/null")):
        folder = host.root / f"proc/{pid}/fd"
        folder.mkdir(parents=True)
        (folder / "5").symlink_to(target)
    host.write("/proc/net/tcp")
    survey = host.survey()
    survey.descriptors()
    assert (survey.sockets, survey.holders) == ({"77": 12}, [9])


@pytest.mark.parametrize(
    ("loaded", "license", "flavour"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n", "NVIDIA", "open"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n", "Dual MIT/GPL", "proprietary"),
        ("", "Dual MIT/GPL", "open"),
        ("", "NVIDIA", "proprietary"),
        ("", None, None),
    ],
)
def test_flavour(loaded, license, flavour):
    """What is loaded counts; else what would be."""
    assert _system.flavour(loaded, license) == flavour
