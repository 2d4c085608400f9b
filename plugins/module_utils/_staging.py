# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an image and its weights get onto a host, as commands and words. Private to the collection; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Reads the key from standard input, so that it is in no argument list, no environment of a container's configuration
#: and no file that the image's user could read; then becomes the image's own command.
KEY_FROM_STDIN = 'IFS= read -r NGC_API_KEY && export NGC_API_KEY && exec "$@"'


def transient_unit(name: str, description: str, argv: Sequence[str], key_file: str | None = None) -> list[str]:
    """The systemd-run command that starts ARGV as a unit of its own, so that it outlives the play and its connection.

    The unit stays after it ended (RemainAfterExit), so that whoever comes back can read how. KEY_FILE becomes its
    standard input: systemd has opened it when systemd-run returns (Type=exec).
    """
    command = ["systemd-run", "--quiet", f"--unit={name}", f"--description={description}"]
    properties = ["Type=exec", "RemainAfterExit=yes", "KillMode=mixed", "Environment=HOME=/root"]
    if key_file:
        properties.append(f"StandardInput=file:{key_file}")
    return [*command, *(f"--property={item}" for item in properties), "--", *argv]


def pull_command(docker: str, image: str) -> list[str]:
    """The command that pulls an image."""
    return [docker, "pull", image]


def stage_command(docker: str, service: Mapping[str, Any], image: Mapping[str, Any], with_key: bool) -> list[str]:
    """The command that runs the image's own download command with the service's cache, devices and limits.

    SERVICE has the options of nim_cache; IMAGE is an item of ``docker image inspect``.
    """
    command = [docker, "run", "--rm", "--init", "--name", f"nim-stage-{service['name']}", "--pull", "never"]
    command += ["--log-driver", "none", "--security-opt", "no-new-privileges"]
    for device in service["devices"]:
        command += ["--device", device]
    for limit in service["ulimits"]:
        command += ["--ulimit", limit]
    for key, value in sorted(service["env"].items()):
        command += ["--env", f"{key}={value}"]
    command += ["--volume", f"{service['path']}:{service['cache_mount']}"]
    config = image.get("Config") or {}
    entrypoint = config.get("Entrypoint") or []
    if with_key:
        # The image's own entrypoint still runs: as the command that the shell becomes.
        command += ["--interactive", "--entrypoint", "/bin/sh", image["Id"], "-c", KEY_FROM_STDIN, "sh", *entrypoint]
    else:
        command += [image["Id"]]
    return [*command, *service["prefetch"]]


def image_reference(image: Mapping[str, Any], repository: str) -> str:
    """REPOSITORY@sha256:… under which an inspected image was pulled, or its id if it came some other way."""
    for digest in image.get("RepoDigests") or []:
        if digest.startswith(f"{repository}@"):
            return str(digest)
    return str(image["Id"])


def pull_progress(lines: Sequence[str]) -> str:
    """What ``docker pull`` has done so far, in words."""
    layers = {
        match.group(1) for match in (re.match(r"([0-9a-f]{12}): Pulling fs layer", line) for line in lines) if match
    }
    done = {match.group(1) for match in (re.match(r"([0-9a-f]{12}): Pull complete", line) for line in lines) if match}
    if not layers:
        return "asking the registry"
    return f"{len(done & layers)} of {len(layers)} layers"


def amount(size: float) -> str:
    """Bytes for people: 15.9 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def last_line(lines: Sequence[str]) -> str:
    """The newest line that is not empty."""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def marker(service: Mapping[str, Any], reference: str, size: int, finished: float, elsewhere: bool = False) -> str:
    """Text of the file that says that the weights are complete, and of which image (REFERENCE) they are.

    ELSEWHERE is for one that does not lie in the cache, and tells where that is.
    """
    content = {
        "key": service["stage_key"],
        "image": service["image"],
        "image_reference": reference,
        "bytes": size,
        "finished": int(finished),
    }
    if elsewhere:
        content.update(path=service["path"], read_only=service["read_only"])
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
