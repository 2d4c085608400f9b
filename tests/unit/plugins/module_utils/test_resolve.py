# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From nim_services to resolved services and the changes they need. The host's GPUs are two recorded H200."""

from __future__ import annotations

import copy
import ipaddress
import json
import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _resolve, _written
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import (
    CONTRACTS,
    NATIVE_PROTOCOL,
    PROTOCOL_LABEL,
)
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_nvidia_smi
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import (
    ResolveError,
    resolve_services,
    service_changes,
)

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
DIGEST = "sha256:6b3d3a4e3c1f7e0a9d5c2b8f4e6a7d9c0b1f2e3d4c5b6a798897a6b5c4d3e2f1"
IMAGE_NAME = f"{IMAGE}:1.8.6"
LLAMA = {"name": "llama", "image": IMAGE, "tag": "1.8.6", "gpus": [0]}
DEFAULTS = {
    "cache_root": "/var/lib/nim/cache",
    "config_dir": "/etc/nim",
    "state_dir": "/var/lib/nim/services",
    "bind_address": "127.0.0.1",
    "cache_size_gb": 0,
}
HOST = {"gpus": parse_nvidia_smi((FIXTURES / "h200-x2" / "idle.xml").read_text())["gpus"], "services": {}, "images": {}}
GPU0, GPU1 = (gpu["uuid"] for gpu in HOST["gpus"])
UNSET = object()
UNIT_PATHS = {
    "docker": "/etc/systemd/system/nim-llama.service",
    "podman": "/etc/containers/systemd/nim-llama.container",
}
HUB = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
SHARES = {"gpu_shared": True, "env": {"NIM_KVCACHE_PERCENT": 0.4}}


def spec(**changes):
    """The entry of a good service, changed; UNSET takes an option away."""
    return {key: value for key, value in {**LLAMA, **changes}.items() if value is not UNSET}


def resolve(*specs, host=HOST, **defaults):
    """The resolved services."""
    return resolve_services(list(specs), host, {**DEFAULTS, **defaults})


def problems(*specs, host=HOST):
    """What is wrong with the services."""
    with pytest.raises(ResolveError) as caught:
        resolve(*specs, host=host)
    return caught.value.problems


#: The watchdog of a service that says nothing of it.
WATCHED = {
    "enabled": True,
    "format": 3,
    "probe": "chat",
    "idle": 300,
    "timeout": 60,
    "failures": 3,
    "limit": 3,
    "ready_path": "/v1/health/ready",
    "start_timeout": 1800,
}


def test_classic_service():
    assert resolve(LLAMA) == [
        {
            "name": "llama",
            "engine": "docker",
            "state": "present",
            "unit": "nim-llama.service",
            "container": "nim-llama",
            "cache": "/var/lib/nim/cache/llama",
            "cache_read_only": False,
            "cache_marker": "cache",
            "unit_path": "/etc/systemd/system/nim-llama.service",
            "unit_paths": UNIT_PATHS,
            "env_path": "/etc/nim/llama.env",
            "key_path": "/etc/nim/llama.key",
            "record_path": "/var/lib/nim/services/llama.json",
            "registry": "nvcr.io",
            "repository": IMAGE,
            "tag": "1.8.6",
            "digest": "",
            "image": f"{IMAGE}:1.8.6",
            "contract": "classic",
            "contract_guessed": True,
            "model": "",
            "gpus": ["0"],
            "gpu_request": None,
            "gpu_shared": False,
            "memory_variable": "NIM_KVCACHE_PERCENT",
            "devices": ["nvidia.com/gpu=0"],
            "bind_address": "127.0.0.1",
            "port": 8000,
            "grpc_port": 0,
            "publish": ["127.0.0.1:8000:8000"],
            "url": "http://127.0.0.1:8000",
            "ready_path": "/v1/health/ready",
            "mounts": {"": "/opt/nim/.cache"},
            "cache_bytes": 0,
            "uid": 1000,
            "gid": 1000,
            "env": {"NIM_TELEMETRY_MODE": "0"},
            "env_hidden": [],
            "shm_size": "16g",
            "ulimits": ["memlock=-1", "stack=67108864", "nofile=65536"],
            "log_rate": 10000,
            "capabilities": [],
            "read_only": False,
            "key_at_runtime": False,
            "key_digest": "",
            "start_timeout": 1800,
            "stop_timeout": 60,
            "prefetch": ["download-to-cache"],
            "prefetch_entrypoint": False,
            "prefetch_env": {},
            "offline": False,
            "cache_seed": "",
            "verify": {},
            "watchdog": WATCHED,
            "notes": [],
            "share_key": "1da7ffe142ed9a21ed8780031d70e108ea1c65a144d05756f0d578886be539cd",
            # These two say what restarts a service and what downloads its weights again: a change of the code that
            # changes them does so on every host, once.
            "stage_key": "f3511fcfb16806325f8a46f1d13d2c343d33d7be8df04510fa9316d0b2f2f5c7",
            "config_hash": "8c95d94611e9d38cda2997d69715e51c2d41e343780b2ae232d4148f3cab03a7",
        }
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"gpus": UNSET}, {"gpus": ["all"], "devices": ["nvidia.com/gpu=all"]}, id="all-gpus-by-default"),
        pytest.param({"gpus": "all"}, {"devices": ["nvidia.com/gpu=all"]}, id="all-gpus"),
        pytest.param({"gpus": 1}, {"devices": ["nvidia.com/gpu=1"]}, id="one-gpu-without-a-list"),
        pytest.param(
            {"gpus": ["0", " 1 "]}, {"devices": ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]}, id="gpus-from-survey"
        ),
        pytest.param({"gpus": [GPU1]}, {"gpus": [GPU1], "devices": [f"nvidia.com/gpu={GPU1}"]}, id="gpu-by-uuid"),
        pytest.param(
            {"gpus": (0, GPU1)}, {"devices": ["nvidia.com/gpu=0", f"nvidia.com/gpu={GPU1}"]}, id="index-and-uuid"
        ),
        pytest.param(
            {"tag": "2.0.10", "profile": "vllm-bf16-tp1-pp1"},
            {
                "contract": "llm",
                "prefetch": ["download-to-cache", "--profile", "vllm-bf16-tp1-pp1"],
                "env": {"NIM_TELEMETRY_MODE": "0", "NIM_MODEL_PROFILE": "vllm-bf16-tp1-pp1"},
            },
            id="llm-with-profile",
        ),
        pytest.param(
            {"profile": "8b57"},
            {"contract": "classic", "prefetch": ["download-to-cache", "-p", "8b57"]},
            id="classic-with-profile",
        ),
        pytest.param({"tag": "3.1.0"}, {"contract": "llm"}, id="llm-3"),
        pytest.param({"tag": "v1.15"}, {"contract": "classic"}, id="tag-with-v"),
        pytest.param({"tag": "1"}, {"contract": "classic"}, id="major-only"),
        pytest.param({"tag": "1.8.6-rtx"}, {"contract": "classic"}, id="tag-with-suffix"),
        pytest.param({"tag": "25.04", "contract": "llm"}, {"contract": "llm"}, id="contract-said"),
        pytest.param(
            {"tag": UNSET, "digest": DIGEST, "contract": "classic"},
            {"image": f"{IMAGE}@{DIGEST}", "tag": "", "digest": DIGEST, "contract": "classic"},
            id="digest",
        ),
        pytest.param(
            {"digest": DIGEST}, {"image": f"{IMAGE}@{DIGEST}", "contract": "classic"}, id="digest-wins-over-tag"
        ),
        pytest.param(
            {"image": "mirror.example.com:5000/nim/nvidia/llama-3.2-nv-embedqa-1b-v2"},
            {
                "registry": "mirror.example.com:5000",
                "repository": "mirror.example.com:5000/nim/nvidia/llama-3.2-nv-embedqa-1b-v2",
            },
            id="mirror-with-port",
        ),
        pytest.param(
            {"port": "8001"},
            {"port": 8001, "publish": ["127.0.0.1:8001:8000"], "url": "http://127.0.0.1:8001"},
            id="port-from-survey",
        ),
        pytest.param(
            {"bind_address": "0.0.0.0"},  # noqa: S104 - what an operator writes
            {"publish": ["0.0.0.0:8000:8000"], "url": "http://127.0.0.1:8000"},
            id="everywhere-is-asked-on-loopback",
        ),
        pytest.param(
            {"bind_address": "::"}, {"publish": ["[::]:8000:8000"], "url": "http://[::1]:8000"}, id="everywhere-ipv6"
        ),
        pytest.param(
            {"bind_address": "fd00:10::7"},
            {"bind_address": "fd00:10::7", "publish": ["[fd00:10::7]:8000:8000"], "url": "http://[fd00:10::7]:8000"},
            id="ipv6",
        ),
        pytest.param({"bind_address": ""}, {"bind_address": "127.0.0.1"}, id="empty-bind-address-from-survey"),
        pytest.param({"cache_size_gb": "16"}, {"cache_bytes": 16_000_000_000}, id="cache-size-from-survey"),
        pytest.param({"uid": "0", "gid": 500}, {"uid": 0, "gid": 500}, id="owner"),
        pytest.param(
            {"port": 1, "gid": 0, "cache_size_gb": 0, "start_timeout": 1, "stop_timeout": 1},
            {"port": 1, "gid": 0, "cache_bytes": 0, "start_timeout": 1, "stop_timeout": 1},
            id="smallest-numbers",
        ),
        pytest.param(
            {"port": 65535, "start_timeout": 86400, "stop_timeout": 3600, "cache_size_gb": 100000},
            {"port": 65535, "start_timeout": 86400, "stop_timeout": 3600, "cache_bytes": 10**14},
            id="largest-numbers",
        ),
        pytest.param({"gpu_shared": "Yes"}, {"gpu_shared": True}, id="yes-from-survey"),
        pytest.param({"gpu_shared": "false"}, {"gpu_shared": False}, id="false-from-survey"),
        pytest.param(
            {"env": {"NIM_MAX_MODEL_LEN": 8192, "NIM_ENABLE_KV_CACHE_REUSE": True, "_X": "a=b #c"}},
            {
                "env": {
                    "NIM_TELEMETRY_MODE": "0",
                    "NIM_MAX_MODEL_LEN": "8192",
                    "NIM_ENABLE_KV_CACHE_REUSE": "true",
                    "_X": "a=b #c",
                }
            },
            id="env",
        ),
        pytest.param(
            {"env": {"NIM_TELEMETRY_MODE": 1}}, {"env": {"NIM_TELEMETRY_MODE": "1"}}, id="env-wins-over-contract"
        ),
        pytest.param(
            {"env": None, "verify": None}, {"env": {"NIM_TELEMETRY_MODE": "0"}, "verify": {}}, id="empty-dictionaries"
        ),
        pytest.param(
            {"ulimits": ["memlock=-1:-1", "nofile=1024:65536"]},
            {"ulimits": ["memlock=-1:-1", "nofile=1024:65536"]},
            id="ulimits",
        ),
        pytest.param({"ulimits": []}, {"ulimits": []}, id="no-ulimits"),
        pytest.param({"capabilities": None}, {"capabilities": []}, id="no-capabilities-by-default"),
        pytest.param(
            {"capabilities": ["SYS_PTRACE", "IPC_LOCK"]},
            {"capabilities": ["SYS_PTRACE", "IPC_LOCK"]},
            id="capabilities",
        ),
        pytest.param({"read_only": "yes"}, {"read_only": True}, id="read-only-from-survey"),
        pytest.param({"key_at_runtime": "no"}, {"key_at_runtime": False}, id="no-key-from-survey"),
        pytest.param({"shm_size": "512m"}, {"shm_size": "512m"}, id="shm-size"),
        pytest.param({"shm_size": 1073741824}, {"shm_size": "1073741824"}, id="shm-size-in-bytes"),
        pytest.param(
            {"verify": {"prompt": "What is 2 + 2?", "expect_regex": "4|four"}},
            {"verify": {"prompt": "What is 2 + 2?", "expect_regex": "4|four"}},
            id="verify",
        ),
        pytest.param(
            {"verify": {"prompts": [{"prompt": "What is 2 + 2?", "expect_regex": "4"}]}},
            {"verify": {"prompts": [{"prompt": "What is 2 + 2?", "expect_regex": "4"}]}},
            id="verify-prompts",
        ),
        pytest.param({"watchdog": None}, {"watchdog": WATCHED}, id="watchdog-empty"),
        pytest.param({"watchdog": {}}, {"watchdog": WATCHED}, id="watchdog-empty-dictionary"),
        pytest.param({"watchdog": True}, {"watchdog": WATCHED}, id="watchdog-on"),
        pytest.param({"watchdog": "yes"}, {"watchdog": WATCHED}, id="watchdog-on-from-survey"),
        pytest.param({"watchdog": False}, {"watchdog": {"enabled": False}}, id="watchdog-off"),
        pytest.param({"watchdog": "no"}, {"watchdog": {"enabled": False}}, id="watchdog-off-from-survey"),
        pytest.param(
            {"watchdog": {"enabled": False, "idle": 5}},
            {"watchdog": {"enabled": False}},
            id="watchdog-off-with-options",
        ),
        pytest.param(
            {"watchdog": {"probe": "health", "idle": "600", "limit": 1}, "start_timeout": 60},
            {"watchdog": {**WATCHED, "probe": "health", "idle": 600, "limit": 1, "start_timeout": 60}},
            id="watchdog-options",
        ),
        pytest.param({"name": "a" * 48}, {"unit": f"nim-{'a' * 48}.service"}, id="longest-name"),
        pytest.param({"name": "7"}, {"name": "7", "container": "nim-7"}, id="name-of-one-digit"),
    ],
)
def test_good_service(changes, expected):
    (service,) = resolve(spec(**changes))
    assert {key: service[key] for key in expected} == expected


@pytest.mark.parametrize(
    "env",
    [
        {"NIM_PEFT_SOURCE": "/opt/nim/.cache/loras", "NIM_PEFT_REFRESH_INTERVAL": "10"},
        {"NIM_PEFT_SOURCE": "/opt/nim/.cache"},
        {"NIM_MODEL_NAME": "meta/llama-3.1-8b-instruct"},
        {"NIM_MODEL_PATH": "hf://jinaai/jina-embeddings-v3"},
        {"NIM_SSL_MODE": "disabled"},
        {"NIM_SSL_MODE": ""},
        # The image brings it.
        {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"},
    ],
    ids=lambda env: "-".join(f"{key}={value}" for key, value in env.items()),
)
def test_what_the_image_or_the_cache_has_is_taken(env):
    (service,) = resolve(spec(tag="2.0.5", env=env))
    assert {key: service["env"][key] for key in env} == env


def test_the_port_that_the_container_has_anyway_is_taken_and_not_handed_on():
    (service,) = resolve(spec(env={"NIM_HTTP_API_PORT": 8000, "A": "b"}))
    assert "NIM_HTTP_API_PORT" not in service["env"] and service["env"]["A"] == "b"


def test_the_port_by_which_vllm_talks_to_itself_is_no_such():
    assert "env has VLLM_PORT; use the option port instead." in problems(spec(env={"VLLM_PORT": 8000}))[0]


@pytest.mark.parametrize(
    ("env", "notes"),
    [
        ({"NIM_MAX_MODEL_LENGTH": 8192}, ["NIM_MAX_MODEL_LENGTH, which NIM is not known to read. Did you mean NIM_MAX_MODEL_LEN?"]),
        ({"NIM_KVCACHE_PERCENTAGE": 0.5}, ["Did you mean NIM_KVCACHE_PERCENT?"]),
        ({"NIM_LOG_LEVL": "INFO"}, ["Did you mean NIM_LOG_LEVEL?"]),
        ({"NIM_MAX_MODEL_LEN": 8192, "NIM_LAB_FAULT": "x", "NIM_TRITON_LOG_VERBOSE": 1, "NCCL_P2P_DISABLE": 1}, []),
    ],
    ids=["longer", "longer still", "misspelt", "known, or of nobody's list"],
)  # fmt: skip
def test_variable_that_is_nearly_a_known_one_is_told(env, notes):
    (service,) = resolve(spec(env=env))
    assert len(service["notes"]) == len(notes)
    for note, words in zip(service["notes"], notes):
        assert note.startswith("service llama: env has NIM_")
        assert words in note


@pytest.mark.parametrize(
    ("image", "tag", "contract"),
    [
        ("meta/llama-3.1-8b-instruct", "1.8.6", "classic"),
        ("meta/llama-3.1-8b-instruct", "2.0.10", "llm"),
        ("nvidia/model-free-nim", "2.0.13", "llm"),
        ("nvidia/nemotron-nano-12b-v2-vl", "2.1.1", "llm"),
        ("nvidia/llama-3.2-nv-embedqa-1b-v2", "1.10.0", "classic"),
        ("nvidia/nemotron-3-embed-1b", "2.2.2", "native"),
        ("nvidia/llama-nemotron-rerank-vl-1b-v2", "2.3.0", "native"),
        ("nvidia/nemotron-ocr-v2", "2.0.1", "native"),
        ("nvidia/nemotron-parse", "2.4.0", "native"),
        ("nvidia/nemotron-parse-v1.2", "1.7.0-variant", "classic"),
        ("nvidia/nemotron-object-detection", "2.0.1", "native"),
        ("nvidia/parakeet-1-1b-ctc-en-us", "1.5.0", "speech"),
        ("nvidia/riva-translate-1.6b", "1.3.2", "speech"),
        ("nvidia/magpie-tts-multilingual", "1.6.0", "speech"),
        ("nvidia/nemotron-asr-streaming", "26.10", "speech"),
        ("mit/boltz2", "1.8.0", "classic"),
        ("arc/evo2-40b", "2.1.0", "classic"),
        ("mit/diffdock", "2.3.0", "classic"),
        ("openfold/openfold2", "2.6.0", "classic"),
        ("nvidia/fourcastnet", "2.0.0", "classic"),
        ("nvidia/audio2face-3d", "2.0", "classic"),
        ("nvidia/cosmos3", "2.1.0", "classic"),
        ("nvidia/cosmos3-reasoner", "2.0.1", "llm"),
        ("mit/diffdock", "latest", ""),
        ("nvidia/nemotron-3-embed-1b", "latest-rc", ""),
        ("meta/llama", "25.04", ""),
        ("meta/llama", "", ""),
    ],
)
def test_contract_of_an_image(image, tag, contract):
    assert _resolve.contract_of(f"nvcr.io/nim/{image}", tag) == contract


RETRIEVER = "nvcr.io/nim/nvidia/retriever"
NATIVE, OTHERWISE = ({"found": True, "labels": {PROTOCOL_LABEL: said}} for said in (NATIVE_PROTOCOL, "ngc-v3"))


@pytest.mark.parametrize(
    ("pin", "name"),
    [
        ({"tag": "2.4.0"}, f"{RETRIEVER}:2.4.0"),
        ({"digest": DIGEST, "tag": UNSET}, f"{RETRIEVER}@{DIGEST}"),
        ({"digest": DIGEST, "tag": "2.4.0"}, f"{RETRIEVER}@{DIGEST}"),
    ],
    ids=["tag", "digest", "both"],
)
def test_label_of_an_image_tells_its_contract(pin, name):
    """By the name that is pulled, whether it is on the host or only its registry knows it."""
    entry = spec(image=RETRIEVER, **pin)
    there = {**HOST, "images": {name: "sha256:ab"}, "native_images": [name]}
    for found in (resolve(entry, host=there), resolve(entry, told={name: NATIVE})):
        assert (found[0]["contract"], found[0]["contract_guessed"]) == ("native", False)
    assert resolve({**entry, "contract": "classic"}, host=there)[0]["contract"] == "classic"
    # Another image of that name is another image.
    for other in (f"{RETRIEVER}:2.4.1", f"{RETRIEVER}@sha256:{'e' * 64}"):
        elsewhere = {**HOST, "images": {other: "sha256:ab"}, "native_images": [other]}
        (service,) = resolve({**entry, "tag": "2.4.0"}, host=elsewhere, told={other: NATIVE})
        assert (service["contract"], service["contract_guessed"]) == ("llm", True)


@pytest.mark.parametrize(
    ("changes", "images", "native", "told", "guessed"),
    [
        ({}, [], [], {}, True),
        ({"contract": "auto"}, [], [], {}, True),
        ({}, [IMAGE_NAME], [IMAGE_NAME], {}, False),
        ({}, [IMAGE_NAME], [], {}, False),
        ({}, [IMAGE_NAME], [], {IMAGE_NAME: NATIVE}, False),
        ({}, [], [], {IMAGE_NAME: NATIVE}, False),
        ({}, [], [], {IMAGE_NAME: OTHERWISE}, False),
        ({}, [], [], {IMAGE_NAME: {"found": False, "reason": "timed out"}}, True),
        ({"contract": "llm"}, [], [], {}, False),
    ],
    ids=[
        "nothing said",
        "auto",
        "label",
        "no label",
        "host goes first",
        "registry",
        "registry of another",
        "no answer",
        "said",
    ],
)
def test_contract_that_only_name_and_tag_tell_is_a_guess(changes, images, native, told, guessed):
    host = {**HOST, "images": dict.fromkeys(images, "sha256:ab"), "native_images": native}
    (service,) = resolve({**LLAMA, **changes}, host=host, told=told)
    assert service["contract_guessed"] is guessed
    is_native = bool(native) or (not images and told.get(IMAGE_NAME) == NATIVE)
    assert service["contract"] == (
        "native" if is_native else changes.get("contract", "auto").replace("auto", "classic")
    )


UNKNOWN = {"name": "llama", "image": IMAGE, "tag": "release-7"}
UNKNOWN_NAME = f"{IMAGE}:release-7"


@pytest.mark.parametrize(
    ("changes", "host", "defaults", "images"),
    [
        ({}, {}, {}, [UNKNOWN_NAME]),
        ({"contract": "auto"}, {}, {}, [UNKNOWN_NAME]),
        ({"tag": UNSET, "digest": DIGEST}, {}, {}, [f"{IMAGE}@{DIGEST}"]),
        ({"tag": "1.8.6"}, {}, {}, []),
        ({"contract": "llm"}, {}, {}, []),
        ({"state": "absent"}, {}, {}, []),
        ({"offline": "yes"}, {}, {}, []),
        ({}, {}, {"offline": True}, []),
        ({"offline": False}, {}, {"offline": True}, [UNKNOWN_NAME]),
        ({}, {"images": {UNKNOWN_NAME: "sha256:ab"}}, {}, []),
        ({}, {"images": {UNKNOWN_NAME: "sha256:ab"}, "native_images": [UNKNOWN_NAME]}, {}, []),
        ({}, {}, {"told": {UNKNOWN_NAME: NATIVE}}, []),
        ({}, {}, {"told": {UNKNOWN_NAME: {"found": False, "reason": "timed out"}}}, []),
        ({"image": "llama"}, {}, {}, []),
        ({"tag": UNSET}, {}, {}, []),
    ],
    ids=[
        "nothing tells", "auto", "digest", "tag tells", "operator tells", "absent", "offline", "all are offline", "this one is not",
        "there", "there and native", "told", "not told when asked", "no image", "no tag",
    ],
)  # fmt: skip
def test_images_that_only_their_registry_can_tell(changes, host, defaults, images):
    service = {key: value for key, value in {**UNKNOWN, **changes}.items() if value is not UNSET}
    assert _resolve.undecided_images([service, service], {**HOST, **host}, defaults) == images


@pytest.mark.parametrize("services", [None, "llama", {}, ["llama"], [None]])
def test_what_is_no_service_is_asked_for_by_nobody(services):
    assert _resolve.undecided_images(services, HOST, {}) == []


def test_registry_that_did_not_tell_either_is_named():
    told = {UNKNOWN_NAME: {"found": False, "reason": "HTTP Error 404: Not Found"}}
    with pytest.raises(
        ResolveError, match=re.escape("nor does the registry tell it (HTTP Error 404: Not Found); say contract")
    ):
        resolve(UNKNOWN, told=told)


@pytest.mark.parametrize(
    ("size", "changes", "seconds"),
    [
        (0, {}, 1800),
        (999_999_999, {}, 1800),
        (16_059_123_456, {}, 1960),
        (320 * 10**9, {}, 5000),
        (320 * 10**9, {"start_timeout": 60}, 60),
    ],
)
def test_large_weights_get_more_time_to_load(size, changes, seconds):
    host = {**HOST, "services": {"llama": {"cache": {"staged": {"bytes": size}}}}}
    (service,) = resolve(spec(**changes), host=host)
    assert (service["start_timeout"], service["watchdog"]["start_timeout"]) == (seconds, seconds)


def family(image, tag, **changes):
    """A service of another family than LLMs."""
    return spec(image=f"nvcr.io/nim/nvidia/{image}", tag=tag, **changes)


def test_native_service():
    (service,) = resolve(family("nemotron-3-embed-1b", "2.2.2", env={"NIM_ENGINE_PRECISION": "fp16"}))
    assert service["contract"] == "native"
    assert service["mounts"] == {"model": "/model", "kernels": "/opt/cache"}
    assert (service["prefetch"], service["prefetch_env"]) == ([], {"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1"})
    assert service["env"] == {
        "NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER": "ngc",
        "NIM_ENGINE_MODEL_PATH": "/model",
        "NIM_ENGINE_PRECISION": "fp16",
        "NIM_SERVER_BIND_ADDR": "0.0.0.0:8000",
        "NIM_TELEMETRY_MODE": "0",
    }
    assert service["publish"] == ["127.0.0.1:8000:8000"]
    assert service["verify"] == {"probes": ["embedding"]}


def test_speech_service():
    (service,) = resolve(
        family("parakeet-1-1b-ctc-en-us", "1.5.0", grpc_port=50051, env={"NIM_TAGS_SELECTOR": "mode=str"})
    )
    assert service["contract"] == "speech"
    assert service["publish"] == ["127.0.0.1:8000:9000", "127.0.0.1:50051:50051"]
    assert (service["uid"], service["gid"], service["shm_size"], service["start_timeout"]) == (0, 0, "8g", 3000)
    assert (service["prefetch"], service["prefetch_entrypoint"]) == (["nim_download_to_cache"], True)
    assert service["env"]["NIM_HTTP_API_PORT"] == "9000"
    assert service["mounts"] == {"": "/opt/nim/.cache"}


@pytest.mark.parametrize(
    ("entry", "verify"),
    [
        (spec(), {}),
        (family("llama-3.2-nv-embedqa-1b-v2", "1.10.0"), {"probes": ["embedding"]}),
        (family("llama-nemotron-embed-vl-1b-v2", "2.2.0"), {"probes": ["embedding"]}),
        (family("llama-nemotron-rerank-1b-v2", "2.2.0"), {"probes": ["ranking"]}),
        (family("nemoretriever-ocr-v1", "2.2.0"), {"probes": ["health"]}),
        (family("cosmos-embed1", "1.0.0"), {"probes": ["health"]}),
        (family("magpie-tts-multilingual", "1.7.0"), {"probes": ["speech"]}),
        (family("parakeet-1-1b-ctc-en-us", "1.5.0"), {"probes": ["health"]}),
        (
            family("parakeet-1-1b-ctc-en-us", "1.5.0", verify={"probes": ["transcription"], "language": "de-DE"}),
            {"probes": ["transcription"], "language": "de-DE"},
        ),
        (family("boltz2", "1.8.0"), {"probes": ["health"]}),
        (family("boltz2", "1.8.0", verify={"probes": []}), {"probes": []}),
        (family("nemotron-nano-12b-v2-vl", "2.1.1", verify={"prompt": "Hello"}), {"prompt": "Hello"}),
    ],
    ids=[
        "llm", "retriever-1", "retriever-2", "reranker", "ocr", "videos", "synthesis", "recognition", "recognition-of-files", "bionemo",
        "the-operator-knows-better", "vlm",
    ],
)  # fmt: skip
def test_images_without_chat_are_asked_for_what_they_do(entry, verify):
    assert resolve(entry)[0]["verify"] == verify


@pytest.mark.parametrize(
    "image",
    ["active-speaker-detection", "cosmos-predict1-7b-text2world", "cosmos-transfer2.5-2b", "cosmos3", "cuopt", "deepfake-image-detection",
     "lipsync", "maisi", "maxine-eye-contact", "nemoretriever-parse", "nemotron-parse-v1.2", "nvclip", "qwen-image-edit", "sana-sprint",
     "sdxl-turbo", "stable-video-diffusion", "stormcast", "studio-voice", "synthetic-video-detector", "vista3d", "wan2.2",
     "wan2.2-animate-2-14b"],
)  # fmt: skip
def test_what_cannot_chat_is_asked_for_its_health(image):
    """A healthy service would be rolled back for a question that its image does not know."""
    (service,) = resolve(family(image, "1.1.0"))
    assert (service["verify"], service["watchdog"]["probe"]) == ({"probes": ["health"]}, "health")


@pytest.mark.parametrize(
    "image",
    ["cosmos-reason1-7b", "cosmos3-reasoner", "deepseek-r1", "llama-3.1-nemoguard-8b-content-safety", "llama-3.1-swallow-8b-instruct-v0.1",
     "model-free-nim", "nemotron-3-nano", "nemotron-nano-12b-v2-vl", "phi-3-mini-4k-instruct", "qwen3-next-80b-a3b", "taiwan-llama",
     "usdcode"],
)  # fmt: skip
def test_what_can_chat_is_asked_to(image):
    (service,) = resolve(family(image, "1.1.0"))
    assert (service["verify"], service["watchdog"]["probe"]) == ({}, "chat")


@pytest.mark.parametrize(
    "image", ["bge-m3", "bge-large-en-v1.5", "e5-mistral-7b", "multilingual-e5-large", "arctic-embed-l"]
)
def test_embeddings_by_another_name(image):
    (service,) = resolve(family(image, "1.0.0"))
    assert service["verify"] == {"probes": ["embedding"]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"offline": True}, HUB),
        ({"tag": "2.0.10", "offline": "yes"}, {**HUB, "NIM_DISABLE_MODEL_DOWNLOAD": "1"}),
        (
            {"tag": "2.0.10", "offline": True, "env": {"NIM_DISABLE_MODEL_DOWNLOAD": 0}},
            {**HUB, "NIM_DISABLE_MODEL_DOWNLOAD": "0"},
        ),
        ({"log_format": "json"}, {"NIM_JSONL_LOGGING": "1"}),
        (
            {"otel_endpoint": "http://otel:4318"},
            {
                "NIM_ENABLE_OTEL": "1",
                "NIM_OTEL_SERVICE_NAME": "nim-llama",
                "NIM_OTEL_TRACES_EXPORTER": "otlp",
                "NIM_OTEL_METRICS_EXPORTER": "otlp",
                "NIM_OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318",
            },
        ),
        (
            {"tag": "2.0.10", "otel_endpoint": "http://otel:4318"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318", "OTEL_SERVICE_NAME": "nim-llama"},
        ),
        ({"log_format": "text", "offline": False, "otel_endpoint": ""}, {}),
    ],
    ids=["offline", "offline-2", "env-wins", "json", "otel-1", "otel-2", "as-by-default"],
)  # fmt: skip
def test_switches_are_variables_of_the_generation(changes, expected):
    assert resolve(spec(**changes))[0]["env"] == {"NIM_TELEMETRY_MODE": "0", **expected}


def test_switches_do_not_stage_again():
    keys = {
        resolve(spec(**changes))[0]["stage_key"]
        for changes in ({}, {"offline": True}, {"log_format": "json"}, {"cache_seed": "/srv/x"})
    }
    assert len(keys) == 1


def test_offline_play():
    online, offline = spec(name="a", port=8001, offline=False), spec(name="b", gpus=[1])
    assert [service["offline"] for service in resolve(online, offline, offline=True)] == [False, True]


@pytest.mark.parametrize(
    ("changes", "prefetch", "prefetch_env"),
    [
        ({"prefetch": []}, [], {}),
        ({"prefetch": ["download-to-cache", "--all"]}, ["download-to-cache", "--all"], {}),
        ({"prefetch": ["fetch"], "profile": "p"}, ["fetch"], {}),
    ],
    ids=["none", "another", "with-a-profile-of-its-own"],
)
def test_command_of_the_image_that_downloads(changes, prefetch, prefetch_env):
    (service,) = resolve(spec(**changes))
    assert (service["prefetch"], service["prefetch_env"]) == (prefetch, prefetch_env)


def test_defaults_of_the_play():
    (service,) = resolve(
        spec(),
        cache_root="/srv/nim",
        config_dir="/etc/opt/nim",
        state_dir="/srv/records",
        bind_address="10.1.0.4",
        cache_size_gb="20",
    )
    assert (
        service["cache"],
        service["env_path"],
        service["record_path"],
        service["publish"],
        service["cache_bytes"],
    ) == (
        "/srv/nim/llama",
        "/etc/opt/nim/llama.env",
        "/srv/records/llama.json",
        ["10.1.0.4:8000:8000"],
        20 * 10**9,
    )


@pytest.mark.parametrize(("remove_cache", "expected"), [(UNSET, False), (True, True), ("no", False), ("on", True)])
def test_absent_service_needs_a_name_only(remove_cache, expected):
    entry = {"name": "llama", "state": "absent", "remove_cache": remove_cache}
    (service,) = resolve({key: value for key, value in entry.items() if value is not UNSET})
    assert service == {
        "name": "llama",
        "engine": "docker",
        "state": "absent",
        "unit": "nim-llama.service",
        "container": "nim-llama",
        "cache": "/var/lib/nim/cache/llama",
        "unit_path": "/etc/systemd/system/nim-llama.service",
        "unit_paths": UNIT_PATHS,
        "env_path": "/etc/nim/llama.env",
        "key_path": "/etc/nim/llama.key",
        "record_path": "/var/lib/nim/services/llama.json",
        "remove_cache": expected,
    }


@pytest.mark.parametrize(
    ("gpus", "devices"),
    [([5], ["nvidia.com/gpu=5"]), ([GPU0], [f"nvidia.com/gpu={GPU0}"]), ("all", ["nvidia.com/gpu=all"])],
    ids=["index", "uuid", "all"],
)
def test_gpus_of_a_host_whose_driver_does_not_answer_yet(gpus, devices):
    assert resolve(spec(gpus=gpus), host={"gpus": []})[0]["devices"] == devices


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # Each row: what the operator wrote, and the words that name the value seen and the cure.
        pytest.param(
            {"name": UNSET},
            ["(without a name)", "name is ''", "lower-case letters, digits and hyphens"],
            id="name-missing",
        ),
        pytest.param(
            {"image": "nvcr.io/nim/nvidia/nemotron-3-embed-1b", "tag": "2.0.1"},
            ["tag is '2.0.1'", "wanted 2.2 or newer", "other variables"],
            id="retriever-too-old",
        ),
        pytest.param(
            {"contract": "native", "env": {"NIM_MODEL_PATH": "/x"}},
            ["NIM_MODEL_PATH", "wanted NIM_ENGINE_MODEL_PATH"],
            id="variable-that-retriever-retired",
        ),
        pytest.param(
            {"contract": "native", "profile": "p"},
            ["profile is 'p'", "have none", "NIM_ENGINE_PRECISION"],
            id="profile-of-native",
        ),
        pytest.param(
            {"contract": "speech", "profile": "p"}, ["profile is 'p'", "NIM_TAGS_SELECTOR"], id="profile-of-speech"
        ),
        pytest.param({"grpc_port": 50051}, ["grpc_port is set", "serve none"], id="grpc-of-an-llm"),
        pytest.param({"contract": "speech", "grpc_port": 0}, ["grpc_port is 0", "from 1"], id="grpc-port-of-none"),
        pytest.param(
            {"contract": "speech", "grpc_port": 8000}, ["port and grpc_port are both 8000"], id="grpc-port-of-its-own"
        ),
        pytest.param(
            {"contract": "speech", "env": {"NIM_GRPC_API_PORT": 1}},
            ["NIM_GRPC_API_PORT", "option grpc_port"],
            id="env-grpc-port",
        ),
        pytest.param({"prefetch": "all"}, ["prefetch is str", "list of words"], id="prefetch-of-a-string"),
        pytest.param({"cache_seed": "seed.tar"}, ["cache_seed is 'seed.tar'", "absolute path"], id="seed-relative"),
        pytest.param({"log_format": "jsonl"}, ["log_format is 'jsonl'", "json, text"], id="log-format"),
        pytest.param(
            {"otel_endpoint": "otel:4317"}, ["otel_endpoint is 'otel:4317'", "wanted the URL"], id="otel-endpoint"
        ),
        pytest.param({"name": "Llama"}, ["service Llama:", "name is 'Llama'", "lower-case"], id="name-upper-case"),
        pytest.param({"name": "llama_3"}, ["'llama_3'", "hyphens"], id="name-underscore"),
        pytest.param({"name": "-llama"}, ["'-llama'", "lower-case"], id="name-leading-hyphen"),
        pytest.param({"name": "llama-"}, ["'llama-'", "lower-case"], id="name-trailing-hyphen"),
        pytest.param({"name": "a" * 49}, ["aaa'", "at most 48"], id="name-too-long"),
        pytest.param({"name": "../etc"}, ["'../etc'", "lower-case"], id="name-of-a-path"),
        pytest.param({"name": "llama\n"}, [r"'llama\n'", "lower-case"], id="name-with-line-break"),
        pytest.param({"imag": IMAGE}, ["unknown key 'imag'", "Did you mean 'image'?"], id="key-misspelt"),
        pytest.param({"gpu": [0]}, ["unknown key 'gpu'", "Did you mean 'gpus'?"], id="key-singular"),
        pytest.param({"zzzzzz": 1}, ["unknown key 'zzzzzz'."], id="key-unknown"),
        pytest.param(
            {"state": "Absent"},
            ["state is 'Absent'", "absent, present", "Did you mean 'absent'?"],
            id="state-upper-case",
        ),
        pytest.param({"state": "started"}, ["state is 'started'", "wanted one of absent, present"], id="state-unknown"),
        pytest.param(
            {"image": UNSET},
            ["image is ''", "wanted REGISTRY/PATH without tag", "nvcr.io/nim/meta/"],
            id="image-missing",
        ),
        pytest.param({"image": None}, ["image is ''", "wanted REGISTRY/PATH"], id="image-null"),
        pytest.param({"image": f"{IMAGE}:1.8.6"}, [f"'{IMAGE}:1.8.6'", "the tag goes into 'tag'"], id="image-with-tag"),
        pytest.param(
            {"image": f"{IMAGE}@{DIGEST}"}, [f"{IMAGE}@sha256", "a digest into 'digest'"], id="image-with-digest"
        ),
        pytest.param({"image": f"https://{IMAGE}"}, ["'https://", "wanted REGISTRY/PATH"], id="image-with-scheme"),
        pytest.param(
            {"image": "llama-3.1-8b-instruct"},
            ["'llama-3.1-8b-instruct'", "wanted REGISTRY/PATH"],
            id="image-without-registry",
        ),
        pytest.param(
            {"image": "nvcr.io/nim/Meta/llama"},
            ["'nvcr.io/nim/Meta/llama'", "wanted REGISTRY/PATH"],
            id="image-upper-case",
        ),
        pytest.param(
            {"image": f"{IMAGE} --privileged"}, ["--privileged'", "wanted REGISTRY/PATH"], id="image-with-option"
        ),
        pytest.param(
            {"tag": UNSET, "contract": "llm"}, ["neither tag nor digest", 'tag: "1.8.6" or digest'], id="tag-missing"
        ),
        pytest.param({"tag": "", "contract": "llm"}, ["neither tag nor digest", "pinned"], id="tag-empty-from-survey"),
        pytest.param(
            {"tag": "latest", "contract": "llm"}, ["tag is 'latest'", "moves under a running service"], id="tag-latest"
        ),
        pytest.param({"tag": "1.8.6 "}, ["tag is '1.8.6 '", "wanted a version"], id="tag-with-space"),
        pytest.param({"tag": ".1.8", "contract": "llm"}, ["tag is '.1.8'", "wanted a version"], id="tag-leading-dot"),
        pytest.param({"tag": "1." + "8" * 127}, ["tag is '1.8", "wanted a version"], id="tag-too-long"),
        pytest.param({"digest": DIGEST[:-1]}, [f"'{DIGEST[:-1]}'", "64 hexadecimal digits"], id="digest-short"),
        pytest.param({"digest": DIGEST.upper()}, ["digest is 'SHA256:", "sha256: and 64"], id="digest-upper-case"),
        pytest.param({"digest": DIGEST[7:]}, [f"'{DIGEST[7:]}'", "wanted sha256:"], id="digest-without-algorithm"),
        pytest.param(
            {"contract": "clasic"},
            ["contract is 'clasic'", "auto, classic, llm", "Did you mean 'classic'?"],
            id="contract-misspelt",
        ),
        pytest.param({"contract": ""}, ["contract is ''", "wanted one of"], id="contract-empty-from-survey"),
        pytest.param(
            {"tag": "25.04"}, ["from tag '25.04'", "contract: classic (NIM 1.x)"], id="contract-of-unknown-major"
        ),
        pytest.param({"tag": "stable"}, ["from tag 'stable'", "llm (NIM LLM and VLM 2.x"], id="contract-of-a-word"),
        pytest.param({"tag": UNSET, "digest": DIGEST}, ["from tag ''", "say contract"], id="contract-of-a-digest"),
        pytest.param({"port": 0}, ["port is 0", "from 1 to 65535"], id="port-zero"),
        pytest.param({"port": 65536}, ["port is 65536", "from 1 to 65535"], id="port-too-high"),
        pytest.param({"port": "http"}, ["port is 'http'", "wanted an integer"], id="port-word"),
        pytest.param({"port": True}, ["port is True", "wanted an integer"], id="port-truth"),
        pytest.param({"port": None}, ["port is None", "wanted an integer"], id="port-null"),
        pytest.param({"port": 8000.5}, ["port is 8000.5", "wanted an integer"], id="port-fraction"),
        pytest.param({"port": "8000:8000"}, ["port is '8000:8000'", "wanted an integer"], id="port-pair"),
        pytest.param(
            {"bind_address": "localhost"},
            ["bind_address is 'localhost'", "wanted an IP address"],
            id="bind-address-name",
        ),
        pytest.param(
            {"bind_address": "[::1]"}, ["bind_address is '[::1]'", "wanted an IP address"], id="bind-address-brackets"
        ),
        pytest.param(
            {"bind_address": "10.0.0.256"}, ["'10.0.0.256'", "such as 127.0.0.1"], id="bind-address-out-of-range"
        ),
        pytest.param({"gpus": []}, ["gpus is an empty list", "say gpus: all"], id="gpus-empty"),
        pytest.param({"gpus": [2]}, ["gpus names 2", f"0 ({GPU0}), 1 ({GPU1})"], id="gpu-index-too-high"),
        pytest.param({"gpus": [-1]}, ["gpus names -1", f"1 ({GPU1})"], id="gpu-index-negative"),
        pytest.param(
            {"gpus": ["GPU-00000000"]},
            ["gpus names 'GPU-00000000'", f"this host has 0 ({GPU0})"],
            id="gpu-of-another-host",
        ),
        pytest.param({"gpus": "0,1"}, ["gpus names '0,1'", "this host has"], id="gpus-comma"),
        pytest.param({"gpus": ["all"]}, ["gpus names 'all'", "this host has"], id="gpus-all-in-a-list"),
        pytest.param({"gpus": [True]}, ["gpus is true, true or false to YAML", "quote it"], id="gpu-truth"),
        pytest.param({"gpus": [0, "0"]}, ["names one GPU twice: 0, 0"], id="gpu-twice"),
        pytest.param({"gpus": [1, GPU1]}, [f"names one GPU twice: 1, {GPU1}"], id="gpu-twice-by-index-and-uuid"),
        pytest.param({"env": ["A=b"]}, ["env is list", "wanted a dictionary"], id="env-list"),
        *(
            pytest.param(
                {"env": {key: "nvapi-x"}}, [f"env has {key}", "docker inspect", "Set ngc_api_key"], id=f"env-{key}"
            )
            for key in ("NGC_API_KEY", "NGC_CLI_API_KEY", "NVIDIA_API_KEY", "ANYTHING")
        ),
        pytest.param(
            {"env": {"NIM_SERVER_PORT": 80}}, ["env has NIM_SERVER_PORT", "option port instead"], id="env-port"
        ),
        *(
            pytest.param(
                {"env": {key: value}},
                [f"env has {key}, but of images of this generation only the port of HTTP"],
                id=f"env-{key}",
            )
            for key, value in (("NIM_GRPC_API_PORT", "8001"), ("NIM_SERVER_GRPC_BIND_ADDR", "0.0.0.0:8001"))
        ),
        pytest.param({"env": {"NIM_CACHE_PATH": "/x"}}, ["env has NIM_CACHE_PATH", "mounts the cache"], id="env-cache"),
        pytest.param(
            {"tag": "2.0.5", "env": {"NIM_SSL_CERT_PATH": "/x"}},
            ["env has NIM_SSL_CERT_PATH", "do not read; wanted NIM_SSL_CERTS_PATH"],
            id="env-renamed",
        ),
        *(
            pytest.param(
                {"tag": "2.0.5", "env": {key: place}},
                [
                    f"env has {key} {place!r}",
                    "in no directory that the container gets",
                    f"wanted a place below {below}",
                    cure,
                ],
                id=f"env-{key}-{place}",
            )
            for key, place, below, cure in (
                ("NIM_PEFT_SOURCE", "/opt/nim/loras", "/opt/nim/.cache", "is /var/lib/nim/cache/llama on the host"),
                ("NIM_PEFT_SOURCE", "/opt/nim/.cache/../loras", "/opt/nim/.cache", "write /opt/nim/.cache/NAME"),
                ("NIM_PEFT_SOURCE", "/opt/nim/.cachet", "/opt/nim/.cache", "write /opt/nim/.cache/NAME"),
                ("NIM_MODEL_PATH", "/models/merged", "/opt/nim/.cache", "readable by the user of the image"),
                ("NIM_MODEL_NAME", "/models/merged", "/opt/nim/.cache", "readable by the user of the image"),
                ("NIM_SSL_KEY_PATH", "/certs/server.key", "/opt/nim/.cache", "readable by the user of the image"),
            )
        ),
        pytest.param(
            {"cache_path": "/srv/nim/lora", "env": {"NIM_PEFT_SOURCE": "/loras"}},
            ["which is /srv/nim/lora on the host"],
            id="env-brought-elsewhere",
        ),
        *(
            pytest.param(
                {"env": {"NIM_SSL_MODE": mode}},
                [f"env has NIM_SSL_MODE {mode!r}", "wanted DISABLED"],
                id=f"env-ssl-{mode}",
            )
            for mode in ("TLS", "MTLS", "tls")
        ),
        pytest.param({"env": {"MY-VAR": 1}}, ["env has 'MY-VAR'", "no name of a variable"], id="env-hyphen"),
        pytest.param({"env": {"A=B": 1}}, ["env has 'A=B'", "no name of a variable"], id="env-equals-sign"),
        pytest.param({"env": {1: 1}}, ["env has 1", "no name of a variable"], id="env-number"),
        pytest.param({"env": {"A": "b\nNGC_API_KEY=c"}}, ["env variable A", "line break"], id="env-line-break"),
        pytest.param(
            {"ulimits": "nofile=65536"}, ["ulimits has 'nofile=65536'", "wanted a list of items"], id="ulimits-string"
        ),
        pytest.param(
            {"ulimits": ["memlock=-1", "nofile"]}, ["ulimits has 'nofile'", "nofile=65536"], id="ulimit-without-value"
        ),
        pytest.param(
            {"ulimits": ["nofile=9 --privileged"]},
            ["'nofile=9 --privileged'", "wanted a list"],
            id="ulimit-with-option",
        ),
        pytest.param(
            {"capabilities": "SYS_PTRACE"}, ["capabilities is 'SYS_PTRACE'", "a list"], id="capabilities-string"
        ),
        pytest.param(
            {"capabilities": ["ALL"]}, ["capabilities has 'ALL'", "names such as SYS_PTRACE"], id="capability-of-all"
        ),
        pytest.param(
            {"capabilities": ["sys_ptrace"]}, ["'sys_ptrace'", "Did you mean 'SYS_PTRACE'?"], id="capability-misspelt"
        ),
        pytest.param({"capabilities": ["CHOWN --privileged"]}, ["'CHOWN --privileged'"], id="capability-with-option"),
        pytest.param({"shm_size": "16 gigabytes"}, ["shm_size is '16 gigabytes'", "such as 16g"], id="shm-size-words"),
        pytest.param(
            {"shm_size": "16g --privileged"},
            ["shm_size is '16g --privileged'", "such as 16g"],
            id="shm-size-with-option",
        ),
        pytest.param(
            {"verify": {"probes": ["health"], "expect_regex": "a"}},
            ["verify.expect_regex is read by no probe of health"],
            id="verify-that-nobody-reads",
        ),
        pytest.param(
            {"verify": {"prompts": [{"promt": "a"}]}},
            ["verify.prompts[0] has the unknown key 'promt'", "Did you mean 'prompt'?"],
            id="verify-prompts-misspelt",
        ),
        pytest.param({"verify": "hello"}, ["verify is str", "wanted a dictionary"], id="verify-string"),
        pytest.param(
            {"verify": {"promt": "hi"}}, ["unknown key 'promt'", "Did you mean 'prompt'?"], id="verify-key-misspelt"
        ),
        pytest.param(
            {"watchdog": "sometimes"}, ["watchdog is 'sometimes'", "wanted true, false or"], id="watchdog-word"
        ),
        pytest.param({"watchdog": [1]}, ["watchdog is [1]", "wanted true, false or"], id="watchdog-list"),
        pytest.param({"watchdog": {"enabled": "nope"}}, ["watchdog is 'nope'", "wanted true"], id="watchdog-enabled"),
        pytest.param(
            {"watchdog": {"idel": 9}}, ["watchdog has the unknown key 'idel'", "'idle'?"], id="watchdog-key-misspelt"
        ),
        pytest.param(
            {"watchdog": {"probe": "chats"}},
            ["watchdog.probe is 'chats'", "wanted one of chat, health.", "Did you mean 'chat'?"],
            id="watchdog-probe",
        ),
        pytest.param({"watchdog": {"idle": 0}}, ["watchdog.idle is 0", "from 1 to 86400"], id="watchdog-idle-zero"),
        pytest.param(
            {"watchdog": {"timeout": "1m"}},
            ["watchdog.timeout is '1m'", "from 1 to 600"],
            id="watchdog-timeout-with-unit",
        ),
        pytest.param(
            {"watchdog": {"limit": 9}}, ["watchdog.limit is 9", "from 1 to 8"], id="watchdog-limit-of-the-unit"
        ),
        pytest.param(
            {"watchdog": {"failures": True}},
            ["watchdog.failures is True", "wanted an integer"],
            id="watchdog-failures-bool",
        ),
        pytest.param({"cache_size_gb": -1}, ["cache_size_gb is -1", "from 0 to 100000"], id="cache-size-negative"),
        pytest.param(
            {"cache_size_gb": "16g"}, ["cache_size_gb is '16g'", "wanted an integer"], id="cache-size-with-unit"
        ),
        pytest.param({"uid": -1}, ["uid is -1", "wanted an integer from 0"], id="uid-negative"),
        pytest.param({"gid": "nim"}, ["gid is 'nim'", "wanted an integer"], id="gid-name"),
        pytest.param({"start_timeout": 0}, ["start_timeout is 0", "from 1 to 86400"], id="start-timeout-zero"),
        pytest.param({"stop_timeout": "1m"}, ["stop_timeout is '1m'", "from 1 to 3600"], id="stop-timeout-with-unit"),
    ],
)
def test_bad_service(changes, said):
    (problem,) = problems(spec(**changes))
    name = changes.get("name", "llama")
    assert problem.startswith(f"service {'(without a name)' if name is UNSET else name.strip()}: ")
    for words in said:
        assert words in problem


@pytest.mark.parametrize(
    ("services", "said"),
    [
        ({"llama": {"image": IMAGE}}, "nim_services is dict, wanted a list of services."),
        ("llama", "nim_services is str, wanted a list of services."),
        (None, "nim_services is NoneType, wanted a list of services."),
        (["llama"], "nim_services has 'llama', wanted a dictionary with name, image and tag."),
    ],
    ids=["dictionary", "string", "nothing", "list-of-strings"],
)
def test_bad_list(services, said):
    with pytest.raises(ResolveError) as caught:
        resolve_services(services, HOST, DEFAULTS)
    assert caught.value.problems == [said]


def test_every_fault_of_every_service_is_in_one_message():
    with pytest.raises(ResolveError) as caught:
        resolve(
            spec(tag="latest", contract="classic", port="http", env={"NGC_API_KEY": "nvapi-secret"}),
            "mistral",
            spec(name="Mistral", gpus=[7], port=8001, prot=8001),
            spec(name="phi", port=99999, gpus=[1]),
        )
    assert [problem.split(" ", 2)[1] for problem in caught.value.problems] == [
        "llama:",
        "llama:",
        "llama:",
        "has",
        "Mistral:",
        "Mistral:",
        "Mistral:",
        "phi:",
    ]
    assert str(caught.value) == "\n".join(f"- {problem}" for problem in caught.value.problems)
    assert "nvapi-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        pytest.param(
            {"name": "llama", "port": 8001, "gpus": [1]}, ["service llama: is listed twice", "another name"], id="name"
        ),
        pytest.param({"gpus": [1]}, ["service phi: port 8000", "service llama", "give one of them another"], id="port"),
        pytest.param(
            {"port": 8001}, [f"service phi: GPU {GPU0}", "service llama", "gpu_shared: true on both"], id="gpu-by-index"
        ),
        pytest.param(
            {"port": 8001, "gpus": [GPU0]}, [f"GPU {GPU0} is also used by service llama"], id="gpu-by-index-and-uuid"
        ),
        pytest.param({"port": 8001, "gpus": "all"}, [f"GPU {GPU0} is also used by service llama"], id="all-and-index"),
        pytest.param({"port": 8001, "gpu_shared": True}, [f"GPU {GPU0} is also used"], id="only-one-shares"),
        pytest.param({"name": "llama", "state": "absent"}, ["is listed twice"], id="wanted-and-absent"),
    ],
)
def test_conflict(other, said):
    (problem,) = problems(spec(), spec(**{"name": "phi", **other}))
    for words in said:
        assert words in problem


def test_conflicts_on_two_gpus_are_two_problems():
    found = problems(spec(gpus="all"), spec(name="phi", port=8001, gpus=[GPU1, 0]))
    first, second = found
    assert GPU1 in first and GPU0 in second


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({}, {"port": 8001, "gpus": [1]}, id="each-its-own"),
        pytest.param(SHARES, {**SHARES, "port": 8001, "gpu_shared": "true"}, id="both-share"),
        pytest.param({**SHARES, "gpus": "all"}, {**SHARES, "port": 8001}, id="all-shared"),
        pytest.param({}, {"state": "absent"}, id="absent-frees-port-and-gpu"),
    ],
)
def test_no_conflict(first, second):
    assert [service["name"] for service in resolve(spec(**first), spec(**{"name": "phi", **second}))] == [
        "llama",
        "phi",
    ]


def test_services_without_a_good_port_do_not_fight_for_one():
    found = problems(spec(port=0), spec(name="phi", port=99999, gpus=[1]))
    assert [problem.split(":")[0] for problem in found] == ["service llama", "service phi"]


# -- hashes ------------------------------------------------------------------------------------------------------------


def test_hashes_do_not_depend_on_the_order_of_keys_or_on_spelling():
    entry = spec(port=8000, env={"A": "1", "B": "true"}, profile="tp1")
    other = dict(reversed(list({**entry, "port": "8000", "gpus": ["0"], "env": {"B": True, "A": 1}}.items())))
    first, second = resolve(entry)[0], resolve(other)[0]
    assert (first["config_hash"], first["stage_key"]) == (second["config_hash"], second["stage_key"])


RUNTIME = {
    "offline": {"offline": True},
    "log_format": {"log_format": "json"},
    "log_rate": {"log_rate": 0},
    "gpu_shared": {"gpu_shared": True},
    "otel_endpoint": {"otel_endpoint": "http://otel:4318"},
    "grpc_port": {"contract": "speech", "grpc_port": 50051},
    "tag": {"tag": "1.8.7"},
    "image": {"image": "nvcr.io/nim/meta/llama-3.1-70b-instruct"},
    "digest": {"digest": DIGEST},
    "gpus": {"gpus": [1]},
    "port": {"port": 8001},
    "bind_address": {"bind_address": "10.1.0.4"},
    "env": {"env": {"NIM_MAX_MODEL_LEN": 8192}},
    "profile": {"profile": "vllm-bf16-tp1"},
    "shm_size": {"shm_size": "32g"},
    "ulimits": {"ulimits": ["nofile=1048576"]},
    "capabilities": {"capabilities": ["SYS_PTRACE"]},
    "read_only": {"read_only": True},
    "key_at_runtime": {"key_at_runtime": True},
    "stop_timeout": {"stop_timeout": 120},
    "name": {"name": "llama-2"},
    "cache_path": {"cache_path": "/mnt/nim/llama"},
    "cache_read_only": {"cache_read_only": True},
}
OTHERS = {
    "verify": {"verify": {"prompt": "Hello"}},
    "watchdog": {"watchdog": {"idle": 600}},
    "model": {"model": "meta/llama-3.1-8b-instruct"},
    "start_timeout": {"start_timeout": 3600},
    "prefetch": {"prefetch": ["download-to-cache", "--all"]},
    "cache_seed": {"cache_seed": "/srv/llama.tar"},
    "cache_size_gb": {"cache_size_gb": 20},
    "remove_cache": {"remove_cache": True},
    "env_in_clear": {"env_in_clear": []},
    "owner": {"uid": 1001, "gid": 1001},
    "contract": {"contract": "classic"},
}


@pytest.mark.parametrize("changes", RUNTIME.values(), ids=list(RUNTIME))
def test_each_option_of_the_container_changes_the_config_hash(changes):
    assert resolve(spec(**changes))[0]["config_hash"] != resolve(spec())[0]["config_hash"]


@pytest.mark.parametrize("changes", OTHERS.values(), ids=list(OTHERS))
def test_what_the_container_does_not_see_does_not_restart_it(changes):
    assert resolve(spec(**changes))[0]["config_hash"] == resolve(spec())[0]["config_hash"]


def test_every_key_of_a_service_is_in_one_of_the_two_tables():
    covered = {key for changes in [*RUNTIME.values(), *OTHERS.values()] for key in changes}
    assert covered | {"state"} == _resolve.KEYS


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (
            changes,
            key not in ("tag", "image", "digest", "profile", "prefetch", "grpc_port", "cache_path", "cache_read_only"),
        )
        for key, changes in {**RUNTIME, **OTHERS}.items()
    ],
    ids=[*RUNTIME, *OTHERS],
)
def test_stage_key_changes_with_image_profile_and_named_cache_only(changes, same):
    assert (resolve(spec(**changes))[0]["stage_key"] == resolve(spec())[0]["stage_key"]) is same


KEY = "nvapi-9J3k2LmNoPqRsTuVwXyZ"


def test_another_key_restarts_only_services_that_serve_with_it():
    def hashes(key):
        return [
            item["config_hash"]
            for item in resolve(spec(), spec(name="b", key_at_runtime=True, gpus=[1], port=8001), api_key=key)
        ]

    (one, mine), (same, other) = hashes(KEY), hashes(f"{KEY}0")
    assert one == same == resolve(spec())[0]["config_hash"]
    assert mine != other and hashes(KEY)[1] == mine


def test_two_services_have_different_traces_of_one_key_and_neither_has_the_key():
    resolved = resolve(
        *(spec(name=name, key_at_runtime="yes", gpus=[gpu], port=8000 + gpu) for gpu, name in enumerate("ab")),
        api_key=KEY,
    )
    assert len({item["key_digest"] for item in resolved} - {""}) == 2
    assert "nvapi" not in json.dumps(resolved)


@pytest.mark.parametrize("key", [None, KEY, "nvapi 1", ""], ids=["unknown", "good", "broken", "none"])
def test_key_does_not_matter_to_services_that_serve_without(key):
    """Asking an endpoint, or staging for it, needs no key (unknown)."""
    assert resolve(spec(), api_key=key) == resolve(spec())


@pytest.mark.parametrize(
    ("key", "told"),
    [
        pytest.param("", "there is no key; set ngc_api_key", id="none"),
        pytest.param("nvapi-1\nnvapi-2", "the key has white space in it", id="broken"),
    ],
)
def test_service_that_serves_with_the_key_needs_one(key, told):
    with pytest.raises(ResolveError) as caught:
        resolve(spec(key_at_runtime=True), api_key=key)
    (problem,) = caught.value.problems
    assert problem.startswith("service llama: key_at_runtime is true, but ") and told in problem
    assert "nvapi" not in problem


def test_image_that_runs_as_root_keeps_what_docker_gives(monkeypatch):
    monkeypatch.setitem(CONTRACTS["classic"], "capabilities", None)
    assert resolve(spec())[0]["capabilities"] is None
    assert resolve(spec(capabilities=["CHOWN"]))[0]["capabilities"] == ["CHOWN"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("/var/lib/nim/cache/llama", False, "cache")),
        ({"cache_path": "/mnt/nim/llama"}, ("/mnt/nim/llama", False, "host")),
        ({"cache_read_only": "yes"}, ("/var/lib/nim/cache/llama", True, "host")),
        ({"cache_path": "/mnt/nim/llama", "cache_read_only": True}, ("/mnt/nim/llama", True, "host")),
    ],
)
def test_cache(changes, expected):
    service = resolve(spec(**changes))[0]
    assert tuple(service[key] for key in ("cache", "cache_read_only", "cache_marker")) == expected


@pytest.mark.parametrize("path", ["llama", "/", "/mnt", "/mnt/a b", "/mnt/a:ro", "/mnt/../etc", "/mnt/%h", "/mnt/a/"])
def test_cache_path_that_is_none(path):
    assert problems(spec(cache_path=path)) == [
        f"service llama: cache_path is {path!r}, wanted an absolute directory such as /mnt/nim/llama, of plain characters."
    ]


def test_what_is_only_read_is_never_removed():
    absent = {"name": "llama", "state": "absent", "remove_cache": True}
    assert resolve(absent)[0]["remove_cache"] is True
    assert resolve({**absent, "cache_read_only": True})[0]["remove_cache"] is False


def test_owner_of_a_cache_that_is_only_read_does_not_matter():
    only_read = resolve({**LLAMA, "cache_read_only": True})[0]
    now = {"cache.staged.key": only_read["stage_key"], "cache.uid": 0}
    assert reasons(service_changes([only_read], host_with(now)))["stage"] == []


def test_place_of_the_cache_restarts_but_does_not_stage_again():
    here, there = resolve(spec())[0], resolve(spec(), cache_root="/srv/nim")[0]
    assert here["config_hash"] != there["config_hash"]
    assert here["stage_key"] == there["stage_key"]


def test_engine_restarts_but_does_not_stage_again():
    docker, podman = resolve(spec())[0], resolve(spec(), engine="podman")[0]
    assert (docker["unit_path"], podman["unit_path"]) == (UNIT_PATHS["docker"], UNIT_PATHS["podman"])
    assert docker["config_hash"] != podman["config_hash"]
    assert {key for key in docker if docker[key] != podman[key]} == {"engine", "unit_path", "config_hash"}


def test_engine_that_is_none_is_told():
    with pytest.raises(ResolveError) as caught:
        resolve(spec(), engine="rkt")
    assert caught.value.problems == ["nim_container_engine is 'rkt', wanted docker or podman."]


# -- changes -----------------------------------------------------------------------------------------------------------

REFERENCE = f"{IMAGE}@{DIGEST}"
IMAGE_ID = "sha256:0c58bd6b07f7c7b2c1a6bb5a9ac0a1bba5ab59fa30c8ce2a3a40d4bd3f0f1a2b"
SERVICE = resolve(LLAMA)[0]
SCRIPT = _resolve.WATCHDOG_FILES[0]
FILES = {SERVICE["env_path"]: "11aa", SERVICE["unit_path"]: "22bb", SCRIPT: "33cc"}
#: What gpu_host_info says of the service once it is deployed and verified.
SETTLED = {
    "unit": {
        "name": SERVICE["unit"],
        "exists": True,
        "active": "active",
        "sub": "running",
        "enabled": True,
        "restarts": 0,
    },
    "container": {"service": "llama", "config_hash": SERVICE["config_hash"], "running": True, "ports": [8000]},
    "record": {
        "name": "llama",
        "config_hash": SERVICE["config_hash"],
        "files": FILES,
        "verified": True,
        "watchdog": SERVICE["watchdog"],
    },
    "files": dict(FILES),
    "watchdog": {"exists": True, "enabled": True, "active": True, "failed": False},
    "cache": {
        "path": SERVICE["cache"],
        "uid": 1000,
        "gid": 1000,
        "mode": "0755",
        "staged": {"key": SERVICE["stage_key"], "image_reference": REFERENCE},
    },
}


def host_with(changes=None, images=None):
    """The host with the settled service, changed: a dotted path to a value."""
    now = copy.deepcopy(SETTLED)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        target = now
        for parent in parents:
            target = target[parent]
        target[last] = value
    return {**HOST, "services": {"llama": now}, "images": {REFERENCE: IMAGE_ID} if images is None else images}


def reasons(changes):
    """Only the reasons, by kind of change."""
    return {kind: [reason for item in items for reason in item["reasons"]] for kind, items in changes.items()}


NOTHING = {"stage": [], "deploy": [], "watch": [], "remove": []}
GONE = {"exists": False, "active": None, "sub": None, "enabled": False, "restarts": 0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, {}, id="nothing-to-do"),
        pytest.param(
            {"container.config_hash": "old"},
            {"deploy": ["running container has another configuration"]},
            id="container-label-differs",
        ),
        pytest.param({"container": None}, {"deploy": ["unit is active"]}, id="container-lost-under-an-active-unit"),
        pytest.param(
            {"container": None, "unit.active": "inactive"}, {"deploy": ["unit is inactive"]}, id="unit-inactive"
        ),
        pytest.param({"container": None, "unit.active": "failed"}, {"deploy": ["unit is failed"]}, id="unit-failed"),
        pytest.param(
            {"container.running": False, "unit.active": "activating"},
            {"deploy": ["unit is activating"]},
            id="unit-restarting",
        ),
        pytest.param({"unit.enabled": False}, {"deploy": ["unit is not enabled"]}, id="unit-not-enabled"),
        pytest.param({"engines": {"docker": ["unit", "container"]}}, {}, id="engine-that-is-wanted"),
        pytest.param(
            {"engines": {"docker": ["unit", "container"], "podman": ["unit"]}},
            {"deploy": ["podman still has its unit"]},
            id="left-by-the-other-engine",
        ),
        pytest.param({"unit": GONE, "container": None}, {"deploy": ["unit is absent"]}, id="unit-removed-by-hand"),
        pytest.param(
            {"unsettled": True}, {"deploy": ["a run was cut off while it exchanged its files"]}, id="exchange-cut-off"
        ),
        pytest.param(
            {"files": {**FILES, SERVICE["env_path"]: "33cc"}},
            {"deploy": ["files were edited or lost"]},
            id="file-edited",
        ),
        pytest.param(
            {"files": {**FILES, SERVICE["unit_path"]: None}}, {"deploy": ["files were edited or lost"]}, id="file-lost"
        ),
        pytest.param({"record": None, "files": {}}, {"deploy": ["new service", "never verified"]}, id="record-missing"),
        pytest.param({"record.verified": False}, {"deploy": ["never verified"]}, id="never-verified"),
        pytest.param(
            {"record.config_hash": "old", "container.config_hash": "old"},
            {"deploy": ["configuration changed", "running container has another configuration"]},
            id="configuration-changed",
        ),
        pytest.param({"record.watchdog": {"enabled": False}}, {"watch": ["watchdog changed"]}, id="watchdog-changed"),
        pytest.param(
            {"record.watchdog": {**WATCHED, "format": 0}},
            {"watch": ["watchdog changed"]},
            id="watchdog-of-an-older-form",
        ),
        pytest.param(
            {"record": {"config_hash": SERVICE["config_hash"], "verified": True}, "files": {}, "watchdog": {}},
            {"watch": ["no watchdog yet", "watchdog does not run"]},
            id="deployed-before-there-were-watchdogs",
        ),
        pytest.param({"watchdog.active": False}, {"watch": ["watchdog does not run"]}, id="watchdog-stopped"),
        pytest.param({"watchdog.enabled": False}, {"watch": ["watchdog does not run"]}, id="watchdog-disabled"),
        pytest.param({"watchdog.failed": True}, {}, id="watchdog-that-gave-up-runs"),
        pytest.param(
            {"files": {**FILES, SCRIPT: None}},
            {"watch": ["files of the watchdog were edited or lost"]},
            id="watchdog-lost",
        ),
        pytest.param(
            {"files": {**FILES, SERVICE["unit_path"]: None}, "watchdog.active": False},
            {"deploy": ["files were edited or lost"]},
            id="deployment-brings-its-watchdog",
        ),
        pytest.param({"cache.staged": None}, {"stage": ["weights not staged"]}, id="never-staged"),
        pytest.param(
            {"cache.staged": None, "cache.doubt": "model.safetensors is missing"},
            {"stage": ["weights not staged: model.safetensors is missing"]},
            id="weights-lost",
        ),
        pytest.param(
            {"cache.path": "/mnt/old/llama"},
            {"stage": ["weights not staged: weights were staged in /mnt/old/llama"]},
            id="staged-elsewhere",
        ),
        pytest.param(
            {"container.image_id": f"sha256:{'0' * 64}"},
            {"deploy": ["running container has another image"]},
            id="image-exchanged-under-its-label",
        ),
        pytest.param({"container.image_id": IMAGE_ID}, {}, id="image-is-the-wanted-one"),
        pytest.param(
            {"container.image_id": f"sha256:{'0' * 64}", "cache.staged.key": "of-the-next"},
            {"stage": ["staged weights are of another image or profile"]},
            id="what-is-staged-is-of-a-deployment-that-did-not-last",
        ),
        pytest.param({"cache": None}, {"stage": ["weights not staged"]}, id="cache-missing"),
        pytest.param(
            {"cache.staged.key": "old"},
            {"stage": ["staged weights are of another image or profile"]},
            id="staged-another-image",
        ),
        pytest.param(
            {"cache.uid": 0, "cache.gid": 0}, {"stage": ["cache belongs to 0:0, wanted 1000:1000"]}, id="owner-wrong"
        ),
        pytest.param({"cache.gid": 100}, {"stage": ["cache belongs to 1000:100, wanted 1000:1000"]}, id="group-wrong"),
    ],
)
def test_changes_of_a_present_service(changes, expected):
    assert reasons(service_changes([SERVICE], host_with(changes))) == {**NOTHING, **expected}


@pytest.mark.parametrize(
    ("timer", "expected"),
    [
        ({"enabled": False, "active": False}, []),
        ({"enabled": True, "active": False}, ["watchdog runs"]),
        ({"enabled": False, "active": True}, ["watchdog runs"]),
    ],
    ids=["off", "enabled", "active"],
)
def test_changes_of_a_service_without_a_watchdog(timer, expected):
    (service,) = resolve(spec(watchdog=False))
    host = host_with({"record.watchdog": {"enabled": False}, "watchdog": timer})
    assert reasons(service_changes([service], host)) == {**NOTHING, "watch": expected}


@pytest.mark.parametrize(
    ("reference", "images", "expected"),
    [
        pytest.param(REFERENCE, {REFERENCE: IMAGE_ID}, [], id="by-digest"),
        pytest.param(IMAGE_ID, {REFERENCE: IMAGE_ID}, [], id="by-id-of-a-loaded-image"),
        pytest.param(REFERENCE, {}, ["image is not on the host"], id="pruned"),
        pytest.param(
            REFERENCE, {f"{IMAGE}@sha256:other": "sha256:another"}, ["image is not on the host"], id="another-digest"
        ),
    ],
)
def test_image_gone_stages_again(reference, images, expected):
    host = host_with({"cache.staged.image_reference": reference}, images)
    assert reasons(service_changes([SERVICE], host)) == {**NOTHING, "stage": expected}


@pytest.mark.parametrize(
    "host",
    [HOST, {"gpus": HOST["gpus"]}, {"services": {"mistral": SETTLED}, "images": {}}],
    ids=["virgin", "nothing-known", "others-only"],
)
def test_a_new_service_is_staged_and_deployed(host):
    changes = service_changes([SERVICE], host)
    assert reasons(changes) == {
        "stage": ["weights not staged"],
        "deploy": ["new service", "unit is absent", "never verified"],
        "watch": [],
        "remove": [],
    }
    # The tasks work with the service itself.
    assert {**changes["deploy"][0], "reasons": None} == {**SERVICE, "reasons": None}


@pytest.mark.parametrize(
    ("changes", "remove_cache", "expected"),
    [
        pytest.param({}, False, ["unit present", "container present", "record present"], id="running"),
        pytest.param(
            {}, True, ["unit present", "container present", "record present", "cache present"], id="running-with-cache"
        ),
        pytest.param({"unit": GONE, "container": None, "record": None}, False, [], id="removed-cache-kept"),
        pytest.param(
            {"unit": GONE, "container": None, "record": None}, True, ["cache present"], id="only-the-cache-is-left"
        ),
        pytest.param({"unit": GONE, "container": None, "record": None, "cache": None}, True, [], id="nothing-left"),
        pytest.param({"container": None, "record": None}, False, ["unit present"], id="interrupted-removal"),
        pytest.param(
            {"unit": GONE, "container": None, "record": None, "engines": {"podman": ["unit"]}},
            False,
            ["unit present"],
            id="file-that-systemd-does-not-know",
        ),
    ],
)
def test_changes_of_an_absent_service(changes, remove_cache, expected):
    (service,) = resolve({"name": "llama", "state": "absent", "remove_cache": remove_cache})
    assert reasons(service_changes([service], host_with(changes))) == {**NOTHING, "remove": expected}


def test_another_engine_deploys_anew():
    (service,) = resolve(LLAMA, engine="podman")
    changes = service_changes([service], host_with({"engines": {"docker": ["unit", "container"]}}, {}))
    assert reasons(changes) == {
        "stage": ["image is not on the host"],
        "watch": [],
        "deploy": [
            "configuration changed",
            "running container has another configuration",
            "docker still has its unit and container",
        ],
        "remove": [],
    }


def test_absent_on_a_virgin_host_is_nothing_to_do():
    assert service_changes(resolve({"name": "llama", "state": "absent", "remove_cache": True}), HOST) == NOTHING


def test_only_the_service_that_differs_is_changed():
    services = resolve(LLAMA, spec(name="phi", port=8001, gpus=[1]), {"name": "old", "state": "absent"})
    host = host_with()
    host["services"]["old"] = {**copy.deepcopy(SETTLED), "cache": None}
    changes = service_changes(services, host)
    assert {kind: [item["name"] for item in items] for kind, items in changes.items()} == {
        "stage": ["phi"],
        "deploy": ["phi"],
        "watch": [],
        "remove": ["old"],
    }


# -- small parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (8000, 8000),
        ("8000", 8000),
        (" 8000\n", 8000),
        ("-1", -1),
        ("", None),
        ("8e3", None),
        (8.0, None),
        (None, None),
        (False, None),
    ],
)
def test_as_int(value, number):
    assert _written.as_int(value) == number


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (True, True),
        (False, False),
        ("True", True),
        (" yes ", True),
        ("on", True),
        (1, True),
        ("no", False),
        ("", False),
        (None, False),
        (0, False),
    ],
)
def test_as_bool(value, truth):
    assert _written.as_bool(value) is truth


def test_results_are_plain_data():
    services = resolve(LLAMA, {"name": "old", "state": "absent"})
    assert json.loads(json.dumps(services)) == services


def test_resolving_changes_neither_the_input_nor_the_contracts():
    entry, contracts = spec(env={"A": 1}, profile="p", ulimits=["nofile=1"]), copy.deepcopy(CONTRACTS)
    before = copy.deepcopy(entry)
    resolve(entry)
    assert entry == before
    assert contracts == CONTRACTS


def test_each_major_version_has_one_contract():
    majors = [major for facts in CONTRACTS.values() for major in facts["majors"] if not facts["names"]]
    assert len(majors) == len(set(majors))
    first, *others = (set(facts) for facts in CONTRACTS.values())
    assert all(keys == first for keys in others)


def test_variables_that_choose_weights_stage_again_and_others_do_not():
    def stage_key(**env):
        spec = {"name": "a", "image": "nvcr.io/nim/meta/x", "tag": "1.8.6", "env": env}
        return _resolve.resolve_services([spec], {}, DEFAULTS)[0]["stage_key"]

    assert stage_key(NIM_LOG_LEVEL="INFO") == stage_key()
    assert len({stage_key(), stage_key(NIM_MODEL_PROFILE="p"), stage_key(NIM_REPOSITORY_OVERRIDE="s3://b")}) == 3


# -- from outside ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "address", "url"),
    [
        ({"bind_address": str(ipaddress.IPv4Address(0))}, "gpu01.example.com", "http://gpu01.example.com:8000"),
        ({"bind_address": "::"}, "2001:db8::7", "http://[2001:db8::7]:8000"),
        ({"bind_address": "10.0.1.4", "port": 8001}, "gpu01.example.com", "http://10.0.1.4:8001"),
        ({"bind_address": "2001:db8::8"}, "gpu01", "http://[2001:db8::8]:8000"),
        ({"verify": {"url": "https://llm.example.com/v1"}}, "gpu01", "https://llm.example.com/v1"),
        ({}, "127.0.0.1", "http://127.0.0.1:8000"),
        ({}, "localhost", "http://localhost:8000"),
        ({}, "::1", "http://[::1]:8000"),
    ],
)
def test_where_clients_reach_a_service(changes, address, url):
    spec = {"name": "llama", "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct", "tag": "1.8.6", **changes}
    resolved = _resolve.resolve_services([spec, {"name": "old", "state": "absent"}], {}, DEFAULTS)
    assert _resolve.seen_from_outside(resolved, address) == [{**resolved[0], "url": url, "outside": True}]


def test_loopback_of_another_host_is_refused_with_its_cure():
    spec = {"name": "llama", "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct", "tag": "1.8.6"}
    resolved = _resolve.resolve_services([spec], {}, DEFAULTS)
    with pytest.raises(
        _resolve.ResolveError, match=r"bind_address is 127\.0\.0\.1, which only its host reaches.*verify\.url"
    ):
        _resolve.seen_from_outside(resolved, "gpu01")


@pytest.mark.parametrize("url", ["llm.example.com", "ftp://x", "http://user@host", "http://", 7, "http://a b"])
def test_url_of_clients_that_is_none(url):
    spec = {"name": "llama", "image": "nvcr.io/nim/x/y", "tag": "1.8.6", "verify": {"url": url}}
    with pytest.raises(_resolve.ResolveError, match=r"verify\.url is "):
        _resolve.resolve_services([spec], {}, DEFAULTS)
