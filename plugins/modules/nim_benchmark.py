#!/usr/bin/python
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nim_benchmark
short_description: Measure the latency and throughput of a NIM endpoint, and hold it to limits
version_added: 1.0.0
description:
  - Sends streamed chat completions to an OpenAI-compatible endpoint and measures them, one step for each value of
    O(concurrency) (closed loop, so many requests are always in flight) or O(request_rate) (open loop, requests come at random
    times whatever becomes of the ones before).
  - The metrics are those of C(aiperf). Each step has the time to the first token (C(ttft_ms)), the time between tokens
    (C(itl_ms), also called C(tpot_ms)), between chunks (C(icl_ms)) and of the whole request (C(e2e_ms)), tokens and requests
    per second, tokens per second for each user, goodput, and errors by class.
  - Tokens are counted by the server, which is asked for its C(usage). A server that sends none has its chunks with content
    counted, and RV(steps) and a warning say so.
  - Limits (O(gates)) and an earlier result (O(baseline)) turn numbers into a failure of class V(slow) that says what was
    seen and what was wanted.
  - What is missing is a failure as well - a limit without its number, a step that was given up or never ran (RV(not_run)), a baseline
    that cannot be compared, an answer that was begun and given up, a stream whose tokens came all at once (V(buffered_stream)).
  - The action plugin of the same name looks every few seconds how far the benchmark is and prints it. Meanwhile it goes on in a
    process of its own; a lost connection to the host costs one look. A benchmark that nobody looks after ends within three minutes.
extends_documentation_fragment:
  - baremetal.nim._endpoint
  - baremetal.nim._attributes.verification
  - baremetal.nim._attributes
options:
  model:
    description:
      - Model to ask. It must be listed by C(/v1/models).
      - By default the first model listed.
    type: str
  concurrency:
    description:
      - Requests in flight, a step for each value. A request that ends makes room for the next.
      - By default V([1, 4, 16]), unless O(request_rate) is given.
    type: list
    elements: int
  request_rate:
    description:
      - Requests per second, a step for each value. They come as a Poisson process, the same for the same O(seed).
    type: list
    elements: float
  max_in_flight:
    description:
      - Most requests in flight with O(request_rate). What is due beyond that is sent late, which C(late_ms) of the step tells.
    type: int
    default: 1024
  duration:
    description:
      - Seconds for which each step sends requests. What is then in flight ends, and counts.
      - By default V(30), unless O(requests) is given. With both, whichever comes first ends the step.
    type: float
  requests:
    description: Requests of each step.
    type: int
  warmup_requests:
    description:
      - Requests sent before each step and not counted, as many at a time as in the step.
      - By default as many as the step's concurrency, one with O(request_rate).
    type: int
  input_tokens:
    description:
      - Tokens of each prompt, as the server counts them, with what its chat template adds.
      - Prompts are made up of common words; two short requests teach how many words that is. No two prompts begin the same, so
        that a prefix cache does not flatter the server. RV(steps) has what the server counted.
    type: int
    default: 128
  output_tokens:
    description: Most tokens of each answer.
    type: int
    default: 128
  fixed_output:
    description:
      - Whether each answer is to have O(output_tokens) exactly, by C(ignore_eos) and C(min_tokens), which vLLM, and so NIM, knows.
      - A server that refuses these is asked without them, with a warning. One that takes them and gives answers of other lengths has
        a warning too, and RV(workload) says so.
    type: bool
    default: true
  prompts:
    description: Prompts to send in turns instead of made-up ones.
    type: list
    elements: str
  temperature:
    description: Sampling temperature.
    type: float
    default: 0.0
  extra_body:
    description: More fields for the body of each request.
    type: dict
    default: {}
  seed:
    description: Seed of prompts and arrival times.
    type: int
    default: 0
  slo:
    description: What a good request keeps to. Goodput is the good requests per second.
    type: dict
    suboptions:
      ttft_ms:
        description: Most milliseconds to the first token.
        type: float
      itl_ms:
        description: Most milliseconds between tokens, the mean of the request.
        type: float
      e2e_ms:
        description: Most milliseconds of the whole request.
        type: float
      tokens_per_s_user:
        description: Fewest tokens per second of the request.
        type: float
  gates:
    description: Limits. The task fails with class V(slow) when one is not kept.
    type: list
    elements: dict
    default: []
    suboptions:
      metric:
        description: What is limited. C(goodput_per_s) needs O(slo).
        type: str
        required: true
        choices:
          - ttft_ms
          - itl_ms
          - tpot_ms
          - icl_ms
          - e2e_ms
          - tokens_per_s_user
          - output_tokens_per_s
          - requests_per_s
          - goodput_per_s
          - error_rate
      stat:
        description: Which statistic of a distribution, by default V(p95). Rates have none.
        type: str
        choices: [mean, p50, p90, p95, p99, min, max]
      min:
        description: Least value.
        type: float
      max:
        description: Largest value.
        type: float
      at:
        description: The value of O(concurrency) or O(request_rate) it is for. By default every step.
        type: float
  max_error_rate:
    description:
      - Share of the requests of a step, from 0 to 1, that may fail. Beyond it the task fails with the class of most failures.
      - A step ends when nothing but failures comes, and no other begins. Then the task fails, whatever this share.
    type: float
    default: 0.0
  baseline:
    description:
      - Result of an earlier run, to compare with. It must have every step of this one, the same workload and the same model.
    type: dict
  baseline_file:
    description: File on the controller with such a result as JSON.
    type: path
  baseline_tolerance:
    description:
      - Percent by which a number may be worse than in O(baseline). Beyond it the task fails with class V(slow).
    type: float
    default: 10
  timeout:
    description: Most seconds for the whole benchmark.
    type: float
    default: 3600
  request_timeout:
    description: Most seconds one request may take. Longer counts as failed, with class V(slow).
    type: float
    default: 120
  progress:
    description: Whether the controller prints a line when a step begins, and now and then in between.
    type: bool
    default: true
  max_wait:
    description:
      - Longest time in seconds that one call of the module waits before it returns with RV(waiting=true). Goes with O(run_id).
    type: float
  run_id:
    description: Name of the benchmark that goes on between the calls. Set by the action plugin.
    type: str
  resume:
    description: What an earlier call handed over (RV(resume)). Set by the action plugin.
    type: dict
author:
  - The baremetal.nim maintainers (@baremetal-nim)
notes:
  - Runs on the host of the service, whose processors it shares. Delegate the task to measure the way that clients take.
  - Every request is real load. A service in use answers its users slower meanwhile.
  - Needs nothing but Python on the host that runs it.
seealso:
  - module: baremetal.nim.chat_completion
  - plugin: baremetal.nim.nim_benchmark_html
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Measure the llama service at three loads
  baremetal.nim.nim_benchmark:
    url: http://127.0.0.1:8000
    concurrency: [1, 16, 64]
    duration: 60
    input_tokens: 1024
    output_tokens: 256

- name: Accept it only if users of a chat are served well
  baremetal.nim.nim_benchmark:
    url: http://127.0.0.1:8000
    request_rate: [2, 4]
    requests: 200
    slo:
      ttft_ms: 500
      itl_ms: 40
    gates:
      - metric: ttft_ms
        stat: p95
        max: 500
      - metric: goodput_per_s
        min: 3.6
        at: 4

- name: Compare with the run before the upgrade, as clients see it
  baremetal.nim.nim_benchmark:
    url: https://llm.example.com
    api_key: "{{ gateway_api_key }}"
    baseline_file: before.json
    baseline_tolerance: 5
  delegate_to: localhost
"""

RETURN = r"""
steps:
  description: What each step measured, in the order of the sweep. Latencies are in milliseconds.
  returned: always
  type: list
  elements: dict
  contains:
    load:
      description: V(closed) or V(open).
      type: str
    level:
      description: The concurrency, or the rate in requests per second.
      type: float
    requests:
      description: Requests that ended. C(completed) of them well, C(failed_requests) not; C(error_rate) is the share of these.
      type: int
    errors:
      description: For each class of failure, how often (C(count)), one in words (C(sample)), and a cure if that is not the class's own.
      type: dict
    aborted:
      description: Whether the step was given up because nothing but failures came.
      type: bool
    last_error:
      description: Class of the last failure of a step that was given up. None otherwise.
      type: str
    duration_s:
      description: Seconds from the first request sent to the last content received.
      type: float
    requests_per_s:
      description: Completed requests per second.
      type: float
    output_tokens_per_s:
      description: Tokens of all answers per second.
      type: float
    goodput_per_s:
      description: Requests per second that kept to O(slo). None without it.
      type: float
    ttft_ms:
      description: From the request to the first content, C(mean), C(p50), C(p90), C(p95), C(p99), C(min) and C(max).
      type: dict
    itl_ms:
      description: Of each request, the time from first to last content divided by its tokens less one.
      type: dict
    tpot_ms:
      description: The same number under the name that C(vllm bench serve) gives it.
      type: dict
    icl_ms:
      description: Every gap between two chunks with content.
      type: dict
    e2e_ms:
      description: From the request to the last content.
      type: dict
    tokens_per_s_user:
      description: Of each request, 1000 divided by its C(itl_ms).
      type: dict
    input_tokens_mean:
      description: Tokens of a prompt as the server counted, the mean.
      type: float
    output_tokens_mean:
      description: Tokens of an answer, the mean.
      type: float
    tokens_from:
      description: Who counted the tokens of the answers, V(usage), or V(chunks) where the server did not count those of each.
      type: str
    long_answers:
      description: Answers that have enough chunks to tell whether they came at one blow. C(kept_back) of them did.
      type: int
    client_cpu_percent:
      description: Processor time of the client. Near 100 it measures itself.
      type: float
    client_lag_ms:
      description: How late the client noticed that a moment had come.
      type: dict
    late_ms:
      description: How late requests were sent in the open loop.
      type: dict
    histograms:
      description: C(edges) and C(counts) of C(ttft_ms) and C(e2e_ms).
      type: dict
    timeline:
      description: What ended in each second, or longer span, of the step.
      type: list
not_run:
  description: The steps that were wanted and were not measured, each with its C(load) and C(level).
  returned: always
  type: list
  elements: dict
gates:
  description: Each gate at each of its steps, with what was seen and wanted, and whether it C(passed).
  returned: always
  type: list
  elements: dict
comparison:
  description: Each number C(now) and C(before), its C(change_percent), and whether that is a C(regression).
  returned: always
  type: list
  elements: dict
workload:
  description: What was sent.
  returned: always
  type: dict
environment:
  description: Where and by what was measured.
  returned: always
  type: dict
url:
  description: The endpoint.
  returned: always
  type: str
model:
  description: The model that was asked.
  returned: always
  type: str
started:
  description: When the benchmark began, by the clock of the host.
  returned: always
  type: str
  sample: "2026-11-24T04:00:00Z"
elapsed:
  description: Seconds the benchmark took.
  returned: always
  type: float
phase:
  description: The step that runs, or V(done).
  returned: always
  type: str
history:
  description: The phase and its detail.
  returned: always
  type: list
  elements: dict
waiting:
  description: Whether the benchmark goes on. Never true in a task.
  returned: always
  type: bool
resume:
  description: Value of O(resume) for the next call.
  returned: when RV(waiting=true)
  type: dict
failure_class:
  description:
    - Class of the failure. None on success.
    - V(slow) for a gate, a regression, or requests that did not end in time; V(not_comparable) for a baseline of something else;
      V(client_limit) when this host has no more files or ports for requests.
    - V(overloaded), V(incomplete), V(buffered_stream), V(refused_by_policy), V(unreachable), V(tls), V(auth), V(wrong_model),
      V(bad_response), V(dead_engine) as in M(baremetal.nim.chat_completion).
  returned: always
  type: str
  sample: slow
evidence:
  description: Lines that show the failure. Empty on success.
  returned: always
  type: list
  elements: str
next_command:
  description: Command to run next on the host. None on success.
  returned: always
  type: str
  sample: curl -sS http://127.0.0.1:8000/v1/metrics
"""

import os
import platform
import shlex
import socket
import time
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark, _clock, _judgement, _probe
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault
from ansible_collections.baremetal.nim.plugins.module_utils._job import Job
from ansible_collections.baremetal.nim.plugins.module_utils._load import Run

# What to run next where it is not the endpoint that is to be asked.
_NEXT = {"client_limit": "ulimit -Hn"}


def measure(options: dict[str, Any], base: str, tick: Callable[[str, str], None]) -> dict[str, Any]:
    """Return the whole result, with failed and msg when it is a failure."""
    begin = time.monotonic()
    result: dict[str, Any] = {
        "changed": False,
        "comparison": [],
        "environment": {
            "hostname": socket.gethostname(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processors": os.cpu_count(),
            "definitions": "aiperf",
        },
        "evidence": [],
        "failure_class": None,
        "gates": [],
        "history": [],
        "model": options["model"],
        "next_command": None,
        "not_run": [],
        "phase": "done",
        "started": _clock.iso(time.time()),
        "steps": [],
        "url": base,
        "waiting": False,
        "workload": {},
    }
    run = Run(options, base, tick)
    baseline = options["baseline"]
    fault: Fault | None = None
    try:
        if baseline is not None:
            # Before minutes of load, not after. What the server makes of fixed_output is seen only then.
            asked = {key: value for key, value in _benchmark.workload(options).items() if key != "fixed_output"}
            problems = _judgement.baseline_problems(baseline, _benchmark.planned(options), asked, options["model"])
            if problems:
                raise _judgement.not_comparable(problems)
        run.run()
    except Fault as exc:
        fault = exc
    result.update(run.seen())
    result["gates"] = _judgement.judge(options["gates"], result["steps"], result["not_run"])
    if fault is None:
        missing: list[str] = []
        if baseline is not None:
            missing = _judgement.baseline_problems(baseline, (), result["workload"], result["model"])
            if not missing:
                found = _judgement.compare(baseline, result["steps"], options["baseline_tolerance"])
                result["comparison"], missing = found
        fault = _judgement.fault_of(result, options, missing)
    result["warnings"] = run.warnings
    result["elapsed"] = round(time.monotonic() - begin, 3)
    if fault is not None:
        path = "/v1/metrics" if fault.failure_class in ("slow", "overloaded") else "/v1/models"
        command = ["curl", "-sS"] + (['-H "Authorization: Bearer $API_KEY"'] if options["api_key"] else [])
        result.update(
            failed=True,
            failure_class=fault.failure_class,
            evidence=fault.evidence,
            next_command=_NEXT.get(fault.failure_class) or " ".join([*command, shlex.quote(base + path)]),
        )
        result["msg"] = f"{socket.gethostname()}: {base}: {fault}. {fault.cure} Next: {result['next_command']}"
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=_benchmark.ARGUMENT_SPEC,
        mutually_exclusive=_benchmark.MUTUALLY_EXCLUSIVE,
        required_by=_benchmark.REQUIRED_BY,
        required_together=_benchmark.REQUIRED_TOGETHER,
        supports_check_mode=True,
    )
    options = module.params
    problems = _benchmark.option_problems(options)
    if problems:
        module.fail_json(msg="; ".join(problems))
    base = _probe.base_of(options["url"])
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, waiting=False, msg=f"Check mode: {base} was not asked.")
    if options["baseline_file"]:
        try:
            with open(options["baseline_file"], encoding="utf-8") as file:
                options["baseline"] = _judgement.load_baseline(file.read(), options["baseline_file"])
        except (OSError, ValueError) as exc:
            module.fail_json(msg=str(exc))
    if options["run_id"] is None:
        finish(module, measure(options, base, lambda _phase, _detail: None))
    job = Job(options["run_id"])
    try:
        job.begin(lambda tick: measure(options, base, tick))
        result = job.look(options["max_wait"])
    except (OSError, RuntimeError) as exc:
        module.fail_json(msg=f"{socket.gethostname()}: {base}: the benchmark has no result: {exc}")
    if result is not None:
        finish(module, result)
    phase, detail = job.status()
    elapsed = float((options["resume"] or {}).get("elapsed") or 0.0)
    history = [{"at": elapsed, "phase": phase, "detail": detail}]
    module.exit_json(
        changed=False, waiting=True, phase=phase, history=history, last_log="", resume={"elapsed": elapsed}
    )


def finish(module: AnsibleModule, result: dict[str, Any]) -> None:
    """Return a result as the module's."""
    for text in result.pop("warnings", []):
        module.warn(text)
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
