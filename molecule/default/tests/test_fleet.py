# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What plays do to both hosts at once. Runs after the tests of each host; the tests go on from each other, in this order."""

from __future__ import annotations

import base64
import json
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import (
    ENGINE,
    MODEL,
    NAME,
    Running,
    ask,
    container_id,
    eventually,
    lab,
    machine,
    play,
    served_key,
    service,
    unconfigured_environment,
    url,
    vendor_call,
    weight_requests,
)

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
CACHE = "/var/lib/nim/cache/llama"
#: Writes down every process and every container's configuration that it sees.
WATCH = """
import glob, subprocess, time
end, inspected = time.time() + 3600, 0
seen = set()
while time.time() < end and not glob.glob("/run/watch-stop"):
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            seen.add(open(path, "rb").read().replace(b"\\0", b" "))
        except OSError:
            pass
    if time.time() - inspected > 0.5:
        ids = subprocess.run(["ENGINE", "ps", "-aq"], capture_output=True, text=True).stdout.split()
        seen.add(subprocess.run(["ENGINE", "inspect", *ids], capture_output=True).stdout)
        inspected = time.time()
    time.sleep(0.005)
open("/run/watch-log", "wb").write(b"\\n".join(seen))
""".replace("ENGINE", ENGINE)


def downloads():
    """How often the weights left the vendor's server."""
    asked = json.loads(vendor_call("GET"))["requests"]
    return sum(item["count"] for item in asked if item["path"].endswith("model.safetensors"))


def deploy_to_both(hosts, **extra):
    """The same service on both hosts, which have no weights."""
    for host in hosts.values():
        host.check_output(f"rm -rf {CACHE}")
    vendor_call("DELETE")
    run = play("services", extra={"nim_services": [SAME], "model_cache_share": True, **extra})
    assert run.returncode == 0, run.stdout
    assert all(ask(name) for name in hosts)
    return run


def status(**extra):
    """Exit status, items by host and service, and output of the status."""
    report = lab.STATE / f"{NAME}-status.json"
    report.unlink(missing_ok=True)
    run = play("status", extra={"nim_status": str(report), **extra})
    items = {(item["host"], item["service"]): item for item in json.loads(report.read_text())}
    return run.returncode, items, run.stdout


def test_status_as_data(hosts):
    code, items, output = status(nim_status_live=True)
    assert code == 0, output
    for name, release, gpu in (("gpu01", "1.8.6", "0"), ("gpu02", "2.0.5", "1")):
        item = items[name, "llama"]
        assert (item["model"], item["unit"]["active"], item["gpus"], item["problem"]) == (MODEL, "active", [gpu], None)
        assert item["uptime_s"] >= 0 and item["cache"]["bytes"] > 0 and "@sha256:" in item["image_reference"]
        live = item["live"]
        assert (live["ready"], live["model"], live["version"], live["failure"]) == (True, MODEL, release, None)
        assert live["profile"] and live["requests_running"] >= 0 and 0 <= live["kv_cache_usage"] <= 1
    run = play("status", extra={"nim_status_format": "json"})
    shown = run.stdout[run.stdout.index("TASK [Show the fleet]") :]
    found, _end = json.JSONDecoder().raw_decode(shown[shown.index("{") :])
    assert {item["host"] for item in found["msg"]} == set(hosts) and all(item["live"] is None for item in found["msg"])


def test_status_tells_by_its_exit_status_what_somebody_must_look_at(hosts):
    host = hosts["gpu01"]
    folder = "/run/systemd/system/nim-watchdog@llama.service.d"
    # What a watchdog leaves that gave up: a failed unit.
    drop_in = "[Service]\\nExecStart=\\nExecStart=/bin/false\\n"
    host.check_output(f"mkdir -p {folder} && printf '{drop_in}' > {folder}/test.conf && systemctl daemon-reload")
    try:
        host.run("systemctl start nim-watchdog@llama.service")
        code, items, output = status()
        assert code == 2 and "watchdog gave up" in items["gpu01", "llama"]["state"], output
        problem = items["gpu01", "llama"]["problem"]
        assert problem["message"] in output and "nim-watchdog@llama.service gave up" in problem["seen"]
        assert host.run(problem["next_command"]).rc == 0
        assert items["gpu02", "llama"]["problem"] is None
        code, _items, output = status(nim_status_fail=False)
        assert code == 0, output
    finally:
        host.check_output(f"rm -r {folder} && systemctl daemon-reload")
        host.check_output("systemctl reset-failed nim-watchdog@llama.service || true")
    code, items, output = status(ansible_port=9)
    assert code == 2 and [item["state"] for item in items.values()] == ["unreachable"] * 2, output
    assert all(item["problem"]["message"] in output for item in items.values())
    code, _items, output = status()
    assert code == 0, output


def test_verify_draws_a_page(hosts):
    report, page = lab.STATE / f"{NAME}-verify.json", lab.STATE / f"{NAME}-verify.html"
    run = play("verify", extra={"nim_report": str(report), "nim_html": str(page)})
    assert run.returncode == 0, run.stdout
    text = page.read_text()
    assert "2 of 2 endpoints verified" in text and text.count('data-plot="timeline"') == 1
    phases = [[entry["phase"] for entry in item["phases"]] for item in json.loads(report.read_text())]
    assert [names[-2:] for names in phases] == [["ready", "verified"]] * 2


def test_verify_from_the_controller(hosts):
    """By the ports that the lab publishes, and without a login: nobody answers at this port for ssh."""
    report = lab.STATE / f"{NAME}-verify.json"
    for name in hosts:
        where = {"nim_verify_from": "controller", "nim_report": str(report), "ansible_port": 9}
        services = [service(name, verify={"url": url(name)})]
        run = play("verify", limit=name, extra={**where, "nim_services": services})
        assert run.returncode == 0, run.stdout
        (item,) = json.loads(report.read_text())
        assert (item["host"], item["url"], item["verified"], item["model"]) == (name, url(name), True, MODEL)


def test_key_rotation_logs_in_anew_and_restarts_nothing(hosts):
    before = [container_id(host) for host in hosts.values()]
    new = lab.LAB_KEY.replace("0123", "4567")
    vendor = lab.Lab(NAME)
    try:
        vendor.execute(vendor.container(lab.VENDOR), "lab-keys", new)
        run = play("services", extra={"ngc_api_key": new})
        assert run.returncode == 0 and run.stdout.count("changed=1 ") == 2, run.stdout
        assert [container_id(host) for host in hosts.values()] == before
        again = play("services", extra={"ngc_api_key": new})
        assert again.returncode == 0 and again.stdout.count("changed=0 ") == 2, again.stdout
    finally:
        vendor.execute(vendor.container(lab.VENDOR), "lab-keys", lab.LAB_KEY)
        play("services")


def test_both_generations_do_all_that_can_be_asked(hosts, tmp_path):
    probes = ["completion", "stream", "pace", "tool_call", "json_schema", "logprobs", "unknown_model", "client_abort"]
    prompts = [
        {"prompt": "请用中文写一个关于日本樱花的五行短诗。", "expect_script": "Han", "expect_finish_reason": "stop"},
        {"prompt": "Hello", "expect_script": "Latin", "max_tokens": 200},
    ]
    asked = {"probes": [*probes, "overlong_input"], "prompts": prompts, "min_tokens_per_second": 20, "max_ttft": 5}
    report = tmp_path / "report.json"
    run = play("verify", extra={"nim_service_verify": asked, "nim_report": str(report)})
    assert run.returncode == 0 and run.stdout.count("changed=0 ") == 1, run.stdout
    assert [item["verified"] for item in json.loads(report.read_text())] == [True] * len(hosts)
    wrong = {"prompts": [{"prompt": "Hello", "expect_script": "Cyrillic"}]}
    run = play("verify", extra={"nim_service_verify": wrong})
    assert run.returncode != 0 and '"failure_class": "wrong_answer"' in run.stdout, run.stdout
    assert "(letters of Latin), wanted letters of Cyrillic" in run.stdout, run.stdout


def test_other_families_are_verified_by_what_they_do(hosts, tmp_path):
    vendor = lab.Lab(NAME)
    vendor.publish(vendor.container(lab.VENDOR), {"families"})
    common = {"gpus": [0], "gpu_shared": True, "ulimits": ["stack=67108864"]}
    repository = "nvcr.lab:5000/nim/nvidia"
    services = [
        {"name": "embed", "image": f"{repository}/llama-nemotron-embed-1b-v2", "tag": "2.2.2", "port": 8001, **common},
        {
            "name": "rerank",
            "image": f"{repository}/llama-nemotron-rerank-1b-v2",
            "tag": "2.2.2",
            "port": 8002,
            **common,
        },
        {"name": "tts", "image": f"{repository}/magpie-tts-multilingual", "tag": "1.7.0", "port": 9000, **common},
    ]
    extra = {"nim_services": services}
    try:
        # Of the first the images tell what they are only when their registry is asked.
        run = play("services", limit="gpu01", extra=extra)
        assert run.returncode == 0, run.stdout
        again = play("services", limit="gpu01", extra=extra)
        assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
        report = tmp_path / "report.json"
        run = play("verify", limit="gpu01", extra={**extra, "nim_report": str(report)})
        assert run.returncode == 0, run.stdout
        probes = {
            item["service"]: [check["probe"] for check in item["checks"]] for item in json.loads(report.read_text())
        }
        assert probes == {"embed": ["embedding"], "rerank": ["ranking"], "tts": ["speech"]}
        hosts["gpu01"].check_output(f"{ENGINE} exec nim-embed touch /tmp/lab-kill-engine")
        run = play("verify", limit="gpu01", extra=extra)
        assert run.returncode != 0 and '"failure_class": "dead_engine"' in run.stdout, run.stdout
        assert "HTTP 500 from POST /v1/embeddings" in run.stdout, run.stdout
    finally:
        gone = [{**service, "state": "absent", "remove_cache": True} for service in services]
        play("services", limit="gpu01", extra={"nim_services": gone})


def test_benchmark_measures_and_reports(hosts, tmp_path):
    options = {"concurrency": [1, 4], "requests": 8, "output_tokens": 16, "input_tokens": 32}
    path = tmp_path / "bench"
    run = play("benchmark", extra={"nim_benchmark": options, "nim_benchmark_report": str(path)})
    assert run.returncode == 0, run.stdout
    report = json.loads(path.with_suffix(".json").read_text())
    assert sorted(entry["host"] for entry in report["benchmarks"]) == sorted(hosts)
    for entry in report["benchmarks"]:
        assert [step["requests"] for step in entry["steps"]] == [8, 8]
        # The stand-in makes 200 tokens a second for each request, whatever it is otherwise asked; less on a busy machine.
        assert 2 < entry["steps"][0]["tokens_per_s_user"]["p50"] < 400, entry["steps"][0]
    page = path.with_suffix(".html").read_text()
    assert page.startswith("<!doctype html>") and all(name in page for name in hosts)
    # The same numbers as a baseline: what is much worse fails, and says so.
    slower = json.loads(path.with_suffix(".json").read_text())
    for entry in slower["benchmarks"]:
        for step in entry["steps"]:
            step["output_tokens_per_s"] *= 10
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(slower))
    extra = {"nim_benchmark": options, "nim_benchmark_report": str(path), "nim_benchmark_baseline": str(baseline)}
    run = play("benchmark", extra=extra)
    assert run.returncode != 0 and '"failure_class": "slow"' in run.stdout, run.stdout
    assert "output_tokens_per_s" in run.stdout, run.stdout


def test_key_is_found_nowhere(hosts):
    """Stages and deploys anew under a watch on all processes and containers, as loud as Ansible can be, and as it is without a configuration.

    On one host the service gets the key, on the other it does not.
    """
    for name, host in hosts.items():
        lost = f"{CACHE}/.baremetal-nim.json /root/.docker/config.json"
        host.check_output(f"rm -f /run/watch-stop /run/watch-log {lost}")
        machine(name).exec_run(["python3", "-c", f"open('/run/watch.py', 'w').write({WATCH!r})"])
        host.check_output("systemd-run --quiet --collect --unit=watch python3 /run/watch.py")
    changes = {"env": {"NIM_LOG_LEVEL": "INFO"}}
    specs = {
        "gpu01": [service("gpu01", **changes)],
        "gpu02": [service("gpu02", gpus=[1], key_at_runtime=True, **changes)],
    }
    run = play(
        "site",
        "-vvv",
        extra={"specs": specs, "nim_services": "{{ specs[inventory_hostname] }}"},
        environment=unconfigured_environment(),
    )
    for host in hosts.values():
        host.check_output("touch /run/watch-stop")
    assert run.returncode == 0, run.stdout[-4000:]
    assert lab.LAB_KEY not in run.stdout, "the key is in Ansible's output"
    for name, host in hosts.items():
        eventually(lambda host=host: host.file("/run/watch-log").exists)
        has_no_key(host, serves_with_it=name == "gpu02")
    play("site")


def key_files(host, folders):
    """Files below folders of a host with the key in them, as it is or as a module gets the content of a file."""
    packed = base64.b64encode(f"{lab.LAB_KEY}\n".encode()).decode()
    return host.run(f"grep -rlF -e nvapi- -e '{packed}' {folders}").stdout.split()


def left_behind(host):
    """Files with the key where the login user, or everybody, gets at them; the home of root is the login of nobody."""
    return key_files(host, "/home /tmp /var/tmp /root/.ansible")


def test_a_killed_run_leaves_no_key(hosts):
    """Killed at random while the key is on its way, by Ansible as it is without a configuration: one that pipelines nothing by itself."""
    host, seed = hosts["gpu02"], time.time_ns()
    print(f"seed {seed}")
    # A time to wait is no secret.
    dice = random.Random(seed)  # noqa: S311
    under_way = "systemctl list-units --state=active,activating --no-legend 'nim-stage-*' 'nim-pull-*'"
    for number, at in enumerate(("Log in to the registry", "Stage image and weights", "Write the files of llama")):
        # What a killed run began to stage goes on without it, and would be found staged.
        eventually(lambda: host.check_output(under_way) == "", 120)
        host.check_output(f"rm -f {CACHE}/.baremetal-nim.json /root/.docker/config.json")
        spec = service("gpu02", gpus=[1], key_at_runtime=True, env={"LAB_TEST": f"killed-{number}"})
        run = Running("services", {"nim_services": [spec]}, "gpu02", unconfigured_environment())
        run.wait_for(at)
        time.sleep(dice.uniform(0, 2))
        seen = run.kill()
        assert lab.LAB_KEY not in seen, at
        assert left_behind(host) == [], (at, seen)
    run = play("services", limit="gpu02")
    assert run.returncode == 0, run.stdout
    assert left_behind(host) == [] and host.run("ls /run/nim/*.key").rc != 0
    # Only root gets at the file of a service; it stays as long as a deployment that is kept may need it.
    assert set(key_files(host, "/etc /run/nim /var/lib/nim /root")) <= {"/etc/nim/llama.key"}


def has_no_key(host, serves_with_it):
    """The key was seen nowhere on a host but where it has to be."""
    secret, log = lab.LAB_KEY, host.check_output("cat /run/watch-log")
    assert "nim-stage-llama" in log, "the watch saw the staging container"
    assert secret not in log, "the key is in a process list or a container's configuration"
    for command in (
        "systemctl cat nim-llama; systemctl show nim-llama",
        "journalctl --no-pager -o json",
        f"{ENGINE} inspect nim-llama; {ENGINE} image inspect $({ENGINE} images -q)",
        "cat /etc/nim/*.env /var/lib/nim/services/*",
        # Podman has no log of its own, and what it starts in a container gets the container's secrets.
        *(("docker logs nim-llama 2>&1", "docker exec nim-llama env") if ENGINE == "docker" else ()),
    ):
        assert secret not in host.check_output(command), command
    assert host.run("ls /run/nim/*.key").rc != 0, "the key's file was left behind"
    found = key_files(host, "/etc /run/nim /var/lib/nim /root")
    assert left_behind(host) == []
    assert served_key(host) == (secret if serves_with_it else "")
    copies = ["/etc/nim/llama.key", *(["/run/nim/llama/ngc_api_key"] if ENGINE == "docker" else [])]
    assert sorted(found) == (copies if serves_with_it else [])
    for path in found:
        assert host.file(path).user == "root"
        assert host.check_output(f"stat -c %a {pathlib.Path(path).parent}") == "700"


def test_absent_removes_the_service_and_keeps_the_cache(hosts):
    absent = {"nim_services": [{"name": "llama", "state": "absent"}]}
    run = play("services", extra=absent)
    assert run.returncode == 0, run.stdout
    for host in hosts.values():
        assert not host.file("/etc/systemd/system/nim-llama.service").exists
        assert not host.file("/etc/nim/llama.env").exists and not host.file("/etc/nim/llama.key").exists
        assert host.run("docker inspect nim-llama").rc == 1
        assert host.file(f"{CACHE}/.baremetal-nim.json").exists
    again = play("services", extra=absent)
    assert again.stdout.count("changed=0 ") == 2, again.stdout
    vendor_call("DELETE")
    back = play("services")
    assert back.returncode == 0, back.stdout
    assert weight_requests() == 0, "what was staged is used again"
    assert all(ask(name) for name in hosts)
    gone = play("remove", extra={"nim_remove_cache": True})
    assert gone.returncode == 0, gone.stdout
    assert not any(host.file(CACHE).exists for host in hosts.values())


def test_one_download_serves_the_fleet(hosts):
    deploy_to_both(hosts)
    assert downloads() == 1
    sums = {
        host.check_output(f"cd {CACHE}/ngc && find . -type f -exec sha256sum {{}} + | sort") for host in hosts.values()
    }
    assert len(sums) == 1 and "blobs" in sums.pop(), "what was copied is what was downloaded"
    for host in hosts.values():
        assert not host.service("nim-share").is_running
        assert host.run("ls /run/nim/share.* /run/nim/*.key").rc != 0, "a password was left behind"
    again = play("services", extra={"nim_services": [SAME], "model_cache_share": True})
    assert again.stdout.count("changed=0 ") == 2, again.stdout


def test_a_host_whose_source_fails_downloads_by_itself(hosts):
    for host in hosts.values():
        host.check_output("mv /usr/bin/rsync /usr/bin/rsync.away")
    try:
        run = deploy_to_both(hosts)
    finally:
        for host in hosts.values():
            host.run("mv /usr/bin/rsync.away /usr/bin/rsync")
    assert downloads() == 2 and "llama is downloaded: gpu0" in run.stdout, run.stdout


def test_upgrade_touches_no_host_after_one_that_rolled_back(hosts):
    before = container_id(hosts["gpu02"])
    spec = {**SAME, "tag": "1.8.6", "env": {"NIM_LAB_FAULT": "crash_at_start"}, "start_timeout": 20}
    run = play("upgrade", extra={"nim_services": [spec]})
    assert run.returncode == 2 and "Rolled back:" in run.stdout, run.stdout
    switched = run.stdout.partition("PLAY [Upgrade]")[2].partition("PLAY RECAP")[0]
    assert "[gpu01]" in switched and "[gpu02]" not in switched, run.stdout
    assert container_id(hosts["gpu02"]) == before
    assert ask("gpu01") and ask("gpu02")
