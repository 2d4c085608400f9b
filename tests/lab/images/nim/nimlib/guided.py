# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers that keep to a JSON schema: calls of tools, and documents."""

from __future__ import annotations

import json
import re
from typing import Any


def called_tool(request: dict[str, Any], question: str) -> dict[str, Any] | None:
    """Return the function that the answer is to call; None when it is to talk.

    Raises KeyError for a tool_choice that names a function which is not offered.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in request.get("tools") or []}
    wanted = request.get("tool_choice", "auto" if functions else "none")
    if not functions or wanted == "none":
        return None
    if isinstance(wanted, dict):
        return functions[wanted["function"]["name"]]
    if wanted == "required":
        return next(iter(functions.values()))
    for function in functions.values():
        words = re.findall(r"[a-z]{4,}", f"{function['name']} {function.get('description', '')}".lower())
        if any(word in question.lower() for word in words):
            return function
    return None


def wanted_schema(request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema that the whole answer must keep to, None for free text."""
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema: dict[str, Any] = form["json_schema"]["schema"]
        return schema
    return {"type": "object"} if form.get("type") == "json_object" else None


def document(schema: dict[str, Any], question: str) -> str:
    """Return JSON that keeps to SCHEMA and takes what it can from QUESTION."""
    return json.dumps(_value(schema, question), ensure_ascii=False)


def _value(schema: dict[str, Any], question: str) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        said = (choice for choice in schema["enum"] if str(choice).lower() in question.lower())
        return next(said, schema["enum"][0])
    match schema.get("type"):
        case "object":
            return {name: _value(part, question) for name, part in (schema.get("properties") or {}).items()}
        case "array":
            return [_value(schema.get("items") or {}, question) for _ in range(schema.get("minItems", 1))]
        case "boolean":
            return True
        case "integer" | "number":
            found = re.search(r"\d+", question)
            return max(schema.get("minimum", 0), min(int(found[0]) if found else 0, schema.get("maximum", 10**9)))
        case "null":
            return None
    names = re.findall(r"\b[A-Z]\w+", question)
    return names[-1] if names else "this"
