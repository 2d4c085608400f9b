# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/verify.yml as it is, from the controller: nobody can log in to its hosts, and their endpoints are real servers."""

from __future__ import annotations

import json
import pathlib
from xml.etree import ElementTree

import pytest
from ansible_collections.baremetal.nim.tests.unit.nim_server import MODEL, NimServer, send
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, play_book

ROOT = pathlib.Path(__file__).parents[2]
DEAD = {("POST", "/v1/chat/completions"): send(500, {"error": {"message": "EngineCore encountered an issue."}})}


def service(name="llama", port=8000, **changes):
    return {
        "name": name,
        "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct",
        "tag": "2.0.5",
        "port": port,
        "gpus": [0],
        **changes,
    }


@pytest.fixture
def run(tmp_path):
    """Verifies the services of hosts; returns exit status, output and what is in the reports."""

    def play(hosts, *args, **extra):
        reports = {f"nim_{kind}": str(tmp_path / kind) for kind in ("report", "junit", "html")}
        code, output = play_book(
            tmp_path,
            "baremetal.nim.verify",
            {name: {"nim_services": services} for name, services in hosts.items()},
            *args,
            extra={**reports, "nim_service_verify_timeout": 2, **extra},
            common={**AWAY, "nim_verify_from": "controller"},
        )
        report = tmp_path / "report"
        return code, output, json.loads(report.read_text()) if report.exists() else None

    return play


def test_endpoints_are_asked_as_clients_do(run, tmp_path):
    with NimServer() as one, NimServer(api_key="gate") as two, NimServer(replies=DEAD) as three:
        hosts = {
            "gpu01": [service(port=one.port), service("gone", verify={"url": f"{two.url}/v1"}, gpus=[1])],
            "gpu02": [service(port=three.port)],
        }
        code, output, report = run(hosts, nim_service_verify_client={"api_key": "gate"})
        assert two.asked("/v1/chat/completions") and one.asked("/v1/chat/completions")
    assert code == 2, output
    assert [(item["host"], item["service"], item["verified"]) for item in report] == [
        ("gpu01", "llama", True),
        ("gpu01", "gone", True),
        ("gpu02", "llama", False),
    ]
    assert (report[0]["url"], report[1]["url"], report[0]["model"]) == (one.url, f"{two.url}/v1", MODEL)
    assert [entry["phase"] for entry in report[0]["phases"]] == ["ready", "verified"]
    bad = report[2]
    assert bad["failure_class"] == "dead_engine" and bad["next_command"].startswith("curl ") and bad["evidence"]
    assert "gate" not in output
    # Both other reports are of the same.
    page = (tmp_path / "html").read_text()
    assert "2 of 3 endpoints verified" in page and "EngineCore encountered an issue." in page
    (failure,) = ElementTree.fromstring((tmp_path / "junit").read_text()).iter("failure")
    assert failure.get("type") == "dead_engine"


@pytest.mark.parametrize("first", ["gpu01", "gpu02"])
def test_a_host_that_is_refused_stops_no_other_and_is_reported(run, first):
    """Whichever comes first: one host writes for all."""
    with NimServer() as nim:
        hosts = {"gpu01": [service(port=nim.port)], "gpu02": [service(port=0)]}
        code, output, report = run({name: hosts[name] for name in sorted(hosts, key=lambda name: name != first)})
    assert code == 2 and output.count("TASK [Write the report]") == 1, output
    assert {item["host"]: (item["verified"], item.get("failure")) for item in report} == {
        "gpu01": (True, None),
        "gpu02": (False, "not reached"),
    }


def test_loopback_of_another_host(run):
    code, output, _report = run({"gpu01": [service()]}, nim_service_verify_address="gpu01.example.com")
    assert code == 2
    assert "service llama: bind_address is 127.0.0.1, which only its host reaches" in output


def test_another_place(run):
    code, output, _report = run({"gpu01": [service()]}, nim_verify_from="moon")
    assert code == 2 and "moon" in output and "host, controller" in output, output


def test_check_mode_asks_and_writes_nothing(run):
    with NimServer() as nim:
        code, output, report = run({"gpu01": [service(port=nim.port)]}, "--check")
        assert nim.requests == []
    assert code == 0 and report is None, output
