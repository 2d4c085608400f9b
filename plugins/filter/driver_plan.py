# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done about the driver?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: driver_plan
short_description: Decide which NVIDIA driver a host gets, from where and how
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Compares the state of a host with the wanted driver and names everything that must be done, in order. It changes
    nothing; where nothing is to be done, its lists are empty.
positional: _input, wanted
options:
  _input:
    description: Result of M(baremetal.nim.gpu_host_info) for the host, asked for the packages of the driver and for the files of the plan.
    type: dict
    required: true
  wanted:
    description:
      - C(source) (V(cuda_repo), V(distribution), V(mirror) or V(preinstalled)), C(branch) and C(version) (strings; an empty
        version accepts any of the branch), C(flavour) (V(open) or V(proprietary)), C(compute_only), C(kernel) (empty for the
        running one), C(hold), C(persistence), and C(mirror_url), C(mirror_suite), C(mirror_key_url), C(mirror_key_fingerprint).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Say what would be done
  ansible.builtin.debug:
    msg: "{{ plan.change }}: {{ plan.packages | join(', ') }}"
  vars:
    plan: "{{ preflight_host | baremetal.nim.driver_plan(wanted) }}"
"""

RETURN = r"""
_value:
  description:
    - C(problems), sentences that speak against it, each with its cure; C(notes), why packages change that fit the branch.
    - C(change), V(none), V(install), V(upgrade), V(downgrade) or V(switch); C(installed_version).
    - C(keys), C(repositories), C(retired) (files and packages that would fight with them), C(module_stream), C(versionlock),
      C(interrupted) (an installation of the driver was cut off, the package manager must finish it first), C(prerequisites), C(enable)
      (repositories that the host has and that are off), C(pins) and C(packages), in the order they are used; C(packages) are one
      transaction. C(build), whether DKMS must build modules that are missing while their packages are there.
    - C(command), program and arguments that install C(packages) and all that belongs to them in place of the package manager, or V(null).
    - C(holds) and, of these, C(missing_holds); C(files) with path, content and whether they differ (C(changed)); C(services).
    - C(reboot_reason), a sentence or V(null); C(current), whether nothing at all is to be done.
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _driver_plan
from ansible_collections.baremetal.nim.plugins.plugin_utils._source import of_options


def driver_plan(host: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """See DOCUMENTATION."""
    return _driver_plan.driver_plan(host, wanted, of_options(wanted))


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"driver_plan": driver_plan}
