# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays without a host of a lab, of one role's tasks or of a playbook: this machine plays them, or nobody does."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
#: This machine is the host; `make matrix` gives its modules another Python.
HERE = {
    "ansible_connection": "local",
    "ansible_python_interpreter": os.environ.get("HOST_PYTHON") or sys.executable,
}
#: A host that no task can reach: whatever needs a remote call fails.
AWAY = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_common_args": "-F /dev/null"}


def surroundings(folder: pathlib.Path, programs: pathlib.Path | None = None) -> dict[str, str]:
    """What Ansible gets of the environment: of whoever runs the tests, only where things lie, and the time zone.

    folder: the home directory, where it also writes. programs: folder that comes first on the PATH.
    """
    kept = {
        key: os.environ[key]
        for key in ("PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "TMPDIR", "TZ")
        if key in os.environ
    }
    return {
        **kept,
        "PATH": f"{programs or folder}{os.pathsep}{kept['PATH']}",
        "HOME": str(folder),
        # Ansible runs in no other.
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_NOCOLOR": "1",
        # As the lab does it.
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/lab/callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "kept_payloads",
        # A socket for each connection would have a path longer than a socket's may be.
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o ControlPath=none",
        "ANSIBLE_LOCAL_TEMP": str(folder / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
    }


def path_without(folder: pathlib.Path, *names: str) -> str:
    """The PATH without some programs, whatever this machine has: what is beside them is linked from a folder below FOLDER."""
    places = []
    for number, place in enumerate(os.environ["PATH"].split(os.pathsep)):
        if any(os.path.lexists(os.path.join(place, name)) for name in names):
            beside = folder / f"path{number}"
            beside.mkdir(parents=True)
            for name in set(os.listdir(place)) - set(names):
                (beside / name).symlink_to(os.path.join(place, name))
            place = str(beside)
        places.append(place)
    return os.pathsep.join(places)


def play_role(
    folder: pathlib.Path,
    role: str,
    variables: Mapping[str, Any],
    *args: str,
    tasks: str = "main",
    programs: pathlib.Path | None = None,
    environment: Mapping[str, str] | None = None,
    play: Mapping[str, Any] | None = None,
) -> tuple[int, str]:
    """Runs tasks of a role on the host gpu01; returns the exit status of ansible-playbook and what it told.

    folder: where everything is written, also the home directory. args: of ansible-playbook. programs: folder that comes first on
    the PATH. environment: what is added to it. play: further keys of the play.
    """
    task = {"name": f"baremetal.nim.{role}", "tasks_from": tasks}
    play = dict(play or {})
    # Plays beside each other on this machine are no two runs on one host.
    leases = {"baremetal.nim.nim_lock": {"path": str(folder / "lock.d")}}
    play["module_defaults"] = {**leases, **play.get("module_defaults", {})}
    # As in our playbooks: the filter loads all of ours here, and not in each process that Ansible forks for a task.
    hosts = "{{ 'all' | baremetal.nim.host_pattern }}"
    book = [{"hosts": hosts, "gather_facts": False, **play, "tasks": [{"ansible.builtin.include_role": task}]}]
    (folder / "play.yml").write_text(json.dumps(book))
    (folder / "vars.json").write_text(json.dumps(dict(variables)))
    collections = next(
        os.path.abspath(path)
        for path in sys.path
        if (pathlib.Path(path) / "ansible_collections/baremetal/nim").is_dir()
    )
    command: Sequence[str] = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        "-i",
        "gpu01,",
        "-e",
        f"@{folder / 'vars.json'}",
    ]
    done = subprocess.run(
        [*command, *args, str(folder / "play.yml")],
        env={
            **surroundings(folder, programs),
            "ANSIBLE_COLLECTIONS_PATH": collections,
            "ANSIBLE_INJECT_FACT_VARS": "false",
            **(environment or {}),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, told_by(done.stdout + done.stderr)


def play_book(
    folder: pathlib.Path,
    book: str,
    hosts: Mapping[str, Mapping[str, Any]],
    *args: str,
    extra: Mapping[str, Any],
    common: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Runs a playbook with the checkout's settings; returns the exit status of ansible-playbook and what it told.

    folder: where the inventory is written, and the current directory. book: path or name. hosts: those of nim_servers, with their
    variables. args: of ansible-playbook. extra: its extra variables. common: variables of all hosts. environment: what is added to it.
    """
    inventory = {"nim_servers": {"hosts": dict(hosts), "vars": dict(common or {})}}
    (folder / "hosts.json").write_text(json.dumps(inventory))
    command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(folder / "hosts.json")]
    done = subprocess.run(
        [*command, "-e", json.dumps(dict(extra)), *args, book],
        env={**surroundings(folder), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **(environment or {})},
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, told_by(done.stdout)


def told_by(output: str) -> str:
    """What a play told; an error if that is something that the next ansible-core will refuse."""
    assert "[DEPRECATION WARNING]" not in output, output
    return output
