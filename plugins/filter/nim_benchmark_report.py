# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks of a fleet as data."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_benchmark_report
short_description: Report the benchmarks of a fleet
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns the variables of hosts after the benchmark stage into one report.
positional: _input, generated
options:
  _input:
    description:
      - Variables of hosts, as C(ansible_play_hosts_all | map('extract', hostvars\)) gives them. C(nim_benchmark_results) is what the
        loop over M(baremetal.nim.nim_benchmark) registered.
    type: list
    elements: dict
    required: true
  generated:
    description: The time to put into the report.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what was measured
  ansible.builtin.debug:
    msg: "{{ ansible_play_hosts_all | map('extract', hostvars) | baremetal.nim.nim_benchmark_report(now(utc=true, fmt='%Y-%m-%d %H:%M UTC')) }}"
"""

RETURN = r"""
_value:
  description:
    - C(generated), C(benchmarks) with a dictionary per service that has C(host), C(service), C(failure) and what
      M(baremetal.nim.nim_benchmark) returned, and C(endpoints) as P(baremetal.nim.nim_report#filter) gives them.
  type: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._report import benchmarks


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_benchmark_report": benchmarks}
