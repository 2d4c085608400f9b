# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to change on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: service_changes
short_description: Compare resolved NIM services with what a host runs
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Names the services whose weights must be staged, that must be deployed (configured, restarted or verified) and that
    must be removed, and those that run as they should but whose watchdog does not. With nothing to do, all lists are empty.
positional: _input, host
options:
  _input:
    description: Result of P(baremetal.nim.resolve_services#filter).
    type: list
    elements: dict
    required: true
  host:
    description: Result of M(baremetal.nim.gpu_host_info) for the host.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Say what would be restarted
  ansible.builtin.debug:
    msg: "{{ (nim_services | baremetal.nim.resolve_services(preflight_host) | baremetal.nim.service_changes(preflight_host)).deploy }}"
"""

RETURN = r"""
_value:
  description: Lists V(stage), V(deploy), V(watch) and V(remove) of services, each with the list of its C(reasons).
  type: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._resolve import service_changes


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"service_changes": service_changes}
