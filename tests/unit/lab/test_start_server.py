# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first process of the container: what it starts and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE
from nim_lab import IMAGES
from nimlib import manifest, nim_sdk, start_server
from nimlib.settings import Settings

KEY = "nvapi-never-to-be-seen"


@pytest.fixture
def staged(env: dict[str, str], weights: Path, profiles: list[object]) -> dict[str, str]:
    """The environment of a container whose cache is complete."""
    version = manifest.VERSIONS["reference"].format("bf16")
    root = Path(env["NIM_CACHE_PATH"]) / "ngc/hub/models--nim--meta--llama-3.1-8b-instruct"
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots" / version).mkdir(parents=True)
    for file in (weights / manifest.MODEL / version).iterdir():
        blob = root / "blobs" / nim_sdk.digest(file)
        blob.write_bytes(file.read_bytes())
        (root / "snapshots" / version / file.name).symlink_to(f"../../blobs/{blob.name}")
    return {**os.environ, **env, "PYTHONPATH": str(IMAGES / "nim")}


def serve(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start nim-serve."""
    command = [sys.executable, "-m", "nimlib.start_server", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("out_of_memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        ("crash_at_start", "RuntimeError: Engine core initialization failed."),
    ],
)
def test_ends_with_its_engine(staged: dict[str, str], fault: str, words: str) -> None:
    child = serve({**staged, "NIM_LAB_FAULT": fault})
    output, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert words in output


def test_stops_when_told(staged: dict[str, str]) -> None:
    child = serve({**staged, "NIM_LAB_FAULT": "never_ready"})
    assert child.stdout is not None
    for line in child.stdout:
        if "Waiting for core engine" in line:
            break
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=PATIENCE)
    assert child.returncode in (0, 143)
    # One that is slow to stop takes a minute.
    assert time.monotonic() - begun < 30


def test_can_be_slow_to_stop(staged: dict[str, str]) -> None:
    child = serve({**staged, "NIM_LAB_FAULT": "never_ready,slow_shutdown", "NIM_LAB_SHUTDOWN_SECONDS": "1"})
    assert child.stdout is not None
    for line in child.stdout:
        if "Waiting for core engine" in line:
            break
    begun = time.monotonic()
    for _ in range(3):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    child.communicate(timeout=PATIENCE)
    assert time.monotonic() - begun >= 1


def test_without_key_and_cache_it_fails(env: dict[str, str]) -> None:
    child = serve({**os.environ, **env, "PYTHONPATH": str(IMAGES / "nim")})
    output, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert "nimlib.exceptions.ManifestDownloadError: Error downloading manifest: Authentication Error" in output


def test_logs_json_lines(env: dict[str, str]) -> None:
    child = serve({**os.environ, **env, "PYTHONPATH": str(IMAGES / "nim"), "NIM_JSONL_LOGGING": "true"}, "--dry-run")
    output, _ = child.communicate(timeout=PATIENCE)
    first = json.loads(output.splitlines()[0])
    assert list(first) == ["level", "time", "file_name", "line_number", "message"]


def test_dry_run_shows_everything_but_the_key(staged: dict[str, str]) -> None:
    child = serve({**staged, "NGC_API_KEY": KEY, "NIM_LOG_LEVEL": "ERROR", "NIM_MAX_MODEL_LEN": "512"}, "--dry-run")
    output, _ = child.communicate(timeout=PATIENCE)
    shown = json.loads(output)
    assert child.returncode == 0
    assert shown["key"] == "set"
    assert KEY not in output
    assert shown["profile"]["missing"] == []
    assert "--max-model-len 512" in shown["command"]


@pytest.mark.parametrize(
    ("env", "port"),
    [
        ({"NIM_HTTP_API_PORT": "9000"}, 9000),
        ({"NIM_SERVER_PORT": "8002"}, 8002),
        ({"NIM_LAB_FLAVOUR": "llm", "NIM_HTTP_API_PORT": "9000"}, 8000),
        ({"NIM_LAB_FLAVOUR": "llm", "NIM_SERVER_PORT": "8003"}, 8003),
    ],
)
def test_ports(env: dict[str, str], port: int) -> None:
    assert Settings.read(env).port == port


def test_the_engine_of_the_second_generation_hides_behind_the_proxy() -> None:
    settings = Settings.read(
        {"NIM_LAB_FLAVOUR": "llm", "NIM_SERVED_MODEL_NAME": "a,b", "NIM_PASSTHROUGH_ARGS": "--x 'y z'"}
    )
    command = start_server.engine_command(settings, Path("/model"), ["--extra"])
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "8001"
    assert command[-6:] == ["--served-model-name", "a", "b", "--x", "y z", "--extra"]


def test_the_proxy_answers_liveness_itself() -> None:
    conf = start_server.nginx_conf(Settings.read({"NIM_LAB_FLAVOUR": "llm"}), Path("/tmp/nginx"))
    assert conf.count("server {") == 1
    assert "location = /v1/health/live {\n            return 200" in conf
    assert "proxy_pass http://127.0.0.1:8001" in conf
    assert "{{" not in conf


def test_health_can_have_a_port_of_its_own() -> None:
    conf = start_server.nginx_conf(
        Settings.read({"NIM_LAB_FLAVOUR": "llm", "NIM_HEALTH_PORT": "8080"}), Path("/tmp/nginx")
    )
    first, second = conf.split("listen ")[1:]
    assert first.startswith("8000;")
    assert "/v1/health" not in first
    assert second.startswith("8080;")
    assert "/v1/health/live" in second
