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
  - Registries are asked side by side, and so are the images of each.
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
import concurrent.futures
import http.client
import platform
import urllib.error
from collections.abc import Mapping
from typing import Any

from ansible.module_utils import urls
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _bounded, _registry
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import NATIVE_PROTOCOL, PROTOCOL_LABEL
from ansible_collections.baremetal.nim.plugins.module_utils._fault import UNFORESEEN, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._registry import RegistryError

#: Configurations are some ten kB.
MOST_BYTES = 4 * 2**20
#: Registries that are asked at a time, and images of each.
MOST_AT_A_TIME = 8
#: What a request raises: connections, TLS and proxies; addresses that are none; answers that are no HTTP.
FAULTS = (OSError, ValueError, OverflowError, http.client.HTTPException, urls.ConnectionError)


class Registry:
    """One registry, for as long as the module runs. It may be asked for several images at a time."""

    def __init__(self, params: Mapping[str, Any], name: str) -> None:
        self.timeout = params["timeout"]
        self.name = name
        self.url = f"{'http' if _registry.is_local(name) else 'https'}://{name}"
        key = params["api_key"] if name == params["registry"] else ""
        pair = f"{params['username']}:{key}".encode()
        self.basic = f"Basic {base64.b64encode(pair).decode()}" if key else ""
        self.unreachable = ""

    def fetch(self, url: str, accept: tuple[str, ...], authorization: str) -> tuple[int, str, str]:
        """Status, text and challenge of an answer; the authorization is not sent on to where a redirect leads."""
        if self.unreachable:
            raise RegistryError(self.unreachable)
        headers = {"Accept": ", ".join(accept), **({"Authorization": authorization} if authorization else {})}
        # It sets up the whole process, but for all threads alike: no address has a login in it.
        try:
            # Its timeout begins anew with each byte that comes.
            answer: tuple[int, str, str] = _bounded.apart(
                self.timeout, lambda: self.open(url, headers), (RegistryError, *FAULTS)
            )
            return answer
        except RegistryError:
            raise
        except FAULTS as error:
            reason = _registry.fault(url, error)
            if isinstance(error, OSError):
                self.unreachable = reason
            raise RegistryError(reason) from error

    def open(self, url: str, headers: Mapping[str, str]) -> tuple[int, str, str]:
        """The same, for as long as the server drips."""
        try:
            response = urls.open_url(
                url,
                headers=headers,
                timeout=self.timeout,
                unredirected_headers=["Authorization"],
                use_netrc=False,
                # Packed, a short answer might be a long one.
                decompress=False,
            )
        except urllib.error.HTTPError as error:
            with error:
                return error.code, str(error), ", ".join(error.headers.get_all("WWW-Authenticate") or [])[:8192]
        with response:
            try:
                data = response.read(MOST_BYTES + 1)
            except FAULTS as error:
                raise RegistryError(f"the answer broke off ({error})") from error
            if response.status != 200:
                return response.status, f"the registry answers with status {response.status}", ""
        if len(data) > MOST_BYTES:
            raise RegistryError(f"the answer is longer than {MOST_BYTES} bytes")
        return response.status, data.decode("utf-8", "replace"), ""

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

    def ask(self, image: str) -> dict[str, Any]:
        """What is told of one image, or why nothing is."""
        try:
            _name, repository, reference = _registry.parse_reference(image)
            return self.describe(repository, reference)
        except RegistryError as error:
            return {"found": False, "reason": str(error)}
        except UNFORESEEN as error:
            return {"found": False, "reason": f"its answer cannot be read: {shorten(repr(error))}"}

    def ask_all(self, images: list[str]) -> dict[str, dict[str, Any]]:
        """The same of each image. The first one finds out whether the registry can be reached, before the others ask side by side."""
        told = {images[0]: self.ask(images[0])}
        with concurrent.futures.ThreadPoolExecutor(MOST_AT_A_TIME) as pool:
            told.update(zip(images[1:], pool.map(self.ask, images[1:])))
        return told


def ask(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the registries, side by side, tell of the images, in the order of these."""
    images = list(dict.fromkeys(params["images"]))
    told: dict[str, dict[str, Any]] = {}
    of_registry: dict[str, list[str]] = {}
    for image in images:
        try:
            of_registry.setdefault(_registry.parse_reference(image)[0], []).append(image)
        except RegistryError as error:
            told[image] = {"found": False, "reason": str(error)}
    with concurrent.futures.ThreadPoolExecutor(MOST_AT_A_TIME) as pool:
        for answers in pool.map(lambda name: Registry(params, name).ask_all(of_registry[name]), of_registry):
            told.update(answers)
    return {image: told[image] for image in images}


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
    told = ask(module.params)
    native = [image for image, said in told.items() if said.get("labels", {}).get(PROTOCOL_LABEL) == NATIVE_PROTOCOL]
    module.exit_json(changed=False, images=told, native=native)


if __name__ == "__main__":
    main()
