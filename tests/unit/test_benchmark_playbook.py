# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/benchmark.yml as it is, but for the role that finds and proves the endpoints: here they are given."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from ansible_collections.baremetal.nim.plugins.plugin_utils._benchmark_options import OPTIONS, SET_BY_THE_STAGE
from ansible_collections.baremetal.nim.tests.unit.role_play import HERE, play_book
from ansible_collections.baremetal.nim.tests.unit.steady_server import MODEL, steady

ROOT = pathlib.Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"


def service(name, url, **changes):
    return {
        "name": name,
        "url": url,
        "image": "nvcr.io/nim/x:1",
        "devices": [0],
        "start_timeout": 60,
        "verify": {},
        **changes,
    }


@pytest.fixture
def run(tmp_path):
    """Runs the playbook for hosts with services; returns exit status, output and the report."""

    def play(hosts, *args, check=False, environment=None, **extra):
        (entry,) = yaml.safe_load((ROOT / "playbooks/benchmark.yml").read_text())
        block = next(task["block"] for task in entry["tasks"] if "block" in task)
        role = next(task for task in block if "ansible.builtin.include_role" in task)
        assert role.pop("ansible.builtin.include_role") == {"name": "baremetal.nim.nim_service", "tasks_from": "verify"}
        role["ansible.builtin.set_fact"] = {"nim_service_endpoints": "{{ services }}"}
        entry["become"] = False
        (tmp_path / "play.yml").write_text(yaml.safe_dump([entry]))
        report = tmp_path / "report"
        # Defaults would take half a minute each.
        options = {"concurrency": [1, 2], "requests": 6, "output_tokens": 4, "input_tokens": 16}
        extra = {"nim_benchmark_report": str(report), "nim_benchmark": options, **extra}
        code, output = play_book(
            tmp_path,
            str(tmp_path / "play.yml"),
            {name: {"services": services} for name, services in hosts.items()},
            *args,
            extra=extra,
            common=HERE,
            environment=environment,
        )
        path = tmp_path / "report.json"
        return code, output, json.loads(path.read_text()) if path.exists() else None

    return play


def test_hosts_are_measured_and_reported(run, tmp_path):
    with steady(ttft=0.05) as url:
        hosts = {
            "gpu01": [service("llama", url, model=MODEL), service("embed", url, verify={"probes": ["health"]})],
            "gpu02": [service("llama", NOBODY)],
        }
        code, output, report = run(hosts)
        assert code == 2, output
        found = {(entry["host"], entry["service"]): entry for entry in report["benchmarks"]}
        # What answers readiness only is not asked to chat.
        assert set(found) == {("gpu01", "llama"), ("gpu02", "llama")}
        good, bad = found["gpu01", "llama"], found["gpu02", "llama"]
        assert (good["failure"], [step["completed"] for step in good["steps"]]) == (None, [6, 6])
        assert bad["failure_class"] == "unreachable" and "no connection" in bad["failure"]
        page = (tmp_path / "report.html").read_text()
        assert page.count("data-plot=") == 5 and "1 of 2 benchmarks failed" in page
        # The run before is the baseline of the next.
        before = tmp_path / "before.json"
        before.write_text(json.dumps({"benchmarks": [{**good, "steps": [faster(step) for step in good["steps"]]}]}))
        code, output, report = run({"gpu01": hosts["gpu01"]}, nim_benchmark_baseline=str(before))
    assert code == 2 and report["benchmarks"][0]["failure_class"] == "slow", output
    assert "worse than the baseline" in report["benchmarks"][0]["failure"]


def faster(step):
    return {**step, "requests_per_s": step["requests_per_s"] * 10}


def test_what_nobody_reads_is_refused_before_the_load(run):
    """The table of what is refused is with the filter."""
    options = {"gate": [{"metric": "ttft_ms", "max": 1}], "concurency": [1]}
    code, output, report = run({"gpu01": [service("llama", NOBODY)]}, nim_benchmark=options)
    assert code != 0 and report is None
    words = "nim_benchmark: the unknown key 'gate'. Did you mean 'gates'?; the unknown key 'concurency'. Did you mean 'concurrency'?"
    assert words in " ".join(output.split()), output
    assert "Prove every endpoint" not in output


def test_a_misspelt_variable_is_refused(run):
    code, output, report = run({"gpu01": [service("llama", NOBODY)]}, nim_benchmark_basline="before.json")
    assert code != 0 and report is None
    assert "nim_benchmark_basline is read by nobody. Did you mean 'nim_benchmark_baseline'?" in " ".join(output.split())


def test_options_may_be_a_text_as_the_command_line_gives_it(run):
    with steady(ttft=0.05) as url:
        options = json.dumps(
            {"concurrency": [2], "requests": 3, "output_tokens": 4, "gates": [{"metric": "ttft_ms", "max": 1}]}
        )
        code, _output, report = run({"gpu01": [service("llama", url, model=MODEL)]}, nim_benchmark=options)
    (found,) = report["benchmarks"]
    assert (code, [step["level"] for step in found["steps"]], found["failure_class"]) == (2, [2], "slow")


def test_every_option_of_the_module_is_read():
    """Those that the stage refuses are set by nobody but itself."""
    (entry,) = yaml.safe_load((ROOT / "playbooks/benchmark.yml").read_text())
    block = next(task["block"] for task in entry["tasks"] if "block" in task)
    given = next(task["baremetal.nim.nim_benchmark"] for task in block if "baremetal.nim.nim_benchmark" in task)
    read = {name for name, value in given.items() if f"__nim_benchmark.{name} " in value}
    assert read == set(OPTIONS)
    assert set(OPTIONS) | set(SET_BY_THE_STAGE) == set(_benchmark.ARGUMENT_SPEC)


def test_a_service_that_the_baseline_does_not_have_is_told(run, tmp_path):
    before = tmp_path / "before.json"
    before.write_text(json.dumps({"benchmarks": [{"host": "gpu09", "service": "llama", "steps": []}]}))
    with steady() as url:
        code, _output, report = run({"gpu01": [service("llama", url, model=MODEL)]}, nim_benchmark_baseline=str(before))
    (found,) = report["benchmarks"]
    assert (code, found["failure_class"], found["steps"]) == (2, "not_comparable", [])
    assert "or has none of this endpoint" in found["failure"]


def test_a_run_that_measures_nothing_fails(run, tmp_path):
    code, output, report = run({"gpu01": [service("embed", NOBODY, verify={"probes": ["embedding"]})]})
    assert code == 2 and "No endpoint was measured, wanted one that chats on nim_servers" in output
    assert report["benchmarks"] == [] and "nothing was measured" in (tmp_path / "report.html").read_text()


def test_check_mode_sends_and_writes_nothing(run, tmp_path):
    code, output, report = run({"gpu01": [service("llama", NOBODY)]}, "--check")
    assert code == 0 and report is None, output
    assert not (tmp_path / "report.html").exists()


def test_without_the_library_nothing_is_sent(run, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no plots')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with steady() as url:
        code, output, report = run({"gpu01": [service("llama", url)]}, environment={"PYTHONPATH": path})
    assert code != 0 and report is None
    assert "matplotlib" in output and "on the controller" in output
    assert "Measure each endpoint" not in output
