# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""States of the lab that are made once and started from many times.

A stocked vendor is the vendor host with everything in its registry. A converged host is a GPU host on which site.yml has run;
its root is kept as an image and its /var/lib/docker as a volume. Both are named by the hash of all that goes into them, so a
change of the collection or of the lab makes new ones, and the old ones go.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

from docker.models.containers import Container

if TYPE_CHECKING:
    from lab import Lab

#: What decides how a host looks after site.yml.
INPUTS = ("roles", "plugins", "playbooks", "meta", "inventories/lab")
#: Engines of the stand-in whose images every lab may ask for.
STOCK = ("reference", "families")
#: The volume of a host: images and containers of its engines.
STORAGE = "/var/lib/docker"


def tree_hash(root: pathlib.Path, folders: tuple[str, ...]) -> str:
    """Hash of the files below some folders: their paths, contents and executable bits."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                mode = b"x" if os.access(path, os.X_OK) else b"-"
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + mode)
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def stocked_tag(lab: Lab, vendor_image: str, images: list[str]) -> str:
    """Name of the stocked vendor made from a vendor image and the images of its registry."""
    return f"{lab.prefix}/stocked:{short(vendor_image, *images)}"


def converged_tag(lab: Lab, name: str, host_image: str, stocked: str, root: pathlib.Path) -> str:
    """Name of the converged host of that name."""
    return f"{lab.prefix}/converged-{name}:{short(host_image, stocked, tree_hash(root, INPUTS))}"


def short(*parts: str) -> str:
    """A hash of some texts, as long as a tag needs it."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def volume_of(tag: str) -> str:
    """Volume that belongs to a converged host's image."""
    return tag.replace("/", "-").replace(":", "-")


def exists(lab: Lab, tag: str) -> bool:
    """Whether that state was made."""
    return bool(lab.docker.images.list(name=tag))


def keep(lab: Lab, container: Container, tag: str) -> None:
    """Stops a host and keeps its root, and its engines' storage when it has one, under a tag. Older ones of its kind are removed."""
    repository, version = tag.split(":")
    container.stop(timeout=120)
    for image in lab.docker.images.list(name=repository):
        for old in image.tags:
            lab.docker.images.remove(old, force=True)
            lab.remove_volume(volume_of(old))
    source = storage(container)
    if source:
        lab.docker.volumes.create(volume_of(tag), labels={"project": lab.prefix})
        copy(lab, container.image.id, source, volume_of(tag))
    # Last, since its name says that everything is there.
    container.commit(repository=repository, tag=version)


def storage(container: Container) -> str | None:
    """Name of the volume with a host's engines, or None."""
    container.reload()
    return next((mount["Name"] for mount in container.attrs["Mounts"] if mount["Destination"] == STORAGE), None)


def copy(lab: Lab, image: str, source: str, target: str) -> None:
    """Copies a volume with everything that engines keep in it: owners, links, extended attributes."""
    lab.docker.containers.run(
        image,
        entrypoint=["cp", "-a", "/from/.", "/to/"],
        # Layers carry attributes that only this may write.
        cap_add=["SYS_ADMIN"],
        security_opt=["apparmor=unconfined", "seccomp=unconfined"],
        volumes={source: {"bind": "/from", "mode": "ro"}, target: {"bind": "/to", "mode": "rw"}},
        network_disabled=True,
        remove=True,
    )


def converge(root: pathlib.Path, name: str, lab_name: str) -> None:
    """Runs site.yml on a host of a lab; leaves with its output when it fails."""
    command = [
        str(pathlib.Path(sys.executable).parent / "ansible-playbook"),
        *("-i", "inventories/lab", "baremetal.nim.site", "--limit", name, "-e", f"lab_name={lab_name}"),
    ]
    run = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if run.returncode:
        sys.exit(f"{run.stdout}\nlab: {name} could not be converged; its output is above")
