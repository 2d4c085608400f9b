# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wait for GPU memory before a start, with an nvidia-smi that says what it is told. The answers' form is a real H200's."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "roles/nim_service/files/nim-gpu-wait"
APPS = pathlib.Path(__file__).resolve().parents[1] / "fixtures/h200-x2/apps.csv"
HELD = "41234, VLLM::EngineCore, 131072 MiB"
#: As nvidia-smi says it where the cgroup of a unit keeps the devices from it.
DENIED = "Failed to initialize NVML: Unknown Error"
#: The script with less patience.
HASTY = """\
import runpy, sys
script = runpy.run_path(sys.argv[1])
script["wait"].__globals__.update(PATIENCE=0.5, AGAIN=1.2)
sys.exit(script["main"](*sys.argv[2:]))
"""


@pytest.fixture
def wait(tmp_path):
    """Runs the script; each answer of nvidia-smi is the next of ANSWERS, then the last one for ever."""

    def run(answers, *arguments, script=None):
        for number, answer in enumerate(answers, 1):
            (tmp_path / f"answer.{number}").write_text(answer)
        smi = tmp_path / "nvidia-smi"
        smi.write_text(
            script
            or f'#!/bin/sh\ncd {tmp_path}\necho "$*" >> calls\nn=$(wc -l < calls)\n[ -f answer.$n ] || n={len(answers)}\ncat answer.$n\n'
            "! grep -q Failed answer.$n || exit 255\n"
        )
        smi.chmod(0o755)
        env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", HASTY, str(SCRIPT), *arguments], env=env, capture_output=True, text=True, check=False
        )
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else [], time.monotonic() - began

    return run


@pytest.mark.parametrize("answer", ["", "No running processes found\n"])
def test_a_free_gpu_is_not_waited_for(wait, answer):
    done, calls, _seconds = wait([answer], "60", "0")
    assert (done.returncode, done.stderr, len(calls)) == (0, "", 1)
    assert calls == ["--id=0 --query-compute-apps=pid,process_name,used_memory --format=csv,noheader"]


def test_it_runs_as_units_run_it(tmp_path):
    """By its first line, with its own patience."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([str(SCRIPT), "60", "0"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_memory_that_is_being_released_is_waited_for(wait):
    done, calls, _seconds = wait([f"{HELD}\n", f"{HELD}\n", ""], "60", "GPU-4f2a")
    assert (done.returncode, done.stderr, len(calls)) == (0, "", 3)
    assert calls[0].startswith("--id=GPU-4f2a ")


def test_each_gpu_must_be_free(wait):
    done, calls, _seconds = wait(["", f"{HELD}\n", "", ""], "60", "0", "1")
    assert [call.split()[0] for call in calls] == ["--id=0", "--id=1", "--id=0", "--id=1"]
    assert done.returncode == 0


def test_all_gpus_are_asked_at_once(wait):
    _done, calls, _seconds = wait([""], "60", "all")
    assert calls == ["--query-compute-apps=pid,process_name,used_memory --format=csv,noheader"]


def test_memory_that_is_never_released_does_not_keep_the_service_down(wait):
    done, _calls, seconds = wait([f"{HELD}\n41299, /opt/a, b/python3 train.py, 512 MiB\n"], "1", "0")
    assert done.returncode == 0 and seconds < 20
    assert done.stderr == (
        "GPU memory is still held after 1 s, the start goes on:"
        " GPU 0: VLLM::EngineCore (pid 41234, 131072 MiB), a, (pid 41299, 512 MiB)\n"
    )


def test_a_service_that_shares_its_gpu_only_hears_of_the_others(wait):
    done, calls, _seconds = wait([f"{HELD}\n", ""], "0", "0", "1")
    assert (done.returncode, len(calls)) == (0, 2)
    assert done.stderr == "GPU memory is held by others too: GPU 0: VLLM::EngineCore (pid 41234, 131072 MiB)\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("4711, [Not Found], 512 MiB", "a process that is not seen from here (pid 4711, 512 MiB)"),
        ("4711, python3, [N/A]", "python3 (pid 4711, unknown memory)"),
        ("4711, /usr/bin/python3, 512 MiB", "python3 (pid 4711, 512 MiB)"),
        ("4711, evil\x1b[31m\tname, 512 MiB", "evil [31m name (pid 4711, 512 MiB)"),
    ],
)
def test_processes_in_words(wait, row, said):
    done, _calls, _seconds = wait([f"{row}\n"], "0", "0")
    assert done.stderr == f"GPU memory is held by others too: GPU 0: {said}\n"


def test_the_recorded_form(wait):
    # It was asked for the GPU of each row too.
    rows = [line.partition(", ")[2] for line in APPS.read_text().splitlines()[1:]]
    done, _calls, _seconds = wait(["\n".join(rows) + "\n"], "0", "all")
    assert done.stderr == (
        "GPU memory is held by others too: all GPUs: python3 (pid 571, 41478 MiB), python3 (pid 571, 1002 MiB)\n"
    )


def test_nvidia_smi_that_fails_is_no_free_gpu(wait):
    done, calls, seconds = wait([f"{DENIED}\n"], "60", "0", "1")
    assert done.returncode == 0 and 1.2 <= seconds < 20 and len(calls) > 1
    assert done.stderr == (
        f"nvidia-smi failed (exit status 255: {DENIED}), so it is not known whether others hold the memory of GPU 0, 1;"
        " the start goes on. Next: nvidia-smi; dmesg | grep -i -e nvrm -e xid\n"
    )


def test_driver_that_comes_late_is_waited_for(wait):
    done, calls, _seconds = wait([f"{DENIED}\n", ""], "60", "0")
    assert (done.returncode, done.stderr, len(calls)) == (0, "", 2)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 1234", "nvidia-smi did not answer within 0.5 s, so"),
        ("trap '' TERM; sleep 1234; sleep 1234", "nvidia-smi did not answer within 0.5 s, so"),
        ("exec >&- 2>&-; sleep 1234", "nvidia-smi did not answer within 0.5 s, so"),
        ("exec yes", "nvidia-smi wrote without end, so"),
        ("exit 9", "nvidia-smi failed (exit status 9: it said nothing), so"),
    ],
)
def test_nvidia_smi_that_hangs_holds_up_nobody(wait, script, said):
    done, _calls, seconds = wait([], "60", "0", script=f"#!/bin/sh\n{script}\n")
    assert done.returncode == 0 and done.stderr.startswith(said) and seconds < 15, done.stderr


@pytest.mark.parametrize("gpu", ["0:1", "MIG-5ae2f1a4"])
def test_parts_of_a_gpu_have_no_list_of_their_own(wait, gpu):
    done, calls, _seconds = wait([f"{HELD}\n"], "60", gpu)
    assert (done.returncode, calls) == (0, [])


def test_a_host_without_nvidia_smi(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "60", "0"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.startswith("nvidia-smi cannot be run (No such file or directory), so it is not known whether")
