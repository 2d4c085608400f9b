# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn inventory data and host state into decisions."""

from __future__ import annotations

DOCUMENTATION = r"""
name: resolve_services
short_description: Resolve the NIM services of a host
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns the operator's list of services into a fully resolved one - image reference, contract, GPU devices, port,
    mounts, environment, limits and the hash of it all.
  - Fails with every problem of every service in one message. Options that are text are refused where YAML has made a number, a date or a
    truth of them (V(1.10), V(0755), V(on)), and variables of O(_input) that carry a secret.
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
  cache_root:
    description: Directory that holds one model cache per service.
    type: str
    default: /var/lib/nim/cache
  config_dir:
    description: Directory of the env files.
    type: str
    default: /etc/nim
  state_dir:
    description: Directory of the deployment records.
    type: str
    default: /var/lib/nim/services
  bind_address:
    description: Address that endpoints listen on when a service does not say.
    type: str
    default: 127.0.0.1
  offline:
    description: Whether services have no network to registry and weights, when they do not say.
    type: bool
    default: false
  api_key:
    description: Key for services that serve with it (C(key_at_runtime)); none where it does not matter. Only a short trace of it is returned.
    type: str
  told:
    description:
      - What registries said of images, C(images) of M(baremetal.nim.nim_image_info). The label of an image that is on the host goes first.
    type: dict
    default: {}
  cache_size_gb:
    description: Free space in GB that a service wants for its weights when it does not say.
    type: int
    default: 0
  engine:
    description: Container engine that runs the services, V(docker) or V(podman).
    type: str
    default: docker
"""

EXAMPLES = r"""
- name: Resolve
  ansible.builtin.set_fact:
    resolved: "{{ nim_services | baremetal.nim.resolve_services(preflight_host) }}"
"""

RETURN = r"""
_value:
  description: The resolved services, in the given order.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.module_utils import _resolve
from ansible_collections.baremetal.nim.plugins.module_utils._written import Sources
from ansible_collections.baremetal.nim.plugins.plugin_utils import _source


def resolve_services(services: Any, host: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """See DOCUMENTATION."""
    defaults = {
        "cache_root": "/var/lib/nim/cache",
        "config_dir": "/etc/nim",
        "state_dir": "/var/lib/nim/services",
        "bind_address": "127.0.0.1",
        "offline": False,
        "api_key": None,
        "cache_size_gb": 0,
        "told": {},
        "engine": "docker",
    }
    unknown = set(options) - set(defaults)
    if unknown:
        raise AnsibleFilterError(f"resolve_services: unknown options {', '.join(sorted(unknown))}")
    try:
        return _resolve.resolve_services(services, host, {**defaults, **options, "written": written(services)})
    except _resolve.ResolveError as error:
        raise AnsibleFilterError(
            f"{host.get('hostname', 'host')}: nim_services cannot be deployed:\n{error}"
        ) from error


def written(services: Any) -> dict[int, Sources]:
    """How what is no text stands in the files of the operator, for each service by its position."""
    return {
        position: dict(_source.sources(spec))
        for position, spec in enumerate(services if isinstance(services, (list, tuple)) else [])
    }


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"resolve_services": resolve_services}
