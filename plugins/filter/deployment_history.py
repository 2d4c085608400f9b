# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was deployed before?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: deployment_history
short_description: List the deployments of a service before the next one
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Adds a deployment to those that its record remembers; the oldest are forgotten beyond 20.
options:
  _input:
    description: Record of the last deployment, as M(baremetal.nim.gpu_host_info) returns it; V(null) when there was none.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Remember
  ansible.builtin.set_fact:
    history: "{{ preflight_host.services.llama.record | baremetal.nim.deployment_history }}"
"""

RETURN = r"""
_value:
  description:
    - Deployments, oldest first, each with C(image), C(image_reference), C(config_hash), C(deployed_at) and C(verified), or, where
      it failed and its predecessor came back, with C(image), C(deployed_at), C(verified=false) and C(reason).
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._deployment import history


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"deployment_history": history}
