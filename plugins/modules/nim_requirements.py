#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NVIDIA has published about the needs of images."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_requirements
short_description: Ask NVIDIA what NIM images need of a host
version_added: 1.0.0
description:
  - Asks NVIDIA's NIM Metadata API, without credentials and without pulling anything, how much GPU memory and which driver the
    profiles of each image need. Meant to run on the controller, before anything is changed on a host.
  - Not every image is published there. What cannot be learned is V(null) with a C(note) that says why; only wrong arguments
    are an error.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes.info_module
  - baremetal.nim._attributes
options:
  url:
    description: Address of the API, or of what answers in its place.
    type: str
    default: https://api.ngc.nvidia.com/v2/nim/metadata
  services:
    description: Result of P(baremetal.nim.resolve_services#filter). Services that are absent are left out.
    type: list
    elements: dict
    required: true
  gpus:
    description: GPUs of the host, C(hardware.gpus) of M(baremetal.nim.gpu_host_info). Profiles for others are not counted.
    type: list
    elements: dict
    default: []
  timeout:
    description: Seconds to wait for an answer. A server that cannot be reached is asked once.
    type: int
    default: 10
"""

EXAMPLES = r"""
- name: Ask what the images need
  baremetal.nim.nim_requirements:
    services: "{{ nim_services | baremetal.nim.resolve_services(preflight_host) }}"
    gpus: "{{ preflight_host.hardware.gpus }}"
  delegate_to: localhost
  become: false
"""

RETURN = r"""
requirements:
  description:
    - By service name - C(memory_mib), the memory that each GPU must have, C(gpus), how many of them, C(driver), the oldest
      version or branch, C(source), the address that was asked, C(note), what the numbers are of or why there are none, and
      C(answered), whether the API gave an answer at all (that it has nothing is one).
    - For a service without a profile these are the least needs of the profiles that the image may choose on these GPUs.
  type: dict
  returned: always
  sample:
    {
      "llama":
        {
          "memory_mib": 76293,
          "gpus": 1,
          "driver": "580",
          "source": "https://api.ngc.nvidia.com/v2/nim/metadata?resourceId=nim/meta/llama-3.1-8b-instruct&tag=2.0.12",
          "note": "the least of 4 profiles that may be chosen",
          "answered": true,
        },
    }
"""

import http.client
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url
from ansible_collections.baremetal.nim.plugins.module_utils import _bounded, _requirements
from ansible_collections.baremetal.nim.plugins.module_utils._fault import UNFORESEEN, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import printable

#: Several hundred profiles are some hundred kB.
MOST_BYTES = 16 * 2**20


class Catalogue:
    """Answers of the API, each asked for once."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.unreachable = ""
        self.answers: dict[str, tuple[list[dict[str, Any]] | None, str, bool]] = {}

    def ask(self, source: str) -> tuple[list[dict[str, Any]] | None, str, bool]:
        """Profiles, or why there are none, and whether that is an answer."""
        if source not in self.answers:
            if self.unreachable:
                return None, self.unreachable, False
            self.answers[source] = self.fetch(source)
        return self.answers[source]

    def fetch(self, source: str) -> tuple[list[dict[str, Any]] | None, str, bool]:
        """One request."""
        timeout = self.module.params["timeout"]
        try:
            # Its timeout begins anew with each byte that comes.
            found: tuple[list[dict[str, Any]] | None, str, bool] = _bounded.apart(
                timeout, lambda: self.open(source, timeout), UNFORESEEN
            )
        except UNFORESEEN as error:
            self.unreachable = f"the answer broke off ({shorten(str(error) or type(error).__name__)})"
            return None, self.unreachable, False
        return found[0], printable(found[1], 500), found[2]

    def open(self, source: str, timeout: int) -> tuple[list[dict[str, Any]] | None, str, bool]:
        """The same, for as long as the server drips."""
        headers = {"Accept": "application/json"}
        response, info = fetch_url(self.module, source, headers=headers, timeout=timeout)
        if info["status"] == 404:
            return None, "nothing is published for this image and tag", True
        if info["status"] != 200:
            note = f"{info['msg']} (status {info['status']})"
            if info["status"] < 0:
                self.unreachable = note
            return None, note, False
        try:
            data = response.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            self.unreachable = f"the answer broke off ({error})"
            return None, self.unreachable, False
        if len(data) > MOST_BYTES:
            return None, f"the answer is longer than {MOST_BYTES} bytes", False
        try:
            return _requirements.parse_metadata(data.decode()), "", True
        except (ValueError, RecursionError) as error:
            return None, f"the answer is no metadata: {error}", False


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "https://api.ngc.nvidia.com/v2/nim/metadata"},
            "services": {"type": "list", "elements": "dict", "required": True},
            "gpus": {"type": "list", "elements": "dict", "default": []},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    url, gpus = module.params["url"], module.params["gpus"]
    if not url.startswith(("http://", "https://")):
        module.fail_json(msg=f"url is {url!r}, wanted an address such as https://api.ngc.nvidia.com/v2/nim/metadata.")
    catalogue = Catalogue(module)
    devices = [gpu["device_id"] for gpu in gpus if gpu.get("device_id")]
    requirements = {}
    for service in module.params["services"]:
        if service["state"] == "absent":
            continue
        if not service["tag"]:
            note = "the service is pinned by digest alone; metadata is published by tag"
            requirements[service["name"]] = _requirements.unknown(url, note, True)
            continue
        source = _requirements.query_of(url, service["repository"], service["tag"])
        profiles, note, answered = catalogue.ask(source)
        if profiles is None:
            requirements[service["name"]] = _requirements.unknown(source, note, answered)
            continue
        count = len(gpus) if service["gpus"] == ["all"] else len(service["gpus"])
        profile = service["env"].get("NIM_MODEL_PROFILE", "")
        requirements[service["name"]] = _requirements.need_of(profiles, profile, count, devices, source)
    module.exit_json(changed=False, requirements=requirements)


if __name__ == "__main__":
    main()
