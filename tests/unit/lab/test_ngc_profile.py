# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles: what is listed, what is chosen, and when nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from nimlib import manifest, ngc_profile
from nimlib.exceptions import ProfileError
from nimlib.ngc_profile import Profile
from nimlib.settings import Settings

GPU = "[2335:10de] (0) NVIDIA H200 [current utilization: 0%]"


@pytest.mark.parametrize(
    ("nodes", "visible", "indices"),
    [
        ([], "", []),
        ([], "void", []),
        ([], "0", [0]),
        ([], "GPU-1,GPU-2", [0, 1]),
        (["nvidia0", "nvidiactl", "nvidia-uvm"], "void", [0]),
        (["nvidia2", "nvidia5"], "", [2, 5]),
    ],
)
def test_sees_gpus(tmp_path: Path, nodes: list[str], visible: str, indices: list[int]) -> None:
    for node in nodes:
        (tmp_path / node).touch()
    seen = ngc_profile.gpus(tmp_path, {"NVIDIA_VISIBLE_DEVICES": visible})
    assert [int(line.split("(")[1][0]) for line in seen] == indices


def test_reads_schema_2(profiles: list[Profile]) -> None:
    assert [profile.name for profile in profiles] == [
        "vllm-bf16-tp1-pp1",
        "vllm-fp8-tp1-pp1",
        "vllm-bf16-tp2-pp1",
        "vllm-bf16-tp4-pp1",
    ]
    assert all(len(profile.id) == 64 for profile in profiles)
    assert profiles[0].source == (manifest.MODEL, "1.0.0-reference-bf16")


def test_takes_the_first_profile_that_fits(env: dict[str, str], profiles: list[Profile]) -> None:
    assert ngc_profile.select(Settings.read(env), [GPU]) == profiles[0]


@pytest.mark.parametrize("attribute", ["id", "name"])
def test_takes_the_profile_asked_for(env: dict[str, str], profiles: list[Profile], attribute: str) -> None:
    wanted = {**env, "NIM_MODEL_PROFILE": getattr(profiles[2], attribute)}
    assert ngc_profile.select(Settings.read(wanted), [GPU, GPU]) == profiles[2]


@pytest.mark.parametrize(
    ("wanted", "seen", "text"),
    [
        ("", [], "enough free GPUs. The model found 0."),
        ("vllm-bf16-tp4-pp1", [GPU], r"\(vllm-bf16-tp4-pp1\) needs 4 GPU\(s\) and found 1"),
        ("no-such", [GPU], "Could not match a profile in manifest"),
    ],
)
def test_says_why_none_fits(env: dict[str, str], wanted: str, seen: list[str], text: str) -> None:
    with pytest.raises(ProfileError, match=text):
        ngc_profile.select(Settings.read({**env, "NIM_MODEL_PROFILE": wanted}), seen)


def test_detected_none(env: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ProfileError):
        ngc_profile.select(Settings.read(env), [])
    assert "Detected 0 compatible profile(s)." in caplog.text


def test_lists_profiles(env: dict[str, str], profiles: list[Profile]) -> None:
    lines = ngc_profile.listing(Settings.read(env), [GPU]).splitlines()
    assert lines[:5] == [
        "SYSTEM INFO",
        "- Free GPUs:",
        f"  -  {GPU}",
        "MODEL PROFILES",
        "- Compatible with system and runnable:",
    ]
    assert lines[5] == f"  - {profiles[0].id} (vllm-bf16-tp1-pp1)"
    assert lines[-1] == f"  - {profiles[3].id} (vllm-bf16-tp4-pp1)"


def test_lists_memory_in_the_second_generation(env: dict[str, str]) -> None:
    text = ngc_profile.listing(Settings.read({**env, "NIM_LAB_FLAVOUR": "llm"}), [])
    assert "- Free GPUs: <None>" in text
    assert "- Compatible with system and runnable: <None>" in text
    assert "TRT-LLM" not in text
