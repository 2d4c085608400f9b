# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service through its life: upgrade, failed upgrades, rollback. The tests go on from each other, in this order."""

from __future__ import annotations

import datetime
import json
import pathlib
import sys
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import (
    ENGINE,
    NAME,
    ask,
    eventually,
    lab,
    machine,
    play,
    play_and_kill,
    served_key,
    service,
    vendor_call,
    weight_requests,
)

pytestmark = pytest.mark.usefixtures("journal")
#: What the engine has no part in is tried with one of them.
either = pytest.mark.skipif(ENGINE != "docker", reason="the same with either engine")
#: There and back goes both ways, wherever it begins.
moves = pytest.mark.skipif(ENGINE != "podman", reason="tried with Podman first")

HOST = "gpu01"
OLD, NEW = "1.8.6", "2.0.5"


def deploy(playbook="services", engine=ENGINE, **changes):
    """Deploys the service of the host, changed."""
    return play(
        playbook, limit=HOST, extra={"nim_container_engine": engine, "nim_services": [service(HOST, **changes)]}
    )


def record(host):
    return json.loads(host.file("/var/lib/nim/services/llama.json").content_string)


def container(host, engine=ENGINE):
    """Image and environment that run, by the engine's word. Podman names the container in it, which is new with each start."""
    config = json.loads(host.check_output(f"{engine} inspect nim-llama"))[0]["Config"]
    env = sorted(item for item in config["Env"] if not item.startswith("HOSTNAME="))
    return f"{config['Image']} {env}"


def tag(host):
    """Tag of the deployment on record."""
    return record(host)["image"].rpartition(":")[2]


class Client:
    """Asks for a completion every 100 ms, and writes down when there was none."""

    def __enter__(self):
        self.failures, self.answers, self._over = [], 0, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.is_set():
            began = time.time()
            try:
                ask(HOST, max_tokens=4)
                self.answers += 1
            except Exception:  # noqa: BLE001 - any failure is one
                self.failures.append((began, time.time()))
            self._over.wait(0.1)


def window(host, since):
    """The announced restart: from the unit's stop, by the journal, to the proof of the new version, by the record."""
    lines = host.check_output(f"journalctl -u nim-llama --since=@{since:.0f} -o short-unix --no-pager").splitlines()
    stops = [float(line.split()[0]) for line in lines if "systemd[1]: Stopping" in line]
    proven = datetime.datetime.fromisoformat(record(host)["deployed_at"].replace("Z", "+00:00")).timestamp()
    # The record tells whole seconds, cut off.
    return stops[0], proven + 1


def test_upgrade_interrupts_clients_for_its_restart_only(host):
    since = time.time()
    with Client() as client:
        run = deploy(tag=NEW)
        eventually(lambda: ask(HOST))
    assert run.returncode == 0, run.stdout
    assert tag(host) == NEW and f":{NEW}" not in container(host), "the image runs by digest"
    assert [item["image"].rpartition(":")[2] for item in record(host)["history"]] == [OLD]
    stopped, proven = window(host, since)
    assert client.answers > 10
    # What was asked before the proof may fail a moment after it.
    outside = [(began, ended) for began, ended in client.failures if ended < stopped or began > proven]
    assert not outside, (stopped, proven, outside)


@pytest.mark.parametrize(
    "fault",
    [
        "crash_at_start",
        pytest.param("never_ready", marks=either),
        "dead_engine",
        pytest.param("wrong_model", marks=either),
        pytest.param("out_of_memory", marks=either),
    ],
)
def test_failed_upgrade_comes_back(host, fault):
    before, running = record(host), container(host)
    run = deploy(tag=NEW, env={"NIM_LAB_FAULT": fault}, start_timeout=20)
    assert run.returncode == 2, run.stdout
    for told in (
        f"gpu01: service llama: nvcr.lab:5000/nim/meta/llama-3.1-8b-instruct:{NEW} failed",
        "Rolled back:",
        "was verified.",
    ):
        assert told in run.stdout, run.stdout
    assert container(host) == running
    assert ask(HOST)
    after = record(host)
    assert after["config_hash"] == before["config_hash"] and after["verified"]
    assert not after["history"][-1]["verified"] and "failed" in after["history"][-1]["reason"]
    assert host.service("nim-llama").is_enabled


def test_comes_back_after_a_reboot(host):
    machine(HOST).restart(timeout=180)
    eventually(lambda: host.run("true").rc == 0)
    eventually(lambda: ask(HOST), 90)
    assert host.service("nim-llama").is_running and host.service("nim-watchdog@llama.timer").is_running


def test_what_serves_after_a_rollback_is_what_is_wanted(host):
    again = deploy(tag=NEW)
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
    assert "back from" in play("status", limit=HOST).stdout


def test_upgrade_to_an_image_that_is_not_there_touches_nothing(host):
    since = time.time()
    with Client() as client:
        run = deploy(tag="2.99.0")
    assert run.returncode == 2 and "manifest unknown" in run.stdout, run.stdout
    assert not client.failures and client.answers > 10
    assert "Stopping" not in host.check_output(f"journalctl -u nim-llama --since=@{since:.0f} -o cat --no-pager")


def test_registry_that_is_down_matters_to_nobody_who_has_the_image(host):
    before = record(host)
    host.check_output("cp /etc/hosts /etc/hosts.away && echo '127.0.0.2 nvcr.lab' >> /etc/hosts")
    try:
        # Docker believes what it read of that file for some seconds.
        eventually(lambda: host.run(f"{ENGINE} pull nvcr.lab:5000/nim/meta/llama-3.1-8b-instruct:2.0.5").rc != 0, 20)
        again = play("site", limit=HOST, extra={"nim_services": [service(HOST, tag=NEW)]})
        assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
        run = deploy(tag=NEW, env={"NIM_LOG_LEVEL": "INFO"})
        assert run.returncode == 0, run.stdout
        assert record(host)["image_reference"] == before["image_reference"] and ask(HOST)
    finally:
        host.check_output("cat /etc/hosts.away > /etc/hosts && rm /etc/hosts.away")
    back = deploy(tag=NEW)
    assert back.returncode == 0, back.stdout


@either
def test_play_killed_in_the_middle_of_an_upgrade_heals(host):
    """Killed while the new version starts: the next run finishes, and its failure could still go back."""
    play_and_kill("services", "service | Prove", 0, extra={"nim_services": [service(HOST, tag=OLD)]}, limit=HOST)
    run = deploy(tag=OLD, env={"NIM_LAB_FAULT": "crash_at_start"}, start_timeout=20)
    assert run.returncode == 2 and "Rolled back:" in run.stdout, run.stdout
    assert tag(host) == NEW and ask(HOST)
    run = deploy(tag=OLD)
    assert run.returncode == 0, run.stdout
    assert tag(host) == OLD and ask(HOST)


def test_rollback_on_demand_goes_back_and_forth(host):
    assert deploy(tag=OLD).returncode == 0
    for wanted in (NEW, OLD):
        run = play("rollback", limit=HOST, extra={"nim_rollback": "llama"})
        assert run.returncode == 0 and f"{wanted} of 20" in run.stdout, run.stdout
        assert tag(host) == wanted and ask(HOST)


@pytest.mark.parametrize(
    ("name", "told"), [("Llama!", "wanted the name of a service"), ("other", "no earlier deployment is kept")]
)
def test_rollback_of_nothing_is_told(host, name, told):
    before = record(host), container(host)
    run = play("rollback", limit=HOST, extra={"nim_rollback": name})
    assert run.returncode == 2 and told in run.stdout, run.stdout
    assert (record(host), container(host)) == before


def is_shown_nowhere(host, key):
    """The key of a service that serves with it is in nothing that is shown to others."""
    for command in (
        f"{ENGINE} inspect nim-llama",
        "systemctl cat nim-llama; systemctl show nim-llama",
        "journalctl --no-pager -o json",
        "cat /proc/[0-9]*/cmdline",
        "cat /etc/nim/*.env /var/lib/nim/services/*",
    ):
        assert key not in host.check_output(command), command


def test_service_that_serves_with_the_key(host):
    """Switched on, rotated, switched off, back; the key's file stays as long as a deployment could need it."""
    vendor, new = lab.Lab(NAME), lab.LAB_KEY.replace("0123", "4567")
    try:
        vendor.execute(vendor.container(lab.VENDOR), "lab-keys", lab.LAB_KEY, new)
        for key in (lab.LAB_KEY, new):
            spec = {"ngc_api_key": key, "nim_services": [service(HOST, tag=OLD, key_at_runtime=True)]}
            run = play("services", limit=HOST, extra=spec)
            assert run.returncode == 0, run.stdout
            assert served_key(host) == key and ask(HOST)
            is_shown_nowhere(host, key)
        again = play("services", limit=HOST, extra=spec)
        assert "changed=0 " in again.stdout, again.stdout
    finally:
        vendor.execute(vendor.container(lab.VENDOR), "lab-keys", lab.LAB_KEY)
    run = deploy(tag=OLD)
    assert run.returncode == 0 and not served_key(host), run.stdout
    run = play("rollback", limit=HOST, extra={"nim_rollback": "llama"})
    assert run.returncode == 0 and served_key(host) == new, run.stdout
    for env in ({}, {"NIM_LOG_LEVEL": "INFO"}):
        assert host.file("/etc/nim/llama.key").mode == 0o600
        run = deploy(tag=OLD, env=env)
        assert run.returncode == 0 and not served_key(host), run.stdout
    assert not host.file("/etc/nim/llama.key").exists


def test_key_that_is_missing_is_told_before_anything_is_touched(host):
    before = record(host), container(host)
    spec = {"ngc_api_key": "", "nim_services": [service(HOST, tag=OLD, key_at_runtime=True)]}
    run = play("site", limit=HOST, extra=spec)
    assert run.returncode == 2 and "key_at_runtime is true, but there is no key" in run.stdout, run.stdout
    assert (record(host), container(host)) == before
    assert play("verify", limit=HOST, extra=spec).returncode == 0


@either
def test_first_deployment_that_fails_has_nothing_to_come_back_to(host):
    spec = service(
        HOST,
        name="other",
        port=8001,
        env={"NIM_LAB_FAULT": "crash_at_start", "NIM_KVCACHE_PERCENT": "0.4"},
        gpu_shared=True,
        start_timeout=20,
    )
    first = service(HOST, tag=OLD, env={"NIM_KVCACHE_PERCENT": "0.4"}, gpu_shared=True)
    run = play("services", limit=HOST, extra={"nim_services": [first, spec]})
    assert run.returncode == 2 and "service other:" in run.stdout and "Rolled back" not in run.stdout, run.stdout
    assert ask(HOST)
    absent = {"name": "other", "state": "absent", "remove_cache": True}
    run = play("services", limit=HOST, extra={"nim_services": [service(HOST, tag=OLD), absent]})
    assert run.returncode == 0 and not host.file("/var/lib/nim/previous/other").exists, run.stdout


def test_prune_removes_what_no_service_uses_and_nothing_else(host):
    """After an upgrade and the removal of a service; the version before stays, for the way back."""
    assert deploy(tag=NEW).returncode == 0
    llama = service(HOST, tag=NEW, gpu_shared=True, env={"NIM_GPU_MEM_FRACTION": "0.4"})
    other = service(HOST, name="other", tag=OLD, port=8001, gpu_shared=True, env={"NIM_KVCACHE_PERCENT": "0.4"})
    for services in ([llama, other], [llama, {"name": "other", "state": "absent"}]):
        run = play("services", limit=HOST, extra={"nim_services": services})
        assert run.returncode == 0, run.stdout
    host.check_output("mkdir -p /var/lib/nim/cache/mine && echo x > /var/lib/nim/cache/mine/x")
    wanted = {"nim_services": [llama]}
    shown = play("status", limit=HOST, extra=wanted).stdout
    assert "cache only" in shown, shown

    def lies(tag):
        return host.run(f"{ENGINE} image inspect nvcr.lab:5000/nim/meta/llama-3.1-8b-instruct:{tag}").rc == 0

    def caches():
        return host.check_output("ls /var/lib/nim/cache").split()

    before = container(host)
    check = play("prune", "--check", limit=HOST, extra=wanted)
    assert check.returncode == 0 and "gpu01: would remove /var/lib/nim/cache/other, 4.2 MB" in check.stdout, (
        check.stdout
    )
    assert caches() == ["llama", "mine", "other"]
    run = play("prune", limit=HOST, extra=wanted)
    assert run.returncode == 0 and "gpu01: removed /var/lib/nim/cache/other, 4.2 MB" in run.stdout, run.stdout
    assert "gpu01: kept /var/lib/nim/cache/mine: unknown" in run.stdout, run.stdout
    assert caches() == ["llama", "mine"]
    # The copy that rollback would bring back is of the new version, too: the first of llama's two deployments of it.
    assert lies(NEW) and not lies(OLD), run.stdout
    assert ask(HOST) and container(host) == before
    again = play("prune", limit=HOST, extra=wanted)
    assert again.returncode == 0 and "changed=0 " in again.stdout and "nothing to remove" in again.stdout, again.stdout
    run = play("prune", limit=HOST, extra={**wanted, "model_cache_prune_unknown": True})
    assert run.returncode == 0 and caches() == ["llama"], run.stdout
    run = play("prune", limit=HOST, extra={**wanted, "model_cache_root": "/var"})
    assert run.returncode == 2 and "cache root /var holds /var/cache" in run.stdout, run.stdout
    back = play("rollback", limit=HOST, extra={"nim_rollback": "llama"})
    assert back.returncode == 0 and ask(HOST), back.stdout


@either
def test_fleet_upgrade_stops_at_the_host_that_rolled_back(host):
    run = deploy("upgrade", tag=NEW, env={"NIM_LAB_FAULT": "dead_engine"}, start_timeout=20)
    assert run.returncode == 2 and "Rolled back:" in run.stdout, run.stdout
    run = deploy("upgrade", tag=NEW)
    assert run.returncode == 0, run.stdout
    assert tag(host) == NEW and ask(HOST)


OTHER = {"docker": "podman", "podman": "docker"}[ENGINE]
UNITS = {"docker": "/etc/systemd/system/nim-llama.service", "podman": "/etc/containers/systemd/nim-llama.container"}


def settled(host, engine, gone):
    """Whether a host has the service under one engine, and nothing of it under the other."""
    assert host.file(UNITS[engine]).exists and not host.file(UNITS[gone]).exists
    assert container(host, engine) and "nim-llama" not in host.run(f"{gone} ps --all --format '{{{{.Names}}}}'").stdout
    assert record(host)["engine"] == engine and ask(HOST)
    return host.check_output("systemctl is-active nim-llama") == "active"


@moves
def test_failed_move_to_another_engine_comes_back(host):
    """The other engine is installed first; then the service fails there."""
    assert play("host", limit=HOST, extra={"nim_container_engine": OTHER}).returncode == 0
    run = deploy(engine=OTHER, tag=NEW, env={"NIM_LAB_FAULT": "crash_at_start"}, start_timeout=20)
    assert run.returncode == 2 and "Rolled back:" in run.stdout, run.stdout
    assert settled(host, ENGINE, OTHER)


@moves
@pytest.mark.parametrize(("engine", "gone"), [(OTHER, ENGINE), (ENGINE, OTHER)], ids=["there", "and back"])
def test_another_engine_takes_over(host, engine, gone):
    vendor_call("DELETE")
    run = deploy("site", engine=engine, tag=NEW)
    assert run.returncode == 0, run.stdout
    assert settled(host, engine, gone)
    assert weight_requests() == 0, "weights stay what they are"
    again = deploy("site", engine=engine, tag=NEW)
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout


@moves
def test_rollback_goes_back_to_the_engine_before(host):
    for engine, gone in ((OTHER, ENGINE), (ENGINE, OTHER)):
        run = play("rollback", limit=HOST, extra={"nim_rollback": "llama"})
        assert run.returncode == 0, run.stdout
        assert settled(host, engine, gone)


def test_removal_leaves_nothing_of_either_engine(host):
    run = play("remove", limit=HOST, extra={"nim_services": [service(HOST, tag=NEW)]})
    assert run.returncode == 0, run.stdout
    assert not [path for path in UNITS.values() if host.file(path).exists]
    assert host.run("systemctl cat nim-llama").rc != 0
