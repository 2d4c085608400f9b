# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a unit does before it starts: it begins from the files of one deployment. What a cut leaves is in test_way_back.py."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import pathlib

import pytest

PROGRAM = pathlib.Path(__file__).parents[2] / "roles/nim_service/files/nim-settle"


@pytest.fixture
def settle(tmp_path, monkeypatch):
    """Runs it on directories of its own; what it asked of systemctl is in its list ``asked``."""
    loader = importlib.machinery.SourceFileLoader("nim_settle", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("nim_settle", loader))
    loader.exec_module(module)
    module.JOURNAL = str(tmp_path / ".{}.switch")
    module.UNITS = (str(tmp_path / "nim-{}.service"), str(tmp_path / "nim-{}.container"))
    module.asked = []
    monkeypatch.setattr(module.subprocess, "run", lambda argv, **_options: module.asked.append(argv))
    return module


@pytest.mark.parametrize("suffix", ["service", "container"])
def test_unit_that_lies_there_starts(settle, tmp_path, suffix):
    (tmp_path / f"nim-llama.{suffix}").write_text("Label=config-hash=aa11\n")
    # Podman's container cannot outlive its unit.
    left = [["docker", "rm", "--force", "nim-llama"]] if suffix == "service" else []
    assert (settle.main("llama", "aa11"), settle.asked) == (0, left)


@pytest.mark.parametrize("text", ["Label=config-hash=bb22\n", None])
def test_unit_that_was_replaced_or_removed_since_systemd_read_it_does_not(settle, tmp_path, capsys, text):
    if text:
        (tmp_path / "nim-llama.service").write_text(text)
    assert (settle.main("llama", "aa11"), settle.asked) == (1, [["systemctl", "daemon-reload"]])
    assert "the files of nim-llama were replaced since systemd read its unit" in capsys.readouterr().err


def test_of_two_units_that_counts_which_systemd_takes(settle, tmp_path):
    (tmp_path / "nim-llama.service").write_text("bb22")
    (tmp_path / "nim-llama.container").write_text("aa11")
    assert (settle.main("llama", "aa11"), settle.main("llama", "bb22")) == (1, 0)


def test_exchange_that_cannot_be_finished_starts_nothing(settle, tmp_path, capsys):
    (tmp_path / "nim-llama.service").write_text("aa11")
    place = tmp_path / "llama.env"
    place.mkdir()
    (tmp_path / ".llama.env.new").write_text("x")
    plan = {"files": [{"path": str(place), "was": True}], "gone": [], "folders": []}
    (tmp_path / ".llama.switch").write_text(json.dumps(plan))
    assert settle.main("llama", "aa11") == 1
    assert "what a run began to replace of nim-llama cannot be finished" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_no_journal_of_ours(settle, tmp_path, text):
    (tmp_path / "nim-llama.service").write_text("aa11")
    (tmp_path / ".llama.switch").write_text(text)
    assert settle.main("llama", "aa11") == 1
