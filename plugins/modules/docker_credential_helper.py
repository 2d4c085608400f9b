#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry's login in the care of a credential helper."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_credential_helper
short_description: Let a credential helper keep Docker's login of a registry
version_added: 1.0.0
description:
  - Names the helper of one registry in the configuration of Docker's client (C(credHelpers)). All else there is kept.
  - A login that the file itself holds for this registry moves into the helper.
  - A helper whose program is not on the host, or that does not give back the login it was told, is an error before anything is
    changed.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  diff_mode:
    details: The file may hold logins of other registries.
options:
  registry:
    description: The registry, as images name it.
    type: str
    required: true
  helper:
    description: What follows C(docker-credential-) in the name of the helper's program.
    type: str
    required: true
  path:
    description: The configuration file.
    type: path
    default: /root/.docker/config.json
"""

EXAMPLES = r"""
- name: Keep the login of nvcr.io in the password store of root
  baremetal.nim.docker_credential_helper:
    registry: nvcr.io
    helper: pass
"""

RETURN = r"""
program:
  description: The helper's program.
  type: str
  returned: always
"""

import json
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _command, _credentials, _daemon
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "registry": {"type": "str", "required": True},
            "helper": {"type": "str", "required": True},
            "path": {"type": "path", "default": "/root/.docker/config.json"},
        },
        supports_check_mode=True,
    )
    registry, helper, path = (module.params[name] for name in ("registry", "helper", "path"))
    name = _credentials.program(helper)
    program = module.get_bin_path(name)
    if not program:
        module.fail_json(
            msg=(
                f"{name} is not on this host, wanted the program that keeps the login of {registry}; install it, or name"
                " another credential helper. Nothing was changed."
            )
        )
    try:
        text = ""
        if os.path.exists(path):
            with open(path, encoding="utf-8") as handle:
                text = handle.read()
        current = _daemon.parse(text)
        config = _credentials.with_helper(current, registry, helper)
    except ValueError as error:
        module.fail_json(
            msg=f"{path} is no valid configuration: {error}. Correct it by hand, or move it away; nothing was changed."
        )
    changed = config != current
    if changed and not module.check_mode:
        login = _credentials.stored(current, registry)
        if login:
            asked = {"ServerURL": registry, "Username": login[0], "Secret": login[1]}
            code, out, err = _command.feed([program, "store"], json.dumps(asked))
            said = (err or out).strip() or f"exit status {code}"
            if not code and _credentials.answer(_command.feed([program, "get"], registry, 15)[1]) != login:
                # One that ends before it has read what it is told may say that all is well.
                code, said = 1, "it does not give back what it was told"
            if code:
                said = shorten(said.replace(login[1], "***"), 500)
                module.fail_json(msg=f"{name} did not take the login of {registry}: {said}. Nothing was changed.")
        # What lies in this file may be a secret.
        os.umask(0o077)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        number, scratch = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(number, "w", encoding="utf-8") as target:
            target.write(_daemon.render(config))
        module.atomic_move(scratch, path)
    module.exit_json(changed=changed, program=program)


if __name__ == "__main__":
    main()
