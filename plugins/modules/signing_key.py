#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository's signing key, trusted by its fingerprint only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: signing_key
short_description: Install the signing key of a package repository by its fingerprint
version_added: 1.0.0
description:
  - Downloads an OpenPGP key and installs it only if every primary key in it is one that was asked for. So neither a
    hijacked download nor a silently rotated key becomes trusted.
  - A file that already holds just the wanted keys is left alone; nothing is downloaded then.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes
attributes:
  check_mode:
    support: partial
    details:
      - In check mode nothing is downloaded, so a wrong fingerprint is not found.
options:
  url:
    description: Where the key is.
    type: str
    required: true
  dest:
    description: File to install; its name ends in C(.asc) or C(.gpg) as the content is armored or binary.
    type: path
    required: true
  fingerprint:
    description: Fingerprints (40 hexadecimal digits; spaces are ignored) of the primary keys that the file may hold.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds the download may take.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: Trust NVIDIA's container toolkit repository
  baremetal.nim.signing_key:
    url: https://nvidia.github.io/libnvidia-container/gpgkey
    dest: /etc/apt/keyrings/nvidia-container-toolkit.asc
    fingerprint: C95B 321B 61E8 8C18 09C4  F759 DDCA E044 F796 ECB0
"""

RETURN = r"""
fingerprints:
  description: Fingerprints of the installed keys.
  type: list
  elements: str
  returned: always
"""

import http.client
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url
from ansible_collections.baremetal.nim.plugins.module_utils._openpgp import fingerprints


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "fingerprint": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    url, dest = module.params["url"], module.params["dest"]
    wanted = sorted("".join(text.split()).upper() for text in module.params["fingerprint"])
    try:
        with open(dest, "rb") as handle:
            present = sorted(fingerprints(handle.read()))
    except (OSError, ValueError):
        present = []
    if present == wanted:
        module.exit_json(changed=False, fingerprints=present)
    if module.check_mode:
        module.exit_json(changed=True, fingerprints=wanted)
    response, info = fetch_url(module, url, timeout=module.params["timeout"])
    if info["status"] != 200:
        module.fail_json(
            msg=f"{url}: {info['msg']} (status {info['status']}), wanted the signing key; set the URL to one this host reaches."
        )
    try:
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        module.fail_json(msg=f"{url}: the download broke off ({error}); {dest} was not changed. Try again.")
    try:
        got = sorted(fingerprints(data))
    except ValueError as error:
        module.fail_json(msg=f"{url}: what came {error}; {dest} was not changed.")
    if got != wanted:
        module.fail_json(
            msg=f"{url}: the key has the fingerprint {', '.join(got)}, wanted {', '.join(wanted)}; {dest} was not changed."
            " If the vendor has announced a new key, set its fingerprint."
        )
    # apt reads keys as a user of its own, whatever root's umask is.
    os.umask(0o022)
    os.makedirs(os.path.dirname(dest), exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
    module.atomic_move(scratch, dest)
    os.chmod(dest, 0o644)
    module.exit_json(changed=True, fingerprints=got)


if __name__ == "__main__":
    main()
