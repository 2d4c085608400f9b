# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each generation of NIM images expects of its host. Data only, and the only place for it. Private.

Sources: docs.nvidia.com/nim/large-language-models (1.15, 2.0 and 2.1: configuration, utilities, air gap, migration from
1.x, index of variables), docs.nvidia.com/nim/nemo-retriever (environment variables of 2.0, 2.2 and 2.4, release notes),
docs.nvidia.com/nim/speech (26.10: runtime parameters), NVIDIA's RAG, VSS and NeMo Retriever blueprints (shared memory, nofile,
memory fractions, start periods) and the NIM Operator (uid 1000, label and layout of the native protocol).
"""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    # Images declare uid 1000; passing --user breaks several of them, so the cache is given to that uid instead.
    "uid": 1000,
    "gid": 1000,
    # Directories of the cache, and where the image wants them.
    "mounts": {"": "/opt/nim/.cache"},
    "container_port": 8000,
    # Where gRPC listens in the container; None where it is not served.
    "container_grpc_port": None,
    "ready_path": "/v1/health/ready",
    # What proves that it serves: chat completions, or where there are none, its own word.
    "probes": ("completion", "stream"),
    # Multi-GPU without NVLink needs 16 GB; smaller values hang NCCL.
    "shm_size": "16g",
    # memlock and stack silence the start-up warning; nofile 1024 is too few for downloads of large models.
    "ulimits": ["memlock=-1", "stack=67108864", "nofile=65536"],
    "prefetch": ["download-to-cache"],
    # Whether that is the entrypoint, and not the argument of the image's own.
    "prefetch_entrypoint": False,
    # Variables that are set for the download only.
    "prefetch_env": {},
    # What takes as much as its model needs.
    "memory_fraction": 0.5,
    "memory_at_start": False,
    "prefetch_profile_option": "--profile",
    "start_timeout": 1800,
    "stop_timeout": 60,
    # A server that runs as a user needs none of root's. None keeps those that Docker gives, for an image that runs as root.
    "capabilities": [],
    # How the watchdog asks whether the engine lives: by a completion (chat), or not at all (health).
    "watchdog_probe": "chat",
    "env": {"NIM_TELEMETRY_MODE": "0"},
    # What keeps a host without a network from looking for one.
    "offline_env": {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    "json_env": {"NIM_JSONL_LOGGING": "1"},
    # {endpoint} and {name} are filled in.
    "otel_env": {"OTEL_EXPORTER_OTLP_ENDPOINT": "{endpoint}", "OTEL_SERVICE_NAME": "{name}"},
    # How an image of it is known: by a pattern of its name (empty is any) and the major version of its tag (none is any).
    "names": "",
    "majors": (),
    # Oldest version of certain images (by name) that reads these variables.
    "oldest": {},
}

#: Names of images of NeMo Retriever, and of BioNeMo and others that have no chat either, as patterns.
_RETRIEVER = (
    r"embed|(^|-)(bge|e5|gte)-|rerank|ocr|-parse|object-detection|page-elements|table-structure|graphic-elements"
)
#: Images whose versions are counted on their own, so that 2.x is no other generation: of proteins, molecules, cells and genes, of weather
#: and physics, of videos and voices. They take what the first generation of NIM takes (their documentation, by image).
OWN_COUNT = (
    r"boltz|openfold|alphafold|diffdock|genmol|molmim|proteinmpnn|proteina|rfdiffusion|rfd\d|evo2|esm|msa-search|maisi|vista3d"
    r"|corrdiff|fourcastnet|stormcast|cbottle|domino|cosmos3$|audio2face|maxine"
)
WITHOUT_CHAT = (
    _RETRIEVER + rf"|{OWN_COUNT}"
    # Pictures, videos and shapes that are made or changed.
    r"|flux|stable-diffusion|sdxl|stable-video|trellis|qwen-image|(^|-)sana|(^|-)wan\d|cosmos-(transfer|predict)|cosmos\d?-diffusion"
    # Pictures and videos that are looked at in a form of their own.
    r"|nvclip|dinov2|changenet|deepfake|synthetic-video|active-speaker"
    # Voices and faces.
    r"|harmonizer|audio2emotion|studio-voice|noise-removal|lipsync|eye-?contact|relighting"
    # Routes, and a classifier that has its own question.
    r"|cuopt|jailbreak-detect"
)

#: What proves images that have no chat, by patterns of their names; the others are asked for their health. Recognition of speech is
#: among these, since images that hear streams only refuse a file.
PROOFS_WITHOUT_CHAT = (
    # Videos, in a form of its own.
    (r"cosmos-embed", ("health",)),
    (r"rerank", ("ranking",)),
    (r"embed|(^|-)(bge|e5|gte)-", ("embedding",)),
    (r"magpie-tts|fastpitch|(^|[-/])tts([-/]|$)", ("speech",)),
)

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
#: Variables that name a file or directory which no image brings: an adapter, a model, a certificate. NVIDIA's guides mount each of them
#: (LoRA, fine-tuned and model-free deployments, SSL). Where the value is a path, it has to lie in what the container gets from the host.
BROUGHT_PATHS = (
    "NIM_DRAFT_MODEL_PATH",
    "NIM_FT_MODEL",
    "NIM_MODEL_NAME",
    "NIM_MODEL_PATH",
    "NIM_PEFT_SOURCE",
    "NIM_SSL_CA_CERTS_PATH",
    "NIM_SSL_CERTS_PATH",
    "NIM_SSL_CERT_PATH",
    "NIM_SSL_KEY_PATH",
)
#: Variables that say where in the container gRPC is served, and where HTTP is.
GRPC_VARIABLES = ("NIM_GRPC_API_PORT", "NIM_SERVER_GRPC_BIND_ADDR")
PORT_VARIABLES = ("NIM_HEALTH_PORT", "NIM_HTTP_API_PORT", "NIM_SERVER_PORT")
#: Variables that an option of the service sets, which a second setting would contradict.
RESERVED_VARIABLES = {
    "NIM_CACHE_PATH": "the role mounts the cache where the image looks for it",
    "NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "the role sets it to stage the weights",
    "NIM_GRPC_API_PORT": "use the option grpc_port",
    "NIM_HEALTH_PORT": "use the option port",
    "NIM_HTTP_API_PORT": "use the option port",
    "NIM_SERVER_BIND_ADDR": "use the options bind_address and port",
    "NIM_SERVER_GRPC_BIND_ADDR": "use the option grpc_port",
    "NIM_SERVER_PORT": "use the option port",
    "VLLM_PORT": "use the option port",
}

#: The label by which an image says how it downloads its weights, and the value of images of the contract native.
PROTOCOL_LABEL = "com.nvidia.nim.model_download_protocol"
NATIVE_PROTOCOL = "native-v1"

#: Contract name to facts. ``contract: auto`` takes the first whose ``names`` and ``majors`` fit, those with names first;
#: ``driver_floor`` is the oldest driver branch whose CUDA they run on. ``variables`` are those an image is known to read, for
#: finding misspelt ones: the published lists are not complete. ``renamed`` has those it does not read any more, with the
#: word that replaces them. ``memory_variable`` limits the part of a GPU's memory that the engine takes.
#: ``memory_fraction`` is the part of a GPU that must be free for it where nobody has said how much it needs; ``memory_at_start`` is
#: of engines that do not start unless that much is free, however small their model is.
CONTRACTS: dict[str, dict[str, Any]] = {
    # NIM 1.x: the server binds its port once the model is loaded.
    "classic": {
        **_COMMON,
        "majors": (1,),
        "driver_floor": 535,
        "prefetch_profile_option": "-p",
        "memory_variable": "NIM_KVCACHE_PERCENT",
        "memory_fraction": 0.9,
        "otel_env": {
            "NIM_ENABLE_OTEL": "1",
            "NIM_OTEL_SERVICE_NAME": "{name}",
            "NIM_OTEL_TRACES_EXPORTER": "otlp",
            "NIM_OTEL_METRICS_EXPORTER": "otlp",
            "NIM_OTEL_EXPORTER_OTLP_ENDPOINT": "{endpoint}",
        },
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
        # vLLM: "Free memory on device … is less than desired GPU memory utilization".
        "memory_fraction": 0.9,
        "memory_at_start": True,
        "offline_env": {**_COMMON["offline_env"], "NIM_DISABLE_MODEL_DOWNLOAD": "1"},
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
    # NeMo Retriever 2.x (embedding, reranking, OCR, object detection): a server of its own, one model per image, no utilities.
    # An image that finds a variable it has retired does not start.
    "native": {
        **_COMMON,
        "names": _RETRIEVER,
        "majors": (2, 3),
        "oldest": {r"embed|rerank": (2, 2)},
        "driver_floor": 580,
        "mounts": {"model": "/model", "kernels": "/opt/cache"},
        "probes": ("health",),
        "watchdog_probe": "health",
        "prefetch": [],
        "prefetch_env": {"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1"},
        "prefetch_profile_option": "",
        "start_timeout": 1200,
        "memory_variable": "",
        # The images' default would be to ask Hugging Face, with another key.
        "env": {
            "NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER": "ngc",
            "NIM_ENGINE_MODEL_PATH": "/model",
            "NIM_SERVER_BIND_ADDR": "0.0.0.0:8000",
            "NIM_TELEMETRY_MODE": "0",
        },
        "json_env": {"LOG_FORMAT": "json"},
        "variables": (
            "NIM_ENGINE_COUNT",
            "NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER",
            "NIM_ENGINE_MODEL_NAME",
            "NIM_ENGINE_MODEL_PATH",
            "NIM_ENGINE_MODEL_VARIANT",
            "NIM_ENGINE_PRECISION",
            "NIM_PERFORMANCE_MODE",
            "NIM_PIPELINE_MAX_BATCH_SIZE",
            "NIM_PIPELINE_MAX_SEQ_LEN",
            "NIM_SERVER_HTTP_BODY_LIMIT_BYTES",
            "NIM_SERVER_MAX_QUEUE_SIZE",
            "NIM_SERVER_REQUEST_TIMEOUT_S",
            "NIM_TELEMETRY_MODE",
        ),
        "renamed": {
            "NIM_BIND_ADDR": "the options bind_address and port",
            "NIM_MODEL_DOWNLOAD_PROVIDER": "NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER",
            "NIM_MODEL_NAME": "NIM_ENGINE_MODEL_NAME",
            "NIM_MODEL_PATH": "NIM_ENGINE_MODEL_PATH",
            "NIM_MODEL_PROFILE": "NIM_ENGINE_PRECISION",
            "NIM_PRECISION": "NIM_ENGINE_PRECISION",
            "NIM_TRITON_MAX_BATCH_SIZE": "NIM_PIPELINE_MAX_BATCH_SIZE",
        },
    },
    # Speech (Riva): recognition, synthesis, translation. HTTP and WebSocket share a port, gRPC has one.
    "speech": {
        **_COMMON,
        "names": r"riva|parakeet|canary|conformer|fastpitch|magpie-tts|whisper|(^|[-/])(asr|tts|nmt)([-/]|$)",
        "driver_floor": 535,
        # Triton inside has 8000 to 8002.
        "container_port": 9000,
        "container_grpc_port": 50051,
        "probes": ("health",),
        "watchdog_probe": "health",
        # They write their cache as root.
        "uid": 0,
        "gid": 0,
        "capabilities": None,
        "shm_size": "8g",
        "prefetch": ["nim_download_to_cache"],
        "prefetch_entrypoint": True,
        "prefetch_profile_option": "",
        "start_timeout": 3000,
        "memory_variable": "",
        "env": {"NIM_TELEMETRY_MODE": "0", "NIM_HTTP_API_PORT": "9000", "NIM_GRPC_API_PORT": "50051"},
        "variables": (
            "NIM_DISABLE_MODEL_DOWNLOAD",
            "NIM_EXPORT_PATH",
            "NIM_LOG_LEVEL",
            "NIM_SSL_CA_CERTS_PATH",
            "NIM_SSL_CERT_PATH",
            "NIM_SSL_KEY_PATH",
            "NIM_SSL_MODE",
            "NIM_TAGS_SELECTOR",
            "NIM_TELEMETRY_MODE",
        ),
        "renamed": {"NIM_MODEL_PROFILE": "NIM_TAGS_SELECTOR"},
    },
}

#: Variables that choose which weights an image downloads, or from where.
WEIGHT_VARIABLES = (
    "NIM_MODEL_PROFILE",
    "NIM_MODEL_NAME",
    "NIM_MODEL_PATH",
    "NIM_TAGS_SELECTOR",
    "NIM_REPOSITORY_OVERRIDE",
    "NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER",
    "NIM_ENGINE_MODEL_NAME",
    "NIM_ENGINE_MODEL_PATH",
    "NIM_ENGINE_MODEL_VARIANT",
    "NIM_ENGINE_PRECISION",
)
