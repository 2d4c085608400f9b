#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Caches and images that no service uses make room."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_prune
short_description: Remove model caches and images that no NIM service of a host uses
version_added: 1.0.0
description:
  - Removes what is proven unused and nothing else. A cache is used by a service that is wanted, that has a record, a unit, a
    container or a kept copy, or that is being staged; and by every container and unit that it is given to.
  - Directories without the marker of staged weights are named and left alone, as are links, mount points and caches on a
    file system that other hosts may share. What is inside a cache that is used is not looked at.
  - Images are those of repositories that this collection has deployed from. One is used if a wanted service, a record, a kept copy, a
    unit or any container refers to it. They go by their references, never by force.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  diff_mode:
    details: RV(removed) and RV(kept) tell it, in check mode too.
options:
  services:
    description: Names of the services that are wanted.
    type: list
    elements: str
    required: true
  caches:
    description: Directories of their caches.
    type: list
    elements: path
    default: []
  images:
    description: Their images, with tag or digest.
    type: list
    elements: str
    default: []
  cache_root:
    description:
      - Directory that holds one cache per service. One that holds more than caches, such as C(/var), or is a symbolic link, is refused.
    type: path
    default: /var/lib/nim/cache
  unknown:
    description: Whether directories without the marker of staged weights go too, if no service uses them.
    type: bool
    default: false
  host_dir:
    description: Directory of what the collection remembers on this host.
    type: path
    default: /var/lib/nim
  unit_dir:
    description: Directory of the units that run services by Docker.
    type: path
    default: /etc/systemd/system
  quadlet_dir:
    description: Directory of the Quadlet files that run services by Podman.
    type: path
    default: /etc/containers/systemd
notes:
  - Asks Docker and Podman, whichever are there. An image that a service uses is kept in both.
  - RV(freed_bytes) is what the file systems had free after it and had not before, so what others wrote meanwhile counts against it. A
    file system that frees later (ZFS) tells less. In check mode it is computed - a hard link from elsewhere, a hole, data shared with
    another file and layers of other images are not gained.
  - A container that is given a directory above O(cache_root), such as C(/), is not taken for a user of every cache.
"""

EXAMPLES = r"""
- name: Make room
  baremetal.nim.nim_prune:
    services: [llama]
    images: [nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6]
  register: pruned
"""

RETURN = r"""
removed:
  description: What was removed, or would be in check mode - C(path) (of an image, its reference), C(bytes) and C(reason).
  type: list
  elements: dict
  returned: always
kept:
  description: What was left alone - C(path) and C(reason).
  type: list
  elements: dict
  returned: always
removed_bytes:
  description: Sum of the apparent sizes of what was removed, or would be. Images that share layers count them once each.
  type: int
  returned: always
  sample: 16059123456
freed_bytes:
  description: What the disk gained, or would gain; never less than V(0).
  type: int
  returned: always
  sample: 153600
gained:
  description: >-
    The same for the caches and for the images of each engine - C(path), C(bytes), which others may have made less than nothing, and
    C(all), whether that is all of it; V(false) where the engine does not tell the sizes of its layers.
  type: list
  elements: dict
  returned: always
summary:
  description: The same in words.
  type: list
  elements: str
  returned: always
"""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _command,
    _disk,
    _names,
    _prune,
    _readback,
    _staged,
)
from ansible_collections.baremetal.nim.plugins.module_utils._deployment import parse_record
from ansible_collections.baremetal.nim.plugins.module_utils._host import parse_systemctl_show

MOUNTINFO = "/proc/self/mountinfo"
#: Seconds that the file system of the caches may take to answer, and a cache to be measured, or an image to be removed.
LOOK_SECONDS, WALK_SECONDS = 30, 900
#: Engine to the program that tells that it is there: `docker` alone may be another name of podman.
ENGINES = {"docker": "dockerd", "podman": "podman"}
#: Podman tells bytes in JSON only, Docker only outside of it.
HISTORY = {"docker": "{{.Size}}\t{{.CreatedBy}}", "podman": "json"}
#: Where an engine keeps images unless it says otherwise, and where containerd does it for Docker.
ENGINE_ROOT = {"docker": "/var/lib/docker", "podman": "/var/lib/containers/storage"}
CONTAINERD = "/var/lib/containerd"
#: Engine to the command that tells more about it when it fails.
LOOK = {"docker": "systemctl status docker", "podman": "podman info"}


def read(path: str) -> str:
    """Text of a file, empty when there is none or it is no plain file of a plausible size."""
    return (_readback.read(path) or b"").decode("utf-8", errors="replace")


class Host:
    """What lies on this host, and who uses it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.command = _command.Runner(str)
        self.root = module.params["cache_root"]
        self.engines = [name for name, program in ENGINES.items() if module.get_bin_path(program)]
        self.removed: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []
        #: What the disk gained where, or would gain.
        self.gained: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.names = dict.fromkeys(self.params["services"], "wanted")
        self.paths = dict.fromkeys(self.params["caches"], "wanted")
        self.references = dict.fromkeys(self.params["images"], "wanted")
        #: Units of stagings that have ended, by the services they were for.
        self.ended: dict[str, list[str]] = {}
        #: Why no image can be proven unused, empty when all can be.
        self.blind = ""

    def own(self, *parts: str) -> str:
        """A path of what the collection remembers."""
        return os.path.join(self.params["host_dir"], *parts)

    def result(self) -> dict[str, Any]:
        """Return values."""
        freed = sum(place["bytes"] for place in self.gained)
        return {
            "changed": bool(self.removed),
            "removed": self.removed,
            "kept": self.kept,
            "removed_bytes": sum(item["bytes"] for item in self.removed),
            "freed_bytes": max(0, freed),
            "gained": self.gained,
            "summary": _prune.told(self.removed, self.kept, self.gained, self.module.check_mode),
        }

    def fail(self, text: str, command: str) -> NoReturn:
        """Leaves with what was done so far."""
        self.module.fail_json(msg=f"{text} Next: {command}", **self.result())

    def run(self, *argv: str) -> str:
        """Output of a command that must not fail: what it would have told may be in use."""
        for last in (False, False, True):
            code, out, err = self.command(*argv)
            # A container may be gone between its listing and the look at it; who is silent is not asked again.
            if not code or last or code == _command.SILENT:
                break
        if code == _command.SILENT:
            said, _next, following = err.partition(" Next: ")
            self.fail(f"{said.rstrip('.')}; wanted to know what is in use. Nothing was removed.", following)
        if code:
            self.fail(
                f"{' '.join(argv[:3])} failed: {(err or out).strip()}, wanted to know what is in use. Nothing was removed.",
                LOOK.get(argv[0], f"systemctl {argv[1]}"),
            )
        return str(out)

    # -- who uses what -------------------------------------------------------------------------------------------------

    def record(self, name: str, path: str, who: str) -> None:
        """Takes note of a record and of what it refers to."""
        self.names.setdefault(name, who)
        record = parse_record(read(path))
        # One whose words are none would hide what it refers to.
        if not record or not record.get("image"):
            self.blind = f"{path} cannot be read and may refer to it"
            self.names[name] = f"{path} cannot be read"
            return
        self.records.append(record)
        for key in ("image", "image_reference"):
            self.references.setdefault(str(record.get(key) or ""), f"{who} of {name}")

    def unit(self, path: str, who: str) -> None:
        """Takes note of what a unit refers to."""
        text = read(path)
        if not text:
            self.blind = f"{path} cannot be read and may refer to it"
        for volume in _prune.volumes(text):
            self.paths.setdefault(volume, who)
        for word in _prune.words(text):
            self.references.setdefault(word, who)

    def remembered(self) -> None:
        """Records, units, kept copies and staging on this host."""
        for path in glob.glob(self.own("services", "*.json")):
            self.record(os.path.basename(path)[:-5], path, "deployed")
        units = glob.glob(os.path.join(self.params["unit_dir"], "nim-*.service"))
        for path in units + glob.glob(os.path.join(self.params["quadlet_dir"], "nim-*.container")):
            unit = os.path.basename(path)
            self.names.setdefault(unit[4:].rpartition(".")[0], f"unit {unit}")
            self.unit(path, f"unit {unit}")
        for path in glob.glob(self.own("previous", "*", "")):
            # NAME.new is a copy that was not finished.
            name, _dot, kind = os.path.basename(path.rstrip("/")).partition(".")
            if kind == "before" and not self.upgrading(name):
                continue
            self.record(name, os.path.join(path, "record"), "kept for rollback")
            self.unit(os.path.join(path, "unit"), f"kept for rollback of {name}")
        shown = self.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "nim-pull-*", "nim-stage-*")
        under_way, self.ended = _prune.staging(shown)
        for name, unit in under_way.items():
            self.names.setdefault(name, unit)

    def upgrading(self, name: str) -> bool:
        """Whether an upgrade may still fail and need what was kept before the last copy: the copy is of what is deployed."""
        paths = self.own("services", f"{name}.json"), self.own("previous", name, "record")
        try:
            deployed, copied = ((parse_record(read(path)) or {})["config_hash"] for path in paths)
        except KeyError:
            return True
        return bool(deployed == copied)

    def inspected(self, engine: str, *listing: str) -> list[dict[str, Any]]:
        """What ``inspect`` of an engine tells of what a listing names."""
        for last in (False, False, True):
            ids = sorted(set(self.run(engine, *listing).split()))
            if not ids:
                return []
            kind = "image" if listing[0] == "image" else "container"
            code, out, err = self.command(engine, kind, "inspect", *ids)
            if not code:
                return list(json.loads(out))
            if last:
                self.fail(f"{engine} {kind} inspect failed: {err.strip()}. Nothing was removed.", LOOK[engine])
        return []

    def running(self) -> None:
        """All containers, also those of others."""
        listed = [self.inspected(engine, "ps", "--all", "--quiet", "--no-trunc") for engine in self.engines]
        found = _prune.containers(item for items in listed for item in items)
        for known, more in (
            (self.names, found["names"]),
            (self.paths, found["paths"]),
            (self.references, found["images"]),
        ):
            for key, who in more.items():
                known.setdefault(key, who)

    # -- caches --------------------------------------------------------------------------------------------------------

    def entries(self) -> list[dict[str, Any]]:
        """What lies in the cache root."""
        entries = []
        for item in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            kind = "link" if item.is_symlink() else "directory" if item.is_dir(follow_symlinks=False) else "other"
            staged = self.note(item.name)
            here = staged.get("path") == item.path
            # A stranger's word, and all it can do is to have its own cache removed with those that nobody uses.
            marker = (
                _staged.parse_marker(read(os.path.join(item.path, _staged.MARKER))) if kind == "directory" else None
            )
            foreign = here and bool(staged.get("read_only"))
            entries.append({"name": item.name, "kind": kind, "marked": bool(here or marker), "foreign": foreign})
        return entries

    def note(self, name: str) -> dict[str, Any]:
        """What this host remembers of the weights of a service."""
        return _staged.parse_note(read(_staged.note_path(self.params["host_dir"], name))) or {}

    def mounts(self) -> dict[str, str]:
        """What is mounted where."""
        return _prune.parse_mounts(read(MOUNTINFO))

    def size(self, path: str) -> int:
        """Bytes in a directory."""
        _code, out, _err = self.command("du", "-sbx", path, seconds=WALK_SECONDS)
        first = out.split(maxsplit=1)[:1]
        return int(first[0]) if first and first[0].isdigit() else 0

    def forget(self, name: str) -> None:
        """Lets systemd forget stagings of a service that have ended: nothing of what they brought is left."""
        for unit in self.ended.get(name, ()):
            shown = self.command("systemctl", "show", "--property=Id,LoadState,Transient,FragmentPath", unit)[1]
            if _names.foreign_unit(parse_systemctl_show(shown).get(unit, {})):
                continue
            self.command("systemctl", "stop", unit, seconds=_command.CHANGE_SECONDS)
            self.command("systemctl", "reset-failed", unit)

    def remove_cache(self, path: str) -> None:
        """Deletes a cache, links in it unfollowed, and what is remembered of it."""
        folder, name = os.path.split(path)
        doomed = path if name.startswith(_prune.DOOMED) else os.path.join(folder, f"{_prune.DOOMED}{name}")
        # In one step: a cut-off deletion must not leave half a cache with a marker that calls it whole.
        os.rename(path, doomed)
        shutil.rmtree(doomed)
        if self.note(name).get("path") == path:
            for make in (_staged.list_path, _staged.part_path, _staged.note_path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(make(self.params["host_dir"], name))

    def caches(self) -> None:
        """Removes caches that nobody uses."""
        try:
            entries = self.entries()
        except FileNotFoundError:
            # A host on which nothing was staged yet.
            return
        paths = {**self.paths, **{os.path.realpath(path): who for path, who in self.paths.items()}}
        plan = _prune.plan_caches(
            self.root, entries, {"names": self.names, "paths": paths}, self.mounts(), self.params["unknown"]
        )
        self.kept += plan["keep"]
        if not plan["remove"]:
            return
        if self.module.check_mode:
            reflinks = _prune.file_system(self.root, self.mounts()) in _disk.REFLINKS
            bytes_gained = _disk.frees((item["path"] for item in plan["remove"]), reflinks)
            self.gained.append({"path": self.root, "bytes": bytes_gained, "all": True})
        with self.measured(self.root):
            for item in plan["remove"]:
                removed = {**item, "bytes": self.size(item["path"])}
                if not self.module.check_mode:
                    self.forget(os.path.basename(item["path"]))
                    self.remove_cache(item["path"])
                self.removed.append(removed)

    # -- what the disk gains -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def measured(self, *paths: str) -> Iterator[None]:
        """Notes what the file systems of PATHS gain while something is removed, also when that fails halfway."""
        if self.module.check_mode:
            yield
            return
        # Two paths of one file system are one place.
        places = list({os.stat(_disk.nearest(path)).st_dev: path for path in reversed(paths)}.values())
        before = {path: _disk.free(path) for path in places}
        try:
            yield
        finally:
            for path in places:
                # Some file systems free what was removed when they write it down.
                self.command("sync", "--file-system", _disk.nearest(path), seconds=60)
            gain = sum(_disk.free(path) - before[path] for path in places)
            self.gained.append({"path": paths[0], "bytes": gain, "all": True})

    def engine_places(self, engine: str) -> list[str]:
        """Where an engine keeps its images."""
        format_ = {"docker": "{{.DockerRootDir}}", "podman": "{{.Store.GraphRoot}}"}[engine]
        code, out, _err = self.command(engine, "info", "--format", format_)
        told = out.strip() if not code and out.startswith("/") else ENGINE_ROOT[engine]
        # Docker may let containerd keep them.
        return [told, *([CONTAINERD] if engine == "docker" and os.path.isdir(CONTAINERD) else [])]

    def layer_sizes(self, engine: str, image: dict[str, Any]) -> dict[str, int]:
        """Sizes of the layers of an image, empty where the engine does not tell them."""
        argv = [engine, "history", "--no-trunc", "--human=false", "--format", HISTORY[engine], image["Id"]]
        code, out, _err = self.command(*argv)
        names = _disk.layers(image)
        sizes = None if code else _disk.layer_sizes(_disk.history(out), len(names))
        return dict(zip(names, sizes)) if sizes is not None else {}

    def would_gain(self, engine: str, found: list[dict[str, Any]], going: set[str]) -> None:
        """Computes what goes with images; layers that others have stay."""
        doomed = [image for image in found if image["Id"] in going]
        sizes = {}
        for image in doomed:
            sizes.update(self.layer_sizes(engine, image))
        gain, whole = _disk.gained(doomed, (image for image in found if image["Id"] not in going), sizes)
        self.gained.append({"path": self.engine_places(engine)[0], "bytes": gain, "all": whole})

    # -- images --------------------------------------------------------------------------------------------------------

    def remove_image(self, engine: str, references: list[str]) -> str:
        """Removes an image under all its names; why it could not be, empty when it is gone."""
        code, out, err = self.command(engine, "image", "rm", *references, seconds=WALK_SECONDS)
        # The last tag takes the digests of its repository along.
        gone = ("No such image", "image not known")
        refused = [
            line for line in (err or out).splitlines() if line.strip() and not any(word in line for word in gone)
        ]
        return refused[0].strip() if code and refused else ""

    def images(self) -> None:
        """Removes images of this collection that nobody uses."""
        noted = read(self.own("repositories"))
        known = _prune.known_repositories(self.records, noted, self.params["images"])
        for engine in self.engines:
            found = self.inspected(engine, "image", "ls", "--quiet", "--no-trunc")
            plan = _prune.plan_images(found, known, self.references, self.blind)
            self.kept += plan["keep"]
            if not plan["remove"]:
                continue
            if self.module.check_mode:
                self.would_gain(engine, found, {item["id"] for item in plan["remove"]})
            with self.measured(*self.engine_places(engine)):
                for item in plan["remove"]:
                    refusal = "" if self.module.check_mode else self.remove_image(engine, item["references"])
                    if refusal:
                        self.kept.append({"path": item["path"], "reason": f"{engine} keeps it: {refusal}"})
                    else:
                        self.removed.append({key: item[key] for key in ("path", "reason", "bytes")})

    def prune(self) -> dict[str, Any]:
        """All of it; who uses what is known before anything is removed."""
        try:
            _command.apart(lambda: os.path.isdir(self.root), LOOK_SECONDS)
        except _command.Silence as silence:
            mount = _command.mount_of(self.root, read("/proc/mounts"))
            self.fail(
                f"{self.root} ({mount}): {silence}, wanted to see what lies there. Nothing was removed.",
                "cat /proc/mounts",
            )
        own = [self.own(name) for name in ("services", "previous", "staged")]
        refusal = _prune.refusal(self.root, os.path.realpath(self.root), own)
        if not refusal and not shutil.rmtree.avoids_symlink_attacks:
            refusal = "this Python cannot delete directories without following links"
        if refusal:
            self.fail(f"{refusal}. Nothing was removed.", "set nim_cache_root to the directory that holds the caches")
        self.remembered()
        self.running()
        self.caches()
        self.images()
        return self.result()


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str", "required": True},
            "caches": {"type": "list", "elements": "path", "default": []},
            "images": {"type": "list", "elements": "str", "default": []},
            "cache_root": {"type": "path", "default": "/var/lib/nim/cache"},
            "unknown": {"type": "bool", "default": False},
            "host_dir": {"type": "path", "default": "/var/lib/nim"},
            "unit_dir": {"type": "path", "default": "/etc/systemd/system"},
            "quadlet_dir": {"type": "path", "default": "/etc/containers/systemd"},
        },
        supports_check_mode=True,
    )
    host = Host(module)
    try:
        result = host.prune()
    except OSError as error:
        host.fail(
            f"{error.filename}: {error.strerror}, wanted to remove what no service uses.",
            f"findmnt -T {error.filename}; ls -ld {error.filename}",
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
