# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wait for GPU memory before a start, with an nvidia-smi that says what it is told. The answers' form is a real H200's."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "roles/nim_service/files/nim-gpu-wait"
HELD = "41234, VLLM::EngineCore, 131072 MiB"


@pytest.fixture
def wait(tmp_path):
    """Runs the script; each answer of nvidia-smi is the next of ANSWERS, then the last one for ever."""

    def run(answers, *arguments):
        for number, answer in enumerate(answers, 1):
            (tmp_path / f"answer.{number}").write_text(answer)
        smi = tmp_path / "nvidia-smi"
        smi.write_text(
            f'#!/bin/sh\ncd {tmp_path}\necho "$*" >> calls\nn=$(wc -l < calls)\n[ -f answer.$n ] || n={len(answers)}\ncat answer.$n\n'
            "! grep -q failed answer.$n\n"
        )
        smi.chmod(0o755)
        env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["/bin/sh", str(SCRIPT), *arguments], env=env, capture_output=True, text=True, check=False
        )
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


@pytest.mark.parametrize("answer", ["", "No running processes found\n", "failed: Driver/library version mismatch\n"])
def test_a_free_gpu_is_not_waited_for(wait, answer):
    done, calls = wait([answer], "60", "0")
    assert (done.returncode, done.stderr, len(calls)) == (0, "", 1)
    assert calls == ["--id=0 --query-compute-apps=pid,process_name,used_memory --format=csv,noheader"]


def test_memory_that_is_being_released_is_waited_for(wait):
    done, calls = wait([f"{HELD}\n", f"{HELD}\n", ""], "60", "GPU-4f2a")
    assert (done.returncode, done.stderr, len(calls)) == (0, "", 3)
    assert calls[0].startswith("--id=GPU-4f2a ")


def test_each_gpu_must_be_free(wait):
    done, calls = wait(["", f"{HELD}\n", "", ""], "60", "0", "1")
    assert [call.split()[0] for call in calls] == ["--id=0", "--id=1", "--id=0", "--id=1"]
    assert done.returncode == 0


def test_all_gpus_are_asked_at_once(wait):
    _done, calls = wait([""], "60", "all")
    assert calls == ["--query-compute-apps=pid,process_name,used_memory --format=csv,noheader"]


def test_memory_that_is_never_released_does_not_keep_the_service_down(wait):
    done, calls = wait([f"{HELD}\n41299, python3, 512 MiB\n"], "1", "0")
    assert done.returncode == 0 and calls
    assert done.stderr == (
        f"GPU memory is still held after 1 s, the start goes on: GPU 0: {HELD} 41299, python3, 512 MiB.\n"
    )


@pytest.mark.parametrize("gpu", ["0:1", "MIG-5ae2f1a4"])
def test_parts_of_a_gpu_have_no_list_of_their_own(wait, gpu):
    done, calls = wait([f"{HELD}\n"], "60", gpu)
    assert (done.returncode, calls) == (0, [])


def test_a_host_without_nvidia_smi(tmp_path):
    for name in ("date", "grep", "sleep"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}" if os.path.exists(f"/usr/bin/{name}") else f"/bin/{name}")
    done = subprocess.run(
        ["/bin/sh", str(SCRIPT), "60", "0"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
