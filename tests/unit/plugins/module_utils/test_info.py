# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of a NIM about itself, read into one form."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _info

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
LLAMA = "meta/llama-3.1-8b-instruct"


def metrics(text):
    return _info.read_metrics("\n".join(line.strip() for line in text.splitlines()) + "\n")


CLASSIC = f"""
    # TYPE num_requests_running gauge
    num_requests_running{{model_name="{LLAMA}"}} 3.0
    num_requests_waiting{{model_name="{LLAMA}"}} 1.0
    num_request_max{{model_name="{LLAMA}"}} 2048.0
    gpu_cache_usage_perc{{model_name="{LLAMA}"}} 0.0214
    prompt_tokens_total{{model_name="{LLAMA}"}} 51200.0
    generation_tokens_total{{model_name="{LLAMA}"}} 20480.0
    time_to_first_token_seconds_bucket{{le="0.1",model_name="{LLAMA}"}} 100.0
    time_to_first_token_seconds_bucket{{le="+Inf",model_name="{LLAMA}"}} 128.0
    time_to_first_token_seconds_count{{model_name="{LLAMA}"}} 128.0
    time_to_first_token_seconds_sum{{model_name="{LLAMA}"}} 5.12
    time_per_output_token_seconds_count{{model_name="{LLAMA}"}} 20352.0
    time_per_output_token_seconds_sum{{model_name="{LLAMA}"}} 162.816
    e2e_request_latency_seconds_count{{model_name="{LLAMA}"}} 128.0
    e2e_request_latency_seconds_sum{{model_name="{LLAMA}"}} 168.0
    request_success_total{{model_name="{LLAMA}"}} 128.0
    request_failure_total{{model_name="{LLAMA}"}} 2.0
    request_finish_total{{finished_reason="stop",model_name="{LLAMA}"}} 118.0
    request_finish_total{{finished_reason="length",model_name="{LLAMA}"}} 10.0
"""
VLLM = f"""
    vllm:num_requests_running{{engine="0",model_name="{LLAMA}"}} 2.0
    vllm:num_requests_running{{engine="1",model_name="{LLAMA}"}} 1.0
    vllm:num_requests_waiting{{engine="0",model_name="{LLAMA}"}} 0.0
    vllm:num_requests_waiting{{engine="1",model_name="{LLAMA}"}} 1.0
    vllm:kv_cache_usage_perc{{engine="0",model_name="{LLAMA}"}} 0.0105
    vllm:kv_cache_usage_perc{{engine="1",model_name="{LLAMA}"}} 0.0214
    vllm:prompt_tokens_total{{engine="0",model_name="{LLAMA}"}} 51200.0
    vllm:generation_tokens_total{{engine="0",model_name="{LLAMA}"}} 20480.0
    vllm:num_preemptions_total{{engine="0",model_name="{LLAMA}"}} 4.0
    vllm:request_success_total{{engine="0",finished_reason="stop",model_name="{LLAMA}"}} 100.0
    vllm:request_success_total{{engine="1",finished_reason="stop",model_name="{LLAMA}"}} 18.0
    vllm:request_success_total{{engine="0",finished_reason="length",model_name="{LLAMA}"}} 10.0
    vllm:time_to_first_token_seconds_count{{engine="0",model_name="{LLAMA}"}} 128.0
    vllm:time_to_first_token_seconds_sum{{engine="0",model_name="{LLAMA}"}} 5.12
    vllm:inter_token_latency_seconds_count{{engine="0",model_name="{LLAMA}"}} 20352.0
    vllm:inter_token_latency_seconds_sum{{engine="0",model_name="{LLAMA}"}} 162.816
    vllm:e2e_request_latency_seconds_count{{engine="0",model_name="{LLAMA}"}} 128.0
    vllm:e2e_request_latency_seconds_sum{{engine="0",model_name="{LLAMA}"}} 168.0
    vllm:request_queue_time_seconds_count{{engine="0",model_name="{LLAMA}"}} 128.0
    vllm:request_queue_time_seconds_sum{{engine="0",model_name="{LLAMA}"}} 0.128
"""
SAME = {
    "requests_running": 3,
    "requests_waiting": 1,
    "kv_cache_usage": 0.0214,
    "prompt_tokens_total": 51200,
    "generation_tokens_total": 20480,
    "requests_finished": {"stop": 118, "length": 10},
    "time_to_first_token": {"count": 128, "sum_s": 5.12, "mean_ms": 40.0},
    "inter_token_latency": {"count": 20352, "sum_s": 162.816, "mean_ms": 8.0},
    "e2e_latency": {"count": 128, "sum_s": 168.0, "mean_ms": 1312.5},
}
NO_TIME = {"count": None, "sum_s": None, "mean_ms": None}


@pytest.mark.parametrize(
    ("text", "more"),
    [
        pytest.param(
            CLASSIC,
            {
                "names": "classic",
                "requests_max": 2048,
                "requests_failed_total": 2,
                "preemptions_total": None,
                "queue_time": NO_TIME,
            },
            id="classic",
        ),
        pytest.param(
            VLLM,
            {
                "names": "vllm",
                "requests_max": None,
                "requests_failed_total": None,
                "preemptions_total": 4,
                "queue_time": {"count": 128, "sum_s": 0.128, "mean_ms": 1.0},
            },
            id="vllm",
        ),
    ],
)
def test_generations_say_the_same(text, more):
    found = metrics(text)
    assert found == {**SAME, **more}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vllm:gpu_cache_usage_perc 0.5", {"names": "vllm", "kv_cache_usage": 0.5}),
        ("vllm:time_per_output_token_seconds_sum 2\nvllm:time_per_output_token_seconds_count 4",
         {"inter_token_latency": {"count": 4, "sum_s": 2, "mean_ms": 500.0}}),
        ('sglang:num_running_reqs 2\nsglang:num_queue_reqs 5\nsglang:token_usage 0.52',
         {"names": "sglang", "requests_running": 2, "requests_waiting": 5, "kv_cache_usage": 0.52}),
        ("request_success_total 7\nnum_requests_running 0", {"names": "classic", "requests_finished": {"any": 7}}),
        # Of nothing, there is no mean.
        ("time_to_first_token_seconds_sum 0\ntime_to_first_token_seconds_count 0",
         {"time_to_first_token": {"count": 0, "sum_s": 0, "mean_ms": None}}),
        ("num_requests_running NaN\ngpu_cache_usage_perc +Inf", {"requests_running": None, "kv_cache_usage": None}),
        # Another family of NIM, and one that says nothing.
        ("gpu_utilization 0.5", {"names": None, "requests_running": None, "requests_finished": {}}),
        ("", {"names": None, "time_to_first_token": NO_TIME}),
    ],
)  # fmt: skip
def test_metrics(text, expected):
    found = metrics(text)
    assert {key: found[key] for key in expected} == expected


def test_metrics_of_vllm_on_a_gpu():
    """As a real H200 answered after ten requests of 64 tokens."""
    found = _info.read_metrics((FIXTURES / "h200-vllm/metrics.txt").read_text())
    assert (found["requests_running"], found["requests_waiting"], found["kv_cache_usage"]) == (0, 0, 0)
    assert (found["prompt_tokens_total"], found["generation_tokens_total"]) == (560, 640)
    assert found["requests_finished"] == {"stop": 0, "length": 10, "abort": 0, "error": 0, "repetition": 0}
    assert found["time_to_first_token"] == {"count": 10, "sum_s": 0.722878, "mean_ms": 72.288}
    assert found["inter_token_latency"]["count"] == 630 and found["e2e_latency"]["mean_ms"] == 1502.484


def test_every_key_of_metrics_is_always_there():
    assert metrics("").keys() == metrics(CLASSIC).keys() == metrics(VLLM).keys()


def test_what_is_no_metrics():
    with pytest.raises(ValueError, match="has no metrics of Prometheus: line 1"):
        metrics("<html>")


def test_models():
    body = {
        "object": "list",
        "data": [
            {
                "id": LLAMA,
                "owned_by": "system",
                "root": LLAMA,
                "parent": None,
                "max_model_len": 131072,
                "permission": [],
            },
            {"id": "math", "root": "/loras/math", "parent": LLAMA},
        ],
    }
    assert _info.read_models(body) == [
        {"id": LLAMA, "root": LLAMA, "parent": None, "owned_by": "system", "max_model_len": 131072, "adapter": False},
        {
            "id": "math",
            "root": "/loras/math",
            "parent": LLAMA,
            "owned_by": None,
            "max_model_len": None,
            "adapter": True,
        },
    ]
    assert _info.read_models({"data": []}) == []


def test_metadata():
    body = {
        "version": "1.8.6",
        "selectedModelProfileId": "4f90",
        "modelInfo": [{"shortName": "llama-3.1-8b-instruct:1.0.0", "modelUrl": "ngc://x"}, "odd"],
        "assetInfo": ["ngc://x"],
        "licenseInfo": {"name": "LICENSE", "path": "/opt/nim/LICENSE", "sha": "e3b0", "size": 12, "url": ""},
        "repository_override": "",
    }
    assert _info.read_metadata(body) == {
        "version": "1.8.6",
        "profile": "4f90",
        "models": [{"short_name": "llama-3.1-8b-instruct:1.0.0", "url": "ngc://x"}],
        "assets": ["ngc://x"],
        "repository_override": None,
        "license": {"name": "LICENSE", "path": "/opt/nim/LICENSE", "sha": "e3b0", "url": None, "size_bytes": 12},
    }
    assert _info.read_metadata({"version": "2.0.5"}) == {
        "version": "2.0.5",
        "profile": None,
        "models": [],
        "assets": [],
        "repository_override": None,
        "license": {"name": None, "path": None, "sha": None, "url": None, "size_bytes": None},
    }


PROFILE = {"id": "ab", "tags": {"tp": "1", "feat_lora": "False"}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {
                "manifest_file": "/m.yaml",
                "manifest": {"schema_version": "2", "profiles": [{**PROFILE, "workspace": {}}]},
            },
            {"file": "/m.yaml", "profiles": [PROFILE]},
        ),
        (
            {"schema_version": "2", "profiles": [{"id": "ab", "tags": {"tp": 1, "feat_lora": False}}, 7]},
            {"file": None, "profiles": [PROFILE]},
        ),
        ({"ab": {"model": "x", "tags": {"tp": "1", "feat_lora": "False"}}}, {"file": None, "profiles": [PROFILE]}),
        ({"profiles": []}, {"file": None, "profiles": []}),
        ({"profiles": [{"id": "ab"}]}, {"file": None, "profiles": [{"id": "ab", "tags": {}}]}),
    ],
)
def test_manifest(body, expected):
    assert _info.read_manifest(body) == expected


@pytest.mark.parametrize(
    ("read", "body", "words"),
    [
        (_info.read_models, {"detail": "Not Found"}, 'has no list of models: {"detail": "Not Found"}'),
        (_info.read_models, [], "has no list of models: []"),
        (_info.read_models, {"data": [{"name": "x"}]}, 'lists something without an id: {"name": "x"}'),
        (_info.read_metadata, "ok", 'has no object: "ok"'),
        (_info.read_metadata, {"status": "ok"}, 'has neither version nor models: {"status": "ok"}'),
        (_info.read_version, {"status": "ok"}, 'has neither release nor api: {"status": "ok"}'),
        (_info.read_version, None, "has no object: null"),
        (_info.read_manifest, {"status": "ok"}, 'has no profiles: {"status": "ok"}'),
        (_info.read_manifest, [1], "has no object: [1]"),
    ],
)
def test_what_is_something_else(read, body, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        read(body)


def test_version():
    assert _info.read_version({"release": "2.0.5", "api": "2.0.0"}) == {"release": "2.0.5", "api": "2.0.0"}
    assert _info.read_version({"release": "2.0.5"}) == {"release": "2.0.5", "api": None}
