# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/status.yml as it is, but for what hosts that can be reached say of themselves: that is given."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import yaml
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, NimServer, send
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_book

ROOT = pathlib.Path(__file__).parents[2]


def service(name, url, **unit):
    state = {"name": f"nim-{name}.service", "exists": True, "active": "active", "sub": "running", "restarts": 0}
    record = {"url": url, "model": MODEL, "gpus": ["0"], "deployed_at": "2026-11-23T17:30:12Z", "history": []}
    return {name: {"unit": {**state, "uptime": 60.0, **unit}, "record": record}}


@pytest.fixture
def run(tmp_path):
    """Runs the playbook for hosts with their services, None for one that is away; returns exit status and output."""

    def play(hosts, *args, **extra):
        (entry,) = yaml.safe_load((ROOT / "playbooks/status.yml").read_text())
        entry["become"] = False
        block = next(task["block"] for task in entry["tasks"] if "block" in task)
        # The role itself, where the host is away.
        assert block[0]["ansible.builtin.include_role"] == {
            "name": "baremetal.nim.preflight",
            "tasks_from": "read_host",
        }
        block[0]["when"] = "services is not defined"
        # A task that is skipped registers that, so the failure comes first.
        block.insert(
            0,
            {
                "name": "Break",
                "ansible.builtin.fail": {"msg": "no sudo"},
                "register": "preflight_host",
                "when": "broken | default(false)",
            },
        )
        give = {"name": "Give", "ansible.builtin.set_fact": {"preflight_host": {"services": "{{ services }}"}}}
        block.insert(2, {**give, "when": "services is defined"})
        (tmp_path / "play.yml").write_text(yaml.safe_dump([entry]))
        variables = {
            name: AWAY if found is None else {**HERE, "services": found, "broken": found == {"broken": True}}
            for name, found in hosts.items()
        }
        return play_book(tmp_path, str(tmp_path / "play.yml"), variables, *args, extra=extra)

    return play


def test_a_fleet_that_is_well(run, tmp_path):
    report = tmp_path / "status.json"
    hosts = {"gpu01": service("llama", "http://127.0.0.1:8000"), "gpu02": {}}
    code, output = run(hosts, nim_status=str(report))
    assert code == 0, output
    assert re.search(r"gpu01 +llama .*active \(running\) +1 min", output)
    assert re.search(r"gpu02 .* no services", output)
    items = json.loads(report.read_text())
    assert [(item["host"], item["service"], item["problem"]) for item in items] == [
        ("gpu01", "llama", None),
        ("gpu02", None, None),
    ]


BAD = {
    "gpu01": {
        **service("llama", "http://127.0.0.1:8000"),
        **service("phi", "http://127.0.0.1:8001", active="failed", sub="failed", result="exit-code", restarts=10),
    },
    "gpu02": None,
    "gpu03": {"broken": True},
    "gpu04": service("llama", "http://127.0.0.1:8000"),
}


@pytest.mark.parametrize("first", ["gpu01", "gpu02", "gpu03"])
def test_what_is_not_well_is_told_and_fails(run, tmp_path, first):
    """Whichever host comes first writes for all, also one that is away."""
    report = tmp_path / "status.json"
    hosts = {name: BAD[name] for name in sorted(BAD, key=lambda name: (name != first, name))}
    code, output = run(hosts, nim_status=str(report))
    assert code == 2, output
    problems = {item["host"]: item["problem"] for item in json.loads(report.read_text()) if item["problem"]}
    assert set(problems) == {"gpu01", "gpu02", "gpu03"}
    for problem in problems.values():
        assert problem["message"].replace('"', '\\"') in output
    assert "service phi: nim-phi.service is failed (exit-code) after 10 restarts" in problems["gpu01"]["seen"]
    assert re.fullmatch(r"host unreachable \(Failed to connect .*Connection refused\)", problems["gpu02"]["seen"])
    assert problems["gpu03"]["seen"] == "host not read (no sudo)"
    assert re.search(r"gpu02 .* unreachable ", output) and re.search(r"gpu03 .* not read ", output)
    assert re.search(r"gpu04 +: .*failed=0", output)


def test_the_switch(run):
    code, output = run(BAD, nim_status_fail=False)
    assert code == 0, output
    assert re.search(r"gpu02 .* unreachable ", output)


def test_json_in_place_of_the_table(run):
    code, output = run({"gpu01": service("llama", "http://127.0.0.1:8000")}, nim_status_format="json")
    assert code == 0 and "UPTIME" not in output, output
    shown = output[output.index("TASK [Show the fleet]") :]
    found, _end = json.JSONDecoder().raw_decode(shown[shown.index("{") :])
    assert [item["service"] for item in found["msg"]] == ["llama"]


def test_live(run):
    metrics = "num_requests_running 3\nnum_requests_waiting 0\ngpu_cache_usage_perc 0.5\n"
    with NimServer(
        metadata={"version": "1.8.6", "selectedModelProfileId": "4f904d571fe60ff2"},
        replies={("GET", "/v1/metrics"): send(200, metrics)},
    ) as nim:
        hosts = {
            "gpu01": {**service("llama", nim.url), **service("gone", "http://127.0.0.1:9")},
            "gpu02": service("stopped", nim.url, active="inactive", sub="dead"),
            "gpu03": None,
        }
        code, output = run(hosts, nim_status_live=True, nim_status_fail=False)
        asked = len(nim.asked("/v1/metrics"))
        assert run(hosts, nim_status_fail=False)[0] == 0
        assert len(nim.asked("/v1/metrics")) == asked == 1
    assert code == 0, output
    assert re.search(rf"gpu01 +llama .* yes +{MODEL} +4f904d571fe6 +3 +50\.0%", output), output
    assert re.search(r"gpu01 +gone .* no answer +- +- +- +-", output)


def test_an_endpoint_that_could_not_even_be_asked_is_a_failure(run):
    hosts = {"gpu01": service("odd", "ftp://127.0.0.1:9"), "gpu02": service("gone", "http://127.0.0.1:9")}
    code, output = run(hosts, nim_status_live=True)
    assert code == 2, output
    assert "url must be http:// or https://" in output
    # The table is shown all the same, and the other host, whose endpoint is only silent, is well.
    assert re.search(r"gpu01 +odd .*active", output) and re.search(r"gpu02 +gone .* no answer", output), output
    assert re.search(r"gpu01 +: .*failed=1", output) and re.search(r"gpu02 +: .*failed=0", output), output
