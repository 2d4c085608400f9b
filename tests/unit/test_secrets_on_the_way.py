# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How secrets get to a host: through a pipe, whatever the configuration of Ansible is.

Without pipelining, which is Ansible's default, a module lies in the home of the login user with its arguments in it, and stays there
when the run is killed. A file that the controller writes there first (copy, template) lies there in any case.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml
from ansible_collections.baremetal.nim.tests.unit.role_play import HERE

ROOT = pathlib.Path(__file__).parents[2]
PLAYS = sorted(path for folder in ("roles/*/tasks", "playbooks") for path in ROOT.glob(f"{folder}/*.yml"))
#: Modules of others, and which of their options may have a secret.
OTHERS = {"community.docker.docker_login": {"password"}, "ansible.builtin.command": {"stdin"}}
#: Actions that run on the controller alone.
AT_HOME = {
    "assert",
    "debug",
    "fail",
    "set_fact",
    "set_stats",
    "include_tasks",
    "import_tasks",
    "include_role",
    "import_role",
}
#: What a secret is called where tasks name it.
NAMES = re.compile(r"\b\w*(?:api_key|password|_key_text|env_hidden|verify_client)\b")
#: Endpoints of nim_verify may have the key of a gateway, and files of nim_files the key of a service.
OWN = {"nim_verify": {"endpoints"}, "nim_files": {"files"}}


def tasks(entries, inherited=()):
    """Every task, with the variables of the blocks around it."""
    for task in entries or []:
        around = {**dict(inherited), **(task.get("vars") or {})}
        for part in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks"):
            yield from tasks(task.get(part), around.items())
        if not {"block", "hosts"} & task.keys():
            yield task, around


def secret_options(module):
    """Options of a module of this collection that its argument_spec hides, at any depth."""
    if module in OTHERS:
        return OTHERS[module]
    namespace, _dot, name = module.rpartition(".")
    if namespace != "baremetal.nim":
        return set()
    code = importlib.import_module(f"ansible_collections.baremetal.nim.plugins.modules.{name}")
    seen = {}

    def stop(argument_spec, **_options):
        seen.update(argument_spec)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(code, "AnsibleModule", stop)
        code.main()

    def hidden(spec):
        return {
            name for name, facts in spec.items() if facts.get("no_log") is True or hidden(facts.get("options") or {})
        }

    return hidden(seen) | OWN.get(name, set())


def carriers():
    """Tasks that send a secret to a host, or to a process of a module on the controller."""
    for path in PLAYS:
        for task, around in tasks(yaml.safe_load(path.read_text())):
            module = next((key for key in task if "." in key), "")
            args = task.get(module) if isinstance(task.get(module), dict) else {}
            text = json.dumps({**args, "vars": task.get("vars")})
            at_home = module.rpartition(".")[2] in AT_HOME
            given = {option for option in secret_options(module) if option in args}
            # What every service shares, and a record, are no secrets.
            public = module.endswith("nim_files") and not NAMES.search(text) and "__nim_service_files }}" not in text
            if not at_home and ((given and not public) or "no_log" in task or NAMES.search(text)):
                yield pytest.param(task, around, module, id=f"{path.relative_to(ROOT)}: {task['name']}")


@pytest.mark.parametrize(("task", "around", "module"), list(carriers()))
def test_a_secret_goes_through_a_pipe(task, around, module):
    assert around.get("ansible_pipelining") is True, "vars: {ansible_pipelining: true}"
    # These write a file on the host before the module runs, pipelining or not.
    assert module.rpartition(".")[2] not in ("copy", "template", "script", "unarchive", "assemble", "shell")
    assert not task.get("async"), "what runs in the background lies in a file"


def test_they_are_found():
    found = ids_of_carriers()
    assert len(found) >= 9, found
    for words in ("stage.yml: stage | Stage image", "login_docker | Log in", "login_podman | Log in", "round | Serve",
                  "service | Write the files", "learn | Ask the registry", "probe | Wait", "as a client does", "Measure each"):  # fmt: skip
        assert any(words in case for case in found), (words, found)


@functools.cache
def ids_of_carriers():
    """Where those tasks stand."""
    return frozenset(case.id for case in carriers())


@pytest.mark.parametrize("path", PLAYS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pipelining_is_forced_for_secrets_only(path):
    """A host may be one on which it does not work (requiretty); it is not asked for where it is not needed."""
    needed = ids_of_carriers()
    for task, around in tasks(yaml.safe_load(path.read_text())):
        if "ansible_pipelining" in around:
            assert f"{path.relative_to(ROOT)}: {task['name']}" in needed


KEY = "nvapi-Qs7-on-the-way-4471-kLmNoPqRsTuVwXyZ"


@pytest.fixture
def stalled():
    """A registry that takes calls and never answers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.mark.parametrize("pipelining", [None, False], ids=["as it is", "switched off"])
def test_a_killed_run_leaves_no_key_behind(tmp_path, stalled, pipelining):
    """With the default configuration of Ansible; switched off by force, the key is left where this looks for it."""
    address = f"127.0.0.1:{stalled.getsockname()[1]}"
    extra = {
        "__preflight_unknown": [f"{address}/nim/llama:1"],
        "ngc_registry_url": address,
        "ngc_api_key": "{{ lookup('ansible.builtin.env', 'NGC_API_KEY') }}",
        **HERE,
        **({} if pipelining is None else {"ansible_pipelining": pipelining}),
    }
    role = {"ansible.builtin.include_role": {"name": "baremetal.nim.preflight", "tasks_from": "learn"}}
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [role]}]))
    collections = next(path for path in sys.path if (pathlib.Path(path) / "ansible_collections/baremetal/nim").is_dir())
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        # As seen from the host: the home of the login user.
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_COLLECTIONS_PATH": os.path.abspath(collections),
        "NGC_API_KEY": KEY,
    }
    command = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        "-i",
        "gpu01,",
        "-e",
        json.dumps(extra),
        str(tmp_path / "play.yml"),
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            # The module is at work: it has called.
            call, _address = stalled.accept()
            with call:
                time.sleep(0.2)
                found = left(tmp_path)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    found += left(tmp_path)
    assert bool(found) == (pipelining is False), found


def left(folder):
    """Files with the key in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if KEY.encode() in path.read_bytes()]
