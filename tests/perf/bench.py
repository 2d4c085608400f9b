# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""make bench: what a second run costs, and how soon readiness is noticed.

Timings are printed, never asserted: only a play that fails gives a non-zero exit status.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import yaml

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lab"))

import lab  # noqa: E402

NAME = "bench"
HOSTS = ("gpu01", "gpu02")
SITE = "baremetal.nim.site"
#: Targets: modules per host, site.yml over baseline, seconds until readiness is noticed.
MODULES, RATIO, NOTICED = 25, 5.0, 0.3
#: The roles that look after the GPUs, alone, and their target of modules per host.
GPU_LAYER, GPU_MODULES = str(HERE / "gpu_layer.yml"), 6
#: Loading times are drawn from this range. It spans one delay of uri, so its polls fall anywhere before readiness.
LOADING = (4.0, 14.0)
WAITS = ("module", "uri")

#: Services of one host, sharing its first GPU, for what a no-op costs with many of them.
MANY = 8

Call = dict[str, Any]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--keep", action="store_true", help="leave the hosts running")
    parser.add_argument("--repeats", type=int, help="runs of site.yml and baseline (5)")
    parser.add_argument("--restarts", type=int, help="restarts of the service (7)")
    args = parser.parse_args()
    repeats = args.repeats or (2 if args.quick else 5)
    restarts = args.restarts or (3 if args.quick else 7)
    # The hosts are removed after a polite kill as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    here = lab.Lab(NAME)
    try:
        here.up(list(HOSTS), {"reference"})
        lab.say("site.yml on bare hosts")
        play(SITE)
        report: dict[str, Any] = {"machine": machine(here), "load_average_before": os.getloadavg()}
        report["modules"] = count_modules(SITE)
        report["gpu_modules"] = count_modules(GPU_LAYER)
        report["wall"] = compare_wall_times(repeats)
        report["noticed"] = watch_restarts(restarts)
        report["many_modules"] = count_with_many()
    finally:
        if not args.keep:
            lab.say("removing the hosts")
            here.down(everything=False)
    report["load_average_after"] = os.getloadavg()
    path = lab.STATE / "bench.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show_calls(report["modules"])
    show_table(report)
    print(f"\nRaw numbers: {path.relative_to(lab.ROOT)}")
    return 0


def machine(here: lab.Lab) -> dict[str, Any]:
    """What the numbers were taken on and with."""
    galaxy = yaml.safe_load((lab.ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "docker": here.docker.version()["Version"],
        "ansible-core": importlib.metadata.version("ansible-core"),
        "collection": galaxy["version"],
    }


# -- plays -----------------------------------------------------------------------------------------------------


def command(playbook: str, *args: str, extra: dict[str, Any] | None = None) -> list[str]:
    """The command line that runs a playbook on this lab."""
    ansible = pathlib.Path(sys.executable).parent / "ansible-playbook"
    inventory = str(lab.ROOT / "inventories/lab")
    return [str(ansible), "-i", inventory, playbook, "-e", json.dumps({"lab_name": NAME, **(extra or {})}), *args]


def environment(**changes: str) -> dict[str, str]:
    """The checkout's settings and none of the caller's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return {**kept, "ANSIBLE_CONFIG": str(lab.ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **changes}


def play(playbook: str, unchanged: bool = False, extra: dict[str, Any] | None = None, **changes: str) -> float:
    """Runs a playbook; returns its wall time. Leaves when it fails, or when it changes what must not change."""
    argv = command(playbook, extra=extra)
    started = time.monotonic()
    done = subprocess.run(argv, cwd=lab.ROOT, env=environment(**changes), capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode or (unchanged and sum(map(int, re.findall(r"\bchanged=(\d+)", done.stdout)))):
        what = f"exit status {done.returncode}" if done.returncode else "it changed something on a second run"
        sys.exit(f"bench: {what}: {shlex.join(argv)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    return seconds


# -- measurements ----------------------------------------------------------------------------------------------


def count_modules(playbook: str, extra: dict[str, Any] | None = None) -> list[Call]:
    """Every call of a no-op run that reached a host: modules, and commands (modules are commands too)."""
    lab.say(f"counting what a no-op {pathlib.Path(playbook).name} runs on the hosts")
    with tempfile.TemporaryDirectory() as folder:
        calls = pathlib.Path(folder, "calls")
        settings = {"ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"), "BENCH_CALLS": str(calls)}
        play(playbook, unchanged=True, extra=extra, ANSIBLE_CALLBACKS_ENABLED="remote_calls", **settings)
        found: list[Call] = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
    for call in found:
        # Not every call is handed the variables, but each knows where it goes; the lab's addresses are HOST.LAB.
        call["host"] = call["host"] or str(call["address"]).removesuffix(f".{NAME}")
    return [call for call in found if call["connection"] != "local"]


def count_with_many() -> list[Call]:
    """The same for hosts with MANY services each."""
    services = [
        {
            "name": f"llama-{number}",
            "image": f"nvcr.lab:5000/{lab.NIM}",
            "tag": "1.8.6",
            "gpus": [0],
            "gpu_shared": True,
            "port": 8000 if number == 0 else 8100 + number,
            "env": {"NIM_KVCACHE_PERCENT": "0.1"},
            "ulimits": ["stack=67108864"],
        }
        for number in range(MANY)
    ]
    lab.say(f"deploying {MANY} services on each host")
    gone = {"name": "llama", "state": "absent"}
    play(SITE, extra={"nim_services": [gone, *services]})
    return count_modules(SITE, {"nim_services": services})


def compare_wall_times(repeats: int) -> dict[str, list[float]]:
    """Wall times of no-op runs and of the baseline, in turns, over connections that are open already."""
    lab.say(f"no-op site.yml, GPU layer and baseline in turns, {repeats} times each")
    baseline = str(HERE / "baseline.yml")
    play(baseline)
    times: dict[str, list[float]] = {"site": [], "gpu_layer": [], "baseline": []}
    for _ in range(repeats):
        times["baseline"].append(play(baseline))
        times["site"].append(play(SITE, unchanged=True))
        times["gpu_layer"].append(play(GPU_LAYER, unchanged=True))
    return times


def watch_restarts(restarts: int) -> list[dict[str, Any]]:
    """What the observer on the host saw of each restart, while both ways to wait waited for that same restart."""
    lab.say(f"restarting the service {restarts} times under both waits")
    low, high = LOADING
    seen = []
    for number in range(restarts):
        # One draw from each of equal parts of the range: few restarts still cover it evenly.
        seen.append(watch_restart(low + (high - low) * (number + random.random()) / restarts))  # noqa: S311
    return seen


def watch_restart(loading: float) -> dict[str, Any]:
    """One restart: seconds from the first 200 until each client had its own; observer.py says how that is known."""
    login = ["ssh", "-F", str(lab.STATE / NAME / "ssh_config"), "gpu01", "sudo", "-n", "python3", "-", f"{loading:.3f}"]
    waits = {}
    with (
        open(HERE / "observer.py", "rb") as source,
        subprocess.Popen(login, stdin=source, stdout=subprocess.PIPE, text=True) as observer,
    ):
        assert observer.stdout is not None
        if observer.stdout.readline().strip() == "restarted":
            for wait in WAITS:
                waits[wait] = subprocess.Popen(
                    command(str(HERE / "wait.yml"), "--tags", wait),
                    cwd=lab.ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
        answer = observer.stdout.read()
    for wait, process in waits.items():
        output, _nothing = process.communicate()
        if process.returncode:
            sys.exit(f"bench: waiting with {wait} failed\n{output[-6000:]}")
    if observer.returncode:
        sys.exit("bench: the observer on gpu01 failed; its message is above")
    seen: dict[str, Any] = json.loads(answer)
    missing = {"observer", *WAITS} - set(seen["noticed"])
    if missing:
        sys.exit(f"bench: the observer on gpu01 saw no 200 for: {', '.join(sorted(missing))}")
    first = min(seen["noticed"].values())
    delays = {client: round(at - first, 4) for client, at in seen["noticed"].items()}
    ready_after = round(first - seen["restarted"], 3)
    return {"loading": round(loading, 3), "ready_after": ready_after, "asked": seen["asked"], "delay": delays}


# -- output ----------------------------------------------------------------------------------------------------


def show_calls(calls: list[Call]) -> None:
    """Prints the modules in their order, with the seconds they took on each host."""
    modules = [call for call in calls if call["kind"] == "module"]
    rows: dict[tuple[str, str, int], dict[str, float]] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for call in modules:
        module = call["module"].removeprefix("ansible.legacy.").removeprefix("ansible.builtin.")
        key = (call["task"], module, call["host"])
        counts[key] = counts.get(key, 0) + 1
        rows.setdefault((call["task"], module, counts[key]), {})[call["host"]] = call["seconds"]
    print("\nModules that a no-op site.yml runs on the hosts, and their seconds:")
    print("".join(f"{host:>7}" for host in HOSTS) + "  MODULE, TASK")
    for (task, module, _number), seconds in rows.items():
        print(
            "".join(f"{seconds[host]:7.2f}" if host in seconds else "      -" for host in HOSTS), f" {module}, {task}"
        )


def show_table(report: dict[str, Any]) -> None:
    """Prints all results with their targets."""
    lines = [("MEASURE", "VALUE", "TARGET", "", "DETAIL")]
    for label, calls, target in (("site.yml", "modules", MODULES), ("GPU layer", "gpu_modules", GPU_MODULES)):
        for host in HOSTS:
            kinds = [call["kind"] for call in report[calls] if call["host"] == host]
            modules, commands = kinds.count("module"), kinds.count("command")
            detail = f"{commands} remote commands in all"
            lines.append(
                (f"no-op {label}, modules on {host}", str(modules), f"<= {target}", mark(modules <= target), detail)
            )
    for host in HOSTS:
        modules = [
            call["module"] for call in report["many_modules"] if call["host"] == host and call["kind"] == "module"
        ]
        proofs = sum(name.endswith("chat_completion") for name in modules)
        detail = f"{proofs} of them prove an endpoint each"
        label = f"no-op site.yml, {MANY} services, on {host}"
        lines.append((label, str(len(modules)), f"<= {MODULES}", mark(len(modules) <= MODULES), detail))
    wall = report["wall"]
    for name, label in (
        ("site", "no-op site.yml"),
        ("gpu_layer", "no-op GPU layer"),
        ("baseline", "gather_facts + ping"),
    ):
        times = wall[name]
        detail = f"median of {len(times)}, min {min(times):.2f}, max {max(times):.2f}"
        lines.append((f"wall time, {label}", f"{statistics.median(times):.2f} s", "", "", detail))
    ratio = statistics.median(wall["site"]) / statistics.median(wall["baseline"])
    lines.append(("wall time, ratio", f"{ratio:.2f}", f"<= {RATIO:g}", mark(ratio <= RATIO), "of the medians"))
    ratio = statistics.median(wall["gpu_layer"]) / statistics.median(wall["baseline"])
    lines.append(("wall time, ratio of the GPU layer", f"{ratio:.2f}", "", "", "of the medians"))
    # A wait that began when the service was ready already says nothing about noticing.
    median = {}
    for wait, label in (("module", "chat_completion"), ("uri", "uri, delay 10")):
        delays = [one["delay"][wait] for one in report["noticed"] if one["asked"][wait] > 1]
        if not delays:
            lines.append(
                (f"readiness noticed by {label}", "-", "", "", "every wait began too late: the machine is too busy")
            )
            continue
        median[wait] = statistics.median(delays)
        detail = f"p50 of {len(delays)}, p90 {percentile(delays, 0.9):.2f}, max {max(delays):.2f}"
        target = (f"<= {NOTICED} s", mark(median[wait] <= NOTICED)) if wait == "module" else ("", "")
        lines.append((f"readiness noticed by {label}", f"{median[wait]:.3f} s", *target, detail))
    if len(median) == len(WAITS):
        ratio = median["uri"] / max(median["module"], 0.001)
        lines.append(("readiness noticed, ratio", f"{ratio:.0f}", "", "", "uri to chat_completion, p50"))
    print()
    for line in lines:
        print("{:<38} {:>9}  {:<8} {:<5} {}".format(*line).rstrip())
    facts = report["machine"]
    print(
        f"\n{facts['cores']} cores, load average {report['load_average_before'][0]:.1f} before and"
        f" {report['load_average_after'][0]:.1f} after; ansible-core {facts['ansible-core']}, Python {facts['python']},"
        f" collection {facts['collection']}. Seconds depend on the machine: compare ratios."
    )


def mark(met: bool) -> str:
    """PASS or MISS."""
    return "PASS" if met else "MISS"


def percentile(values: list[float], share: float) -> float:
    """The value below which that share lies, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


if __name__ == "__main__":
    sys.exit(main())
