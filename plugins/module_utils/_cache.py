# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies in a model cache. Private to the collection; it reads and changes nothing."""

from __future__ import annotations

import os
import stat
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._staged import LIST, MARKER


def newest(path: str) -> dict[str, Any]:
    """``files`` below a directory but for the marker, and the last ``change`` of anything there, in seconds since 1970."""
    files, change = 0, os.stat(path).st_ctime
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            facts = os.lstat(os.path.join(folder, name))
            change = max(change, facts.st_ctime)
            files += stat.S_ISREG(facts.st_mode) and name not in (MARKER, LIST)
    return {"files": files, "change": change}


def look_through(path: str) -> dict[str, Any]:
    """``files`` and ``bytes`` below a directory, each file opened; raises the OSError of the first that refuses."""

    def refuse(error: OSError) -> None:
        raise error

    files = size = 0
    for folder, _folders, names in os.walk(path, onerror=refuse):
        for name in names:
            facts = os.lstat(os.path.join(folder, name))
            # Links lead to files that are looked at where they lie.
            if stat.S_ISREG(facts.st_mode):
                with open(os.path.join(folder, name), "rb") as handle:
                    handle.read(1)
                files, size = files + 1, size + facts.st_size
    return {"files": files, "bytes": size}
