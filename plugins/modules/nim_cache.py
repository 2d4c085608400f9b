#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Image and weights of one service, on the host before the service needs them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_cache
short_description: Stage the image and the model weights of a NIM on a host
version_added: 1.0.0
description:
  - Prepares the model cache of one NIM service - directory and owner, a write test as the user of the image, free space -
    then pulls the image and lets the image's own command download the weights.
  - Pull and download run as transient systemd units (C(nim-pull-NAME), C(nim-stage-NAME)). They go on when the connection
    or the play is lost; running the task again attaches to them.
  - A cache that is only read (O(read_only)) is filled by somebody else. It is read through as the user of the image and never written to.
  - A file system may refuse root what it allows that user (NFS with C(root_squash)). Such a cache is used as it is if the directory
    belongs to the user already and the write test passes.
  - The key reaches the download through the standard input of its container. It is in no argument list, no container
    configuration and no unit, and its file, which only root can read, is gone when the download ends.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
options:
  name:
    description: Name of the service.
    type: str
    required: true
  engine:
    description: Container engine that has the image.
    type: str
    choices: [docker, podman]
    default: docker
  image:
    description: Image reference to pull, with a tag or a digest.
    type: str
    required: true
  repository:
    description: Image reference without tag and digest.
    type: str
    required: true
  path:
    description: Directory of the cache on the host.
    type: path
    required: true
  mounts:
    description: Where the image wants the directories of the cache (keys; an empty one is the cache itself).
    type: dict
    default:
      "": /opt/nim/.cache
  read_only:
    description: Whether the cache is one that somebody else filled and that is only read.
    type: bool
    default: false
  marker:
    description:
      - Where the marker is kept that tells what was staged. V(host) is for a cache that is only read or that other hosts use too; it
        is taken by itself where root may not write.
    type: str
    choices: [cache, host]
    default: cache
  host_dir:
    description: Directory of what the collection remembers on this host.
    type: path
    default: /var/lib/nim
  uid:
    description: Numeric user that the image runs as.
    type: int
    default: 1000
  gid:
    description: Numeric group that the image runs as.
    type: int
    default: 1000
  prefetch:
    description: The image's command that downloads the weights. Without one, and without O(prefetch_env), there are none to stage.
    type: list
    elements: str
    default: [download-to-cache]
  prefetch_entrypoint:
    description: Whether that command is run in place of the image's entrypoint, and not by it.
    type: bool
    default: false
  prefetch_env:
    description: Variables that make the image itself download and end, where it has no command for that.
    type: dict
    default: {}
  offline:
    description:
      - Whether image and weights are on the host already, by other means. Nothing is pulled or downloaded then, and what is
        missing is a failure.
    type: bool
    default: false
  seed:
    description:
      - Tarball (in any form that GNU tar reads) or directory on the host with the content of such a cache, from which the weights
        come instead of a download.
    type: path
  source:
    description:
      - Another host that has the weights and serves them (M(baremetal.nim.nim_share)), from which they come instead of a download.
        Each file is compared by its checksum.
    type: dict
    suboptions:
      address:
        description: Name or address of that host.
        type: str
        required: true
      port:
        description: Port of its daemon.
        type: int
        default: 8730
      password:
        description: Password of the daemon. It goes the same way as O(api_key).
        type: str
        required: true
      bytes:
        description: Size of the weights, for the progress; V(0) when unknown.
        type: int
        default: 0
  devices:
    description: CDI names of the GPUs, so that the image chooses the profile that fits them.
    type: list
    elements: str
    default: []
  ulimits:
    description: Resource limits of the container, as C(docker run) and C(podman run) take them.
    type: list
    elements: str
    default: []
  capabilities:
    description: Capabilities that the container keeps; all others are dropped. By default it has those that Docker gives.
    type: list
    elements: str
  env:
    description: Variables of the service. They choose profile and source of the weights.
    type: dict
    default: {}
  secret_env:
    description: Further variables, which are in no argument list, unit or output. Their container has them for all to see who may use the engine.
    type: dict
    default: {}
  contract:
    description: Generation of the image. An image whose label tells another one is refused.
    type: str
    default: ""
  stage_key:
    description:
      - Identity of what is to be staged. Weights staged under the same key are not staged again.
    type: str
    required: true
  share_key:
    description: Identity of what is staged among hosts, by which others may ask for a copy of it.
    type: str
    default: ""
  cache_bytes:
    description: Free bytes that the cache wants before a download; V(0) asks for none.
    type: int
    default: 0
  api_key:
    description:
      - NGC API key. Without one the weights are downloaded without, which public images allow.
    type: str
  timeout:
    description: Most seconds that pull and download may take together.
    type: float
    default: 14400
  progress:
    description: Whether the controller prints what is going on, at most one line per host every 10 seconds.
    type: bool
    default: true
  max_wait:
    description:
      - Most seconds that this call waits before it returns with RV(waiting=true). The action plugin sets it and calls
        the module again until it is done.
    type: float
  resume:
    description:
      - What an earlier slice of the same wait handed over (RV(resume)). Set by the action plugin.
    type: dict
    suboptions:
      elapsed:
        description: Seconds waited so far.
        type: float
        default: 0
      bytes:
        description: Size of the cache when that slice ended.
        type: int
        default: 0
      time:
        description: When that was, in seconds since 1970.
        type: float
        default: 0
      run:
        description: Id of the run that has the host (M(baremetal.nim.nim_lock)); each slice is a sign of life of it.
        type: str
        default: ""
seealso:
  - module: baremetal.nim.chat_completion
notes:
  - Needs a running Docker engine, or Podman, and systemd on the host.
"""

EXAMPLES = r"""
- name: Stage llama
  baremetal.nim.nim_cache:
    name: llama
    image: nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6
    repository: nvcr.io/nim/meta/llama-3.1-8b-instruct
    path: /var/lib/nim/cache/llama
    devices: [nvidia.com/gpu=0]
    stage_key: "{{ 'llama-1.8.6' | hash('sha256') }}"
    api_key: "{{ ngc_api_key }}"
"""

RETURN = r"""
image_id:
  description: Id of the local image.
  type: str
  returned: when the image is present
image_reference:
  description: REPOSITORY@sha256:… of the local image, or its id if it was not pulled from there.
  type: str
  returned: when the image is present
  sample: nvcr.io/nim/meta/llama-3.1-8b-instruct@sha256:1f2e…
bytes:
  description: Size of the cache in bytes, as far as root or, where root may not, the user of the image can read it.
  type: int
  returned: when the weights are staged
waiting:
  description: Whether pull or download still goes on.
  type: bool
  returned: always
phase:
  description: V(directory), V(image), V(weights) or V(done).
  type: str
  returned: always
history:
  description: Phases with what each had done so far (C(detail)).
  type: list
  elements: dict
  returned: always
last_log:
  description: Last line of the pull or download.
  type: str
  returned: always
resume:
  description: What the next slice needs to know.
  type: dict
  returned: while waiting
failure_class:
  description:
    - Class of the failure, such as V(auth), V(image_missing), V(disk_full), V(cache_permission), V(cache_missing), V(no_profile),
      V(wrong_contract), or V(staging_failed) when nothing more is known.
  type: str
  returned: on failure
evidence:
  description: Last lines of the journal of the pull or download.
  type: list
  elements: str
  returned: on failure
next_command:
  description: Command to run next.
  type: str
  returned: on failure
"""

import errno
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _cache,
    _command,
    _evidence,
    _gate,
    _lease,
    _names,
    _share,
    _staging,
)
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES, sentence, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import printable
from ansible_collections.baremetal.nim.plugins.module_utils._host import STAGED_MARKER, image_id, parse_systemctl_show
from ansible_collections.baremetal.nim.plugins.module_utils._unit import classify, parse_journal

#: Why root may not, and what helps.
ROOT_SQUASH = (
    "The file system refuses root, as NFS does with root_squash:"
    " create the directory on the file server, owned by {uid}:{gid}, or export it with no_root_squash."
)
KEY_DIR = "/run/nim"
POLL = 0.25
#: What the times of a file system may lie behind the clock, in seconds.
CLOCK_SLACK = 0.1
#: Seconds that a file system may take to say that a directory is there, and for a walk through all files of a cache.
LOOK_SECONDS, WALK_SECONDS = 30, 900


def key_path(unit: str) -> str:
    """Where the key waits until the unit has opened it."""
    return os.path.join(KEY_DIR, f"{unit}.key")


def env_path(unit: str) -> str:
    """Where variables wait that are secrets, until the unit has read them."""
    return os.path.join(KEY_DIR, f"{unit}.env")


def replace(path: str, text: str) -> None:
    """Writes a file that everybody may read, all of it or nothing."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.umask(0o022)
        os.makedirs(folder, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "w") as out:
        out.write(text)
        os.fchmod(handle, 0o644)
    os.rename(name, path)


class Stage:
    """One service's way from nothing to staged weights; every step looks first and acts only if needed."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        elapsed = (module.params["resume"] or {}).get("elapsed") or 0.0
        now = time.monotonic()
        self.timeout = now + module.params["timeout"] - elapsed
        self.deadline = min(self.timeout, now + (module.params["max_wait"] or float("inf")))
        self.changed = False
        #: Whether this wait begins here: what ended before may be of an earlier play, and long ago.
        self.first = not (module.params["resume"] or {}).get("time")
        self.phase, self.detail, self.last_log = "directory", "", ""
        #: Size of the cache at the end of this slice.
        self.reached = 0
        self.run = _command.Runner(module.get_bin_path, again=True)
        self.engine = f"/usr/bin/{module.params['engine']}"
        self.host_marker = os.path.join(module.params["host_dir"], "staged", f"{module.params['name']}.json")

    def fail(self, text: str, failure_class: str, evidence: list[str] | None = None, command: str = "") -> NoReturn:
        """Leaves with what was seen, the cure and the next command."""
        # Programs and file systems of the host say what images and registries told them.
        text = printable(text)
        cure = CURES.get(failure_class, "Cure the cause, then run the play again.")
        evidence = evidence or []
        tail = "\n".join(f"  {line}" for line in evidence)
        message = f"service {self.params['name']}: {text} {cure}"
        if command:
            message += f" Next: {command}"
        self.module.fail_json(
            msg=message + (f"\n{tail}" if tail else ""),
            failure_class=failure_class,
            evidence=evidence,
            next_command=command,
            **self.result(waiting=False),
        )

    # -- directory -------------------------------------------------------------------------------------------------

    def directories(self) -> list[str]:
        """The cache and those directories in it that the image mounts."""
        path = self.params["path"]
        return [path, *(os.path.join(path, name) for name in sorted(self.params["mounts"]) if name)]

    def directory(self, path: str) -> None:
        """Creates a directory of the cache and gives it to the image's user."""
        uid, gid = self.params["uid"], self.params["gid"]
        try:
            if not os.path.isdir(path):
                self.changed = True
                if self.module.check_mode:
                    return
                # The image's user must get through, whatever root's umask is.
                os.umask(0o022)
                os.makedirs(path, exist_ok=True)
            facts = os.stat(path)
            if (facts.st_uid, facts.st_gid) != (uid, gid):
                before, self.changed = self.changed, True
                if self.module.check_mode:
                    return
                try:
                    os.chown(path, uid, gid)
                except PermissionError:
                    if facts.st_uid != uid or os.getuid():
                        raise
                    # Root is nobody here, and the write test will tell whether the user gets on without that group.
                    self.changed = before
        except OSError as error:
            squashed = error.errno in (errno.EACCES, errno.EPERM) and not os.getuid()
            self.fail(
                f"cache {path} cannot be prepared: {error.strerror}, wanted a directory of {uid}:{gid}."
                + (f" {ROOT_SQUASH.format(uid=uid, gid=gid)}" if squashed else ""),
                "disk_full" if error.errno == 28 else "cache_permission",
                command=f"findmnt -T {path}; ls -ldn {path}",
            )

    def seen(self) -> None:
        """Refuses a cache that does not answer, or that root may not even look at: Docker, which is root, could not mount it."""
        path = self.params["path"]
        try:
            _command.apart(lambda: bool(os.stat(path)), LOOK_SECONDS)
        except _command.Silence as silence:
            with open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
                mount = _command.mount_of(path, mounts.read())
            self.fail(
                f"cache {path} ({mount}): {silence}, wanted a file system that works. See whether its server can be reached.",
                "staging_failed",
                command="cat /proc/mounts; dmesg | tail",
            )
        except PermissionError:
            self.fail(
                f"root may not look at cache {path}, so Docker cannot give it to a container."
                " On NFS with root_squash, the directories above it need mode 0755; on FUSE, mount it with allow_other.",
                "staging_failed",
                command=f"findmnt; namei -l {path}",
            )
        except OSError:
            # Not there yet, or no directory: that is told later.
            pass

    def as_user(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What WORK returns as the image's user; ``errno``, ``error`` and ``path`` of the OSError that it raised.

        A file system may refuse what the mode bits allow (read-only, NFS root squash), and refuse root what it allows others.
        """

        def changed() -> dict[str, Any]:
            os.setgroups([])
            os.setgid(self.params["gid"])
            os.setuid(self.params["uid"])
            return work()

        try:
            report: dict[str, Any] = _command.apart(changed, WALK_SECONDS)
        except _command.Silence as silence:
            report = {"errno": errno.ETIMEDOUT, "error": str(silence), "path": self.params["path"]}
        except OSError as error:
            report = {"errno": error.errno, "error": error.strerror, "path": error.filename}
        return report

    def write_test(self, path: str) -> None:
        """Writes as the image's user."""
        uid = self.params["uid"]

        def write() -> dict[str, Any]:
            handle, name = tempfile.mkstemp(prefix=".write-test-", dir=path)
            os.unlink(name)
            os.write(handle, b"0" * 4096)
            os.fsync(handle)
            return {}

        refusal = self.as_user(write)
        if refusal:
            self.fail(
                f"uid {uid} cannot write to cache {path}: {refusal['error']}.",
                "disk_full" if refusal["errno"] in (28, 122) else "cache_permission",
                command=f"findmnt -T {path}; df -h {path}; ls -ldn {path}",
            )

    def read_test(self) -> int:
        """Reads a cache that somebody else filled as the image's user; returns its bytes."""
        path, uid = self.params["path"], self.params["uid"]
        found = self.as_user(lambda: _cache.look_through(path))
        command = f"findmnt -T {path}; ls -lan {path}"
        if found.get("errno") in (errno.ENOENT, errno.ENOTDIR):
            self.fail(
                f"{found['path']} is not there, wanted the cache that is read. Mount it.",
                "staging_failed",
                command=command,
            )
        if "error" in found:
            self.fail(
                f"uid {uid} cannot read {found['path']} in cache {path}: {found['error']}, wanted to read all of it.",
                "staging_failed",
                command=command,
            )
        if not found["files"]:
            self.fail(
                f"cache {path} is empty, wanted one that somebody else filled.", "staging_failed", command=command
            )
        return int(found["bytes"])

    def free_space(self) -> None:
        """Refuses a download that cannot fit."""
        disk = os.statvfs(self.params["path"])
        free, wanted = disk.f_bavail * disk.f_frsize, self.params["cache_bytes"]
        if wanted and not os.path.exists(os.path.join(self.params["path"], STAGED_MARKER)):
            # What an interrupted download left is a part of this one.
            wanted = max(0, wanted - self.size())
        if free < wanted:
            self.fail(
                f"cache {self.params['path']} has {_staging.amount(free)} free, wanted {_staging.amount(wanted)}.",
                "disk_full",
                command=f"df -h {self.params['path']}",
            )

    # -- transient units ---------------------------------------------------------------------------------------------

    def unit_state(self, unit: str) -> dict[str, str]:
        """Properties of a unit."""
        wanted = (
            "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,ExecMainExitTimestampMonotonic,Description,InvocationID,"
            "Transient,FragmentPath"
        )
        code, out, err = self.run("systemctl", "show", "--property", wanted, unit)
        if code == _command.SILENT:
            # It may well run, and must not be started a second time.
            said, _next, command = err.partition(" Next: ")
            self.fail(f"whether {unit} runs is not known: {said}", "unit_unreadable", command=command)
        return parse_systemctl_show(out).get(unit, {})

    def journal(self, state: dict[str, str], lines: int = 200) -> list[str]:
        """What this run of the unit has printed."""
        match = f"_SYSTEMD_INVOCATION_ID={state.get('InvocationID', '')}"
        out = self.run("journalctl", match, "-n", str(lines), "-o", "cat", "--no-pager")[1]
        return parse_journal(out)

    def forget(self, unit: str) -> None:
        """Stops and unloads a transient unit, however it ended."""
        self.run("systemctl", "stop", unit, seconds=_command.CHANGE_SECONDS)
        self.run("systemctl", "reset-failed", unit)

    def description(self, what: str) -> str:
        """Description of a unit, by which a later run knows it."""
        return f"baremetal.nim: {what} [{self.params['stage_key'][:16]}]"

    def under_way(self, unit: str, what: str) -> bool:
        """Whether an earlier run has started just this."""
        state = self.unit_state(unit)
        return state.get("Description") == self.description(what) and state.get("ActiveState") in (
            "active",
            "activating",
        )

    def ended(self, unit: str, what: str) -> dict[str, str]:
        """State of a unit that ended just this well while nobody looked; empty when there is none.

        What it left may be gone by now, so that is looked at before the unit is believed.
        """
        state = self.unit_state(unit)
        same = state.get("Description") == self.description(what) and state.get("ActiveState") == "active"
        return state if same and state.get("SubState") == "exited" else {}

    def whole(self, state: dict[str, str]) -> bool:
        """Whether the cache is as a unit left it that has ended: there are files, and nothing was changed after its end."""
        path, end = self.params["path"], int(state.get("ExecMainExitTimestampMonotonic") or 0) / 1e6
        if not end or not os.path.isdir(path):
            return False
        found = _cache.newest(path) if os.access(path, os.R_OK | os.X_OK) else self.as_user(lambda: _cache.newest(path))
        # Both clocks now, since one of them may have been set after the unit began.
        moment = time.time() - (time.monotonic() - end)
        return bool(found.get("files")) and float(found["change"]) <= moment + CLOCK_SLACK

    def carry(
        self,
        unit: str,
        what: str,
        argv: list[str],
        key: str | None = None,
        before: list[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> bool:
        """Runs ARGV as a transient unit or attaches to the one that does; True when done, False when out of time.

        BEFORE is a command that clears the way for a new unit and may fail. ENV are variables that are secrets.
        """
        description = self.description(what)
        state = self.unit_state(unit)
        other = _names.foreign_unit(state)
        if other:
            self.fail(
                f"{unit} is a unit of this host ({other}) and none of a staging; it was left alone, and nothing was staged."
                " Give the service that it is of another name.",
                "staging_failed",
                command=f"systemctl status {unit}",
            )
        if state.get("LoadState") == "loaded" and state.get("Description") != description:
            # An earlier play wanted something else.
            self.forget(unit)
            state = {}
        if state.get("ActiveState") == "failed":
            self.forget(unit)
            state = {}
        if state.get("ActiveState") not in ("active", "activating"):
            if before:
                self.run(*before, seconds=_command.CHANGE_SECONDS)
            try:
                key_file = self.hide(key_path(unit), key + "\n") if key else None
                env_file = self.hide(env_path(unit), _staging.environment_file(env)) if env else None
                code, out, err = self.run(*_staging.transient_unit(unit, description, argv, key_file, env_file))
            finally:
                # The unit has the file open by now, or will never read it.
                self.drop_key(unit)
            if code:
                self.fail(
                    f"systemd-run did not start {unit}: {(err or out).strip()}.",
                    "unit_unreadable",
                    command=f"systemctl status {unit}",
                )
        else:
            # A play that was killed just after it started the unit may have left the file.
            self.drop_key(unit)
        self.changed = True
        while True:
            state = self.unit_state(unit)
            if state.get("ActiveState") == "failed" or state.get("SubState") == "exited":
                break
            if time.monotonic() > self.timeout:
                self.fail(
                    f"{what} is not done after {self.params['timeout']:.0f} s and goes on; run the play again to wait for it.",
                    "staging_failed",
                    self.journal(state, 5),
                    f"journalctl -fu {unit}",
                )
            if time.monotonic() > self.deadline:
                return False
            time.sleep(POLL)
        lines = self.journal(state)
        self.forget(unit)
        if state.get("ActiveState") == "failed":
            story = _evidence.read(lines)
            known = classify(story.own) or classify(story.words)
            failure_class = known[0] if known else "staging_failed"
            culprit = known[1] if known else story.culprit or _staging.last_line(story.words)
            self.fail(
                f"{what} failed (exit status {state.get('ExecMainStatus')}): {sentence(shorten(culprit, 500))}",
                failure_class,
                story.evidence(20, known[1] if known else ""),
                f"journalctl _SYSTEMD_INVOCATION_ID={state.get('InvocationID')}",
            )
        return True

    def hide(self, path: str, text: str) -> str:
        """Writes a secret where only root reads it, in memory."""
        os.makedirs(KEY_DIR, mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(text)
        return path

    def drop_key(self, unit: str) -> None:
        """Removes the files of the key and of other secrets, if there are any."""
        for path in (key_path(unit), env_path(unit)):
            if os.path.exists(path):
                os.unlink(path)

    # -- image and weights ---------------------------------------------------------------------------------------------

    def inspect(self) -> dict[str, Any] | None:
        """The local image."""
        code, out, err = self.run(self.engine, "image", "inspect", self.params["image"])
        if code and not re.search("no such image|image not known", err, re.IGNORECASE):
            engine = self.params["engine"]
            command = {"docker": "systemctl status docker", "podman": "podman info"}[engine]
            self.fail(f"{engine} does not answer: {err.strip()}.", "unit_stopped", command=command)
        return None if code else {**(found := json.loads(out)[0]), "Id": image_id(found["Id"])}

    def size(self) -> int:
        """Bytes in the cache."""
        if not os.access(self.params["path"], os.R_OK | os.X_OK):
            return int(self.as_user(lambda: _cache.look_through(self.params["path"])).get("bytes", 0))
        _code, out, _err = self.run("du", "-sb", self.params["path"])
        first = out.split(maxsplit=1)[:1]
        return int(first[0]) if first and first[0].isdigit() else 0

    def tells(self, marker: str, image: dict[str, Any] | None) -> bool:
        """Whether a marker is of this key, and of IMAGE: a tag may have moved to another one."""
        # The image's user may lay anything there: a pipe would never end.
        if not os.path.isfile(marker):
            return False
        try:
            with open(marker, encoding="utf-8") as handle:
                found = json.load(handle)
            if _cache.emptied(self.params["path"], found):
                return False
            same = image is None or found.get("image_reference") in [image["Id"], *(image.get("RepoDigests") or [])]
            return bool(same and found.get("key") == self.params["stage_key"])
        except (OSError, ValueError, AttributeError):
            return False

    def staged(self, image: dict[str, Any] | None = None) -> bool:
        """Whether the weights of this key are complete."""
        here = os.path.join(self.params["path"], STAGED_MARKER)
        return self.tells(self.host_marker, image) or self.tells(here, image)

    def forget_elsewhere(self, image: dict[str, Any]) -> None:
        """Removes the marker of another cache that the service had; it would hide the one in this cache."""
        if os.path.exists(self.host_marker) and not self.tells(self.host_marker, image):
            self.changed = True
            os.unlink(self.host_marker)

    def write_marker(self, image: dict[str, Any], size: int) -> None:
        """Writes the marker without following a link that the image's user may have laid there."""
        reference = _staging.image_reference(image, self.params["repository"])
        what = self.params, reference, size, time.time()
        if self.params["marker"] == "cache" and not self.params["read_only"]:
            try:
                replace(os.path.join(self.params["path"], STAGED_MARKER), _staging.marker(*what))
                return
            except PermissionError:
                # Root is nobody there.
                pass
        replace(self.host_marker, _staging.marker(*what, elsewhere=True))

    def remember(self) -> None:
        """Notes the repository: images from there are this collection's, also when no service is left that says so."""
        path = os.path.join(self.params["host_dir"], "repositories")
        try:
            with open(path, encoding="utf-8") as handle:
                known = handle.read().split()
        except FileNotFoundError:
            known = []
        if self.params["repository"] not in known:
            replace(path, "".join(f"{name}\n" for name in sorted([*known, self.params["repository"]])))

    def result(self, waiting: bool, image: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return values."""
        result: dict[str, Any] = {
            "changed": self.changed,
            "waiting": waiting,
            "phase": self.phase,
            "history": [{"phase": self.phase, "detail": self.detail}],
            "last_log": self.last_log,
        }
        if waiting:
            result["resume"] = {"elapsed": 0.0, "bytes": self.reached, "time": time.monotonic()}
        if image:
            result["image_id"] = image["Id"]
            result["image_reference"] = _staging.image_reference(image, self.params["repository"])
        return result

    def staging_unit(self) -> str:
        """The unit that brings the weights."""
        return f"nim-stage-{self.params['name']}.service"

    def pulling_unit(self) -> str:
        """The unit that pulls the image."""
        return f"nim-pull-{self.params['name']}.service"

    def pulling(self) -> str:
        """What it does, in words."""
        return f"pull of {self.params['image']}"

    def staging(self) -> str:
        """How the weights come, in words."""
        name, source = self.params["name"], self.params["source"]
        if source:
            return f"copy of the weights of {name} from {source['address']}"
        return f"copy of the weights of {name}" if self.params["seed"] else f"download of the weights of {name}"

    def progress(self) -> str:
        """How much is there, how fast it grows and when it is done, as far as that is known."""
        before = self.params["resume"] or {}
        self.reached = self.size()
        # Of one boot; after another one there is no rate for a slice.
        since = time.monotonic() - before["time"] if before.get("time") else 0.0
        rate = (self.reached - before["bytes"]) / since if since > 0 else 0.0
        return _staging.progress(self.reached, (self.params["source"] or {}).get("bytes") or 0, rate)

    def pulled(self) -> bool:
        """Pulls the image; False when out of time."""
        if self.params["offline"]:
            self.fail(
                f"{self.params['image']} is not on the host, and the service is offline.",
                "image_missing",
                command=f"{self.params['engine']} load --input ARCHIVE",
            )
        unit, what = self.pulling_unit(), self.pulling()
        argv = _staging.pull_command(self.engine, self.params["image"])
        if self.first and self.ended(unit, what) and self.inspect() is None:
            # An earlier play had it pulled, and it has been removed since.
            self.forget(unit)
        done = self.carry(unit, what, argv)
        if not done:
            self.detail = _staging.pull_progress(self.journal(self.unit_state(unit), 2000))
        return done

    def fetched(self, image: dict[str, Any]) -> bool:
        """Brings the weights from where the options say; False when out of time."""
        seed, key = self.params["seed"], self.params["api_key"]
        if seed:
            if not os.path.exists(seed):
                self.fail(
                    f"cache_seed {seed} does not exist, wanted a tarball or a directory with the content of a cache.",
                    "cache_missing",
                    command=f"ls -l {os.path.dirname(seed)}",
                )
            argv = _staging.seed_command(
                seed, self.params["path"], self.params["uid"], self.params["gid"], os.path.isdir(seed)
            )
            return self.carry(self.staging_unit(), self.staging(), argv)
        source = self.params["source"]
        if source:
            if not _gate.is_host(source["address"]):
                self.fail(
                    f"the weights are at {_gate.shown(source['address'])}, wanted a name or an address (model_cache_address).",
                    "staging_failed",
                )
            argv = _share.copy_command(
                source["address"], source["port"], self.params["path"], self.params["uid"], self.params["gid"]
            )
            return self.carry(self.staging_unit(), self.staging(), argv, source["password"])
        if self.params["offline"]:
            if not any(set(files) - {STAGED_MARKER} for _path, _directories, files in os.walk(self.params["path"])):
                self.fail(
                    f"cache {self.params['path']} is empty, and the service is offline.",
                    "cache_missing",
                    command=f"ls -la {self.params['path']}",
                )
            return True
        if not self.params["prefetch"] and not self.params["prefetch_env"]:
            return True
        wrong = _gate.key_problem("the key", key) if key else ""
        if wrong:
            self.fail(wrong, "auth")
        before = [self.engine, "rm", "--force", f"nim-stage-{self.params['name']}"]
        argv = _staging.stage_command(self.engine, self.params, image, bool(key))
        return self.carry(self.staging_unit(), self.staging(), argv, key, before, self.params["secret_env"])

    def main(self) -> dict[str, Any]:
        """The whole way, or as far as the time allows."""
        _lease.Leases().renew((self.params["resume"] or {}).get("run") or "")
        self.engine = self.module.get_bin_path(self.params["engine"]) or self.engine
        read_only = self.params["read_only"]
        self.seen()
        for path in [] if read_only else self.directories():
            self.directory(path)
            if self.changed and self.module.check_mode:
                break
        if self.module.check_mode:
            return {**self.result(waiting=False), "changed": self.changed or not self.staged()}
        stage, weights = self.staging_unit(), self.staging()
        size = self.read_test() if read_only else 0
        if self.first and not read_only and not self.staged():
            left = self.ended(stage, weights)
            if left and not self.whole(left):
                self.forget(stage)
        if not read_only and not self.staged() and not self.under_way(stage, weights):
            for path in self.directories():
                self.write_test(path)
            self.free_space()
        self.phase = "image"
        image = self.inspect()
        if image is None:
            if not self.pulled():
                return self.result(waiting=True)
            image = self.inspect()
            if image is None:
                self.fail(
                    f"{self.params['image']} is not there after its pull.",
                    "image_missing",
                    command=f"{self.params['engine']} pull {self.params['image']}",
                )
        elif not self.first and self.ended(self.pulling_unit(), self.pulling()):
            # It ended between two slices of this wait; nobody would look at it any more.
            self.forget(self.pulling_unit())
        problem = _staging.contract_problem(self.params["contract"], image)
        if problem:
            self.fail(
                problem, "wrong_contract", command=f"{self.params['engine']} image inspect {self.params['image']}"
            )
        self.phase = "weights"
        self.forget_elsewhere(image)
        if read_only and not self.staged(image):
            self.changed = True
            self.write_marker(image, size)
        elif not self.staged(image):
            if not self.fetched(image):
                self.detail = self.progress()
                self.last_log = _staging.last_line(self.journal(self.unit_state(stage), 5))
                return self.result(waiting=True, image=image)
            self.write_marker(image, self.size())
            self.changed = True
        self.remember()
        self.phase = "done"
        return {**self.result(waiting=False, image=image), "bytes": size or self.size()}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "image": {"type": "str", "required": True},
            "repository": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "mounts": {"type": "dict", "default": {"": "/opt/nim/.cache"}},
            "read_only": {"type": "bool", "default": False},
            "marker": {"type": "str", "choices": ["cache", "host"], "default": "cache"},
            "host_dir": {"type": "path", "default": "/var/lib/nim"},
            "uid": {"type": "int", "default": 1000},
            "gid": {"type": "int", "default": 1000},
            "prefetch": {"type": "list", "elements": "str", "default": ["download-to-cache"]},
            "prefetch_entrypoint": {"type": "bool", "default": False},
            "prefetch_env": {"type": "dict", "default": {}},
            "offline": {"type": "bool", "default": False},
            "seed": {"type": "path"},
            "source": {
                "type": "dict",
                "options": {
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 8730},
                    "password": {"type": "str", "required": True, "no_log": True},
                    "bytes": {"type": "int", "default": 0},
                },
            },
            "devices": {"type": "list", "elements": "str", "default": []},
            "ulimits": {"type": "list", "elements": "str", "default": []},
            "capabilities": {"type": "list", "elements": "str"},
            "env": {"type": "dict", "default": {}},
            "secret_env": {"type": "dict", "default": {}, "no_log": True},
            "contract": {"type": "str", "default": ""},
            "stage_key": {"type": "str", "required": True, "no_log": False},
            "share_key": {"type": "str", "default": "", "no_log": False},
            "cache_bytes": {"type": "int", "default": 0},
            "api_key": {"type": "str", "no_log": True},
            "timeout": {"type": "float", "default": 14400},
            "progress": {"type": "bool", "default": True},
            "max_wait": {"type": "float"},
            "resume": {
                "type": "dict",
                "options": {
                    "elapsed": {"type": "float", "default": 0.0},
                    "bytes": {"type": "int", "default": 0},
                    "time": {"type": "float", "default": 0.0},
                    "run": {"type": "str", "default": ""},
                },
            },
        },
        supports_check_mode=True,
    )
    module.exit_json(**Stage(module).main())


if __name__ == "__main__":
    main()
