# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verification of a fleet for people."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nim_html
short_description: Draw the verification of a fleet as one HTML file
version_added: 1.0.0
author: The baremetal.nim maintainers (@baremetal-nim)
description:
  - A page with a summary of the fleet, its endpoints, their times to the first token and until they were ready, the phases of each
    wait, failures with their evidence and the command that comes next, and what made it.
  - It needs nothing but itself (no script, font or network), and can be read on a phone.
positional: _input, generated
options:
  _input:
    description: Result of P(baremetal.nim.nim_report#filter).
    type: list
    elements: dict
    required: true
  generated:
    description: When it was made, for people.
    type: str
    default: ""
requirements:
  - matplotlib (on the controller)
"""

EXAMPLES = r"""
- name: Write a page of the verification
  ansible.builtin.copy:
    content: "{{ ansible_play_hosts_all | map('extract', hostvars) | baremetal.nim.nim_report | baremetal.nim.nim_html }}"
    dest: verify.html
    mode: "0644"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
_value:
  description: An HTML document.
  type: str
"""

import json
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.basic import missing_required_lib
from ansible.release import __version__ as ansible_core

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def collection_version(root: pathlib.Path = _ROOT) -> str:
    """The version of the collection: of one that was installed from its manifest, of a checkout from galaxy.yml."""
    manifest = root / "MANIFEST.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"])
    return f"{yaml.safe_load((root / 'galaxy.yml').read_text(encoding='utf-8'))['version']} (a checkout)"


def nim_html(report: Iterable[Mapping[str, Any]], generated: str = "") -> str:
    """See DOCUMENTATION."""
    # Ansible imports all filters to find one, in each process that it forks for a host; see tests/perf/README.md.
    from ansible_collections.baremetal.nim.plugins.plugin_utils._html_verify import page

    environment = {
        "baremetal.nim": collection_version(),
        "ansible-core": ansible_core,
        "Python": platform.python_version(),
        "controller": platform.node(),
        "time": generated or None,
    }
    try:
        return page(list(report), generated, environment)
    except ImportError as exc:
        raise AnsibleFilterError(missing_required_lib(str(exc), reason="to draw the report on the controller")) from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Names to functions."""
        return {"nim_html": nim_html}
