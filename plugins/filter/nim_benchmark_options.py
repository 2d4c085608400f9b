# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the options of a benchmark what its module takes?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_benchmark_options
short_description: Check the options of the benchmark stage
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Returns options of M(baremetal.nim.nim_benchmark) as they were given, or fails with everything that is wrong with them at once, such
    as a key that nothing reads.
  - What the stage sets itself for each service, such as O(ignore:url), is refused as well.
positional: _input, variables
options:
  _input:
    description: The options as a dictionary, or as the YAML or JSON of one, as surveys and C(-e name=value) give it.
    type: raw
    required: true
  variables:
    description: Names of variables. One that is almost that of a variable which the stage reads is refused.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Refuse a misspelt option
  ansible.builtin.debug:
    msg: "{{ {'concurency': [1]} | baremetal.nim.nim_benchmark_options }}"
"""

RETURN = r"""
_value:
  description: The options.
  type: dict
"""

from collections.abc import Iterable
from typing import Any

from ansible.errors import AnsibleFilterError


def nim_benchmark_options(given: Any, variables: Iterable[str] = ()) -> dict[str, Any]:
    """See DOCUMENTATION."""
    # Ansible imports all filters to find one, in each process that it forks for a host; see tests/perf/README.md.
    from ansible_collections.baremetal.nim.plugins.plugin_utils._benchmark_options import checked

    try:
        return checked(given, variables)
    except ValueError as exc:
        raise AnsibleFilterError(f"nim_benchmark: {exc}") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_benchmark_options": nim_benchmark_options}
