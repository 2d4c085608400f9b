# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why an installation of the driver failed, out of what apt, dnf and DKMS said. Private to the collection; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._driver_plan import sentence

#: What DKMS says when the compiler failed. Source: dkms 3.0 and 3.2.
_LOG = re.compile(r"Consult (\S*?/([^/\s]+)/([^/\s]+)/build/make\.log)")
_KERNEL = re.compile(r"Bad return status for module build on kernel: (\S+)")
_SKIPPED = re.compile(r"Module build for kernel (\S+) was skipped since the\s+kernel headers")
_ERROR = re.compile(r"^(?:.*/)?([^/\s]+:\d+:(?:\d+:)? (?:fatal )?error: .*)$", re.MULTILINE)


def _words(result: Mapping[str, Any]) -> str:
    """What a result says of its failure; of a command that failed, Ansible only says that it did, in each version in other words."""
    told = str(result.get("msg") or "")
    heard = str(result.get("stderr") or result.get("stdout") or "")
    return (heard or told if "cmd" in result else told or heard) or "unknown"


def driver_failure(result: Mapping[str, Any], log: str = "") -> dict[str, Any]:
    """What failed and how it is cured. RESULT is of a package module or a command, LOG the text of DKMS' log.

    Returns ``log``, the path of DKMS' log or None, and ``reason``, sentences.
    """
    failed = [item for item in result.get("results") or [] if item.get("failed")] or [result]
    said = "\n".join(str(item.get(key) or "") for item in failed for key in ("stdout", "stderr", "msg"))
    built, skipped = _LOG.search(said), _SKIPPED.search(said)
    if built:
        path, module, version = built.groups()
        kernel = _KERNEL.search(said)
        error = _ERROR.search(log)
        why = f"{error.group(1)} (" if error else "("
        reason = (
            f"DKMS cannot build {module} {version} for kernel {kernel.group(1) if kernel else 'of this host'}: {why}{path})."
            " This driver does not fit this kernel: choose a branch or a source whose driver does, or a kernel that this driver"
            " knows (nvidia_driver_branch, nvidia_driver_source, nvidia_driver_kernel)."
        )
        return {"log": path, "reason": reason}
    reason = " ".join(sentence(_words(item)) for item in failed)
    if skipped:
        reason += f" The headers of kernel {skipped.group(1)} are not installed, so DKMS built nothing for it."
    return {"log": None, "reason": reason}
