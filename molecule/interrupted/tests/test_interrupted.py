# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays that are killed, without a chance to tidy up, and run again. The tests go on from each other, in this order."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import (
    ask,
    eventually,
    lab,
    machine,
    play,
    play_and_kill,
    service,
    vendor,
    vendor_call,
    weight_requests,
)

HOST = "gpu01"


def site_and_kill(at: str, delay: float, **changes) -> str:
    """Kills site.yml that deploys the service of the host, changed."""
    return play_and_kill("site", at, delay, extra={"nim_services": [service(HOST, **changes)]}, limit=HOST)


def converges(**changes) -> str:
    """Runs the play to its end and checks that it needs no third run."""
    extra = {"nim_services": [service(HOST, **changes)]}
    run = play("site", limit=HOST, extra=extra)
    assert run.returncode == 0, run.stdout
    assert ask(HOST)
    again = play("site", limit=HOST, extra=extra)
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
    return run.stdout


@pytest.mark.parametrize(
    ("at", "delay"),
    [
        pytest.param("install_docker | Install Docker", 3, id="while packages install"),
        pytest.param(
            "configure | Merge options into daemon.json", 1.2, id="before Docker restarts with its new configuration"
        ),
        pytest.param("install_apt | Install the toolkit", 1, id="while the toolkit installs"),
    ],
)
def test_killed_while_the_host_is_prepared(at, delay):
    site_and_kill(at, delay)


@pytest.fixture
def slow():
    """Weights come so slowly that a kill meets a download under way."""
    slower = "sed -i 's/--port 80$/--port 80 --rate 200000/' /etc/systemd/system/lab-ngc.service"
    faster = "sed -i 's/ --rate 200000//' /etc/systemd/system/lab-ngc.service"
    reload = "systemctl daemon-reload && systemctl restart lab-ngc"
    assert vendor().exec_run(["sh", "-c", f"{slower} && {reload}"]).exit_code == 0
    eventually(lambda: vendor_call("GET"))
    yield
    vendor().exec_run(["sh", "-c", f"{faster}; {reload}"])


def test_killed_while_weights_download_the_next_run_attaches(host, slow):
    seen = site_and_kill("staging llama weights", 1)
    assert "Stage image and weights" in seen
    assert host.service("nim-stage-llama").is_running, "the download outlives the play"
    started = host.check_output("systemctl show -p InvocationID --value nim-stage-llama")
    run = play("site", limit=HOST, extra={"nim_services": [service(HOST)]})
    assert run.returncode == 0, run.stdout
    assert started in host.check_output("journalctl -u nim-stage-llama -o json --no-pager | tail -n 3"), (
        "it was one download"
    )
    assert ask(HOST)


def test_converged_after_all_that():
    converges()


@pytest.mark.parametrize(
    ("at", "delay"),
    [
        pytest.param("service | Write the files of llama", 1, id="files written, service not restarted"),
        pytest.param("service | Run now", 0.3, id="while the service restarts"),
        pytest.param("probe | Wait for each endpoint", 1, id="while the endpoint is waited for"),
    ],
)
def test_killed_while_a_change_is_deployed(host, at, delay):
    changes = {
        "env": {"NIM_LOG_LEVEL": "INFO", "NIM_LAB_LOAD_SECONDS": "4", "LAB_TEST": at.replace(" ", "-").replace("|", "")}
    }
    site_and_kill(at, delay, **changes)
    vendor_call("DELETE")
    converges(**changes)
    assert f"LAB_TEST={changes['env']['LAB_TEST']}" in host.check_output("docker exec nim-llama env"), (
        "the new configuration runs"
    )
    assert weight_requests() == 0


def test_host_that_reboots_during_a_play(host):
    changes = {"env": {"LAB_TEST": "reboot"}}
    site_and_kill("service | Write the files of llama", 0.5, **changes)
    machine(HOST).restart(timeout=180)
    eventually(lambda: host.run("true").rc == 0)
    converges(**changes)
    assert lab.LAB_KEY not in host.check_output("ls -la /run/nim 2>/dev/null; cat /run/nim/* 2>/dev/null; true")


def test_an_ended_download_proves_nothing_once_its_cache_is_gone(host, slow):
    """Nobody was there when it ended, and an operator has removed what it brought."""

    def remove():
        run = play("remove", limit=HOST, extra={"nim_services": [service(HOST)], "nim_remove_cache": True})
        assert run.returncode == 0, run.stdout
        assert not host.file("/var/lib/nim/cache/llama").exists, run.stdout

    remove()
    site_and_kill("staging llama weights", 1)
    eventually(lambda: host.check_output("systemctl show -p SubState --value nim-stage-llama") != "running")
    remove()
    vendor_call("DELETE")
    converges()
    assert weight_requests() > 0, "what is gone was staged again"
