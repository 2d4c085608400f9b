# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of the benchmark stage, checked before any load is sent.

This plugin util is private to the collection and may change at any time.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import UnsupportedError
from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from ansible_collections.baremetal.nim.plugins.module_utils._written import near

#: Options of the module that the stage sets by itself, each with what to say instead.
SET_BY_THE_STAGE = {
    "url": "the stage measures each service at its own address",
    "model": "the stage asks each service for its own model",
    "baseline": "say nim_benchmark_baseline",
    "baseline_file": "say nim_benchmark_baseline",
    "max_wait": "only the action plugin sets it",
    "run_id": "only the action plugin sets it",
    "resume": "only the action plugin sets it",
}
#: Options that may be given.
OPTIONS = tuple(name for name in _benchmark.ARGUMENT_SPEC if name not in SET_BY_THE_STAGE)
#: Variables that the stage reads or sets.
VARIABLES = ("nim_benchmark", "nim_benchmark_baseline", "nim_benchmark_report", "nim_benchmark_results")
# So like one of them is a name that it is no other's.
_ALIKE = 0.9
# Files of the host that measures; the controller cannot look at them.
_FILES = ("ca_path", "client_cert", "client_key")


def checked(given: Any, variables: Iterable[str] = ()) -> dict[str, Any]:
    """Return options as they were given. Raises ValueError with everything that is wrong, in words that name no secret.

    variables: names of those that are set, among which may be a misspelt one.
    """
    if isinstance(given, str):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError as exc:
            raise ValueError(f"it is a text that is no YAML ({' '.join(str(exc).split())})") from None
    if given is None or given == "":
        given = {}
    if not isinstance(given, Mapping):
        raise ValueError("it is no dictionary, wanted one such as {concurrency: [1, 16]}")
    options = {str(key): value for key, value in given.items()}
    problems = [
        f"{key} is not for nim_benchmark: {SET_BY_THE_STAGE[key]}"
        if key in SET_BY_THE_STAGE
        else f"the unknown key {key!r}.{near(key, OPTIONS)}"
        for key in options
        if key not in OPTIONS
    ]
    problems += [
        f"the variable {name} is read by nobody.{near(name, VARIABLES)}"
        for name in variables
        if name not in VARIABLES and difflib.get_close_matches(name, VARIABLES, 1, _ALIKE)
    ]
    known = {key: copy.deepcopy(value) for key, value in options.items() if key in OPTIONS and value is not None}
    problems += _module_problems(known)
    if problems:
        raise ValueError("; ".join(problems))
    return options


def _module_problems(options: Mapping[str, Any]) -> list[str]:
    """What the module would say, of which the controller can know."""
    here = {key: value for key, value in options.items() if key not in _FILES}
    validator = ArgumentSpecValidator(_benchmark.ARGUMENT_SPEC, mutually_exclusive=_benchmark.MUTUALLY_EXCLUSIVE)
    result = validator.validate({"url": "http://127.0.0.1", **here})
    unknown = [isinstance(error, UnsupportedError) for error in result.errors]
    messages = [
        f"the unknown key {text}" if is_unknown else text
        for is_unknown, text in zip(unknown, result.error_messages, strict=True)
    ]
    return messages or _benchmark.option_problems(result.validated_parameters)
