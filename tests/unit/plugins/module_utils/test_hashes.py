# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hashes that are recorded on hosts. Another one here restarts running services or stages their weights once more.

Change a row only together with UNIT_FORMAT, or with what a contract says, and tell it in the changelog.
"""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _resolve
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import resolve_services

NIM = "nvcr.io/nim"
LLAMA = {"name": "llama", "image": f"{NIM}/meta/llama-3.1-8b-instruct", "tag": "1.8.6", "gpus": [0]}
DEFAULTS = {
    "cache_root": "/var/lib/nim/cache",
    "config_dir": "/etc/nim",
    "state_dir": "/var/lib/nim/services",
    "bind_address": "127.0.0.1",
    "cache_size_gb": 0,
}
DIGEST = f"sha256:{'6b' * 32}"
#: What an operator wrote, and what the roles add.
ROWS = {
    "classic": ({}, {}),
    "podman": ({}, {"engine": "podman"}),
    "llm": (
        {"tag": "2.0.5", "env": {"NIM_MAX_MODEL_LEN": 8192, "NIM_JSONL_LOGGING": True, "NIM_KVCACHE_PERCENT": 0.4}},
        {},
    ),
    "llm by digest": ({"digest": DIGEST, "contract": "llm", "profile": "vllm-bf16-tp1-pp1"}, {}),
    "words as text": ({"env": {"A": "1", "B": "true", "C": "1.10"}, "shm_size": "32g", "gpus": "all"}, {}),
    "native": (
        {"image": f"{NIM}/nvidia/nemotron-3-embed-1b", "tag": "2.2.2", "env": {"NIM_ENGINE_PRECISION": "fp16"}},
        {},
    ),
    "speech": (
        {
            "image": f"{NIM}/nvidia/parakeet-1-1b-ctc-en-us",
            "tag": "1.5.0",
            "grpc_port": 50051,
            "env": {"NIM_TAGS_SELECTOR": "mode=str"},
        },
        {},
    ),
    "key at runtime": ({"key_at_runtime": True}, {"api_key": "nvapi-of-the-test"}),
    "shared cache": ({"cache_path": "/mnt/nim/llama", "cache_read_only": True, "offline": True}, {}),
    "parts of MIG": ({"gpus": ["0:1", "0:2"], "gpu_shared": True, "env": {"NIM_KVCACHE_PERCENT": "0.4"}}, {}),
    "all that restarts": (
        {
            "port": 9000,
            "bind_address": "::",
            "ulimits": ["stack=67108864"],
            "capabilities": ["SYS_PTRACE"],
            "read_only": True,
            "log_rate": 0,
            "stop_timeout": 90,
            "log_format": "json",
            "otel_endpoint": "http://otel:4318",
        },
        {},
    ),
    "nothing of this restarts": (
        {"model": "m", "verify": {"prompt": "hi"}, "watchdog": False, "start_timeout": 9, "uid": 7},
        {},
    ),
}
#: First digits of config_hash, stage_key and share_key of each, as they were recorded by units of this form.
FORMAT = 2
#: Since then: 3 gives the wait before a start the NVIDIA devices.
NOW = 3
RECORDED = {
    "classic": ("05c355036e904091", "f3511fcfb1680632", "2f1c32b8679bab10"),
    "podman": ("7613005b6a0a9f66", "f3511fcfb1680632", "2f1c32b8679bab10"),
    "llm": ("d5fb8750114622c9", "3316039a7e0f0ea7", "a12286be73d7ec7a"),
    "llm by digest": ("7e07c12ba4f86e1c", "3903cf09a634f703", "d1a83ddc3e3384a8"),
    "words as text": ("01226b48525a5553", "f3511fcfb1680632", "2f1c32b8679bab10"),
    "native": ("b94534fa837c8c1f", "fbb5c84fd0666f6e", "49068ff7b28280a3"),
    "speech": ("21bde4a652c50494", "3c2536884f690814", "6bdd2b7d62756563"),
    "key at runtime": ("daa948ac458c9d77", "f3511fcfb1680632", "2f1c32b8679bab10"),
    "shared cache": ("3274e7e08dceead5", "f62b76687661dba0", "6f4f6536d6142e4a"),
    "parts of MIG": ("022f6d3827744a4d", "f3511fcfb1680632", "2f1c32b8679bab10"),
    "all that restarts": ("f49ddc6923b352c9", "f3511fcfb1680632", "2f1c32b8679bab10"),
    "nothing of this restarts": ("05c355036e904091", "f3511fcfb1680632", "2f1c32b8679bab10"),
}


@pytest.mark.parametrize("row", ROWS)
def test_hashes_are_those_that_hosts_have_recorded(row, monkeypatch):
    monkeypatch.setattr(_resolve, "UNIT_FORMAT", FORMAT)
    changes, defaults = ROWS[row]
    (service,) = resolve_services([{**LLAMA, **changes}], {"gpus": []}, {**DEFAULTS, **defaults})
    assert tuple(service[key][:16] for key in ("config_hash", "stage_key", "share_key")) == RECORDED[row]


def test_the_form_of_units_is_the_one_that_hosts_have_recorded():
    """Raised on purpose only: it restarts every service once."""
    assert _resolve.UNIT_FORMAT == NOW
