# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets weights from whom?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: staging_plan
short_description: Plan how weights spread from host to host
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Weights that no host has are downloaded by one of those that need them; then each host that has them gives them to one other in
    each round, so that their number doubles.
options:
  _input:
    description:
      - Variables of the hosts that take part, each with C(preflight_host) (what M(baremetal.nim.gpu_host_info) returned),
        C(__model_cache_needs) (the services it has to stage, as P(baremetal.nim.service_changes#filter) names them) and, where
        others reach it by another name, C(model_cache_address).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Plan
  ansible.builtin.set_fact:
    rounds: "{{ ansible_play_hosts | map('extract', hostvars) | baremetal.nim.staging_plan }}"
"""

RETURN = r"""
_value:
  description:
    - Rounds. Each maps hosts to what they C(gets) (C(service), C(source) and its C(address), both V(null) for a download) and what they
      C(gives) (C(share_key), C(path), C(to)); either may be V(null).
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._share import staging_plan


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"staging_plan": staging_plan}
