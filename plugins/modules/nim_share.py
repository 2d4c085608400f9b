#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights of one cache for one other host, for as long as a copy takes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_share
short_description: Serve staged weights to another host for a while
version_added: 1.0.0
description:
  - Runs an rsync daemon as a transient systemd unit (C(nim-share)) that serves one model cache read-only, as the user that owns it, to
    whoever knows the password. It ends by itself after O(timeout), whatever becomes of the play.
  - What engines compiled for their own GPU is not served.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  idempotent:
    support: none
    details: Each call with V(present) starts the daemon anew, for one more copy.
options:
  state:
    description: Whether the cache is served.
    type: str
    choices: [present, absent]
    default: present
  path:
    description: Directory of the cache. Needed with V(present).
    type: path
  share_key:
    description: What must be staged there; anything else is not served. Needed with V(present).
    type: str
  password:
    description: Password of the user C(nim), good for this one copy. Needed with V(present).
    type: str
  host_dir:
    description: Directory of what the collection remembers on this host.
    type: path
    default: /var/lib/nim
  port:
    description: TCP port to listen on.
    type: int
    default: 8730
  timeout:
    description: Most seconds that the daemon lives.
    type: int
    default: 14400
seealso:
  - module: baremetal.nim.nim_cache
requirements:
  - rsync
"""

EXAMPLES = r"""
- name: Serve the weights of llama
  baremetal.nim.nim_share:
    path: /var/lib/nim/cache/llama
    share_key: "{{ share_key }}"
    password: "{{ password }}"

- name: Serve them no longer
  baremetal.nim.nim_share:
    state: absent
"""

RETURN = r"""
bytes:
  description: Size of what is served, by the record of its download.
  type: int
  returned: with V(present)
"""

import glob
import os
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _command,
    _names,
    _readback,
    _share,
    _staged,
    _staging,
)
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_systemctl_show

RUN_DIR = "/run/nim"
UNIT = "nim-share.service"
#: Seconds that the daemon may take to listen.
START = 15.0
#: Seconds that the file system of the cache may take to say what is staged there.
LOOK_SECONDS = 30


def listening(port: int, seconds: float) -> bool:
    """Whether something listens on the port within SECONDS."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)


def write(path: str, text: str) -> None:
    """Writes a file that only root reads."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)


class Share:
    """The daemon on this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.run = _command.Runner(module.get_bin_path, again=True)
        self.files = {name: os.path.join(RUN_DIR, f"share.{name}") for name in ("conf", "secrets", "lock")}

    def staged(self) -> dict[str, Any]:
        """What this host remembers to have staged in the cache; fails when it is not what is wanted."""
        path, wanted = self.params["path"], self.params["share_key"]
        folder = _staged.folder(self.params["host_dir"])
        notes = (_staged.parse_note(_readback.read(name)) for name in sorted(glob.glob(os.path.join(folder, "*.json"))))
        here = [note for note in notes if note and note["path"] == path]
        staged = next((note for note in here if note.get("share_key") == wanted), None)
        if staged is None:
            held = next((note.get("image") for note in here), None) or "nothing that was staged"
            self.module.fail_json(
                msg=(
                    f"{path} holds {held}, wanted the weights that another host asks for."
                    f" Next: grep -H '' {folder}/*.json"
                )
            )
        try:
            there = _command.apart(lambda: os.path.isdir(path), LOOK_SECONDS)
        except _command.Silence as silence:
            self.module.fail_json(
                msg=f"{path}: {silence}, wanted the weights that were staged there. Next: cat /proc/mounts; dmesg | tail"
            )
        if not there:
            self.module.fail_json(
                msg=f"{path} is not there, wanted the weights that were staged in it. Next: ls -la {path}"
            )
        return staged

    def foreign(self) -> str:
        """Why the unit is none of ours, empty where it is, or is none."""
        argv = ["systemctl", "show", "--property=Id,LoadState,Transient,FragmentPath", UNIT]
        other = _names.foreign_unit(parse_systemctl_show(self.run(*argv)[1]).get(UNIT, {}))
        if not other:
            return ""
        return (
            f"{UNIT} is a unit of this host ({other}) and serves no weights; it was left alone, and nothing is served. Give the service"
            f" that it is of another name. Next: systemctl status {UNIT}"
        )

    def stop(self) -> bool:
        """Stops the daemon and removes what it read; whether there was something."""
        state = self.run("systemctl", "is-active", UNIT)[1].strip()
        code, _out, err = self.run("systemctl", "stop", UNIT, seconds=_command.CHANGE_SECONDS)
        if code and "not loaded" not in err:
            # It has a password of its own, and a last hour.
            self.module.warn(f"{UNIT} goes on until its time is over: {shorten(err)}")
        left = [path for path in self.files.values() if os.path.exists(path)]
        for path in left:
            os.unlink(path)
        return bool(left) or state == "active"

    def start(self) -> None:
        """Starts the daemon and waits until it listens."""
        rsync = self.module.get_bin_path("rsync", required=True)
        stat = os.stat(self.params["path"])
        os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
        write(self.files["secrets"], f"{_share.USER}:{self.params['password']}\n")
        write(
            self.files["conf"],
            _share.daemon_config(
                self.params["path"], stat.st_uid, stat.st_gid, self.files["secrets"], self.files["lock"]
            ),
        )
        argv = [rsync, "--daemon", "--no-detach", f"--config={self.files['conf']}", f"--port={self.params['port']}"]
        command = _staging.transient_unit(UNIT, "baremetal.nim: weights for another host", argv)
        place = command.index("--")
        command[place:place] = ["--collect", f"--property=RuntimeMaxSec={self.params['timeout']}"]
        code, out, err = self.run(*command)
        if code or not listening(self.params["port"], START):
            said = (err or out).strip() or f"nothing listens on port {self.params['port']}"
            self.stop()
            following = "" if " Next: " in said else f" Next: journalctl -u {UNIT} -n 20"
            self.module.fail_json(msg=f"{UNIT} did not start: {said}{following}")


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "path": {"type": "path"},
            "share_key": {"type": "str", "no_log": False},
            "password": {"type": "str", "no_log": True},
            "host_dir": {"type": "path", "default": "/var/lib/nim"},
            "port": {"type": "int", "default": 8730},
            "timeout": {"type": "int", "default": 14400},
        },
        required_if=[("state", "present", ("path", "share_key", "password"))],
        supports_check_mode=True,
    )
    share = Share(module)
    if module.params["state"] == "absent":
        module.exit_json(changed=share.stop() if not (module.check_mode or share.foreign()) else False)
    staged = share.staged()
    if not module.check_mode:
        foreign = share.foreign()
        if foreign:
            module.fail_json(msg=foreign)
        # A killed play may have left one.
        share.stop()
        share.start()
    module.exit_json(changed=True, bytes=int(staged.get("bytes") or 0))


if __name__ == "__main__":
    main()
