#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our keys in daemon.json; everybody else's stay, and so does a Docker that serves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_config
short_description: Merge options into the configuration of the Docker daemon, and have it run with them
version_added: 1.0.0
description:
  - Lays options over what C(daemon.json) holds. Keys that O(options) does not name are kept, dictionaries are merged. What the daemon gets
    by a flag as it is wanted, or has by itself, is not written; Docker does not start with a directive that is in both places.
  - The result is checked by C(dockerd --validate) with the daemon's own flags before it replaces the file, where dockerd is installed.
  - A file that is not JSON is an error, not something to overwrite. One that is a link stays a link.
  - With O(apply) the daemon gets the options. Containers are kept running - live-restore is switched on by a reload before any restart.
    Where that is not possible and containers of others run, nothing is changed unless O(restart_allowed). When Docker does not come back with
    the new file, the old one comes back and Docker with it.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  diff_mode:
    support: full
options:
  options:
    description: Options that the daemon must have.
    type: dict
    required: true
  path:
    description: The configuration file; by default the one that the daemon's flags name, else C(/etc/docker/daemon.json).
    type: path
  apply:
    description:
      - V(none) writes the file. V(reload) also has a running daemon read it, for what follows. V(restart) makes sure that Docker runs with
        it, now and at boot, and starts or restarts it if need be.
    type: str
    choices: [none, reload, restart]
    default: none
  restart_allowed:
    description: Whether running containers of others may end where nothing keeps them during a restart.
    type: bool
    default: false
  timeout:
    description: Seconds that Docker may take to start.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Keep containers running while the daemon restarts, and know GPUs by CDI
  baremetal.nim.docker_daemon_config:
    options:
      live-restore: true
      features: {cdi: true}
    apply: restart
"""

RETURN = r"""
config:
  description: The whole configuration as it is, or would be, after the task.
  type: dict
  returned: always
differs:
  description: Whether something had, or has, to be done. Unlike C(changed), no C(changed_when) of a task says otherwise.
  type: bool
  returned: always
reloaded:
  description: Whether the daemon was told to read its file.
  type: bool
  returned: always
restarted:
  description: Whether the daemon was started or restarted, or would be.
  type: bool
  returned: always
ended:
  description: Containers of others that ran before a restart and ended with it, also those that were started again.
  type: list
  elements: str
  returned: always
"""

import json
import os
import signal
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _command, _daemon, _docker, _foreign, _host
from ansible_collections.baremetal.nim.plugins.module_utils._survey import Survey

#: Where this module looks at the host.
ROOTS = {"proc": "/proc", "etc": "/etc", "run": "/run", "var": "/var"}
#: The file as it was before a change whose Docker has not served yet; it outlives a killed run.
BEFORE = "/var/lib/nim/docker/before.json"
PROPERTIES = (
    f"Id,LoadState,ActiveState,UnitFileState,ActiveEnterTimestamp,ActiveEnterTimestampMonotonic,{_docker.PROPERTIES}"
)
#: Seconds for a reload to be seen.
RELOAD = 10
#: Seconds for a daemon that runs to answer; it may just have been started.
ANSWER = 30


class Daemon:
    """The daemon of this host and its file."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.options: dict[str, Any] = module.params["options"]
        self.runner = _command.Runner(module.get_bin_path, again=True)
        survey = Survey(self.run, ROOTS)
        shown = self.run("systemctl", "show", "--property", PROPERTIES, _docker.UNIT)[1]
        self.units = _host.parse_systemctl_show(shown)
        self.unit = self.units.get(_docker.UNIT, {})
        self.pid = _docker.process(survey, self.units)
        self.argv = _docker.command(survey, self.units, self.pid)
        self.flags = _daemon.flags(self.argv)
        self.texts = _docker.unit_texts(survey, self.units)
        self.path = module.params["path"] or _docker.file_path(self.argv)
        # A link of the operator's stays; what it points to is the file.
        self.real = os.path.realpath(self.path)
        self.runs = _docker.runs_by_unit(self.units)
        self.started = time.time()

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Runs a command with a deadline; 127 when there is no such program."""
        return self.runner(*argv, seconds=self.module.params["timeout"])

    def read(self) -> str | None:
        """Text of the file, None when there is none."""
        try:
            with open(self.real, encoding="utf-8") as handle:
                return handle.read()
        except FileNotFoundError:
            return None

    def info(self) -> dict[str, Any]:
        """What the daemon tells; empty when it does not answer."""
        return _host.parse_docker_info(self.run("docker", "info", "--format", "{{json .}}")[1])

    def strangers(self) -> dict[str, str]:
        """Running containers of others, each with the time when it was started."""
        names = _docker.strangers(self.run("docker", "ps", "--format", _docker.PS_FORMAT)[1])
        told = self.run("docker", "inspect", "--format", "{{.Name}} {{.State.StartedAt}}", *names)[1] if names else ""
        times = dict(line.lstrip("/").split(" ", 1) for line in told.splitlines() if " " in line)
        return {name: times.get(name, "") for name in names}

    def newer(self) -> bool:
        """Whether the file changed after the daemon started."""
        return _docker.newer(self.real, self.unit)

    def eventually(self, check: Any, seconds: float) -> Any:
        """What CHECK returns once that is true, or at the end."""
        deadline = time.monotonic() + seconds
        while True:
            value = check()
            if value or time.monotonic() > deadline:
                return value
            time.sleep(0.25)

    # -- the file ------------------------------------------------------------------------------------------------------

    def refusal(self, text: str) -> str | None:
        """Why dockerd would not start with TEXT as its file and its own flags."""
        if not self.module.get_bin_path("dockerd"):
            return None
        handle, scratch = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        said = _docker.refusal(self.run(*_docker.validation(self.argv, scratch)))
        os.unlink(scratch)
        return said and said.replace(scratch, self.path)

    def write(self, text: str | None) -> None:
        """Puts TEXT in the file's place at once; None removes it."""
        if text is None:
            if os.path.exists(self.real):
                os.unlink(self.real)
            return
        os.makedirs(os.path.dirname(self.real), exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        self.module.atomic_move(scratch, self.real)

    def remember(self, old: str | None, new: str) -> None:
        """Keeps the old file until Docker serves with the new one."""
        os.makedirs(os.path.dirname(BEFORE), mode=0o700, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=os.path.dirname(BEFORE))
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump({"path": self.real, "old": old, "new": new}, out)
        os.replace(scratch, BEFORE)

    def before(self, text: str | None) -> str | None:
        """The last file that Docker served with: TEXT, or what a run replaced that was cut off."""
        try:
            with open(BEFORE, encoding="utf-8") as handle:
                record = json.load(handle)
            return record["old"] if (record["path"], record["new"]) == (self.real, text) else text
        except (OSError, ValueError, KeyError, TypeError):
            return text

    def forget(self) -> None:
        """Docker serves with the file as it is."""
        if os.path.exists(BEFORE):
            os.unlink(BEFORE)

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Has the running daemon read its file."""
        self.started = time.time()
        if self.run("systemctl", "reload", _docker.UNIT)[0] and self.pid:
            # A unit of the operator's may not know how.
            os.kill(self.pid, signal.SIGHUP)

    def told(self, *words: str) -> list[str]:
        """What the unit's journal says since the last start or reload; of that the lines with any of WORDS, where there are some."""
        since = f"--since=@{int(self.started)}"
        log = self.run("journalctl", "--unit", _docker.UNIT, since, "--output=cat", "--no-pager", "--lines=60")[1]
        lines = _foreign.lines(log)
        return [line.strip() for line in lines if any(word in line for word in words)] or [
            line.strip() for line in lines
        ]

    def why(self) -> str:
        """The reason in the unit's journal."""
        told = self.told("failed to start daemon", "unable to configure", "level=fatal", "Error starting")
        return told[-1][-400:].rstrip(".") if told else "its journal tells nothing"

    def why_not_reloaded(self) -> str:
        """What the daemon said of a file that it read anew and did not take, empty where it said nothing."""
        words = ("Error reconfiguring", "unable to configure", "Error reloading")
        told = [line for line in self.told(*words) if any(word in line for word in words)]
        return f": {told[-1][-400:].rstrip('.')}" if told else ""

    def serve(self, verb: str) -> str | None:
        """Starts or restarts the unit; why it does not serve, None when it does."""
        self.started = time.time()
        self.run("systemctl", "reset-failed", _docker.UNIT, _docker.SOCKET)
        code, out, err = self.run("systemctl", verb, _docker.UNIT)
        if code:
            return f"{self.why()} ({' '.join((err or out).split())[:200].rstrip('.')})"
        if self.eventually(self.info, self.module.params["timeout"]):
            return None
        return f"it does not answer within {self.module.params['timeout']} s: {self.why()}"


def refuse(daemon: Daemon, message: str) -> None:
    """Leaves with a message; nothing was changed."""
    daemon.module.fail_json(msg=f"{message} {daemon.path} was not changed.")


def check_flags(daemon: Daemon) -> None:
    """Refuses options that flags give otherwise."""
    for name in _daemon.beside_flags(daemon.options, daemon.flags)[1]:
        where = _daemon.flag_home(name, daemon.texts) or "its command line"
        refuse(
            daemon,
            f"Docker gets {name} by a flag ({where}) that is not {json.dumps(daemon.options[name])}, and does not start with both;"
            " change the flag there, or take the option out.",
        )


def check_file(daemon: Daemon, before: str | None, after: str) -> None:
    """Refuses a file with which Docker would not start."""
    said = daemon.refusal(after)
    if not said:
        return
    already = (
        " It refuses the file as it is, too: correct it, or the flags, by hand."
        if before and daemon.refusal(before)
        else ""
    )
    refuse(daemon, f"dockerd refuses the merged configuration: {said.rstrip('.')}.{already}")


def ask(daemon: Daemon) -> dict[str, Any]:
    """What the daemon tells, nothing where none runs; one that runs must answer, and be its unit's."""
    if not daemon.runs:
        if daemon.pid:
            refuse(
                daemon,
                f"dockerd (pid {daemon.pid}) was not started by docker.service, wanted systemd to run it; stop it first.",
            )
        return {}
    info: dict[str, Any] = daemon.eventually(daemon.info, ANSWER)
    if not info:
        said = daemon.run("docker", "info")[2]
        refuse(
            daemon,
            f"docker.service runs and does not answer ({' '.join(said.split())[-300:]}), wanted an answer to: docker info;",
        )
    return info


def keeps(daemon: Daemon, info: dict[str, Any], changed: list[str]) -> str | None:
    """Why containers would not outlive a restart after the change; None when they would."""
    wanted = daemon.flags.get("live-restore", daemon.options.get("live-restore"))
    if info["swarm"]:
        return "in a swarm"
    if not wanted and not info["live_restore"]:
        return "without live-restore"
    moving = sorted(set(changed) & _daemon.MOVING)
    return f"when {', '.join(moving)} changes" if moving else None


def ask_for_permission(daemon: Daemon, why: str, strangers: dict[str, str]) -> None:
    """Refuses a restart that ends containers of others."""
    refuse(
        daemon,
        f"Docker must restart and cannot keep running containers {why}: {', '.join(strangers)} would end. Stop them yourself, or allow it:"
        " -e container_engine_restart_allowed=true;",
    )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict", "required": True},
            "path": {"type": "path"},
            "apply": {"type": "str", "choices": ["none", "reload", "restart"], "default": "none"},
            "restart_allowed": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    # The daemon and others read what lies above the file.
    os.umask(0o022)
    daemon = Daemon(module)
    apply, options = module.params["apply"], daemon.options
    try:
        text = daemon.read()
        current = _daemon.parse(text or "")
    except ValueError as error:
        module.fail_json(
            msg=f"{daemon.path} is no valid configuration: {error}. Correct it by hand, or move it away; nothing was changed."
        )
    check_flags(daemon)
    info = ask(daemon) if apply != "none" else {}
    newer = daemon.newer()
    config = _daemon.wanted_file(current, options, daemon.flags, {} if newer else info)
    result: dict[str, Any] = {
        "changed": config != current,
        "differs": config != current,
        "config": config,
        "reloaded": False,
        "restarted": False,
        "ended": [],
    }
    after = _daemon.render(config)
    if result["changed"]:
        if module._diff:
            result["diff"] = {"before": text or "", "after": after, "before_header": daemon.path, "after_header": daemon.path}  # fmt: skip
        check_file(daemon, text, after)
    if apply == "none":
        if result["changed"] and not module.check_mode:
            daemon.write(after)
        module.exit_json(**result)
    apply_it(daemon, result, text, after, info, _daemon.changed_keys(current, config), newer)
    module.exit_json(**result)


def apply_it(
    daemon: Daemon,
    result: dict[str, Any],
    text: str | None,
    after: str,
    info: dict[str, Any],
    keys: list[str],
    newer: bool,
) -> None:
    """Makes Docker run with the file; RESULT is filled in."""
    module, options = daemon.module, daemon.options
    if daemon.unit.get("LoadState") == "masked":
        refuse(
            daemon, "docker.service is masked; if Docker may run here: systemctl unmask docker.service docker.socket;"
        )
    if info.get("swarm") and options.get("live-restore") and "live-restore" in keys:
        refuse(
            daemon,
            "this is a node of a Docker swarm, where Docker does not start with live-restore: leave the swarm, or take live-restore"
            " out of container_engine_options;",
        )
    left = _daemon.beside_flags(options, daemon.flags)[0]
    stale = (result["changed"] or newer) and bool(_daemon.outstanding(left, info))
    restart = module.params["apply"] == "restart" and (not info or stale)
    strangers = daemon.strangers() if info and stale and info["containers_running"] else {}
    why = keeps(daemon, info, keys) if strangers else None
    if strangers and why and not module.params["restart_allowed"]:
        ask_for_permission(daemon, why, strangers)
    enable = module.params["apply"] == "restart" and daemon.unit.get("UnitFileState") == "disabled"
    result["changed"] = result["differs"] = result["changed"] or restart or enable
    if module.check_mode:
        result["restarted"] = restart
        return
    old = daemon.before(text)
    if after != (text or "") and keys:
        daemon.remember(old, after)
        daemon.write(after)
    if info and stale and options.get("live-restore") and not info["live_restore"]:
        result["reloaded"] = True
        daemon.reload()
        kept = daemon.eventually(lambda: daemon.info().get("live_restore"), RELOAD)
        if strangers and not kept and not module.params["restart_allowed"]:
            said = daemon.why_not_reloaded()
            daemon.write(text)
            daemon.reload()
            daemon.forget()
            ask_for_permission(daemon, f"as live-restore did not come on{said}", strangers)
        info = daemon.info() or info
        restart = restart and bool(_daemon.outstanding(left, info))
    if enable:
        code, out, err = daemon.run("systemctl", "enable", _docker.UNIT)
        if code:
            module.fail_json(msg=f"docker.service was not enabled: {(err or out).strip()}", **result)
    if restart:
        result["restarted"] = True
        bring_up(daemon, result, old, "restart" if info else "start")
        after_it = daemon.strangers() if strangers else {}
        result["ended"] = sorted(name for name in strangers if strangers[name] != after_it.get(name))
    if restart or not stale:
        daemon.forget()


def bring_up(daemon: Daemon, result: dict[str, Any], old: str | None, verb: str) -> None:
    """Starts Docker; when it does not come, brings back the file that it served with and Docker with it."""
    reason = daemon.serve(verb)
    if reason is None:
        return
    now = daemon.read()
    next_command = f"Next: journalctl -u docker -n 50; dockerd --validate --config-file {daemon.path}"
    if old == now:
        daemon.module.fail_json(
            msg=f"Docker does not start: {reason}. {daemon.path} was not changed. {next_command}", **result
        )
    daemon.write(old)
    again = daemon.serve("start")
    result["changed"] = True
    if again is None:
        daemon.forget()
        told = f"The old {daemon.path} is back and Docker serves with it."
    else:
        told = f"The old {daemon.path} is back, and Docker does not start with it either: {again}."
    daemon.module.fail_json(
        msg=f"Docker does not start with the merged configuration: {reason}. {told} {next_command}", **result
    )


if __name__ == "__main__":
    main()
