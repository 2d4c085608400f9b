# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an image and its weights get onto a host, as commands and words. Private to the collection; pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _gate
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import NATIVE_PROTOCOL, PROTOCOL_LABEL
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten
from ansible_collections.baremetal.nim.plugins.module_utils._staged import MARKER

#: Reads the key from standard input, so that it is in no argument list, no environment of a container's configuration
#: and no file that the image's user could read; then becomes the image's own command.
KEY_FROM_STDIN = 'IFS= read -r NGC_API_KEY && export NGC_API_KEY && exec "$@"'


def transient_unit(
    name: str, description: str, argv: Sequence[str], key_file: str | None = None, env_file: str | None = None
) -> list[str]:
    """The systemd-run command that starts ARGV as a unit of its own, so that it outlives the play and its connection.

    The unit stays after it ended (RemainAfterExit), so that whoever comes back can read how. KEY_FILE becomes its
    standard input, ENV_FILE has variables for it: systemd has read both when systemd-run returns (Type=exec).
    """
    command = ["systemd-run", "--quiet", f"--unit={name}", f"--description={description}"]
    # What it says is read: in the language of the host, which its units get, "No space left on device" is another sentence.
    properties = ["Type=exec", "RemainAfterExit=yes", "KillMode=mixed", "Environment=HOME=/root LC_ALL=C"]
    if key_file:
        properties.append(f"StandardInput=file:{key_file}")
    if env_file:
        properties.append(f"EnvironmentFile={env_file}")
    return [*command, *(f"--property={item}" for item in properties), "--", *_gate.systemd_words(argv)]


def environment_file(variables: Mapping[str, str]) -> str:
    """Text of a file of variables as systemd reads it."""
    # Within double quotes a backslash keeps these four as they are (systemd.exec(5)).
    return "".join(
        '{}="{}"\n'.format(key, re.sub(r'([\\"`$])', r"\\\1", value)) for key, value in sorted(variables.items())
    )


def pull_command(engine: str, image: str) -> list[str]:
    """The command that pulls an image; ENGINE is the path of docker or podman."""
    return [engine, "pull", image]


#: Podman limits processes, and parts containers by SELinux labels that cache and driver do not have. Docker does neither.
PODMAN_OPTIONS = ("--pids-limit", "0", "--security-opt", "label=disable")


def capability_options(capabilities: Sequence[str] | None) -> list[str]:
    """The options of the engine's run that leave a container just CAPABILITIES; None leaves it what the engine gives."""
    if capabilities is None:
        return []
    return ["--cap-drop", "ALL", *(word for name in capabilities for word in ("--cap-add", name))]


def stage_command(engine: str, service: Mapping[str, Any], image: Mapping[str, Any], with_key: bool) -> list[str]:
    """The command that runs the image's own download command with the service's cache, devices and limits.

    ENGINE is the path of docker or podman, SERVICE has the options of nim_cache, IMAGE is an item of ``image inspect``.
    """
    command = [engine, "run", "--rm", "--init", "--name", f"nim-stage-{service['name']}", "--pull", "never"]
    command += ["--log-driver", "none", "--security-opt", "no-new-privileges"]
    command += capability_options(service["capabilities"])
    command += PODMAN_OPTIONS if service["engine"] == "podman" else ()
    for device in service["devices"]:
        command += ["--device", device]
    for limit in service["ulimits"]:
        command += ["--ulimit", limit]
    for key, value in sorted({**service["env"], **service["prefetch_env"]}.items()):
        command += ["--env", f"{key}={value}"]
    for key in sorted(service["secret_env"]):
        # By its name: the engine's client has it in its environment, which ps does not show.
        command += ["--env", key]
    for name, target in sorted(service["mounts"].items()):
        command += ["--volume", f"{service['path']}{f'/{name}' if name else ''}:{target}"]
    config = image.get("Config") or {}
    entrypoint = [] if service["prefetch_entrypoint"] else config.get("Entrypoint") or []
    # An image that has no command for the download runs as it always does; a variable makes it end after that.
    words = list(service["prefetch"]) or list(config.get("Cmd") or [])
    if with_key:
        # The image's own entrypoint still runs: as the command that the shell becomes.
        return [
            *command,
            "--interactive",
            "--entrypoint",
            "/bin/sh",
            image["Id"],
            "-c",
            KEY_FROM_STDIN,
            "sh",
            *entrypoint,
            *words,
        ]
    if service["prefetch_entrypoint"]:
        return [*command, "--entrypoint", words[0], image["Id"], *words[1:]]
    return [*command, image["Id"], *words]


#: First bytes of compressed files, and what unpacks them to its standard output.
_PACKED = (
    (b"\x1f\x8b", ("gzip", "-dc")),
    (b"\x1f\x9d", ("gzip", "-dc")),
    (b"BZh", ("bzip2", "-dc")),
    (b"\xfd7zXZ\x00", ("xz", "-dc")),
    (b"\x5d\x00\x00", ("xz", "-dc", "--format=lzma")),
    (b"(\xb5/\xfd", ("zstd", "-dc")),
    (b"\x04\x22\x4d\x18", ("lz4", "-dc")),
    (b"LZIP", ("lzip", "-dc")),
    (b"\x89LZO", ("lzop", "-dc")),
)


def unpacker(beginning: bytes) -> list[str]:
    """The command that unpacks a tarball which begins so, from its standard input to its standard output."""
    return list(next((argv for magic, argv in _PACKED if beginning.startswith(magic)), ("cat",)))


def as_image_user(uid: int, gid: int, argv: Sequence[str]) -> list[str]:
    """ARGV, run by the user of the image, who can do no harm to others whatever it is given to unpack or to follow."""
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs", "--", *argv]


def seed_command(seed: str, path: str, uid: int, gid: int, unpack: Sequence[str]) -> list[str]:
    """The command that fills the cache PATH from SEED: a tarball that UNPACK unpacks, or a directory, where UNPACK is empty.

    Root only reads; what is read is laid down by the image's user: no owners, no permissions beyond his own, no devices, nothing
    written through a link that he could not write to himself. The other host's marker stays behind, its list of files comes along.
    """
    left_out = [f"--exclude={name}" for name in (f"./{MARKER}", MARKER)]
    reads = (
        f"{shlex.join(unpack)} < {shlex.quote(seed)}"
        if unpack
        else shlex.join(
            ["tar", "--create", "--file=-", "--sparse", f"--directory={seed}", "--anchored", *left_out, "."]
        )
    )
    lays = [
        "tar",
        "--extract",
        "--file=-",
        f"--directory={path}",
        "--no-same-owner",
        "--no-same-permissions",
        "--no-overwrite-dir",
    ]
    lays += ["--anchored", *left_out]
    return ["/bin/bash", "-c", f"set -o pipefail; umask 022; {reads} | {shlex.join(as_image_user(uid, gid, lays))}"]


def contract_problem(contract: str, image: Mapping[str, Any]) -> str:
    """What an inspected image's label says against CONTRACT, empty when nothing. An image without the label tells nothing."""
    said = ((image.get("Config") or {}).get("Labels") or {}).get(PROTOCOL_LABEL)
    if not contract or not said or (said == NATIVE_PROTOCOL) == (contract == "native"):
        return ""
    right = "native" if said == NATIVE_PROTOCOL else "classic or llm"
    return f"contract is {contract}, but the image's label {PROTOCOL_LABEL} is {shorten(str(said), 80)}, wanted contract: {right}."


def image_reference(image: Mapping[str, Any], repository: str) -> str:
    """REPOSITORY@sha256:… under which an inspected image was pulled, or its id if it came some other way."""
    for digest in image.get("RepoDigests") or []:
        if digest.startswith(f"{repository}@"):
            return str(digest)
    return str(image["Id"])


def pull_progress(lines: Sequence[str]) -> str:
    """What ``docker pull`` or ``podman pull`` has done so far, in words."""
    # Podman names all layers at once, and none again when it is there.
    blobs = {
        match.group(1) for match in (re.match(r"Copying blob (?:sha256:)?([0-9a-f]+)", line) for line in lines) if match
    }
    if blobs:
        return f"{len(blobs)} layers"
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


def progress(size: int, total: int, rate: float) -> str:
    """SIZE bytes of TOTAL (0 when unknown) at RATE bytes a second, for people: 3.1 GB of 15.9 GB, 310.0 MB/s, 41 s left."""
    words = f"{amount(size)} of {amount(total)}" if total else amount(size)
    if rate <= 0:
        return words
    left = f", {(total - size) / rate:.0f} s left" if total > size else ""
    return f"{words}, {amount(rate)}/s{left}"


def last_line(lines: Sequence[str]) -> str:
    """The newest line that is not empty."""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
