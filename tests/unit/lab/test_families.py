# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-ins of NeMo Retriever and of speech, over HTTP and as this collection verifies them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ngc_server
import pytest
import requests
from ansible_collections.baremetal.nim.plugins.module_utils import _contracts, _probe, _resolve
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE, serving
from nim_lab import IMAGES, KEY, over_http  # Puts the stand-in on sys.path.
from nimlib import families, family_server, manifest
from nimlib.exceptions import NimError
from nimlib.settings import Settings

assert IMAGES.exists()
MODELS = {**manifest.FAMILY_MODELS, "reranker": manifest.RERANKER}


def running(flavour: str) -> AbstractContextManager[str]:
    """A server of a family."""
    return over_http(family_server.FamilyServer("native" if flavour == "reranker" else flavour, MODELS[flavour]))


def verify(url: str, *probes: str, **options: Any) -> dict[str, Any]:
    """What the collection says of an endpoint."""
    defaults = {name: spec.get("default") for name, spec in _probe.ARGUMENT_SPEC.items()}
    given = {**defaults, "url": url, "probes": list(probes), "timeout": 5, **options}
    assert _probe.option_problems(given) == []
    return _probe.verify(given, lambda _argv: (1, "", ""), "here")


@pytest.mark.parametrize(
    ("flavour", "probe", "detail"),
    [
        ("native", "embedding", "256 dimensions"),
        ("reranker", "ranking", "order 2, "),
        ("speech", "speech", "1.5 s at 22050 Hz by Lab-Multilingual.EN-US.Ada"),
        ("speech", "transcription", "heard ''"),
    ],
)
def test_verified_by_what_it_does(flavour, probe, detail):
    with running(flavour) as url:
        result = verify(url, probe)
        assert not result.get("failed"), result["msg"]
        assert result["checks"][0]["detail"].startswith(detail)
        assert result["model"] == (None if flavour == "speech" else MODELS[flavour])
        assert verify(url, "health")["phase"] == "verified"
        assert "nim_requests_total" in requests.get(f"{url}/v1/metrics", timeout=PATIENCE).text


@pytest.mark.parametrize(
    ("flavour", "probe"), [("native", "ranking"), ("reranker", "embedding"), ("native", "completion")]
)
def test_not_verified_by_what_it_does_not(flavour, probe):
    with running(flavour) as url:
        result = verify(url, probe)
    assert result["failed"] and result["failure_class"] == "bad_response" and "HTTP 404" in result["msg"]


def test_what_was_spoken_is_heard(tmp_path):
    with running("speech") as url:
        form = {"text": (None, "The answer is 42."), "language": (None, "en-US")}
        wav = requests.post(f"{url}/v1/audio/synthesize", files=form, timeout=PATIENCE)
        assert wav.headers["Content-Type"] == "audio/wav"
        path = tmp_path / "answer.wav"
        path.write_bytes(wav.content)
        result = verify(url, "transcription", audio_file=str(path), expect_regex="answer is 42")
    assert not result.get("failed") and result["content"] == "The answer is 42."


@pytest.mark.parametrize("text", ["hello", " !~", "~" * 40, "A quick brown fox."])
def test_round_trip(text):
    assert families.hear(families.speak(text)) == text


def test_texts_that_are_alike_lie_near_each_other():
    near = families.rank("carburettors mixing fuel", ["bread and yeast", "a carburettor mixes fuel with air"])
    assert [index for index, _logit in near] == [1, 0]
    assert families.embed("the cities of France") == families.embed("France city") or near[0][1] > near[1][1]


@pytest.mark.parametrize(
    ("flavour", "path", "sent", "status"),
    [
        ("native", "/v1/embeddings", {"json": {"model": "x", "input": "a", "input_type": "query"}}, 404),
        ("native", "/v1/embeddings", {"json": {"model": MODELS["native"], "input": "a"}}, 400),
        ("native", "/v1/embeddings", {"json": {"model": MODELS["native"], "input": [], "input_type": "query"}}, 400),
        ("native", "/v1/embeddings", {"data": "{"}, 400),
        ("reranker", "/v1/ranking", {"json": {"model": MODELS["reranker"], "query": "a"}}, 422),
        ("speech", "/v1/audio/synthesize", {"json": {"text": "a"}}, 400),
        ("speech", "/v1/audio/synthesize", {"files": {"text": (None, "x" * 2001)}}, 400),
        ("speech", "/v1/audio/synthesize", {"files": {"text": (None, "x"), "voice": (None, "Nobody")}}, 400),
        ("speech", "/v1/audio/transcriptions", {"files": {"language": (None, "en-US")}}, 400),
        ("speech", "/v1/audio/transcriptions", {"files": {"file": ("a.wav", b"x"), "language": (None, "en-US")}}, 400),
        ("speech", "/v1/models", {}, 404),
    ],
)
def test_refuses(flavour, path, sent, status):
    with running(flavour) as url:
        answer = requests.post(url + path, timeout=PATIENCE, **sent)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_dead_engine_behind_a_green_health(monkeypatch):
    monkeypatch.setenv("NIM_LAB_FAULT", "dead_engine")
    with running("native") as url:
        result = verify(url, "embedding")
    assert (result["failure_class"], result["status"]) == ("dead_engine", 200)


@pytest.fixture
def family(env, monkeypatch, tmp_path, weights: Path):
    """Settings of a container of a family, whose weights server runs."""
    for name in (*manifest.FAMILY_MODELS.values(), manifest.RERANKER):
        folder = weights / name / manifest.FAMILY_VERSION
        folder.mkdir(parents=True, exist_ok=True)
        for file in manifest.FAMILY_FILES:
            (folder / file).write_text(f"{name} {file}")
    keys = tmp_path / "family-keys"
    keys.write_text(f"{KEY}\n", encoding="utf-8")
    with serving(ngc_server.Weights(("127.0.0.1", 0), weights, keys, tmp_path / "family-log")) as server:

        def make(flavour: str, **variables: str) -> Settings:
            monkeypatch.delenv("NIM_CACHE_PATH", raising=False)
            values = {"NIM_LAB_FLAVOUR": flavour, "NGC_API_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}
            values["NIM_ENGINE_MODEL_PATH" if flavour == "native" else "NIM_CACHE_PATH"] = str(tmp_path / "cache")
            for name, value in {**values, **variables}.items():
                monkeypatch.setenv(name, value)
            return Settings.read()

        yield make


def contract_env(name: str) -> dict[str, str]:
    """What the collection sets for a contract, but for where the cache is."""
    given = _contracts.CONTRACTS[name]["env"]
    return {key: value for key, value in given.items() if key != "NIM_ENGINE_MODEL_PATH"}


@pytest.mark.parametrize("flavour", ["native", "speech"])
def test_downloads_with_what_the_collection_sets_and_starts_without_a_key(family, monkeypatch, flavour):
    settings = family(flavour, NGC_API_KEY=KEY, **contract_env(flavour))
    contract = _contracts.CONTRACTS[flavour]
    assert settings.port == contract["container_port"]
    assert flavour == "native" or settings.grpc_port == contract["container_grpc_port"]
    monkeypatch.setenv("NIM_ENGINE_MODEL_DOWNLOAD_ONLY", "1")
    assert family_server.main([]) == 0
    monkeypatch.delenv("NGC_API_KEY")
    assert family_server.prepare(Settings.read(), manifest.FAMILY_MODELS[flavour]).missing() == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NIM_MODEL_NAME": "x"}, "NIM_MODEL_NAME is no longer supported: use NIM_ENGINE_MODEL_NAME"),
        ({"NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER": "huggingface"}, "cannot reach huggingface.co"),
        ({"NGC_API_KEY": ""}, "requires an API key"),
        ({"NGC_API_KEY": "nvapi-wrong"}, "401 Unauthorized"),
    ],
)
def test_what_keeps_a_retriever_from_starting(family, variables, words):
    settings = family("native", **{**contract_env("native"), "NGC_API_KEY": KEY, **variables})
    with pytest.raises(NimError, match=words):
        family_server.prepare(settings, manifest.FAMILY_MODELS["native"])


def test_variables_that_the_image_has_retired_are_those_that_the_collection_refuses():
    assert family_server.RETIRED.keys() <= _contracts.CONTRACTS["native"]["renamed"].keys()
    assert _resolve.CONTRACTS is _contracts.CONTRACTS
