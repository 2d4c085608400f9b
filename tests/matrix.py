#!/usr/bin/env python3
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the tests with other versions than the toolbox's: tests/matrix.py [--quick] [--scenario NAME] [VERSION...]

Without VERSION it runs every line of tests/versions.txt: lint, unit tests, build and one scenario with each ansible-core, and the
unit tests of what runs on hosts by their oldest Python. A version that this machine has no Python for is told, and is a failure.

--quick is the part that `make test` runs: what depends on ansible-core, with one version besides the toolbox's, or the hosts' part;
another one for each commit.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys

import suite
import versions

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: It runs most playbooks, on bare hosts and on converged ones.
SCENARIO = "default"
#: Of lint, what asks ansible-core.
LINT = ("mypy", "syntax", "plugin docs")
#: Of the unit tests, what runs in ansible-core or calls it, without the longest; modules run in the hosts' part.
UNIT = (
    "tests/unit/plugins/action",
    "tests/unit/plugins/filter",
    "tests/unit/test_driver_role.py",
    "tests/unit/test_host_python.py",
    "tests/unit/test_image_labels.py",
    "tests/unit/test_preflight_role.py",
    "tests/unit/test_registry_role.py",
    "tests/unit/test_status_playbook.py",
    "tests/unit/test_toolkit_role.py",
    "tests/unit/test_versions.py",
)


#: Plays whose modules run on this machine as they do on a host.
PLAYS = tuple(
    f"tests/unit/test_{name}.py"
    for name in (
        "benchmark_playbook",
        "driver_role",
        "image_labels",
        "registry_role",
        "status_playbook",
        "toolkit_role",
    )
)
SHOWN = r"^(SKIPPED|hosts:|\d+ passed|.* is missing on this machine)"


def toolbox(name: str) -> str:
    """The folder of a version's toolbox."""
    return f".venv-{name}" if name else ".venv"


class Plan:
    """The jobs of some versions."""

    def __init__(self, wanted: list[versions.Version], quick: bool, scenario: str) -> None:
        self.quick, self.scenario = quick, scenario
        self.jobs: list[suite.Job] = []
        cores = [item.name for item in wanted if item.name != versions.HOSTS]
        for item in wanted:
            self.add(item.name, "toolbox", self.make("venv", item.name))
            if item.name == versions.HOSTS:
                self.hosts(cores[-1] if cores else "")
            elif quick:
                self.some(item.name)
            else:
                self.whole(item.name)

    def add(
        self, name: str, part: str, command: list[str], after: tuple[str, ...] = (), tests: bool = False, **env: str
    ) -> None:
        """One part of what is run with a version. after: the names of those whose toolboxes it needs."""
        # Settings of the make that called this are not those of the ones that are called.
        env = {"MAKEFLAGS": "", "CORE": name, **env}
        needs = tuple(f"{item}-toolbox" for item in after if item)
        self.jobs.append(suite.Job(f"{name}-{part}", command, 0, env, after=needs, tests=tests, shown=SHOWN))

    def make(self, target: str, name: str, *words: str) -> list[str]:
        """The command that makes a target with the toolbox of a version."""
        return ["make", "--no-print-directory", target, f"CORE={name}", *words]

    def pytest(self, name: str, *tests: str) -> list[str]:
        """The command that runs some unit tests with the toolbox of a version."""
        return [f"{toolbox(name)}/bin/python", "-m", "pytest", "-q", "-rs", *tests]

    def some(self, name: str) -> None:
        """What depends on ansible-core."""
        self.add(name, "lint", ["tests/lint.sh", *LINT], after=(name,))
        self.add(name, "unit", self.pytest(name, *UNIT), after=(name,), tests=True)

    def whole(self, name: str) -> None:
        """Everything, and a scenario."""
        self.add(name, "lint", self.make("lint", name), after=(name,))
        self.add(name, "unit", self.make("unit", name), after=(name,), tests=True)
        self.add(name, "build", self.make("build", name), after=(name,))
        self.add(name, self.scenario, self.make("molecule", name, f"SCENARIO={self.scenario}"), after=(name,))

    def hosts(self, sender: str) -> None:
        """What runs on hosts. sender: the version whose module_utils they get; empty for .venv's."""
        name = versions.HOSTS
        command = ["tests/hosts.sh", toolbox(sender)]
        if self.quick:
            # `make unit` has tried every case and more examples.
            command += ["-m", "not exhaustive"]
        env = {"TEST_EXAMPLES": "20"} if self.quick else {}
        self.add(name, "unit", command, after=(name, sender), tests=True, **env)
        if not self.quick:
            python = str(ROOT / toolbox(name) / "bin/python")
            self.add(name, "plays", self.pytest(sender, *PLAYS), after=(name, sender), tests=True, HOST_PYTHON=python)


def turns(known: list[versions.Version], commit: str) -> list[versions.Version]:
    """The versions besides .venv's, the one whose turn it is first: each commit has its own."""
    others = known[1:]
    # Where git tells no commit, it is the turn of the first.
    turn = int(commit[:8], 16) if re.fullmatch("[0-9a-f]{8,}", commit) else 0
    turn %= len(others)
    return others[turn:] + others[:turn]


def head() -> str:
    """The commit of this checkout; empty where there is none."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def missing(version: versions.Version) -> str:
    """Why a version cannot run on this machine; empty where it can."""
    try:
        versions.choose(version, os.environ.get("PYTHON", ""), usual=False)
    except versions.Missing as problem:
        return str(problem)
    return ""


def record(version: versions.Version) -> str:
    """Whether versions.txt tells the Python that a version has just run on."""
    found = versions.ask(os.path.realpath(ROOT / toolbox(version.name) / "bin/python"))
    python = versions.text(found.number[:2]) if found else "of another kind"
    if python in version.ran:
        return f"matrix: {version.title} passed on Python {python}, as tests/versions.txt says"
    return f"matrix: {version.title} passed on Python {python}: add that to ran in tests/versions.txt, then make docs"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scenario", default=SCENARIO)
    parser.add_argument("version", nargs="*")
    options = parser.parse_args()
    known = versions.versions()
    try:
        wanted = [versions.version(name, known) for name in options.version] or known
    except versions.Missing as problem:
        parser.error(str(problem))
    absent = {item.name: missing(item) for item in wanted}
    here = [item for item in wanted if not absent[item.name]]
    if options.quick and not options.version:
        here = [item for item in turns(known, head()) if item in here][:1]
        titles = " and ".join(item.title for item in here) or "nobody"
        print(f"matrix: it is the turn of {titles}; all: make matrix", flush=True)
    runner = suite.Suite(Plan(here, options.quick, options.scenario).jobs, int(os.environ.get("TEST_JOBS") or 2))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        passed = runner.run()
    finally:
        runner.stop()
    # Nothing else can be done about them here; whoever asks for all of it is told that it is not all.
    reasons = [reason for reason in absent.values() if reason]
    print("".join(f"SKIPPED [1] {reason}\n" for reason in reasons), end="")
    if passed and not options.quick:
        print("".join(f"{record(item)}\n" for item in here), end="")
    return 0 if passed and (options.quick or not reasons) else 1


if __name__ == "__main__":
    sys.exit(main())
