# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to one host because of another. Runs after the tests of each host, which remove their services."""

from __future__ import annotations

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import MODEL, ask, lab, machine, play, vendor_call

#: The same service on both hosts.
SAME = {
    "name": "llama",
    "image": f"nvcr.lab:5000/{lab.NIM}",
    "tag": "2.0.5",
    "model": MODEL,
    "gpus": [0],
    "port": 8000,
    "ulimits": ["stack=67108864"],
}
HOSTS = ("gpu01", "gpu02")
CACHE = "/var/lib/nim/cache/llama"


def running(name):
    """The container of a host's service, and since when it runs."""
    answer = machine(name).exec_run(["docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "nim-llama"])
    assert answer.exit_code == 0, answer
    return answer.output


def downloads():
    """How often the weights left the vendor's server."""
    asked = json.loads(vendor_call("GET"))["requests"]
    return sum(item["count"] for item in asked if item["path"].endswith("model.safetensors"))


def command(name, *argv):
    """Runs a command on a host; returns its exit status and what it said."""
    answer = machine(name).exec_run(list(argv))
    return answer.exit_code, answer.output.decode()


def deploy_to_both(**extra):
    """The same service on both hosts, which have no weights."""
    for name in HOSTS:
        assert command(name, "rm", "-rf", CACHE)[0] == 0
    vendor_call("DELETE")
    run = play("services", extra={"nim_services": [SAME], "model_cache_share": True, **extra})
    assert run.returncode == 0, run.stdout
    assert all(ask(name) for name in HOSTS)
    return run


def test_one_download_serves_the_fleet():
    deploy_to_both()
    assert downloads() == 1
    sums = {
        command(name, "sh", "-c", f"cd {CACHE}/ngc && find . -type f -exec sha256sum {{}} + | sort")[1]
        for name in HOSTS
    }
    assert len(sums) == 1 and "blobs" in sums.pop(), "what was copied is what was downloaded"
    for name in HOSTS:
        assert command(name, "systemctl", "is-active", "nim-share")[1].strip() == "inactive"
        assert command(name, "sh", "-c", "ls /run/nim/share.* /run/nim/*.key")[0] != 0, "a password was left behind"
    again = play("services", extra={"nim_services": [SAME], "model_cache_share": True})
    assert again.stdout.count("changed=0 ") == 2, again.stdout


def test_a_host_whose_source_fails_downloads_by_itself():
    for name in HOSTS:
        assert command(name, "mv", "/usr/bin/rsync", "/usr/bin/rsync.away")[0] == 0
    try:
        run = deploy_to_both()
    finally:
        for name in HOSTS:
            command(name, "mv", "/usr/bin/rsync.away", "/usr/bin/rsync")
    assert downloads() == 2 and "llama is downloaded: gpu0" in run.stdout, run.stdout


def test_upgrade_touches_no_host_after_one_that_rolled_back():
    before = running("gpu02")
    spec = {**SAME, "tag": "1.8.6", "env": {"NIM_LAB_FAULT": "crash_at_start"}, "start_timeout": 20}
    run = play("upgrade", extra={"nim_services": [spec]})
    assert run.returncode == 2 and "Rolled back:" in run.stdout, run.stdout
    switched = run.stdout.partition("PLAY [Upgrade]")[2].partition("PLAY RECAP")[0]
    assert "[gpu01]" in switched and "[gpu02]" not in switched, run.stdout
    assert running("gpu02") == before
    assert ask("gpu01") and ask("gpu02")
