# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports of a fleet, from the variables that its hosts have after a play."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _report

REPOSITORY = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
LLAMA = {
    "name": "llama",
    "url": "http://127.0.0.1:8000",
    "image": f"{REPOSITORY}:1.8.6",
    "devices": ["nvidia.com/gpu=0"],
}
PHI = {**LLAMA, "name": "phi", "url": "http://127.0.0.1:8001", "devices": ["nvidia.com/gpu=1"]}
ANSWER = {
    "name": "llama",
    "changed": False,
    "model": "meta/llama-3.1-8b-instruct",
    "content": "4",
    "ready_after": 0.1,
    "ttft": 0.04321,
    "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
}
RECORD = {"image_reference": f"{REPOSITORY}@sha256:aa", "ready_after_s": 93.2, "model": "meta/llama-3.1-8b-instruct"}
GOOD = {
    "host": "gpu01",
    "service": "llama",
    "url": "http://127.0.0.1:8000",
    "model": "meta/llama-3.1-8b-instruct",
    "image": f"{REPOSITORY}@sha256:aa",
    "gpus": ["nvidia.com/gpu=0"],
    "ready_after_s": 93.2,
    "ttft_ms": 43.2,
    "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
    "content": "4",
    "verified": True,
    "failure_class": None,
    "failure": None,
}


def host(name="gpu01", endpoints=(LLAMA,), results=(ANSWER,), records=None):
    """Variables of a host after the verify stage."""
    services = {service: {"record": record} for service, record in (records or {}).items()}
    return {
        "inventory_hostname": name,
        "preflight_host": {"services": services},
        "nim_service_endpoints": list(endpoints),
        "nim_service_verification": {"results": list(results)},
    }


# -- endpoints ---------------------------------------------------------------------------------------------------------


def test_verified_endpoint():
    assert _report.endpoints([host(records={"llama": RECORD})]) == [GOOD]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param(host(), {"image": f"{REPOSITORY}:1.8.6", "ready_after_s": 0.1, "verified": True}, id="no-record"),
        pytest.param(
            host(records={"llama": None}), {"image": f"{REPOSITORY}:1.8.6", "verified": True}, id="record-removed"
        ),
        pytest.param(host(results=[{**ANSWER, "ttft": None}]), {"ttft_ms": None, "verified": True}, id="no-streaming"),
        pytest.param(host(results=[{**ANSWER, "ttft": 0.0}]), {"ttft_ms": 0.0}, id="no-time-at-all"),
        pytest.param(
            host(
                results=[
                    {
                        "name": "llama",
                        "failed": True,
                        "msg": "gpu01: crashed",
                        "failure_class": "crash_loop",
                    }
                ]
            ),
            {
                "verified": False,
                "failure": "gpu01: crashed",
                "failure_class": "crash_loop",
                "model": None,
                "content": None,
            },
            id="failed",
        ),
        pytest.param(
            host(results=[{"name": "llama", "skipped": True, "changed": False}]),
            {"verified": False, "failure": None},
            id="skipped",
        ),
        pytest.param(host(results=[]), {"verified": False, "failure": "not asked"}, id="not-asked"),
        pytest.param(
            host(results=[{**ANSWER, "name": "phi"}]),
            {"verified": False, "failure": "not asked"},
            id="another-asked",
        ),
        pytest.param(
            {**host(), "nim_service_verification": None, "preflight_host": None},
            {"verified": False, "failure": "not asked"},
            id="play-ended",
        ),
    ],
)
def test_endpoint(variables, expected):
    (item,) = _report.endpoints([variables])
    assert {key: item[key] for key in expected} == expected
    assert item.keys() == GOOD.keys()


@pytest.mark.parametrize("more", [{}, {"preflight_host": {"services": {}}}], ids=["unreachable", "failed-early"])
def test_host_that_never_came_to_its_endpoints(more):
    (item,) = _report.endpoints([{"inventory_hostname": "gpu09", **more}])
    assert item == {"host": "gpu09", "service": None, "verified": False, "failure": "not reached"}


def test_host_without_services():
    assert _report.endpoints([host(endpoints=[], results=[])]) == []


def test_fleet():
    bad = {"name": "phi", "failed": True, "msg": "phi is down"}
    report = _report.endpoints(
        [
            host(endpoints=[LLAMA, PHI], results=[ANSWER, {**ANSWER, "name": "phi"}]),
            {"inventory_hostname": "gpu02"},
            # Results come in the order of the loop, which need not be that of the endpoints.
            host("gpu03", [LLAMA, PHI], [bad, ANSWER]),
        ]
    )
    assert [(item["host"], item["service"], item["verified"]) for item in report] == [
        ("gpu01", "llama", True),
        ("gpu01", "phi", True),
        ("gpu02", None, False),
        ("gpu03", "llama", True),
        ("gpu03", "phi", False),
    ]
    assert json.loads(json.dumps(report)) == report


# -- status ------------------------------------------------------------------------------------------------------------


def service(record=None, cache=None, gave_up=False, **unit):
    """A service as gpu_host_info tells it."""
    state = {"exists": True, "active": "active", "sub": "running", "enabled": True, "restarts": 0, "uptime": 93784.0}
    return {"unit": {**state, **unit}, "record": record, "cache": cache, "watchdog": {"failed": gave_up}}


def test_report_for_ci():
    good = {"host": "gpu01", "service": "llama", "verified": True, "ttft_ms": 8.4}
    words = "gpu01: http://127.0.0.1:8001: HTTP 500 <EngineDeadError> \x1b[31m& no answer\nNext: journalctl"
    dead = {"host": "gpu01", "service": "phi", "verified": False, "failure_class": "dead_engine", "failure": words}
    lost = {"host": "gpu02", "service": None, "verified": False, "failure": "not reached"}
    text = _report.junit([good, dead, lost])
    assert text.startswith("<?xml version=")
    suites = list(ElementTree.fromstring(text))
    assert [suite.attrib for suite in suites] == [
        {"name": "gpu01", "tests": "2", "failures": "1", "errors": "0"},
        {"name": "gpu02", "tests": "1", "failures": "0", "errors": "1"},
    ]
    first, second = suites[0]
    assert (first.attrib, list(first)) == ({"classname": "gpu01", "name": "llama", "time": "0.008"}, [])
    (failure,) = second
    said = words.replace("\x1b", "")
    assert (failure.tag, failure.get("type"), failure.get("message")) == ("failure", "dead_engine", said.split("\n")[0])
    assert failure.text == said
    assert [(item.tag, item.get("message")) for item in suites[1][0]] == [("error", "not reached")]


def test_report_of_no_endpoints_is_an_empty_one():
    assert list(ElementTree.fromstring(_report.junit([]))) == []


def test_status_of_a_service_whose_watchdog_gave_up():
    hosts = [{"inventory_hostname": "gpu01", "preflight_host": {"services": {"llama": service(gave_up=True)}}}]
    assert "active (running), watchdog gave up" in _report.status(hosts)


def test_status():
    record = {
        "model": "meta/llama-3.1-8b",
        "gpus": ["0", "1"],
        "url": "http://10.0.0.1:8000",
        "deployed_at": "2026-11-23T17:30:12Z",
    }
    back = {**record, "history": [{"image": "nvcr.io/nim/meta/llama-3.1-8b-instruct:2.0.5", "verified": False}]}
    hosts = [
        {
            "inventory_hostname": "gpu01",
            "preflight_host": {
                "services": {
                    "phi": service(active="activating", sub="start", restarts=7, uptime=12.0),
                    "llama": service(record, {"staged": {"bytes": 16_059_123_456}}),
                    "nemo": service(active="failed", sub="failed", result="exit-code", restarts=10),
                    "stray": service(exists=False, active=None, sub=None),
                }
            },
        },
        {
            "inventory_hostname": "gpu02",
            "preflight_host": {"services": {"llama": service(back, exists=False, active=None)}},
        },
        {"inventory_hostname": "gpu03", "preflight_host": {"services": {}}},
        {"inventory_hostname": "gpu04"},
        {"inventory_hostname": "gpu05", "preflight_host": {"services": {"stray": service(exists=False)}}},
        {
            "inventory_hostname": "gpu06",
            "preflight_host": {
                "services": {
                    "left": service(cache={"staged": {"bytes": 2_000_000}}, exists=False),
                    "odd": service(cache={"staged": {"bytes": "many"}}, exists=False),
                    "strange": service(cache={"staged": None}, exists=False),
                }
            },
        },
    ]
    assert (
        _report.status(hosts)
        == """\
HOST   SERVICE  MODEL              GPU  STATE               UPTIME   RESTARTS  CACHE    DEPLOYED                           ENDPOINT
-----  -------  -----------------  ---  ------------------  -------  --------  -------  ---------------------------------  --------------------
gpu01  llama    meta/llama-3.1-8b  0,1  active (running)    1 d 2 h  0         16.1 GB  2026-11-23 17:30                   http://10.0.0.1:8000
gpu01  nemo     -                  -    failed (exit-code)  -        10        -        -                                  -
gpu01  phi      -                  -    activating (start)  -        7         -        -                                  -
gpu02  llama    meta/llama-3.1-8b  0,1  unit missing        -        0         -        2026-11-23 17:30, back from 2.0.5  http://10.0.0.1:8000
gpu03  -        -                  -    no services         -        -         -        -                                  -
gpu04  -        -                  -    unreachable         -        -         -        -                                  -
gpu05  -        -                  -    no services         -        -         -        -                                  -
gpu06  left     -                  -    cache only          -        -         2.0 MB   -                                  -
gpu06  odd      -                  -    cache only          -        -         unknown  -                                  -
gpu06  strange  -                  -    cache only          -        -         unknown  -                                  -"""
    )


def test_status_of_no_hosts_is_a_heading():
    assert _report.status([]).splitlines()[0].split() == [
        "HOST",
        "SERVICE",
        "MODEL",
        "GPU",
        "STATE",
        "UPTIME",
        "RESTARTS",
        "CACHE",
        "DEPLOYED",
        "ENDPOINT",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (100 * 86400 + 7200, "100 d 2 h"),
    ],
)
def test_duration(seconds, words):
    assert _report.duration(seconds) == words
