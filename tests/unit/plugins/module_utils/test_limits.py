# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many files this process may open, by a resource module that is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _limits
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault


@pytest.fixture
def limits(monkeypatch):
    """Stands for the kernel: limits that only root may raise beyond the hard one."""

    def prepare(soft, hard, root=False):
        now = [soft, hard]

        def setrlimit(_kind, wanted):
            if wanted[1] > now[1] and not root:
                raise ValueError("not allowed to raise maximum limit")
            now[:] = wanted

        stand_in = SimpleNamespace(
            RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda _kind: tuple(now), setrlimit=setrlimit
        )
        monkeypatch.setattr(_limits, "resource", stand_in)
        monkeypatch.setattr(_limits, "_open_now", lambda: 10)
        return now

    return prepare


@pytest.mark.parametrize(
    ("soft", "hard", "root", "after"),
    [
        pytest.param(2000, 4096, False, [2000, 4096], id="enough"),
        pytest.param(-1, -1, False, [-1, -1], id="without a limit"),
        pytest.param(1024, 4096, False, [1274, 4096], id="soft"),
        pytest.param(1024, 1024, True, [1274, 1274], id="root may raise the hard one"),
    ],
)
def test_what_is_needed_is_allowed(limits, soft, hard, root, after):
    now = limits(soft, hard, root)
    _limits.allow_files(1200)
    assert now == after


def test_what_cannot_be_is_told_before_the_load(limits):
    now = limits(256, 1024)
    with pytest.raises(Fault, match="1024 files open, wanted 1274, for 1200 requests in flight") as caught:
        _limits.allow_files(1200)
    assert caught.value.failure_class == "client_limit" and "ulimit" in caught.value.cure
    # Who may not need them all gets as many as there are.
    _limits.allow_files(1200, strict=False)
    assert now == [1024, 1024]
