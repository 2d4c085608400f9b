# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How reasons are listed in a message. Private to the collection; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def listed(reasons: Iterable[Any]) -> str:
    """Each reason once, on a line of its own behind a dash; further lines of one reason are indented below it."""
    texts = dict.fromkeys(str(reason).strip() for reason in reasons)
    return "\n".join("- " + "\n  ".join(text.splitlines()) for text in texts if text)
