# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in the operator's files, as the filters see it in real plays: the word and its line, not what YAML made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible_collections.baremetal.nim.plugins.plugin_utils import _source
from ansible_collections.baremetal.nim.tests.unit.role_play import ROOT, surroundings

PLAY = """\
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "{{ services | default([]) | baremetal.nim.resolve_services({'gpus': []}, api_key=none) | map(attribute='env') }}"
"""
SERVICE = """\
all:
  hosts: {gpu01: {}}
  vars:
    fraction: 0.40
    switch: on
    services:
      - name: llama
        image: nvcr.io/nim/meta/llama
"""


@pytest.fixture
def play(tmp_path):
    """Plays with an inventory; returns the exit status and what was told."""

    def run(inventory, *args, name="hosts.yml", play=PLAY):
        (tmp_path / name).write_text(inventory)
        (tmp_path / "play.yml").write_text(play)
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", name, "play.yml", *args],
            env={
                **surroundings(tmp_path),
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": os.environ["PYTHONPATH"].split(":")[0],
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_each_word_is_refused_with_its_line(play):
    code, told = play(
        SERVICE
        + """\
        tag: 1.10
        gpus: [1:0, 0:1]
        port: 0x1F90
        verify: {language: no}
        env:
          NIM_A: on
          NIM_B: 0755   # of a file
          "NIM_C": {x: 1}
          NIM_D: 2025-01-01
          NIM_E: "{{ fraction }}"
          NIM_F:
"""
    )
    assert code == 2, told
    for words in (
        'tag is 1.1, a number to YAML, written 1.10 in hosts.yml:9, wanted text; quote it: tag: "1.10".',
        'gpus names 60, a number to YAML, written 1:0 in hosts.yml:10; quote a part of MIG: "1:0".',
        "port is 8080, a number to YAML, written 0x1F90 in hosts.yml:11; write the decimal number that you mean.",
        'verify.language is false, true or false to YAML, written no in hosts.yml:12, wanted text; quote it: language: "no".',
        'env has NIM_A: true, true or false to YAML, written on in hosts.yml:14; quote it as it is meant: NIM_A: "on".',
        'env has NIM_B: 493, a number to YAML, written 0755 in hosts.yml:15; quote it as it is meant: NIM_B: "0755".',
        "env has NIM_C, which is a dictionary; write it as one text in quotes.",
        'written 2025-01-01 in hosts.yml:17; quote it as it is meant: NIM_D: "2025-01-01".',
        'env has NIM_E: 0.4, a number to YAML, written 0.40 in hosts.yml:4; quote it as it is meant: NIM_E: "0.40".',
        "env has NIM_F without a value",
    ):
        assert f"- service llama: {words}" in told.replace("\\n", "\n").replace('\\"', '"') or words in told, told


def test_words_that_yaml_leaves_alone_pass(play):
    code, told = play(
        SERVICE
        + """\
        tag: 1.10.0
        contract: llm
        env:
          NIM_A: 8192
          NIM_B: true
          NIM_C: {{ 1 + 1 }}
          NIM_D: 0.4
          NIM_E: 1.5
          NIM_F: "1.10"
          NIM_G: "{{ switch }}"
          NIM_H: "{{ 3 * 0.5 }}"
""".replace("{{ 1 + 1 }}", '"{{ 1 + 1 }}"')
    )
    assert code == 0, told
    shown = told[told.index("{", told.index("TASK")) :]
    (env,) = json.JSONDecoder().raw_decode(shown)[0]["msg"]
    assert {key: env[key] for key in sorted(env) if key.startswith("NIM_") and len(key) == 5} == {
        "NIM_A": "8192",
        "NIM_B": "true",
        "NIM_C": "2",
        "NIM_D": "0.4",
        "NIM_E": "1.5",
        "NIM_F": "1.10",
        # Which word the other variable was given is out of reach: true is true.
        "NIM_G": "true",
        "NIM_H": "1.5",
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('[{"name": "a", "image": "r.io/x", "tag": 1.10}]', "tag is 1.1, a number to YAML, wanted text"),
        ('[{"name": 12, "image": "r.io/x", "tag": "1.0"}]', "name is 12, a number to YAML, wanted text"),
        ('[{"name": "a", "image": "r.io/x", "tag": "1.0", "env": {"A": 1.10}}]', "env has A: 1.1, a number to YAML"),
    ],
)
def test_what_comes_by_the_command_line_or_from_awx(play, value, words):
    code, told = play(SERVICE + "        tag: '1.0'\n", "-e", f'{{"services": {value}}}')
    assert code == 2 and words in told, told


def test_an_inventory_of_another_kind(play):
    """Python reads a number there."""
    line = "gpu01 services=\"[{'name': 'a', 'image': 'r.io/x', 'tag': 1.10}]\"\n"
    code, told = play(line, name="hosts.ini")
    assert code == 2 and "tag is 1.1, a number to YAML, wanted text" in told, told


# -- how a word is found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "column", "value", "text"),
    [
        ("tag: 1.10", 6, 1.1, "1.10"),
        ("{tag: 1.10}", 7, 1.1, "1.10"),
        ("[1.10, 2]", 2, 1.1, "1.10"),
        ("tag: 1.10 # comment", 6, 1.1, "1.10"),
        ("mode: 0755", 7, 493, "0755"),
        ("part: 1:0", 7, 60, "1:0"),
        # Not what the value was made of: the file has changed, is encrypted, or holds a template.
        ("tag: 1.20", 6, 1.1, None),
        ("3364383565", 6, 1.1, None),
        ("tag: 'x'", 6, 1.1, None),
        # A template makes what it makes.
        ('tag: "{{ x }}"', 6, 1.1, "1.1"),
        ("tag: >-", 6, 1.1, "1.1"),
        ("tag: &x 1.10", 6, 1.1, None),
        ("x", 6, 1.1, None),
        ("on: true", 5, 1, None),
    ],
)
def test_a_word_is_believed_only_if_yaml_makes_this_value_of_it(tmp_path, monkeypatch, line, column, value, text):
    path = tmp_path / f"{abs(hash(line))}.yml"
    path.write_text(f"---\n{line}\n")

    class Origin:
        @staticmethod
        def get_tag(_value):
            return type("Tag", (), {"path": str(path), "line_num": 2, "col_num": column})()

    monkeypatch.setattr(_source, "_ORIGIN", Origin)
    found = _source.written(value)
    assert (found.text if found else None) == text


def test_an_ansible_without_tags_tells_nothing(monkeypatch):
    monkeypatch.setattr(_source, "_ORIGIN", None)
    assert _source.written(1.1) is None and dict(_source.sources({"a": [1.1, True]})) == {}


def test_a_file_that_is_gone_tells_nothing(monkeypatch):
    class Origin:
        @staticmethod
        def get_tag(_value):
            return type("Tag", (), {"path": "/nowhere/hosts.yml", "line_num": 2, "col_num": 3})()

    monkeypatch.setattr(_source, "_ORIGIN", Origin)
    assert _source.written(1.1) is None
