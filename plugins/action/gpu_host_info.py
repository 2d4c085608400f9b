# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of gpu_host_info: its own clock, looked at just before the host's and just after."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.baremetal.nim.plugins.module_utils import _clock


class ActionModule(ActionBase):
    """Reads a host, and tells how far its clock is off."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result, with the clocks compared. In the worker of this host: others that wait are not in between."""
        super().run(tmp, task_vars)
        before, begin = time.time(), _clock.elapsed()
        result: dict[str, Any] = self._execute_module(
            module_name="baremetal.nim.gpu_host_info",
            module_args=self._task.args,
            task_vars=task_vars,
            wrap_async=self._task.async_val,
        )
        end, took = time.time(), _clock.elapsed() - begin
        if "time" in result and "read_s" in result:
            result["clock"] = _clock.ahead(result["time"], result["read_s"], before, end, took)
        return result
