# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No host holds up the play of a fleet for ever: what roles run has a deadline, and what does not answer is told, not decided from."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _preflight
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import resolve_services

ROOT = pathlib.Path(__file__).parents[2]
REAL = {
    **json.loads((ROOT / "tests/fixtures/h200/gpu_host_info.json").read_text()),
    "systemd": {"running": True, "version": 255},
    "memory": {"total": 10**12, "available": 10**12},
    "disks": {},
    "listeners": [],
    "time": 1795423100.0,
    "clock": {"least": 0.0, "most": 0.0},
}
WANTED = {"driver_plan": {"source": "cuda_repo", "change": "none", "problems": [], "prerequisites": []}}
SMI = "nvidia-smi did not answer within 45 s and was ended. Next: dmesg | grep -i -e nvrm -e xid"
DOCKER = "docker info did not answer within 60 s and was ended. Next: systemctl status docker"


def tasks(items):
    """All tasks of a file, those in blocks too."""
    for item in items or []:
        yield item
        for key in ("block", "rescue", "always"):
            yield from tasks(item.get(key))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "roles").glob("*/tasks/*.yml")), ids=lambda path: f"{path.parts[-3]}/{path.name}"
)
def test_commands_of_roles_have_a_deadline(path):
    without = [
        task["name"]
        for task in tasks(yaml.safe_load(path.read_text()))
        if "ansible.builtin.command" in task and "timeout" not in task
    ]
    assert without == []


def test_who_decides_reads_strictly_and_who_tells_does_not():
    """Preflight tells what did not answer with every other reason; all others must not decide from a part."""
    variables = yaml.safe_load((ROOT / "roles/preflight/vars/main.yml").read_text())
    assert variables["__preflight_strict"] is True
    lax = [
        path.relative_to(ROOT).as_posix()
        for folder in ("roles", "playbooks")
        for path in (ROOT / folder).rglob("*.yml")
        if re.search(r"__preflight_strict: false", path.read_text())
    ]
    assert lax == ["roles/preflight/tasks/main.yml"]


def problems(unanswered, **changes):
    """Messages of preflight on a host that is not fit for another reason, too."""
    host = {**REAL, "memory": {"total": 10**9}, "services": {}, "unanswered": unanswered, **changes}
    wanted = {
        **WANTED,
        "supported_systems": [f"{REAL['os']['distribution']} {REAL['os']['major']}"],
        "architectures": ["x86_64"],
        "min_systemd": 249,
        "min_python": "3.9",
        "min_memory_gb": 16,
        "max_clock_skew": 120,
        "disk_gb": {"/srv": 1},
    }
    return [item["message"] for item in _preflight.preflight_problems(host, wanted, [])]


def test_other_reasons_are_told_beside_a_gpu_that_does_not_answer():
    first, *others = problems([{"program": "nvidia-smi", "message": SMI}])
    assert first == SMI and any("memory is 1.0 GB" in text for text in others)


def test_nothing_is_judged_by_what_was_not_told():
    assert problems([{"program": "docker", "message": DOCKER}, {"program": "nvidia-smi", "message": SMI}]) == [
        DOCKER,
        SMI,
    ]


def test_file_system_that_did_not_answer_is_not_measured():
    silent = [{"program": "file system", "message": "the file system of /srv did not answer"}]
    disks = {"/srv": None, "/": {"mount": "/", "free": 10**12, "total": 10**12, "read_only": False}}
    assert problems(silent, disks=disks)[0] == "the file system of /srv did not answer"


def test_preflight_knows_a_running_service_by_the_hash_that_its_role_gives_it():
    """All that a hash is made of goes into both, or a service that runs unchanged would seem to be changed."""
    calls = {
        role: re.search(
            r"resolve_services\((.*?)\) }}",
            yaml.safe_load((ROOT / f"roles/{role}/vars/main.yml").read_text())[name],
            re.DOTALL,
        )[1]
        for role, name in (("preflight", "__preflight_resolved"), ("nim_service", "__nim_service_resolved"))
    }
    names = {role: set(re.findall(r"(\w+)=", text)) for role, text in calls.items()}
    assert names["preflight"] >= names["nim_service"]
    service = {"name": "x", "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct", "tag": "1.8.6"}
    plain = {"cache_root": "/c", "config_dir": "/e", "state_dir": "/s", "bind_address": "127.0.0.1"}
    elsewhere = {**plain, "bind_address": "10.0.0.5"}
    hashes = {resolve_services([service], {"gpus": []}, defaults)[0]["config_hash"] for defaults in (plain, elsewhere)}
    assert len(hashes) == 2
