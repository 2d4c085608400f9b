# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module with package managers that are small scripts: what they are asked, and that nothing of the host is touched."""

from __future__ import annotations

import http.server
import json
import pathlib
import re
import sys

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import package_transaction
from ansible_collections.baremetal.nim.tests.unit.openpgp_keys import FINGERPRINT, KEY
from ansible_collections.baremetal.nim.tests.unit.serving import serving

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures/transactions"
#: Tells what it was asked and by which sources; answers as it was told to for the first of its words that has an answer.
PROGRAM = r"""
import json, os, pathlib, re, sys
me = pathlib.Path(sys.argv[0])
words = sys.argv[1:]
options = dict(word.split("=", 1) for word in words if "::" in word)
seen = {}
for name in ("Dir::Etc::SourceParts", "Dir::Etc::PreferencesParts"):
    folder = pathlib.Path(options.get(name, "/nowhere"))
    seen[name.split("::")[-1]] = {path.name: path.read_text() for path in sorted(folder.glob("*"))}
reposdir = [word for word in words if word.startswith("--setopt=reposdir=")]
if reposdir:
    seen["repos"] = [path.read_text() for path in pathlib.Path(re.split("[,=]", reposdir[0])[-1]).glob("*.repo")]
with open(me.parent / "asked", "a") as out:
    print(json.dumps({"words": [me.name, *words], "locale": os.environ.get("LC_ALL"), **seen}), file=out)
answers = json.loads((me.parent / "answers.json").read_text())
line = " ".join([me.name, *(word for word in words if "::" not in word and word != "-o")])
for pattern, (code, text) in answers.items():
    if re.search(pattern, line):
        sys.stdout.write(text)
        sys.exit(code)
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the module; returns its result, and what the programs were asked."""

    def run(*transactions, manager="apt", lists=True, **answers):
        programs, apt = tmp_path / "bin", tmp_path / "apt"
        programs.mkdir(exist_ok=True)
        for name in ("apt-get", "apt-cache", "apt-mark", "dpkg-query", "dpkg-deb", "dnf"):
            (programs / name).write_text(f"#!{sys.executable}\n{PROGRAM}")
            (programs / name).chmod(0o755)
        for folder in ("lists", "sources", "preferences"):
            (apt / folder).mkdir(parents=True, exist_ok=True)
        if lists:
            (apt / "lists/deb_main_Packages").write_text("there\n")
        (apt / "sources/theirs.sources").write_text("theirs\n")
        (apt / "sources/old.list").write_text("old\n")
        (apt / "preferences/theirs").write_text("theirs\n")
        for name in ("lists", "sources", "preferences"):
            monkeypatch.setattr(package_transaction, name.upper(), str(apt / name))
        (programs / "answers.json").write_text(json.dumps(answers.get("answers", {})))
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        before = {path: path.read_text() for path in apt.rglob("*") if path.is_file()}
        args = {"manager": manager, "transactions": list(transactions), "_ansible_tmpdir": str(tmp_path / "tmp")}
        (tmp_path / "tmp").mkdir(exist_ok=True)
        with patch_module_args(args), pytest.raises(SystemExit) as caught:
            package_transaction.main()
        told = json.loads(capsys.readouterr().out)
        assert caught.value.code == 0, told
        assert told["changed"] is False
        assert {path: path.read_text() for path in apt.rglob("*") if path.is_file()} == before
        asked = programs / "asked"
        return told["transactions"], [
            json.loads(line) for line in asked.read_text().splitlines()
        ] if asked.exists() else []

    return run


class KeyHandler(http.server.BaseHTTPRequestHandler):
    """Gives the key to whoever asks."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(KEY)

    def log_message(self, *_args):
        pass


@pytest.fixture
def url():
    """Where the key is."""
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), KeyHandler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}/key"


def recorded(manager, name):
    text = (FIXTURES / f"{manager}.txt").read_text()
    code, answer = re.search(rf"^##### {name} (\d+) .*\n((?:(?!#####).*\n)*)", text, re.MULTILINE).groups()
    return int(code), answer


def commands(asked):
    """Command lines without options of the form -o NAME=VALUE."""
    return [" ".join(word for word in item["words"] if "::" not in word and word != "-o") for item in asked]


def test_known_lists_and_nothing_new_ask_once(call):
    told, asked = call(
        {"name": "engine", "packages": ["docker.io"]}, answers={"install docker.io": recorded("apt", "bare")}
    )
    assert commands(asked) == ["apt-get --simulate --yes --no-install-recommends install docker.io"]
    assert asked[0]["locale"] == "C"
    engine = told["engine"]
    assert (engine["problems"], engine["removed"], engine["packages"]) == ([], {}, ["docker.io"])
    assert "docker.io" in engine["installed"]


def test_what_would_go_is_refused_by_its_name_and_cause(call):
    status = "Package: containerd.io\nConflicts: containerd, runc\n\nPackage: docker-ce\nConflicts: docker.io\n"
    shown = "Package: docker.io\n\nPackage: runc\n"
    answers = {
        "install docker.io": recorded("apt", "ce-is-there"),
        "dpkg-query --status": (0, status),
        "apt-cache": (0, shown),
    }
    told, _asked = call({"name": "engine", "packages": ["docker.io"]}, answers=answers)
    (problem,) = told["engine"]["problems"]
    for words in (
        "docker-ce (5:29.1.3-1~debian.13~trixie, because of docker.io)",
        "containerd.io (2.2.0-1~debian.13~trixie, because of runc)",
    ):
        assert words in problem


def test_a_new_source_is_read_aside(call, url):
    source = {
        "uris": ["https://mirror"],
        "suites": ["/"],
        "components": [],
        "key_url": url,
        "fingerprints": [FINGERPRINT],
    }
    told, asked = call(
        {"name": "toolkit", "packages": ["x=1"], "sources": [source]},
        answers={"install": (0, "Inst x (1 lab [all])\n")},
    )
    update, simulate = asked
    assert commands(asked) == ["apt-get update", "apt-get --simulate --yes --no-install-recommends install x=1"]
    (text,) = update["SourceParts"].values()
    assert "URIs: https://mirror\nSuites: /\nSigned-By: " in text and "Components" not in text
    assert set(simulate["SourceParts"]) == {"theirs.sources", "old.list", "baremetal-nim-0.sources"}
    assert told["toolkit"]["installed"] == {"x": "1"}


def test_files_that_go_are_not_read(call, tmp_path):
    wanted = {"name": "driver", "packages": ["x"], "retired": [str(tmp_path / "apt/sources/old.list")]}
    _told, asked = call(wanted, answers={"install": (0, "")})
    assert set(asked[-1]["SourceParts"]) == {"theirs.sources"}


def test_a_host_without_lists_gets_them_aside(call):
    _told, asked = call({"name": "engine", "packages": ["x"]}, lists=False)
    assert commands(asked)[0] == "apt-get update" and "Dir::State::Lists=" in " ".join(asked[0]["words"])


@pytest.mark.parametrize("broken", ["another key", "no answer", "no list"])
def test_a_source_that_cannot_be_read_is_no_problem(call, url, broken):
    """The installation itself fails then, and says why."""
    key = {"another key": [url, ["A" * 40]], "no answer": ["http://127.0.0.1:1/", [FINGERPRINT]]}.get(
        broken, [url, [FINGERPRINT]]
    )
    source = {"uris": ["https://mirror"], "suites": ["/"], "key_url": key[0], "fingerprints": key[1]}
    answers = {"update": (100 if broken == "no list" else 0, "E: no route"), "install": (0, "")}
    told, asked = call({"name": "toolkit", "packages": ["x"], "sources": [source]}, answers=answers)
    toolkit = told["toolkit"]
    assert toolkit["error"] and (toolkit["problems"], toolkit["unresolved"]) == ([], None)
    assert not any("install" in line for line in commands(asked))


def test_pins_count_before_they_are_installed(call, monkeypatch, tmp_path):
    def extract(self, *argv, cwd=None):
        if argv[0] == "apt-get" and "download" in argv:
            (pathlib.Path(cwd) / "pin.deb").write_text("")
        if argv[0] == "dpkg-deb":
            place = pathlib.Path(argv[-1]) / package_transaction.PREFERENCES.lstrip("/")
            place.mkdir(parents=True)
            (place / "nvidia").write_text("Pin: version 580.*\n")
        return real(self, *argv, cwd=cwd)

    real = package_transaction.Simulator.run
    monkeypatch.setattr(package_transaction.Simulator, "run", extract)
    wanted = {
        "name": "driver",
        "packages": ["nvidia-open=580.*"],
        "pins": ["nvidia-driver-pinning-580"],
        "downgrade": True,
        "change_held": True,
    }
    _told, asked = call(wanted, answers={"install": (0, "")})
    assert asked[-1]["PreferencesParts"] == {"nvidia": "Pin: version 580.*\n", "theirs": "theirs\n"}
    assert " --allow-downgrades --allow-change-held-packages install nvidia-open=580.*" in commands(asked)[-1]


def test_several_are_asked_together_and_alone_when_something_is_wrong(call):
    both = ({"name": "engine", "packages": ["docker.io"]}, {"name": "toolkit", "packages": ["tool=1"]})
    told, asked = call(*both, answers={"install": (0, "Inst docker.io (26 lab [all])\nInst tool (1 lab [all])\n")})
    assert commands(asked) == ["apt-get --simulate --yes --no-install-recommends install docker.io tool=1"]
    assert [told[name]["packages"] for name in ("engine", "toolkit")] == [["docker.io"], ["tool=1"]]

    answers = {"docker.io tool=1": (100, "E: Unable to locate package tool"), "install docker.io": (0, "Inst docker.io (26 lab [all])\n"),
               "install tool=1": (100, "E: Unable to locate package tool")}  # fmt: skip
    told, _asked = call(*both, answers=answers)
    assert told["engine"]["error"] is None and "Unable to locate" in told["toolkit"]["error"]


def test_what_is_on_hold_is_left_alone(call):
    answers = {"install": (0, "Inst containerd [1.7] (1.8 lab [all])\n"), "showhold": (0, "containerd\n")}
    told, _asked = call({"name": "engine", "packages": ["docker.io"], "change_held": True}, answers=answers)
    assert "would change containerd (1.7 to 1.8), which is on hold" in told["engine"]["problems"][0]


@pytest.mark.parametrize(("name", "removed"), [("bare", []), ("replaces-runc", ["runc"])])
def test_dnf(call, name, removed):
    source = {"baseurl": "https://mirror/rpm"}
    told, asked = call(
        {"name": "engine", "packages": ["docker-ce"], "sources": [source]},
        manager="dnf",
        answers={"install": recorded("dnf", name)},
    )
    assert list(told["engine"]["removed"]) == removed and bool(told["engine"]["problems"]) == bool(removed)
    assert (
        asked[0]["words"][:3] == ["dnf", "--assumeno", "--setopt=install_weak_deps=False"]
        and "--allowerasing" not in asked[0]["words"]
    )
    assert "baseurl=https://mirror/rpm" in asked[0]["repos"][0]
