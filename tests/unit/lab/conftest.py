# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the lab's NIM stand-in share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.baremetal.nim.tests.unit.serving import serving

from nim_lab import KEY  # isort: skip  # Puts the stand-in on sys.path.

import make_reference_weights
import ngc_server
from nimlib import manifest, ngc_profile, settings


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a weights server with both versions of the reference model."""
    root = tmp_path_factory.mktemp("ngc")
    for precision in ("bf16", "fp8"):
        version = manifest.VERSIONS["reference"].format(precision)
        make_reference_weights.main(root / manifest.MODEL / version, precision)
    return root


@pytest.fixture
def server(weights: Path, tmp_path: Path) -> Iterator[ngc_server.Weights]:
    """A running weights server that knows KEY."""
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\nforbidden:{KEY}-no-rights\n", encoding="utf-8")
    with serving(ngc_server.Weights(("127.0.0.1", 0), weights, keys, tmp_path / "log")) as running:
        yield running


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a classic container with one GPU, also set for this process."""
    path = tmp_path / "model_manifest.yaml"
    path.write_text(manifest.render("classic", "reference"), encoding="utf-8")
    values = {
        "NIM_LAB_MANIFEST": str(path),
        "NIM_LAB_FLAVOUR": "classic",
        "NIM_LAB_VERSION": "1.8.6",
        "NIM_CACHE_PATH": str(tmp_path / "cache"),
        "NVIDIA_VISIBLE_DEVICES": "0",
        "NGC_API_ENDPOINT": "http://127.0.0.1:9",
    }
    for name in ("NGC_API_KEY", "NGC_CLI_API_KEY", "NIM_LAB_FAULT", "NIM_MODEL_PROFILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def profiles(env: dict[str, str]) -> list[ngc_profile.Profile]:
    """The profiles of the manifest."""
    return ngc_profile.load(settings.Settings.read(env).manifest)
