# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a chat endpoint can do besides plain answers: how it is asked for, and whether the answer shows it. Pure.

This module util is private to the collection and may change at any time. Sources: the OpenAI API reference (chat completions:
tools, response_format, logprobs) and vLLM's documentation of the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._chat import CHAT_PATH, Answer
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import parse_json

# Closed sets only: so a model that says nothing sensible still ends, and what comes can be checked to the letter.
_WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Oslo", "Lima"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
_CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Oslo", "Lima"]},
        "continent": {"type": "string", "enum": ["Africa", "America", "Asia", "Europe", "Oceania"]},
        "capital": {"type": "boolean"},
    },
    "required": ["city", "continent", "capital"],
    "additionalProperties": False,
}
_TOOL = "get_weather"
#: Tokens that these short documents need, with room for white space.
LEAST_TOKENS = 128
_TOP = 2


def tool_call_request(choice: str) -> dict[str, Any]:
    """Return what a request needs so that a tool is called. choice: named, required or auto."""
    function = {"name": _TOOL, "description": "Current weather of a city", "parameters": _WEATHER}
    named = {"type": "function", "function": {"name": _TOOL}}
    return {
        "messages": [{"role": "user", "content": "What is the weather in Paris now, in celsius? Use the tool."}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": named if choice == "named" else choice,
    }


def check_tool_call(answer: Answer) -> dict[str, Any]:
    """Return the arguments that the tool was called with. Raises Fault bad_response naming all that is wrong."""
    calls = answer.message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else None
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise _bad("called no tool", f"a call of {_TOOL}", answer)
    problems = []
    if call.get("type") != "function":
        problems.append(f"type is {call.get('type')!r}, not 'function'")
    if not isinstance(call.get("id"), str) or not call["id"]:
        problems.append(f"id is {call.get('id')!r}, not a text")
    if function.get("name") != _TOOL:
        problems.append(f"name is {function.get('name')!r}, not {_TOOL!r}")
    arguments, wrong = _document(function.get("arguments"), _WEATHER)
    problems += [f"arguments: {text}" for text in wrong]
    if problems:
        raise _bad(f"called a tool badly: {'; '.join(problems)}", f"a call of {_TOOL}", answer)
    return arguments


def json_schema_request() -> dict[str, Any]:
    """Return what a request needs so that the answer is JSON of a schema."""
    return {
        "messages": [{"role": "user", "content": "Tell of Paris in JSON: city, continent, whether it is a capital."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY, "strict": True}},
    }


def check_json_schema(answer: Answer) -> dict[str, Any]:
    """Return the document that was answered. Raises Fault bad_response when it is not of the schema."""
    document, problems = _document(answer.content, _CITY)
    if problems:
        raise _bad(f"did not keep to the JSON schema: {'; '.join(problems)}", "a document of the schema", answer)
    return document


def logprobs_request() -> dict[str, Any]:
    """Return what a request needs so that the answer tells how likely its tokens were."""
    return {"logprobs": True, "top_logprobs": _TOP}


def check_logprobs(answer: Answer) -> int:
    """Return of how many tokens the answer tells. Raises Fault bad_response naming all that is wrong."""
    entries = answer.logprobs.get("content") if isinstance(answer.logprobs, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise _bad("told nothing of its tokens (logprobs)", "logprobs.content with an entry for each token", answer)
    problems = []
    for number, entry in enumerate(entries, 1):
        wrong = _token_problems(entry)
        others = entry.get("top_logprobs") if isinstance(entry, Mapping) else None
        if not isinstance(others, list) or len(others) > _TOP + 1:
            wrong.append(f"top_logprobs is {shorten(repr(others), 60)}, not a list of {_TOP}")
        else:
            wrong += [f"top_logprobs: {text}" for other in others for text in _token_problems(other)]
        problems += [f"token {number}: {text}" for text in wrong]
    tokens = answer.usage.get("completion_tokens", 0)
    # The token that ends an answer may be left out.
    if not tokens - 1 <= len(entries) <= tokens:
        problems.append(f"{len(entries)} tokens are told of, usage counts {tokens}")
    if problems:
        raise _bad(f"told badly of its tokens: {'; '.join(problems[:3])}", "a logprob of each token", answer)
    return len(entries)


def _token_problems(entry: Any) -> list[str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("token"), str):
        return [f"is {shorten(repr(entry), 60)}, not an object with a token"]
    value = entry.get("logprob")
    # Rounding may lift a certain token a hair above zero.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value > 1e-3:
        return [f"logprob is {value!r}, not a number up to 0"]
    return []


def _document(text: Any, schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The object in a text, and what is wrong with it by one of the flat schemas above."""
    try:
        value = parse_json(text)
    except (TypeError, ValueError):
        return {}, [f"{shorten(repr(text), 80)} is no JSON"]
    if not isinstance(value, dict):
        return {}, [f"{shorten(repr(value), 80)} is no object"]
    properties = schema["properties"]
    problems = [f"{name} is missing" for name in schema["required"] if name not in value]
    problems += [f"{name} is not in the schema" for name in value if name not in properties]
    for name, wanted in properties.items():
        if name in value and wanted["type"] == "boolean" and not isinstance(value[name], bool):
            problems.append(f"{name} is {value[name]!r}, not a boolean")
        if name in value and "enum" in wanted and value[name] not in wanted["enum"]:
            problems.append(f"{name} is {value[name]!r}, not one of {', '.join(wanted['enum'])}")
    return value, problems


def _bad(seen: str, wanted: str, answer: Answer) -> Fault:
    message = json.dumps(answer.message or {"content": answer.content})
    return Fault("bad_response", f"POST {CHAT_PATH} {seen}", wanted, [shorten(message, 500)])
