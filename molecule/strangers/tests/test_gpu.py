# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A GPU that strangers hold, that nobody may ask, or that does not answer."""

from __future__ import annotations

import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import ask, container_id, eventually, play, service

HOST = "gpu01"
FILLED = 125003
#: Found before the lab's own, which containers get.
HANGING = "/usr/local/bin/nvidia-smi"


@pytest.fixture
def stranger(host):
    """Starts a process that holds so many MiB of the GPU, and ends it; it is ended in any case."""

    def start(mebibytes):
        code = "import os, time; os.open('/dev/nvidia0', os.O_PATH); time.sleep(3600)"
        host.check_output(f'systemd-run --unit=training --setenv=LAB_GPU_MIB={mebibytes} /usr/bin/python3 -c "{code}"')
        eventually(
            lambda: (
                f"python3, {mebibytes} MiB"
                in host.check_output("nvidia-smi --query-compute-apps=process_name,used_memory --format=csv")
            )
        )

    yield start
    host.run("systemctl stop training")


@pytest.fixture
def since(host):
    """What the journal of the service says from now on."""
    began = host.check_output("date +%s.%N")
    return lambda: host.check_output(f"journalctl -u nim-llama --since=@{began} -o cat --no-pager")


@pytest.fixture
def drop_in(host):
    """Changes the unit of the service."""
    folder = "/run/systemd/system/nim-llama.service.d"

    def write(text):
        host.check_output(f"mkdir -p {folder}; printf '{text}' > {folder}/test.conf; systemctl daemon-reload")

    yield write
    host.check_output(f"rm -rf {folder}; systemctl daemon-reload; systemctl restart --no-block nim-llama")
    eventually(lambda: ask(HOST))


def state(host):
    """How far the start of the unit is."""
    return host.check_output("systemctl show -p SubState --value nim-llama")


def deploy(**changes):
    """Deploys the service of the host, changed."""
    return play("services", limit=HOST, extra={"nim_services": [service(HOST, **changes)]})


def test_a_start_waits_for_memory_that_others_still_hold(host, stranger, since):
    stranger(FILLED)
    host.check_output("systemctl restart --no-block nim-llama")
    eventually(lambda: state(host) == "start-pre")
    time.sleep(3)
    assert state(host) == "start-pre", since()
    host.check_output("systemctl stop training")
    eventually(lambda: ask(HOST))
    assert "nvidia-smi" not in since() and "GPU memory" not in since()


def test_a_unit_that_may_not_ask_the_gpu_says_so(host, drop_in, since):
    """The lab's nvidia-smi opens its devices: a unit without DeviceAllow, as it was once, cannot pass for one whose GPU is free."""
    drop_in("[Service]\\nDeviceAllow=\\n")
    host.check_output("systemctl restart --no-block nim-llama")
    eventually(lambda: "so it is not known whether others hold the memory of GPU 0; the start goes on" in since())
    assert "nvidia-smi failed (exit status 255: Failed to initialize NVML: Unknown Error)" in since()
    eventually(lambda: ask(HOST))


def test_a_gpu_that_others_fill_is_refused_unless_nothing_is_started(host, stranger):
    run = deploy()
    assert run.returncode == 0, run.stdout
    before = container_id(host)
    changed = {"nim_services": [service(HOST, env={"NIM_MAX_MODEL_LEN": "2048"})]}
    stranger(FILLED)
    run = play("preflight", limit=HOST, extra=changed)
    assert run.returncode != 0, run.stdout
    for words in (
        "service llama: GPU 0 has 18768 of 143771 MiB left, wanted 129393 MiB",
        "python3 (pid ",
        "training.service, 125003 MiB)",
        "Next: ps -fp ",
    ):
        assert words in run.stdout, run.stdout
    # What runs as it is wanted is left alone.
    run = play("preflight", limit=HOST, extra={"nim_services": [service(HOST)]})
    assert run.returncode == 0 and "gpu01 is fit" in run.stdout, run.stdout
    host.check_output("systemctl stop training")
    # A desktop or a monitor is nobody's trouble, and the service's own memory is its own.
    stranger(300)
    run = play("preflight", limit=HOST, extra=changed)
    assert run.returncode == 0 and "gpu01 is fit" in run.stdout, run.stdout
    assert container_id(host) == before


def test_a_start_that_fails_for_memory_names_who_has_it(host, stranger):
    part = {"NIM_KVCACHE_PERCENT": "0.4"}
    # Who shares its GPU waits for nobody, also when it comes back after the failure.
    run = deploy(gpu_shared=True, env=part)
    assert run.returncode == 0, run.stdout
    stranger(40000)
    run = deploy(gpu_shared=True, env={**part, "NIM_LAB_FAULT": "out_of_memory"}, start_timeout=30)
    assert run.returncode != 0 and '"failure_class": "out_of_memory"' in run.stdout, run.stdout
    assert "at its start GPU memory was held by others: GPU 0: python3 (pid " in run.stdout, run.stdout
    assert ", 40000 MiB)" in run.stdout, run.stdout


def test_a_good_configuration_heals_it(host):
    run = deploy()
    assert run.returncode == 0, run.stdout
    assert ask(HOST)


def test_nvidia_smi_that_hangs_holds_up_neither_play_nor_start(host, since):
    host.check_output(f"printf '#!/bin/sh\\nexec sleep 1234\\n' > {HANGING}; chmod 755 {HANGING}")
    try:
        host.check_output("systemctl restart --no-block nim-llama")
        began = time.monotonic()
        run = play("preflight", limit=HOST)
        seconds = time.monotonic() - began
        assert run.returncode != 0, run.stdout
        assert "nvidia-smi did not answer within 45 s and was ended. Next: dmesg" in run.stdout, run.stdout
        assert seconds < 120, f"{seconds:.0f} s\n{run.stdout}"
        eventually(lambda: ask(HOST))
        assert "nvidia-smi did not answer within 15 s, so it is not known" in since()
        assert "sleep 1234" not in host.check_output("ps -eo args | grep [s]leep || true")
    finally:
        host.check_output(f"rm {HANGING}")
