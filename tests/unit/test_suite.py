# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs all other tests: nothing that failed, and nothing that never ran, passes."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("suite", ROOT / "tests/suite.py")
suite = importlib.util.module_from_spec(spec)
sys.modules["suite"] = suite
spec.loader.exec_module(suite)


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "LOGS", tmp_path / "logs")


def job(name, script, **options):
    return suite.Job(name, ["sh", "-c", script], 1, **options)


def run(jobs, at_a_time=2):
    """Whether all passed, and the result of each by name."""
    passed = suite.Suite(jobs, at_a_time).run()
    return passed, {item.name: item.result for item in jobs}


def test_a_failure_hides_no_other_job_and_is_shown_whole(capsys):
    jobs = [job("first", "echo one; echo two; exit 3"), job("second", "echo quiet"), job("third", "false")]
    passed, results = run(jobs)
    assert not passed
    assert results == {"first": "FAILED (3)", "second": "passed", "third": "FAILED (1)"}
    output = capsys.readouterr().out
    assert "----- output of first -----\none\ntwo\n----- end of first -----" in output
    assert "quiet" not in output
    rows = [line.split()[:2] for line in output[output.index("JOB ") :].splitlines()[1:4]]
    assert rows == [["first", "FAILED"], ["second", "passed"], ["third", "FAILED"]]


def test_all_passed(capsys):
    passed, results = run([job("only", "echo build done; echo noise", shown="^build")])
    assert passed and results == {"only": "passed"}
    output = capsys.readouterr().out
    assert "build done" in output and "noise" not in output


def test_what_needs_a_job_that_failed_is_a_failure_and_never_begins(tmp_path):
    jobs = [
        job("images", "false"),
        job("hosts", f"touch {tmp_path}/began", after=("images",)),
        job("tests", f"touch {tmp_path}/began", after=("hosts",)),
        job("other", "true"),
    ]
    passed, results = run(jobs)
    assert not passed and not (tmp_path / "began").exists()
    assert results["hosts"] == "FAILED (not run: images failed)"
    assert results["tests"] == "FAILED (not run: hosts failed)"
    assert results["other"] == "passed"


def test_what_is_needed_comes_first(tmp_path):
    order = tmp_path / "order"
    jobs = [
        job("long", f"echo long >> {order}", after=("short",)),
        job("short", f"sleep 0.2; echo short >> {order}"),
    ]
    assert run(jobs)[0] and order.read_text().split() == ["short", "long"]


@pytest.mark.parametrize(
    ("last", "result", "counts"),
    [
        ("======= 3 passed, 1 skipped in 2.50s =======", "passed", {"passed": 3, "skipped": 1}),
        ("3852 passed, 2 skipped in 211.24s (0:03:31)", "passed", {"passed": 3852, "skipped": 2}),
        ("======= 2 skipped in 0.01s =======", "FAILED (no test ran)", {"skipped": 2}),
        ("======= no tests ran in 0.01s =======", "FAILED (no test ran)", {}),
        ("", "FAILED (no test ran)", {}),
        # What a test prints is no verdict.
        ("the server said: 5 passed the gate", "FAILED (no test ran)", {}),
    ],
)
def test_a_scenario_without_tests_did_not_pass(last, result, counts):
    item = job("scenario", f"echo '{last}'", tests=True)
    passed, results = run([item])
    assert results == {"scenario": result} and passed == (result == "passed")
    assert item.counts() == counts


def test_failures_and_errors_are_counted():
    item = job("scenario", "echo '=== 2 failed, 7 passed, 1 error in 9.00s ==='; exit 1", tests=True)
    run([item])
    assert item.counts() == {"failed": 2, "passed": 7, "error": 1}


def test_what_hangs_is_stopped_with_everything_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "LIMIT", 0.5)
    jobs = [job("hangs", f"(sleep 60; touch {tmp_path}/lived) & sleep 60"), job("other", "true")]
    passed, results = run(jobs)
    assert not passed and results == {"hangs": "stopped after 0.5 s", "other": "passed"}


def test_never_more_than_so_many_at_a_time(tmp_path):
    count = f"touch {tmp_path}/$$; ls {tmp_path} | grep -c '^[0-9]*$' >> {tmp_path}/seen; sleep 0.1; rm {tmp_path}/$$"
    assert run([job(f"job{number}", count) for number in range(6)])[0]
    assert max(int(line) for line in (tmp_path / "seen").read_text().split()) <= 2


def test_output_of_any_bytes_is_shown(capsys):
    run([job("binary", "printf '\\377\\376 broken\\n'; exit 1")])
    assert "broken" in capsys.readouterr().out


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(SystemExit) as error:
        suite.plan(["defualt"])
    assert "unknown: defualt" in str(error.value) and "default" in str(error.value)


def test_every_folder_of_molecule_is_a_scenario_and_every_scenario_a_folder():
    folders = {path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")}
    assert folders == {item.folder for item in suite.SCENARIOS.values()}


def test_plan_gives_each_scenario_a_lab_of_its_own_and_what_it_needs():
    jobs = {item.name: item for item in suite.plan(["lint", *suite.SCENARIOS])}
    labs = [item.env["LAB_SITE"] for item in jobs.values() if item.env]
    assert len(labs) == len(set(labs))
    for name, item in suite.SCENARIOS.items():
        if item.start == "converged":
            assert jobs[name].after == ("converge",)
    assert jobs["default"].after == ("images",) and jobs["vllm"].after == ("vllm-image",)
    assert jobs["converge"].after == jobs["vllm-image"].after == ("images",) and not jobs["lint"].after
    assert [item.name for item in suite.plan(["lint"])] == ["lint"]
    assert [item.name for item in suite.plan(["default"])] == ["images", "default"]


def test_what_the_next_ansible_core_refuses_is_a_failure():
    passed, results = run(
        [job("old", "echo '[DEPRECATION WARNING]: Importing x is deprecated.'; echo 1 passed in 2 s")]
    )
    assert not passed and results == {"old": "FAILED (deprecated)"}
