# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the Podman of this host do?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: podman_problems
short_description: Say why the Podman of a host cannot run NIM services
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Looks at the Podman that is installed or, where none is, at the one that the system would bring.
positional: _input
options:
  _input:
    description: Result of M(baremetal.nim.gpu_host_info) for the host.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse a Podman that is too old
  ansible.builtin.assert:
    that: preflight_host | baremetal.nim.podman_problems | length == 0
"""

RETURN = r"""
_value:
  description: Sentences of what was seen, what is wanted and the cure; empty when it does.
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._preflight import podman_problems


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"podman_problems": podman_problems}
