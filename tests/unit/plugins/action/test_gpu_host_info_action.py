# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock of the host and the controller's, both at the moment of the read."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ansible_collections.baremetal.nim.plugins.action import gpu_host_info

NOW = 1795423100.0


class World:
    """A controller, and a host whose clock is SKEW seconds ahead. A call takes THERE, READ and BACK seconds."""

    def __init__(self, monkeypatch, skew=0.0, there=0.5, read=1.0, back=0.25):
        self.at, self.skew, self.took = 0.0, skew, (there, read, back)
        self.asked = []
        monkeypatch.setattr(gpu_host_info, "time", SimpleNamespace(time=lambda: NOW + self.at))
        monkeypatch.setattr(gpu_host_info._clock, "elapsed", lambda: 77.0 + self.at)

    def execute(self, **asked):
        """What the module returns."""
        self.asked.append(asked)
        there, read, back = self.took
        self.at += there
        told = {"changed": False, "time": NOW + self.at + self.skew, "read_s": read}
        self.at += read + back
        return told

    def run(self, answer=None, **task):
        """A task."""
        action = gpu_host_info.ActionModule(
            task=Mock(**{"args": {"engine": "auto"}, "async_val": 0, "check_mode": False, **task}),
            connection=Mock(), play_context=Mock(), loader=Mock(), templar=Mock(), shared_loader_obj=None,
        )  # fmt: skip
        action._connection._shell.tmpdir = None
        action._execute_module = answer or self.execute
        return action.run(task_vars={"inventory_hostname": "gpu01"})


@pytest.mark.parametrize("skew", [0.0, 28800.0, -125.0])
def test_clocks_are_compared(monkeypatch, skew):
    world = World(monkeypatch, skew)
    result = world.run()
    assert result["clock"] == {"least": skew - 0.25, "most": skew + 0.5}
    assert result["time"] == NOW + 0.5 + skew
    (asked,) = world.asked
    assert (asked["module_name"], asked["module_args"]) == ("baremetal.nim.gpu_host_info", {"engine": "auto"})
    assert asked["wrap_async"] == 0


def test_host_that_is_read_for_long_is_not_off(monkeypatch):
    """A busy dpkg, or a slow registry: the uncertainty is that of the way, however long it takes."""
    assert World(monkeypatch, read=900.0).run()["clock"] == {"least": -0.25, "most": 0.5}


def test_what_came_before_is_of_no_matter(monkeypatch):
    world = World(monkeypatch)
    world.at = 86400.0
    assert world.run()["clock"] == {"least": -0.25, "most": 0.5}


@pytest.mark.parametrize(
    "said", [{"failed": True, "msg": "MODULE FAILURE"}, {"unreachable": True}, {"started": 1, "ansible_job_id": "j7"}]
)
def test_result_without_a_time_stays_as_it_is(monkeypatch, said):
    assert World(monkeypatch).run(lambda **_asked: dict(said), async_val=60) == said
