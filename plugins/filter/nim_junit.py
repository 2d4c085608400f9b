# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoints are verified, for a CI that reads JUnit?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_junit
short_description: Report the verified endpoints of a fleet as JUnit XML
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - A suite for each host, a case for each endpoint. An endpoint that failed is a failure of its class with its words; a host that failed
    before its endpoints were asked is an error.
options:
  _input:
    description: Result of P(baremetal.nim.nim_report#filter).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Write a report for CI
  ansible.builtin.copy:
    content: "{{ ansible_play_hosts_all | map('extract', hostvars) | baremetal.nim.nim_report | baremetal.nim.nim_junit }}"
    dest: verify.xml
    mode: "0644"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
_value:
  description: An XML document.
  type: str
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._report import junit


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_junit": junit}
