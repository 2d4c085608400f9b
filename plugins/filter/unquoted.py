# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which options are text and were written without quotes?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: unquoted
short_description: Find options that are text and that YAML has made a number, a date or a truth of
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - YAML reads V(28.10) as the number 28.1, V(0755) as 493, V(on) as true and V(2025-01-01) as a date. An option that is a version is another
    one then. A whole number that was written as one passes.
positional: _input
options:
  _input:
    description: Names of options to their values, each a text or a list of texts.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse versions that are none any more
  ansible.builtin.assert:
    that: changed | length == 0
    fail_msg: "{{ changed | baremetal.nim.reasons }}"
  vars:
    changed: "{{ {'container_engine_version': container_engine_version} | baremetal.nim.unquoted }}"
"""

RETURN = r"""
_value:
  description: Sentences of what was seen, how it was written where that is known, and the cure; empty when all is as it was written.
  type: list
  elements: str
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.module_utils._written import option_problems
from ansible_collections.baremetal.nim.plugins.plugin_utils._source import of_options


def unquoted(options: Any) -> list[str]:
    """See DOCUMENTATION."""
    if not isinstance(options, Mapping):
        raise AnsibleFilterError(f"unquoted: got {type(options).__name__}, wanted a dictionary of options")
    return option_problems(options, {name: name for name in options}, of_options(options))


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"unquoted": unquoted}
