# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A refusal with several reasons shows each on a line of its own: in real plays, and nothing that YAML holds can undo it."""

from __future__ import annotations

import importlib
import pathlib
import re
import sys

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.filter.reasons import reasons
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_role

sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugins/filter"))

import test_driver_plan as driver_states
import test_toolkit_plan as toolkit_states

ROOT = pathlib.Path(__file__).parents[2]
#: Folders whose YAML is run by somebody.
FOLDERS = ("roles", "playbooks", "inventories", "molecule", ".config", "tests/perf", "meta")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".yml", ".yaml"))
PLUGINS = sorted(
    f"plugins.{kind}.{path.stem}" for kind in ("modules", "filter") for path in (ROOT / "plugins" / kind).glob("*.py")
)
TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
#: A string in a template that breaks a line by a backslash; what a regular expression is given has its own use for one.
BROKEN = re.compile(r"""(?<![\w])(\w+)?\s*\(?\s*(?:'[^'\n]*\\[nrt][^'\n]*'|"[^"\n]*\\[nrt][^"\n]*")""")
REGULAR = ("regex_search", "regex_replace", "regex_findall", "match", "search", "regex")


class Loader(yaml.SafeLoader):
    """Reads what only Ansible knows, such as !vault, as text."""


Loader.add_multi_constructor("!", lambda loader, _suffix, node: str(node.value))


def strings(node):
    """Every string of a document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(node, list):
        for item in node:
            yield from strings(item)


def escapes(text):
    """Templates of YAML in which a backslash is to break a line: Ansible doubles it, so it is shown instead."""
    return [
        template
        for document in yaml.load_all(text, Loader)
        for value in strings(document)
        for template in TEMPLATE.findall(value)
        for called in BROKEN.findall(template)
        if called not in REGULAR
    ]


def shown(told):
    """The lines of what was told, without their indentation; none of them holds a break that is spelt out."""
    # The result is told once more as JSON, where a real break is spelt with one backslash.
    assert r"\\n" not in told, told
    return [line.strip() for line in told.splitlines()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_yaml_breaks_a_line_by_a_backslash(path):
    assert escapes(path.read_text()) == []


@pytest.mark.parametrize("name", PLUGINS)
def test_no_example_does(name):
    assert escapes(importlib.import_module(f"ansible_collections.baremetal.nim.{name}").EXAMPLES) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"a: |-" + "\n" + r"  - {{ x | join('\n- ') }}", 1),
        (r"a: >-" + "\n" + r"  {{ x | join('\n') }}", 1),
        (r"""a: '{{ x ~ "\t" }}'""", 1),
        (r"""a: "{{ x | join('\n') }}" """, 0),
        (r"""a: "{{ x | join('\\n') }}" """, 1),
        (r"a: >-" + "\n" + r"  {{ x | regex_search('a\nb') }}", 0),
        (r"a: >-" + "\n" + r"  {{ x | regex_replace('^\s+', '') }}", 0),
        ("a: no template \\n", 0),
    ],
)
def test_the_test_above_sees_it(text, found):
    assert len(escapes(text)) == found


def test_each_reason_has_a_line():
    assert reasons(["a", "b"]) == "- a\n- b"


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["one"], "- one"),
        (["same", "same", " same "], "- same"),
        (["", " ", "x"], "- x"),
        (["two\nlines", "x"], "- two\n  lines\n- x"),
        (("a", "b"), "- a\n- b"),
        ((item for item in "ab"), "- a\n- b"),
        ([r"C:\new"], r"- C:\new"),
    ],
)
def test_how_reasons_are_listed(items, text):
    assert reasons(items) == text


@pytest.mark.parametrize("items", ["one sentence", b"x", None, 3])
def test_what_is_no_list_is_refused(items):
    with pytest.raises(AnsibleFilterError, match="wanted a list of sentences"):
        reasons(items)


# -- real plays --------------------------------------------------------------------------------------------------------


def driver_host():
    """A host with a GPU that wants open modules only."""
    host = driver_states.host("Ubuntu", "26.04")
    gpu = {"address": "0000:03:00.0", "device_id": "2bb5", "class": "0302", "name": "RTX", "architecture": "Blackwell"}
    host["hardware"]["gpus"] = [{**gpu, "driver": None}]
    return host


def test_the_driver_refuses_with_a_line_for_each_reason(tmp_path):
    given = {"preflight_host": driver_host(), "nvidia_driver_branch": "625", "nvidia_driver_flavour": "proprietary"}
    code, told = play_role(tmp_path, "nvidia_driver", {**given, **AWAY}, tasks="assert")
    assert code == 2, told
    lines = [line for line in shown(told) if line.startswith("- nvidia_driver_flavour is proprietary")]
    assert len(lines) >= 2 and "gpu01: the driver was not touched:" in told, told


@pytest.mark.parametrize("tasks", ["exchange_apt", "exchange_dnf"])
def test_a_simulated_transaction_is_refused_with_a_line_for_each_reason(tmp_path, tasks):
    """The modules that simulate are not asked: what they said is given, as the extra variable that wins."""
    plan = {
        "packages": ["nvidia-open=580.159.04-1"],
        "command": None,
        "holds": [],
        "installed_version": None,
        "change": "install",
    }
    said = {"failed": False, "msg": "", "stdout": "", "results": []}
    given = {
        "preflight_host": driver_states.host("Debian", "13"),
        "__nvidia_driver_plan": plan,
        "__nvidia_driver_simulated": said,
        "__nvidia_driver_problems": ["first reason", "second reason"],
    }
    code, told = play_role(tmp_path, "nvidia_driver", {**given, **HERE}, "--check", tasks=tasks)
    assert code == 2, told
    assert {"- first reason", "- second reason"} <= set(shown(told)), told


def test_preflight_refuses_with_a_line_for_each_reason(tmp_path):
    problems = [
        {"check": "os", "severity": "error", "message": "first reason"},
        {"check": "disk", "severity": "error", "message": "second reason"},
    ]
    given = {
        "preflight_host": driver_states.host("Debian", "13"),
        "__preflight_problems": problems,
        "__preflight_unknown": [],
        "__preflight_transactions": [],
        **AWAY,
    }
    code, told = play_role(tmp_path, "preflight", given, tasks="verify")
    assert code == 2, told
    assert {"- first reason", "- second reason"} <= set(shown(told)), told


@pytest.mark.parametrize("tasks", ["assert", "smoke"])
def test_the_toolkit_refuses_with_a_line_for_each_reason(tmp_path, tasks):
    problems = ["first reason", "second reason"]
    given = {
        "preflight_host": toolkit_states.host(),
        "__nvidia_container_toolkit_plan": {"problems": problems, "smoke": []},
        "__nvidia_container_toolkit_problems": problems,
        **HERE,
    }
    code, told = play_role(tmp_path, "nvidia_container_toolkit", given, tasks=tasks)
    assert code == 2, told
    assert {"- first reason", "- second reason"} <= set(shown(told)), told
