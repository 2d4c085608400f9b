# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each generation of NIM images expects of its host. Data only, and the only place for it. Private.

Sources: docs.nvidia.com/nim/large-language-models (1.15 and 2.1: configuration, utilities, air gap), NVIDIA's RAG
blueprint (shared memory, nofile) and the NIM Operator's defaults (uid 1000).
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
    "env": {"NIM_TELEMETRY_MODE": "0"},
}

#: Contract name to facts. ``majors`` are the image tags' major versions that ``contract: auto`` maps to it,
#: ``driver_floor`` the oldest driver branch whose CUDA they run on.
CONTRACTS: dict[str, dict[str, Any]] = {
    # NIM 1.x: the server binds its port once the model is loaded.
    "classic": {**_COMMON, "majors": (1,), "driver_floor": 535, "prefetch_profile_option": "-p"},
    # NIM LLM/VLM 2.x and 3.x: a front proxy answers before the engine does.
    "llm": {**_COMMON, "majors": (2, 3), "driver_floor": 580},
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
