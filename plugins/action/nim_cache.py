# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of nim_cache: pull and download in slices, and their progress while they last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._staging import amount
from ansible_collections.baremetal.nim.plugins.plugin_utils._slices import SlicedAction


class ActionModule(SlicedAction):
    """Stages image and weights of a service."""

    module = "baremetal.nim.nim_cache"
    timeout = 14400.0
    renews = True

    def subject(self, args: Mapping[str, Any]) -> str:
        """Return the name of the service."""
        return f"staging {args.get('name')}"

    def success(self, result: Mapping[str, Any]) -> str:
        """Return how much is staged."""
        return f"done, {amount(result['bytes'])} of weights" if "bytes" in result else ""
