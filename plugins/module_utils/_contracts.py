# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each generation of NIM images expects of its host. Data only, and the only place for it. Private.

Sources: docs.nvidia.com/nim/large-language-models (1.15, 2.0 and 2.1: configuration, utilities, air gap, migration from
1.x, index of variables), NVIDIA's RAG and VSS blueprints (shared memory, nofile, memory fractions) and the NIM Operator's
defaults (uid 1000).
"""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    # Images declare uid 1000; passing --user breaks several of them, so the cache is given to that uid instead.
    "uid": 1000,
    "gid": 1000,
    "cache_mount": "/opt/nim/.cache",
    "container_port": 8000,
    "ready_path": "/v1/health/ready",
    # Multi-GPU without NVLink needs 16 GB; smaller values hang NCCL.
    "shm_size": "16g",
    # memlock and stack silence the start-up warning; nofile 1024 is too few for downloads of large models.
    "ulimits": ["memlock=-1", "stack=67108864", "nofile=65536"],
    "prefetch": ["download-to-cache"],
    "prefetch_profile_option": "--profile",
    "start_timeout": 1800,
    "stop_timeout": 60,
    # How the watchdog asks whether the engine lives: by a completion (chat), or not at all (health).
    "watchdog_probe": "chat",
    "env": {"NIM_TELEMETRY_MODE": "0"},
}

#: Variables that more than one generation knows.
_VARIABLES = (
    "NIM_CUSTOM_MODEL_NAME",
    "NIM_JSONL_LOGGING",
    "NIM_LOG_LEVEL",
    "NIM_MAX_MODEL_LEN",
    "NIM_MODEL_NAME",
    "NIM_MODEL_PROFILE",
    "NIM_PEFT_REFRESH_INTERVAL",
    "NIM_PEFT_SOURCE",
    "NIM_REPOSITORY_OVERRIDE",
    "NIM_SDK_USE_NATIVE_TLS",
    "NIM_SERVED_MODEL_NAME",
    "NIM_SSL_MODE",
    "NIM_TAGS_SELECTOR",
    "NIM_TELEMETRY_ENABLE_ON_RTX",
    "NIM_TELEMETRY_MODE",
    "NIM_TENSOR_PARALLEL_SIZE",
)
#: Variables that an option of the service sets, which a second setting would contradict.
RESERVED_VARIABLES = {
    "NIM_CACHE_PATH": "the role mounts the cache where the image looks for it",
    "NIM_HEALTH_PORT": "use the option port",
    "NIM_HTTP_API_PORT": "use the option port",
    "NIM_SERVER_PORT": "use the option port",
    "VLLM_PORT": "use the option port",
}

#: Contract name to facts. ``majors`` are the image tags' major versions that ``contract: auto`` maps to it,
#: ``driver_floor`` the oldest driver branch whose CUDA they run on. ``variables`` are those an image is known to read, for
#: finding misspelt ones: the published lists are not complete. ``renamed`` has those it does not read any more, with the
#: word that replaces them. ``memory_variable`` limits the part of a GPU's memory that the engine takes.
CONTRACTS: dict[str, dict[str, Any]] = {
    # NIM 1.x: the server binds its port once the model is loaded.
    "classic": {
        **_COMMON,
        "majors": (1,),
        "driver_floor": 535,
        "prefetch_profile_option": "-p",
        "memory_variable": "NIM_KVCACHE_PERCENT",
        "variables": (
            *_VARIABLES,
            "NIM_CUSTOM_GUIDED_DECODING_BACKENDS",
            "NIM_ENABLE_KV_CACHE_HOST_OFFLOAD",
            "NIM_ENABLE_KV_CACHE_REUSE",
            "NIM_ENABLE_OTEL",
            "NIM_FORCE_DETERMINISTIC",
            "NIM_FT_MODEL",
            "NIM_GPU_MEM_FRACTION",
            "NIM_GUIDED_DECODING_BACKEND",
            "NIM_IGNORE_MODEL_DOWNLOAD_FAIL",
            "NIM_KVCACHE_PERCENT",
            "NIM_KV_CACHE_HOST_MEM_FRACTION",
            "NIM_MANIFEST_ALLOW_UNSAFE",
            "NIM_MAX_CPU_LORAS",
            "NIM_MAX_GPU_LORAS",
            "NIM_MAX_IMAGES_PER_PROMPT",
            "NIM_MAX_NUM_SEQS",
            "NIM_MAX_VIDEOS_PER_PROMPT",
            "NIM_MODEL_SIZE",
            "NIM_OTEL_EXPORTER_OTLP_ENDPOINT",
            "NIM_OTEL_METRICS_EXPORTER",
            "NIM_OTEL_SERVICE_NAME",
            "NIM_OTEL_TRACES_EXPORTER",
            "NIM_PER_REQ_METRICS_ENABLE",
            "NIM_REWARD_MODEL",
            "NIM_SCHEDULER_POLICY",
            "NIM_SSL_CERTS_PATH",
            "NIM_SSL_CERT_PATH",
            "NIM_SSL_KEY_PATH",
        ),
        "renamed": {},
    },
    # NIM LLM/VLM 2.x and 3.x: a front proxy answers before the engine does.
    "llm": {
        **_COMMON,
        "majors": (2, 3),
        "driver_floor": 580,
        "memory_variable": "NIM_GPU_MEM_FRACTION or NIM_PASSTHROUGH_ARGS (--gpu-memory-utilization)",
        "variables": (
            *_VARIABLES,
            "NIM_CACHE_PROBE_TIMEOUT",
            "NIM_CAPTURE_ARGS",
            "NIM_CAPTURE_ENABLE",
            "NIM_CORS_ALLOW_HEADERS",
            "NIM_CORS_ALLOW_METHODS",
            "NIM_CORS_ALLOW_ORIGINS",
            "NIM_CORS_EXPOSE_HEADERS",
            "NIM_CORS_MAX_AGE",
            "NIM_DISABLE_CUDA_GRAPH",
            "NIM_DISABLE_MODEL_DOWNLOAD",
            "NIM_DRAFT_MODEL_PATH",
            "NIM_GPU_MEM_FRACTION",
            "NIM_KVCACHE_PERCENT",
            "NIM_MIDDLEWARE_CONFIG_PATH",
            "NIM_MODEL_PATH",
            "NIM_NGINX_DIR",
            "NIM_NUM_COMPUTE_NODES",
            "NIM_PASSTHROUGH_ARGS",
            "NIM_PEFT_API_TIMEOUT_SECS",
            "NIM_PIPELINE_PARALLEL_SIZE",
            "NIM_SAGEMAKER_MODE",
            "NIM_SSL_CA_CERTS_PATH",
            "NIM_SSL_CERTS_PATH",
            "NIM_SSL_KEY_PATH",
            "NIM_TRUST_CUSTOM_CODE",
        ),
        "renamed": {"NIM_SSL_CERT_PATH": "NIM_SSL_CERTS_PATH"},
    },
}

#: Variables that carry a secret: never in an env file, where ``docker inspect`` would show them.
SECRET_VARIABLES = ("NGC_API_KEY", "NGC_CLI_API_KEY", "NVIDIA_API_KEY", "HF_TOKEN", "MODELSCOPE_API_TOKEN")

#: Variables that choose which weights an image downloads, or from where.
WEIGHT_VARIABLES = (
    "NIM_MODEL_PROFILE",
    "NIM_MODEL_NAME",
    "NIM_MODEL_PATH",
    "NIM_TAGS_SELECTOR",
    "NIM_REPOSITORY_OVERRIDE",
)
