# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that run and are not listed any more; the host has two recorded H200."""

from __future__ import annotations

import copy
import pathlib

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _resolve
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_nvidia_smi

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
GPUS = parse_nvidia_smi((FIXTURES / "h200-x2" / "idle.xml").read_text())["gpus"]
DEFAULTS = {"cache_root": "/c", "config_dir": "/e", "state_dir": "/s", "bind_address": "127.0.0.1", "cache_size_gb": 0}
CHAT = {"name": "chat", "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct", "tag": "1.8.6", "gpus": [0]}
#: The service under its old name, as a host tells of it.
LLAMA = {
    "unit": {"exists": True, "active": "active", "enabled": True},
    "container": {"running": True, "ports": [8000]},
    "record": {"gpus": ["0"], "url": "http://127.0.0.1:8000", "grpc_port": 0},
}
CURE = "if it was renamed, or is not wanted any more, list it as {name: llama, state: absent}"


def left(changes):
    """The old service, changed."""
    now = copy.deepcopy(LLAMA)
    for key, value in changes.items():
        now[key] = None if value is None else {**(now[key] or {}), **value}
    return now


def resolve(*specs, gpus=GPUS, **services):
    return _resolve.resolve_services(list(specs), {"gpus": gpus, "services": services, "images": {}}, DEFAULTS)


def problems(*specs, **host):
    with pytest.raises(_resolve.ResolveError) as caught:
        resolve(*specs, **host)
    return caught.value.problems


def test_a_renamed_service_is_refused_with_the_line_that_cures_it():
    (problem,) = problems(CHAT, llama=LLAMA)
    assert problem == (
        "service chat: port 8000 and GPU 0 are also of nim-llama.service, which runs on this host and is not in nim_services;"
        f" {CURE}; else list it as it is, and give one of them another port or other GPUs."
    )


def test_the_line_cures_it():
    chat, gone = resolve(CHAT, {"name": "llama", "state": "absent"}, llama=LLAMA)
    assert (chat["gpus"], gone["state"]) == (["0"], "absent")


@pytest.mark.parametrize(
    ("changes", "wanted", "said"),
    [
        pytest.param({}, {"gpus": [1]}, "port 8000 is also of", id="one port"),
        pytest.param({}, {"port": 8001}, "GPU 0 is also of", id="one GPU"),
        pytest.param({}, {"port": 8001, "gpus": [GPUS[0]["uuid"]]}, "GPU 0 is also of", id="one GPU by its uuid"),
        pytest.param({}, {"port": 8001, "gpus": "all"}, "GPU 0 is also of", id="all GPUs are wanted"),
        pytest.param({"record": {"gpus": ["all"]}}, {"port": 8001, "gpus": [1]}, "GPU 1 is also of", id="all GPUs are taken"),
        pytest.param({"record": None}, {"gpus": [1]}, "port 8000 is also of", id="never recorded"),
        pytest.param({"container": None}, {"gpus": [1]}, "port 8000 is also of", id="between two starts"),
        pytest.param({"unit": {"active": "activating"}, "container": None}, {"gpus": [1]}, "port 8000", id="restarts again and again"),
        pytest.param({"unit": {"active": "inactive", "exists": False, "enabled": False}}, {}, "port 8000 and GPU 0", id="container alone"),
        pytest.param({"record": {"grpc_port": 50051}}, {"port": 50051, "gpus": [1]}, "port 50051 is also of", id="its second port"),
    ],
)  # fmt: skip
def test_what_runs_and_is_in_the_way(changes, wanted, said):
    (problem,) = problems({**CHAT, **wanted}, llama=left(changes))
    assert problem.startswith(f"service chat: {said}") and CURE in problem


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        pytest.param({}, {"port": 8001, "gpus": [1]}, id="elsewhere"),
        pytest.param({}, {"port": 8001, "gpu_shared": True, "env": {"NIM_KVCACHE_PERCENT": "0.4"}}, id="shares its GPU"),
        pytest.param({}, {"port": 8001, "gpus": {"count": 1}}, id="takes what is free"),
        pytest.param({"unit": {"active": "inactive", "enabled": False}, "container": None}, {}, id="was stopped for good"),
        pytest.param({"unit": {"active": "failed", "enabled": False}, "container": {"running": False}}, {}, id="failed for good"),
    ],
)  # fmt: skip
def test_what_is_in_nobodys_way(changes, wanted):
    (chat,) = resolve({**CHAT, **wanted}, llama=left(changes))
    assert chat["notes"] == []


def test_a_service_that_says_how_many_gets_none_that_another_has():
    (chat,) = resolve({**CHAT, "port": 8001, "gpus": {"count": 1}}, llama=LLAMA)
    assert chat["gpus"] == ["1"]
    found = problems({**CHAT, "port": 8001, "gpus": {"count": 2}}, llama=LLAMA)
    assert "gpus wants 2 GPU(s); free on this host: 1" in found[0]
    assert found[1].startswith("service chat: GPU 0 is also of nim-llama.service") and CURE in found[1]


def test_what_comes_back_with_the_next_boot_is_told():
    (chat,) = resolve(CHAT, llama=left({"unit": {"active": "inactive"}, "container": None}))
    (note,) = chat["notes"]
    assert note == (
        "service chat: port 8000 and GPU 0 are also of nim-llama.service, which is not in nim_services and comes back with the next boot;"
        f" {CURE}; else list it as it is, and give one of them another port or other GPUs."
    )


def test_a_process_tells_whose_a_gpu_is():
    gpus = copy.deepcopy(GPUS)
    gpus[1]["processes"] = [{"pid": 1, "name": "vllm", "used_mib": 1, "service": "llama"}]
    (problem,) = problems({**CHAT, "port": 8001, "gpus": [1]}, gpus=gpus, llama=left({"record": None}))
    assert problem.startswith("service chat: GPU 1 is also of")


def test_what_is_deployed_already_is_not_in_its_own_way():
    assert resolve(CHAT, chat=LLAMA)


def test_a_cache_alone_is_no_service():
    assert resolve(
        CHAT, llama={"unit": {"exists": False}, "container": None, "record": None, "cache": {"path": "/c/llama"}}
    )


@pytest.mark.parametrize(
    "record",
    [
        {"gpus": "0", "url": 5, "grpc_port": "x"},
        {"gpus": None, "url": "http://[", "grpc_port": None},
        {"gpus": [["x"]]},
    ],
)
def test_a_record_of_another_form_breaks_nothing(record):
    assert resolve({**CHAT, "port": 8001}, llama={**LLAMA, "record": record})


def test_services_that_are_absent_want_nothing():
    (gone,) = resolve({"name": "chat", "state": "absent"}, llama=LLAMA)
    assert gone["state"] == "absent"
