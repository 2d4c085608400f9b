# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that serves by real vLLM."""

from __future__ import annotations

import json
import pathlib
import sys

import openai
import pytest
import requests

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import MODEL, ask, eventually, play, url

pytestmark = pytest.mark.usefixtures("journal")


def test_the_engine_is_vllm(name):
    assert "vllm" in requests.get(f"{url(name)}/v1/metrics", timeout=10).text
    assert ask(name)["usage"]["completion_tokens"] > 0


def test_it_streams(name):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 8, "stream": True}
    with requests.post(f"{url(name)}/v1/chat/completions", json=body, stream=True, timeout=60) as answer:
        lines = [line.decode() for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    deltas = [json.loads(line[6:])["choices"][0]["delta"].get("content") for line in lines[:-1]]
    assert "".join(delta for delta in deltas if delta)


def test_it_refuses_as_the_real_one_does(name):
    body = {"model": "no/such-model", "messages": [{"role": "user", "content": "Hello"}]}
    assert requests.post(f"{url(name)}/v1/chat/completions", json=body, timeout=60).status_code == 404


def test_verify_proves_both_probes(name, tmp_path):
    report = tmp_path / "report.json"
    run = play("verify", limit=name, extra={"lab_engine": "vllm", "nim_report": str(report)})
    assert run.returncode == 0, run.stdout
    item = json.loads(report.read_text())[0]
    assert item["verified"] and item["ttft_ms"] > 0 and item["content"]
    assert item["usage"]["total_tokens"] == item["usage"]["prompt_tokens"] + item["usage"]["completion_tokens"]


def test_every_probe_passes(name, tmp_path):
    probes = ["completion", "stream", "pace", "tool_call", "json_schema", "logprobs", "unknown_model", "client_abort"]
    asked = {"probes": [*probes, "overlong_input"], "max_ttft": 30, "min_tokens_per_second": 1}
    report = tmp_path / "report.json"
    run = play(
        "verify", limit=name, extra={"lab_engine": "vllm", "nim_service_verify": asked, "nim_report": str(report)}
    )
    assert run.returncode == 0, run.stdout
    assert json.loads(report.read_text())[0]["verified"]


def test_openai_client(name):
    with openai.OpenAI(base_url=f"{url(name)}/v1", api_key="none", max_retries=0, timeout=120) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        ask = {"model": MODEL, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 16, "temperature": 0}
        plain = client.chat.completions.create(**ask)
        chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        assert plain.usage.completion_tokens == chunks[-1].usage.completion_tokens
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == plain.choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**{**ask, "model": "no/such-model"})


def test_comes_back_from_the_cache(host, name):
    host.check_output("kill -9 $(docker inspect --format '{{.State.Pid}}' nim-llama)")
    eventually(lambda: ask(name), 180)
