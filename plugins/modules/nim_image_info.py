#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What registries tell of images that are not on the host yet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_image_info
short_description: Ask registries for the labels of images
version_added: 1.0.0
description:
  - Asks the registry of each image for its manifest and its configuration, some kilobytes, without pulling it.
  - NVIDIA's labels tell what an image expects of its container before anything is set up for it.
  - What cannot be learned is no error. The pull tells why, where it fails for the same reason.
author:
  - The baremetal.nim maintainers (@baremetal-nim)
extends_documentation_fragment:
  - baremetal.nim._attributes.info_module
  - baremetal.nim._attributes
options:
  images:
    description: Images with registry and tag or digest.
    type: list
    elements: str
    required: true
  registry:
    description: The registry that is shown O(api_key). All others are asked without a login.
    type: str
    default: nvcr.io
  username:
    description: User of the key.
    type: str
    default: $oauthtoken
  api_key:
    description: Key for O(registry). Empty asks without a login.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for an answer. A registry that cannot be reached is asked once.
    type: int
    default: 10
notes:
  - Proxies in the environment of the module are used. Those of the container engine are not known to it.
seealso:
  - module: baremetal.nim.nim_cache
"""

EXAMPLES = r"""
- name: Ask what the image is
  baremetal.nim.nim_image_info:
    images: [nvcr.io/nim/nvidia/llama-3.2-nv-embedqa-1b-v2:1.6.0]
    api_key: "{{ ngc_api_key }}"
  register: asked
"""

RETURN = r"""
native:
  description: Images whose label tells that they download their weights by themselves (contract C(native)).
  type: list
  elements: str
  returned: always
images:
  description:
    - By image - C(found), C(labels), those whose names begin with C(com.nvidia.nim.), and C(bytes), the size of its layers as they
      are transferred; or C(reason), why nothing was learned.
  type: dict
  returned: always
  sample:
    {
      "nvcr.io/nim/nvidia/llama-3.2-nv-embedqa-1b-v2:2.2.0":
        {
          "found": true,
          "labels": {"com.nvidia.nim.model_download_protocol": "native-v1"},
          "bytes": 8123456789,
        },
    }
"""

import base64
import http.client
import platform
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url
from ansible_collections.baremetal.nim.plugins.module_utils import _registry
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import NATIVE_PROTOCOL, PROTOCOL_LABEL
from ansible_collections.baremetal.nim.plugins.module_utils._registry import RegistryError

#: Configurations are some ten kB.
MOST_BYTES = 4 * 2**20


class Registry:
    """One registry, for as long as the module runs."""

    def __init__(self, module: AnsibleModule, name: str) -> None:
        self.module = module
        self.name = name
        self.url = f"{'http' if _registry.is_local(name) else 'https'}://{name}"
        key = module.params["api_key"] if name == module.params["registry"] else ""
        pair = f"{module.params['username']}:{key}".encode()
        self.basic = f"Basic {base64.b64encode(pair).decode()}" if key else ""
        self.unreachable = ""

    def fetch(self, url: str, accept: tuple[str, ...], authorization: str) -> tuple[int, str, str]:
        """Status, text and challenge of an answer; the authorization is not sent on to where a redirect leads."""
        if self.unreachable:
            raise RegistryError(self.unreachable)
        headers = {"Accept": ", ".join(accept), **({"Authorization": authorization} if authorization else {})}
        response, info = fetch_url(
            self.module,
            url,
            headers=headers,
            timeout=self.module.params["timeout"],
            unredirected_headers=["Authorization"],
            use_netrc=False,
        )
        status = int(info["status"])
        if status < 0:
            self.unreachable = str(info["msg"])
            raise RegistryError(self.unreachable)
        if status != 200:
            return status, str(info["msg"]), str(info.get("www-authenticate", ""))
        try:
            data = response.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise RegistryError(f"the answer broke off ({error})") from error
        if len(data) > MOST_BYTES:
            raise RegistryError(f"the answer is longer than {MOST_BYTES} bytes")
        return status, data.decode("utf-8", "replace"), ""

    def authorization(self, challenge: str, repository: str) -> str:
        """What a registry wants to see, by its challenge."""
        scheme, parameters = _registry.parse_challenge(challenge)
        if scheme == "basic" and self.basic:
            return self.basic
        if scheme != "bearer":
            raise RegistryError("the registry wants a login")
        url = _registry.token_url(parameters.get("realm", ""), parameters, repository, self.name)
        status, text, _challenge = self.fetch(url, ("application/json",), self.basic)
        if status != 200:
            raise RegistryError(f"the registry refuses the login: {text}")
        return f"Bearer {_registry.parse_token(text)}"

    def describe(self, repository: str, reference: str) -> dict[str, Any]:
        """What the registry tells of one image."""
        accept = (*_registry.MANIFESTS, *_registry.INDEXES)
        authorization = ""

        def get(path: str, accepted: tuple[str, ...]) -> str:
            nonlocal authorization
            url = f"{self.url}/v2/{repository}/{path}"
            status, text, challenge = self.fetch(url, accepted, authorization)
            if status == 401 and challenge and not authorization:
                authorization = self.authorization(challenge, repository)
                status, text, _challenge = self.fetch(url, accepted, authorization)
            if status != 200:
                raise RegistryError(text)
            return text

        manifest = get(f"manifests/{reference}", accept)
        machine = platform.machine()
        digest = _registry.platform_manifest(manifest, _registry.ARCHITECTURES.get(machine, machine))
        if digest:
            manifest = get(f"manifests/{digest}", _registry.MANIFESTS)
        config, size = _registry.parse_manifest(manifest)
        labels = _registry.parse_labels(get(f"blobs/{config}", ("*/*",)))
        return {"found": True, "labels": labels, "bytes": size}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "str", "required": True},
            "registry": {"type": "str", "default": "nvcr.io"},
            "username": {"type": "str", "default": "$oauthtoken"},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    registries: dict[str, Registry] = {}
    told: dict[str, Any] = {}
    for image in dict.fromkeys(module.params["images"]):
        try:
            name, repository, reference = _registry.parse_reference(image)
            registry = registries.setdefault(name, Registry(module, name))
            told[image] = registry.describe(repository, reference)
        except RegistryError as error:
            told[image] = {"found": False, "reason": str(error)}
    native = [image for image, said in told.items() if said.get("labels", {}).get(PROTOCOL_LABEL) == NATIVE_PROTOCOL]
    module.exit_json(changed=False, images=told, native=native)


if __name__ == "__main__":
    main()
