# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of nim_benchmark: the benchmark in slices, its progress, and the baseline from a file here."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import label_of
from ansible_collections.baremetal.nim.plugins.module_utils._judgement import BASELINE_KEYS, load_baseline
from ansible_collections.baremetal.nim.plugins.plugin_utils._slices import SlicedAction


class ActionModule(SlicedAction):
    """Measures an endpoint."""

    module = "baremetal.nim.nim_benchmark"
    timeout = 3600.0

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result for the whole benchmark."""
        # By this name a slice finds the benchmark that one before began, even if its answer was lost.
        args = {**self._task.args, "run_id": uuid.uuid4().hex}
        where = args.get("baseline_file")
        find: Any = self._find_needle
        if where and args.get("baseline") is None:
            try:
                with open(find("files", str(where)), encoding="utf-8") as file:
                    args["baseline"] = load_baseline(file.read(), str(where))
            except (AnsibleError, OSError, ValueError) as exc:
                return {"failed": True, "msg": str(exc)}
            del args["baseline_file"]
        if isinstance(args.get("baseline"), Mapping):
            # Of a whole result, which may hold warnings as Ansible keeps them, this is enough.
            args["baseline"] = {key: args["baseline"][key] for key in BASELINE_KEYS if key in args["baseline"]}
        self._task.args = args
        return super().run(tmp, task_vars)

    def subject(self, args: Mapping[str, Any]) -> str:
        """Return the address."""
        return f"benchmark of {args.get('url')}"

    def success(self, result: Mapping[str, Any]) -> str:
        """Return the step with the highest throughput."""
        steps = [step for step in result.get("steps") or [] if step.get("completed")]
        if not steps:
            return ""
        best = max(steps, key=lambda step: step["output_tokens_per_s"])
        return f"done, at most {best['output_tokens_per_s']:.4g} tokens/s ({label_of(best)})"
