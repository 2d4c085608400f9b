# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model cache: layout, resuming, and every way a download fails."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ngc_server
import pytest
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE
from nim_lab import KEY
from nimlib import nim_sdk
from nimlib.exceptions import ManifestDownloadError
from nimlib.ngc_profile import Profile
from nimlib.settings import Settings


@pytest.fixture
def cache(
    env: dict[str, str], profiles: list[Profile], server: ngc_server.Weights, monkeypatch: pytest.MonkeyPatch
) -> nim_sdk.Cache:
    """An empty cache with a key and a server to fill it from."""
    env["NGC_API_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    env["NGC_API_KEY"] = KEY
    for name in ("NGC_API_ENDPOINT", "NGC_API_KEY"):
        monkeypatch.setenv(name, env[name])
    monkeypatch.setattr(nim_sdk.time, "sleep", lambda _seconds: None)
    return nim_sdk.Cache(Settings.read(env), profiles[0])


def again(cache: nim_sdk.Cache, **env: str) -> nim_sdk.Cache:
    """The same cache seen by another container."""
    base = {
        "NIM_LAB_MANIFEST": str(cache.settings.manifest),
        "NIM_CACHE_PATH": str(cache.settings.cache),
        "NGC_API_ENDPOINT": cache.settings.api,
    }
    return nim_sdk.Cache(Settings.read({**base, **env}), cache.profile)


def weights_blob(cache: nim_sdk.Cache) -> Path:
    """The blob of the big file."""
    return (cache.snapshot / "model.safetensors").resolve()


def test_fills_a_content_addressed_cache(cache: nim_sdk.Cache) -> None:
    assert cache.missing() == list(cache.profile.files)
    assert cache.ensure() == cache.snapshot
    assert cache.missing() == []
    assert cache.root == cache.settings.cache / "ngc/hub/models--nim--meta--llama-3.1-8b-instruct"
    for name in cache.profile.files:
        link = cache.snapshot / name
        assert str(link.readlink()).startswith("../../blobs/")
        assert nim_sdk.digest(link) == link.resolve().name
    assert not list(cache.root.rglob("*.incomplete"))


def test_a_complete_cache_needs_neither_key_nor_server(cache: nim_sdk.Cache, server: ngc_server.Weights) -> None:
    cache.ensure()
    server.forget()
    assert again(cache).ensure() == cache.snapshot
    assert server.summary()["count"] == 0


def ranges(server: ngc_server.Weights) -> list[dict[str, object]]:
    """The requests that asked for a part of a file."""
    entries = (json.loads(line) for line in server.log.read_text().splitlines())
    return [entry for entry in entries if entry["range"]]


def test_goes_on_where_a_download_was_cut_off(cache: nim_sdk.Cache, server: ngc_server.Weights) -> None:
    cache.ensure()
    blob = weights_blob(cache)
    data = blob.read_bytes()
    blob.unlink()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(data[: len(data) // 2])
    again(cache, NGC_API_KEY=KEY).ensure()
    assert blob.read_bytes() == data
    # The server notes a request once its last byte is out: maybe a moment after the client has it.
    deadline = time.monotonic() + PATIENCE
    while not (resumed := ranges(server)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [entry["bytes"] for entry in resumed] == [len(data) - len(data) // 2]


def test_starts_over_when_the_part_on_disk_is_wrong(cache: nim_sdk.Cache) -> None:
    cache.ensure()
    blob = weights_blob(cache)
    data = blob.read_bytes()
    blob.unlink()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(b"rubbish")
    again(cache, NGC_API_KEY=KEY).ensure()
    assert blob.read_bytes() == data


def test_replaces_a_corrupt_blob(cache: nim_sdk.Cache) -> None:
    cache.ensure()
    weights_blob(cache).write_bytes(b"rubbish")
    assert cache.missing() == ["model.safetensors"]
    cache.ensure()
    assert cache.missing() == []


def test_refuses_files_that_are_not_what_the_list_says(cache: nim_sdk.Cache, server: ngc_server.Weights) -> None:
    server.digest = lambda path: "0" * 64  # type: ignore[method-assign]
    with pytest.raises(ManifestDownloadError, match="checksum mismatch"):
        cache.ensure()
    assert not list(cache.blobs.iterdir())


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("", r"Authentication Error: The requested operation requires an API key, but none was found"),
        ("nvapi-wrong", r"Authentication Error: .*401 Unauthorized"),
        (f"{KEY}-no-rights", r"Permission error: .*403 Forbidden"),
    ],
)
def test_says_what_is_wrong_with_the_key(cache: nim_sdk.Cache, key: str, text: str) -> None:
    with pytest.raises(ManifestDownloadError, match=text):
        again(cache, NGC_API_KEY=key).ensure()


def test_the_key_of_the_ngc_client_wins(cache: nim_sdk.Cache) -> None:
    assert again(cache, NGC_API_KEY="nvapi-wrong", NGC_CLI_API_KEY=KEY).ensure() == cache.snapshot
    assert KEY not in repr(cache.settings)


@pytest.mark.parametrize(
    ("number", "words"), [(13, "Permission denied"), (28, "No space left on device"), (30, "Read-only file system")]
)
def test_names_the_error_of_the_file_system(
    cache: nim_sdk.Cache, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, words)

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(ManifestDownloadError, match=rf"{words} \(os error {number}\)"):
        cache.ensure()


def test_downloads_can_be_forbidden(cache: nim_sdk.Cache, server: ngc_server.Weights) -> None:
    with pytest.raises(ManifestDownloadError, match="NIM_DISABLE_MODEL_DOWNLOAD"):
        again(cache, NIM_DISABLE_MODEL_DOWNLOAD="1", NGC_API_KEY=KEY).ensure()
    assert server.summary()["count"] == 0


def test_no_server_at_all(cache: nim_sdk.Cache) -> None:
    with pytest.raises(ManifestDownloadError, match="Connection error"):
        again(cache, NGC_API_KEY=KEY, NGC_API_ENDPOINT="http://127.0.0.1:9").ensure()


@pytest.mark.parametrize(
    ("arguments", "versions"),
    [
        ([], 1),
        (["--all"], 2),
        (["-p", "vllm-fp8-tp1-pp1"], 1),
        (["--profile", "vllm-fp8-tp1-pp1", "vllm-bf16-tp2-pp1"], 2),
    ],
)
def test_download_to_cache(
    cache: nim_sdk.Cache, monkeypatch: pytest.MonkeyPatch, arguments: list[str], versions: int
) -> None:
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES")
    monkeypatch.setattr(sys, "argv", ["download-to-cache", *arguments])
    assert nim_sdk.main() == 0
    assert len(list((cache.root / "snapshots").iterdir())) == versions


def test_download_to_cache_fails_for_an_unknown_profile(
    cache: nim_sdk.Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["download-to-cache", "-p", "no-such"])
    assert nim_sdk.main() == 1
    assert "'no-such' is neither the id nor the name of a profile" in capsys.readouterr().err
