# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of nim_verify: the wait for all endpoints in slices, and the progress of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.plugin_utils._slices import SlicedAction, number, verified


class ActionModule(SlicedAction):
    """Waits for endpoints and verifies them."""

    module = "baremetal.nim.nim_verify"
    timeout = 1800.0
    renews = True

    def subject(self, args: Mapping[str, Any]) -> str:
        """Return what the wait is about while nothing is known of any endpoint."""
        return "endpoints"

    def success(self, result: Mapping[str, Any]) -> str:
        """Return how long one endpoint took."""
        return verified(result)

    def parts(
        self, args: Mapping[str, Any], result: Mapping[str, Any]
    ) -> Iterator[tuple[str, float, Mapping[str, Any]]]:
        """Return each endpoint by its unit, or its name when it has none."""
        given = {endpoint.get("name"): endpoint for endpoint in args.get("endpoints") or []}
        for part in result.get("results") or []:
            endpoint = given.get(part.get("name")) or {}
            subject = str(endpoint.get("unit") or part.get("name")).removesuffix(".service")
            yield subject, number(endpoint.get("timeout"), self.timeout), part

    def limit(self, args: Mapping[str, Any]) -> float:
        """Return the longest timeout of any endpoint."""
        given = args.get("endpoints") or []
        return max([number(endpoint.get("timeout"), self.timeout) for endpoint in given], default=self.timeout)
