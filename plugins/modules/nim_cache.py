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
  - baremetal.nim._attributes.sliced
  - baremetal.nim._attributes
options:
  name:
    description: Name of the service.
    type: str
    required: true
  state:
    description:
      - V(absent) stops a pull or download that is under way, lets systemd forget those that have ended and, with O(remove),
        removes the cache and what the host remembers of it.
    type: str
    choices: [present, absent]
    default: present
  remove:
    description: Whether V(absent) removes the cache.
    type: bool
    default: false
  engine:
    description: Container engine that has the image.
    type: str
    choices: [docker, podman]
    default: docker
  image:
    description: Image reference to pull, with a tag or a digest. Needed with V(present).
    type: str
  repository:
    description: Image reference without tag and digest. Needed with V(present).
    type: str
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
      - Identity of what is to be staged. Weights staged under the same key are not staged again. Needed with V(present).
    type: str
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
      fetched:
        description: Whether the weights have come.
        type: bool
        default: false
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
  description: V(directory), V(image), V(weights), V(sums) or V(done).
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
import functools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _cache,
    _command,
    _gate,
    _lease,
    _names,
    _readback,
    _share,
    _staged,
    _staging,
    _transient,
    _tree,
    _weights,
)
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import printable
from ansible_collections.baremetal.nim.plugins.module_utils._host import image_id

#: Why root may not, and what helps.
ROOT_SQUASH = (
    "The file system refuses root, as NFS does with root_squash:"
    " create the directory on the file server, owned by {uid}:{gid}, or export it with no_root_squash."
)
#: What the times of a file system may lie behind the clock, in seconds.
CLOCK_SLACK = 0.1
#: Seconds that a file system may take to say that a directory is there, for a walk through all files of a cache, and for the sum of
#: one file: a terabyte from a slow disk.
LOOK_SECONDS, WALK_SECONDS, FILE_SECONDS = 30, 900, 14400
#: Seconds of sums after which those that are made are kept.
SUM_SECONDS = 30


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


class Stage(_transient.TransientUnits):
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
        where = module.params["host_dir"], module.params["name"]
        self.note_path, self.list_path, self.part_path = (
            make(*where) for make in (_staged.note_path, _staged.list_path, _staged.part_path)
        )
        #: What the host remembers, once that was read.
        self.note: dict[str, Any] | None = None
        #: Whether the weights have come, in this slice or an earlier one, and their bytes once they are listed.
        self.here = bool((module.params["resume"] or {}).get("fetched"))
        self.size_of_weights = 0

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

    def directory(self, name: str) -> None:
        """Creates a directory of the cache (NAME; empty for the cache itself) and gives it to the image's user."""
        path, uid, gid = self.params["path"], self.params["uid"], self.params["gid"]
        if not os.path.lexists(path):
            self.changed = True
            if self.module.check_mode:
                return
            # The image's user must get through, whatever root's umask is.
            os.umask(0o022)
            os.makedirs(path, exist_ok=True)
        with _tree.opened(path) as root:
            with _tree.below(root, path, name) as there:
                facts = os.fstat(there) if there is not None else None
            if facts and (facts.st_uid, facts.st_gid) == (uid, gid):
                return
            before, self.changed = self.changed, True
            if self.module.check_mode:
                return
            os.umask(0o022)
            with _tree.made(root, path, name) as there:
                facts = os.fstat(there)
                try:
                    os.fchown(there, uid, gid)
                except PermissionError:
                    if facts.st_uid != uid or os.getuid():
                        raise
                    # Root is nobody here, and the write test will tell whether the user gets on without that group.
                    self.changed = before

    def directories(self) -> None:
        """Prepares the cache and those directories in it that the image mounts."""
        path, uid, gid = self.params["path"], self.params["uid"], self.params["gid"]
        try:
            for name in ("", *sorted(filter(None, self.params["mounts"]))):
                self.directory(name)
                if self.changed and self.module.check_mode:
                    return
        except _tree.Planted as planted:
            self.fail(
                f"{planted}, wanted a directory of {uid}:{gid}. Whatever runs as uid {uid} may have laid it there, so it was not followed."
                " Look who did, then remove it.",
                "cache_permission",
                command=f"ls -lan {path}",
            )
        except OSError as error:
            squashed = error.errno in (errno.EACCES, errno.EPERM) and not os.getuid()
            self.fail(
                f"cache {path} cannot be prepared: {error.strerror}, wanted a directory of {uid}:{gid}."
                + (f" {ROOT_SQUASH.format(uid=uid, gid=gid)}" if squashed else ""),
                "disk_full" if error.errno == errno.ENOSPC else "cache_permission",
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

    def as_user(self, work: Callable[[], dict[str, Any]], seconds: float = WALK_SECONDS) -> dict[str, Any]:
        """What WORK returns as the image's user; ``errno``, ``error`` and ``path`` of the OSError that it raised.

        A file system may refuse what the mode bits allow (read-only, NFS root squash), and refuse root what it allows others.
        """

        try:
            report: dict[str, Any] = _command.as_user(self.params["uid"], self.params["gid"], work, seconds)
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
        noted = _staged.parse_note(_readback.read(self.note_path))
        if wanted and not (noted and noted["path"] == self.params["path"]):
            # What an interrupted download left is a part of this one.
            wanted = max(0, wanted - self.size())
        if free < wanted:
            self.fail(
                f"cache {self.params['path']} has {_staging.amount(free)} free, wanted {_staging.amount(wanted)}.",
                "disk_full",
                command=f"df -h {self.params['path']}",
            )

    def whole(self, state: dict[str, str]) -> bool:
        """Whether the cache is as a unit left it that has ended: there are files, and nothing was changed after its end."""
        path, end = self.params["path"], int(state.get("ExecMainExitTimestampMonotonic") or 0) / 1e6
        if not end or not os.path.isdir(path):
            return False
        found = _cache.newest(path) if os.access(path, os.R_OK | os.X_OK) else self.as_user(lambda: _cache.newest(path))
        # Both clocks now, since one of them may have been set after the unit began.
        moment = time.time() - (time.monotonic() - end)
        return bool(found.get("files")) and float(found["change"]) <= moment + CLOCK_SLACK

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

    def known(self) -> dict[str, Any] | None:
        """What this host remembers of the weights of the service, where that is still true; what lies in the cache decides nothing."""
        known = _staged.parse_note(_readback.read(self.note_path))
        path = self.params["path"]
        if not known or known["key"] != self.params["stage_key"]:
            return None
        said = _staged.parse_marker(_readback.read(os.path.join(path, _staged.MARKER)))
        listed = self.listed()
        if (
            _staged.doubt(known, said, path)
            or listed is None
            or self.as_user(lambda: {"": _weights.damage(path, listed)}).get("")
        ):
            return None
        return known

    def listed(self, path: str = "") -> dict[str, _weights.Entry] | None:
        """The files that are remembered, or those of a list at PATH."""
        return _weights.parse_list(_readback.read(path or self.list_path, _staged.LIST_LIMIT))

    def staged(self, image: dict[str, Any] | None = None) -> bool:
        """Whether the weights of this key are complete, and of IMAGE: a tag may have moved to another one."""
        if not self.note:
            return False
        return image is None or self.note["image_reference"] in [image["Id"], *(image.get("RepoDigests") or [])]

    # -- the list of files ---------------------------------------------------------------------------------------------

    def sums(self) -> dict[str, _weights.Entry] | None:
        """The files of the cache with their sums; None when out of time. What was summed is kept, so a play that is cut off loses one file."""
        path, part = self.params["path"], self.part_path
        # A cache that somebody else filled may be as large as his disk, and everybody who reads it would sum it all.
        wanted = not self.params["read_only"]
        known = {**(self.listed() or {}), **(self.listed(part) or {})}
        while True:
            until = min(time.monotonic() + SUM_SECONDS, self.deadline)
            report = self.as_user(functools.partial(_weights.take, path, known, until, wanted), FILE_SECONDS)
            if "error" in report:
                self.fail(
                    f"uid {self.params['uid']} cannot read {report['path']} in cache {path}: {report['error']}, wanted to list all of it.",
                    "cache_permission",
                    command=f"ls -lan {path}",
                )
            known = _weights.taken(report)
            if report["strange"] and self.params["seed"]:
                self.fail(
                    f"cache_seed {self.params['seed']} has brought what is no weights: {'; '.join(report['strange'])}; wanted files,"
                    " directories and links.",
                    "cache_missing",
                    command=f"ls -lanR {path} | grep -v '^[-dl]'",
                )
            if not report["left"]:
                return known
            self.detail = (
                f"{_staging.amount(report['bytes'] - report['left'])} of {_staging.amount(report['bytes'])} summed"
            )
            replace(part, _weights.list_text(known))
            if time.monotonic() > self.timeout:
                self.fail(
                    f"the sums of the weights are not made after {self.params['timeout']:.0f} s; run the play again to go on.",
                    "staging_failed",
                    command=f"du -sh {path}",
                )
            if time.monotonic() > self.deadline:
                return None

    def compared(self, found: dict[str, _weights.Entry]) -> None:
        """Refuses weights that were copied and are not all that they were where they were staged, by the list that came with them."""
        brought = self.params["seed"] or self.params["source"] or self.params["offline"]
        path = self.params["path"]
        if not brought or self.params["read_only"]:
            return
        listed = self.listed(os.path.join(path, _staged.LIST))
        if listed is None:
            if self.params["seed"]:
                self.module.warn(
                    f"service {self.params['name']}: cache_seed {self.params['seed']} has no list of its files ({_staged.LIST}), so nobody"
                    " can tell whether it is whole. Caches that are staged from now on have one."
                )
            return
        problems = _weights.differences(listed, found)
        if problems:
            where = {"seed": f"cache_seed {self.params['seed']}", "source": "the other host"}
            origin = next((words for key, words in where.items() if self.params[key]), f"cache {path}")
            self.fail(
                f"the weights from {origin} are not whole: {_weights.listing(problems)}."
                " Copy them again, or remove the list if they were changed on purpose.",
                "cache_missing",
                command=f"ls -la {path}/{_staged.LIST}",
            )

    def write_down(self, image: dict[str, Any], files: dict[str, _weights.Entry]) -> int:
        """Says in the cache that it is complete, where root may, then remembers it; returns the bytes of the weights."""
        size, now = sum(entry.size for entry in files.values()), time.time()
        text, marked = _weights.list_text(files), False
        if self.params["marker"] == "cache" and not self.params["read_only"]:
            says = _staged.marker(self.params, size, len(files), now)
            try:
                with _tree.opened(self.params["path"]) as root:
                    _tree.write_file(root, _staged.LIST, text.encode())
                    _tree.write_file(root, _staged.MARKER, says.encode())
                marked = True
            except (OSError, _tree.Planted):
                # Root is nobody there, or the image's user has laid a directory in its place. The note knows.
                marked = False
        replace(self.list_path, text)
        reference = _staging.image_reference(image, self.params["repository"])
        replace(self.note_path, _staged.note(self.params, reference, size, len(files), now, marked))
        if os.path.exists(self.part_path):
            os.unlink(self.part_path)
        return size

    def some(self, files: dict[str, _weights.Entry]) -> None:
        """Refuses to call a cache staged that has no files, where something was to come."""
        if files or not (self.params["prefetch"] or self.params["prefetch_env"]):
            return
        self.fail(
            f"{self.staging()} ended well, and there is no file in {self.params['path']}. If the image brings its weights with it, say"
            " prefetch: [].",
            "cache_missing",
            command=f"ls -laR {self.params['path']}",
        )

    def say_nothing(self) -> None:
        """Takes the marker and the list out of a cache that is about to be filled from elsewhere: what comes may be half of it."""
        try:
            with _tree.opened(self.params["path"]) as root:
                for name in (_staged.MARKER, _staged.LIST):
                    _tree.remove_file(root, name)
        except (OSError, _tree.Planted):
            # Of a cache that root may not write, or that is none, the note tells.
            pass

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
            result["resume"] = {"elapsed": 0.0, "bytes": self.reached, "time": time.monotonic(), "fetched": self.here}
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

    def unpacker(self, seed: str) -> list[str]:
        """The command that unpacks a seed, empty for a directory."""
        if os.path.isdir(seed):
            return []
        with open(seed, "rb") as handle:
            argv = _staging.unpacker(handle.read(16))
        if not self.module.get_bin_path(argv[0]):
            self.fail(
                f"{argv[0]} is not installed, wanted it to unpack cache_seed {seed}. Install it.",
                "cache_missing",
                command=f"file {seed}",
            )
        return argv

    def make_way(self) -> None:
        """Takes the marker out of a cache that is about to be filled from elsewhere, unless that is under way."""
        state = self.unit_state(self.staging_unit())
        if state.get("Description") != self.description(self.staging()) or state.get("ActiveState") not in (
            "active",
            "activating",
        ):
            self.say_nothing()

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
            self.make_way()
            argv = _staging.seed_command(
                seed, self.params["path"], self.params["uid"], self.params["gid"], self.unpacker(seed)
            )
            return self.carry(self.staging_unit(), self.staging(), argv)
        source = self.params["source"]
        if source:
            if not _gate.is_host(source["address"]):
                self.fail(
                    f"the weights are at {_gate.shown(source['address'])}, wanted a name or an address (model_cache_address).",
                    "staging_failed",
                )
            self.make_way()
            argv = _share.copy_command(
                source["address"], source["port"], self.params["path"], self.params["uid"], self.params["gid"]
            )
            return self.carry(self.staging_unit(), self.staging(), argv, source["password"])
        if self.params["offline"]:
            if not any(set(files) - set(_weights.OURS) for _path, _directories, files in os.walk(self.params["path"])):
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

    def end(self) -> dict[str, Any]:
        """Forgets the stagings of the service and, where that is asked for, what they brought."""
        for unit in (self.pulling_unit(), self.staging_unit()):
            state = self.unit_state(unit)
            if state.get("LoadState") != "loaded" or _names.foreign_unit(state):
                continue
            self.changed = True
            if not self.module.check_mode:
                self.forget(unit)
        if self.params["remove"]:
            # The note first: what is left of a removal that is cut off must not pass for whole.
            for path in (self.note_path, self.list_path, self.part_path):
                self.remove(path, os.unlink)
            self.remove(self.params["path"], self.remove_tree)
        self.phase = "done"
        return self.result(waiting=False)

    def remove(self, path: str, how: Callable[[str], None]) -> None:
        """Removes what is there."""
        if not os.path.lexists(path):
            return
        self.changed = True
        if self.module.check_mode:
            return
        try:
            how(path)
        except OSError as error:
            self.fail(
                f"{error.filename or path}: {error.strerror}, wanted to remove it.",
                "staging_failed",
                command=f"findmnt -T {path}; ls -ld {path}",
            )

    @staticmethod
    def remove_tree(path: str) -> None:
        """Removes a cache, links in it unfollowed; of one that is a link itself, the link."""
        if os.path.islink(path):
            os.unlink(path)
        else:
            shutil.rmtree(path)

    def main(self) -> dict[str, Any]:
        """The whole way, or as far as the time allows."""
        _lease.Leases().renew((self.params["resume"] or {}).get("run") or "")
        self.engine = self.module.get_bin_path(self.params["engine"]) or self.engine
        read_only = self.params["read_only"]
        self.seen()
        self.note = self.known()
        if not read_only:
            self.directories()
        if self.module.check_mode:
            return {**self.result(waiting=False), "changed": self.changed or not self.staged()}
        stage, weights = self.staging_unit(), self.staging()
        if read_only:
            self.read_test()
        if self.first and not read_only and not self.staged():
            left = self.ended(stage, weights)
            if left and not self.whole(left):
                self.forget(stage)
        if not read_only and not self.staged() and not self.under_way(stage, weights):
            for name in ("", *sorted(filter(None, self.params["mounts"]))):
                self.write_test(os.path.join(self.params["path"], name).rstrip("/"))
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
        if not self.staged(image):
            if not read_only and not self.here and not self.fetched(image):
                self.detail = self.progress()
                self.last_log = _staging.last_line(self.journal(self.unit_state(stage), 5))
                return self.result(waiting=True, image=image)
            self.here = True
            self.phase = "sums"
            files = self.sums()
            if files is None:
                return self.result(waiting=True, image=image)
            self.compared(files)
            self.some(files)
            self.size_of_weights = self.write_down(image, files)
            self.changed = True
        self.remember()
        self.phase = "done"
        return {
            **self.result(waiting=False, image=image),
            "bytes": (self.note or {}).get("bytes", self.size_of_weights),
        }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "remove": {"type": "bool", "default": False},
            "image": {"type": "str"},
            "repository": {"type": "str"},
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
            "stage_key": {"type": "str", "no_log": False},
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
                    "fetched": {"type": "bool", "default": False},
                    "run": {"type": "str", "default": ""},
                },
            },
        },
        required_if=[("state", "present", ("image", "repository", "stage_key"))],
        supports_check_mode=True,
    )
    stage = Stage(module)
    module.exit_json(**(stage.main() if module.params["state"] == "present" else stage.end()))


if __name__ == "__main__":
    main()
