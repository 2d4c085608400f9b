#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our keys in daemon.json; everybody else's stay."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_config
short_description: Merge options into the configuration of the Docker daemon
version_added: 1.0.0
description:
  - Lays options over what C(daemon.json) holds. Keys that O(options) does not name are kept, dictionaries are merged.
  - The result is checked by C(dockerd --validate) before it replaces the file, where dockerd is installed.
  - A file that is not JSON is an error, not something to overwrite.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  diff_mode:
    support: full
options:
  options:
    description: Options that the daemon must have.
    type: dict
    required: true
  path:
    description: The configuration file.
    type: path
    default: /etc/docker/daemon.json
"""

EXAMPLES = r"""
- name: Keep containers running while the daemon restarts, and know GPUs by CDI
  baremetal.nim.docker_daemon_config:
    options:
      live-restore: true
      features: {cdi: true}
"""

RETURN = r"""
config:
  description: The whole configuration as it is, or would be, after the task.
  type: dict
  returned: always
differs:
  description: Whether something had, or has, to be done. Unlike C(changed), no C(changed_when) of a task says otherwise.
  type: bool
  returned: always
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _command, _daemon


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict", "required": True},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    before = ""
    try:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as handle:
                before = handle.read()
        current = _daemon.parse(before)
    except ValueError as error:
        module.fail_json(
            msg=f"{path} is no valid configuration: {error}. Correct it by hand, or move it away; nothing was changed."
        )
    config = _daemon.merge(current, module.params["options"])
    result = {"changed": config != current, "differs": config != current, "config": config}
    if result["changed"]:
        after = _daemon.render(config)
        if module._diff:
            result["diff"] = {"before": before, "after": after, "before_header": path, "after_header": path}
        if not module.check_mode:
            os.umask(0o022)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=module.tmpdir)
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(after)
            dockerd = module.get_bin_path("dockerd")
            if dockerd:
                run = _command.Runner(module.get_bin_path)
                code, out_text, err = run(dockerd, "--validate", "--config-file", scratch)
                if code:
                    module.fail_json(
                        msg=f"dockerd refuses the merged configuration: {(err or out_text).strip()}; {path} was not changed."
                    )
            module.atomic_move(scratch, path)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
