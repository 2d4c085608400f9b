# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_info against the stand-in of both generations, over HTTP."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import nim_info
from ansible_collections.baremetal.nim.tests.unit.serving import serving

from nim_lab import ask  # isort: skip  # Puts the stand-in on sys.path.

from nimlib import manifest
from nimlib.api import NimMiddleware
from nimlib.reference import Model
from nimlib.reference_server import Server
from nimlib.settings import Settings

MODEL = "meta/llama-3.1-8b-instruct"


class _Handler(BaseHTTPRequestHandler):
    """Hands requests to the application of the server."""

    def do_GET(self, payload: Any = None) -> None:
        answer = ask(self.server.app, self.path, payload)
        body = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""


@pytest.fixture
def told(weights: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What a stand-in of a generation tells of itself after one completion."""

    def run(flavour: str) -> dict[str, Any]:
        Path(env["NIM_LAB_MANIFEST"]).write_text(manifest.render(flavour, "reference"), encoding="utf-8")
        for key, value in {"FLAVOUR": flavour, "VERSION": {"classic": "1.8.6", "llm": "2.0.5"}[flavour]}.items():
            monkeypatch.setenv(f"NIM_LAB_{key}", value)
        monkeypatch.setenv("NIM_MODEL_PROFILE", "vllm-bf16-tp1-pp1")
        model = Model(weights / manifest.MODEL / manifest.VERSIONS["reference"].format("bf16"))
        app = NimMiddleware(Server(model, Settings.read(), [MODEL], 8192, rate=1e6))
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.app = app  # type: ignore[attr-defined]
        with serving(server):
            chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
            assert ask(app, "/v1/chat/completions", chat).status == 200
            args = {"url": f"http://127.0.0.1:{server.server_address[1]}"}
            with patch_module_args(args), pytest.raises(SystemExit):
                nim_info.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("flavour", "release", "api", "names"),
    [("classic", "1.8.6", "1.0.0", "classic"), ("llm", "2.0.5", "2.0.0", "vllm")],
)
def test_stand_in(told, flavour, release, api, names):
    result = told(flavour)
    assert {answer["problem"] for answer in result["responses"].values()} == {None}, result
    assert (result["ready"], result["live"], result["model"], result["adapters"]) == (True, True, MODEL, [])
    assert result["version"] == {"release": release, "api": api}
    assert result["metadata"]["version"] == release
    assert result["metadata"]["models"][0]["short_name"].startswith("llama-3.1-8b-instruct:")
    assert result["metadata"]["license"]["name"] == "LICENSE"
    # The selected profile is one of the manifest.
    profiles = {profile["id"]: profile["tags"] for profile in result["manifest"]["profiles"]}
    assert len(profiles) == 4 and profiles[result["metadata"]["profile"]]["precision"] == "bf16"
    (model,) = result["models"]
    assert (model["max_model_len"], model["root"], model["adapter"]) == (8192, MODEL, False)
    metrics = result["metrics"]
    assert (metrics["names"], metrics["requests_running"], metrics["requests_waiting"]) == (names, 0, 0)
    assert (metrics["kv_cache_usage"], metrics["generation_tokens_total"]) == (0, 8)
    assert metrics["requests_finished"] == {"stop": 0, "length": 1, "abort": 0}
    assert metrics["time_to_first_token"]["count"] == metrics["e2e_latency"]["count"] == 1
    assert metrics["time_to_first_token"]["mean_ms"] > 0
