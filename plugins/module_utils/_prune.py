# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which caches and images of a host no service uses. Private to the collection; pure.

What cannot be proven unused is kept: every function here errs on that side. Sizes are bytes, paths are absolute.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._host import SERVICE_LABEL, image_id
from ansible_collections.baremetal.nim.plugins.module_utils._staging import amount

#: A cache gets this prefix before it is deleted: half a cache must not look like a whole one.
DOOMED = ".pruned-"
#: Other hosts may use what lies on one of these.
_SHARED = re.compile(r"nfs\d?|cifs|smb3|9p|virtiofs|ceph|lustre|gpfs|beegfs|wekafs|glusterfs|gfs2|ocfs2|fuse(\..+)?")
_SYSTEM = "bin boot dev etc lib proc run sbin sys usr var/lib/containerd var/lib/docker var/log"
_PEOPLE = "home media mnt opt root srv tmp var/cache var/tmp"
#: A root that lies in one of these is not for caches at all...
_WITHIN = tuple(f"/{path}" for path in _SYSTEM.split())
#: ...and one that holds any of these holds more than caches.
_HOLDS = tuple(sorted((*_WITHIN, *(f"/{path}" for path in _PEOPLE.split()))))


def contains(outer: str, inner: str) -> bool:
    """Whether a path is another one or lies below it."""
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


def refusal(root: str, real: str, own: Iterable[str]) -> str:
    """Why nothing is removed below a cache root, empty when there is no reason.

    REAL is the root with every link followed; OWN are directories in which the collection keeps its records.
    """
    if not root.startswith("/") or posixpath.normpath(root) != root:
        return f"cache root {root} is no plain absolute path"
    if real != root:
        return f"cache root {root} leads to {real} by a symbolic link; name that directory itself"
    held = [path for path in (*_HOLDS, *own) if contains(root, path)]
    if held:
        return f"cache root {root} holds {held[0]}, wanted a directory of caches only"
    around = [path for path in _WITHIN if contains(path, root)]
    if around or posixpath.dirname(root) == "/home":
        return f"cache root {root} is a place of {around[0] if around else 'a user'}, wanted a directory of caches only"
    return ""


def parse_mounts(text: str) -> dict[str, str]:
    """/proc/self/mountinfo to the type of file system by mount point; the topmost of several wins."""
    mounts = {}
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if dash and len(fields) > 4 and after:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            mounts[point] = after.split()[0]
    return mounts


def file_system(path: str, mounts: Mapping[str, str]) -> str:
    """Type of the file system that holds a path."""
    around = [point for point in mounts if contains(point, path)]
    return mounts[max(around, key=len)] if around else ""


def volumes(unit: str) -> list[str]:
    """Directories of the host that the text of a unit gives to its container."""
    return re.findall(r"(?:--volume[ =]|^Volume=)(/[^:\s]+):", unit, re.MULTILINE)


def words(unit: str) -> list[str]:
    """Words of the text of a unit, among them its image."""
    return re.sub(r"^Image=", "", unit, flags=re.MULTILINE).split()


def containers(inspected: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """``inspect`` of all containers to what they use: ``names`` of services, ``paths`` and ``images``, each with its user."""
    found: dict[str, dict[str, str]] = {"names": {}, "paths": {}, "images": {}}
    for item in inspected:
        container = str(item["Name"]).lstrip("/")
        reason = f"container {container}"
        service = (item["Config"].get("Labels") or {}).get(SERVICE_LABEL)
        for name in (service, container[4:] if container.startswith("nim-") else None):
            if name:
                found["names"][name] = reason
        for mount in item.get("Mounts") or []:
            if mount.get("Source"):
                found["paths"][mount["Source"]] = reason
        for image in (image_id(item["Image"]), item["Config"]["Image"]):
            found["images"][image] = reason
    return found


def staging(units: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """``systemctl list-units --all --plain --no-legend`` to the services that are being staged, each with its unit, and to units that
    have ended, by the services they were for: those bring nothing any more."""
    under_way: dict[str, str] = {}
    ended: dict[str, list[str]] = {}
    for line in units.splitlines():
        match = re.match(r"(nim-(?:pull|stage)-(\S+)\.service)\s+\S+\s+(\S+)\s+(\S+)", line.strip().lstrip("●* "))
        if not match:
            continue
        unit, name, active, sub = match.groups()
        if sub == "exited" or active in ("failed", "inactive"):
            ended.setdefault(name, []).append(unit)
        else:
            under_way[name] = f"unit {unit}"
    return under_way, ended


def repository(reference: str) -> str:
    """An image reference without tag and digest."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def known_repositories(records: Iterable[Mapping[str, Any]], noted: str, wanted: Iterable[str]) -> set[str]:
    """Repositories that this collection has deployed from.

    By the records there are and the deployments before them, the note that staging leaves (NOTED, one a line), and the
    references of wanted images.
    """
    references = [*wanted, *noted.split()]
    for record in records:
        past = record.get("history")
        for item in (record, *(past if isinstance(past, list) else [])):
            if isinstance(item, Mapping):
                references += [str(item.get(key) or "") for key in ("image", "image_reference")]
    # An image that was loaded is known by its id, which names no repository.
    return {repository(reference) for reference in references if "/" in reference}


def plan_caches(
    root: str,
    entries: Sequence[Mapping[str, Any]],
    used: Mapping[str, Mapping[str, str]],
    mounts: Mapping[str, str],
    unknown: bool,
) -> dict[str, list[dict[str, str]]]:
    """Caches to ``remove`` and to ``keep``, each a ``path`` with its ``reason``.

    ENTRIES are what lies in the root: ``name``, ``kind`` (directory, link or other), ``marked`` (it has a marker of staged
    weights) and ``foreign`` (it was only read). USED has ``names`` of services and ``paths``, each with who uses it; UNKNOWN
    removes unmarked directories too.
    """
    plan: dict[str, list[dict[str, str]]] = {"remove": [], "keep": []}
    shared = file_system(root, mounts)
    for entry in entries:
        name, path = entry["name"], posixpath.join(root, entry["name"])
        mounted = [point for point in mounts if contains(path, point)]
        # A container that has the whole root uses all of it; one that has the disk, such as a monitor, uses none.
        users = [who for used_path, who in used["paths"].items() if contains(path, used_path) or used_path == root]
        what, reason = "keep", ""
        if name in used["names"]:
            reason = f"used: {used['names'][name]}"
        elif users:
            reason = f"used: {users[0]}"
        elif entry["kind"] == "link":
            reason = "a symbolic link, which is not followed"
        elif entry["kind"] != "directory":
            reason = "no directory"
        elif mounted:
            reason = f"{mounts[mounted[0]]} is mounted at {mounted[0]}"
        elif _SHARED.fullmatch(shared):
            reason = f"on {shared}, which other hosts may use"
        elif entry["foreign"]:
            reason = "was only read here: somebody else filled it"
        elif name.startswith(DOOMED):
            what, reason = "remove", "an earlier prune was cut off"
        elif entry["marked"]:
            what, reason = "remove", f"no service {name} is wanted, deployed or kept"
        elif unknown:
            what, reason = "remove", "unknown, and no service uses it"
        else:
            reason = "unknown: no marker of staged weights"
        plan[what].append({"path": path, "reason": reason})
    return plan


def plan_images(
    images: Iterable[Mapping[str, Any]], known: Iterable[str], used: Mapping[str, str], blind: str
) -> dict[str, list[dict[str, Any]]]:
    """Images to ``remove`` (with ``bytes``, ``id`` and all ``references``) and to ``keep``; those of other repositories are in neither.

    IMAGES are items of ``image inspect`` of either engine, KNOWN the repositories of this collection, USED who uses an id or a
    reference. BLIND tells what could not be read: it may name any image, so none is removed.
    """
    plan: dict[str, list[dict[str, Any]]] = {"remove": [], "keep": []}
    known = set(known)
    for image in sorted(images, key=lambda item: sorted(item.get("RepoDigests") or item.get("RepoTags") or [""])):
        references = [*(image.get("RepoDigests") or []), *(image.get("RepoTags") or [])]
        references = [reference for reference in references if "<none>" not in reference]
        foreign = [reference for reference in references if repository(reference) not in known]
        if len(foreign) == len(references):
            continue
        path = next(reference for reference in references if reference not in foreign)
        users = [used[key] for key in (image_id(image["Id"]), *references) if key in used]
        if users or foreign or blind:
            reason = f"used: {users[0]}" if users else f"is also {foreign[0]}" if foreign else blind
            plan["keep"].append({"path": path, "reason": reason})
        else:
            plan["remove"].append(
                {
                    "path": path,
                    "reason": "no service refers to it",
                    "bytes": int(image.get("Size") or 0),
                    "references": references,
                    "id": image["Id"],
                }
            )
    return plan


def gain(places: Sequence[Mapping[str, Any]], check: bool) -> str:
    """What the disk gained or would gain, for people. PLACES have ``path``, ``bytes`` and whether that is ``all`` of it."""
    total = sum(place["bytes"] for place in places)
    if total < 0:
        return f"the disk gained nothing: others wrote {amount(-total)} meanwhile"
    verb = (
        ("would gain about" if all(place["all"] for place in places) else "would gain at least") if check else "gained"
    )
    parts = ", ".join(f"{amount(max(0, place['bytes']))} in {place['path']}" for place in places)
    return f"the disk {verb} {amount(total)}" + (f" ({parts})" if len(places) > 1 else "")


def told(
    removed: Sequence[Mapping[str, Any]],
    kept: Iterable[Mapping[str, Any]],
    places: Sequence[Mapping[str, Any]],
    check: bool,
) -> list[str]:
    """What was done, for people; what is kept because it is used goes without saying. PLACES: what the disk gained where."""
    if not removed:
        lines = ["nothing to remove"]
    else:
        apparent = amount(sum(item["bytes"] for item in removed))
        lines = [f"{'would remove' if check else 'removed'} {apparent} (apparent), {gain(places, check)}"]
    lines += [
        f"{'would remove' if check else 'removed'} {item['path']}, {amount(item['bytes'])}: {item['reason']}"
        for item in removed
    ]
    return lines + [
        f"kept {item['path']}: {item['reason']}" for item in kept if not item["reason"].startswith("used: ")
    ]
