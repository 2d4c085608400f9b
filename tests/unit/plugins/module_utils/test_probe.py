# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of a verification."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _probe


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h/v1/", "http://h"),
        ("http://h/x/v1", "http://h/x"),
    ],
)
def test_base_of(url, base):
    assert _probe.base_of(url) == base
