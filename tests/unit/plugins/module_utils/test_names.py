# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No service has the name of a unit or a container of ours."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _names, _resolve
from hypothesis import given
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[4]
#: Every unit, container and program of ours that is written down anywhere as nim-SOMETHING.
SOURCES = [
    path
    for folder in ("plugins", "roles", "playbooks")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix in (".py", ".yml", ".j2", ".service", ".timer", "")
]
#: What only looks like one: programs in /usr/local/libexec, files of reports, places in the lab.
NO_UNITS = {"run", "gpu-wait", "benchmark", "name", "NAME"}
DEFAULTS = {"cache_root": "/c", "config_dir": "/e", "state_dir": "/s", "bind_address": "::1", "cache_size_gb": 0}


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("stage-llama", "nim-stage-llama.service, which stages the weights of a service llama"),
        ("pull-x", "nim-pull-x.service, which pulls the image of a service x"),
        ("stage-pull-x", "nim-stage-pull-x.service, which stages the weights of a service pull-x"),
        ("share", "nim-share.service, which serves weights to other hosts"),
        ("watchdog", "nim-watchdog, by which the watchdogs of all services are known in the journal"),
        *(
            (name, "")
            for name in (
                "llama",
                "stage",
                "pull",
                "staged-x",
                "pulled",
                "share-x",
                "my-stage-x",
                "shares",
                "watchdog-x",
            )
        ),
    ],
)
def test_whose_a_name_is(name, owner):
    assert _names.owner(name) == owner
    assert bool(_names.refusal(name)) == bool(owner)


def test_a_refusal_has_the_cure_for_hosts_that_have_one():
    assert _names.refusal("stage-x") == (
        "its name is also that of nim-stage-x.service, which stages the weights of a service x; give it another one. Where it is deployed"
        " already, it runs on until the old name is listed beside the new one: {name: stage-x, state: absent}; its cache stays."
    )


def test_the_units_that_are_started_are_known():
    """A new unit that somebody writes into a module or a role must be entered in _names, or be one of a service."""
    found = set()
    for path in SOURCES:
        for name in re.findall(
            r"\bnim-([a-z][a-z-]*[a-z])(?:\.service|@|-?\{self\.params\['name'\]\})", path.read_text()
        ):
            found.add(name)
    known = {*_names.TAKEN, *(head.rstrip("-") for head in _names.FAMILIES)}
    services = {"llama", "embed"}
    assert {"share", "stage", "pull", "watchdog"} <= found
    assert found - known - services - NO_UNITS == set()


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?", fullmatch=True))
def test_no_name_that_is_taken_meets_a_unit_of_any_other(name):
    """Whatever the services of a host are called, no two units or containers have one name."""
    ours = {f"nim-{head}{name}" for head in _names.FAMILIES} | {f"nim-{other}" for other in _names.TAKEN}
    for service in (name, *(f"{head}{name}" for head in _names.FAMILIES), *_names.TAKEN):
        if not _names.owner(service):
            assert f"nim-{service}" not in ours


def test_services_are_refused_by_name_unless_they_go():
    spec = {"name": "share", "image": "nvcr.io/nim/meta/llama", "tag": "1.8.6"}
    with pytest.raises(_resolve.ResolveError) as caught:
        _resolve.resolve_services([spec], {}, DEFAULTS)
    assert caught.value.problems == [f"service share: {_names.refusal('share')}"]
    (gone,) = _resolve.resolve_services([{**spec, "state": "absent"}], {}, DEFAULTS)
    assert (gone["state"], gone["unit"]) == ("absent", "nim-share.service")


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({}, ""),
        ({"LoadState": "not-found", "Transient": "no"}, ""),
        ({"LoadState": "loaded", "Transient": "yes", "FragmentPath": "/run/systemd/transient/nim-share.service"}, ""),
        # What an old systemd does not tell.
        ({"LoadState": "loaded"}, ""),
        ({"LoadState": "loaded", "Transient": "no", "FragmentPath": "/etc/systemd/x.service"}, "/etc/systemd/x.service"),
        ({"LoadState": "masked", "Transient": "no", "FragmentPath": ""}, "no file"),
    ],
)  # fmt: skip
def test_units_of_others(state, path):
    assert _names.foreign_unit(state) == path
