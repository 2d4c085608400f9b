#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: chat_completion
short_description: Wait for a NIM endpoint and verify it by real chat completions
version_added: 1.0.0
description:
  - Waits until an OpenAI-compatible endpoint, such as an NVIDIA NIM, is ready, and then proves that it serves by asking
    it for a plain and a streamed chat completion.
  - A green health check is not enough. The health, the list of models and the metadata of a NIM stay green after its
    engine has died, and a container may serve another model than the one its name says.
  - While it waits it also watches the systemd unit behind the endpoint (O(unit)) and stops within seconds when that
    has failed, stopped or restarted. The failure carries its class (RV(failure_class)), the evidence (RV(evidence)) and
    the command to run next (RV(next_command)).
  - Who has too much to do (HTTP 429, 529, 503 with a full queue or a time to come back) is asked again, when it wants to be asked
    (C(Retry-After)), until O(timeout). A proxy that reaches nothing behind it is given a few seconds.
  - The action plugin of the same name runs the wait in slices of O(max_wait) and shows its progress live. A lost
    connection to the host costs one slice. Interrupting and running the task again is safe at any time.
extends_documentation_fragment:
  - baremetal.nim._endpoint
  - baremetal.nim._attributes.verification
  - baremetal.nim._attributes
options:
  model:
    description:
      - Model to ask. It must be listed by C(/v1/models) and be the one that answers.
      - By default the first model listed.
    type: str
  prompt:
    description: Text of the one user message to send.
    type: str
    default: "Reply with the single word: ready"
  messages:
    description: Messages to send instead of O(prompt), as the API takes them.
    type: list
    elements: dict
  prompts:
    description:
      - Several prompts instead of O(prompt), each asked by every one of V(completion) and V(stream) in O(probes).
      - What an item does not say is taken from the options of the same name.
    type: list
    elements: dict
    suboptions:
      prompt:
        description: As O(prompt).
        type: str
      messages:
        description: As O(messages).
        type: list
        elements: dict
      max_tokens:
        description: As O(max_tokens).
        type: int
      temperature:
        description: As O(temperature).
        type: float
      expect_regex:
        description: As O(expect_regex).
        type: str
      expect_script:
        description: As O(expect_script).
        type: str
        choices: &scripts
          - Arabic
          - Armenian
          - Bengali
          - Cyrillic
          - Devanagari
          - Ethiopic
          - Georgian
          - Greek
          - Gujarati
          - Han
          - Hangul
          - Hebrew
          - Hiragana
          - Katakana
          - Khmer
          - Latin
          - Tamil
          - Telugu
          - Thai
      expect_finish_reason:
        description: As O(expect_finish_reason).
        type: str
        choices: &reasons [stop, length, tool_calls, content_filter, function_call]
      expect_min_tokens:
        description: As O(expect_min_tokens).
        type: int
      expect_max_tokens:
        description: As O(expect_max_tokens).
        type: int
      max_ttft:
        description: As O(max_ttft).
        type: float
      min_tokens_per_second:
        description: As O(min_tokens_per_second).
        type: float
  max_tokens:
    description: Most tokens an answer may have. Models that reason first need more.
    type: int
    default: 64
  temperature:
    description: Sampling temperature.
    type: float
    default: 0.0
  probes:
    description:
      - Completions to ask for once the endpoint is ready.
      - V(completion) is a plain answer.
      - V(stream) is an answer streamed as server-sent events.
      - V(pace) is a longer stream, whose tokens must come one by one. A proxy that keeps answers back until they are whole is
        found out (V(buffered_stream)), by V(stream) only when its answer is long enough.
      - V(tool_call) makes the model call a tool (O(tool_choice)), V(json_schema) makes it answer in JSON of a schema, and
        V(logprobs) makes the endpoint tell how likely each token was.
      - V(vision) asks about a picture (O(image_file)), by default which colour a red square has.
      - V(embedding) embeds a query and passages, of which the one that answers must be the nearest. V(ranking) ranks them, and that
        one must be the best. They are for the NIMs of NeMo Retriever.
      - V(transcription) has a tone, or O(audio_file), written down. V(speech) has a sentence spoken, and looks whether that is
        sound. They are for speech NIMs, which list no models.
      - V(unknown_model) asks a model that is not served, which must be refused with HTTP 404.
      - V(overlong_input) sends more than the model takes, which must be refused with HTTP 400, 413 or 422, and leave the endpoint
        ready. The input is as long as C(max_model_len) of C(/v1/models), or of 300000 words where that is not told.
      - V(wrong_key) sends another key than O(api_key), which must be refused with HTTP 401 or 403.
      - V(client_abort) breaks off a long stream, after which the engine must stop to work on it (by C(/v1/metrics)) and answer the
        next request.
      - They are asked in the order above, whatever that of the list. An empty list only waits and checks the model.
      - V(health) asks for nothing but readiness. It is for images of which nothing else is known, and stands alone.
    type: list
    elements: str
    choices:
      - completion
      - stream
      - pace
      - tool_call
      - json_schema
      - logprobs
      - vision
      - embedding
      - ranking
      - transcription
      - speech
      - unknown_model
      - wrong_key
      - client_abort
      - overlong_input
      - health
    default: [completion, stream]
  image_file:
    description:
      - Picture for the probe V(vision), a file on the host that runs the module. O(prompt) is then the question, and O(expect_regex)
        what the answer must have.
    type: path
  audio_file:
    description:
      - WAV file for the probe V(transcription), on the host that runs the module. O(expect_regex) is what must be heard.
    type: path
  language:
    description: Language of V(transcription) and V(speech).
    type: str
    default: en-US
  voice:
    description: Voice of V(speech). By default the first one of O(language).
    type: str
  tool_choice:
    description:
      - How the probe V(tool_call) makes the model use the tool. V(named) and V(required) leave it no choice, so that what is tested is
        the engine. V(auto) leaves it to the model, as agents do.
      - Engines may have to be told how the model writes its calls, vLLM by C(--tool-call-parser).
    type: str
    choices: [named, required, auto]
    default: named
  expect_regex:
    description: Regular expression (Python) that must be found in the content of every answer to O(prompt).
    type: str
  expect_script:
    description: Script by its name in Unicode, of which every answer must have a letter. It shows that a model answers in a language.
    type: str
    choices: *scripts
  expect_finish_reason:
    description: Why every answer must have ended.
    type: str
    choices: *reasons
  expect_min_tokens:
    description: Fewest tokens (by C(usage)) that every answer must have.
    type: int
  expect_max_tokens:
    description: Most tokens (by C(usage)) that every answer may have.
    type: int
  max_ttft:
    description: Most seconds until the first content of a stream may take.
    type: float
  min_tokens_per_second:
    description: Fewest tokens per second of a stream after its first. Answers of less than 8 tokens tell no pace, and fail.
    type: float
  expect_profile:
    description: Id of the profile that C(/v1/metadata) must name as the one that runs.
    type: str
  check_metadata:
    description:
      - Whether a C(/v1/metadata) that names another model than the one asked is a failure.
      - Endpoints without metadata pass. A model id without a slash is an alias and not compared.
      - Switch this off when E(NIM_SERVED_MODEL_NAME) is a made-up name with a slash.
    type: bool
    default: true
  ready_path:
    description:
      - Path of the readiness check. Only its status code counts, since the body differs between generations of NIM.
    type: str
    default: /v1/health/ready
  timeout:
    description:
      - Most seconds to wait until the endpoint is ready.
      - The first start of a large model downloads hundreds of gigabytes; leave it the time.
    type: float
    default: 1800
  request_timeout:
    description: Most seconds one completion may take. Longer counts as a dead engine.
    type: float
    default: 120
  poll_interval:
    description: Seconds between two readiness checks.
    type: float
    default: 0.25
  unit:
    description:
      - Systemd unit that runs the service, such as V(nim-llama.service). It is watched about once a second.
      - Reading its journal needs root or membership in a group such as C(systemd-journal).
    type: str
  journal_lines:
    description: Number of lines of the unit's journal a failure shows as evidence.
    type: int
    default: 20
  progress:
    description:
      - Whether the controller prints a line when the wait comes to a new phase, and now and then in between.
      - Nothing is printed for an endpoint that is ready at once, or for a task with C(no_log).
    type: bool
    default: true
  max_wait:
    description:
      - Longest time in seconds that one call of the module waits before it returns with RV(waiting=true).
      - In a task the action plugin calls the module again until the result is final, by default every V(5) seconds;
        this is then the length of its slices. By default the module itself waits until O(timeout).
    type: float
  resume:
    description:
      - What an earlier slice of the same wait saw (RV(resume)). Set by the action plugin.
    type: dict
    suboptions:
      elapsed:
        description: Seconds waited so far.
        type: float
        default: 0
      breaks:
        description: Connections that broke although the endpoint was ready.
        type: int
        default: 0
      refused:
        description: The last refusal that may pass, and when to ask again.
        type: dict
      restarts:
        description: Restart counter of the unit when the wait began.
        type: int
      invocation_id:
        description: Invocation of the unit when the wait began.
        type: str
author:
  - The baremetal.nim maintainers (@baremetal-nim)
requirements:
  - requests (on the host that runs the module)
  - systemctl and journalctl, when O(unit) is used
notes:
  - Runs on the host of the service, so that a port bound to C(127.0.0.1) can be verified. Delegate the task to check the
    way that clients take.
seealso:
  - module: ansible.builtin.uri
  - module: ansible.builtin.wait_for
"""

EXAMPLES = r"""
- name: Wait for the llama service and verify it
  baremetal.nim.chat_completion:
    url: http://127.0.0.1:8000
    model: meta/llama-3.1-8b-instruct
    unit: nim-llama.service

- name: Check what the model answers
  baremetal.nim.chat_completion:
    url: http://127.0.0.1:8000
    prompt: "What is the capital of France? Answer with one word."
    expect_regex: (?i)\bparis\b
    timeout: 60

- name: Ask in two languages, and see that nothing keeps the stream back
  baremetal.nim.chat_completion:
    url: http://127.0.0.1:8000
    probes: [completion, pace]
    prompts:
      - prompt: "用中文說：你好"
        expect_script: Han
      - prompt: "What is 2 + 2? Answer in digits."
        expect_regex: '4'
        expect_max_tokens: 8
    max_ttft: 1.5
    min_tokens_per_second: 20

- name: See that the endpoint refuses what it must refuse
  baremetal.nim.chat_completion:
    url: https://llm.example.com
    api_key: "{{ gateway_api_key }}"
    probes: [unknown_model, wrong_key, client_abort, overlong_input]

- name: Verify the endpoint through the gateway, as a client sees it
  baremetal.nim.chat_completion:
    url: https://llm.example.com
    api_key: "{{ gateway_api_key }}"
    ca_path: /etc/ssl/certs/corporate-ca.pem
    probes: [stream]
  delegate_to: localhost

- name: Show what is wrong without failing
  baremetal.nim.chat_completion:
    url: http://127.0.0.1:8000
    unit: nim-llama.service
    timeout: 30
  register: probe
  failed_when: false

- name: Report the class of the failure
  ansible.builtin.debug:
    msg: "{{ probe.failure_class }}: {{ probe.msg }}"
  when: probe.failure_class is not none
"""

RETURN = r"""
answers:
  description: Every answer to a prompt, in the order they came.
  returned: always
  type: list
  elements: dict
  contains:
    probe:
      description: The probe that asked.
      type: str
    content:
      description: Text of the answer.
      type: str
    finish_reason:
      description: Why it ended.
      type: str
    usage:
      description: Its token counts.
      type: dict
    duration:
      description: Seconds it took.
      type: float
    ttft:
      description: Seconds until its first content came. None when it was not streamed.
      type: float
    tokens_per_second:
      description: Tokens per second after its first. None when it was not streamed, or too short to tell.
      type: float
checks:
  description: The probes that were asked, in their order. The last one is the one that failed, if any did.
  returned: always
  type: list
  elements: dict
  contains:
    probe:
      description: Name of the probe.
      type: str
    passed:
      description: Whether it saw what it wanted.
      type: bool
    detail:
      description: What it saw.
      type: str
    duration:
      description: Seconds it took.
      type: float
  sample:
    - {probe: completion, passed: true, detail: 1 answer, duration: 0.21}
    - {probe: unknown_model, passed: true, detail: "HTTP 404 (The model `x` does not exist.)", duration: 0.004}
content:
  description: Text of the plain completion, or of the streamed one when only that was asked for.
  returned: always
  type: str
  sample: ready
finish_reason:
  description: Why that completion ended.
  returned: always
  type: str
  sample: stop
verified_at:
  description: When the endpoint was verified, by the clock of the machine that asked, in UTC. None before.
  returned: always
  type: str
  sample: "2026-11-23T17:30:12Z"
usage:
  description: Token counts of that completion.
  returned: always
  type: dict
  sample: {prompt_tokens: 16, completion_tokens: 2, total_tokens: 18}
model:
  description: Model that was asked and answered. None for endpoints that list none.
  returned: always
  type: str
  sample: meta/llama-3.1-8b-instruct
models:
  description: Models listed by C(/v1/models), once the endpoint was ready.
  returned: always
  type: list
  elements: str
  sample: [meta/llama-3.1-8b-instruct]
ready_after:
  description: Seconds this wait took until the endpoint was ready. None when it never was.
  returned: always
  type: float
  sample: 38.6
duration:
  description: Seconds the plain completion took. None when it was not asked for.
  returned: always
  type: float
  sample: 0.21
ttft:
  description: Seconds until the first content of the streamed completion came. None when it was not asked for.
  returned: always
  type: float
  sample: 0.043
stream_duration:
  description: Seconds the streamed completion took. None when it was not asked for.
  returned: always
  type: float
  sample: 0.212
tokens_per_second:
  description: Tokens per second that the probe V(pace) saw. None when it was not asked.
  returned: always
  type: float
  sample: 214.7
status:
  description: Last HTTP status of the readiness check. None when nothing answered.
  returned: always
  type: int
  sample: 200
phase:
  description:
    - How far the wait came.
    - V(unreachable) when nothing answers and no unit is watched, V(starting) when something answers or the unit lives but
      it is not ready, V(ready), or V(verified).
  returned: always
  type: str
  sample: verified
stage:
  description:
    - What the journal of O(unit) says it is doing while the phase is V(starting) - V(pulling), V(downloading), V(preparing),
      V(building), V(starting_engine), V(loading), V(compiling), V(warming_up) or V(serving). None when nothing tells.
  returned: always
  type: str
  sample: loading
history:
  description: Changes of the phase, its stage or its detail (the last 100), oldest first.
  returned: always
  type: list
  elements: dict
  contains:
    at:
      description: Seconds since the wait began.
      type: float
    phase:
      description: The phase.
      type: str
    stage:
      description: The stage, or None.
      type: str
    detail:
      description: What was seen.
      type: str
  sample:
    - {at: 0.0, phase: starting, stage: downloading, detail: downloading 15.9 GB of 15.9 GB}
    - {at: 11.3, phase: starting, stage: loading, detail: "loading weights, 4 of 4 shards"}
    - {at: 38.6, phase: ready, stage: null, detail: HTTP 200}
    - {at: 39.1, phase: verified, stage: null, detail: meta/llama-3.1-8b-instruct answered}
elapsed:
  description: Seconds the whole task took.
  returned: always
  type: float
  sample: 39.1
waiting:
  description: Whether O(max_wait) came first and the module is to be called again with RV(resume). Never true in a task.
  returned: always
  type: bool
resume:
  description: Value of O(resume) for the next call.
  returned: when RV(waiting=true)
  type: dict
last_log:
  description: Newest line the service wrote to the journal, while waiting. Empty otherwise.
  returned: always
  type: str
unit:
  description: State of O(unit). Empty when no unit is watched.
  returned: always
  type: dict
  contains:
    name:
      description: Name of the unit.
      type: str
    load_state:
      description: C(LoadState) of systemd.
      type: str
    active_state:
      description: C(ActiveState) of systemd.
      type: str
    sub_state:
      description: C(SubState) of systemd.
      type: str
    result:
      description: C(Result) of systemd.
      type: str
    restarts:
      description: How often systemd restarted the unit by itself.
      type: int
    exit_code:
      description: How the main process ended. 0 not at all, 1 by exiting, 2 or 3 by a signal.
      type: int
    exit_status:
      description: Exit status, or number of the signal, of the main process.
      type: int
    invocation_id:
      description: Id of this run of the unit.
      type: str
  sample:
    name: nim-llama.service
    load_state: loaded
    active_state: active
    sub_state: running
    result: success
    restarts: 0
    exit_code: 0
    exit_status: 0
    invocation_id: 5ae2f1a4b0a64f7e9d3a4fd0a5a6f0b1
failure_class:
  description:
    - Class of the failure. None on success.
    - 'Of the endpoint: V(unreachable) nothing answered, V(starting) it was not ready in time, V(downloading) nor had its download
      ended, V(dead_engine) it is ready but does not complete, V(overloaded) it had too much to do until O(timeout), V(incomplete) it
      began an answer and gave it up, V(wrong_model), V(bad_response) what it answers is not the API, V(refused_by_policy) a guardrail
      or filter answered, V(wrong_answer) it is not what was expected, V(slow) it is but took longer, V(buffered_stream) something
      keeps streams back, V(auth), V(tls).'
    - 'Of the unit: V(unit_not_found), V(unit_stopped), V(unit_unreadable), V(crash_loop), or more exactly, as its journal
      says, V(out_of_memory), V(no_profile), V(auth), V(cache_permission), V(disk_full), V(port_in_use), V(image_missing),
      V(gpu_unavailable), V(driver_mismatch).'
  returned: always
  type: str
  sample: out_of_memory
evidence:
  description: Lines that show the failure, such as the last of the journal or the answer received. Empty on success.
  returned: always
  type: list
  elements: str
next_command:
  description: Command to run next on the host. None on success.
  returned: always
  type: str
  sample: journalctl -u nim-llama.service -n 100 --no-pager
"""

import socket

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.baremetal.nim.plugins.module_utils import _probe
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import REQUESTS_IMPORT_ERROR


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=_probe.ARGUMENT_SPEC,
        mutually_exclusive=_probe.MUTUALLY_EXCLUSIVE,
        required_by=_probe.REQUIRED_BY,
        supports_check_mode=True,
    )
    problems = _probe.option_problems(module.params)
    if problems:
        module.fail_json(msg="; ".join(problems))
    if module.check_mode:
        base = _probe.base_of(module.params["url"])
        module.exit_json(
            changed=False, skipped=True, msg=f"Check mode: {base} was not asked, it may not be deployed yet."
        )
    if REQUESTS_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("requests"), exception=REQUESTS_IMPORT_ERROR)
    result = _probe.verify(module.params, _probe.runner(module), socket.gethostname())
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
