# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do containers see exactly the GPUs they were given?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: toolkit_smoke_problems
short_description: Compare the GPUs that containers list with those they were given
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Reads the results of containers that ran C(nvidia-smi -L), one for each device of the C(smoke) list that
    P(baremetal.nim.toolkit_plan#filter) returns.
options:
  _input:
    description: Registered C(results) of the loop.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Prove that containers see what they were given
  ansible.builtin.assert:
    that: run.results | baremetal.nim.toolkit_smoke_problems | length == 0
"""

RETURN = r"""
_value:
  description: One sentence per container that failed or listed other GPUs than it was given; empty when all is well.
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._toolkit_plan import smoke_problems


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"toolkit_smoke_problems": smoke_problems}
