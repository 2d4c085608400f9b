# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The OpenAI chat-completion dialogue without the network: requests built, answers read and judged.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _foreign
from ansible_collections.baremetal.nim.plugins.module_utils._events import Event
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._refusal import end_fault, error_fault, error_in

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
CHAT_PATH = "/v1/chat/completions"
STREAM = f"the stream of POST {CHAT_PATH}"
# Ends that no engine means well, told by the reason alone.
_GIVEN_UP = re.compile(r"error|abort|cancel|timeout|not_finished", re.IGNORECASE)


def clock(
    total: float,
    interval: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[float]:
    """Yield the seconds gone by: at once, then every interval seconds, for total seconds in all."""
    start = now()
    elapsed = 0.0
    while True:
        yield elapsed
        left = total - (now() - start)
        if left <= 0:
            return
        sleep(min(interval, left))
        elapsed = now() - start


@dataclass
class Answer:
    """A verified answer. ttft, duration and arrivals (when each piece of content of a stream came) are seconds.

    message: the whole message of a plain answer. logprobs: what was told of the tokens, None when nothing was asked.
    """

    content: str
    finish_reason: str
    usage: dict[str, int] = field(default_factory=dict)
    duration: float = 0.0
    ttft: float | None = None
    arrivals: list[float] = field(default_factory=list)
    message: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Any = None


def chat_payload(
    model: str, messages: list[dict[str, Any]], max_tokens: int, temperature: float, stream: bool = False
) -> dict[str, Any]:
    """Return the JSON body of a chat completion request."""
    payload: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    if stream:
        payload.update(stream=True, stream_options={"include_usage": True})
    return payload


def parse_json(request: str, body: str) -> Any:
    """Return the parsed body; Fault bad_response when it is not JSON."""
    try:
        return _foreign.parse_json(body)
    except ValueError:
        raise Fault("bad_response", f"{request} answered {shorten(body, 80)!r}", "JSON", [shorten(body)]) from None


def read_models(body: Any) -> dict[str, Mapping[str, Any]]:
    """Return the models of a /v1/models answer, by id; Fault bad_response when there is none."""
    data = body.get("data") if isinstance(body, Mapping) else None
    # What is shown everywhere, and asked for, is a name.
    models = {entry["id"]: entry for entry in data if _is_name(_get(entry, "id"))} if isinstance(data, list) else {}
    if not models:
        raise Fault("bad_response", "GET /v1/models lists no model", "at least one", [shorten(json.dumps(body))])
    return models


def context_length(card: Mapping[str, Any]) -> int | None:
    """Return the tokens that a listed model takes, as vLLM tells; None where nothing tells."""
    length = card.get("max_model_len")
    return length if _is_count(length) and length else None


def choose_model(wanted: str | None, listed: Collection[str]) -> str:
    """Return the model to ask: the wanted one, which must be listed, or the first of the list."""
    if wanted is None:
        return next(iter(listed))
    if wanted not in listed:
        raise Fault("wrong_model", f"GET /v1/models lists {', '.join(listed)}", f"model {wanted}")
    return wanted


def check_metadata(model: str, metadata: Any) -> None:
    """Raise Fault wrong_model when /v1/metadata names another model than the one asked for.

    The list of models repeats the name the server was told to use; the metadata says what it really loaded.
    Names are compared without punctuation, since NGC spells v0.1 as v01, and a longer name may add a variant.
    An alias (a model id without a slash) says nothing about the weights and is not compared.
    """
    infos = metadata.get("modelInfo") if isinstance(metadata, Mapping) else None
    names = [
        name
        for info in (infos if isinstance(infos, list) else [])
        for name in (_get(info, "shortName"), _get(info, "modelUrl"))
        if _is_text(name)
    ]
    if "/" not in model or not names:
        return
    asked = _slug(model)
    if not any(asked in _slug(name) or _slug(name) in asked for name in names):
        raise Fault("wrong_model", f"GET /v1/metadata names {', '.join(names)}", f"model {model}", names)


def check_profile(wanted: str, metadata: Any) -> None:
    """Raise Fault wrong_model when /v1/metadata does not name the wanted profile as the one that runs."""
    selected = metadata.get("selectedModelProfileId") if isinstance(metadata, Mapping) else None
    if selected != wanted:
        named = (
            f"GET /v1/metadata names profile {selected}" if _is_text(selected) else "GET /v1/metadata names no profile"
        )
        raise Fault("wrong_model", named, f"profile {wanted}")


def read_completion(body: Any, model: str, tools: bool = False) -> Answer:
    """Return the answer of a plain completion.

    tools: whether calls of tools may stand in for content. Raises Fault wrong_model for the answer of another model,
    refused_by_policy for none that a policy has replaced, and bad_response naming everything else that is wrong.
    """
    if error_in(body) is not None:
        raise error_fault(f"POST {CHAT_PATH}", body)
    problems = _envelope_problems(body, "chat.completion")
    _check_model(body, model, problems)
    choice = _first_choice(body)
    message = _get(choice, "message")
    if choice is None:
        problems.append("choices is empty or no list")
    elif not isinstance(message, Mapping):
        problems.append("message is no object")
    elif message.get("role") != "assistant":
        problems.append(f"message.role is {message.get('role')!r}, not 'assistant'")
    content = _get(message, "content")
    finish_reason = _get(choice, "finish_reason")
    _check_policy(finish_reason, _get(message, "refusal"), content)
    _check_end(f"POST {CHAT_PATH}", finish_reason, content)
    if choice is not None:
        called = tools and bool(_get(message, "tool_calls"))
        problems += _content_problems("called" if called else content, finish_reason, _reasons(message))
    problems += usage_problems(_get(body, "usage"))
    if problems:
        raise Fault(
            "bad_response",
            f"POST {CHAT_PATH} answered badly: {'; '.join(problems)}",
            "a chat.completion with content",
            [shorten(json.dumps(body), 500)],
        )
    return Answer(
        content=content or "",
        finish_reason=finish_reason,
        usage=_usage(body["usage"]),
        message=message,
        logprobs=_get(choice, "logprobs"),
    )


class Stream:
    """Reads and judges the events of a streamed completion as they come."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.done = False
        self._arrivals: list[float] = []
        self._content = ""
        self._refusal = ""
        self._finish_reason: Any = None
        self._usage: Any = None
        self._chunks = 0
        self._reasoned = False
        self._problems: list[str] = []

    @property
    def ttft(self) -> float | None:
        """Seconds until the first content came; None before."""
        return self._arrivals[0] if self._arrivals else None

    def take(self, event: Event, at: float) -> None:
        """Take one event, which came at seconds after the request. Raises Fault as event() does."""
        if event.is_error:
            raise event_fault(event)
        if event.data is not None:
            self.event(event.data, at)

    def event(self, data: str, at: float) -> None:
        """Take the data of one event, which came at seconds after the request.

        Raises Fault for an error inside the stream, by what it says, and wrong_model for another model.
        """
        if data.strip() == "[DONE]":
            self.done = True
            return
        if not data.strip():
            # Some keep a connection alive this way.
            return
        chunk = parse_json(STREAM, data)
        if error_in(chunk) is not None:
            raise error_fault(STREAM, chunk)
        self._chunks += 1
        problems = _envelope_problems(chunk, "chat.completion.chunk")
        _check_model(chunk, self.model, problems)
        choices = _get(chunk, "choices")
        choice = _first_choice(chunk)
        delta = _get(choice, "delta")
        if not isinstance(choices, list):
            problems.append("choices is no list")
        elif choices and not isinstance(delta, Mapping):
            problems.append("delta is no object")
        content = _get(delta, "content")
        if _is_text(content):
            self._arrivals.append(at)
            self._content += content
        refusal = _get(delta, "refusal")
        self._refusal += refusal if _is_text(refusal) else ""
        self._reasoned = self._reasoned or _reasons(delta)
        self._finish_reason = _get(choice, "finish_reason") or self._finish_reason
        self._usage = _get(chunk, "usage") or self._usage
        self._problems += [f"chunk {self._chunks}: {problem}" for problem in problems]

    def answer(self, duration: float) -> Answer:
        """Return the whole answer, duration seconds after the request; Fault bad_response names all that is wrong."""
        _check_policy(self._finish_reason, self._refusal, self._content)
        _check_end(STREAM, self._finish_reason, self._content)
        # One bad habit repeats in every chunk: the first few say it all.
        problems = self._problems[:3]
        if not self._chunks:
            problems.append("no chunk came")
        else:
            problems += _content_problems(self._content, self._finish_reason, self._reasoned)
        if not self.done:
            problems.append("it ended without [DONE]")
        if self._usage is not None:
            problems += usage_problems(self._usage)
        if problems:
            raise Fault(
                "bad_response",
                f"{STREAM} is bad: {'; '.join(problems)}",
                "chat.completion.chunk events with content, ended by [DONE]",
                problems,
            )
        return Answer(
            self._content, self._finish_reason, _usage(self._usage or {}), duration, self.ttft, self._arrivals
        )


def usage_problems(usage: Any) -> list[str]:
    """Return what is wrong with a usage object: list of str, empty when prompt + completion = total."""
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    if not isinstance(usage, Mapping):
        return [f"usage is {usage!r}, not an object"]
    wrong = [key for key in keys if not _is_count(usage.get(key))]
    if wrong:
        return [f"usage.{key} is {usage.get(key)!r}, not a count" for key in wrong]
    prompt, completion, total = (usage[key] for key in keys)
    if prompt + completion != total:
        return [f"usage does not add up: {prompt} + {completion} is not {total}"]
    return []


def _get(container: Any, key: str) -> Any:
    return container.get(key) if isinstance(container, Mapping) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_name(value: Any) -> bool:
    return _is_text(value) and len(value) <= 1000 and value.isprintable()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    return {key: value for key, value in usage.items() if _is_count(value)}


def _slug(name: str) -> str:
    """meta/llama-3.1-8b-instruct and ngc://nim/meta/llama-3.1-8b-instruct:tag both become llama318binstruct."""
    path = re.sub(r"^[a-z0-9]+://", "", name.lower()).rstrip("/")
    return re.sub(r"[^a-z0-9]", "", re.split(r"[:@?]", path.rpartition("/")[2])[0])


def _first_choice(body: Any) -> Any:
    choices = _get(body, "choices")
    return choices[0] if isinstance(choices, list) and choices else None


def _reasons(message: Any) -> bool:
    return any(_is_text(_get(message, key)) for key in ("reasoning_content", "reasoning"))


def _envelope_problems(body: Any, wanted: str) -> list[str]:
    if not isinstance(body, Mapping):
        return ["it is no JSON object"]
    problems = []
    if not _is_text(body.get("id")):
        problems.append(f"id is {body.get('id')!r}, not a text")
    if body.get("object") != wanted:
        problems.append(f"object is {body.get('object')!r}, not {wanted!r}")
    return problems


def _check_model(body: Any, model: str, problems: list[str]) -> None:
    answered = _get(body, "model")
    if _is_text(answered) and answered != model:
        raise Fault("wrong_model", f"model {answered} answered", f"model {model}")
    if not _is_text(answered) and isinstance(body, Mapping):
        problems.append(f"model is {answered!r}, not {model!r}")


def event_fault(event: Event) -> Fault:
    """Return what an event means that is an error by its form, whose words may be JSON or not."""
    words = event.error or event.data or ""
    try:
        document = _foreign.parse_json(words)
    except ValueError:
        document = words
    return error_fault(STREAM, document if document else "an error without words")


def _check_end(request: str, finish_reason: Any, content: Any) -> None:
    """Raise Fault for an answer that was given up by the word of its server."""
    if isinstance(finish_reason, Mapping) or (_is_text(finish_reason) and _GIVEN_UP.search(finish_reason)):
        fault = end_fault(request, finish_reason, content if isinstance(content, str) else "")
        if fault:
            raise fault


def _check_policy(finish_reason: Any, refusal: Any, content: Any) -> None:
    if finish_reason == "content_filter" or _is_text(refusal):
        said = shorten(refusal if _is_text(refusal) else content if _is_text(content) else "")
        seen = f"POST {CHAT_PATH} was refused" + (f" ({said})" if said else "") + f", finish_reason {finish_reason}"
        raise Fault("refused_by_policy", seen, "an answer", [said] if said else [])


def _content_problems(content: Any, finish_reason: Any, reasoned: bool) -> list[str]:
    problems = []
    if not isinstance(content, str) or not content.strip():
        hint = " (all max_tokens went into reasoning: raise max_tokens)" if reasoned else ""
        problems.append(f"content is {content!r}{hint}")
    if finish_reason not in FINISH_REASONS:
        problems.append(f"finish_reason is {finish_reason!r}, not one of {', '.join(FINISH_REASONS)}")
    return problems
