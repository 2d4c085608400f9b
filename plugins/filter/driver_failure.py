# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why did the driver not install?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: driver_failure
short_description: Say why an installation of the driver failed
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - Reads what a package module or a command said. Where DKMS could not build a kernel module, it names module, kernel, log and,
    with the text of that log, the first error of the compiler.
positional: _input, log
options:
  _input:
    description: Result of M(ansible.builtin.apt), M(ansible.builtin.dnf) or M(ansible.builtin.command) that failed, or of a loop of them.
    type: dict
    required: true
  log:
    description: Text of the log that an earlier call named.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Say what happened
  ansible.builtin.fail:
    msg: "{{ (ansible_failed_result | baremetal.nim.driver_failure).reason }}"
"""

RETURN = r"""
_value:
  description: C(log), path of DKMS' log on the host or V(null); C(reason), sentences, the last of them a cure where one is known.
  type: dict
"""

from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._driver_build import driver_failure


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"driver_failure": driver_failure}
