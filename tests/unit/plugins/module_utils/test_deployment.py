# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of deployments."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.filter.deployment_history import FilterModule
from ansible_collections.baremetal.nim.plugins.module_utils import _deployment

history = FilterModule().filters()["deployment_history"]
RECORD = {
    "image": "i:1",
    "image_reference": "i@sha256:1",
    "config_hash": "a",
    "deployed_at": "2026-11-23T17:30:12Z",
    "verified": True,
    "url": "u",
}
SHORT = {key: value for key, value in RECORD.items() if key != "url"}


@pytest.mark.parametrize(
    ("record", "remembered"),
    [(None, []), ({}, []), (RECORD, [SHORT]), ({**RECORD, "history": [{"image": "i:0"}]}, [{"image": "i:0"}, SHORT])],
)
def test_history(record, remembered):
    assert history(record) == remembered


def test_history_forgets_the_oldest():
    record = {**RECORD, "history": [{"image": f"i:{number}"} for number in range(25)]}
    assert len(history(record)) == 20
    assert history(record)[0] == {"image": "i:6"}
    assert len(_deployment.with_failure(record, "i:9", "x", "now")["history"]) == 20


def test_reason_of_a_failure_stays_one_short_line():
    (failed,) = _deployment.with_failure(RECORD, "i:2", "a\n" * 1000, "now")["history"]
    assert len(failed["reason"]) == 500 and "\n" not in failed["reason"]


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"files": {"/quadlet": "1", "/env": "2"}}, "/quadlet"),
        ({"files": {"/unit": "1", "/env": "2"}}, "/unit"),
        ({"files": {"/env": "2"}}, "/unit"),
        ({}, "/unit"),
        (None, "/unit"),
    ],
)
def test_unit_place(record, place):
    assert _deployment.unit_place(record, ["/unit", "/quadlet"]) == place


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "-"),
        (RECORD, "2026-11-23 17:30 UTC"),
        ({**RECORD, "history": [SHORT]}, "2026-11-23 17:30 UTC"),
        (_deployment.with_failure(RECORD, "nvcr.io/nim/x:2.0.5", "x", "now"), "2026-11-23 17:30 UTC, back from 2.0.5"),
    ],
)
def test_told(record, words):
    assert _deployment.told(record) == words
