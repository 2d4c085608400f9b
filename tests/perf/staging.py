# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights onto 1, 2, 4 and 8 hosts: each downloads for itself, or one does and the others copy from it.

All hosts share one way to the weights' server, as a site shares its line: the server's interface is held to a rate. Both ways
are taken in turns, in one run. Times are printed, never asserted.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lab"))
sys.path.insert(0, str(HERE))

import lab  # noqa: E402
import requests  # noqa: E402
from bench import environment  # noqa: E402

NAME = "staging"
COUNTS = (1, 2, 4, 8)
SERVICE = {
    "name": "llama",
    "image": f"nvcr.lab:5000/{lab.NIM}",
    "tag": "2.0.5",
    "gpus": [0],
    "ulimits": ["stack=67108864"],
}
#: Of the line to the weights' server, and what is added to the lab's small weights.
MEGABITS, MEGABYTES = 80, 64
WEIGHTS = "/srv/ngc/meta/llama-3.1-8b-instruct/1.0.0-reference-bf16/model.safetensors"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the hosts running")
    parser.add_argument("--hosts", type=int, default=COUNTS[-1], help="most hosts (8)")
    args = parser.parse_args()
    hosts = [f"gpu{number:02}" for number in range(1, args.hosts + 1)]
    here = lab.Lab(NAME)
    rows: list[dict[str, Any]] = []
    try:
        here.up(hosts, {"reference"})
        vendor = here.vendor()
        lab.say(f"preparing {len(hosts)} hosts")
        play("staging_prepare.yml", hosts)
        here.execute(
            vendor, "sh", "-c", f"cp -p {WEIGHTS} {WEIGHTS}.bench && head -c {MEGABYTES}M /dev/zero >> {WEIGHTS}"
        )
        shape = f"tc qdisc replace dev eth0 root tbf rate {MEGABITS}mbit burst 256kb latency 400ms"
        here.execute(vendor, *shape.split())
        try:
            for count in [count for count in COUNTS if count <= len(hosts)]:
                for share in (False, True):
                    rows.append(stage(here, hosts[:count], share))
        finally:
            here.execute(vendor, "tc", "qdisc", "del", "dev", "eth0", "root")
            here.execute(vendor, "mv", f"{WEIGHTS}.bench", WEIGHTS)
    finally:
        if not args.keep:
            lab.say("removing the hosts")
            here.down(everything=False)
    (lab.STATE / "staging.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    show(rows)
    return 0


def play(playbook: str, hosts: list[str], **extra: Any) -> float:
    """Runs a playbook of this folder on hosts; returns its wall time, and leaves when it fails."""
    ansible = pathlib.Path(sys.executable).parent / "ansible-playbook"
    argv = [
        str(ansible),
        "-i",
        str(lab.ROOT / "inventories/lab"),
        "-i",
        str(HERE / "staging_hosts.yml"),
        "--forks",
        "8",
    ]
    argv += [
        str(HERE / playbook),
        "--limit",
        ",".join(hosts),
        "-e",
        json.dumps({"lab_name": NAME, "nim_services": [SERVICE], **extra}),
    ]
    started = time.monotonic()
    done = subprocess.run(argv, cwd=lab.ROOT, env=environment(), capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode or re.search(r"is downloaded:", done.stdout):
        sys.exit(
            f"staging: exit status {done.returncode}: {shlex.join(argv)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
        )
    return seconds


def stage(here: lab.Lab, hosts: list[str], share: bool) -> dict[str, Any]:
    """Stages the weights on hosts that have none, one way; what it took."""
    lab.say(f"{len(hosts)} hosts, {'one downloads' if share else 'each downloads'}")
    for name in hosts:
        container = here.container(f"{lab.SITE}-{NAME}-{name}")
        assert container is not None
        here.execute(container, "rm", "-rf", "/var/lib/nim/cache/llama")
    port = here.vendor().attrs["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"]
    asked = f"http://127.0.0.1:{port}/lab/requests"
    requests.delete(asked, timeout=10).raise_for_status()
    seconds = play("staging.yml", hosts, model_cache_share=share)
    answer = requests.get(asked, timeout=10)
    answer.raise_for_status()
    return {"hosts": len(hosts), "share": share, "seconds": round(seconds, 1), "bytes": answer.json()["bytes"]}


def show(rows: list[dict[str, Any]]) -> None:
    """Prints both ways side by side."""
    print(f"\nWeights of {rows[0]['bytes'] / 1e6:.0f} MB over a line of {MEGABITS} Mbit/s that all hosts share:\n")
    print("HOSTS  EACH DOWNLOADS         ONE DOWNLOADS          TIME  BYTES")
    for each, one in zip(rows[::2], rows[1::2], strict=True):
        ways = "".join(f"{row['seconds']:7.1f} s {row['bytes'] / 1e6:7.0f} MB     " for row in (each, one))
        print(f"{each['hosts']:5} {ways} {one['seconds'] / each['seconds']:5.2f}  {one['bytes'] / each['bytes']:5.2f}")


if __name__ == "__main__":
    sys.exit(main())
