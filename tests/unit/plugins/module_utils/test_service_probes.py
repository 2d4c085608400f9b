# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How services and their records are verified."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils._service_probes import service_probes

SERVICE = {
    "name": "llama",
    "url": "http://127.0.0.1:8000",
    "ready_path": "/v1/health/ready",
    "model": "meta/llama-3.1-8b-instruct",
    "start_timeout": 1800,
    "verify": {},
    "gpus": ["0"],
}
PROBE = {
    "name": "llama",
    "url": "http://127.0.0.1:8000",
    "unit": "nim-llama.service",
    "ready_path": "/v1/health/ready",
    "model": "meta/llama-3.1-8b-instruct",
}


@pytest.mark.parametrize(
    ("changes", "timeout", "options", "expected"),
    [
        ({}, None, {}, {**PROBE, "timeout": 1800}),
        ({}, 300, {}, {**PROBE, "timeout": 300}),
        ({}, 300, {"prompt": "Hello", "max_tokens": 8}, {**PROBE, "timeout": 300, "prompt": "Hello", "max_tokens": 8}),
        ({"verify": {"prompt": "Hi"}}, 300, {"prompt": "Hello"}, {**PROBE, "timeout": 300, "prompt": "Hi"}),
        ({"verify": {"probes": ["health"]}}, 300, {}, {**PROBE, "timeout": 300, "probes": ["health"]}),
    ],
    ids=["service", "timeout", "options-of-all", "its-own-win", "health"],
)
def test_probes(changes, timeout, options, expected):
    assert service_probes([{**SERVICE, **changes}], timeout, options) == [expected]


def test_service_that_names_no_model_and_a_record_of_an_older_collection():
    service = {**SERVICE, "model": ""}
    record = {"name": "phi", "url": "http://127.0.0.1:8001", "model": None}
    first, second = service_probes([service, record], 60, {})
    assert "model" not in first
    assert second == {"name": "phi", "url": "http://127.0.0.1:8001", "unit": "nim-phi.service", "timeout": 60}


def test_what_a_service_asks_takes_the_place_of_what_all_are_asked():
    own = {**SERVICE, "verify": {"prompts": [{"prompt": "Hi"}]}}
    (probe,) = service_probes([own], 60, {"prompt": "Hello", "max_tokens": 8})
    assert "prompt" not in probe
    assert (probe["prompts"], probe["max_tokens"]) == ([{"prompt": "Hi"}], 8)


def test_those_that_chat():
    services = [
        {**SERVICE, "name": name, "verify": verify}
        for name, verify in {
            "default": {},
            "more": {"probes": ["completion", "pace"]},
            "mute": {"probes": ["health"]},
            "wait": {"probes": []},
        }.items()
    ]
    assert [probe["name"] for probe in service_probes(services, 60, {}, chat=True)] == ["default", "more", "wait"]
    assert len(service_probes(services, 60, {})) == 4


def test_where_clients_reach_a_service_is_another_question():
    service = {**SERVICE, "verify": {"url": "https://llm.example.com", "prompt": "Hi"}}
    assert service_probes([service], 300, {}) == [{**PROBE, "timeout": 300, "prompt": "Hi"}]
    outside = {**service, "url": "https://llm.example.com", "outside": True}
    (probe,) = service_probes(iter([outside]), 300, {"max_tokens": 8})
    assert (probe["url"], probe["prompt"], probe["max_tokens"]) == ("https://llm.example.com", "Hi", 8)
    assert "unit" not in probe
