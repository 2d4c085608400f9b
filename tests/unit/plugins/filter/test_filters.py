# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters as plays call them. What they compute is tested with module_utils."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.filter import (
    host_pattern,
    nim_report,
    nim_status,
    preflight_problems,
    resolve_services,
    service_changes,
    undecided_images,
)
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_nvidia_smi

ROOT = pathlib.Path(__file__).parents[4]
FILES = sorted(path.stem for path in (ROOT / "plugins" / "filter").glob("*.py"))
HOST = {
    "hostname": "gpu01",
    "gpus": parse_nvidia_smi((ROOT / "tests/fixtures/h200-x2/idle.xml").read_text())["gpus"],
    "services": {},
    "images": {},
}
LLAMA = {"name": "llama", "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct", "tag": "1.8.6", "gpus": [0]}


def filter_of(module):
    """The one filter of a file."""
    ((name, function),) = module.FilterModule().filters().items()
    assert module.__name__.endswith(f".{name}")
    return function


@pytest.mark.parametrize("name", FILES)
def test_documentation(name):
    """Each file has the filter of its name, and says of it what ansible-doc needs."""
    module = importlib.import_module(f"ansible_collections.baremetal.nim.plugins.filter.{name}")
    assert callable(filter_of(module))
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["name"] == name
    assert str(documentation["version_added"]) == "1.0.0"
    assert documentation["options"]["_input"]["required"] is True
    assert f"baremetal.nim.{name}" in module.EXAMPLES
    assert yaml.safe_load(module.EXAMPLES)
    assert "_value" in yaml.safe_load(module.RETURN)


def test_resolve_services():
    (service,) = filter_of(resolve_services)([LLAMA], HOST)
    assert (
        service["cache"],
        service["env_path"],
        service["record_path"],
        service["bind_address"],
        service["cache_bytes"],
    ) == (
        "/var/lib/nim/cache/llama",
        "/etc/nim/llama.env",
        "/var/lib/nim/services/llama.json",
        "127.0.0.1",
        0,
    )


def test_resolve_services_takes_what_it_documents():
    options = yaml.safe_load(resolve_services.DOCUMENTATION)["options"]
    given = {name: option.get("default") for name, option in options.items() if name not in ("_input", "host")}
    resolve = filter_of(resolve_services)
    assert resolve([LLAMA], HOST, **given) == resolve([LLAMA], HOST)
    (service,) = resolve(
        [LLAMA], HOST, **{**given, "cache_root": "/srv/nim", "bind_address": "10.1.0.4", "cache_size_gb": "20"}
    )
    assert (service["cache"], service["publish"], service["cache_bytes"]) == (
        "/srv/nim/llama",
        ["10.1.0.4:8000:8000"],
        20 * 10**9,
    )


def test_resolve_services_names_the_host_and_every_problem():
    services = [{**LLAMA, "tag": "latest", "contract": "llm"}, {**LLAMA, "name": "Phi", "port": 8001, "gpus": [9]}]
    with pytest.raises(AnsibleFilterError) as caught:
        filter_of(resolve_services)(services, HOST)
    heading, *problems = str(caught.value).splitlines()
    assert heading.endswith("gpu01: nim_services cannot be deployed:")
    assert [problem.split(":")[0] for problem in problems] == ["- service llama", "- service Phi", "- service Phi"]


def test_resolve_services_refuses_an_option_that_it_does_not_know():
    with pytest.raises(AnsibleFilterError, match="unknown options cache_dir, port"):
        filter_of(resolve_services)([LLAMA], HOST, port=1, cache_dir="/srv")


def test_undecided_images():
    options = yaml.safe_load(undecided_images.DOCUMENTATION)["options"]
    given = {name: option.get("default") for name, option in options.items() if name not in ("_input", "host")}
    find = filter_of(undecided_images)
    services = [LLAMA, {**LLAMA, "name": "other", "tag": "release-7"}]
    (found,) = find(services, HOST)
    assert found == f"{LLAMA['image']}:release-7"
    assert find(services, HOST, **given) == [found]
    assert (
        find(services, HOST, **{**given, "offline": True}) == find(services, HOST, told={found: {"found": False}}) == []
    )


def test_service_changes():
    services = filter_of(resolve_services)([LLAMA, {"name": "old", "state": "absent"}], HOST)
    changes = filter_of(service_changes)(services, {**HOST, "services": {"old": {"unit": {"exists": True}}}})
    assert {kind: [service["name"] for service in items] for kind, items in changes.items()} == {
        "stage": ["llama"],
        "deploy": ["llama"],
        "watch": [],
        "remove": ["old"],
    }


def test_preflight_problems():
    host = {
        **HOST,
        "os": {"distribution": "Debian", "major": "13", "architecture": "x86_64", "package_manager": "apt"},
        "python": {"version": "3.13.5"},
        "systemd": {"running": True, "version": 257},
        "time": 100.0,
        "clock": {"least": -1.0, "most": 1.0},
        "memory": {"total": 10**12},
        "disks": {},
        "listeners": [],
        "driver": {"error": None, "loaded_version": "580.159.04", "holders": []},
        "engine": {},
        "packages": {},
        "package_state": {"holds": [], "interrupted": False, "incomplete": [], "busy": None},
        "repositories": [],
        "secure_boot": {"enabled": None},
        "hardware": {"gpus": [{"address": "0000:18:00.0"}]},
    }
    wanted = {
        "supported_systems": ["Debian 13"],
        "architectures": ["x86_64"],
        "min_systemd": 249,
        "min_python": "3.9",
        "min_memory_gb": 16,
        "max_clock_skew": 120,
        "driver_plan": {
            "source": "preinstalled",
            "branch": "580",
            "change": "none",
            "problems": [],
            "prerequisites": [],
        },
        "disk_gb": {},
    }
    problems = filter_of(preflight_problems)
    services = filter_of(resolve_services)([LLAMA], HOST)
    assert problems(host, wanted, services) == []
    assert len(problems({**host, "gpus": []}, wanted, services)) == 1
    documented = yaml.safe_load(preflight_problems.DOCUMENTATION)["options"]["wanted"]["description"][0]
    assert not [key for key in wanted if f"C({key})" not in documented]


def test_reports():
    hosts = [{"inventory_hostname": "gpu01"}]
    assert filter_of(nim_report)(iter(hosts)) == [
        {"host": "gpu01", "service": None, "verified": False, "failure": "not reached"}
    ]
    assert filter_of(nim_status)(iter(hosts)).splitlines()[2].split()[:2] == ["gpu01", "-"]


PLAY = """\
- hosts: localhost
  gather_facts: false
  vars:
    resolved: "{{ services | baremetal.nim.resolve_services(host, cache_root='/srv/nim') }}"
    fleet: "{{ ansible_play_hosts_all | map('extract', hostvars) }}"
  tasks:
    - ansible.builtin.debug:
        msg: >-
          {{ {'resolved': resolved, 'changes': resolved | baremetal.nim.service_changes(host),
              'report': fleet | baremetal.nim.nim_report,
              'status': (fleet | baremetal.nim.nim_status).splitlines()} | to_json }}
"""


def test_filters_in_a_play(tmp_path):
    """Values of a play are tagged, lazy and of Ansible's own types; the outcome is the same as with plain data."""
    (tmp_path / "play.yml").write_text(PLAY)
    given = {
        "services": [{**LLAMA, "env": {"NIM_MAX_MODEL_LEN": 8192}, "port": "8001"}],
        "host": HOST,
    }
    (tmp_path / "vars.json").write_text(json.dumps(given))
    collections = next(
        os.path.abspath(path)
        for path in sys.path
        if (pathlib.Path(path) / "ansible_collections/baremetal/nim").is_dir()
    )
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local"]
    done = subprocess.run(
        [*command, "-e", f"@{tmp_path / 'vars.json'}", str(tmp_path / "play.yml")],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": collections,
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = json.loads(json.JSONDecoder().raw_decode(done.stdout.split(" => ", 1)[1])[0]["msg"])
    resolved = filter_of(resolve_services)(given["services"], HOST, cache_root="/srv/nim")
    assert out["resolved"] == resolved
    assert out["changes"] == filter_of(service_changes)(resolved, HOST)
    assert out["report"] == [{"host": "localhost", "service": None, "verified": False, "failure": "not reached"}]
    assert out["status"] == filter_of(nim_status)([{"inventory_hostname": "localhost"}]).splitlines()


# -- host_pattern ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "pattern"),
    [
        ("nim_servers", "nim_servers"),
        (" gpu01,gpu02 ", "gpu01,gpu02"),
        (["gpu01", "rack1:&large"], "gpu01,rack1:&large"),
        (("all", "!gpu03"), "all,!gpu03"),
    ],
)
def test_host_pattern(hosts, pattern):
    assert filter_of(host_pattern)(hosts) == pattern


@pytest.mark.parametrize("hosts", ["", " ", [], [""], ["gpu01", None], None, 7, {"gpu01": {}}])
def test_hosts_that_were_not_filled_in_are_refused(hosts):
    with pytest.raises(AnsibleFilterError, match="wanted a pattern of hosts such as nim_servers"):
        filter_of(host_pattern)(hosts)


def test_every_play_of_this_collection_loads_its_filters_once():
    plays = [play for path in (ROOT / "playbooks").glob("*.yml") for play in yaml.safe_load(path.read_text())]
    hosts = [play["hosts"] for play in plays if "hosts" in play]
    assert hosts and set(hosts) == {"{{ nim_hosts | default('nim_servers') | baremetal.nim.host_pattern }}"}
