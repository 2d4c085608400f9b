# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How are the endpoints of services verified?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_probes
short_description: Say how the endpoints of services are verified
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns services, or records of their deployments, into the endpoints that M(baremetal.nim.nim_verify) takes.
  - They are asked on their host, and their units are watched. Results of P(baremetal.nim.nim_outside#filter) are asked where clients
    reach them, without a unit.
positional: _input, timeout, options
options:
  _input:
    description: Results of P(baremetal.nim.resolve_services#filter), or records that M(baremetal.nim.gpu_host_info) returns.
    type: list
    elements: dict
    required: true
  timeout:
    description: Seconds that each may take until it is ready. By default its own C(start_timeout).
    type: float
  options:
    description: Options of M(baremetal.nim.chat_completion) for all of them; those of a service (C(verify)) win.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Verify
  baremetal.nim.nim_verify:
    endpoints: "{{ nim_services | baremetal.nim.resolve_services(preflight_host) | baremetal.nim.nim_probes(300) }}"
"""

RETURN = r"""
_value:
  description: Endpoints, in the given order.
  type: list
  elements: dict
"""

from collections.abc import Iterable, Mapping
from typing import Any


def nim_probes(
    services: Iterable[Mapping[str, Any]], timeout: float | None = None, options: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """See DOCUMENTATION."""
    # Ansible imports all filters to find one, in each process that it forks for a host; see tests/perf/README.md.
    from ansible_collections.baremetal.nim.plugins.module_utils import _probe

    found = []
    for service in services:
        # Where clients reach a service is no way to tell that this very instance serves.
        verify = {key: value for key, value in (service.get("verify") or {}).items() if key != "url"}
        (probe,) = _probe.probes([{**service, "verify": verify}], timeout, options or {})
        if service.get("outside"):
            del probe["unit"]
        found.append(probe)
    return found


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_probes": nim_probes}
