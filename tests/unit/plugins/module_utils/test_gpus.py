# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets which GPU, on a host of four whole ones, one of two parts (MIG) and one that shares its memory with the host."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _gpus
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import ResolveError, resolve_services

DEFAULTS = {
    "cache_root": "/var/lib/nim/cache",
    "config_dir": "/etc/nim",
    "state_dir": "/var/lib/nim/services",
    "bind_address": "127.0.0.1",
}
H100, L40S = 81559, 46068


def gpu(index, memory=H100, parts=None):
    """A GPU as gpu_host_info tells it; PARTS are the memories of what MIG made of it."""
    return {
        "index": index,
        "uuid": f"GPU-{index}",
        "memory_total_mib": memory,
        "mig_enabled": parts is not None,
        "mig_devices": [
            {"uuid": None, "name": f"{index}:{number}", "memory_total_mib": part}
            for number, part in enumerate(parts or [])
        ],
    }


FOUR = [gpu(0), gpu(1), gpu(2, L40S), gpu(3)]
MIG = [gpu(0, parts=[20096, 40448]), gpu(1)]
SPARK = [gpu(0, memory=None)]


def spec(name, number, gpus, fraction=None, **changes):
    """A service on a port of its own; with FRACTION it shares its GPU."""
    shared = {} if fraction is None else {"gpu_shared": True, "env": {"NIM_KVCACHE_PERCENT": fraction}}
    image = {"image": "nvcr.io/nim/meta/llama-3.1-8b-instruct", "tag": "1.8.6"}
    return {"name": name, "port": 8000 + number, "gpus": gpus, **image, **shared, **changes}


def resolve(present, *gpus, records=None):
    """Resolved services that want GPUS, one after another; RECORDS are those that run on the host already."""
    services = {name: {"record": {"gpus": names}} for name, names in (records or {}).items()}
    wanted = [spec(f"s{number}", number, item) for number, item in enumerate(gpus)]
    return resolve_services(wanted, {"gpus": present, "services": services}, DEFAULTS)


@pytest.mark.parametrize(
    ("present", "wanted", "given"),
    [
        pytest.param(FOUR, [{"count": 1}], [["2"]], id="smallest that does"),
        pytest.param(FOUR, [{"count": 2, "memory_gb": 80}], [["0", "1"]], id="by memory"),
        pytest.param(FOUR, [{"memory_gb": 48}], [["2"]], id="one by default"),
        pytest.param(FOUR, [{"count": "3", "memory_gb": "60"}], [["0", "1", "3"]], id="numbers from a survey"),
        pytest.param(FOUR, [{"count": 1, "memory_gb": 60}, [0]], [["1"], ["0"]], id="who names a GPU has it"),
        pytest.param(
            FOUR, [{"count": 1}, {"count": 1}, {"count": 2}], [["2"], ["0"], ["1", "3"]], id="one after another"
        ),
        pytest.param(MIG, [{"count": 1}], [["0:0"]], id="a part is a GPU"),
        pytest.param(MIG, [{"memory_gb": 40}], [["0:1"]], id="a part by memory"),
        pytest.param(MIG, [["0:0"], [1], "0:1"], [["0:0"], ["1"], ["0:1"]], id="parts by name"),
        pytest.param(SPARK, [{"memory_gb": 100}], [["0"]], id="memory of the host"),
        pytest.param([], [[1], {"count": 2}], [["1"], ["0", "2"]], id="no driver yet"),
    ],
)
def test_placement(present, wanted, given):
    assert [service["gpus"] for service in resolve(present, *wanted)] == given


def test_devices_and_hash_follow_the_placement():
    named, counted = resolve(FOUR, [2])[0], resolve(FOUR, {"count": 1})[0]
    assert counted["devices"] == ["nvidia.com/gpu=2"]
    assert counted["config_hash"] == named["config_hash"]


def test_another_service_moves_nobody():
    before = resolve(FOUR, {"count": 1}, {"count": 1})
    records = {service["name"]: service["gpus"] for service in before}
    after = resolve(FOUR, {"count": 1}, {"count": 1}, {"count": 1}, records=records)
    assert [service["gpus"] for service in after] == [["2"], ["0"], ["1"]]
    # The first one goes; the second one stays where it is.
    wanted = [spec("s1", 1, {"count": 1})]
    host = {"gpus": FOUR, "services": {"s1": {"record": {"gpus": ["0"]}}}}
    assert resolve_services(wanted, host, DEFAULTS)[0]["gpus"] == ["0"]


@pytest.mark.parametrize(
    ("record", "wish", "given"),
    [
        pytest.param(["2"], {"memory_gb": 60}, ["0"], id="too small now"),
        pytest.param(["7"], {"count": 1}, ["2"], id="gone"),
        pytest.param(["0"], {"count": 2}, ["2", "0"], id="one more"),
        pytest.param(["all"], {"count": 1}, ["2"], id="had all"),
    ],
)
def test_what_does_not_fit_any_more_is_placed_anew(record, wish, given):
    assert set(resolve(FOUR, wish, records={"s0": record})[0]["gpus"]) == set(given)


@pytest.mark.parametrize(
    ("present", "wanted", "said"),
    [
        pytest.param(FOUR, [{"count": 5}], ["s0: gpus wants 5 GPU(s)", "3 (GPU-3) with 86 GB", "want less"], id="more than there are"),
        pytest.param(FOUR, [{"count": 4, "memory_gb": 60}], ["4 GPU(s) of 60 GB or more", "2 (GPU-2) with 48 GB"], id="too small"),
        pytest.param(FOUR, ["all", {"count": 1}], ["s1: gpus wants 1 GPU(s)", "free on this host: none"], id="all are taken"),
        pytest.param(FOUR, [{"count": 0}], ["gpus.count is 0", "from 1"], id="none"),
        pytest.param(FOUR, [{"count": "two"}], ["gpus.count is 'two'"], id="a word"),
        pytest.param(FOUR, [{"memory_gb": "80GB"}], ["gpus.memory_gb is '80GB'", "integer of GB"], id="memory with its unit"),
        pytest.param(FOUR, [{"memory": 80}], ["unknown key 'memory'", "Did you mean 'memory_gb'?"], id="misspelt"),
        pytest.param(MIG, [[0]], ["gpus names 0, which MIG divides", "0:0, 0:1"], id="whole GPU that is divided"),
        pytest.param(MIG, [["0:2"]], ["gpus names '0:2'", "has 0:0, 0:1, 1 (GPU-1)"], id="part that is not there"),
        pytest.param([gpu(0, parts=[])], [["GPU-0"]], ["which MIG divides", "none yet"], id="divided into nothing"),
        pytest.param(MIG, [["0:0"], ["0:0"]], ["s1: GPU 0:0 is also used by service s0"], id="one part twice"),
    ],
)  # fmt: skip
def test_placement_that_cannot_be(present, wanted, said):
    with pytest.raises(ResolveError) as caught:
        resolve(present, *wanted)
    (problem,) = caught.value.problems
    for words in said:
        assert words in problem


@pytest.mark.parametrize(
    ("env", "value"),
    [
        ({}, None),
        ({"NIM_KVCACHE_PERCENT": "0.4"}, 0.4),
        ({"NIM_GPU_MEM_FRACTION": "1"}, 1.0),
        ({"NIM_PASSTHROUGH_ARGS": "--max-num-seqs 8 --gpu-memory-utilization 0.35"}, 0.35),
        ({"NIM_PASSTHROUGH_ARGS": "--mem-fraction-static=0.5"}, 0.5),
        ({"NIM_PASSTHROUGH_ARGS": "--max-num-seqs 8"}, None),
    ],
)
def test_fraction(env, value):
    assert _gpus.fraction(env) == value


@pytest.mark.parametrize("text", ["0", "1.5", "40%", "-0.1", "nan"])
def test_fraction_that_is_none(text):
    with pytest.raises(ValueError, match=text):
        _gpus.fraction({"NIM_KVCACHE_PERCENT": text})


def shared(present, *fractions):
    """Services that share the first GPU, each with a part of its memory."""
    return resolve_services(
        [spec(f"s{number}", number, [0], fraction) for number, fraction in enumerate(fractions)],
        {"gpus": present},
        DEFAULTS,
    )


@pytest.mark.parametrize(("present", "fractions"), [(FOUR, (0.4, 0.6)), (FOUR, (0.1, 0.2, 0.7)), (SPARK, (0.4, 0.4))])
def test_promises_that_can_be_kept(present, fractions):
    assert len(shared(present, *fractions)) == len(fractions)


@pytest.mark.parametrize(
    ("present", "fractions", "said"),
    [
        (FOUR, (0.6, 0.5), "GPU GPU-0 is promised to s0 0.6, s1 0.5, 1.1 in all, wanted at most 1;"),
        (SPARK, (0.5, 0.4), "0.9 in all, wanted at most 0.8;"),
        (
            FOUR,
            (0.5, "half"),
            "service s1: shares a GPU and says 'half', wanted a number from 0 to 1; set NIM_KVCACHE_PERCENT",
        ),
    ],
)
def test_promises_that_cannot_be_kept(present, fractions, said):
    with pytest.raises(ResolveError) as caught:
        shared(present, *fractions)
    (problem,) = caught.value.problems
    assert said in problem


def test_who_takes_what_it_needs_says_nothing():
    retriever = {
        "name": "embed", "image": "nvcr.io/nim/nvidia/llama-nemotron-embed-1b-v2", "tag": "2.2.2", "port": 8100, "gpus": [0],
        "gpu_shared": True,
    }  # fmt: skip
    services = [spec("s0", 0, [0], 0.7), retriever, {**retriever, "name": "embed-2", "port": 8101}]
    assert len(resolve_services(services, {"gpus": FOUR}, DEFAULTS)) == 3


def test_who_shares_says_how_much():
    both = [spec("s0", 0, [0], gpu_shared=True), spec("s1", 1, [0], gpu_shared=True, tag="2.0.5")]
    with pytest.raises(ResolveError) as caught:
        resolve_services(both, {"gpus": FOUR}, DEFAULTS)
    assert [problem.partition(" in env")[0] for problem in caught.value.problems] == [
        "service s0: shares a GPU and says no memory fraction; set NIM_KVCACHE_PERCENT",
        (
            "service s1: shares a GPU and says no memory fraction; set NIM_GPU_MEM_FRACTION or NIM_PASSTHROUGH_ARGS"
            " (--gpu-memory-utilization)"
        ),
    ]
