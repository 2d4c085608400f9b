# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make matrix` runs: each version with its own toolbox, and no version that is missing passes for one that ran."""

from __future__ import annotations

import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def matrix(monkeypatch):
    """Return tests/matrix.py; what it imports lies beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    for name in ("matrix", "suite", "versions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("matrix")
    for name in ("matrix", "suite", "versions"):
        sys.modules.pop(name, None)


def plan(matrix, names, quick=False):
    known = matrix.versions.versions()
    wanted = [matrix.versions.version(name, known) for name in names]
    return {job.name: job for job in matrix.Plan(wanted, quick, "faults").jobs}


def test_a_whole_run_uses_the_toolbox_of_each_version(matrix):
    jobs = plan(matrix, ["2.20", "hosts"])
    assert list(jobs) == [
        "2.20-toolbox", "2.20-lint", "2.20-unit", "2.20-build", "2.20-faults", "hosts-toolbox", "hosts-unit", "hosts-plays",
    ]  # fmt: skip
    for name, target in (("toolbox", "venv"), ("lint", "lint"), ("unit", "unit"), ("build", "build")):
        assert jobs[f"2.20-{name}"].command == ["make", "--no-print-directory", target, "CORE=2.20"]
    assert jobs["2.20-faults"].command[2:] == ["molecule", "CORE=2.20", "SCENARIO=faults"]
    assert all(job.env["CORE"] == name.partition("-")[0] for name, job in jobs.items())
    assert all(
        job.after == ("2.20-toolbox",) for name, job in jobs.items() if "2.20-" in name and "toolbox" not in name
    )
    assert jobs["hosts-unit"].command == ["tests/hosts.sh", ".venv-2.20"]
    assert jobs["hosts-unit"].after == ("hosts-toolbox", "2.20-toolbox")
    assert jobs["hosts-plays"].command[0] == ".venv-2.20/bin/python"
    assert jobs["hosts-plays"].env["HOST_PYTHON"].endswith("/.venv-hosts/bin/python")
    assert [name for name, job in jobs.items() if job.tests] == ["2.20-unit", "hosts-unit", "hosts-plays"]


def test_a_quick_run_starts_no_lab(matrix):
    jobs = plan(matrix, ["2.21", "hosts"], quick=True)
    assert list(jobs) == ["2.21-toolbox", "2.21-lint", "2.21-unit", "hosts-toolbox", "hosts-unit"]
    paths = [word for word in jobs["2.21-unit"].command if word.startswith("tests/")]
    assert paths and all((ROOT / path).exists() for path in [*paths, *matrix.PLAYS])
    assert jobs["hosts-unit"].command == ["tests/hosts.sh", ".venv-2.21", "-m", "not exhaustive"]


def test_the_hosts_part_alone_gets_what_the_usual_toolbox_sends(matrix):
    assert plan(matrix, ["hosts"])["hosts-unit"].command == ["tests/hosts.sh", ".venv"]


def test_each_version_has_its_turn_and_the_usual_one_has_none(matrix):
    known = matrix.versions.versions()
    first = [matrix.turns(known, f"{number:08x}{'f' * 32}")[0].name for number in range(4)]
    assert first == ["2.20", "2.21", "hosts", "2.20"]
    assert [item.name for item in matrix.turns(known, "")] == ["2.20", "2.21", "hosts"]


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--quick"], 0), (["2.21"], 1), (["2.20"], 0)])
def test_a_version_without_its_python_is_told_and_fails_a_whole_run(matrix, monkeypatch, capsys, arguments, code):
    ran = []
    monkeypatch.setattr(
        matrix, "missing", lambda item: "ansible-core 2.21 wants Python 3.12" if item.name == "2.21" else ""
    )
    monkeypatch.setattr(matrix, "record", lambda item: f"ran {item.name}")
    monkeypatch.setattr(matrix.suite.Suite, "run", lambda self: ran.extend(job.name for job in self.jobs) or True)
    monkeypatch.setattr(sys, "argv", ["matrix.py", *arguments])
    monkeypatch.setattr(matrix.signal, "signal", lambda *_: None)
    monkeypatch.setattr(matrix, "head", lambda: "")
    assert matrix.main() == code
    assert not [name for name in ran if name.startswith("2.21")]
    told = capsys.readouterr().out
    assert ("SKIPPED [1] ansible-core 2.21 wants Python 3.12\n" in told) == (arguments != ["2.20"])
    if arguments == ["--quick"]:
        assert "it is the turn of ansible-core 2.20;" in told
        assert {name.partition("-")[0] for name in ran} == {"2.20"}


def test_the_last_python_that_a_version_ran_on_is_compared_with_the_record(matrix, monkeypatch):
    version = matrix.versions.versions()[1]._replace(ran=["3.13"])
    for number, words in (((3, 13, 0), "as tests/versions.txt says"), ((3, 14, 1), "add that to ran")):
        monkeypatch.setattr(
            matrix.versions, "ask", lambda _path, number=number: matrix.versions.Python(number, "/python3")
        )
        assert words in matrix.record(version)
