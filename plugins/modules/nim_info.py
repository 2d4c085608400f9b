#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_info
short_description: Ask a running NIM what it says of itself
version_added: 1.0.0
description:
  - Asks an endpoint for its health, models, metadata, version, manifest and metrics, and returns them in one form for all
    generations of NIM.
  - A path that the endpoint does not have is no error. RV(responses) tells what came of each.
  - All of this stays green after the engine has died. M(baremetal.nim.chat_completion) proves that it serves.
extends_documentation_fragment:
  - baremetal.nim._endpoint
  - baremetal.nim._attributes.info_module
  - baremetal.nim._attributes
options:
  ready_path:
    description: Path of the readiness check. Only its status code counts.
    type: str
    default: /v1/health/ready
  request_timeout:
    description: Most seconds that an answer may take. After the first, all are asked side by side.
    type: float
    default: 10
author:
  - The baremetal.nim maintainers (@baremetal-nim)
requirements:
  - requests (on the host that runs the module)
notes:
  - Runs on the host of the service, so that a port bound to C(127.0.0.1) can be asked. Delegate the task to ask from elsewhere.
seealso:
  - module: baremetal.nim.chat_completion
  - module: baremetal.nim.gpu_host_info
"""

EXAMPLES = r"""
- name: Ask what runs
  baremetal.nim.nim_info:
    url: http://127.0.0.1:8000
  register: nim

- name: Show it
  ansible.builtin.debug:
    msg: >-
      {{ nim.model }} of {{ nim.metadata.version }}, profile {{ nim.metadata.profile }}, {{ nim.metrics.requests_running }} running,
      {{ nim.metrics.kv_cache_usage }} of the KV cache used

- name: Refuse a release that is too old
  ansible.builtin.assert:
    that: nim.version.release is version('2.0.5', '>=')
  when: nim.version is not none
"""

RETURN = r"""
ready:
  description: Whether the readiness check answers HTTP 200.
  returned: when the endpoint answers
  type: bool
  sample: true
live:
  description: Whether C(/v1/health/live) answers HTTP 200. From NIM 2 on it does before a model is loaded.
  returned: when the endpoint answers
  type: bool
  sample: true
responses:
  description:
    - What came of each path, by V(ready), V(live), V(models), V(metadata), V(version), V(manifest) and V(metrics).
    - A part of the result whose answer has a C(problem) is none.
  returned: when the endpoint answers
  type: dict
  contains:
    path:
      description: Path that was asked.
      type: str
    status:
      description: HTTP status. None without an answer.
      type: int
    problem:
      description: What is wrong with the answer. None when it was understood.
      type: str
  sample:
    ready: {path: /v1/health/ready, status: 200, problem: null}
    manifest: {path: /v1/manifest, status: 404, problem: HTTP 404 (Not Found)}
model:
  description: Id of the first model that is no adapter.
  returned: when the endpoint answers
  type: str
  sample: meta/llama-3.1-8b-instruct
adapters:
  description: Ids of the LoRA adapters.
  returned: when the endpoint answers
  type: list
  elements: str
  sample: [llama-3.1-8b-math]
models:
  description: Models and adapters listed by C(/v1/models).
  returned: when the endpoint answers
  type: list
  elements: dict
  contains:
    id:
      description: Name by which it is asked.
      type: str
    root:
      description: What it was loaded from.
      type: str
    parent:
      description: Of an adapter, the model under it.
      type: str
    owned_by:
      description: Owner, as the server says.
      type: str
    max_model_len:
      description: Tokens that prompt and answer may have together.
      type: int
    adapter:
      description: Whether it is a LoRA adapter.
      type: bool
  sample:
    - id: meta/llama-3.1-8b-instruct
      root: meta/llama-3.1-8b-instruct
      parent: null
      owned_by: system
      max_model_len: 131072
      adapter: false
metadata:
  description: What C(/v1/metadata) says is loaded, which may differ from the name in RV(model).
  returned: when the endpoint answers
  type: dict
  contains:
    version:
      description: Version of the NIM.
      type: str
    profile:
      description: Id of the selected model profile.
      type: str
    models:
      description: Models by C(short_name) and C(url).
      type: list
      elements: dict
    assets:
      description: Addresses of what was loaded.
      type: list
      elements: str
    repository_override:
      description: Mirror of the weights.
      type: str
    license:
      description: The licence file - C(name), C(path), C(sha), C(url) and C(size_bytes).
      type: dict
  sample:
    version: 1.8.6
    profile: 4f904d571fe60ff24695b5ee2aa42da58cb460787a968f1e8a09f5a7e862728d
    models: [{short_name: 'llama-3.1-8b-instruct:1.0.0', url: 'ngc://nim/meta/llama-3.1-8b-instruct:1.0.0'}]
    assets: ['ngc://nim/meta/llama-3.1-8b-instruct:1.0.0']
    repository_override: null
    license: {name: LICENSE, path: /opt/nim/LICENSE, sha: null, url: null, size_bytes: 1024}
version:
  description: C(release) and C(api) of C(/v1/version).
  returned: when the endpoint answers
  type: dict
  sample: {release: 1.8.6, api: 1.0.0}
manifest:
  description: The C(file) of the manifest in the container, and its C(profiles) with C(id) and C(tags).
  returned: when the endpoint answers
  type: dict
  sample:
    file: /opt/nim/etc/default/model_manifest.yaml
    profiles: [{id: 4f904d57, tags: {llm_engine: vllm, precision: bf16, tp: '1'}}]
metrics:
  description:
    - C(/v1/metrics) under names that are the same for NIM 1.x, vLLM and SGLang. What is not told is none.
    - Numbers of several engines are added up. Counts are those since the engine started.
  returned: when the endpoint answers
  type: dict
  contains:
    names:
      description: Whose names the endpoint uses, V(classic), V(vllm) or V(sglang). None when it is none of them.
      type: str
    requests_running:
      description: Requests in work.
      type: float
    requests_waiting:
      description: Requests that wait.
      type: float
    requests_max:
      description: Requests that may be in work at a time.
      type: float
    kv_cache_usage:
      description: Part of the KV cache in use, 0 to 1. Of several engines the highest.
      type: float
    prompt_tokens_total:
      description: Tokens of prompts.
      type: float
    generation_tokens_total:
      description: Tokens of answers.
      type: float
    requests_finished:
      description: Finished requests by their reason, V(any) where none is told.
      type: dict
    requests_failed_total:
      description: Requests that failed.
      type: float
    preemptions_total:
      description: Requests that lost their place in the KV cache for a while.
      type: float
    time_to_first_token:
      description: C(count), C(sum_s) and C(mean_ms) of the time to the first token.
      type: dict
    inter_token_latency:
      description: The same of the time between tokens.
      type: dict
    e2e_latency:
      description: The same of whole requests.
      type: dict
    queue_time:
      description: The same of the time that requests waited.
      type: dict
  sample:
    names: vllm
    requests_running: 3
    requests_waiting: 0
    requests_max: null
    kv_cache_usage: 0.021
    prompt_tokens_total: 51200
    generation_tokens_total: 20480
    requests_finished: {stop: 118, length: 10}
    requests_failed_total: null
    preemptions_total: 0
    time_to_first_token: {count: 128, sum_s: 5.12, mean_ms: 40.0}
    inter_token_latency: {count: 20352, sum_s: 162.8, mean_ms: 8.0}
    e2e_latency: {count: 128, sum_s: 168.2, mean_ms: 1314.1}
    queue_time: {count: 128, sum_s: 0.13, mean_ms: 1.016}
failure_class:
  description:
    - V(unreachable) when nothing answers, V(auth), V(tls), or V(bad_response) when something answers that is no NIM.
  returned: failure
  type: str
  sample: unreachable
evidence:
  description: Lines that show the failure.
  returned: failure
  type: list
  elements: str
next_command:
  description: Command to run next on the host.
  returned: failure
  type: str
  sample: curl -sSi http://127.0.0.1:8000/v1/health/ready
"""

import socket

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.baremetal.nim.plugins.module_utils import _info, _probe
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import REQUESTS_IMPORT_ERROR, connect, curl
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault

ARGUMENT_SPEC = {
    **_probe.ENDPOINT_SPEC,
    "ready_path": {"type": "str", "default": "/v1/health/ready"},
    "request_timeout": {"type": "float", "default": 10},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, required_by=_probe.REQUIRED_BY, supports_check_mode=True)
    problems = _probe.endpoint_problems(module.params)
    if problems:
        module.fail_json(msg="; ".join(problems))
    if REQUESTS_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("requests"), exception=REQUESTS_IMPORT_ERROR)
    base = _probe.base_of(module.params["url"])
    try:
        result = _info.ask(connect(base, module.params), module.params["ready_path"])
    except Fault as fault:
        path = "/v1/models" if fault.failure_class in ("auth", "bad_response") else module.params["ready_path"]
        next_command = curl(base + path, module.params)
        module.fail_json(
            msg=f"{socket.gethostname()}: {base}: {fault}. {fault.cure} Next: {next_command}",
            failure_class=fault.failure_class,
            evidence=fault.evidence,
            next_command=next_command,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
