# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of nim_weights: the comparison in slices, and its progress while it lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._staging import amount
from ansible_collections.baremetal.nim.plugins.plugin_utils._slices import SlicedAction


class ActionModule(SlicedAction):
    """Compares staged weights with their sums."""

    module = "baremetal.nim.nim_weights"
    timeout = 14400.0

    def subject(self, args: Mapping[str, Any]) -> str:
        """Return what is compared."""
        return "weights"

    def success(self, result: Mapping[str, Any]) -> str:
        """Return how much was compared."""
        return f"as they were staged, {amount(sum(item['bytes'] for item in result.get('checked') or []))}"
