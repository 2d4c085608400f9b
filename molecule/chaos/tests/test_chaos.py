# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults at random, by a seed that is printed: CHAOS=200 CHAOS_SEED=7 make molecule SCENARIO=chaos.

Each round begins a change, harms the host, the engine or the controller somewhere in the middle of it, and then asks an oracle that
knows nothing of what was done: a plain run converges, the one after it changes nothing, the endpoint answers, weights came only where
they were removed, and the key lies nowhere.
"""

from __future__ import annotations

import base64
import os
import pathlib
import random
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import Running, ask, eventually, lab, machine, play, service, vendor_call, weight_requests

HOST = "gpu01"
CACHE = "/var/lib/nim/cache/llama"
ROUNDS = int(os.environ.get("CHAOS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", time.time_ns() % 10**6))
OLD, NEW = "1.8.6", "2.0.5"
#: Seconds after the first task on the host in which the harm is done. What is still under way then is killed.
WITHIN = 25.0


def shell(command):
    """Something that happens on the host. Not by ssh, which it may cut off."""

    def harm(_host, _run):
        machine(HOST).exec_run(["sh", "-c", command])

    harm.__doc__ = command
    return harm


def kill_controller(_host, run):
    """kill -9 of ansible-playbook and all its workers"""
    run.kill()


def reboot(host, _run):
    """the host restarts"""
    machine(HOST).restart(timeout=180)
    eventually(lambda: host.run("true").rc == 0)


def power_cut(host, _run):
    """the host is cut off and started again"""
    machine(HOST).kill()
    machine(HOST).start()
    eventually(lambda: host.run("true").rc == 0)


#: What goes wrong. None of it is undone: the next run has to cope.
HARM = [
    kill_controller,
    kill_controller,
    # Modules come through a pipe: that is all of their command line.
    shell("pkill -9 -f '^/usr/bin/python3[.0-9]*$'"),
    shell("pkill -9 -f '[s]shd-session'; pkill -9 -f '[s]shd: .*@'"),
    shell("systemctl kill --signal=KILL docker.service"),
    shell("systemctl stop docker.service docker.socket; systemctl start docker.service"),
    shell("docker kill nim-llama"),
    shell("docker rm -f nim-llama"),
    shell("systemctl kill --signal=KILL nim-llama.service"),
    shell("systemctl kill --signal=KILL nim-stage-llama.service nim-pull-llama.service"),
    shell(f"rm -rf {CACHE}/.baremetal-nim.json; echo '{{' > /var/lib/nim/services/llama.json"),
    shell(
        f"setpriv --reuid=1000 --regid=1000 --clear-groups python3 -c \"open('{CACHE}/.baremetal-nim.json', 'w').write('[' * 10**6)\""
    ),
    shell("rm -f /etc/systemd/system/nim-llama.service; systemctl daemon-reload"),
    shell("truncate -s 0 /etc/nim/llama.env"),
    reboot,
    power_cut,
]


def key_files(host, folders):
    packed = base64.b64encode(f"{lab.LAB_KEY}\n".encode()).decode()
    return host.run(f"grep -rlF -e nvapi- -e '{packed}' {folders}").stdout.split()


@pytest.fixture(scope="module")
def dice():
    print(f"seed {SEED}")
    return random.Random(SEED)  # noqa: S311


def a_change(dice, number, state):
    """What the operator begins: playbook, its extra variables, and whether the weights go with it."""
    kind = dice.choice(("env", "env", "upgrade", "rollback", "restage", "remove"))
    if kind == "upgrade":
        state["tag"] = NEW if state["tag"] == OLD else OLD
    state["env"] = {"NIM_LOG_LEVEL": "INFO", "LAB_TEST": f"round-{number}"}
    wanted = {"nim_services": [service(HOST, tag=state["tag"], env=state["env"])]}
    if kind == "rollback":
        return kind, "rollback", {**wanted, "nim_rollback": "llama"}, False
    if kind == "remove":
        return kind, "remove", {**wanted, "nim_remove_cache": dice.random() < 0.5}, True
    return kind, "services", wanted, kind == "restage"


@pytest.fixture(scope="module")
def state():
    return {"tag": OLD, "env": {}}


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_round(host, dice, state, number):
    kind, book, extra, may_fetch = a_change(dice, number, state)
    harm, after = dice.choice(HARM), dice.uniform(0, WITHIN)
    print(f"seed {SEED}, round {number}: {kind}, after {after:.1f} s {(harm.__doc__ or '').strip()}")
    if kind == "restage":
        host.run(f"rm -rf {CACHE} /var/lib/nim/staged/llama.json")
    vendor_call("DELETE")
    run = Running(book, extra, HOST)
    run.wait_for("TASK")
    end = time.monotonic() + after
    while time.monotonic() < end and run.process.poll() is None:
        time.sleep(0.1)
    harm(host, run)
    end = time.monotonic() + WITHIN
    while time.monotonic() < end and run.process.poll() is None:
        time.sleep(0.1)
    told = run.kill()
    assert lab.LAB_KEY not in told
    assert "Traceback" not in told, told
    wanted = {"nim_services": [service(HOST, tag=state["tag"], env=state["env"])]}
    healed = play("services", limit=HOST, extra=wanted)
    assert healed.returncode == 0, told + healed.stdout
    assert ask(HOST)
    again = play("services", limit=HOST, extra=wanted)
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
    assert f"LAB_TEST=round-{number}" in host.check_output("docker exec nim-llama env")
    assert host.check_output("docker inspect --format '{{.State.Running}}' nim-llama") == "true"
    if not may_fetch:
        assert weight_requests() == 0, "weights came though they were there"
    assert lab.LAB_KEY not in healed.stdout + again.stdout
    assert key_files(host, "/etc/nim /run/nim /var/lib/nim /home /tmp /var/tmp /root/.ansible") == []
