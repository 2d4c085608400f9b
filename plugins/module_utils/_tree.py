# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories that belong to the user of an image, entered and changed by root. Private to the collection.

That user may lay a link in place of anything in them, at any time. So root goes down by descriptors, follows no link below the cache,
and changes what it has open, never what bears a name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Planted(Exception):
    """Something lies where a directory is wanted, and who laid it there may be the user of the image. str: what it is, and where."""


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISREG, "a file"), (stat.S_ISDIR, "a directory"))
    return next((word for test, word in kinds if test(mode)), "neither file nor directory")


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the cache PATH itself. Raises Planted and OSError.

    A link that root laid there is one that somebody wanted; of anybody else's, none is followed.
    """
    facts = os.lstat(path)
    if stat.S_ISLNK(facts.st_mode) and facts.st_uid not in (0, os.geteuid()):
        raise Planted(f"{path} is a link of uid {facts.st_uid} to {os.readlink(path)!r}")
    flags = _DIRECTORY if stat.S_ISLNK(facts.st_mode) else _DIRECTORY | os.O_NOFOLLOW
    descriptor = _enter(path, flags, None, path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(name: str, flags: int, descriptor: int | None, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise OSError(error.errno, error.strerror, path) from error
        facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        what = _kind(facts.st_mode)
        if stat.S_ISLNK(facts.st_mode):
            what += f" to {os.readlink(name, dir_fd=descriptor)!r}"
        raise Planted(f"{path} is {what} of uid {facts.st_uid}") from error


def _steps(root: int, path: str, name: str, create: bool) -> int:
    descriptor = os.dup(root)
    for part in [word for word in name.split("/") if word]:
        path = os.path.join(path, part)
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
            deeper = _enter(part, _DIRECTORY | os.O_NOFOLLOW, descriptor, path)
        finally:
            os.close(descriptor)
        descriptor = deeper
    return descriptor


@contextlib.contextmanager
def below(root: int, path: str, name: str) -> Iterator[int | None]:
    """A descriptor of the directory NAME (``a/b``; empty for ROOT itself) below ROOT, whose path is PATH; None where it is not there.

    Raises Planted and OSError.
    """
    try:
        descriptor = _steps(root, path, name, create=False)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def made(root: int, path: str, name: str) -> Iterator[int]:
    """The same; makes what is missing."""
    descriptor = _steps(root, path, name, create=True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_file(descriptor: int, name: str) -> bool:
    """Removes a name from a directory, whatever it is but a directory; whether there was one."""
    try:
        os.unlink(name, dir_fd=descriptor)
    except FileNotFoundError:
        return False
    return True


def write_file(descriptor: int, name: str, data: bytes, mode: int = 0o644) -> None:
    """Writes a file in a directory, all of it or nothing, in place of whatever bears the name. Raises OSError."""
    scratch = f".{name}.{secrets.token_hex(8)}"
    handle = os.open(
        scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=descriptor
    )
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            os.fchmod(handle, mode)
            out.flush()
            os.fsync(handle)
        os.rename(scratch, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch, dir_fd=descriptor)
        raise
