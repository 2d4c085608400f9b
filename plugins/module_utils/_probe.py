# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of a verification, and one slice of it from them: what chat_completion and nim_verify have in common.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ansible_collections.baremetal.nim.plugins.module_utils import _clock, _expect, _media
from ansible_collections.baremetal.nim.plugins.module_utils._checks import PROBES
from ansible_collections.baremetal.nim.plugins.module_utils._command import Runner
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import connect, curl
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES, UNFORESEEN, Fault, sentence, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._service_probes import WITHOUT_CHAT, WITHOUT_MODELS
from ansible_collections.baremetal.nim.plugins.module_utils._unit import UNIT_NAME, UnitWatch
from ansible_collections.baremetal.nim.plugins.module_utils._verify import Verification

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

# argv -> (exit status, standard output, standard error)
Run = Callable[[list[str]], tuple[int, str, str]]

#: Seconds that systemctl and journalctl may take, of a slice that takes few itself.
_COMMAND_SECONDS = 20
#: How modules reach an endpoint; the documentation fragment of this name has the words.
ENDPOINT_SPEC: dict[str, dict[str, Any]] = {
    "url": {"type": "str", "required": True},
    "api_key": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool", "default": True},
    "ca_path": {"type": "path"},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
}
#: Options of chat_completion.
ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    **ENDPOINT_SPEC,
    "model": {"type": "str"},
    "prompt": {"type": "str", "default": "Reply with the single word: ready"},
    "messages": {"type": "list", "elements": "dict"},
    "max_tokens": {"type": "int", "default": 64, "no_log": False},
    "temperature": {"type": "float", "default": 0.0},
    "probes": {
        "type": "list",
        "elements": "str",
        "choices": [*PROBES, "health"],
        "default": ["completion", "stream"],
    },
    "prompts": {
        "type": "list",
        "elements": "dict",
        "options": {
            "prompt": {"type": "str"},
            "messages": {"type": "list", "elements": "dict"},
            "max_tokens": {"type": "int", "no_log": False},
            "temperature": {"type": "float"},
            **_expect.SPEC,
        },
        "mutually_exclusive": [("prompt", "messages")],
        "required_one_of": [("prompt", "messages")],
    },
    **_expect.SPEC,
    "image_file": {"type": "path"},
    "audio_file": {"type": "path"},
    "language": {"type": "str", "default": "en-US"},
    "voice": {"type": "str"},
    "tool_choice": {"type": "str", "choices": ["named", "required", "auto"], "default": "named"},
    "expect_profile": {"type": "str"},
    "check_metadata": {"type": "bool", "default": True},
    "ready_path": {"type": "str", "default": "/v1/health/ready"},
    "timeout": {"type": "float", "default": 1800},
    "request_timeout": {"type": "float", "default": 120},
    "poll_interval": {"type": "float", "default": 0.25},
    "unit": {"type": "str"},
    "journal_lines": {"type": "int", "default": 20},
    "progress": {"type": "bool", "default": True},
    "max_wait": {"type": "float"},
    "resume": {
        "type": "dict",
        "options": {
            "elapsed": {"type": "float", "default": 0},
            "breaks": {"type": "int", "default": 0},
            "refused": {"type": "dict"},
            "restarts": {"type": "int"},
            "invocation_id": {"type": "str"},
        },
    },
}
MUTUALLY_EXCLUSIVE = [("prompt", "messages", "prompts")]
REQUIRED_BY = {"client_key": "client_cert"}
#: Options that only the action plugins set.
CONTROLLERS_OWN = ("progress", "max_wait", "resume")


def endpoint_problems(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the options by which an endpoint is reached: list of str, each naming option, value and cure.

    options: those of ENDPOINT_SPEC, request_timeout, and ready_path where there is one.
    """
    problems = []
    url = options["url"]
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and "@" not in parts.netloc
    except ValueError:
        sound = False
    if not sound:
        problems.append("url must be http:// or https:// with a host, an optional port and no user")
    if options["api_key"] and not re.fullmatch(r"[\x21-\x7e]+", options["api_key"]):
        problems.append("api_key holds spaces, line ends or characters that are not ASCII: trim it")
    for name in ("ca_path", "client_cert", "client_key"):
        if options[name] and not os.access(options[name], os.R_OK):
            problems.append(f"{name} {options[name]} cannot be read on this host")
    # A timeout of nan compares with nothing.
    if not 0 < options["request_timeout"] < math.inf:
        problems.append(f"request_timeout is {options['request_timeout']:g}, it must be above 0")
    if not options.get("ready_path", "/").startswith("/"):
        problems.append(f"ready_path is {options['ready_path']!r}, it must begin with a slash")
    return problems


def option_problems(options: dict[str, Any]) -> list[str]:
    """Return what is wrong with the options beyond their types: list of str, each naming option, value and cure."""
    problems = endpoint_problems(options)
    for name in ("timeout", "poll_interval", "max_wait", "max_tokens"):
        if options[name] is not None and options[name] <= 0:
            problems.append(f"{name} is {options[name]:g}, it must be above 0")
    if options["journal_lines"] < 0:
        problems.append(f"journal_lines is {options['journal_lines']}, it must not be below 0")
    if "health" in options["probes"] and len(options["probes"]) > 1:
        problems.append(
            f"probes are {', '.join(options['probes'])}, but health stands alone: leave out the others, or health"
        )
    if options["unit"] is not None and not UNIT_NAME.fullmatch(options["unit"]):
        problems.append(f"unit is {options['unit']!r}, it must be the name of one systemd unit")
    problems += _expect.problems(options) + _prompt_problems(options)
    if "wrong_key" in options["probes"] and not options["api_key"]:
        problems.append("probes ask for wrong_key, but there is no api_key: give the right one, or leave the probe out")
    if options["expect_profile"] and options["probes"] and WITHOUT_MODELS.issuperset(options["probes"]):
        problems.append(
            f"expect_profile is compared with /v1/metadata, which {', '.join(options['probes'])} does not ask: leave it out"
        )
    problems += _file_problems(options)
    timed = [name for name in ("max_ttft", "min_tokens_per_second") if options[name] is not None]
    if timed and set(options["probes"]) - WITHOUT_CHAT and not {"stream", "pace"} & set(options["probes"]):
        problems.append(f"{timed[0]} is measured on streams: add stream or pace to probes")
    return problems


def _file_problems(options: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, probe, most in (
        ("image_file", "vision", _media.MOST_IMAGE_BYTES),
        ("audio_file", "transcription", _media.MOST_AUDIO_BYTES),
    ):
        if options[name] is None or probe not in options["probes"]:
            continue
        try:
            data = _media.read_file(options[name], most)
        except (OSError, ValueError) as exc:
            problems.append(f"{name} {options[name]} cannot be read on this host ({exc})")
            continue
        if name == "image_file" and not _media.image_type(data):
            problems.append(f"image_file {options[name]} is no PNG, JPEG, GIF or WebP picture")
    return problems


def _prompt_problems(options: dict[str, Any]) -> list[str]:
    problems = []
    if options["prompts"] is not None and not options["prompts"]:
        problems.append("prompts is empty: leave it out, or ask something")
    asked = [("", options)] + [
        (f"prompts[{number}]: ", prompt) for number, prompt in enumerate(options["prompts"] or [])
    ]
    for label, one in asked:
        if one["messages"] is not None:
            wrong = [number for number, message in enumerate(one["messages"]) if not message.get("role")]
            problems += [f"{label}messages is empty: leave it out, or ask something"] if not one["messages"] else []
            problems += [f"{label}messages[{number}] has no role: user, system or assistant" for number in wrong]
        elif one["prompt"] is not None and not one["prompt"].strip():
            problems.append(f"{label}prompt is empty: leave it out, or ask something")
        if label:
            limit = one["max_tokens"]
            if limit is not None and limit <= 0:
                problems.append(f"{label}max_tokens is {limit}, it must be above 0")
            own = {**one, "max_tokens": options["max_tokens"] if limit is None else limit}
            problems += [f"{label}{text}" for text in _expect.problems(own)]
        temperature = one["temperature"]
        if temperature is not None and not 0 <= temperature <= 2:
            problems.append(f"{label}temperature is {temperature:g}, it must be from 0 to 2")
    return problems


def base_of(url: str) -> str:
    """Return the address without the version that clients append themselves."""
    return re.sub(r"/*(/v1)?/*$", "", url)


def runner(module: AnsibleModule) -> Run:
    """Return what runs commands for a verification. Several may call it at a time; they take turns."""
    lock = threading.Lock()
    # Who does not answer once may answer the next time: a wait goes on for minutes.
    command = Runner(module.get_bin_path, again=True)

    def run(argv: list[str]) -> tuple[int, str, str]:
        with lock:
            return command(*argv, seconds=_COMMAND_SECONDS)

    return run


def verify(options: Mapping[str, Any], run: Run, hostname: str) -> dict[str, Any]:
    """Return the result of one slice: as chat_completion returns it, with failed and msg when it is a failure.

    options: those of chat_completion, sound. hostname: begins the message of a failure.
    """
    resume = options["resume"] or {}
    watch = None
    if options["unit"]:
        watch = UnitWatch(
            options["unit"],
            run,
            lines=options["journal_lines"],
            restarts=resume.get("restarts"),
            invocation_id=resume.get("invocation_id") or "",
        )
    base = base_of(options["url"])
    endpoint = connect(base, options)
    verification = Verification(options, endpoint, watch)
    try:
        verification.run()
    except Fault as fault:
        journal = f" Journal: {sentence(fault.culprit)}" if fault.culprit else ""
        next_command = verification.result["next_command"]
        msg = f"{hostname}: {base}: {fault}.{journal} {fault.cure} Next: {next_command}"
        return {**verification.result, "failed": True, "msg": msg}
    except UNFORESEEN as exc:
        # Of one endpoint: what the others said must be told.
        told = shorten(repr(exc), 300)
        result = {**verification.result, "waiting": False, "failure_class": "bad_response", "evidence": [told]}
        msg = f"{hostname}: {base}: its answer cannot be judged ({told}). {CURES['bad_response']} Next: {curl(options['url'], options)}"
        return {**result, "failed": True, "msg": msg, "next_command": curl(options["url"], options)}
    if verification.result["phase"] == "verified":
        # By the clock of whoever asked: on the host, the one of its journal.
        verification.result["verified_at"] = _clock.iso(time.time())
    return verification.result
