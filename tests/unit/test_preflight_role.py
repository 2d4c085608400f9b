# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role preflight without a host: what it says about one that was read, and whom it asks."""

from __future__ import annotations

import http.server
import json
import pathlib

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _toolkit_plan
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_role
from ansible_collections.baremetal.nim.tests.unit.serving import serving

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
#: As read on a server with one H200; systemd, memory and clock are of a server that runs services.
REAL = {
    **json.loads((FIXTURES / "h200" / "gpu_host_info.json").read_text()),
    "systemd": {"running": True, "version": 255},
    "time": 1795423100.0,
    "clock": {"least": -0.4, "most": 0.1},
    "memory": {"total": 10**12, "available": 10**12},
    "disks": {},
    "listeners": [],
    "kubernetes": [],
    # What was read then did not tell of Docker as it was found.
    "engine": {
        "installed": True,
        "kind": "docker",
        "cdi": True,
        "active": True,
        "enabled": True,
        "client": True,
        "error": None,
        "strangers": [],
        "version": "29.4.0",
        "live_restore": True,
        "cdi_spec_dirs": ["/etc/cdi"],
        "masked": False,
        "unit": True,
        "by_hand": None,
        "snap": False,
        "rootless": [],
        "flags": {},
        "image_dir": "/var/lib/docker",
        "config": {"path": "/etc/docker/daemon.json", "error": None, "refused": None, "keys": [], "link": False},
    },
}
#: With what the roles install.
REAL["packages"] = {**REAL["packages"], "python3-requests": "2", **dict.fromkeys(_toolkit_plan.PACKAGES, "1.20.0-1")}
#: apt of a host that would lose something.
APT = """\
#!/bin/sh
case "$*" in
  *--simulate*docker.io*) echo "Remv docker-ce [5:29.1.3-1]"; echo "Inst docker.io (26.1.5-1 lab [all])" ;;
esac
"""
BARE = {
    **REAL,
    "driver": {**REAL["driver"], "loaded_version": None, "cuda_version": None, "error": "nvidia-smi is not installed"},
    "gpus": [],
    "packages": {},
    "engine": {
        **REAL["engine"],
        "installed": False,
        "active": False,
        "enabled": False,
        "client": False,
        "unit": False,
        "version": None,
    },
}
LLAMA = {"name": "llama", "image": "nvcr.io/nim/meta/llama-3.1-70b-instruct", "tag": "2.0.12"}
WARN = "TASK [baremetal.nim.preflight : verify | Warn]"


@pytest.fixture
def play(tmp_path):
    """Verifies a host; returns the exit status and what was told."""

    def run(host, **variables):
        given = {"nvidia_driver_source": "preinstalled", "nim_services": [LLAMA], **AWAY, **variables}
        return play_role(tmp_path, "preflight", {**given, "preflight_host": host}, tasks="verify")

    return run


@pytest.fixture
def catalogue():
    """Answers that an image needs two GPUs of 200 GB."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            profile = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "min_vram_per_device_gb": 200}
            body = json.dumps({"profiles": [{"profile_id": "bf16", **profile}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/v2/nim/metadata"


def test_fit_host_is_told_without_warnings_or_remote_calls(play):
    code, told = play(REAL)
    assert code == 0 and "gpu01 is fit: H200 SXM, driver 580.159.04" in told, told
    assert "skipped=4 " in told, told


@pytest.fixture
def apt(tmp_path):
    """A bare host is this machine, with an apt that only talks."""
    for name, text in (
        ("apt-get", APT),
        ("apt-mark", "#!/bin/sh\n"),
        ("dpkg-query", "#!/bin/sh\n"),
        ("apt-cache", "#!/bin/sh\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {**HERE, "ansible_host": "localhost"}


def test_bare_host_is_fit_where_a_later_role_brings_the_driver(play, apt):
    code, told = play(BARE, nvidia_driver_source="cuda_repo", container_engine_source="docker", **apt)
    assert code == 0 and "driver not loaded" in told, told


def test_bare_host_is_refused_where_none_does(play, apt):
    code, told = play(BARE, **apt)
    assert code == 2 and "nvidia-smi does not work" in told, told


def test_what_would_be_taken_away_is_refused_with_the_rest(play, apt):
    code, told = play(BARE, **apt)
    assert code == 2 and "installing docker.io, python3-requests would remove docker-ce (5:29.1.3-1)" in told, told


def test_errors_are_told_at_once_and_downgraded_ones_are_warnings(play):
    unfit = {**REAL, "memory": {"total": 10**9}, "systemd": {"running": True, "version": 200}}
    code, told = play(unfit, preflight_warn_only=["memory"], preflight_architectures=["aarch64"])
    assert code == 2, told
    warned, failed = told.split(WARN)[1].split("TASK [", 1)
    assert "memory is 1.0 GB" in warned and "memory is" not in failed
    assert "architecture is x86_64" in failed and "systemd is 200" in failed


def test_check_that_is_none_is_refused_with_the_right_names(play):
    code, told = play(REAL, preflight_warn_only=["memroy"])
    assert code == 2 and "wanted names of checks: os, architecture" in told and "Did you mean 'memory'?" in told, told


@pytest.mark.parametrize(("only", "status"), [([], 2), (["gpu_memory"], 0)])
def test_gpu_memory_is_what_nvidia_says_the_image_needs(play, catalogue, only, status):
    service = {**LLAMA, "profile": "bf16"}
    code, told = play(REAL, preflight_metadata_url=catalogue, preflight_warn_only=only, nim_services=[service])
    assert code == status, told
    assert "it gets GPU 0 (NVIDIA H200, 143771 MiB), wanted 2 GPU(s) with 190734 MiB each" in told, told


def test_no_answer_is_a_warning(play):
    code, told = play(REAL, preflight_metadata_url="http://127.0.0.1:1/v2/nim/metadata")
    assert code == 0 and "Connection refused" in told.split(WARN)[1], told


@pytest.mark.parametrize("source", ["cuda_repo", "preinstalled"])
def test_what_did_not_answer_refuses_the_host_and_is_told_once(play, source):
    """It cannot be made a warning, and what follows from it is no other reason."""
    smi = "nvidia-smi did not answer within 45 s and was ended. Next: dmesg | grep -i -e nvrm -e xid"
    silent = {
        "gpus": [],
        "driver": {**REAL["driver"], "error": smi},
        "unanswered": [{"program": "nvidia-smi", "message": smi}],
    }
    code, told = play({**REAL, **silent}, nvidia_driver_source=source, preflight_warn_only=["nvidia_smi", "driver"])
    assert code == 2 and f"- {smi}" in told, told
    assert "nvidia-smi does not work" not in told, told


@pytest.mark.parametrize(("own", "status"), [(True, 0), (False, 2)])
def test_gpu_that_others_fill(play, own, status):
    """As vLLM had it on a real H200, as the service of this play and as somebody else's."""
    serving = json.loads((FIXTURES / "h200-vllm" / "gpu_host_info.json").read_text())
    (process,) = serving["gpus"][0]["processes"]
    process["service"] = "llama" if own else None
    host = {**REAL, "gpus": serving["gpus"], "services": serving["services"] if own else {}}
    code, told = play(host)
    assert code == status, told
    assert ("held by VLLM::EngineCore (pid 3411, 131706 MiB)" in told) is not own, told
