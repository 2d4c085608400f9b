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
