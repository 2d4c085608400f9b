# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where do clients reach services?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_outside
short_description: Say where clients reach services
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Gives services the URL by which clients reach them, C(verify.url) where a service says so, otherwise the address of the host, or the
    one that the service listens on, and its port.
  - A service that listens on the loopback of another host, and says nothing, is an error with its cure.
positional: _input, address
options:
  _input:
    description: Results of P(baremetal.nim.resolve_services#filter).
    type: list
    elements: dict
    required: true
  address:
    description: Name or address of the host.
    type: str
    required: true
seealso:
  - plugin: baremetal.nim.nim_probes
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Verify as clients do
  baremetal.nim.nim_verify:
    endpoints: "{{ resolved | baremetal.nim.nim_outside('gpu01.example.com') | baremetal.nim.nim_probes(300) }}"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The present services with their C(url) changed, and C(outside) true.
  type: list
  elements: dict
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.module_utils import _resolve


def nim_outside(services: Iterable[Mapping[str, Any]], address: str) -> list[dict[str, Any]]:
    """See DOCUMENTATION."""
    try:
        return _resolve.seen_from_outside(services, address)
    except _resolve.ResolveError as error:
        raise AnsibleFilterError(f"{address}: endpoints cannot be reached from here:\n{error}") from error


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_outside": nim_outside}
