# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is this host fit?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_problems
short_description: List every reason why a host cannot run its NIM services
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Compares the state of a host with what its services need. Each sentence names what was seen, what is wanted and the cure.
positional: _input, wanted, services, requirements
options:
  _input:
    description: Result of M(baremetal.nim.gpu_host_info) for the host.
    type: dict
    required: true
  wanted:
    description:
      - C(supported_systems), C(architectures), C(min_systemd), C(min_python), C(min_memory_gb), C(max_clock_skew) in
        seconds, C(driver_plan), the result of P(baremetal.nim.driver_plan#filter), and C(disk_gb), a dictionary of paths to GB per
        new service.
      - Optional are C(engine_plan), the result of P(baremetal.nim.engine_plan#filter), and C(transactions), those of
        M(baremetal.nim.package_transaction) for what will be installed.
      - Optional are C(engine), C(docker_version), the version that will be installed, C(toolkit), a dictionary of C(version) and
        C(feature_flags) of the container toolkit, and C(warn_only), names of checks that only warn.
    type: dict
    required: true
  services:
    description: Result of P(baremetal.nim.resolve_services#filter).
    type: list
    elements: dict
    required: true
  requirements:
    description: C(requirements) of M(baremetal.nim.nim_requirements); without them GPU memory is not checked.
    type: dict
"""

EXAMPLES = r"""
- name: Refuse an unfit host
  ansible.builtin.assert:
    that: problems | selectattr('severity', 'equalto', 'error') | length == 0
    fail_msg: "{{ problems | map(attribute='message') | baremetal.nim.reasons }}"
  vars:
    problems: "{{ preflight_host | baremetal.nim.preflight_problems(wanted, services) }}"
"""

RETURN = r"""
_value:
  description: >-
    Per problem C(check), the name by which it can be made a warning, C(message), a sentence, and C(severity), V(error) or
    V(warning); empty when the host is fit.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _preflight
from ansible_collections.baremetal.nim.plugins.plugin_utils._source import of_options


def preflight_problems(
    host: Mapping[str, Any],
    wanted: Mapping[str, Any],
    services: list[dict[str, Any]],
    requirements: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """See DOCUMENTATION."""
    return _preflight.preflight_problems(host, wanted, services, requirements, of_options(wanted))


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"preflight_problems": preflight_problems}
