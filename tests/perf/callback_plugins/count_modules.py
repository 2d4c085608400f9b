# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down every module that is executed on a host: also those an action plugin calls on the side."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: count_modules
type: aggregate
short_description: Count remote module executions
description:
  - Appends one JSON line per execution to the file that E(COUNT_MODULES_FILE) names.
requirements: []
"""


class CallbackModule(CallbackBase):
    """Patches the one function all executions pass; workers are forked later and inherit it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "count_modules"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        execute = ActionBase._execute_module

        def counted(action: ActionBase, *args: Any, **kwargs: Any) -> Any:
            started = time.time()
            result = execute(action, *args, **kwargs)
            name = kwargs.get("module_name") or (args[0] if args else None) or action._task.action
            row = {"host": kwargs.get("task_vars", {}).get("inventory_hostname"), "module": name}
            with open(os.environ["COUNT_MODULES_FILE"], "a", encoding="utf-8") as out:
                out.write(json.dumps({**row, "started": started, "ended": time.time()}) + "\n")
            return result

        ActionBase._execute_module = counted
