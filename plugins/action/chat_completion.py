# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of chat_completion: the wait in slices, and its progress while it lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.plugin_utils._slices import SlicedAction, verified


class ActionModule(SlicedAction):
    """Waits for an endpoint and verifies it."""

    module = "baremetal.nim.chat_completion"
    timeout = 1800.0

    def subject(self, args: Mapping[str, Any]) -> str:
        """Return the unit, or the address when there is none."""
        return str(args.get("unit") or args.get("url")).removesuffix(".service")

    def success(self, result: Mapping[str, Any]) -> str:
        """Return how long it took."""
        return verified(result)
