# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom has the registry to be asked for before anything can be decided?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: undecided_images
short_description: List images whose contract only their registry can tell
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Images of services with C(contract) V(auto) that are not on the host, and whose name and tag tell no contract.
    P(baremetal.nim.resolve_services#filter) refuses their services.
  - Services that are absent, offline or wrong otherwise ask for nothing.
positional: _input, host
options:
  _input:
    description: The operator's list of services.
    type: list
    elements: dict
    required: true
  host:
    description: Result of M(baremetal.nim.gpu_host_info) for the host.
    type: dict
    required: true
  offline:
    description: Whether services have no network to registry and weights, when they do not say.
    type: bool
    default: false
  told:
    description: What registries said of images already, C(images) of M(baremetal.nim.nim_image_info). Nobody is asked twice.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Ask what the images are
  baremetal.nim.nim_image_info:
    images: "{{ nim_services | baremetal.nim.undecided_images(preflight_host) }}"
"""

RETURN = r"""
_value:
  description: The images, each once, as they are pulled.
  type: list
  elements: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _resolve


def undecided_images(
    services: Any, host: Mapping[str, Any], offline: bool = False, told: Mapping[str, Any] | None = None
) -> list[str]:
    """See DOCUMENTATION."""
    return _resolve.undecided_images(services, host, {"offline": offline, "told": told or {}})


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"undecided_images": undecided_images}
