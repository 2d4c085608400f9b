# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two at once on one host: one waits, or is told who is there; nothing is killed that the other one began."""

from __future__ import annotations

import json
import pathlib
import re
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import ENGINE, NAME, Running, ask, container_id, lab, play, service

HOST = "gpu01"
LEASES = "/run/nim/lock.d"
WHO = r"\S+ on \S+ \(pid \d+, baremetal\.nim\.site\) since 20\d\d-[-0-9]+ [:0-9]+ UTC, \d+ (s|min) ago, last sign of life \d+ (s|min) ago"


def spec(value, **changes):
    """The service with a configuration of its own, and a watchdog that acts at the first failure."""
    env = {"LAB_TEST": value, "NIM_LAB_LOAD_SECONDS": "1"}
    return service(
        HOST, **{"watchdog": {"failures": 1}, "start_timeout": 300, **changes, "env": {**env, **changes.get("env", {})}}
    )


def site(*specs, **extra):
    return play("site", limit=HOST, extra={"nim_services": list(specs), **extra})


def leases(host):
    """Who has the host, by the files of the leases."""
    found = host.check_output(f"cat {LEASES}/*.json 2>/dev/null; true")
    return [json.loads(text) for text in found.replace("}{", "}\n{").splitlines()]


def test_a_run_with_nothing_to_do_takes_no_lease(host):
    assert site(spec("before", start_timeout=5)).returncode == 0
    assert leases(host) == []
    host.check_output(f"rm -rf {LEASES}")
    again = site(spec("before", start_timeout=5))
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
    assert not host.file(LEASES).exists


def test_two_controllers_and_a_watchdog(host):
    """While one run loads a model for longer than two others take, another one is refused, a third waits, and the watchdog holds back."""
    new = spec("first", env={"NIM_LAB_LOAD_SECONDS": "90"})
    first = Running("site", {"nim_services": [new]}, HOST)
    first.wait_for("probe | Wait for each endpoint")
    before = container_id(host)
    assert [lease["playbook"] for lease in leases(host)] == ["baremetal.nim.site"]
    # In its record the service has five seconds for a start.
    time.sleep(7)
    host.check_output("systemctl start nim-watchdog@llama.service")
    said = host.check_output("journalctl -u nim-watchdog@llama.service -n 5 -o cat --no-pager")
    assert re.search(
        r"(?:starting|unreachable): .*: no restart while \S+ on \S+ changes it \(baremetal\.nim\.site\) since ", said
    ), said
    refused = site(spec("second"), nim_lock_timeout=1)
    assert refused.returncode == 2, refused.stdout
    assert re.search(
        f"another run changes this host: {WHO}\\. Wanted it alone, waited 1 s for it, and changed nothing",
        refused.stdout,
    ), refused.stdout
    assert "changed=0 " in refused.stdout, refused.stdout
    second = Running("site", {"nim_services": [new]}, HOST)
    second.wait_for("gpu01: lock waits for ")
    assert re.search(f"gpu01: lock waits for {WHO}, \\d+ s of 600 s", second.seen), second.seen
    assert container_id(host) == before, "nobody restarted it"
    code, seen = first.finish()
    assert code == 0, seen
    code, seen = second.finish()
    assert code == 0 and "gpu01: lock taken" in seen and "changed=0 " in seen, seen
    assert container_id(host) == before, "what the second run had read before was not done again"
    assert ask(HOST) and leases(host) == []


def test_one_machine_by_two_names(host, tmp_path):
    before = container_id(host)
    inventory = tmp_path / "inventory"
    inventory.mkdir()
    (inventory / "hosts.yml").write_text(
        json.dumps({"nim_servers": {"hosts": {"gpu01": {}, "gpu01-too": {"ansible_host": f"gpu01.{NAME}"}}}})
    )
    (inventory / "group_vars").symlink_to(lab.ROOT / "inventories/lab/group_vars")
    run = play(
        "site",
        "-i",
        str(inventory),
        limit="gpu01,gpu01-too",
        extra={"nim_services": [spec("names")], "lab_root": str(lab.ROOT)},
    )
    assert run.returncode == 2, run.stdout
    # Whichever of them was first.
    told = re.search(r"this host is (gpu01(?:-too)?) too, which this very run changes since", run.stdout)
    assert told, run.stdout
    other = {"gpu01": "gpu01-too", "gpu01-too": "gpu01"}[told[1]]
    assert re.search(rf"^{told[1]} .* failed=0 ", run.stdout, re.MULTILINE), run.stdout
    assert re.search(rf"^{other} .* changed=0 .* failed=1 ", run.stdout, re.MULTILINE), run.stdout
    assert container_id(host) != before and ask(HOST) and leases(host) == []


def test_a_killed_run_of_this_controller_holds_up_nobody(host):
    run = Running("site", {"nim_services": [spec("killed", env={"NIM_LAB_LOAD_SECONDS": "4"})]}, HOST)
    run.wait_for("probe | Wait for each endpoint")
    run.kill()
    assert len(leases(host)) == 1
    began = time.monotonic()
    run = site(spec("after"))
    assert run.returncode == 0 and "lock waits for" not in run.stdout, run.stdout
    print(f"{time.monotonic() - began:.0f} s")
    assert leases(host) == []


def test_a_run_of_another_controller_must_be_known_to_be_gone(host):
    run = Running("site", {"nim_services": [spec("elsewhere")]}, HOST)
    run.wait_for("service | Run now")
    run.kill()
    (lease,) = leases(host)
    path = f"{LEASES}/{lease['run']}.json"
    elsewhere = {**lease, "machine": "another", "controller": "awx-7", "user": "carol", "job": "AWX job 42"}
    host.check_output(f"cat > {path} <<'EOF'\n{json.dumps(elsewhere)}\nEOF")
    refused = site(spec("here"), nim_lock_timeout=0)
    assert refused.returncode == 2 and "carol on awx-7" in refused.stdout and "AWX job 42) since" in refused.stdout, (
        refused.stdout
    )
    told = re.search(r"-e nim_lock_take_over=([0-9a-f]+)", refused.stdout)
    assert told and told[1] == lease["run"], refused.stdout
    assert site(spec("here"), nim_lock_timeout=0, nim_lock_take_over=told[1]).returncode == 0
    assert ask(HOST) and leases(host) == []


def test_a_run_that_fails_gives_the_host_back(host):
    failed = site(spec("fails", env={"NIM_LAB_FAULT": "crash_at_start"}))
    assert failed.returncode == 2 and "Rolled back" in failed.stdout, failed.stdout
    assert leases(host) == [] and host.file(f"{LEASES}/last").exists


def test_prune_waits_for_whoever_stages(host):
    run = Running("site", {"nim_services": [spec("prune", env={"NIM_LAB_LOAD_SECONDS": "15"})]}, HOST)
    run.wait_for("service | Run now")
    refused = play("prune", limit=HOST, extra={"nim_services": [], "nim_lock_timeout": 0})
    assert refused.returncode == 2 and "another run changes this host" in refused.stdout, refused.stdout
    shown = play("prune", "--check", limit=HOST, extra={"nim_services": [], "nim_lock_timeout": 0})
    assert shown.returncode == 0, shown.stdout
    code, seen = run.finish()
    assert code == 0, seen


def test_a_renamed_service_is_refused_and_told_how(host):
    before = container_id(host)
    chat = spec("prune", name="chat", env={"NIM_LAB_LOAD_SECONDS": "15"})
    refused = site(chat)
    assert refused.returncode == 2, refused.stdout
    told = "service chat: port 8000 and GPU 0 are also of nim-llama.service, which runs on this host and is not in nim_services"
    assert told in refused.stdout and "list it as {name: llama, state: absent}" in refused.stdout, refused.stdout
    assert "changed=0 " in refused.stdout and container_id(host) == before
    run = site(chat, {"name": "llama", "state": "absent"})
    assert run.returncode == 0 and ask(HOST), run.stdout
    assert not host.file("/var/lib/nim/services/llama.json").exists
    assert host.check_output(f"{ENGINE} ps --format '{{{{.Names}}}}'").split() == ["nim-chat"]


@pytest.mark.parametrize("name", ["stage-chat", "pull-chat", "share"])
def test_a_name_of_ours_is_refused(host, name):
    refused = play("preflight", limit=HOST, extra={"nim_services": [spec("x", name=name, port=8001, gpu_shared=True)]})
    assert (
        refused.returncode == 2 and f"service {name}: its name is also that of nim-{name}.service" in refused.stdout
    ), refused.stdout
    assert not host.file(f"/etc/systemd/system/nim-{name}.service").exists
