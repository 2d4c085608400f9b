# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""make demo: two bare hosts, one ansible-playbook, verified endpoints, and what they answered."""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time

import lab

REPORT = lab.STATE / "report.json"


def main() -> int:
    """Brings the lab up, runs the playbook, shows the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("reference", "vllm"), default="reference")
    args = parser.parse_args()
    started = time.monotonic()
    lab.Lab("demo").up(["gpu01", "gpu02"], {"reference", args.engine})
    command = ["ansible-playbook", "-i", "inventories/lab", "baremetal.nim.site"]
    command += ["-e", f"lab_engine={args.engine}", "-e", json.dumps({"nim_report": str(REPORT)})]
    print("\n$ " + shlex.join(command[:4]), flush=True)
    REPORT.unlink(missing_ok=True)
    code = subprocess.run(
        [str(pathlib.Path(sys.executable).parent / command[0]), *command[1:]], cwd=lab.ROOT
    ).returncode
    if not REPORT.exists():
        print(
            "demo: the playbook failed before its endpoints could be verified; its last message says why",
            file=sys.stderr,
        )
        return code or 1
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    show(report, json.loads((lab.STATE / "demo/ports.json").read_text()))
    print(
        f"\nReport: {REPORT.relative_to(lab.ROOT)}   took {time.monotonic() - started:.0f} s   again: make demo   remove all: make clean"
    )
    return code or int(not all(item["verified"] for item in report))


def show(report: list[dict[str, object]], ports: dict[str, dict[str, int]]) -> None:
    """Prints the endpoints, their answers and a curl line for the first."""
    line = "{:<7} {:<8} {:<28} {:>8} {:>9}  {:<9} {}"
    print("\n" + line.format("HOST", "SERVICE", "MODEL", "READY", "TTFT", "VERIFIED", "ENDPOINT"))
    for item in report:
        here = f"http://127.0.0.1:{ports[str(item['host'])]['8000']}"
        ready = "-" if item.get("ready_after_s") is None else f"{item['ready_after_s']:.1f} s"
        ttft = "-" if item.get("ttft_ms") is None else f"{item['ttft_ms']:.0f} ms"
        verified = "yes" if item["verified"] else "NO"
        print(line.format(str(item["host"]), str(item["service"]), str(item.get("model")), ready, ttft, verified, here))
    for item in report:
        print(
            f"\n{item['host']} / {item['service']} answers:"
            if item["verified"]
            else f"\n{item['host']}: {item.get('failure')}"
        )
        if item["verified"]:
            print("  " + str(item["content"]).replace("\n", "\n  "))
    good = next((item for item in report if item["verified"]), None)
    if good:
        prompt = "请用中文写一个关于日本樱花的五行短诗。"
        body = {"model": good["model"], "messages": [{"role": "user", "content": prompt}], "max_tokens": 128}
        url = f"http://127.0.0.1:{ports[str(good['host'])]['8000']}/v1/chat/completions"
        print(
            f"\nAsk it yourself:\ncurl -s {url} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
        )


if __name__ == "__main__":
    sys.exit(main())
