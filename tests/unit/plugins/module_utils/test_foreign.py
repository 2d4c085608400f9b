# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile words of strangers, for everything that reads them: none costs more than its length, none reaches a terminal as it is."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import pathlib
import re
import sys
import time
from types import SimpleNamespace

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _chat,
    _events,
    _evidence,
    _exposition,
    _fault,
    _features,
    _foreign,
    _host,
    _info,
    _occupancy,
    _refusal,
    _registry,
    _requirements,
    _retrieval,
    _staged,
    _staging,
    _startup,
    _unit,
)
from hypothesis import given
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[4]
#: What begins where a pattern begins: each repeated is the worst that a pattern of that kind meets.
PIECES = {
    "letter": "a",
    "space": " ",
    "digit": "1",
    "digits of many": "1.",
    "escape": "\x1b[31m",
    "escape without end": "\x1b[1;",
    "title": "\x1b]0;",
    "nul": "\0",
    "return": "x\r",
    "bracket": "[",
    "bracket with a number": "[1",
    "list": "[1]",
    "tag": "<",
    "head": "<head>",
    "script": "<script ",
    "parenthesis": "(pid=1 ",
    "pid": "pid=1 ",
    "quote": '"',
    "backslash": "\\",
    "get": '"GET x',
    "cache": "cache ",
    "errno": "errno 13 ",
    "device": "free memory on device ",
    "requested": "requested access ",
    "libcuda": "libcuda.so",
    "manifest": "manifest for x ",
    "trace": "stack trace ",
    "too many": "too_many_",
    "too-many": "too many ",
    "exceed": "exceed",
    "queue": "queue ",
    "worker": "worker",
    "engine": "engine proc",
    "concurrency": "concurren",
    "no": "no live ",
    "against": "against ",
    "blocked": "blocked by ",
    "model": "model ",
    "503": "503 service unavailable ",
    "retry": "retry in 1",
    "bar": "x:1%|",
    "percent": "%|",
    "downloading": "downloading x: 1/1 ",
    "image": "unable to find image ",
    "shards": "loading x checkpoint shards: 1",
    "graphs": "capturing cuda graph ",
    "label": 'm{a="b",',
    "comma": ",",
    "brace": "}",
    "sharp": "# TYPE ",
    "entity": "&#1",
    "equals": 'a="',
    "right to left": "\u202e",
    "c1": "\x9b31m",
    "name": "A",
    "error": "Error",
    "colon": ":",
    "status": "status=9",
    "level": "INFO ",
    "file": 'File "',
    "gpu": "GPU memory is still held after : ",
}


def lines_of(text):
    return _unit.parse_journal(text)


def read_unit(text):
    lines = lines_of(text)
    _unit.classify(lines)
    _unit.last_error(lines)
    _unit.last_words(lines)
    _unit.last_life(lines)
    _unit.before_start(lines)
    _unit._journal_exit(lines)
    return lines


def events_of(text):
    return [event.data or "" for event in _events.sse_events([text.encode("utf-8", "replace"), b"\n\n"])]


def tolerant(read):
    """Reads, and passes on what it says against the text; anything but that is a fault of the reader."""

    def reading(text):
        try:
            return read(text)
        except (ValueError, _fault.Fault) as problem:
            return [str(problem)]

    return reading


READERS = {
    "journal": lines_of,
    "line as it is": lambda text: _evidence.fold([text]),
    "unit": read_unit,
    "cause": lambda text: list(_unit.classify(lines_of(text)) or ()),
    "startup": lambda text: [found.words] if (found := _startup.startup(lines_of(text))) else [],
    "pull": lambda text: [_staging.pull_progress(lines_of(text)), _staging.last_line(lines_of(text))],
    "shorten": lambda text: [_fault.shorten(text)],
    "printable": lambda text: [_foreign.printable(text)],
    "fault": lambda text: [str(_fault.Fault("slow", text, text, [text], text))],
    "error": lambda text: [_refusal.error_text(text)],
    "page": lambda text: [_refusal.error_text(f"<html>{text}")],
    "refusal": lambda text: [str(_refusal.http_fault("GET /", 503, text, {"Retry-After": text}))],
    "policy": lambda text: [str(_refusal.http_fault("GET /", 403, json.dumps({"error": text}), {}))],
    "kinds": lambda text: [str(_refusal.http_fault("GET /", 500, json.dumps({"type": text, "detail": text}), {}))],
    "retry": lambda text: [str(_refusal.retry_after({}, text))],
    "metrics": tolerant(lambda text: [str(_info.read_metrics(text))]),
    "labels": tolerant(lambda text: [str(_exposition.parse(f'm{{a="{text}"}} 1'))[:10]]),
    "value": tolerant(lambda text: [str(_exposition.parse(f"m {text}"))[:10]]),
    "json": tolerant(lambda text: [str(_chat.parse_json("GET /", text))[:10]]),
    "models": tolerant(lambda text: [str(_info.read_models({"data": [{"id": text, "root": text}]}))]),
    "metadata": tolerant(lambda text: [str(_info.read_metadata({"version": text, "assetInfo": [text]}))]),
    "completion": tolerant(lambda text: [str(_chat.read_completion({"id": text, "model": text}, "m"))]),
    "usage": lambda text: [_fault.shorten("; ".join(_chat.usage_problems({"prompt_tokens": text})))],
    "document": tolerant(lambda text: [str(_features._document(text, {"properties": {}, "required": []})[1])]),
    "events": lambda text: [part[:10] for part in events_of(f"data: {text}") if part[:10].isprintable()],
    "challenge": lambda text: [str(_registry.parse_challenge(f"Bearer {text}"))[:10]],
    "registry": tolerant(lambda text: [str(_registry.parse_manifest(text))]),
    "realm": tolerant(lambda text: [_registry.token_url(text, {}, "a", "b")]),
    "digest": tolerant(lambda text: [_registry._digest(text)]),
    "labels of an image": lambda text: list(
        _registry.parse_labels(json.dumps({"config": {"Labels": {f"com.nvidia.nim.{text}": text}}})).values()
    ),
    "catalogue": tolerant(lambda text: [str(_requirements.parse_metadata(text))]),
    "driver": lambda text: [str(_requirements._driver({"driver": text}))],
    "marker": lambda text: [str(_staged.parse_marker(text))],
}
#: Characters that a terminal, or a reader of text from left to right, is misled by.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("name", sorted(READERS))
def test_hostile_lines_are_read_and_made_printable(name):
    for piece in PIECES.values():
        # Journald splits what is longer.
        text = piece * (48 * 1024 // len(piece))
        for out in READERS[name](text):
            assert not OBEYED.search(out), (name, piece)
            assert len(out) <= 10000, (name, piece, len(out))


@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.parametrize("ending", ["", "x\n", '"', "}"], ids=["bare", "line", "quote", "brace"])
def test_no_reader_takes_the_square_of_a_length(name, ending):
    """Twice the length costs about twice the time. A square costs a hundred times as much for ten times the length."""

    def spent(text):
        start = time.process_time()
        READERS[name](text)
        return time.process_time() - start

    for piece in PIECES.values():
        short = piece * (20_000 // len(piece)) + ending
        long = piece * (200_000 // len(piece)) + ending
        # Only what takes long enough to be measured can be told.
        taken = spent(long)
        assert taken < 0.5 or taken < 40 * max(spent(short), 0.02), (name, piece, taken)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000, "[" * 300 + "]" * 300],
    ids=["open", "objects", "closed", "flat"],
)
@pytest.mark.parametrize(
    "read",
    [
        _foreign.parse_json,
        lambda text: _chat.parse_json("GET /", text),
        _registry._document,
        _requirements.parse_metadata,
        _info._json,
    ],
    ids=["gate", "chat", "registry", "catalogue", "info"],
)
def test_deep_json_is_refused_in_words(read, text):
    with pytest.raises((ValueError, _fault.Fault)) as caught:
        read(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, f"[{'9' * 100_000}]", "1" * 1000 + ".5", f"1e{'9' * 5000}"],
    ids=["number", "list", "fraction", "exponent"],
)
def test_numbers_without_end_are_refused(text):
    with pytest.raises(ValueError, match="it has a number of"):
        _foreign.parse_json(text)


@pytest.mark.parametrize(
    "text",
    ["1e400", "-1", "0.1", "[1, 2.5e3]", '{"a": [{"b": null}]}', "123456789012345678901234567890", '"x"', "true"],
)
def test_json_that_is_none_of_that_is_read_as_ever(text):
    assert _foreign.parse_json(text) == json.loads(text)


def test_one_that_is_deep_is_an_error_of_the_server_still():
    deep = "[" * 100_000
    assert _refusal.error_text(deep).startswith("[[[")
    assert _refusal.http_fault("GET /", 500, deep).failure_class == "dead_engine"
    assert _staged.parse_marker(deep) is None


@given(text=st.text())
def test_whatever_a_fault_tells_is_printable(text):
    fault = _fault.Fault("slow", f"a{text}", text, [text], text)
    for told in (str(fault), fault.culprit, *fault.evidence):
        assert told.isprintable()


@given(text=st.text())
def test_lines_of_a_journal_are_printable(text):
    for line in _unit.parse_journal(text):
        assert line.replace("\t", " ").isprintable() and line.strip()


def test_a_progress_bar_keeps_its_end_and_a_long_line_its_beginning():
    bar = "".join(f"model: {number}%|#| {number}.0M/100M \r" for number in range(2000))
    assert _unit.parse_journal(bar + "done")[0].startswith("done")
    (long,) = _unit.parse_journal("begin " + "x" * 100_000)
    assert long.startswith("begin xxx") and long.endswith("...") and len(long) < 5000


def test_numbers_in_a_start_that_nobody_counts_to():
    for line in (
        f"Downloading model.safetensors: {'9' * 5000}/{'9' * 5000} bytes",
        "model: 1%| | 1.2.3.4M/1..2M ",
        f"Loading safetensors checkpoint shards: 1% Completed | {'9' * 400}/{'9' * 400}",
        f"x: 1%| | {'9' * 400}M/{'9' * 400}M ",
    ):
        found = _startup.startup([line])
        assert found is None or len(found.words) < 100


def test_a_process_may_have_any_name():
    text = (ROOT / "tests/fixtures/h200-x2/idle.xml").read_text()
    assert _host.parse_nvidia_smi(text.replace("NVIDIA H200", "NVIDIA\x1b[2J H200"))["gpus"]


def watchdog():
    loader = importlib.machinery.SourceFileLoader(
        "nim_watchdog_of_strangers", str(ROOT / "roles/nim_service/files/nim-watchdog")
    )
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return watchdog()


@pytest.mark.parametrize("status", [200, 400, 429, 500, 503])
def test_the_watchdog_reads_hostile_answers(script, status):
    for piece in [*PIECES.values(), '{"a":', '{"error":']:
        answer = script.Answer("GET /", status, piece * (200_000 // len(piece)))
        for out in (script.completion_fault(answer), script.told(answer), script.said(answer.text)):
            assert out.isprintable() and len(out) < 1000
        script.traffic(answer.text)


def test_the_watchdog_has_a_model_to_ask_whatever_the_list_is(script, monkeypatch):
    monkeypatch.setattr(script, "ask", lambda *_args: SimpleNamespace(text="[" * 100_000))
    assert script.model_of({"url": "http://x"}) == "unknown"


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\u202eb", "m" * 2000, "", 7])
def test_what_is_no_name_is_no_model(name):
    with pytest.raises(_fault.Fault, match="lists no model"):
        _chat.read_models({"data": [{"id": name}]})


def test_numbers_that_cannot_be_multiplied_prove_nothing():
    huge = [1e300, 1e300]
    with pytest.raises(_fault.Fault, match="no nearer"):
        _retrieval.check_meaning(huge, [huge, huge, huge])


def test_names_of_units_and_containers_are_those_of_strangers():
    told = _occupancy._words(
        {"pid": 1, "name": "x\x1b[2J", "used_mib": 1, "service": "y\x1b[2J"}, {"unit": "z\x1b[2J.scope"}
    )
    assert told.isprintable()
