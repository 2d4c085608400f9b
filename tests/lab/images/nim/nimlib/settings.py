# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the environment of the container says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class Settings:
    """The variables of a NIM, read once."""

    flavour: str
    engine: str
    version: str
    manifest: Path
    cache: Path
    api: str
    port: int
    grpc_port: int
    health_port: int
    profile: str
    served_names: list[str]
    max_model_len: int | None
    log_level: str
    jsonl: bool
    download: bool
    passthrough: str
    # Kept out of repr: `nim-serve --dry-run` and tracebacks print the settings.
    key: str = field(repr=False)

    @property
    def llm(self) -> bool:
        """Whether this is the second generation (proxy in front of one engine)."""
        return self.flavour == "llm"

    @classmethod
    def read(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the environment."""
        flavour = env.get("NIM_LAB_FLAVOUR", "classic")
        port = env.get("NIM_SERVER_PORT") or "8000"
        if flavour == "classic":
            port = env.get("NIM_HTTP_API_PORT") or port
        cache = env.get("NIM_CACHE_PATH") or "/opt/nim/.cache"
        if flavour == "native":
            port = (env.get("NIM_SERVER_BIND_ADDR") or "0.0.0.0:8000").rpartition(":")[2]
            cache = env.get("NIM_ENGINE_MODEL_PATH") or "/model"
        if flavour == "speech":
            port = env.get("NIM_HTTP_API_PORT") or "9000"
        names = env.get("NIM_SERVED_MODEL_NAME") or "meta/llama-3.1-8b-instruct"
        length = env.get("NIM_MAX_MODEL_LEN")
        return cls(
            flavour=flavour,
            engine=env.get("NIM_LAB_ENGINE", "reference"),
            version=env.get("NIM_LAB_VERSION", "0"),
            manifest=Path(env.get("NIM_LAB_MANIFEST", "/opt/nim/etc/default/model_manifest.yaml")),
            cache=Path(cache),
            api=(env.get("NGC_API_ENDPOINT") or "http://ngc.lab").rstrip("/"),
            port=int(port),
            grpc_port=int(env.get("NIM_GRPC_API_PORT") or 50051),
            health_port=int(env.get("NIM_HEALTH_PORT") or port),
            profile=env.get("NIM_MODEL_PROFILE", ""),
            served_names=[name.strip() for name in names.split(",") if name.strip()],
            max_model_len=int(length) if length else None,
            log_level=(env.get("NIM_LOG_LEVEL") or ("WARNING" if flavour == "llm" else "INFO")).upper(),
            jsonl=env.get("NIM_JSONL_LOGGING", "").lower() in TRUE,
            download=env.get("NIM_DISABLE_MODEL_DOWNLOAD", "").lower() not in TRUE,
            passthrough=env.get("NIM_PASSTHROUGH_ARGS", ""),
            key=env.get("NGC_CLI_API_KEY") or env.get("NGC_API_KEY") or "",
        )
