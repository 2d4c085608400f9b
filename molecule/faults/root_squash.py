#!/usr/bin/python3
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts a directory as an NFS server with root_squash exports it: root_squash.py DIRECTORY MOUNT_POINT. Needs python3-fusepy.

Every call is made with the caller's user and group, as nfsd makes it, and root becomes nobody. The kernel's own permission
checks, which root passes, are off (no default_permissions), as a client leaves them to the server.
"""

import ctypes
import errno
import os
import stat
import sys

import fusepy as fuse

NOBODY = 65534


class Squash(fuse.Operations):
    """The calls, each as its caller."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.libc = ctypes.CDLL(None)
        self.caller = NOBODY, NOBODY

    def __call__(self, op, path, *args):
        """Becomes the caller, then does what it asks for."""
        uid, gid, _pid = fuse.fuse_get_context()
        self.caller = (uid or NOBODY), (gid or NOBODY)
        if op == "unlink" and ".fuse_hidden" in path:
            # libfuse itself, done with a file that was removed while it was open.
            self.caller = 0, 0
        for become in (self.libc.setfsuid, self.libc.setfsgid):
            become(0)
        self.libc.setfsgid(self.caller[1])
        self.libc.setfsuid(self.caller[0])
        paths = [path, args[0]] if op in ("rename", "link") else [path]
        rest = args[len(paths) - 1 :]
        if not hasattr(self, op):
            raise fuse.FuseOSError(errno.EFAULT)
        return getattr(self, op)(*(self.root + item for item in paths if item is not None), *rest)

    def access(self, path, mode):
        """By the mode bits, for the caller."""
        facts = os.lstat(path)
        shift = 6 if facts.st_uid == self.caller[0] else 3 if facts.st_gid == self.caller[1] else 0
        if mode & ~(facts.st_mode >> shift):
            raise fuse.FuseOSError(errno.EACCES)
        return 0

    def getattr(self, path, _fh=None):
        """Facts of a file."""
        facts = os.lstat(path)
        keys = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_atime", "st_mtime", "st_ctime", "st_blocks")
        return {key: getattr(facts, key) for key in keys}

    def readdir(self, path, _fh):
        """Names in a directory."""
        return [".", "..", *os.listdir(path)]

    def statfs(self, path):
        """Space."""
        facts = os.statvfs(path)
        keys = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize", "f_namemax")
        return {key: getattr(facts, key) for key in keys}

    def open(self, path, flags):
        """Opens a file."""
        return os.open(path, flags)

    def create(self, path, mode, _fi=None):
        """Makes a file."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, stat.S_IMODE(mode))

    def read(self, _path, size, offset, handle):
        """Reads."""
        return os.pread(handle, size, offset)

    def write(self, _path, data, offset, handle):
        """Writes."""
        return os.pwrite(handle, data, offset)

    def truncate(self, path, length, handle=None):
        """Cuts off."""
        return os.ftruncate(handle, length) if handle is not None else os.truncate(path, length)

    def release(self, _path, handle):
        """Closes."""
        return os.close(handle)

    def fsync(self, _path, _data, handle):
        """Waits for the disk."""
        return os.fsync(handle)

    def symlink(self, path, target):
        """Makes a symbolic link."""
        return os.symlink(target, path)

    def link(self, path, source):
        """Makes a hard link."""
        return os.link(source, path)

    def chown(self, path, uid, gid):
        """Gives a file away."""
        return os.chown(path, uid, gid, follow_symlinks=False)

    def utimens(self, path, times=None):
        """Sets times."""
        return os.utime(path, times)

    chmod = staticmethod(os.chmod)
    mkdir = staticmethod(os.mkdir)
    readlink = staticmethod(os.readlink)
    rename = staticmethod(os.rename)
    rmdir = staticmethod(os.rmdir)
    unlink = staticmethod(os.unlink)


if __name__ == "__main__":
    os.umask(0)
    os.setgroups([])
    fuse.FUSE(
        Squash(sys.argv[1]),
        sys.argv[2],
        foreground=True,
        nothreads=True,
        allow_other=True,
        attr_timeout=0,
        entry_timeout=0,
    )
