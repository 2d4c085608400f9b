# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this transaction run?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: driver_transaction_problems
short_description: Read a simulated installation of the driver for what must not happen
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Finds, in the result of M(ansible.builtin.apt) or M(ansible.builtin.dnf) in check mode, packages that cannot be resolved,
    kernels that would come or go, and packages that would be removed though they are not the driver's.
positional: _input, plan
options:
  _input:
    description: Result of the package module in check mode.
    type: dict
    required: true
  plan:
    description: Result of P(baremetal.nim.driver_plan#filter).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse what does more than it should
  ansible.builtin.assert:
    that: simulated | baremetal.nim.driver_transaction_problems(plan) | length == 0
"""

RETURN = r"""
_value:
  description: One sentence per problem; empty when the transaction may run.
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._driver_plan import transaction_problems


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"driver_transaction_problems": transaction_problems}
