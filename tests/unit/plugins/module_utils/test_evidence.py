# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a journal shows why a service ended, in recordings of vLLM on a GPU and in made-up ones of others."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _evidence, _unit
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures/h200-vllm"
UNIT = "nim-llama.service"
FRAME = re.compile(r'File "[^"]+", line \d+')


def journal(name):
    """Lines of a recording as journalctl -o cat gives them; some were taken with time and host."""
    lines = (FIXTURES / name).read_text().splitlines()
    return [re.sub(r"^[A-Z][a-z]{2} \d\d [\d:.]+ \S+ [^:\s]+\[\d+\]: ", "", line) for line in lines]


def lives(name):
    """The lives of the service that ended in a recording."""
    found, life = [], []
    for line in journal(name):
        life.append(line)
        if re.search(r"nim-llama\.service: (Failed with result|Deactivated successfully)", line):
            found.append(life)
            life = []
    return found


def failed(lines):
    """What the watch of a unit makes of the journal of one that failed."""
    show = {"LoadState": "loaded", "ActiveState": "failed", "SubState": "failed", "Result": "exit-code"}
    shown = "".join(f"{key}={value}\n" for key, value in show.items())
    watch = _unit.UnitWatch(UNIT, lambda argv: (0, shown if argv[0] == "systemctl" else "\n".join(lines), ""))
    with pytest.raises(Fault) as caught:
        watch.check(force=True)
    return caught.value


CRASHED = {
    "stranger": journal("foreign-journal.txt"),
    "stranger again": next(life for life in lives("hung-journal.txt") if any("Free memory" in line for line in life)),
    "out of memory": next(
        life for life in lives("journal-nim.txt") if any("No available memory" in line for line in life)
    ),
}


@pytest.mark.parametrize("name", CRASHED)
def test_evidence_is_of_the_process_that_failed_first(name):
    fault = failed(CRASHED[name])
    assert fault.failure_class == "out_of_memory"
    assert fault.culprit.startswith("(EngineCore pid=1") and "memory" in fault.culprit
    assert len(fault.evidence) <= 20
    # Nobody's who only heard of it.
    assert not [line for line in fault.evidence if line.startswith("(APIServer")]
    # One frame of a hundred: the innermost of the engine's own code.
    (frame,) = [line for line in fault.evidence if FRAME.search(line)]
    assert "/vllm/v1/" in frame and frame != "in (request_memory|_check_enough_kv_cache_memory)"
    assert frame.endswith(("in request_memory", "in _check_enough_kv_cache_memory"))
    assert sum("ValueError: " in line for line in fault.evidence) == 1
    # How it ended is there as well.
    assert "container nim-llama ended by itself with exit status 1" in fault.evidence
    assert f"{UNIT}: Failed with result 'exit-code'." in fault.evidence


def test_the_culprit_is_whole_or_has_dots():
    stranger = failed(CRASHED["stranger"])
    assert stranger.culprit.endswith("reduce GPU memory used by other processes.")
    long = "RuntimeError: " + "x" * 600
    assert failed([long, f"{UNIT}: Failed with result 'exit-code'."]).culprit == long[:497] + "..."


def test_a_process_that_was_killed_is_told_by_who_misses_it():
    """kill -9 of the engine: it says nothing, and the other one only that it has heard of it."""
    life = lives("kill-journal.txt")[0]
    fault = failed(life)
    assert fault.failure_class == "crash_loop"
    assert "engine core exited unexpectedly" in fault.culprit
    assert fault.culprit == fault.evidence[0]
    assert len([line for line in fault.evidence if FRAME.search(line)]) == 1
    assert "container nim-llama ended by itself with exit status 1" in fault.evidence


def test_a_traceback_that_was_only_a_warning_is_no_failure():
    """The start of vLLM without a module that it can do without."""
    warned = journal("kill-journal.txt")[:60]
    assert any("AssertionError" in line for line in warned)
    story = _evidence.read(warned)
    assert (story.source, story.culprit) == (None, "")


def workers(*said):
    """A crash with tensor parallelism: each worker says what it saw, then those above."""
    lines = []
    for rank, (function, words) in enumerate(said):
        tag = f"(Worker_TP{rank} pid={200 + rank})"
        lines += [
            f"{tag} ERROR 11-29 16:34:14 [multiproc_executor.py:772] WorkerProc failed to start.",
            f"{tag} ERROR 11-29 16:34:14 [multiproc_executor.py:772] Traceback (most recent call last):",
            f'{tag} ERROR 11-29 16:34:14 [multiproc_executor.py:772]   File "/opt/nim/site/vllm/v1/worker.py", line 5, in {function}',
            f"{tag} ERROR 11-29 16:34:14 [multiproc_executor.py:772]     torch.empty(size)",
            f'{tag} ERROR 11-29 16:34:14 [multiproc_executor.py:772]   File "/opt/torch/lib/python3.12/site-packages/torch/x.py", line 1, in y',
            f"{tag} ERROR 11-29 16:34:14 [multiproc_executor.py:772]     return func(*args)",
            f"{tag} ERROR 11-29 16:34:14 [multiproc_executor.py:772] {words}",
        ]
    pointer = "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause."
    last = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    for tag, words in (("(EngineCore pid=100)", pointer), ("(APIServer pid=1)", last)):
        lines += [
            f"{tag} Traceback (most recent call last):",
            f'{tag}   File "/opt/nim/site/vllm/a.py", line 1, in b',
            f"{tag} {words}",
        ]
    return [*lines, f"{UNIT}: Failed with result 'exit-code'."]


def test_of_several_workers_the_first_counts():
    oom, gone = "torch.OutOfMemoryError: CUDA out of memory.", "RuntimeError: NCCL error: remote process exited"
    story = _evidence.read(workers(("load_model", oom), ("all_reduce", gone)))
    assert story.source == "Worker_TP0 pid=200" and story.culprit.endswith(oom)
    evidence = story.evidence(20)
    assert {line.partition(")")[0] for line in evidence if line.startswith("(")} == {"(Worker_TP0 pid=200"}
    # torch's frame is innermost, and nobody's own.
    assert [line for line in evidence if FRAME.search(line)] == [story.lines[1][1]]
    assert story.lines[1][1].endswith("in load_model")


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 20])
def test_a_limit_is_kept_and_what_tells_most_stays(limit):
    lines = [f"INFO {number}" for number in range(50)] + CRASHED["stranger"] + ["Shutting down"] * 40
    story = _evidence.read(lines)
    found = story.evidence(limit)
    assert len(found) == min(limit, len(story.lines))
    assert not limit or story.culprit in found
    assert story.evidence(limit, "a line of systemd")[:1] == ["a line of systemd"]
    assert len(story.evidence(limit, "a line of systemd")) == max(1, limit)


CHAINED = """\
Traceback (most recent call last):
  File "/opt/nim/start.py", line 3, in load
    raise KeyError("a")
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/usr/lib/python3.12/runpy.py", line 1, in run
    main()
  File "/opt/nim/start.py", line 9, in main
    raise OSError("cannot load")
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
OSError: cannot load
""".splitlines()
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/opt/nim/start.py", line 3, in load
  |     run()
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/opt/nim/start.py", line 9, in main
    |     raise OSError("cannot load")
    | OSError: cannot load
    +------------------------------------
""".splitlines()
PYDANTIC = """\
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/opt/nim/vllm/config.py", line 3, in check
(APIServer pid=1)     validate(self)
(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=1)   Value error, User-specified max_model_len (1000000) is greater than the derived max_model_len
""".splitlines()
SGLANG = """\
[2026-11-29 16:34:14 TP0] Load weight begin. avail mem=78.81 GB
[2026-11-29 16:34:15 TP0] Scheduler hit an exception: Traceback (most recent call last):
  File "/sgl-workspace/sglang/python/sglang/srt/managers/scheduler.py", line 2, in run
    scheduler = Scheduler(server_args)
  File "/usr/local/lib/python3.10/dist-packages/torch/nn/module.py", line 5, in to
    return self._apply(convert)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB.
[2026-11-29 16:34:15] Received sigquit from a child process. It usually means the child failed.
""".splitlines()
TRTLLM = """\
[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, mMemPool->getPool(), mCudaStream->get()): out of memory
1       0x7f3e8c5b1e0d tensorrt_llm::common::throwRuntimeError(char const*, int, std::string const&) + 93
2       0x7f3e8c6aa1c5 /usr/local/lib/libtensorrt_llm.so(+0x1c5) [0x7f3e8c6aa1c5]
[11/29/2026-16:34:14] [TRT-LLM] [E] Failed to initialize executor
""".splitlines()


@pytest.mark.parametrize(
    ("lines", "folded", "culprit"),
    [
        pytest.param(
            CHAINED,
            [
                '  File "/opt/nim/start.py", line 3, in load',
                "KeyError: 'a'",
                '  File "/opt/nim/start.py", line 9, in main',
                "OSError: cannot load",
            ],
            "OSError: cannot load",
            id="chained",
        ),
        pytest.param(
            GROUP,
            [
                '  |   File "/opt/nim/start.py", line 3, in load',
                "  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)",
                '    |   File "/opt/nim/start.py", line 9, in main',
                "    | OSError: cannot load",
            ],
            "    | OSError: cannot load",
            id="group",
        ),
        pytest.param(PYDANTIC, [PYDANTIC[1], *PYDANTIC[3:]], PYDANTIC[3], id="an exception of several lines"),
        pytest.param(
            SGLANG,
            [SGLANG[0], "[2026-11-29 16:34:15 TP0] Scheduler hit an exception:", SGLANG[2], *SGLANG[6:]],
            SGLANG[6],
            id="SGLang",
        ),
        pytest.param(TRTLLM, [TRTLLM[0], TRTLLM[3]], "", id="TensorRT-LLM"),
        pytest.param(
            ["    run()", '  File "/opt/nim/a.py", line 1, in b', "    go()", "ValueError: no"],
            ['  File "/opt/nim/a.py", line 1, in b', "ValueError: no"],
            "ValueError: no",
            id="begun before",
        ),
        pytest.param(
            ['  File "/opt/nim/a.py", line 1, in b', "    go()"],
            ['  File "/opt/nim/a.py", line 1, in b'],
            "",
            id="cut off",
        ),
        pytest.param(["plain", "(EngineCore pid=1)", "words"], ["plain", "words"], "", id="a line without words"),
        pytest.param([], [], "", id="nothing"),
    ],
)
def test_tracebacks_are_folded(lines, folded, culprit):
    assert _evidence.fold(lines) == folded
    assert _evidence.read(lines).culprit == culprit


def test_two_processes_that_write_at_a_time_are_told_apart():
    one, two = (
        [line.replace("(APIServer pid=1)", "(A pid=1)") for line in PYDANTIC],
        [f"(B pid=2) {line}" for line in CHAINED[8:]],
    )
    both = [line for pair in zip(one, two) for line in pair] + two[len(one) :]
    folded = _evidence.fold(both)
    assert [line for line in folded if line.startswith("(A")] == [one[1], *one[3:]]
    assert [line for line in folded if line.startswith("(B")] == [two[2], two[-1]]


def test_an_old_failure_is_no_cause():
    """Requests fail in a long life without its end."""
    old = ["ERROR: Exception in ASGI application", "ValueError: an old request"]
    lines = [*old, *(f"INFO {number}" for number in range(300)), *workers(("load", "RuntimeError: new")), "bye"]
    assert _evidence.read(lines).culprit.endswith("RuntimeError: new")
