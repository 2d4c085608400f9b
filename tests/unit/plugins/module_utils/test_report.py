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
    "tokens_per_second": 211.5,
    "checks": [{"probe": "pace", "passed": True, "detail": "96 pieces", "duration": 0.45}],
    "elapsed": 0.5,
    "history": [{"at": 0.1, "phase": "ready", "detail": "HTTP 200"}],
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
    "tokens_per_s": 211.5,
    "checks": [{"probe": "pace", "passed": True, "detail": "96 pieces", "duration": 0.45}],
    "verified": True,
    "failure_class": None,
    "failure": None,
    "waited_s": 0.5,
    "phases": [{"at_s": 0.1, "phase": "ready", "detail": "HTTP 200"}],
    "evidence": [],
    "next_command": None,
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
                        "evidence": ["exit status 1"],
                        "next_command": "journalctl -u nim-llama.service",
                    }
                ]
            ),
            {
                "verified": False,
                "failure": "gpu01: crashed",
                "failure_class": "crash_loop",
                "evidence": ["exit status 1"],
                "next_command": "journalctl -u nim-llama.service",
                "phases": [],
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
HOST   SERVICE  MODEL              GPU  STATE               UPTIME   RESTARTS  CACHE    DEPLOYED                               ENDPOINT
-----  -------  -----------------  ---  ------------------  -------  --------  -------  -------------------------------------  --------------------
gpu01  llama    meta/llama-3.1-8b  0,1  active (running)    1 d 2 h  0         16.1 GB  2026-11-23 17:30 UTC                   http://10.0.0.1:8000
gpu01  nemo     -                  -    failed (exit-code)  -        10        -        -                                      -
gpu01  phi      -                  -    activating (start)  -        7         -        -                                      -
gpu02  llama    meta/llama-3.1-8b  0,1  unit missing        -        0         -        2026-11-23 17:30 UTC, back from 2.0.5  http://10.0.0.1:8000
gpu03  -        -                  -    no services         -        -         -        -                                      -
gpu04  -        -                  -    unreachable         -        -         -        -                                      -
gpu05  -        -                  -    no services         -        -         -        -                                      -
gpu06  left     -                  -    cache only          -        -         2.0 MB   -                                      -
gpu06  odd      -                  -    cache only          -        -         unknown  -                                      -
gpu06  strange  -                  -    cache only          -        -         unknown  -                                      -"""
    )


RECORDED = {
    "model": "meta/llama-3.1-8b",
    "image": f"{REPOSITORY}:1.8.6",
    "image_reference": f"{REPOSITORY}@sha256:aa",
    "contract": "classic",
    "engine": "docker",
    "gpus": ["0"],
    "url": "http://127.0.0.1:8000",
    "deployed_at": "2026-11-23T17:30:12Z",
    "verified": True,
    "history": [{"image": f"{REPOSITORY}:1.8.5", "deployed_at": "2026-10-01T08:00:00Z", "verified": True}],
    "verify": {"api_key": "secret"},
}


def items(**services):
    return _report.status_items([{"inventory_hostname": "gpu01", "preflight_host": {"services": services}}])


def test_status_as_data():
    cache = {"path": "/var/lib/nim/cache/llama", "staged": {"bytes": 16_059_123_456}}
    (item,) = items(llama=service(RECORDED, cache, name="nim-llama.service", result="success"))
    assert item == {
        "host": "gpu01",
        "service": "llama",
        "state": "active (running)",
        "unit": {
            "name": "nim-llama.service",
            "exists": True,
            "active": "active",
            "sub": "running",
            "result": "success",
            "enabled": True,
        },
        "uptime_s": 93784.0,
        "restarts": 0,
        "model": "meta/llama-3.1-8b",
        "gpus": ["0"],
        "image": f"{REPOSITORY}:1.8.6",
        "image_reference": f"{REPOSITORY}@sha256:aa",
        "contract": "classic",
        "engine": "docker",
        "url": "http://127.0.0.1:8000",
        "cache": {"path": "/var/lib/nim/cache/llama", "bytes": 16_059_123_456},
        "deployed_at": "2026-11-23T17:30:12Z",
        "verified": True,
        "history": RECORDED["history"],
        "watchdog_gave_up": False,
        "live": None,
        "problem": None,
    }
    assert json.loads(json.dumps(item)) == item


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (service(), None),
        (service(active="activating", sub="auto-restart", restarts=3), None),
        # Somebody stopped it.
        (service(active="inactive", sub="dead"), None),
        (service(cache={"staged": None}, exists=False, active=None), None),
        (
            service(active="failed", sub="failed", result="exit-code", restarts=10),
            (
                "gpu01: service llama: nim-llama.service is failed (exit-code) after 10 restarts, wanted a unit that runs. "
                "Next: journalctl -u nim-llama.service -n 100 --no-pager"
            ),
        ),
        (
            service(RECORDED, exists=False, active=None),
            (
                "gpu01: service llama: nim-llama.service is missing, wanted the unit that was deployed. "
                "Next: ansible-playbook baremetal.nim.site --limit gpu01"
            ),
        ),
        (
            service(gave_up=True),
            (
                "gpu01: service llama: nim-watchdog@llama.service gave up, nim-llama.service is active (running), wanted an engine "
                "that answers. Next: journalctl -u nim-watchdog@llama.service -n 50 --no-pager"
            ),
        ),
    ],
)
def test_what_somebody_must_look_at(now, message):
    (item,) = items(llama=now)
    assert (item["problem"] or {}).get("message") == message


@pytest.mark.parametrize(
    ("state", "word", "seen"),
    [
        (None, "unreachable", "host unreachable"),
        (
            {"unreachable": True, "msg": "Failed to connect: No route to host.\nMore of it"},
            "unreachable",
            "host unreachable (Failed to connect: No route to host)",
        ),
        ({"failed": True, "msg": "Missing sudo password"}, "not read", "host not read (Missing sudo password)"),
    ],
)
def test_a_host_that_was_not_read(state, word, seen):
    variables = {"inventory_hostname": "gpu01", **({"preflight_host": state} if state else {})}
    (item,) = _report.status_items([variables])
    assert (item["host"], item["service"], item["state"], item["problem"]["seen"]) == ("gpu01", None, word, seen)
    assert item["problem"]["next_command"] == "ansible gpu01 --become -m ansible.builtin.ping -vvv"
    # All items have the same keys.
    assert item.keys() == items(llama=service())[0].keys() == items()[0].keys()
    assert word in _report.status([variables])


LIVE = {
    "item": {"service": "llama"},
    "ready": True,
    "model": "meta/llama-3.1-8b",
    "adapters": ["math"],
    "metadata": {"version": "1.8.6", "profile": "4f904d571fe60ff24695b5ee2aa42da5"},
    "version": {"release": "1.8.6"},
    "metrics": {"requests_running": 3, "requests_waiting": 0, "kv_cache_usage": 0.0214},
}


def test_status_with_what_endpoints_say():
    dead = {"item": {"service": "phi"}, "failed": False, "msg": "gpu01: http://127.0.0.1:8001: nobody"}
    loading = {
        "item": {"service": "slow"},
        "ready": False,
        "model": None,
        "metadata": None,
        "version": {"release": "2.0.5"},
    }
    skipped = {"item": {"service": "off"}, "skipped": True}
    host = {
        "inventory_hostname": "gpu01",
        "preflight_host": {"services": {name: service(RECORDED) for name in ("llama", "phi", "slow", "off")}},
        "nim_status_answers": {"results": [LIVE, dead, loading, skipped]},
    }
    live = {item["service"]: item["live"] for item in _report.status_items([host])}
    assert live == {
        "llama": {
            "ready": True,
            "model": "meta/llama-3.1-8b",
            "adapters": ["math"],
            "version": "1.8.6",
            "profile": "4f904d571fe60ff24695b5ee2aa42da5",
            "requests_running": 3,
            "requests_waiting": 0,
            "kv_cache_usage": 0.0214,
            "failure": None,
        },
        "phi": {**dict.fromkeys(live["llama"]), "ready": False, "adapters": [], "failure": dead["msg"]},
        "slow": {**dict.fromkeys(live["llama"]), "ready": False, "adapters": [], "version": "2.0.5"},
        "off": None,
    }
    assert [line.partition("8000")[2].split() for line in _report.status([host]).splitlines()[2:]] == [
        ["yes", "meta/llama-3.1-8b", "4f904d571fe6", "3", "2.1%"],
        ["-", "-", "-", "-", "-"],
        ["no", "answer", "-", "-", "-", "-"],
        ["no", "-", "-", "-", "-"],
    ]


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
