# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs that others fill: as a real H200 was recorded while vLLM served on it, and what else nvidia-smi may say."""

from __future__ import annotations

import copy
import json
import pathlib

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _gpus, _occupancy, _preflight
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_nvidia_smi
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import ResolveError, resolve_services

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
#: An H200 on which the service llama serves.
SERVING = json.loads((FIXTURES / "h200-vllm/gpu_host_info.json").read_text())
DEFAULTS = {
    "cache_root": "/var/lib/nim/cache",
    "config_dir": "/etc/nim",
    "state_dir": "/var/lib/nim/services",
    "bind_address": "127.0.0.1",
}
WANTED = {"driver_plan": {"source": "preinstalled", "change": "none", "problems": [], "prerequisites": []}}
LLM, CLASSIC = ("2.0.5", "llama-3.1-8b-instruct"), ("1.8.6", "llama-3.1-8b-instruct")
EMBED = ("2.2.2", "nemotron-embed-1b")
TOTAL = 143771


def spec(name="llama", image=LLM, gpus=(0,), port=8000, **changes):
    """An entry of nim_services."""
    return {
        "name": name,
        "image": f"nvcr.io/nim/meta/{image[1]}",
        "tag": image[0],
        "gpus": gpus if isinstance(gpus, (dict, str)) else list(gpus),
        "port": port,
        **changes,
    }


def process(pid=4711, used=125003, name="python3", **more):
    """A process of a GPU, as gpu_host_info tells it."""
    return {"pid": pid, "name": name, "used_mib": used, "unit": None, "container": None, "service": None, **more}


def gpu(index=0, *processes, used=None, total=TOTAL, **changes):
    """A GPU; its memory in use is that of its processes."""
    used = sum(item["used_mib"] or 0 for item in processes) if used is None else used
    facts = {
        "memory_total_mib": total,
        "memory_used_mib": used,
        "memory_free_mib": None if total is None else total - used,
    }
    return {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "NVIDIA H200",
        "mig_enabled": False,
        "mig_devices": [],
        "processes": list(processes),
        **facts,
        **changes,
    }


def host(*gpus, services=None, holders=(), memory=2164 * 10**9):
    """What is read of a host, as far as it matters here."""
    return {
        "gpus": list(gpus),
        "services": services or {},
        "driver": {"holders": list(holders), "loaded_version": "580.159.04", "error": None},
        "memory": {"total": memory, "available": memory},
    }


def runs(service, gpus=("0",), config_hash=None):
    """The state of a service that runs."""
    return {service: {"record": {"gpus": list(gpus)}, "container": {"running": True, "config_hash": config_hash}}}


def verdict(seen, *specs, needs=None):
    """Problems of GPU memory on a host, after the services were placed there: severity and message of each."""
    resolved = resolve_services(list(specs), seen, DEFAULTS)
    problems = _preflight._memory(seen, resolved, needs or {})
    return [(item["severity"], item["message"]) for item in problems]


def refused(seen, *specs, needs=None):
    """The only message of an error."""
    ((severity, message),) = verdict(seen, *specs, needs=needs)
    assert severity == "error", message
    return message


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_the_recorded_host_is_fit_for_its_own_service():
    assert verdict(SERVING, spec()) == []
    # A new version of it is as good: the old one gives back its memory.
    assert verdict(SERVING, spec(env={"NIM_MAX_MODEL_LEN": 2048})) == []
    assert verdict(SERVING, spec(tag="2.0.6")) == []


def test_the_recorded_memory_is_anothers_where_the_service_is_no_nim():
    seen = copy.deepcopy(SERVING)
    seen["services"] = {}
    seen["gpus"][0]["processes"][0]["service"] = None
    for holder in seen["driver"]["holders"]:
        holder["service"] = None
    message = refused(seen, spec("mine"))
    assert message == (
        "service mine: GPU 0 has 12065 of 143771 MiB left, wanted 129393 MiB (0.9 of the GPU, what its engine takes unless env says"
        " less by NIM_GPU_MEM_FRACTION or NIM_PASSTHROUGH_ARGS (--gpu-memory-utilization)); the rest is held by VLLM::EngineCore"
        " (pid 3411, 131706 MiB). Stop who holds it, give the service other GPUs, or let it take less (NIM_GPU_MEM_FRACTION or"
        " NIM_PASSTHROUGH_ARGS (--gpu-memory-utilization) in env). Next: ps -fp 3411"
    )


def test_the_recorded_report_tells_all_that_is_used():
    report = parse_nvidia_smi((FIXTURES / "h200-vllm/smi-q-x-busy.xml").read_text())
    (device,) = _gpus.devices(report["gpus"])
    held = _occupancy.strangers(device, {}, [])
    assert (held.memory // 2**20, str(held), held.pids) == (131706, "VLLM::EngineCore (pid 3411, 131706 MiB)", (3411,))


@pytest.mark.parametrize(
    ("item", "holder", "words"),
    [
        (process(), {}, "python3 (pid 4711, 125003 MiB)"),
        (process(name="/opt/conda/bin/python3.11 train.py"), {}, "python3.11 (pid 4711, 125003 MiB)"),
        (process(), {"unit": "training.service"}, "python3 (pid 4711, training.service, 125003 MiB)"),
        (process(unit="training.service"), {}, "python3 (pid 4711, training.service, 125003 MiB)"),
        (process(container="8a1b2c3d4e5f" * 5), {}, "python3 (pid 4711, container 8a1b2c3d4e5f, 125003 MiB)"),
        (process(name="[Not Found]"), {}, "a process that is not seen from here (pid 4711, 125003 MiB)"),
        (process(name="[Not Found]"), {"name": "python3"}, "python3 (pid 4711, 125003 MiB)"),
        (process(name=None), {}, "a process that is not seen from here (pid 4711, 125003 MiB)"),
        (process(name="a\x1b[2Jb\nc" + "x" * 90), {}, "a [2Jb c" + "x" * 49 + "... (pid 4711, 125003 MiB)"),
        (process(service="old"), {}, "service old, which nim_services does not list (pid 4711, 125003 MiB)"),
    ],
    ids=[
        "name",
        "path",
        "unit of the holder",
        "unit",
        "container",
        "other namespace",
        "seen by the host",
        "no name",
        "evil name",
        "forgotten service",
    ],
)
def test_strangers_in_words(item, holder, words):
    message = refused(
        host(gpu(0, item), holders=[{"pid": 4711, "name": None, "unit": None, **holder}] if holder else []), spec()
    )
    assert f"the rest is held by {words}. Stop who holds it" in message


def test_the_largest_come_first_and_not_all_are_named():
    many = [process(100 + number, used=20000 + number) for number in range(6)]
    message = refused(host(gpu(0, *many)), spec())
    assert "held by python3 (pid 105, 20005 MiB), python3 (pid 104, 20004 MiB)" in message
    assert "(pid 102, 20002 MiB) and 2 more." in message and "pid 101" not in message
    assert message.endswith("Next: ps -fp 100,101,102,103,104,105")


def test_memory_that_no_process_explains_is_somebodys():
    message = refused(host(gpu(0, used=125003)), spec())
    assert (
        "held by somebody who is not seen from here, as in another container or virtual machine (125003 MiB)" in message
    )
    assert message.endswith("Next: nvidia-smi")


def test_memory_of_processes_whose_size_is_not_told_is_theirs():
    message = refused(host(gpu(0, process(used=None), used=125003)), spec())
    assert "GPU 0 has 18768 of 143771 MiB left" in message and "held by python3 (pid 4711, unknown memory)." in message


def test_a_process_that_computes_and_draws_counts_once():
    seen = host(gpu(0, process(used=20000), process(used=20000), used=20000))
    assert verdict(seen, spec(env={"NIM_GPU_MEM_FRACTION": "0.8"})) == []
    assert "has 123771 of" in refused(seen, spec(env={"NIM_GPU_MEM_FRACTION": "0.9"}))


# -- who is none -------------------------------------------------------------------------------------------------------

OWN = process(3411, 131706, "VLLM::EngineCore", service="llama")


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(host(gpu(0)), id="nobody"),
        pytest.param(host(gpu(0, process(1, 4, "/usr/lib/xorg/Xorg"), process(2, 310, "/usr/bin/gnome-shell"))), id="a desktop"),
        pytest.param(host(gpu(0, process(1, 520, "nv-hostengine"))), id="a monitor"),
        pytest.param(host(gpu(0, process(1, 300, "Xorg"), total=23034)), id="a desktop on a small card"),
        pytest.param(host(gpu(0, used=6000)), id="the driver's own"),
        pytest.param(host(gpu(0, OWN), services=runs("llama")), id="the service itself"),
        pytest.param(host(gpu(0, OWN)), id="the service itself, of which nothing else is known"),
        pytest.param(host(gpu(0, process(3411, None, service="llama"), used=131706), services=runs("llama")), id="itself, without a size"),
        pytest.param(host(gpu(0, used=131706), services=runs("llama")), id="itself, without a process"),
        pytest.param(host(gpu(0, used=131706), services=runs("llama", ["all"])), id="itself, on all GPUs"),
        pytest.param(host(gpu(0, process(77, 131706, "[Not Found]")), services=runs("llama")), id="itself, by a number of another namespace"),
        pytest.param(host(gpu(0, process(used=None, name="python3"), used=None, total=None)), id="sizes of nothing (GB10)"),
        pytest.param(host(gpu(0, total=None, memory_used_mib=None), memory=None), id="nothing is known"),
        pytest.param(host(), id="no driver answers"),
    ],
)  # fmt: skip
def test_who_keeps_nobody_from_starting(seen):
    assert verdict(seen, spec(env={"NIM_MAX_MODEL_LEN": 2048})) == []


def test_another_service_of_the_play_is_no_stranger():
    """It goes elsewhere, or is removed, in the same run."""
    seen = host(gpu(0, process(3411, 131706, service="llama")), gpu(1), services=runs("llama"))
    assert verdict(seen, spec("llama", gpus=[1]), spec("phi", gpus=[0], port=8001)) == []
    assert verdict(seen, spec("llama", state="absent"), spec("phi", gpus=[0], port=8001)) == []
    with pytest.raises(ResolveError, match="nim-llama.service, which runs on this host and is not in nim_services"):
        verdict(seen, spec("phi", gpus=[0], port=8001))


@pytest.mark.parametrize(
    ("engine", "more", "held"),
    [
        ({"installed": True, "active": False}, {"container": "8a1b2c3d4e5f" * 5}, False),
        ({"installed": True, "active": False}, {}, True),
        ({"installed": True, "active": True}, {"container": "8a1b2c3d4e5f" * 5}, True),
        ({"installed": False, "active": False}, {"container": "8a1b2c3d4e5f" * 5}, True),
    ],
    ids=["a-container-of-a-stopped-engine", "no-container", "the-engine-knows-it-for-anothers", "another-engine"],
)
def test_a_stopped_engine_tells_nobody_whose_its_containers_are(engine, more, held):
    """They outlive it (live-restore), and the run that is to start it again must not be refused for its own service."""
    (device,) = _gpus.devices([gpu(0, process(**more))])
    assert bool(_occupancy.strangers(device, {"engine": engine}, ["llama"]).memory) is held


def test_who_is_seen_beside_the_service_is_a_stranger_all_the_same():
    both = gpu(0, process(3411, 70000, service="llama"), process(4711, 60000))
    seen = host(both, services=runs("llama"), holders=[{"pid": 4711, "name": "python3", "unit": None}])
    assert "python3 (pid 4711, 60000 MiB)" in refused(seen, spec())
    # A process that the host knows is no number of another namespace.
    hidden = host(
        gpu(0, process(4711, 125003)), services=runs("llama"), holders=[{"pid": 4711, "name": "python3", "unit": None}]
    )
    assert "python3 (pid 4711, 125003 MiB)" in refused(hidden, spec())


def test_a_service_that_runs_as_it_is_wanted_is_never_refused():
    wanted = resolve_services([spec()], {"gpus": []}, DEFAULTS)[0]["config_hash"]
    shared = gpu(0, process(3411, 70000, service="llama"), process(4711, 60000))
    assert verdict(host(shared, services=runs("llama", config_hash=wanted)), spec()) == []
    assert refused(host(shared, services=runs("llama", config_hash="of another configuration")), spec())
    stopped = runs("llama", config_hash=wanted)
    stopped["llama"]["container"]["running"] = False
    assert refused(host(gpu(0, process()), services=stopped), spec())


def test_a_service_that_is_removed_needs_nothing():
    assert verdict(host(gpu(0, process())), spec(state="absent")) == []


# -- how much must be free ---------------------------------------------------------------------------------------------


def need(memory_mib=None, gpus=None):
    """What NVIDIA published about an image."""
    return {
        "llama": {
            "memory_mib": memory_mib,
            "gpus": gpus,
            "driver": None,
            "source": "NVIDIA",
            "note": "profile x",
            "answered": True,
        }
    }


@pytest.mark.parametrize(
    ("held", "changes", "needs", "fits"),
    [
        pytest.param(10000, {}, None, True, id="an engine that takes 0.9"),
        pytest.param(15000, {}, None, False, id="which is not there"),
        pytest.param(15000, {"image": CLASSIC}, None, False, id="NIM 1.x"),
        pytest.param(100000, {"env": {"NIM_GPU_MEM_FRACTION": "0.3"}}, None, True, id="a part by env"),
        pytest.param(101000, {"env": {"NIM_GPU_MEM_FRACTION": "0.3"}}, None, False, id="a part by env that is not there"),
        pytest.param(100000, {"env": {"NIM_PASSTHROUGH_ARGS": "--gpu-memory-utilization 0.3"}}, None, True, id="a part by arguments"),
        pytest.param(70000, {"image": EMBED}, None, True, id="an engine that takes what it needs"),
        pytest.param(73000, {"image": EMBED}, None, False, id="of which half is thought to be enough"),
        pytest.param(100000, {"image": EMBED}, need(20000), True, id="as published"),
        pytest.param(125003, {"image": EMBED}, need(20000), False, id="not as published"),
        pytest.param(60000, {"image": CLASSIC}, need(80000), True, id="NIM 1.x as published"),
        pytest.param(60000, {}, need(80000), False, id="vLLM wants its part at its start"),
        pytest.param(5000, {}, need(140000), False, id="more than its part is published"),
        pytest.param(100000, {"env": {"NIM_GPU_MEM_FRACTION": "0.3"}}, need(80000), True, id="env goes before"),
        pytest.param(100000, {"env": {"NIM_GPU_MEM_FRACTION": "much"}}, None, False, id="env that is no number"),
    ],
)  # fmt: skip
def test_how_much_must_be_free(held, changes, needs, fits):
    problems = verdict(host(gpu(0, process(used=held))), spec(**changes), needs=needs)
    assert (problems == []) == fits, problems


def test_services_that_share_a_gpu_need_their_parts_together():
    def half(name, port, part):
        return spec(name, port=port, gpu_shared=True, env={"NIM_GPU_MEM_FRACTION": part})

    seen = host(gpu(0, process(used=40000)))
    assert verdict(seen, half("a", 8000, "0.4"), half("b", 8001, "0.3")) == []
    problems = verdict(seen, half("a", 8000, "0.4"), half("b", 8001, "0.4"))
    assert [severity for severity, _message in problems] == ["error"] * 2
    assert "wanted 115016 MiB (0.4 of the GPU, by its env; b: 0.4 of the GPU, by its env)" in problems[0][1]
    # One that runs beside has its memory already, and is counted by what it may take.
    both = host(gpu(0, process(3411, 57000, service="b"), process(used=20000)), services=runs("b"))
    assert verdict(both, half("a", 8000, "0.4"), half("b", 8001, "0.4")) == []


def test_memory_that_gpu_and_host_share():
    """nvidia-smi tells no memory of a GB10, but of its processes."""

    def spark(used):
        return host(gpu(0, process(used=used), total=None, used=None, memory_used_mib=None), memory=128 * 2**30)

    assert verdict(spark(20000), spec()) == []
    assert "GPU 0 has 31072 of 131072 MiB left, wanted 104857 MiB (0.8 of the GPU" in refused(spark(100000), spec())
    assert verdict(spark(20000), spec(env={"NIM_GPU_MEM_FRACTION": "0.8"})) == []


def test_parts_that_mig_made():
    part = {"uuid": None, "memory_total_mib": 71680, "memory_used_mib": 60000}
    parts = [
        {**part, "name": "0:0", "gpu_instance": "1"},
        {**part, "name": "0:1", "gpu_instance": "2", "memory_used_mib": 13},
    ]
    divided = gpu(0, process(used=59990, gpu_instance="1"), used=60013, mig_enabled=True, mig_devices=parts)
    message = refused(host(divided), spec(gpus=["0:0"]))
    assert "GPU 0:0 has 11690 of 71680 MiB left" in message and "python3 (pid 4711, 59990 MiB)" in message
    assert verdict(host(divided), spec(gpus=["0:1"])) == []
    # Most drivers tell no process of a part; its memory is told.
    silent = gpu(0, used=60013, mig_enabled=True, mig_devices=parts)
    assert "somebody who is not seen from here" in refused(host(silent), spec(gpus=["0:0"]))
    assert resolve_services([spec(gpus={"count": 1})], host(silent), DEFAULTS)[0]["gpus"] == ["0:1"]


# -- where else --------------------------------------------------------------------------------------------------------


def placed(seen, *specs):
    """GPUs of the services."""
    return [service["gpus"] for service in resolve_services(list(specs), seen, DEFAULTS)]


def test_who_says_how_many_gets_those_that_are_free():
    seen = host(gpu(0, process()), gpu(1), gpu(2, process()), gpu(3))
    one, two = {"count": 1}, {"count": 2}
    assert placed(seen, spec(gpus=one)) == [["1"]]
    assert placed(seen, spec(gpus=two)) == [["1", "3"]]
    assert placed(seen, spec(gpus=one), spec("b", gpus=one, port=8001)) == [["1"], ["3"]]
    assert placed(host(gpu(0, process(used=400)), gpu(1)), spec(gpus=one)) == [["0"]]


def test_who_says_how_many_of_too_few_is_refused_with_the_names():
    seen = host(gpu(0, process()), gpu(1, process(4712, 90000, "jupyter")))
    message = refused(seen, spec(gpus={"count": 2}))
    assert (
        "python3 (pid 4711, 125003 MiB); GPU 1 has 53771 of 143771 MiB left" in message
        and "jupyter (pid 4712, 90000 MiB)" in message
    )
    assert message.endswith("Next: ps -fp 4711,4712")


def test_what_runs_stays_where_it_is():
    own = process(3411, 70000, service="llama")
    seen = host(gpu(0), gpu(1, own, process(used=60000)), services=runs("llama", ["1"]))
    assert placed(seen, spec(gpus={"count": 1})) == [["1"]]
    # What does not run goes where there is room, and stays where there is none.
    stopped = {"llama": {"record": {"gpus": ["1"]}, "container": None}}
    assert placed(host(gpu(0), gpu(1, process()), services=stopped), spec(gpus={"count": 1})) == [["0"]]
    assert placed(host(gpu(0, process()), gpu(1, process()), services=stopped), spec(gpus={"count": 1})) == [["1"]]


def test_all_gpus_of_which_some_are_filled():
    """An engine takes those that it finds free; whoever needs more of them is refused."""
    seen = host(gpu(0, process()), gpu(1))
    ((severity, message),) = verdict(seen, spec(gpus="all"))
    assert severity == "warning" and "GPU 0 has 18768" in message and "It has others beside" in message
    assert refused(seen, spec(gpus="all"), needs=need(20000, 2))
    assert refused(seen, spec(gpus=[0, 1]))
    assert [severity for severity, _message in verdict(seen, spec(gpus=[0, 1]), needs=need(20000, 1))] == ["warning"]
    assert refused(host(gpu(0, process()), gpu(1, process())), spec(gpus="all"))
