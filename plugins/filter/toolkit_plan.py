# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done about the container toolkit?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: toolkit_plan
short_description: Decide what a host needs so that containers can be given its GPUs
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Compares the state of a host with the wanted NVIDIA Container Toolkit and its CDI specification with the loaded driver
    and the GPUs, and names everything that must be done. It changes nothing; where nothing is to be done, its lists are empty.
positional: _input, wanted
options:
  _input:
    description:
      - Result of M(baremetal.nim.gpu_host_info) for the host, asked for the packages of the toolkit and for the file
        C(/etc/systemd/system/nvidia-cdi-refresh.service.d/baremetal-nim.conf).
    type: dict
    required: true
  wanted:
    description:
      - C(version) of the packages with their revision, C(repository_url) (empty for NVIDIA's), C(key_url), C(key_fingerprint),
        C(hold), C(engine) (V(docker) or V(podman)), C(rootless), and C(feature_flags) for the specification.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Say why the CDI specification would be refreshed
  ansible.builtin.debug:
    msg: "{{ plan.stale_reason }}"
  vars:
    plan: "{{ preflight_host | baremetal.nim.toolkit_plan(wanted) }}"
"""

RETURN = r"""
_value:
  description:
    - C(problems), sentences that speak against it, each with its cure.
    - C(install), whether anything of the following is to be done - C(retired) (files that name the repository again), C(key)
      and C(repository) (each with whether it is C(current)), C(unlock) and C(packages), which are one transaction. Then
      C(missing_holds).
    - C(refresh), who makes the CDI specification, V(unit) or V(generate); C(enable_units); C(stale_spec) and C(stale_reason);
      C(spec), the one that counts; C(generate), where to write it without a unit; C(remove_specs), old ones in the way;
      C(drop_in), settings of the unit.
    - C(rootless), whether the toolkit's configuration must be looked at; C(smoke), devices and the UUIDs that a container
      with each must list; C(current), whether nothing at all is to be done.
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _toolkit_plan
from ansible_collections.baremetal.nim.plugins.plugin_utils._source import of_options


def toolkit_plan(host: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """See DOCUMENTATION."""
    return _toolkit_plan.toolkit_plan(host, wanted, of_options(wanted))


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"toolkit_plan": toolkit_plan}
