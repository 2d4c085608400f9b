# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nim_weights on real files, as nim_cache leaves them."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _staged, _weights
from ansible_collections.baremetal.nim.plugins.modules import nim_weights

SUM = "6b3d3a4e3c1f7e0a9d5c2b8f4e6a7d9c0b1f2e3d4c5b6a798897a6b5c4d3e2f1"


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Two services with three files each."""
    if os.getuid():
        # Only root may drop groups.
        monkeypatch.setattr(os, "setgroups", lambda _groups: None)
    for name in ("llama", "phi"):
        cache = tmp_path / "cache" / name
        cache.mkdir(parents=True)
        for number in range(3):
            (cache / f"model-{number}.safetensors").write_text(f"{name} {number}" * 1000)
        note = {"key": "9c11", "image_reference": f"sha256:{SUM}", "path": str(cache), "marked": True}
        for make, text in (
            (_staged.note_path, json.dumps(note)),
            (_staged.list_path, _weights.list_text(_weights.taken(_weights.take(str(cache), {}, float("inf"))))),
        ):
            path = make(str(tmp_path / "nim"), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as out:
                out.write(text)
    return tmp_path


@pytest.fixture
def call(host, capsys):
    """Runs the module; returns its result."""

    def run(**args):
        with patch_module_args({"host_dir": str(host / "nim"), **args}), pytest.raises(SystemExit):
            nim_weights.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_whole_weights(host, call):
    result = call()
    assert (result["changed"], result["waiting"], result["phase"]) == (False, False, "done")
    assert [(item["name"], item["files"], item["problems"]) for item in result["checked"]] == [
        ("llama", 3, []),
        ("phi", 3, []),
    ]
    assert result["checked"][0]["path"] == str(host / "cache/llama") and result["checked"][0]["bytes"] == 21_000
    assert [item["name"] for item in call(names=["phi"])["checked"]] == ["phi"]


@pytest.mark.parametrize("length", [None, 0.00001], ids=["in-one-go", "in-slices"])
def test_what_is_wrong_is_told_of_all_services(host, call, length):
    bent = host / "cache/llama/model-1.safetensors"
    bent.write_text(bent.read_text().upper())
    (host / "cache/phi/model-0.safetensors").unlink()
    (host / "cache/phi/model-2.safetensors").write_text("short")
    options = {} if length is None else {"max_wait": length}
    result, slices = call(**options), 1
    while result["waiting"]:
        result, slices = call(**options, resume=result["resume"]), slices + 1
    assert slices > 1 or length is None
    assert result["failed"] and "- service llama: weights in" in result["msg"]
    first, second = result["checked"]
    assert len(first["problems"]) == 1 and "model-1.safetensors has another content" in first["problems"][0]
    assert second["problems"] == [
        "model-0.safetensors is missing",
        "model-2.safetensors has 5 B, wanted 5.0 kB (5000 B)",
    ]
    assert f"{host}/nim/staged/phi.json, then run baremetal.nim.services" in result["msg"]


def test_a_service_of_which_nothing_is_known(host, call):
    assert "service gpt: weights are not what was staged: nothing is known of its files." in call(names=["gpt"])["msg"]
    os.unlink(host / "nim/staged/llama.sums")
    assert "nothing is known of its files" in call()["msg"]


def test_a_cache_that_is_gone(host, call):
    shutil.rmtree(host / "cache/llama")
    result = call()
    assert "cannot be read: No such file or directory" in result["msg"] and "phi" not in result["msg"]


def test_out_of_time(call):
    result = call(timeout=0.5, resume={"elapsed": 10.0})
    assert "are not compared after 0 s" in result["msg"] or "are not compared after" in result["msg"]


def test_a_host_where_nothing_was_staged(host, call):
    shutil.rmtree(host / "nim")
    assert call()["checked"] == []
