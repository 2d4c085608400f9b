# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a fleet as a table."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_status
short_description: Show the NIM services of a fleet as a table
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns the variables of hosts after M(baremetal.nim.gpu_host_info) (registered as C(preflight_host)) into text.
options:
  _input:
    description: Variables of hosts, as C(ansible_play_hosts_all | map('extract', hostvars\)) gives them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the fleet
  ansible.builtin.debug:
    msg: "{{ (ansible_play_hosts_all | map('extract', hostvars) | baremetal.nim.nim_status).splitlines() }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: Lines of a table with a heading.
  type: str
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._report import status


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_status": status}
