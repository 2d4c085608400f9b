# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints what a second run costs and how soon readiness is noticed, as ratios measured in one run.

    bench.py [--quick] [--keep]

The exit status tells whether the plays worked, never whether a target was met: timings are for people to read.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/lab"))

import lab  # noqa: E402

NAME = "bench"
BASELINE = """
- hosts: nim_servers
  gather_facts: true
  become: true
  tasks:
    - ansible.builtin.ping:
"""
WAIT_MODULE = """
- hosts: gpu01
  gather_facts: false
  become: true
  tasks:
    - baremetal.nim.chat_completion:
        url: http://127.0.0.1:8000
        probes: []
        timeout: 120
"""
WAIT_URI = """
- hosts: gpu01
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.uri:
        url: http://127.0.0.1:8000/v1/health/ready
      register: answer
      until: answer.status == 200
      retries: 30
      delay: 10
"""
#: Polls a hundred times a second on the host itself and prints when the first 200 came.
OBSERVER = """
import time, urllib.request
while True:
    try:
        if urllib.request.urlopen("http://127.0.0.1:8000/v1/health/ready", timeout=1).status == 200:
            print(time.time())
            break
    except OSError:
        time.sleep(0.01)
"""
#: Longer than the random head start of a wait, so that every wait begins before the service is ready.
LOAD_SECONDS = 13
HEAD_START = 10.0


def environment(counts: pathlib.Path | None = None) -> dict[str, str]:
    """The checkout's settings; with COUNTS, the callback that writes there."""
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    if counts:
        env["ANSIBLE_CALLBACK_PLUGINS"] = str(ROOT / "tests/perf/callback_plugins")
        env["ANSIBLE_CALLBACKS_ENABLED"] = "count_modules"
        env["COUNT_MODULES_FILE"] = str(counts)
    return env


def play(playbook: str, extra: dict[str, Any] | None = None, counts: pathlib.Path | None = None) -> float:
    """Runs a playbook; returns its wall time in seconds. Leaves with its output when it fails."""
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(ROOT / "inventories/lab"), playbook]
    command += ["-e", json.dumps({"lab_name": NAME, "lab_root": str(ROOT), **(extra or {})})]
    started = time.monotonic()
    run = subprocess.run(command, cwd=ROOT, env=environment(counts), capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"bench: {playbook} failed\n{run.stdout[-4000:]}\n{run.stderr[-2000:]}")
    return time.monotonic() - started


def executions(counts: pathlib.Path) -> list[dict[str, Any]]:
    """What the callback wrote."""
    return [json.loads(line) for line in counts.read_text().splitlines()] if counts.exists() else []


def ssh(*command: str) -> list[str]:
    """The command line that runs COMMAND as root on gpu01."""
    return ["ssh", "-F", str(lab.STATE / NAME / "ssh_config"), f"gpu01.{NAME}", "sudo", *command]


def notice(playbook: str, scratch: pathlib.Path) -> float:
    """Seconds from the first 200 on the host until the task's last remote call was back, for one restart of the service.

    The way back to the controller is in it: what counts is when the play knows. The clocks are one: hosts are containers.
    """
    counts = scratch / "wait.jsonl"
    counts.unlink(missing_ok=True)
    subprocess.run(ssh("systemctl", "restart", "nim-llama"), check=True, capture_output=True)
    with subprocess.Popen(ssh("python3", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as observer:
        assert observer.stdin is not None and observer.stdout is not None
        observer.stdin.write(OBSERVER)
        observer.stdin.close()
        # A random phase between the polls of the wait and the moment the service is ready.
        time.sleep(random.uniform(0, HEAD_START))  # noqa: S311
        play(playbook, counts=counts)
        first = float(observer.stdout.read())
    return float(executions(counts)[-1]["ended"]) - first


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):6.2f} s   ({min(values):.2f} … {max(values):.2f}, n={len(values)})"


def mark(met: bool) -> str:
    """PASS or MISS."""
    return "PASS" if met else "MISS"


def measure(repeats: int, waits: int) -> dict[str, Any]:
    """All numbers, raw."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        names = {}
        for name, text in (("baseline", BASELINE), ("wait_module", WAIT_MODULE), ("wait_uri", WAIT_URI)):
            names[name] = str(scratch / f"{name}.yml")
            pathlib.Path(names[name]).write_text(text)
        lab.say("converging")
        play("baremetal.nim.site")
        counts = scratch / "site.jsonl"
        play("baremetal.nim.site", counts=counts)
        rows = executions(counts)
        lab.say(f"no-op site.yml against gather_facts + ping, {repeats} times each, in turn")
        site, baseline = [], []
        for _ in range(repeats):
            baseline.append(play(names["baseline"]))
            site.append(play("baremetal.nim.site"))
        lab.say(f"noticing readiness, {waits} restarts each, in turn")
        spec = {
            "name": "llama",
            "image": f"nvcr.lab:5000/{lab.NIM}",
            "tag": "1.8.6",
            "gpus": [0],
            "ulimits": ["stack=67108864"],
            "env": {"NIM_LAB_LOAD_SECONDS": str(LOAD_SECONDS)},
        }
        play("baremetal.nim.services", {"nim_services": [spec], "nim_hosts": "gpu01"})
        module, uri = [], []
        for _ in range(waits):
            module.append(notice(names["wait_module"], scratch))
            uri.append(notice(names["wait_uri"], scratch))
    return {"executions": rows, "site_s": site, "baseline_s": baseline, "module_s": module, "uri_s": uri}


def show(raw: dict[str, Any]) -> None:
    """The table."""
    per_host = Counter(row["host"] for row in raw["executions"])
    most = max(per_host.values())
    print("\nRemote module executions of a no-op site.yml")
    for host, count in sorted(per_host.items()):
        modules = Counter(row["module"] for row in raw["executions"] if row["host"] == host)
        print(f"  {host}: {count:3}   " + ", ".join(f"{name} {n}" for name, n in modules.most_common()))
    print(f"  target ≤ 25: {mark(most <= 25)}")
    ratio = statistics.median(raw["site_s"]) / statistics.median(raw["baseline_s"])
    print("\nWall time on two hosts")
    print(f"  no-op site.yml        {spread(raw['site_s'])}")
    print(f"  gather_facts + ping   {spread(raw['baseline_s'])}")
    print(f"  ratio {ratio:.1f}, target ≤ 5: {mark(ratio <= 5)}")
    median = statistics.median(raw["module_s"])
    print("\nFrom the first 200 of /v1/health/ready until the play knows")
    print(f"  chat_completion       {spread(raw['module_s'])}")
    print(f"  uri until, delay 10   {spread(raw['uri_s'])}")
    print(f"  {statistics.median(raw['uri_s']) / median:.0f} times sooner; target p50 ≤ 0.3 s: {mark(median <= 0.3)}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--keep", action="store_true", help="leave the hosts running")
    args = parser.parse_args()
    hosts = lab.Lab(NAME)
    hosts.up(["gpu01", "gpu02"], {"reference"})
    try:
        raw = measure(2 if args.quick else 5, 2 if args.quick else 7)
    finally:
        if not args.keep:
            hosts.down(everything=False)
    show(raw)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    (lab.STATE / "bench.json").write_text(json.dumps({"machine": machine, **raw}, indent=2) + "\n")
    print("\nRaw numbers: .lab/bench.json")


if __name__ == "__main__":
    main()
