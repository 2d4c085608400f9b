#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_verify
short_description: Verify all endpoints of a host at a time
version_added: 1.0.0
description:
  - Waits for several endpoints and verifies each as M(baremetal.nim.chat_completion) does, side by side and in one call.
  - One that fails does not stop the others; the task fails when all are done.
  - The action plugin of the same name runs the wait in slices and shows the progress of each endpoint live.
extends_documentation_fragment:
  - baremetal.nim._attributes.verification
  - baremetal.nim._attributes
options:
  endpoints:
    description:
      - Endpoints to verify. Each has a C(name), by which its result is known, and options of M(baremetal.nim.chat_completion).
    type: list
    elements: dict
    required: true
  progress:
    description: Whether the controller prints a line when an endpoint comes to a new phase, and now and then in between.
    type: bool
    default: true
  max_wait:
    description:
      - Longest time in seconds that one call of the module waits before it returns with RV(waiting=true). The action plugin
        sets it and calls the module again until all results are final.
    type: float
  resume:
    description:
      - What an earlier slice of the same wait handed over (RV(resume)), and the id of the run that has the host
        (M(baremetal.nim.nim_lock)) - each slice is a sign of life of it, and the watchdogs of these services restart nothing meanwhile. Set
        by the action plugin.
    type: dict
author:
  - The baremetal.nim maintainers (@baremetal-nim)
requirements:
  - requests (on the host that runs the module)
seealso:
  - module: baremetal.nim.chat_completion
"""

EXAMPLES = r"""
- name: Verify two services
  baremetal.nim.nim_verify:
    endpoints:
      - name: llama
        url: http://127.0.0.1:8000
        unit: nim-llama.service
      - name: embed
        url: http://127.0.0.1:8001
        unit: nim-embed.service
        probes: [health]
"""

RETURN = r"""
results:
  description:
    - What M(baremetal.nim.chat_completion) returns for each endpoint, with its C(name), C(failed) and, of a failure, C(msg).
  returned: always
  type: list
  elements: dict
waiting:
  description: Whether a result is not final yet.
  returned: always
  type: bool
resume:
  description: What the next slice needs to know.
  returned: while waiting
  type: dict
"""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.baremetal.nim.plugins.module_utils import _lease, _probe
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import REQUESTS_IMPORT_ERROR


def checked(module: AnsibleModule) -> list[dict[str, Any]]:
    """The endpoints with all options of a verification; fails with what is wrong with any of them."""
    own = {key: value for key, value in _probe.ARGUMENT_SPEC.items() if key not in _probe.CONTROLLERS_OWN}
    validator = ArgumentSpecValidator(
        {"name": {"type": "str", "required": True}, **own},
        mutually_exclusive=_probe.MUTUALLY_EXCLUSIVE,
        required_by=_probe.REQUIRED_BY,
    )
    endpoints, problems, names = [], [], set()
    for given in module.params["endpoints"]:
        module.no_log_values.update(str(given[key]) for key in ("api_key",) if given.get(key))
        result = validator.validate(given)
        options = result.validated_parameters
        label = f"endpoint {given.get('name') or '(without a name)'}"
        found = list(result.error_messages) or _probe.option_problems({**options, "max_wait": None})
        if given.get("name") in names:
            found.append("is listed twice")
        names.add(given.get("name"))
        problems += [f"{label}: {text}" for text in found]
        endpoints.append(options)
    if problems:
        module.fail_json(msg="; ".join(problems))
    return endpoints


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "dict", "required": True},
            "progress": {"type": "bool", "default": True},
            "max_wait": {"type": "float"},
            "resume": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    endpoints = checked(module)
    if module.check_mode:
        skipped = [{"name": endpoint["name"], "skipped": True} for endpoint in endpoints]
        module.exit_json(changed=False, skipped=True, waiting=False, results=skipped)
    if REQUESTS_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("requests"), exception=REQUESTS_IMPORT_ERROR)
    run, hostname = _probe.runner(module), socket.gethostname()
    resume = module.params["resume"] or {}
    _lease.Leases().renew(str(resume.get("run") or ""), [endpoint["name"] for endpoint in endpoints])
    elapsed, earlier = float(resume.get("elapsed") or 0.0), resume.get("endpoints") or {}

    def slice_of(endpoint: dict[str, Any]) -> dict[str, Any]:
        before = earlier.get(endpoint["name"]) or {}
        if "result" in before:
            result: dict[str, Any] = before["result"]
            return result
        options = {**endpoint, "max_wait": module.params["max_wait"], "resume": {**before, "elapsed": elapsed}}
        return {"name": endpoint["name"], "failed": False, **_probe.verify(options, run, hostname)}

    with ThreadPoolExecutor(max_workers=max(1, len(endpoints))) as pool:
        results = list(pool.map(slice_of, endpoints))
    waiting = any(result["waiting"] for result in results)
    common: dict[str, Any] = {"changed": False, "waiting": waiting, "results": results}
    if waiting:
        seen = {result["name"]: result["resume"] if result["waiting"] else {"result": result} for result in results}
        module.exit_json(resume={"elapsed": elapsed, "endpoints": seen}, **common)
    failures = [result["msg"] for result in results if result["failed"]]
    if failures:
        module.fail_json(msg="\n".join(failures), **common)
    module.exit_json(**common)


if __name__ == "__main__":
    main()
