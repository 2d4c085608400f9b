# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May these installations run?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: transaction_problems
short_description: Read simulated installations for what must not happen
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Finds, in the result of M(baremetal.nim.package_transaction), packages of others that would be removed, downgraded or changed, and an
    engine that is too old or cannot be beside what is there.
positional: _input
options:
  _input:
    description: C(transactions) of the result.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse what takes something away
  ansible.builtin.assert:
    that: simulated.transactions | baremetal.nim.transaction_problems | length == 0
"""

RETURN = r"""
_value:
  description: One sentence per problem; empty when they may run.
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._transactions import transaction_problems


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"transaction_problems": transaction_problems}
