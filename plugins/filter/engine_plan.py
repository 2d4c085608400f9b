# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine does this host get?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: engine_plan
short_description: Plan the container engine of a host, from what is there
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Decides, without asking the host, which packages of a container engine are missing and what speaks against touching the one that is
    there. A Docker that serves and is new enough is used as it is, wherever it came from.
positional: _input, wanted
options:
  _input:
    description: Result of M(baremetal.nim.gpu_host_info).
    type: dict
    required: true
  wanted:
    description: >-
      C(kind), C(source), C(version), C(options), C(restart_allowed), C(repository_url), C(repository_suite), C(key_url) and
      C(key_fingerprint), which are the variables of the role container_engine.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse what cannot be done
  ansible.builtin.assert:
    that: plan.problems | length == 0
    fail_msg: "{{ plan.problems | map(attribute='message') | join(' ') }}"
  vars:
    plan: "{{ preflight_host | baremetal.nim.engine_plan(wanted) }}"
"""

RETURN = r"""
_value:
  description: >-
    C(problems), each with C(check), a name of preflight's, and C(message); C(packages) and C(libraries) to install;
    C(engine_changes), whether the engine's own packages are among them; C(repository), that of Docker's where it is needed, with
    C(current), whether the host has it; C(protect), whether containers must be kept while packages change; C(image_dir), where images
    will lie; and C(transaction), what M(baremetal.nim.package_transaction) is asked first.
  type: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._engine import engine_plan


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"engine_plan": engine_plan}
