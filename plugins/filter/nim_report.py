# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verification of a fleet as data."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_report
short_description: Report the verified endpoints of a fleet
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns the variables of hosts after the verify stage into one list of endpoints.
options:
  _input:
    description: Variables of hosts, as C(ansible_play_hosts_all | map('extract', hostvars\)) gives them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show endpoints that are not verified
  ansible.builtin.debug:
    msg: "{{ ansible_play_hosts_all | map('extract', hostvars) | baremetal.nim.nim_report | rejectattr('verified') }}"
"""

RETURN = r"""
_value:
  description:
    - One dictionary per endpoint with C(host), C(service), C(url), C(model), C(image), C(gpus), C(ready_after_s), C(ttft_ms),
      C(usage), C(content), C(verified), C(failure_class) and C(failure).
    - And with the seconds that the verification took (C(waited_s)), its C(phases) (C(at_s), C(phase), C(detail)), and of a failure
      C(evidence) and C(next_command).
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._report import endpoints


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_report": endpoints}
