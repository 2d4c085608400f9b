# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a run of tests take the payloads of modules that the run before made.

Ansible reads each module with all that it imports, and packs it, once in every run; in tests that is a quarter of what a run costs.
Nothing else is changed: the payloads are the same, and made anew when a file of the collection or Ansible changes.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import sys
import time

from ansible import constants
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__

DOCUMENTATION = r"""
name: kept_payloads
short_description: Keeps the payloads of modules from one run of tests to the next
description: Links the folder in which Ansible packs modules during a run to one below C(.lab).
type: notification
"""
#: Seconds.
DAY = 86400
ROOT = pathlib.Path(__file__).resolve().parents[3]


def folder() -> pathlib.Path:
    """Where payloads of these very files lie."""
    digest = hashlib.sha256(f"{__version__} {sys.version} {ROOT}".encode())
    for part in ("module_utils", "modules"):
        for path in sorted((ROOT / "plugins" / part).glob("*.py")):
            found = path.stat()
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return ROOT / ".lab/payloads" / digest.hexdigest()[:16]


class CallbackModule(CallbackBase):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "kept_payloads"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, _playbook: object) -> None:
        """Before the first task."""
        packed = pathlib.Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache")
        kept = folder()
        try:
            kept.mkdir(parents=True, exist_ok=True)
            for old in kept.parent.iterdir():
                # Of sources that were changed since, and of no run that is still under way.
                if old != kept and time.time() - old.stat().st_mtime > DAY:
                    shutil.rmtree(old, ignore_errors=True)
            if os.access(kept, os.W_OK | os.X_OK):
                packed.symlink_to(kept)
        except OSError:
            # Somebody who may not write there, or a second playbook of this run.
            return
