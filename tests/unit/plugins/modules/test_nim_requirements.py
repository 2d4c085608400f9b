# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run against a real HTTP server that knows some images, and some that only pretends to."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import urllib.parse

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import resolve_services
from ansible_collections.baremetal.nim.plugins.modules import nim_requirements
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE, serving

PROFILE = {
    "profile_id": "4f904d571fe60ff24695b5ee2aa42da5",
    "gpu_device": "2335:10de",
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "min_vram_per_device_gb": 80.0,
    "tested_gpu_devices": [],
}
DOCUMENT = json.dumps({"profiles": [PROFILE, {**PROFILE, "profile_id": "fp8", "min_vram_per_device_gb": 24}]}).encode()
LLAMA = {"name": "llama", "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct", "tag": "2.0.12", "gpus": [0]}
PHI = {**LLAMA, "name": "phi", "image": "nvcr.io/nim/microsoft/phi-4", "port": 8001, "gpus": [1]}
GPUS = [{"address": f"0000:{slot}:00.0", "device_id": "2335"} for slot in ("18", "2a")]
UNKNOWN = {"memory_mib": None, "gpus": None, "driver": None}


class Server(http.server.ThreadingHTTPServer):
    """Serves `pages` (resource and tag to status and body) and counts requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = {("nim/meta/llama-3.1-8b-instruct", "2.0.12"): (200, DOCUMENT)}
        self.requests = []
        self.promised = 0
        # Cleared, the server is stuck before its answer, or before the body of it.
        self.head, self.body = threading.Event(), threading.Event()
        self.release()

    def release(self):
        self.head.set()
        self.body.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v2/nim/metadata"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query))
        self.server.requests.append((split.path, query["resourceId"], query["tag"]))
        assert "Authorization" not in self.headers
        self.server.head.wait(PATIENCE)
        status, body = self.server.pages.get(self.server.requests[-1][1:], (404, b'{"requestStatus": {}}'))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + self.server.promised))
        self.end_headers()
        self.server.body.wait(PATIENCE)
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    with serving(Server()) as running:
        yield running
        running.release()


@pytest.fixture
def call(server, tmp_path, capsys, monkeypatch):
    """Run the module; return its result."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    defaults = {"cache_root": "/c", "config_dir": "/e", "state_dir": "/s", "bind_address": "127.0.0.1"}

    def run(*services, url=None, **options):
        resolved = resolve_services(list(services), {"gpus": []}, defaults)
        args = {"url": url or server.url, "services": resolved, "gpus": GPUS, "timeout": PATIENCE, **options}
        args.update(_ansible_check_mode=False, _ansible_tmpdir=str(tmp_path))
        with patch_module_args(args), pytest.raises(SystemExit) as caught:
            nim_requirements.main()
        result = json.loads(capsys.readouterr().out)
        assert caught.value.code == (1 if result.get("failed") else 0)
        return result if result.get("failed") else result["requirements"]

    return run


def answer(server, body, status=200):
    server.pages["nim/meta/llama-3.1-8b-instruct", "2.0.12"] = (status, body)


def test_least_of_what_may_be_chosen(call, server):
    need = call(LLAMA)["llama"]
    source = f"{server.url}?resourceId=nim/meta/llama-3.1-8b-instruct&tag=2.0.12"
    note = "the least of 2 profiles that may be chosen"
    assert need == {
        "memory_mib": 22888,
        "gpus": 1,
        "driver": None,
        "source": source,
        "note": note,
        "answered": True,
    }


@pytest.mark.parametrize("key", ["profile", "env"])
def test_profile_that_was_chosen(call, key):
    chosen = {"profile": PROFILE["profile_id"]}
    if key == "env":
        chosen = {"env": {"NIM_MODEL_PROFILE": PROFILE["profile_id"]}}
    need = call({**LLAMA, **chosen})["llama"]
    assert need["memory_mib"] == 76293 and PROFILE["profile_id"] in need["note"]


def test_all_gpus_are_those_of_the_host(call, server):
    pair = {**PROFILE, "tensor_parallel_size": 2, "min_vram_per_device_gb": 40}
    answer(server, json.dumps({"profiles": [pair]}).encode())
    assert call({**LLAMA, "gpus": "all"})["llama"]["gpus"] == 2
    assert call(LLAMA)["llama"]["note"] == "none of the 1 profiles published is for 1 GPU(s) of this host"


def test_each_image_is_asked_for_once(call, server):
    other = {**LLAMA, "name": "second", "port": 8002, "gpus": [1]}
    gone = {"name": "old", "state": "absent"}
    needs = call(LLAMA, other, gone)
    assert needs.keys() == {"llama", "second"} and needs["llama"] == needs["second"]
    assert server.requests == [("/v2/nim/metadata", "nim/meta/llama-3.1-8b-instruct", "2.0.12")]


def test_nothing_published_is_an_answer(call):
    need = call(PHI)["phi"]
    assert need["note"] == "nothing is published for this image and tag" and need["answered"] is True
    assert need.items() >= UNKNOWN.items()


def test_one_unknown_image_leaves_the_others(call):
    needs = call(PHI, LLAMA)
    assert needs["phi"]["memory_mib"] is None and needs["llama"]["memory_mib"] == 22888


def test_digest_alone_is_not_asked_for(call, server):
    digest = {**LLAMA, "tag": "", "digest": f"sha256:{'0' * 64}", "contract": "llm"}
    assert "pinned by digest alone" in call(digest)["llama"]["note"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        pytest.param(500, b"{}", "(status 500)", id="500"),
        pytest.param(403, b"{}", "(status 403)", id="403"),
        pytest.param(200, b"<html>proxy login</html>", "the answer is no metadata: ", id="web-page"),
        pytest.param(200, b"\xff\xfe\x00", "the answer is no metadata: ", id="binary"),
        pytest.param(200, b"[]", "its root is list, wanted an object", id="another-document"),
        pytest.param(200, DOCUMENT[:-9], "the answer is no metadata: ", id="cut-off"),
        pytest.param(200, b"[" * 100000, "the answer is no metadata: ", id="deep"),
        pytest.param(200, b" " * (nim_requirements.MOST_BYTES + 1), "the answer is longer than", id="endless"),
    ],
)
def test_answer_that_is_none(call, server, status, body, said):
    answer(server, body, status)
    need = call(LLAMA)["llama"]
    assert said in need["note"] and need["answered"] is False
    assert need.items() >= UNKNOWN.items()


def test_answer_that_breaks_off(call, server):
    answer(server, DOCUMENT[:-9])
    server.promised = 1000
    need = call(LLAMA)["llama"]
    assert need.items() >= UNKNOWN.items() and need["answered"] is False


def test_answer_that_stops_in_the_middle(call, server):
    server.body.clear()
    needs = call(LLAMA, PHI, timeout=1)
    assert len(server.requests) == 1
    for need in needs.values():
        assert need["note"] == "the answer broke off (timed out)" and need["answered"] is False


def test_nobody_answers(call):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        needs = call(LLAMA, PHI, url=f"http://127.0.0.1:{taken.getsockname()[1]}/v2")
    for need in needs.values():
        assert "Connection refused" in need["note"] and need["answered"] is False


def test_server_that_is_stuck_costs_one_timeout(call, server):
    server.head.clear()
    needs = call(LLAMA, PHI, timeout=1)
    assert len(server.requests) == 1
    for need in needs.values():
        assert "timed out" in need["note"] and need["answered"] is False


@pytest.mark.parametrize("url", ["api.ngc.nvidia.com", "file:///etc/passwd", ""])
def test_what_is_no_address_is_an_error(call, url):
    result = call(LLAMA, url=url or " ")
    assert result["failed"] is True and "wanted an address such as https://" in result["msg"]
