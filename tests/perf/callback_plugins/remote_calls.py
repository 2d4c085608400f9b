# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down every module that really runs on a host, for tests/perf/bench.py."""

from __future__ import annotations

import functools
import json
import os
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: remote_calls
type: notification
short_description: Write down every module that runs on a host
description:
  - Appends one line of JSON per module execution and per other remote command to the file named by the environment
    variable E(BENCH_CALLS).
  - Results cannot be counted exactly, since one task may run several modules (copy and template do) or none. So this
    wraps the two methods through which all action plugins reach a host. Workers are forked and inherit the wrapping.
"""


class CallbackModule(CallbackBase):
    """Wraps ActionBase when it is loaded; listens to nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "remote_calls"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        path = os.environ.get("BENCH_CALLS")
        if path:
            _wrap("_execute_module", "module", path)
            _wrap("_low_level_execute_command", "command", path)


def _wrap(method: str, kind: str, path: str) -> None:
    """Makes an ActionBase method write down its calls."""
    original = getattr(ActionBase, method)

    @functools.wraps(original)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        try:
            return original(self, *args, **kwargs)
        finally:
            named = kwargs.get("module_name") or (args[0] if args else None) or self._task.action
            call = {
                "kind": kind,
                "host": (kwargs.get("task_vars") or {}).get("inventory_hostname"),
                "address": self._play_context.remote_addr,
                "connection": self._connection.transport,
                "task": self._task.get_name(),
                "module": named if kind == "module" else "",
                "seconds": round(time.monotonic() - started, 3),
            }
            # One short write to a file opened for appending: lines of several workers do not mix.
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, (json.dumps(call) + "\n").encode())
            finally:
                os.close(handle)

    setattr(ActionBase, method, recorded)
