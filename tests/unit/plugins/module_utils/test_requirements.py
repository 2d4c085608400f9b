# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from documents of the NIM Metadata API, however little they tell."""

from __future__ import annotations

import json

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _requirements

H200, L40S = "2335", "26b9"
#: A profile for one GPU of 80 GB, of those fields that the documentation names.
PROFILE = {
    "profile_id": "4f904d571fe60ff24695b5ee2aa42da5",
    "gpu": "H200",
    "gpu_device": "2335:10de",
    "precision": "fp8",
    "inference_backend": "vllm",
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "min_vram_per_device_gb": 80.0,
    "tested_gpu_devices": ["2335:10de"],
}
READ = {"id": PROFILE["profile_id"], "memory_mib": 76293, "gpus": 1, "devices": [H200], "driver": None}


def parsed(*profiles, **sections):
    return _requirements.parse_metadata(json.dumps({"profiles": list(profiles), **sections}))


def without(*names, **changes):
    return {**{name: value for name, value in PROFILE.items() if name not in names}, **changes}


@pytest.mark.parametrize(
    ("profile", "read"),
    [
        pytest.param(PROFILE, READ, id="all"),
        pytest.param(without(tensor_parallel_size=4, pipeline_parallel_size=2), {**READ, "gpus": 8}, id="eight-gpus"),
        pytest.param(without("pipeline_parallel_size"), {**READ, "gpus": None}, id="absent-is-unknown"),
        pytest.param(without("min_vram_per_device_gb"), {**READ, "memory_mib": None}, id="no-memory"),
        pytest.param(without("gpu", "gpu_device"), {**READ, "devices": []}, id="any-gpu"),
        pytest.param(
            without(gpu_device=["2335:10de", "2330:10DE"]), {**READ, "devices": [H200, "2330"]}, id="list-of-gpus"
        ),
        pytest.param(without(gpu_device=["", None, 7]), {**READ, "devices": []}, id="gpus-of-another-type"),
        pytest.param(without(min_vram_per_device_gb="80"), {**READ, "memory_mib": None}, id="memory-of-another-type"),
        pytest.param(without(min_vram_per_device_gb=-1), {**READ, "memory_mib": None}, id="memory-below-nothing"),
        pytest.param(without(min_vram_per_device_gb=float("nan")), {**READ, "memory_mib": None}, id="nan"),
        pytest.param(without(tensor_parallel_size=True), {**READ, "gpus": None}, id="true-is-no-number"),
        pytest.param(without(min_driver_version="580.65.06"), {**READ, "driver": "580.65.06"}, id="driver"),
        pytest.param(without(nvidia_driver=">=580"), {**READ, "driver": "580"}, id="driver-by-another-name"),
        pytest.param(without(driver_version=580.65), {**READ, "driver": "580.65"}, id="driver-as-number"),
        pytest.param(without(driver=["580"]), READ, id="driver-of-another-type"),
        pytest.param(without(driver="latest"), READ, id="driver-without-number"),
        pytest.param(without(new_field={"deep": [1]}), READ, id="unknown-field"),
        pytest.param(
            {},
            {"id": "", "memory_mib": None, "gpus": None, "devices": [], "driver": None},
            id="nothing",
        ),
    ],
)
def test_profile(profile, read):
    assert parsed(profile) == [read]


def test_driver_of_the_release_is_that_of_its_profiles():
    read = parsed(PROFILE, without(driver_version="595.71.05"), release_details={"minimum_driver_version": "580.65.06"})
    assert [item["driver"] for item in read] == ["580.65.06", "595.71.05"]


@pytest.mark.parametrize(
    "text", ["{}", '{"profiles": null}', '{"profiles": {"a": 1}}', '{"profiles": []}', '{"profiles": [1, "a", null]}']
)
def test_document_without_profiles(text):
    assert _requirements.parse_metadata(text) == []


@pytest.mark.parametrize("text", ["", "<html>proxy login</html>", "[]", "null", '{"profiles": [', "7"])
def test_what_is_no_document(text):
    with pytest.raises(ValueError, match=r"."):
        _requirements.parse_metadata(text)


#: One GPU of 80 GB, two of 48 GB, and one of 24 GB that runs anywhere.
BIG = {**READ, "id": "big"}
PAIR = {**READ, "id": "pair", "memory_mib": 45776, "gpus": 2, "devices": [L40S], "driver": "580"}
SMALL = {**READ, "id": "small", "memory_mib": 22888, "devices": [], "driver": "580.65.06"}


@pytest.mark.parametrize(
    ("profiles", "profile", "count", "devices", "needed"),
    [
        pytest.param([BIG, PAIR, SMALL], "big", 1, [H200], (76293, 1, None), id="chosen"),
        pytest.param([BIG, PAIR, SMALL], "pair", 1, [H200], (45776, 2, "580"), id="chosen-though-it-does-not-fit"),
        pytest.param([BIG, SMALL], "", 1, [H200], (22888, 1, None), id="least-of-those-that-fit"),
        pytest.param([PAIR, SMALL], "", 2, [L40S], (22888, 1, "580"), id="oldest-driver"),
        pytest.param([BIG, PAIR], "", 2, [L40S], (45776, 2, "580"), id="of-these-gpus"),
        pytest.param([BIG, PAIR], "", 1, [L40S], (None, None, None), id="for-no-gpu-of-this-host"),
        pytest.param([BIG, PAIR], "", 0, [], (45776, 1, None), id="gpus-unknown"),
        pytest.param([SMALL, {**BIG, "memory_mib": None}], "", 1, [H200], (None, 1, None), id="unknown-may-be-less"),
        pytest.param([BIG, PAIR], "gone", 1, [H200], (None, None, None), id="not-published"),
        pytest.param([], "", 1, [H200], (None, None, None), id="no-profiles"),
    ],
)
def test_need(profiles, profile, count, devices, needed):
    need = _requirements.need_of(profiles, profile, count, devices, "https://api.example.com")
    assert (need["memory_mib"], need["gpus"], need["driver"]) == needed
    assert need["answered"] is True and need["note"] and need["source"] == "https://api.example.com"


@pytest.mark.parametrize(
    ("repository", "resource"),
    [
        ("nvcr.io/nim/meta/llama-3.1-8b-instruct", "nim/meta/llama-3.1-8b-instruct"),
        ("mirror.example.com:5000/nvidia/nim/meta/llama", "nim/meta/llama"),
        ("registry.example.com/team/llama", "team/llama"),
    ],
)
def test_resource(repository, resource):
    assert _requirements.resource_of(repository) == resource
    url = "https://api.example.com/v2/nim/metadata"
    assert _requirements.query_of(url, repository, "2.0.5-a+b") == f"{url}?resourceId={resource}&tag=2.0.5-a%2Bb"
    assert _requirements.query_of(f"{url}?key=1", repository, "2.0.5") == f"{url}?key=1&resourceId={resource}&tag=2.0.5"
