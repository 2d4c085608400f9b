# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why is it refused?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: reasons
short_description: List reasons in a message, one a line
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Takes the place of a join by a line break. Ansible leaves a backslash in a template of a block scalar as it is, so that such a join
    shows C(\\n) instead of breaking the line.
positional: _input
options:
  _input:
    description: The reasons. One that is there twice is listed once, an empty one not at all.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse an unfit host
  ansible.builtin.assert:
    that: problems | length == 0
    fail_msg: |-
      {{ inventory_hostname }} was not touched:
      {{ problems | baremetal.nim.reasons }}
"""

RETURN = r"""
_value:
  description: The list, each reason behind a dash on a line of its own.
  type: str
"""

from collections.abc import Iterable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.module_utils._reasons import listed


def reasons(items: Any) -> str:
    """See DOCUMENTATION."""
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise AnsibleFilterError(f"reasons: got {type(items).__name__}, wanted a list of sentences")
    return listed(items)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"reasons": reasons}
