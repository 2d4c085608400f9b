# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would these plans install?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: package_transactions
short_description: List the installations of plans, for a simulation
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns plans of the driver, the container engine and its toolkit into what M(baremetal.nim.package_transaction) simulates.
positional: _input
options:
  _input:
    description: Result of M(baremetal.nim.gpu_host_info).
    type: dict
    required: true
  engine:
    description: Result of P(baremetal.nim.engine_plan#filter).
    type: dict
  toolkit:
    description: Result of P(baremetal.nim.toolkit_plan#filter).
    type: dict
  driver:
    description: Result of P(baremetal.nim.driver_plan#filter).
    type: dict
  simulated:
    description: C(transactions) that M(baremetal.nim.package_transaction) has told in this run; what is known is not asked again.
    type: dict
"""

EXAMPLES = r"""
- name: See what the driver's packages would do
  baremetal.nim.package_transaction:
    manager: apt
    transactions: "{{ preflight_host | baremetal.nim.package_transactions(driver=plan) }}"
"""

RETURN = r"""
_value:
  description: The option O(baremetal.nim.package_transaction#module:transactions); empty when nothing is to be installed.
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._transactions import package_transactions


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"package_transactions": package_transactions}
