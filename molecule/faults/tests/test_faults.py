# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything here is broken on purpose."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import (
    ENGINE,
    ROOT,
    ask,
    container_id,
    eventually,
    in_container,
    lab,
    machine,
    play,
    play_command,
    play_environment,
    service,
)

HOST = "gpu01"
#: Seconds of what nothing ends early.
LONG = 1200


def deploy(**changes):
    """Deploys the service of the host, changed; returns exit status, output, and the time from start to verdict."""
    command = play_command("services", limit=HOST, extra={"nim_services": [service(HOST, **changes)]})
    started = ended = 0.0
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=play_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if "Ask whether the old container" in line:
                started = time.monotonic()
            if "PLAY RECAP" in line:
                ended = time.monotonic()
    return process.returncode, "".join(lines), ended - started if started else None


def beside():
    """The service of the host as it would share its GPU, and another one that is not staged. Both are listed: what is not is foreign."""
    shared = {"gpu_shared": True, "env": {"NIM_KVCACHE_PERCENT": "0.4"}}
    return [service(HOST, **shared), service(HOST, name="other", port=8001, **shared)]


def snapshot(host):
    """What a refused change must not touch."""
    return host.check_output(
        "cat /etc/systemd/system/nim-*.service /etc/nim/* /root/.docker/config.json /var/lib/nim/services/* /etc/docker/daemon.json;"
        " docker images --no-trunc -q | sort; docker inspect --format '{{.Id}} {{.State.StartedAt}}' nim-llama;"
        " systemctl show -p ActiveState,NRestarts nim-llama; ls /run/nim 2>/dev/null; systemctl --failed --no-legend"
    )


@pytest.mark.parametrize(
    ("fault", "failure_class", "evidence"),
    [
        ("crash_at_start", "crash_loop", "RuntimeError: Engine core initialization failed"),
        ("out_of_memory", "out_of_memory", "CUDA out of memory"),
        ("dead_engine", "dead_engine", "500"),
        ("wrong_model", "wrong_model", "meta/llama-3.1-8b-instruct"),
        ("never_ready", "starting", "not ready"),
    ],
)
def test_fault_is_named_within_seconds(host, fault, failure_class, evidence):
    # What is named early is named long before the time of a start is over, however busy this machine is.
    code, output, seconds = deploy(env={"NIM_LAB_FAULT": fault}, start_timeout=20 if fault == "never_ready" else LONG)
    assert code != 0, output
    assert f'"failure_class": "{failure_class}"' in output, output
    assert evidence in output, output
    assert "Next:" in output or '"next_command": "' in output, output
    assert seconds < LONG / 2, f"{seconds:.0f} s until the verdict\n{output}"


def test_a_proxy_that_keeps_streams_back_is_found_and_the_start_is_told_in_words(host):
    env = {"NIM_LAB_FAULT": "buffered", "NIM_LAB_LOAD_SECONDS": "8", "NIM_LOG_LEVEL": "INFO"}
    code, output, _seconds = deploy(tag="2.0.5", env=env, verify={"probes": ["pace"]})
    assert code != 0, output
    assert '"failure_class": "buffered_stream"' in output, output
    assert "pieces of a stream came within" in output and "curl -sSiN --compressed" in output, output
    assert re.search(r"gpu01: nim-llama (starting the engine|loading weights.*), \d+ s of", output), output


def test_progress_shows_nothing_of_the_container_before(host):
    """What that said last is in the journal of the unit, a moment before the words of the one that starts."""
    code, output, _seconds = deploy(tag="2.0.5", env={"NIM_LAB_LOAD_SECONDS": "15"})
    assert code == 0, output
    lines = re.findall(r"gpu01: nim-llama \w+.*, \d+ s of [\d.]+ s(?:; last log: (.*))?", output)
    life = host.check_output("systemctl show -p InvocationID --value nim-llama")
    said = host.check_output(f"journalctl _SYSTEMD_INVOCATION_ID={life} -o cat --all --no-pager")
    # A line of progress has single spaces.
    said = " ".join(said.split())
    assert lines, output
    assert [line for line in lines if line.removesuffix("...") not in said] == [], output


def test_a_good_configuration_heals_what_a_bad_one_broke(host):
    code, output, _seconds = deploy()
    assert code == 0, output
    assert ask(HOST)


def test_slow_shutdown_is_bounded_and_told(host):
    env = {"NIM_LAB_FAULT": "slow_shutdown", "NIM_LAB_SHUTDOWN_SECONDS": str(LONG)}
    code, output, _seconds = deploy(env=env, stop_timeout=4)
    assert code == 0, output
    started = time.monotonic()
    code, output, _seconds = deploy()
    assert code == 0, output
    told = {
        "docker": "container nim-llama did not end within 4 s of SIGTERM and was killed",
        "podman": "failed to stop container nim-llama in 4 seconds, resorting to SIGKILL",
    }
    assert "slow_shutdown: gpu01: " in output and told[ENGINE] in output, output
    assert time.monotonic() - started < LONG / 2
    assert ask(HOST)


def test_watchdog_restarts_what_is_dead_behind_a_green_health(host):
    """The timer comes every minute; here nobody waits for it."""

    def look():
        host.check_output("systemctl start nim-watchdog@llama.service")
        return host.check_output(f"journalctl -u nim-llama --since=@{since} -o cat --no-pager")

    before, since = container_id(host), host.check_output("date +%s")
    code, output, _seconds = deploy(watchdog={"idle": 1, "failures": 2})
    assert code == 0 and "watchdog changed" in output, output
    assert host.service("nim-watchdog@llama.timer").is_enabled
    assert ask(HOST) and "dead_engine" not in look()
    assert container_id(host) == before

    in_container(host, "touch /tmp/lab-kill-engine")
    told = eventually(lambda: (said := look()) * ("restarting (1 of 3 in an hour)" in said))
    assert "nim-llama: dead_engine: HTTP 500 from POST /v1/chat/completions (Engine loop is not running." in told
    assert told.index("failure 1 of 2") < told.index("restarting"), told
    eventually(lambda: ask(HOST))
    eventually(lambda: "nim-llama: answers again" in look())
    assert container_id(host) != before

    code, output, _seconds = deploy(watchdog=False)
    assert code == 0 and not host.service("nim-watchdog@llama.timer").is_running, output
    code, output, _seconds = deploy()
    assert code == 0 and host.service("nim-watchdog@llama.timer").is_running, output


def test_wrong_key_is_refused_and_not_stored(host):
    before = snapshot(host)
    run = play("site", limit=HOST, extra={"ngc_api_key": "nvapi-wrong"})
    assert run.returncode != 0
    assert "The registry refuses the key" in run.stdout and "NGC_API_KEY" in run.stdout, run.stdout
    assert "nvapi-wrong" not in run.stdout
    assert snapshot(host) == before
    assert ask(HOST)


def test_without_a_key_what_is_staged_runs_and_what_is_not_is_told(host):
    run = play("site", limit=HOST, extra={"ngc_api_key": ""})
    assert run.returncode == 0 and "changed=0 " in run.stdout, run.stdout
    spec = {"nim_services": beside(), "ngc_api_key": ""}
    run = play("services", limit=HOST, extra=spec)
    assert run.returncode != 0, run.stdout
    assert '"failure_class": "auth"' in run.stdout and "NGC_API_KEY" in run.stdout, run.stdout
    assert not host.file("/etc/systemd/system/nim-other.service").exists
    assert ask(HOST)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        pytest.param({"tag": "1.99.0"}, ["image_missing", "1.99.0", "manifest unknown"], id="unknown tag"),
        pytest.param({"profile": "no-such-profile"}, ["no-such-profile"], id="unknown profile"),
        pytest.param({"tag": "2.0.5", "cache_size_gb": 90000}, ["disk_full", "90.0 TB"], id="no room for the weights"),
    ],
)
def test_refused_change_leaves_the_host_as_it_was(host, changes, wanted):
    before = snapshot(host)
    code, output, _seconds = deploy(**{"env": {"NIM_LOG_LEVEL": "ERROR"}, **changes})
    assert code != 0, output
    for text in wanted:
        assert text in output, output
    assert snapshot(host) == before
    assert ask(HOST)


def test_package_manager_at_work_is_waited_for_by_who_changes_the_host(host):
    holder = "import time; held = open('/var/lib/dpkg/lock-frontend'); time.sleep(600)"
    host.check_output(f'systemd-run --quiet --collect --unit=updates python3 -c "{holder}"')
    try:
        asked = play("status", limit=HOST)
        assert asked.returncode == 0 and "RETRYING" not in asked.stdout, asked.stdout
        lines = []
        with subprocess.Popen(
            play_command("preflight", limit=HOST), cwd=ROOT, env=play_environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                lines.append(line)
                if "RETRYING" in line:
                    host.run("systemctl stop updates")
        assert process.returncode == 0 and any("RETRYING" in line for line in lines), "".join(lines)
    finally:
        host.run("systemctl stop updates")


def test_port_in_use_is_refused_before_anything_is_changed(host):
    host.check_output("systemd-run --quiet --collect --unit=squatter python3 -m http.server 8010")
    eventually(lambda: host.socket("tcp://0.0.0.0:8010").is_listening)
    before = snapshot(host)
    try:
        run = play("site", limit=HOST, extra={"nim_services": [service(HOST, port=8010)]})
        assert run.returncode != 0
        assert "port 8010 is held by python3 (pid" in run.stdout, run.stdout
        assert snapshot(host) == before
    finally:
        host.check_output("systemctl stop squatter")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # Why it cannot, the host says in its own language.
        ("ro", ["cache_permission", "cache /var/lib/nim/cache/other cannot be prepared: "]),
        ("size=1m,uid=1000,gid=1000", ["disk_full", "No space left on device"]),
    ],
    ids=["read-only cache", "full disk"],
)
def test_unusable_cache(host, options, wanted):
    before = snapshot(host)
    host.check_output(f"mkdir -p /var/lib/nim/cache/other && mount -t tmpfs -o {options} none /var/lib/nim/cache/other")
    try:
        run = play("services", limit=HOST, extra={"nim_services": beside()})
        assert run.returncode != 0
        for text in wanted:
            assert text in run.stdout, run.stdout
        assert not host.file("/etc/systemd/system/nim-other.service").exists
        assert snapshot(host) == before
    finally:
        host.check_output("umount /var/lib/nim/cache/other && rmdir /var/lib/nim/cache/other")


@pytest.fixture
def export(host):
    """A directory as an NFS server with root_squash exports it."""
    script = (pathlib.Path(__file__).resolve().parents[1] / "root_squash.py").read_text()
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-fusepy >&2")
    host.check_output("mkdir -p /srv/export/llama /srv/export/mine /mnt/nfs && chown 1000:1000 /srv/export/llama")
    machine(HOST).exec_run(["python3", "-c", f"open('/root/root_squash.py', 'w').write({script!r})"])
    host.check_output("systemd-run --quiet --collect --unit=export python3 /root/root_squash.py /srv/export /mnt/nfs")
    eventually(lambda: host.run("mountpoint /mnt/nfs").rc == 0)
    yield "/mnt/nfs"
    code, output, _seconds = deploy()
    host.run("systemctl stop export; umount -l /mnt/nfs; rm -rf /srv/export")
    assert code == 0, output


def test_cache_on_nfs_that_squashes_root(host, export):
    assert host.run(f"touch {export}/llama/x").rc == 1, "root is nobody there"
    code, output, _seconds = deploy(cache_path=f"{export}/mine")
    assert code != 0 and "The file system refuses root, as NFS does with root_squash" in output, output
    assert "owned by 1000:1000" in output and ask(HOST)
    code, output, _seconds = deploy(cache_path=f"{export}/llama")
    assert code == 0 and ask(HOST), output
    code, output, _seconds = deploy(cache_path=f"{export}/llama")
    assert code == 0 and "changed=0 " in output, output
    # Now as the other hosts would use it: files that only uid 1000 may read are read as uid 1000.
    host.check_output("find /srv/export/llama -type f -exec chmod 0400 {} +")
    before = host.check_output("find /srv/export/llama -printf '%p %T@ %C@ %s\n' | sort")
    read_only = {"cache_path": f"{export}/llama", "cache_read_only": True}
    code, output, _seconds = deploy(**read_only)
    assert code == 0 and ask(HOST), output
    code, output, _seconds = deploy(**read_only)
    assert code == 0 and "changed=0 " in output, output
    assert host.check_output("docker inspect -f '{{(index .Mounts 0).RW}}' nim-llama") == "false"
    assert host.check_output("find /srv/export/llama -printf '%p %T@ %C@ %s\n' | sort") == before
    host.check_output("mkdir /srv/export/empty && chown 1000:1000 /srv/export/empty")
    for path, told in (("empty", "is empty, wanted one that somebody else filled"), ("none", "is not there")):
        code, output, _seconds = deploy(cache_path=f"{export}/{path}", cache_read_only=True)
        assert code != 0 and told in output, output
    assert ask(HOST)


def test_all_conflicts_are_told_at_once(host):
    before = snapshot(host)
    wrong = [
        service(HOST, gpus=[7], env={"NGC_API_KEY": "nvapi-x"}),
        service(HOST, name="Llama_2", tag="latest", prot=1),
    ]
    run = play("site", limit=HOST, extra={"nim_services": wrong})
    assert run.returncode != 0
    for text in (
        "gpus names 7",
        "env has NGC_API_KEY",
        "'Llama_2'",
        "'latest'",
        "Did you mean 'port'",
        "port 8000 is also",
    ):
        assert text in run.stdout, run.stdout
    assert snapshot(host) == before


def test_stopped_docker_is_started(host):
    host.check_output("systemctl stop docker.socket docker.service")
    run = play("site", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert ask(HOST)


def test_stale_cdi_specification_is_refreshed(host):
    host.check_output("sed -i s/580.159.04/570.86.15/g /var/run/cdi/nvidia.yaml")
    run = play("host", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert "Refresh the CDI specification" in run.stdout and "changed=1 " in run.stdout, run.stdout
    assert "580.159.04" in host.file("/var/run/cdi/nvidia.yaml").content_string


def test_edited_unit_is_put_right(host):
    host.check_output(
        "sed -i s/shm-size.16g/shm-size=1g/ /etc/systemd/system/nim-llama.service && systemctl daemon-reload"
    )
    code, output, _seconds = deploy(gpus=[0])
    assert code == 0 and "files were edited or lost" in output, output
    assert "--shm-size 16g" in host.file("/etc/systemd/system/nim-llama.service").content_string


def test_invalid_daemon_json_is_an_error_and_kept(host):
    good = host.check_output("cat /etc/docker/daemon.json")
    try:
        host.check_output("echo '{broken' > /etc/docker/daemon.json")
        run = play("host", limit=HOST)
        assert run.returncode != 0 and "is no valid configuration" in run.stdout, run.stdout
        assert host.check_output("cat /etc/docker/daemon.json") == "{broken"
    finally:
        machine(HOST).exec_run(["python3", "-c", f"open('/etc/docker/daemon.json', 'w').write({good!r})"])


def test_status_shows_a_failed_service(host):
    host.check_output("systemctl stop nim-llama")
    run = play("status", limit=HOST)
    assert "inactive" in run.stdout and run.returncode == 0, run.stdout
    report = ROOT / ".lab" / "faults-report.json"
    junit = report.with_suffix(".xml")
    verify = play("verify", limit=HOST, extra={"nim_report": str(report), "nim_junit": str(junit)})
    assert verify.returncode != 0 and "unit_stopped" in verify.stdout, verify.stdout
    item = json.loads(report.read_text())[0]
    assert item["verified"] is False and item["failure_class"] == "unit_stopped" and lab.NIM in item["image"]
    assert '<failure type="unit_stopped"' in junit.read_text()
    host.check_output("systemctl start nim-llama")
    eventually(lambda: ask(HOST))
