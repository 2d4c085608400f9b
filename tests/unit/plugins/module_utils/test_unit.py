# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _unit
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES, Fault

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
UNIT = "nim-llama.service"
FIRST = "5ae2f1a4b0a64f7e9d3a4fd0a5a6f0b1"
SECOND = "0c1d5e7fb2aa4c0c8f7f5f3a39a5c2de"


def show(**changes):
    """The output of systemctl show for a unit that runs."""
    values = {
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "NRestarts": "0",
        "ExecMainCode": "0",
        "ExecMainStatus": "0",
        "InvocationID": FIRST,
        **changes,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


RUNNING = show()
AUTO_RESTART = show(
    ActiveState="activating", SubState="auto-restart", Result="exit-code", ExecMainCode="1", ExecMainStatus="1"
)
RESTARTED = show(NRestarts="2", InvocationID=SECOND)
FAILED = show(
    ActiveState="failed", SubState="failed", Result="exit-code", NRestarts="5", ExecMainCode="1", ExecMainStatus="3"
)
KILLED = show(ActiveState="failed", SubState="failed", Result="signal", ExecMainCode="2", ExecMainStatus="9")
OOM_KILLED = show(ActiveState="failed", SubState="failed", Result="oom-kill", ExecMainCode="2", ExecMainStatus="9")
EXITED_CLEANLY = show(ActiveState="inactive", SubState="dead", ExecMainCode="1", InvocationID="")
NOT_FOUND = show(LoadState="not-found", ActiveState="inactive", SubState="dead", InvocationID="")
MASKED = show(LoadState="masked", ActiveState="inactive", SubState="dead", InvocationID="")
STARTING = show(ActiveState="activating", SubState="start-pre", InvocationID=FIRST)
STOPPING = show(ActiveState="deactivating", SubState="stop-sigterm")


def test_parse_show():
    state = _unit.parse_show(UNIT, FAILED)
    assert state.as_dict() == {
        "name": UNIT,
        "load_state": "loaded",
        "active_state": "failed",
        "sub_state": "failed",
        "result": "exit-code",
        "restarts": 5,
        "exit_code": 1,
        "exit_status": 3,
        "invocation_id": FIRST,
    }


@pytest.mark.parametrize("text", ["", "\n", "NRestarts=\nExecMainStatus=[not set]\n", "garbage\n"])
def test_parse_show_of_nothing_useful(text):
    assert _unit.parse_show(UNIT, text) == _unit.UnitState(UNIT)


def test_parse_show_keeps_equal_signs_in_values():
    assert _unit.parse_show(UNIT, "Result=a=b\n").result == "a=b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RUNNING, ""),
        (FAILED, "exit status 3"),
        (KILLED, "killed by signal 9"),
        (EXITED_CLEANLY, "exit status 0"),
        (show(ExecMainCode="3", ExecMainStatus="6"), "killed by signal 6"),
    ],
)
def test_last_exit(text, words):
    assert _unit.parse_show(UNIT, text).last_exit == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(RUNNING, None, id="running"),
        pytest.param(STARTING, None, id="starting"),
        pytest.param(STOPPING, None, id="stopping: what follows tells"),
        pytest.param(show(InvocationID=""), None, id="no invocation yet"),
        pytest.param(AUTO_RESTART, "crash_loop", id="auto-restart"),
        pytest.param(show(ActiveState="activating", SubState="auto-restart-queued"), "crash_loop", id="queued"),
        pytest.param(RESTARTED, "crash_loop", id="restarted"),
        pytest.param(show(InvocationID=SECOND), "crash_loop", id="started anew by hand"),
        pytest.param(FAILED, "crash_loop", id="failed"),
        pytest.param(EXITED_CLEANLY, "unit_stopped", id="exited"),
        pytest.param(NOT_FOUND, "unit_not_found", id="not found"),
        pytest.param(MASKED, "unit_not_found", id="masked"),
    ],
)
def test_verdict(text, expected):
    found = _unit.verdict(_unit.parse_show(UNIT, text), restarts=0, invocation_id=FIRST)
    assert (found and found[0]) == expected
    if found:
        assert found[1].startswith(f"unit {UNIT} ")


def test_verdict_forgives_restarts_before_the_wait():
    state = _unit.parse_show(UNIT, RESTARTED)
    assert _unit.verdict(state, restarts=2, invocation_id=SECOND) is None
    assert _unit.verdict(state, restarts=1, invocation_id=FIRST)[1].endswith("restarted once during the wait")
    assert _unit.verdict(state, restarts=0, invocation_id=FIRST)[1].endswith("restarted 2 times during the wait")


VLLM_OOM = """\
INFO 11-23 07:11:58 [__init__.py:235] Automatically detected platform cuda.
(EngineCore_DP0 pid=272) INFO 11-23 07:12:20 [gpu_model_runner.py:2007] Starting to load model /opt/nim/workspace...
(EngineCore_DP0 pid=272) ERROR 11-23 07:12:31 [core.py:708] EngineCore failed to start.
(EngineCore_DP0 pid=272) ERROR 11-23 07:12:31 [core.py:708] Traceback (most recent call last):
(EngineCore_DP0 pid=272) ERROR 11-23 07:12:31 [core.py:708] torch.OutOfMemoryError: CUDA out of memory. Tried to \
allocate 224.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 104.19 MiB is free.
(APIServer pid=1)   File "/opt/nim/llm/vllm/v1/engine/utils.py", line 750, in wait_for_engine_startup
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""".splitlines()


@pytest.mark.parametrize(
    ("line", "failure_class"),
    [
        (
            "Exception: ManifestDownloadError: Error downloading manifest: Permission denied (os error 13)",
            "cache_permission",
        ),
        ("PermissionError: [Errno 13] Permission denied: '/opt/nim/.cache/ngc/hub'", "cache_permission"),
        ("OSError: [Errno 28] No space left on device: '/opt/nim/.cache/tmp'", "disk_full"),
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "disk_full"),
        ("Error: I/O error: No space left on device (os error 28)", "disk_full"),
        (
            (
                "docker: Error response from daemon: failed to set up container networking: driver failed programming "
                "external connectivity on endpoint nim-llama (b2c9): Bind for 0.0.0.0:8000 failed: port is already allocated"
            ),
            "port_in_use",
        ),
        (
            "OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
            "port_in_use",
        ),
        ("INFO 2026-11-23 07:12:20.1 ngc_profile.py:231] Detected 0 compatible profile(s).", "no_profile"),
        (
            (
                "ERROR 2026-11-23 07:12:20.1 utils.py:21] Could not find a profile that is currently runnable with the "
                "detected hardware. Please check the system information below and make sure you have enough free GPUs."
            ),
            "no_profile",
        ),
        (VLLM_OOM[4], "out_of_memory"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", "out_of_memory"),
        ("RuntimeError: CUDA error: out of memory", "out_of_memory"),
        ("[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc(ptr, n): out of memory", "out_of_memory"),
        (
            (
                "ValueError: Free memory on device (3.21/79.1 GiB) on startup is less than desired GPU memory utilization "
                "(0.9, 71.19 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
            ),
            "out_of_memory",
        ),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
            "out_of_memory",
        ),
        (
            (
                "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is "
                "needed, which is larger than the available KV cache memory (9.84 GiB)."
            ),
            "out_of_memory",
        ),
        ("nim-llama.service: A process of this unit has been killed by the OOM killer.", "out_of_memory"),
        (
            'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
            "gpu_unavailable",
        ),
        (
            "docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=0",
            "gpu_unavailable",
        ),
        ("Failed to initialize NVML: Driver/library version mismatch", "driver_mismatch"),
        (
            (
                "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver / cuda "
                "driver combination"
            ),
            "driver_mismatch",
        ),
        (
            (
                "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.9, please update your driver to a newer "
                "version, or use an earlier cuda container: unknown"
            ),
            "driver_mismatch",
        ),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver_mismatch"),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver",
            "driver_mismatch",
        ),
        (
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
            "gpu_unavailable",
        ),
        (
            "docker: Error response from daemon: manifest for nvcr.io/nim/meta/llama:9 not found: manifest unknown",
            "image_missing",
        ),
        ("docker: Error response from daemon: No such image: nvcr.io/nim/meta/llama:1.8.6", "image_missing"),
        ("Error: nvcr.io/nim/meta/llama:1.8.6: image not known", "image_missing"),
        (
            "docker: Error response from daemon: unauthorized: <html><head><title>401 Authorization Required</title>",
            "auth",
        ),
        (
            (
                "docker: Error response from daemon: pull access denied for nvcr.io/nim/meta/llama, repository does not "
                "exist or may require 'docker login': denied: requested access to the resource is denied"
            ),
            "auth",
        ),
        ("Error response from daemon: Head https://nvcr.io/v2/nim/x/manifests/1: 402 Payment Required", "auth"),
        ("Exception: ManifestDownloadError: Error downloading manifest: Authentication error", "auth"),
        ("The requested operation requires an API key, but none was found. Set NGC_API_KEY.", "auth"),
        ("Error: request failed, status code: 403, url: https://api.ngc.nvidia.com/v2/org", "auth"),
        ("requests.exceptions.HTTPError: 401 Client Error: for url: https://huggingface.co/api", "auth"),
    ],
)
def test_classify_one_line(line, failure_class):
    assert _unit.classify(["Started.", line, "exiting"]) == (failure_class, line)
    assert failure_class in CURES


@pytest.mark.parametrize(
    "line",
    [
        "INFO 11-23 07:12 [gpu_model_runner.py] If out-of-memory error occurs during cudagraph capture, lower it.",
        "INFO ngc_profile.py:231] Detected 2 compatible profile(s).",
        "INFO ngc_profile.py:233] Detected 10 compatible profile(s).",
        "Unable to find image 'nvcr.io/nim/meta/llama:1.8.6' locally",
        "Error response from daemon: No such container: nim-llama",
        'INFO:     10.0.0.7:5502 - "POST /v1/chat/completions HTTP/1.1" 401 Unauthorized',
        'INFO:     127.0.0.1:5502 - "GET /v1/models HTTP/1.1" 403 Forbidden',
        "INFO [loader.py:401] Loading weights took 4.03 seconds",
        "INFO throughput: 401 tokens/s, 403 requests",
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "nim-llama.service: Main process exited, code=exited, status=1/FAILURE",
        "",
    ],
)
def test_classify_knows_nothing_of_harmless_lines(line):
    assert _unit.classify([line]) is None


def test_classify_finds_the_cause_above_the_last_traceback():
    assert _unit.classify(VLLM_OOM) == ("out_of_memory", VLLM_OOM[4])


def test_classify_prefers_the_newest_line():
    lines = ["Bind for 0.0.0.0:8000 failed: port is already allocated", "No space left on device", "bye"]
    assert _unit.classify(lines)[0] == "disk_full"


def ending(number, status=1):
    return [
        f"{UNIT}: Main process exited, code=exited, status={status}/FAILURE",
        f"{UNIT}: Failed with result 'exit-code'.",
        f"{UNIT}: Consumed 23.104s CPU time.",
        f"{UNIT}: Scheduled restart job, restart counter is at {number}.",
        f"Stopped {UNIT} - NIM llama.",
    ]


START = [f"Starting {UNIT} - NIM llama...", f"Started {UNIT} - NIM llama."]


def test_last_life_is_the_last_that_ended():
    first = [*START, "port is already allocated"]
    second = [*START, *VLLM_OOM]
    lines = [*first, *ending(1), *second, *ending(2), *START, "Loading weights"]
    life = _unit.last_life(lines)
    assert _unit.classify(life)[0] == "out_of_memory"
    assert "Loading weights" not in life
    assert "port is already allocated" not in life
    assert any("restart counter is at 2" in line for line in life)


def test_last_life_without_an_end_is_everything():
    assert _unit.last_life(["a", "b"]) == ["a", "b"]
    assert _unit.last_life([]) == []


def test_last_life_of_a_clean_exit():
    lines = ["a", *ending(1), "Permission denied (os error 13)", f"{UNIT}: Deactivated successfully."]
    assert _unit.classify(_unit.last_life(lines))[0] == "cache_permission"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ""),
        (START, ""),
        (["Loading weights 3/4", *ending(1)], "Loading weights 3/4"),
        (["Loading weights 3/4", 'INFO: 127.0.0.1:1 - "GET /v1/health/ready HTTP/1.1" 503'], "Loading weights 3/4"),
        (["Starting vLLM v0.31.0"], "Starting vLLM v0.31.0"),
        (["Loading:\t\t 10%\x07"], "Loading: 10%"),
        (["x" * 500], "x" * 197 + "..."),
    ],
)
def test_last_words(lines, words):
    assert _unit.last_words(lines) == words


def test_words_of_podman_are_none_of_the_service():
    recorded = (FIXTURES / "podman/journal.txt").read_text().splitlines()
    assert _unit.last_words(recorded) == recorded[0]
    assert _unit.classify(recorded) is None


ROOT = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
WORKER = (
    "(EngineCore pid=28) ERROR 11-24 09:21:52 [core.py:1512] RuntimeError: Worker failed with error 'InvalidCxxCompiler: No "
    "working C++ compiler found"
)
DEAD = (
    "(APIServer pid=16) ERROR 11-24 09:21:52 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered "
    "an issue. See stack trace (above) for the root cause."
)
PARSER = "TypeError: --tool-call-parser llama3_json cannot be used with the tokenizer of 'x'"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ""),
        (["Loading weights", "engine exited with status 1"], ""),
        (
            ["Traceback (most recent call last):", PARSER, "ERROR start_server.py:192] engine exited with status 1"],
            PARSER,
        ),
        ([PARSER, f"(APIServer pid=77) {ROOT}", "container nim-llama ended by itself with exit status 1"], PARSER),
        ([WORKER, DEAD, "ERROR start_server.py:192] engine exited with status 0"], WORKER),
        ([ROOT, "container nim-llama ended by itself with exit status 1"], ROOT),
        (["ValueError: old", "ValueError: new"], "ValueError: new"),
        (['INFO: 127.0.0.1 - "GET /KeyError: HTTP/1.1" 404'], ""),
    ],
)
def test_last_error(lines, said):
    assert _unit.last_error(lines) == said


def test_commands_are_argument_lists():
    assert _unit.show_command(UNIT)[:2] == ["systemctl", "show"]
    assert _unit.show_command(UNIT)[-2:] == ["--", UNIT]
    assert _unit.life_command(FIRST, 5)[:4] == ["journalctl", f"_SYSTEMD_INVOCATION_ID={FIRST}", "-n", "5"]
    assert _unit.journal_command(UNIT, 20) == [
        "journalctl", f"--unit={UNIT}", "-n", "20", "-o", "cat", "--all", "--no-pager",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["nim-llama", "nim-llama.service", "nim@gpu0.service", r"nim-a\x2db.service"])
def test_unit_names(name):
    assert _unit.UNIT_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "-x", "nim-*", "a b", "a;b", "a\n"])
def test_not_unit_names(name):
    assert not _unit.UNIT_NAME.fullmatch(name)


class Host:
    """Stands for run_command: gives the next systemctl output, and the journal."""

    def __init__(self, *shows, journal=(), lives=None):
        self.shows = list(shows)
        self.lines = list(journal)
        # Invocation to what that life of the unit wrote itself.
        self.lives = lives or {}
        self.calls = []
        self.at = 0.0

    def now(self):
        return self.at

    def __call__(self, argv):
        self.calls.append(argv)
        if argv[0] == "journalctl":
            count = int(argv[argv.index("-n") + 1])
            field, _equals, value = argv[1].partition("=")
            lines = self.lines if field == "--unit" else self.lives[value]
            return 0, "".join(line + "\n" for line in lines[-count:]), ""
        text = self.shows.pop(0) if len(self.shows) > 1 else self.shows[0]
        return (1, "", text) if text.startswith("Failed") else (0, text, "")


def caught_by(watch, times=1):
    with pytest.raises(Fault) as caught:
        for _count in range(times):
            watch.check(force=True)
    return caught.value


def test_watch_asks_at_most_once_a_second():
    host = Host(RUNNING)
    watch = _unit.UnitWatch(UNIT, host, now=host.now)
    for host.at in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 2.1):
        watch.check()
    assert len(host.calls) == 3
    watch.check(force=True)
    assert len(host.calls) == 4


def test_watch_tells_a_restart_with_its_cause_and_evidence():
    noise = [f"INFO loaded file {number}" for number in range(40)]
    host = Host(RUNNING, RESTARTED, journal=[*START, *VLLM_OOM, *noise, *ending(1), *START])
    fault = caught_by(_unit.UnitWatch(UNIT, host, lines=20), times=2)
    assert fault.failure_class == "out_of_memory"
    assert str(fault) == f"unit {UNIT} restarted 2 times during the wait (last exit status 1), wanted active"
    assert len(fault.evidence) == 20
    # The cause stands far above the last lines and is shown all the same, and nobody's who only heard of it.
    assert fault.evidence[:2] == [VLLM_OOM[2], VLLM_OOM[4]]
    assert not any(line.startswith("(APIServer") for line in fault.evidence)
    assert fault.culprit.startswith("(EngineCore_DP0 pid=272) ERROR")
    assert fault.of_unit


@pytest.mark.parametrize(
    ("text", "journal", "failure_class", "words"),
    [
        (FAILED, ["segmentation fault"], "crash_loop", "is failed (result exit-code) (last exit status 3)"),
        (AUTO_RESTART, [], "crash_loop", "crashed (result exit-code) and waits for its restart (last exit status 1)"),
        (KILLED, [], "crash_loop", "(last killed by signal 9)"),
        (OOM_KILLED, ["Loading weights"], "out_of_memory", "result oom-kill"),
        (EXITED_CLEANLY, [], "unit_stopped", "is inactive (result success) (last exit status 0)"),
        (EXITED_CLEANLY, ["Permission denied (os error 13)"], "cache_permission", "is inactive"),
        (NOT_FOUND, [], "unit_not_found", f"unit {UNIT} is not-found, wanted an installed unit"),
        ("Failed to connect to bus: Host is down\n", [], "unit_unreadable", "Failed to connect to bus: Host is down"),
    ],
)
def test_watch_fails_at_the_first_look(text, journal, failure_class, words):
    fault = caught_by(_unit.UnitWatch(UNIT, Host(text, journal=journal)))
    assert (fault.failure_class, words in str(fault)) == (failure_class, True), str(fault)


def test_watch_carries_on_from_an_earlier_slice():
    watch = _unit.UnitWatch(UNIT, Host(RESTARTED), restarts=1, invocation_id=FIRST)
    assert "restarted once" in str(caught_by(watch))


def test_watch_learns_the_invocation_when_the_unit_gets_one():
    host = Host(show(InvocationID=""), RUNNING, show(InvocationID=SECOND))
    watch = _unit.UnitWatch(UNIT, host)
    watch.check(force=True)
    watch.check(force=True)
    assert watch.invocation_id == FIRST
    assert "was started anew" in str(caught_by(watch))


def test_watch_forgives_a_systemd_that_is_away_for_a_moment():
    away = "Failed to get properties: Connection reset by peer"
    watch = _unit.UnitWatch(UNIT, Host(RUNNING, away, away, RUNNING, away, away, away))
    for _count in range(6):
        watch.check(force=True)
    assert caught_by(watch).failure_class == "unit_unreadable"


def test_the_present_life_is_none_of_the_life_before():
    """A container that was started a moment ago has said nothing yet; what the one before said last is no progress of it."""
    before = [*START, "Loading weights 4/4", "Uvicorn running on http://0.0.0.0:8000"]
    # Not every end is in the journal: it is limited in rate and size.
    host = Host(show(InvocationID=SECOND), journal=[*before, *START], lives={FIRST: before, SECOND: []})
    watch = _unit.UnitWatch(UNIT, host, now=host.now)
    watch.check(force=True)
    assert (watch.life(), watch.startup(), watch.evidence()) == ([], None, ([], ""))
    host.lives[SECOND], host.at = ["Loading model weights"], 5.0
    assert watch.life() == ["Loading model weights"]
    assert watch.startup().stage == "loading"
    assert watch.evidence() == (["Loading model weights"], "Loading model weights")


def test_a_life_without_an_invocation_begins_at_the_last_end():
    host = Host(show(InvocationID=""), journal=["old", *ending(1), "new"])
    watch = _unit.UnitWatch(UNIT, host)
    watch.check(force=True)
    assert watch.life() == [f"Stopped {UNIT} - NIM llama.", "new"]


def test_journal_is_free_of_colours_and_empty_lines():
    host = Host(RUNNING, journal=["\x1b[1;32mINFO\x1b[0m ready  ", "", "  indented"])
    assert _unit.UnitWatch(UNIT, host).journal() == ["INFO ready", "  indented"]


def test_journal_that_cannot_be_read_is_empty():
    assert _unit.UnitWatch(UNIT, lambda argv: (1, "", "No journal files were opened")).journal() == []


def test_no_journal_lines_wanted_still_names_the_cause():
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=VLLM_OOM), lines=0))
    assert (fault.failure_class, fault.evidence) == ("out_of_memory", [VLLM_OOM[4]])


# -- who held the GPU before the start ---------------------------------------------------------------------------------

FOREIGN = (pathlib.Path(__file__).parents[3] / "fixtures/h200-vllm/foreign-journal.txt").read_text().splitlines()
HOLDS = "GPU memory is still held after 60 s, the start goes on: GPU 0: python3 (pid 4711, 125003 MiB)"
ASKED = (
    "nvidia-smi failed (exit status 255: Failed to initialize NVML: Unknown Error), so it is not known whether others hold the memory of"
    " GPU 0; the start goes on. Next: nvidia-smi"
)


def test_who_holds_the_gpu_is_named_when_memory_was_short():
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=[HOLDS, *START, *FOREIGN])))
    assert fault.failure_class == "out_of_memory"
    assert "; at its start GPU memory was held by others: GPU 0: python3 (pid 4711, 125003 MiB), wanted active" in str(
        fault
    )
    assert fault.evidence[0] == HOLDS and "Free memory on device cuda:0" in fault.culprit


def test_who_shares_the_gpu_is_named_too():
    shared = "GPU memory is held by others too: GPU 0: VLLM::EngineCore (pid 9, 70000 MiB)"
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=[shared, *START, *FOREIGN])))
    assert "held by others: GPU 0: VLLM::EngineCore (pid 9, 70000 MiB)" in str(fault)


def test_who_held_the_gpu_of_an_engine_that_says_much():
    noise = [f"INFO {number}" for number in range(_unit._WINDOW)]
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=[HOLDS, *START, *noise, *FOREIGN])))
    assert "python3 (pid 4711, 125003 MiB)" in str(fault)


def test_of_an_earlier_life_nobody_is_named():
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=[HOLDS, "ready", *ending(1), *START, *FOREIGN])))
    assert "held by others" not in str(fault)


@pytest.mark.parametrize("line", ["Permission denied (os error 13)", "Error: port is already allocated"])
def test_memory_of_others_explains_no_other_failure(line):
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=[HOLDS, line])))
    assert "held by others" not in str(fault) and HOLDS in fault.evidence


def test_names_of_strangers_tell_no_cause():
    evil = HOLDS.replace("python3", "no space left on device RuntimeError: x")
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=[evil, "segmentation fault"])))
    assert (fault.failure_class, fault.culprit) == ("crash_loop", "segmentation fault")


def test_a_gpu_that_could_not_be_asked_is_evidence():
    fault = caught_by(_unit.UnitWatch(UNIT, Host(FAILED, journal=[ASKED, *START, *FOREIGN])))
    assert fault.failure_class == "out_of_memory" and fault.evidence[0] == ASKED
