# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate for what was written down on a host: whatever lies there, its readers go on."""

from __future__ import annotations

import copy
import json
import os
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _deployment,
    _readback,
    _report,
    _resolve,
    _staged,
    _weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SUM = "6b3d3a4e3c1f7e0a9d5c2b8f4e6a7d9c0b1f2e3d4c5b6a798897a6b5c4d3e2f1"
IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
RECORD = {
    "name": "llama",
    "image": f"{IMAGE}:1.8.6",
    "image_reference": f"{IMAGE}@sha256:{SUM}",
    "engine": "docker",
    "contract": "classic",
    "gpus": ["0"],
    "url": "http://10.0.0.1:8000",
    "grpc_port": None,
    "ready_path": "/v1/health/ready",
    "verify": {"prompt": "Say yes.", "timeout": 600},
    "config_hash": SUM,
    "files": {"/etc/nim/llama.env": SUM},
    "key_at_runtime": False,
    "model": "meta/llama-3.1-8b-instruct",
    "ready_after_s": 31.5,
    "ttft_ms": 102.1,
    "watchdog": {"enabled": True, "failures": 3},
    "verified": True,
    "deployed_at": "2026-11-23T17:30:12Z",
    "history": [
        {"image": f"{IMAGE}:1.8.5", "verified": True},
        {"image": f"{IMAGE}:2.0.0", "verified": False, "reason": "x"},
    ],
}
NOTE = {
    "key": "9c11",
    "image_reference": f"sha256:{SUM}",
    "path": "/var/lib/nim/cache/llama",
    "marked": True,
    "bytes": 5,
}

#: Texts that are no records, each a kind of its own.
RUBBISH = {
    "nothing": "",
    "cut-off": '{"config_hash": "6b',
    "text": '"x"',
    "number": "7",
    "list": "[]",
    "null": "null",
    "deep": "[" * 500_000,
    "deep-object": '{"verify":' * 100_000,
    "endless-number": '{"ready_after_s": 1' + "0" * 500_000 + "}",
    "infinite": '{"ready_after_s": Infinity}',
    "no-text": b"\xff\xfe\x00{}",
    "zeros": b"\0" * 1000,
    "key-twice": '{"verified": true, "verified": []}',
}


@pytest.mark.parametrize("text", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_is_nothing(text):
    assert _deployment.parse_record(text) in (None, {})
    assert _staged.parse_note(text) is None
    assert _staged.parse_marker(text) is None
    assert _weights.parse_list(text) is None


def test_what_is_whole_is_kept_whole():
    assert _deployment.parse_record(json.dumps(RECORD)) == RECORD
    assert _staged.parse_note(json.dumps({**NOTE, "unknown": 1})) == NOTE


#: What an endpoint, a hand or another version may have put in the place of any value.
WRONG = [
    None,
    True,
    -1,
    10**17,
    1e300,
    "",
    "a\nb",
    "\x1b[2J",
    "x" * 10_000,
    [],
    {},
    [[1]],
    {"a": {"b": [1]}},
    [None],
    "--privileged",
]


HOST = {"architecture": "x86_64", "os": {"distribution": "Debian"}, "systemd": {"version": 257}}
DEFAULTS = {
    "cache_root": "/var/lib/nim/cache",
    "config_dir": "/etc/nim",
    "state_dir": "/var/lib/nim/services",
    "bind_address": "127.0.0.1",
    "offline": False,
}
SERVICES = [{"name": "llama", "image": IMAGE, "tag": "1.8.6", "gpus": [0]}]


def host_of(record):
    unit = {
        "exists": True,
        "active": "active",
        "sub": "running",
        "enabled": True,
        "restarts": 0,
        "result": "success",
        "uptime": 5.0,
    }
    now = {"unit": unit, "container": None, "record": record, "files": {}, "cache": None, "watchdog": {}, "engines": {}}
    return {"services": {"llama": now}, "images": {}, "gpus": []}


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("key", RECORD)
def test_no_value_of_a_record_fails_a_reader(key, value):
    """Neither site nor the table of the fleet: what is none of its kind is left out."""
    record = _deployment.parse_record(json.dumps({**RECORD, key: value}))
    state = host_of(record)
    _report.status([{"inventory_hostname": "gpu01", "preflight_host": state}])
    _report.endpoints([{"inventory_hostname": "gpu01", "preflight_host": state, "nim_service_endpoints": []}])
    services = _resolve.resolve_services(SERVICES, {**HOST, **state}, DEFAULTS)
    assert [item["name"] for item in _resolve.service_changes(services, {**HOST, **state})["deploy"]] == ["llama"]
    _deployment.history(record)
    _deployment.with_failure(record or {}, "x", "why", "now")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
FORMS = st.dictionaries(st.sampled_from([*RECORD, *NOTE, "files"]), VALUES)


@settings(deadline=None)
@given(FORMS)
def test_any_json_is_read(form):
    text = json.dumps(form)
    record = _deployment.parse_record(text)
    _report.status([{"inventory_hostname": "gpu01", "preflight_host": host_of(record)}])
    note = _staged.parse_note(text)
    if note is not None:
        assert _staged.REFERENCE.fullmatch(note["image_reference"]) and note["path"].startswith("/")
        assert 0 <= note.get("bytes", 0) <= _readback.MOST
    listed = _weights.parse_list(text)
    assert listed is None or not any(name.startswith("/") or ".." in name.split("/") for name in listed)


@pytest.mark.parametrize("name", ["/etc/shadow", "../llama2/x", "a/../../x", ""])
def test_a_list_of_files_stays_in_its_cache(name):
    assert _weights.parse_list(json.dumps({"files": {name: [1, SUM, "1", "1"]}})) is None


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_plain_file_is_read(tmp_path):
    (tmp_path / "note").write_bytes(b"text")
    assert _readback.read(str(tmp_path / "note")) == b"text"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert _readback.read("note", dir_fd=descriptor) == b"text"
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["missing", "directory", "link", "pipe", "large", "sparse", "name-too-long"])
def test_nothing_else_is_read(tmp_path, kind):
    path = tmp_path / "note"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "other").write_text("secret")
        path.symlink_to("other")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b"x" * (_readback.LIMIT + 1))
    elif kind == "sparse":
        with open(path, "wb") as handle:
            handle.truncate(2**40)
    elif kind == "name-too-long":
        path = tmp_path / ("x" * 300)
    assert _readback.read(str(path)) is None


def test_a_device_is_not_read():
    assert _readback.read("/dev/zero") is None


# -- note and marker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "said", "doubt"),
    [
        (None, {"key": "9c11"}, "no weights were staged"),
        (NOTE, {"key": "9c11"}, ""),
        (NOTE, None, "the cache does not say any more that its weights are complete"),
        (NOTE, {"key": "another"}, "the cache does not say any more that its weights are complete"),
        ({**NOTE, "marked": False}, None, ""),
        ({**NOTE, "path": "/mnt/llama"}, {"key": "9c11"}, "weights were staged in /mnt/llama"),
    ],
    ids=["a-word-of-the-cache-alone", "both", "no-marker", "another-marker", "a-cache-without-one", "elsewhere"],
)
def test_what_speaks_against_staged_weights(known, said, doubt):
    assert _staged.doubt(known, said, "/var/lib/nim/cache/llama") == doubt


@pytest.mark.parametrize(
    "reference",
    [
        f"{IMAGE}:1.8.6",
        "",
        "--privileged",
        f"{IMAGE}@sha256:{SUM} --volume /:/host",
        f"{IMAGE}@sha256:{SUM}\nx",
        "x%h",
        ["x"],
        None,
    ],
)
def test_a_note_names_an_image_by_what_nobody_can_move(reference):
    assert _staged.parse_note(json.dumps({**NOTE, "image_reference": reference})) is None


def test_texts_are_read_as_they_were_written():
    service = {"stage_key": "9c11", "share_key": "s", "image": f"{IMAGE}:1", "path": "/c", "read_only": False}
    note = _staged.parse_note(_staged.note(service, f"{IMAGE}@sha256:{SUM}", 7, 1, 5.9, True))
    assert (note["image_reference"], note["bytes"], note["finished"]) == (f"{IMAGE}@sha256:{SUM}", 7, 5)
    said = _staged.parse_marker(_staged.marker(service, 7, 1, 5.9))
    assert said == {"key": "9c11", "share_key": "s", "image": f"{IMAGE}:1", "bytes": 7, "files": 1, "finished": 5}
    assert not re.search("sha256", _staged.marker(service, 7, 1, 5.9)), "a cache names no image that is run"
    entry = _weights.Entry(7, SUM, 2**63, 1795423100123456789)
    assert _weights.parse_list(_weights.list_text({"a/b \udcff": entry})) == {"a/b \udcff": entry}
    assert copy.copy(entry) == entry
