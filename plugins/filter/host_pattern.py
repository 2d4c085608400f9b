# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts is a play for?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: host_pattern
short_description: Check the hosts that a play is for
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns a pattern of hosts, or a list of patterns, into the pattern that C(hosts) of a play takes. An empty one is refused, so that
    a variable which was not filled in does not end as a run that did nothing.
  - Used in C(hosts), which Ansible's main process evaluates, it has a second effect. Ansible loads all filters of a collection where
    one of them is first used, in each process that it forks for a task on a host, unless its main process has loaded them already.
options:
  _input:
    description: A pattern such as V(nim_servers) or V(gpu01,gpu02), or a list of them.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Services of some hosts
  hosts: "{{ nim_hosts | default('nim_servers') | baremetal.nim.host_pattern }}"
  roles:
    - role: baremetal.nim.nim_service
"""

RETURN = r"""
_value:
  description: The pattern.
  type: str
"""

from typing import Any

from ansible.errors import AnsibleFilterError


def host_pattern(hosts: Any) -> str:
    """See DOCUMENTATION."""
    patterns = list(hosts) if isinstance(hosts, (list, tuple)) else [hosts]
    if not patterns or not all(isinstance(pattern, str) and pattern.strip() for pattern in patterns):
        raise AnsibleFilterError(
            f"nim_hosts is {hosts!r}, wanted a pattern of hosts such as nim_servers or gpu01,gpu02, or a list of them."
            " Name hosts or groups of the inventory, or leave nim_hosts out."
        )
    return ",".join(pattern.strip() for pattern in patterns)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"host_pattern": host_pattern}
