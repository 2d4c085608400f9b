# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many connections this process may open at a time.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import contextlib
import os
import resource

from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault

# What Python, its event loop and a resolver open besides.
_SPARE = 64


def allow_files(connections: int, strict: bool = True) -> None:
    """Let this process have so many connections open at a time: most shells allow a thousand files, and more where one asks.

    Raises Fault client_limit when that cannot be; strict: or leaves it as it is, since not all of them may be needed.
    """
    wanted = connections + _open_now() + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):
        if hard != resource.RLIM_INFINITY and hard < wanted:
            # Root may.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if strict:
        seen = f"this host lets the process have {hard} files open"
        raise Fault("client_limit", seen, f"{wanted}, for {connections} requests in flight")


def _open_now() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0
