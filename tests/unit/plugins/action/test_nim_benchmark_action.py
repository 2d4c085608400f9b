# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller adds to a benchmark, and a whole play; the slices themselves are tested with chat_completion."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ansible.errors import AnsibleFileNotFound
from ansible_collections.baremetal.nim.plugins.action import nim_benchmark
from ansible_collections.baremetal.nim.plugins.plugin_utils import _slices
from ansible_collections.baremetal.nim.tests.unit.role_play import surroundings
from ansible_collections.baremetal.nim.tests.unit.steady_server import steady

STEP = {"load": "closed", "level": 16, "completed": 9, "output_tokens_per_s": 1234.5}
DONE = {"waiting": False, "phase": "done", "steps": [{**STEP, "level": 1, "output_tokens_per_s": 100.0}, STEP]}


def waiting(phase, detail):
    return {"waiting": True, "phase": phase, "history": [{"phase": phase, "detail": detail}], "resume": {"elapsed": 0}}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs the plugin with slices made up; returns its result, the lines it showed and what it sent."""

    def run(*slices, **args):
        at, lines, sent, left = [1000.0], [], [], list(slices)
        monkeypatch.setattr(_slices, "time", SimpleNamespace(monotonic=lambda: at[0], sleep=lambda _s: None))
        monkeypatch.setattr(
            _slices, "Display", lambda: SimpleNamespace(display=lambda line, stderr: lines.append(line))
        )
        given = {"url": "http://127.0.0.1:8000", **args}
        task = Mock(args=given, async_val=0, check_mode=False, no_log=False)
        connection = Mock()
        connection._shell.tmpdir = None
        action = nim_benchmark.ActionModule(
            task=task, connection=connection, play_context=Mock(), loader=Mock(), templar=Mock(), shared_loader_obj=None
        )

        def find(_folder, name):
            path = tmp_path / name
            if not path.exists():
                raise AnsibleFileNotFound(file_name=name)
            return str(path)

        def execute(module_name, module_args, task_vars):
            assert module_name == "baremetal.nim.nim_benchmark"
            sent.append(module_args)
            at[0] += module_args["max_wait"]
            return left.pop(0)

        action._find_needle, action._execute_module = find, execute
        return action.run(task_vars={"inventory_hostname": "gpu01"}), lines, sent

    return run


def test_progress(bench):
    result, lines, sent = bench(
        waiting("concurrency 1", "12 requests, 6/s"), waiting("concurrency 16", "0 requests, 0/s"), DONE
    )
    assert result["steps"] == DONE["steps"]
    assert lines == [
        "gpu01: benchmark of http://127.0.0.1:8000 concurrency 1, 12 requests, 6/s, 2 s of 3600 s",
        "gpu01: benchmark of http://127.0.0.1:8000 concurrency 16, 0 requests, 0/s, 7 s of 3600 s",
        "gpu01: benchmark of http://127.0.0.1:8000 done, at most 1234 tokens/s (concurrency 16)",
    ]
    # All slices mean the same benchmark.
    assert len({args["run_id"] for args in sent}) == 1 and re.fullmatch("[0-9a-f]{32}", sent[0]["run_id"])


def test_a_baseline_is_read_here(bench, tmp_path):
    (tmp_path / "before.json").write_text(json.dumps({"steps": [STEP], "other": 1}))
    _result, _lines, sent = bench(DONE, baseline_file="before.json")
    assert sent[0]["baseline"] == {"steps": [STEP]}
    assert "baseline_file" not in sent[0]


def test_a_baseline_is_cut_to_its_numbers(bench):
    _result, _lines, sent = bench(DONE, baseline={"steps": [STEP], "warnings": [object()]})
    assert sent[0]["baseline"] == {"steps": [STEP]}


@pytest.mark.parametrize(("text", "words"), [(None, "before.json"), ("{", "is no JSON"), ("{}", "no list of steps")])
def test_a_bad_baseline(bench, tmp_path, text, words):
    if text is not None:
        (tmp_path / "before.json").write_text(text)
    result, _lines, sent = bench(baseline_file="before.json")
    assert result["failed"] and words in result["msg"] and sent == []


def play(tmp_path, tasks, *args):
    """Runs tasks on localhost as an operator would."""
    path = tmp_path / "play.yml"
    path.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    root = pathlib.Path(__file__).parents[4]
    environment = {**surroundings(tmp_path), "ANSIBLE_CONFIG": str(root / "ansible.cfg")}
    command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local"]
    command += ["-e", f"ansible_python_interpreter={sys.executable}", *args, str(path)]
    return subprocess.run(command, env=environment, cwd=root, text=True, capture_output=True, check=False)


def test_a_play(tmp_path):
    """Two runs, the second against the first; progress is told, the key is not."""
    with steady(ttft=0.05, itl=0.005) as url:
        args = {"url": url, "concurrency": [1, 4], "duration": 2, "output_tokens": 8, "api_key": "sk-topsecret-x"}
        again = {**args, "concurrency": [4], "duration": 0.5, "baseline": "{{ one }}", "baseline_tolerance": 90}
        done = play(
            tmp_path,
            [
                {"baremetal.nim.nim_benchmark": args, "register": "one"},
                {"baremetal.nim.nim_benchmark": again, "register": "two"},
                {"ansible.builtin.debug": {"msg": "{{ two.comparison | length }} numbers compared"}},
            ],
            "-vvv",
        )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert f"localhost: benchmark of {url} concurrency 1, " in done.stderr
    assert re.search(r"done, at most [\d.e+]+ tokens/s \(concurrency 4\)", done.stderr)
    assert "7 numbers compared" in done.stdout
    assert "sk-topsecret" not in output
