# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a fleet as data."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_status_items
short_description: Report the NIM services of a fleet as data
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns the variables of hosts after M(baremetal.nim.gpu_host_info) (registered as C(preflight_host)), and where endpoints were asked
    after M(baremetal.nim.nim_info) (looped over results of this filter, registered as C(nim_status_answers)), into a list of services.
options:
  _input:
    description: Variables of hosts, as C(ansible_play_hosts_all | map('extract', hostvars\)) gives them.
    type: list
    elements: dict
    required: true
seealso:
  - plugin: baremetal.nim.nim_status
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Show what needs somebody
  ansible.builtin.debug:
    msg: >-
      {{ ansible_play_hosts_all | map('extract', hostvars) | baremetal.nim.nim_status_items | map(attribute='problem') | select
      | map(attribute='message') }}
  run_once: true
"""

RETURN = r"""
_value:
  description:
    - One dictionary per service of each host; one without a C(service) for a host that has none or was not read.
    - It has C(host), C(service), C(state) in words, C(unit) (C(name), C(exists), C(active), C(sub), C(result), C(enabled)),
      C(uptime_s), C(restarts), C(model), C(gpus), C(image), C(image_reference), C(contract), C(engine), C(url), C(cache)
      (C(path) and C(bytes)), C(deployed_at), C(verified), C(history) (the deployments before, oldest first) and C(watchdog_gave_up).
    - C(live) is what the endpoint said, where it was asked - C(ready), C(model), C(adapters), C(version), C(profile),
      C(requests_running), C(requests_waiting), C(kv_cache_usage) (0 to 1) and C(failure).
    - C(problem) has C(seen), C(wanted), C(next_command) and all of it as C(message) where a host could not be read, a unit failed or
      is missing, or a watchdog gave up. Otherwise it is none.
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._report import status_items


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_status_items": status_items}
