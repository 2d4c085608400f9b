# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options merged into daemon.json."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _daemon

OURS = {"live-restore": True, "features": {"cdi": True}}


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", {}),
        ("\n  \n", {}),
        ("{}", {}),
        (
            '{"log-driver": "journald", "features": {"buildkit": true}}\n',
            {"log-driver": "journald", "features": {"buildkit": True}},
        ),
    ],
    ids=["empty", "white-space", "empty-object", "object"],
)
def test_parse(text, config):
    assert _daemon.parse(text) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"live-restore": true,}', "double quotes"),
        ("live-restore: true\n", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "holds a list, wanted an object"),
        ("null", "holds a NoneType, wanted an object"),
        ('"x"', "holds a str, wanted an object"),
    ],
    ids=["trailing-comma", "yaml", "cut-off", "list", "null", "string"],
)
def test_parse_refuses(text, said):
    with pytest.raises(ValueError, match=said):
        _daemon.parse(text)


@pytest.mark.parametrize(
    ("current", "wanted", "merged"),
    [
        pytest.param({}, OURS, OURS, id="new"),
        pytest.param(OURS, OURS, OURS, id="same"),
        pytest.param(OURS, {}, OURS, id="nothing-wanted"),
        pytest.param({"dns": ["10.0.0.2"]}, OURS, {"dns": ["10.0.0.2"], **OURS}, id="other-keys-stay"),
        pytest.param(
            {"features": {"buildkit": True, "cdi": False}},
            OURS,
            {"features": {"buildkit": True, "cdi": True}, "live-restore": True},
            id="dictionaries-merge",
        ),
        pytest.param(
            {"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}},
            {"runtimes": {"nvidia": {"args": ["--debug"]}}},
            {"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": ["--debug"]}}},
            id="deep",
        ),
        pytest.param({"dns": ["10.0.0.2"]}, {"dns": ["10.0.0.3"]}, {"dns": ["10.0.0.3"]}, id="lists-are-replaced"),
        pytest.param({"features": "none"}, OURS, OURS, id="a-word-gives-way-to-a-dictionary"),
        pytest.param(
            {"features": {"cdi": True}}, {"features": False}, {"features": False}, id="a-dictionary-gives-way-to-a-word"
        ),
    ],
)
def test_merge(current, wanted, merged):
    before = copy.deepcopy((current, wanted))
    assert _daemon.merge(current, wanted) == merged
    assert (current, wanted) == before


def test_render_keeps_the_order_of_keys():
    text = _daemon.render(
        _daemon.merge({"storage-driver": "overlay2", "dns": []}, {"dns": ["10.0.0.2"], "bip": "172.17.0.1/16"})
    )
    assert text == '{\n  "storage-driver": "overlay2",\n  "dns": [\n    "10.0.0.2"\n  ],\n  "bip": "172.17.0.1/16"\n}\n'
