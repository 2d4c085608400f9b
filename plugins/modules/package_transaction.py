#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would an installation do to the packages that are there?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_transaction
short_description: Tell what an installation of packages would remove, and why it must not run
version_added: 1.0.0
description:
  - Has apt or dnf simulate installations, and finds in what they say the packages that would be removed, replaced, downgraded or changed
    although they are on hold. Changes nothing.
  - Repositories that are not on the host yet are read into a scratch directory, so that a host can be refused before anything is added.
  - What the package manager does not know is no problem here. The installation itself then fails, with its own words and no harm.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes.info_module
  - baremetal.nim._attributes
options:
  manager:
    description: The package manager.
    type: str
    choices: [apt, dnf]
    required: true
  transactions:
    description: Installations, each simulated on the host as it is now.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the installation in the result.
        type: str
        required: true
      packages:
        description: Packages, as the package manager is told them.
        type: list
        elements: str
        required: true
      pins:
        description: Packages that are installed before, for the preferences of apt that they bring.
        type: list
        elements: str
        default: []
      sources:
        description: >-
          Repositories that are added before, C(uris), C(suites) and C(components) for apt or C(baseurl) for dnf; with C(key_url) and
          C(fingerprints) of the key, or C(signed_by), the path of one that is there.
        type: list
        elements: dict
        default: []
      retired:
        description: Files of apt's sources that are removed before.
        type: list
        elements: path
        default: []
      replaces:
        description: Regular expression of the names of packages that may be removed or replaced.
        type: str
        default: ""
      downgrade:
        description: Whether packages whose names match O(transactions[].downgrades) may become older.
        type: bool
        default: false
      downgrades:
        description: Regular expression of the names of packages that may become older.
        type: str
        default: ""
      change_held:
        description: Whether packages on hold may change.
        type: bool
        default: false
      erase:
        description: Whether dnf may remove what is in the way.
        type: bool
        default: false
"""

EXAMPLES = r"""
- name: See what Docker would do to this host
  baremetal.nim.package_transaction:
    manager: apt
    transactions:
      - name: engine
        packages: [docker.io]
  register: simulated

- name: Stop where it would take something away
  ansible.builtin.assert:
    that: simulated.transactions.engine.problems | length == 0
"""

RETURN = r"""
transactions:
  description: >-
    By name, C(packages), what was asked for; C(problems), sentences that speak against running it; C(unresolved), why its packages cannot
    be had together, or V(null); and what would happen, C(installed), C(upgraded), C(downgraded) and C(removed), each a dictionary of names
    to versions, C(causes) of what is removed, and C(error), why nothing would.
  type: dict
  returned: always
"""

import glob
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url
from ansible_collections.baremetal.nim.plugins.module_utils import _command, _openpgp, _transaction

#: Seconds that the package manager may take for one answer.
DEADLINE = 300
PLAIN = {"LC_ALL": "C", "LANGUAGE": "C", "DEBIAN_FRONTEND": "noninteractive"}
#: Directories of apt, and what stands for them in the scratch folder.
ASIDE = {"State::Lists": "lists", "Cache::pkgcache": "pkgcache.bin", "Cache::srcpkgcache": "srcpkgcache.bin"}
LISTS, SOURCES, PREFERENCES = "/var/lib/apt/lists", "/etc/apt/sources.list.d", "/etc/apt/preferences.d"


class Unreadable(Exception):
    """A repository that cannot be read now; what it would bring is not known."""


class Simulator:
    """What both package managers have in common."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.runner = _command.Runner(str, again=True)
        self.scratch = os.path.join(module.tmpdir, "packages")
        os.makedirs(self.scratch, exist_ok=True)

    def run(self, *argv: str, cwd: str | None = None) -> tuple[int, str, str]:
        """Runs a command with a plain locale and a deadline."""
        return self.runner(*argv, seconds=DEADLINE, environ=PLAIN, cwd=cwd)

    def folder(self, name: str, *others: str) -> str:
        """A new folder with links to all that is in OTHERS."""
        path = os.path.join(self.scratch, name)
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path)
        for other in others:
            for entry in glob.glob(os.path.join(other, "*")):
                if os.path.isfile(entry):
                    os.symlink(entry, os.path.join(path, os.path.basename(entry)))
        return path

    def write(self, *parts: str, text: str | bytes) -> str:
        """Writes a file of the scratch folder; its path."""
        path = os.path.join(self.scratch, *parts)
        with open(path, "wb") as handle:
            handle.write(text.encode() if isinstance(text, str) else text)
        return path

    def key(self, source: Mapping[str, Any], number: int) -> str:
        """Path of a source's key, which must be the one it should be."""
        if not source.get("key_url"):
            return str(source["signed_by"])
        url = source["key_url"]
        response, info = fetch_url(self.module, url, timeout=30)
        if info["status"] != 200:
            raise Unreadable(f"{url}: {info['msg']} (status {info['status']})")
        data = response.read()
        try:
            found = _openpgp.fingerprints(data)
        except ValueError as error:
            raise Unreadable(f"{url}: what came {error}") from error
        if sorted(found) != sorted("".join(text.split()).upper() for text in source["fingerprints"]):
            raise Unreadable(f"{url}: the key has the fingerprint {', '.join(found)}")
        armored = data.lstrip().startswith(b"-----BEGIN")
        return self.write(f"key-{number}.{'asc' if armored else 'gpg'}", text=data)


class Apt(Simulator):
    """apt-get --simulate, with all sources and pins that there will be: a later stage runs with those of an earlier one."""

    def __init__(self, module: AnsibleModule, transactions: list[dict[str, Any]]) -> None:
        super().__init__(module)
        self.options: list[str] = []
        self.unreadable: dict[str, str] = {}
        sources = [source for item in transactions for source in item["sources"]]
        retired = {path for item in transactions for path in item["retired"]}
        if sources or retired or not glob.glob(os.path.join(LISTS, "*_Packages*")):
            self.look_aside(sources, retired)
        pins = {pin: item["name"] for item in transactions for pin in item["pins"] if not self.why_not(item)}
        if pins:
            self.options += self.pinned(pins)

    def why_not(self, wanted: Mapping[str, Any]) -> str | None:
        """Why nothing is known of a transaction."""
        told = (self.unreadable.get(str(what)) for what in (*wanted["sources"], wanted["name"]))
        return next((reason for reason in told if reason), None)

    def look_aside(self, sources: list[dict[str, Any]], retired: set[str]) -> None:
        """Lists of our own: links to those of the host, which stay as they are. A host without any gets all of them, aside."""
        empty = not glob.glob(os.path.join(LISTS, "*_Packages*"))
        os.makedirs(os.path.join(self.folder("lists", LISTS), "partial"))
        everything = self.folder("sources", SOURCES)
        for path in retired:
            name = os.path.join(everything, os.path.basename(path))
            if os.path.dirname(path) == SOURCES and os.path.lexists(name):
                os.unlink(name)
        base = _options(
            [
                *(f"Dir::{name}={os.path.join(self.scratch, place)}" for name, place in ASIDE.items()),
                "APT::Get::List-Cleanup=0",
                "Acquire::Languages=none",
                # A simulation is no reason to wait long for what does not answer.
                "Acquire::Retries=0",
                "Acquire::http::Timeout=20",
                "Acquire::https::Timeout=20",
            ]
        )
        # An update makes its cache of just what it read.
        update = ["apt-get", "update", *base, *_options(["Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="])]
        if empty:
            self.run(*update)
        self.options = [*base, *_options([f"Dir::Etc::SourceParts={everything}"])]
        added = self.folder("added")
        only = _options([f"Dir::Etc::SourceParts={added}", "Dir::Etc::SourceList=/dev/null"])
        for number, source in enumerate({str(source): source for source in sources}.values()):
            name = f"baremetal-nim-{number}.sources"
            try:
                text = _stanza(source, self.key(source, number))
            except Unreadable as error:
                self.unreadable[str(source)] = str(error)
                continue
            self.write("added", name, text=text)
            code, out, err = self.run(*update, *only, "-o", "APT::Update::Error-Mode=any")
            os.unlink(os.path.join(added, name))
            if code:
                self.unreadable[str(source)] = " ".join((err or out).split())[-400:]
            else:
                self.write("sources", name, text=text)

    def pinned(self, pins: Mapping[str, str]) -> list[str]:
        """Options that show apt the preferences that packages, each of a transaction, bring."""
        preferences = self.folder("preferences", PREFERENCES)
        for pin, name in pins.items():
            folder = self.folder("pin")
            code, out, err = self.run("apt-get", *self.options, "download", pin, cwd=folder)
            if code:
                self.unreadable[name] = _transaction.parse_apt(out, code, err)["error"]
                continue
            for archive in glob.glob(os.path.join(folder, "*.deb")):
                self.run("dpkg-deb", "--extract", archive, folder)
            for path in glob.glob(os.path.join(folder, PREFERENCES.lstrip("/"), "*")):
                place = os.path.join(preferences, os.path.basename(path))
                if os.path.lexists(place):
                    os.unlink(place)
                shutil.copy(path, place)
        return _options([f"Dir::Etc::PreferencesParts={preferences}"])

    def simulate(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """One installation."""
        reason = self.why_not(wanted)
        if reason:
            return _transaction.parse_apt("", 1, reason)
        options = self.options
        words = ["--allow-downgrades"] if wanted["downgrade"] else []
        words += ["--allow-change-held-packages"] if wanted["change_held"] else []
        command = ["apt-get", "--simulate", "--yes", "--no-install-recommends", "-o", "Debug::NoLocking=1"]
        code, out, err = self.run(*command, *options, *words, "install", *wanted["packages"])
        found = _transaction.parse_apt(out, code, err)
        if found["removed"]:
            there = self.run("dpkg-query", "--status", *found["removed"])[1]
            coming = [*found["installed"], *found["upgraded"]]
            shown = self.run("apt-cache", *options, "show", "--no-all-versions", *coming)[1] if coming else ""
            data = {**_transaction.relations(shown), **_transaction.relations(there)}
            found["causes"] = _transaction.causes(found["removed"], data, coming)
        return found

    def held(self) -> list[str]:
        """Packages on hold."""
        return self.run("apt-mark", "showhold")[1].split()


class Dnf(Simulator):
    """dnf --assumeno."""

    def __init__(self, module: AnsibleModule, _transactions: list[dict[str, Any]]) -> None:
        super().__init__(module)

    def simulate(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """One installation."""
        folder = self.folder("repositories")
        for number, source in enumerate(wanted["sources"]):
            # Nothing is installed from it here.
            lines = [
                f"[baremetal-nim-{number}]",
                "name=simulated",
                f"baseurl={source['baseurl']}",
                "enabled=1",
                "gpgcheck=0",
                "repo_gpgcheck=0",
            ]
            self.write("repositories", f"baremetal-nim-{number}.repo", text="\n".join(lines) + "\n")
        places = [
            path
            for path in ("/etc/yum.repos.d", "/etc/distro.repos.d", "/usr/share/dnf5/repos.d")
            if os.path.isdir(path)
        ]
        command = ["dnf", "--assumeno", "--setopt=install_weak_deps=False"]
        command += [f"--setopt=reposdir={','.join([*places, folder])}"] if wanted["sources"] else []
        command += ["--allowerasing"] if wanted["erase"] else []
        return _transaction.parse_dnf(*_in_order(self.run(*command, "install", *wanted["packages"])))

    def held(self) -> list[str]:
        """dnf leaves locked packages alone by itself."""
        return []


def _stanza(source: Mapping[str, Any], key: str) -> str:
    fields = {"Types": "deb", "URIs": " ".join(source["uris"]), "Suites": " ".join(source["suites"])}
    if source.get("components"):
        fields["Components"] = " ".join(source["components"])
    fields["Signed-By"] = key
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def _options(settings: Iterable[str]) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]


def _in_order(answer: tuple[int, str, str]) -> tuple[str, int, str]:
    code, out, err = answer
    return out, code, err


def judged(simulator: Apt | Dnf, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A simulated installation with what speaks against it."""
    transaction = simulator.simulate(wanted)
    moved = transaction["upgraded"] or transaction["downgraded"] or transaction["removed"]
    return {
        **transaction,
        "packages": wanted["packages"],
        "problems": _transaction.problems(
            transaction,
            wanted["packages"],
            wanted["replaces"],
            wanted["downgrades"] if wanted["downgrade"] else "",
            simulator.held() if moved else [],
        ),
        "unresolved": _transaction.unresolved(transaction),
    }


def together(simulator: Apt | Dnf, transactions: list[dict[str, Any]]) -> dict[str, Any]:
    """All at once, which takes a third of the time; empty when anything speaks against that: then each is looked at alone."""
    if len(transactions) < 2:
        return {}
    joint = {
        **transactions[0],
        "packages": [package for item in transactions for package in item["packages"]],
        **{name: any(item[name] for item in transactions) for name in ("downgrade", "change_held", "erase")},
        **{name: "|".join(item[name] for item in transactions if item[name]) for name in ("replaces", "downgrades")},
        "sources": [source for item in transactions for source in item["sources"]],
    }
    found = judged(simulator, joint)
    if found["error"] or found["problems"]:
        return {}
    return {item["name"]: {**found, "packages": item["packages"]} for item in transactions}


def main() -> None:
    """Entry point."""
    text = {"type": "str", "default": ""}
    no = {"type": "bool", "default": False}
    module = AnsibleModule(
        argument_spec={
            "manager": {"type": "str", "choices": ["apt", "dnf"], "required": True},
            "transactions": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "packages": {"type": "list", "elements": "str", "required": True},
                    "pins": {"type": "list", "elements": "str", "default": []},
                    "sources": {"type": "list", "elements": "dict", "default": []},
                    "retired": {"type": "list", "elements": "path", "default": []},
                    "replaces": text,
                    "downgrade": no,
                    "downgrades": text,
                    "change_held": no,
                    "erase": no,
                },
            },
        },
        supports_check_mode=True,
    )
    simulators: dict[str, Callable[..., Apt | Dnf]] = {"apt": Apt, "dnf": Dnf}
    simulator = simulators[module.params["manager"]](module, module.params["transactions"])
    found = together(simulator, module.params["transactions"])
    if not found:
        found = {item["name"]: judged(simulator, item) for item in module.params["transactions"]}
    module.exit_json(changed=False, transactions=found)


if __name__ == "__main__":
    main()
