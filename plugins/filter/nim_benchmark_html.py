# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report of benchmarks for people."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_benchmark_html
short_description: Draw a report of benchmarks as one HTML file
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Turns what P(baremetal.nim.nim_benchmark_report#filter) gives into a page with plots, tables, limits and failures. The page needs
    no network, no script and no other file, and is readable on a phone.
  - Needs the Python package C(matplotlib) on the controller.
options:
  _input:
    description: The report.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Write the page
  ansible.builtin.copy:
    content: "{{ report | baremetal.nim.nim_benchmark_html }}"
    dest: /tmp/benchmark.html
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.basic import missing_required_lib


def nim_benchmark_html(report: Mapping[str, Any]) -> str:
    """See DOCUMENTATION."""
    # Ansible imports all filters to find one, in each process that it forks for a host; see tests/perf/README.md.
    from ansible_collections.baremetal.nim.plugins.plugin_utils._html_benchmark import page

    try:
        return page(report)
    except ImportError as exc:
        raise AnsibleFilterError(missing_required_lib(str(exc), reason="to draw the report on the controller")) from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_benchmark_html": nim_benchmark_html}
