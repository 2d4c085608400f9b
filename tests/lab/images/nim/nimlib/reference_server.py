# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The OpenAI endpoints of the reference engine, as ASGI."""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import json
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from . import faults, logs
from .api import NimMiddleware, Receive, Scope, Send, error, reply
from .guided import called_tool, document, wanted_schema
from .reference import Generation, Model, content, logprob
from .settings import Settings

log = logging.getLogger(__name__)
BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
ROLES = ("system", "developer", "user", "assistant", "tool")
NUMBERS = {
    "temperature": (0, 2, "temperature must be between 0 and 2, got {}."),
    "top_p": (0, 1, "top_p must be in (0, 1], got {}."),
    "presence_penalty": (-2, 2, "presence_penalty must be in [-2, 2], got {}."),
    "frequency_penalty": (-2, 2, "frequency_penalty must be in [-2, 2], got {}."),
}


class Refused(Exception):
    """A request that is answered by an error body."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.kind = message, param, status, kind


class Histogram:
    """Observations, counted by bucket."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def samples(self, label: str) -> dict[str, float]:
        """Return name endings and values."""
        bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
        totals = list(itertools.accumulate(self.counts))
        buckets = {f'_bucket{{le="{bound}",{label}}}': total for bound, total in zip(bounds, totals, strict=True)}
        return {**buckets, f"_count{{{label}}}": totals[-1], f"_sum{{{label}}}": round(self.sum, 6)}


class Metrics:
    """Counters in Prometheus text form, under vLLM's names or those of the first generation."""

    def __init__(self, prefix: str, model: str) -> None:
        self.prefix = prefix
        self.label = f'model_name="{model}"'
        self.running = 0
        self.counters = dict.fromkeys(("prompt_tokens_total", "generation_tokens_total"), 0)
        self.finished = dict.fromkeys(("stop", "length", "abort"), 0)
        self.first_token, self.whole = Histogram(), Histogram()

    def render(self) -> str:
        """Return the exposition."""
        lines: list[str] = []

        def family(name: str, kind: str, samples: dict[str, float]) -> None:
            name = self.prefix + name
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(f"{name}{key} {value}" for key, value in samples.items())

        plain = f"{{{self.label}}}"
        family("num_requests_running", "gauge", {plain: self.running})
        family("num_requests_waiting", "gauge", {plain: 0})
        cache = "kv_cache_usage_perc" if self.prefix else "gpu_cache_usage_perc"
        family(cache, "gauge", {plain: min(1.0, self.running / 256)})
        for name, value in self.counters.items():
            family(name, "counter", {plain: value})
        reasons = {f'{{finished_reason="{reason}",{self.label}}}': count for reason, count in self.finished.items()}
        family("request_success_total", "counter", dict(reasons))
        family("time_to_first_token_seconds", "histogram", self.first_token.samples(self.label))
        family("e2e_request_latency_seconds", "histogram", self.whole.samples(self.label))
        return "\n".join(lines) + "\n"


class Server:
    """The engine's HTTP application."""

    def __init__(self, model: Model, settings: Settings, names: list[str], length: int, rate: float = 200) -> None:
        self.model = model
        self.settings = settings
        self.names = names
        self.length = length
        self.rate = rate
        self.started = int(time.time())
        self.metrics = Metrics("vllm:" if settings.llm else "", names[0])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        method, path = scope.get("method"), scope["path"]
        posts = {"/v1/chat/completions": True, "/v1/completions": False}
        try:
            if path in posts and method == "POST":
                await self.complete(await body(receive), posts[path], receive, send)
            elif path in posts:
                raise Refused("Method Not Allowed", status=405, kind="MethodNotAllowedError")
            elif path == "/v1/models":
                await reply(send, 200, {"object": "list", "data": [self.card(name) for name in self.names]})
            elif path == "/health":
                await reply(send, 200, "", "text/plain")
            elif path == "/metrics":
                await reply(send, 200, self.metrics.render(), "text/plain; version=0.0.4; charset=utf-8")
            else:
                raise Refused("Not Found", status=404, kind="NotFoundError")
        except Refused as refused:
            answer = error(self.settings.flavour, refused.status, refused.kind, refused.message, refused.param)
            await reply(send, refused.status, answer)

    def card(self, name: str) -> dict[str, object]:
        """Describe a model."""
        owner = "vllm" if self.settings.llm else "system"
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": owner,
            "root": name,
            "parent": None,
            "max_model_len": self.length,
        }

    async def complete(self, raw: bytes, chat: bool, receive: Receive, send: Send) -> None:
        """Answer a completion request, whole or as a stream, for as long as its client is there."""
        begun = time.monotonic()
        request = self.parse(raw)
        prompt, question = self.prompt(request, chat)
        used = len(self.model.tokenize(prompt))
        limit = self.limit(request, chat, used)
        stop = request.get("stop") or []
        floor = limit if request.get("ignore_eos") else request.get("min_tokens") or 0
        seeds = [self.seed(request, index) for index in range(request.get("n") or 1)]
        guided = self.guided(request, question, limit) if chat else None
        results = (
            [guided]
            if guided
            else [
                self.model.generate(
                    prompt,
                    question,
                    max_tokens=limit,
                    seed=seed,
                    stop=[stop] if isinstance(stop, str) else stop,
                    min_tokens=floor,
                )
                for seed in seeds
            ]
        )
        total = sum(len(result.tokens) for result in results)
        usage = {"prompt_tokens": used, "total_tokens": used + total, "completion_tokens": total}
        frame = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": faults.WRONG_MODEL if faults.on("wrong_model") else request["model"],
        }
        self.metrics.running += 1
        reason = "abort"
        try:
            if request.get("stream"):
                answer = partial(self.stream, frame, results, request, usage, chat, begun)
            else:
                answer = partial(self.whole, frame, results, request, usage, chat, begun, prompt)
            if await unless_gone(answer, receive, send):
                # To the engine a call is text like any other.
                reason = "length" if results[0].finish == "length" else "stop"
        finally:
            self.metrics.running -= 1
            self.metrics.finished[reason] += 1
            self.metrics.counters["prompt_tokens_total"] += used
            self.metrics.counters["generation_tokens_total"] += total
            self.metrics.whole.observe(time.monotonic() - begun)

    async def whole(
        self,
        frame: dict[str, Any],
        results: list[Generation],
        request: dict[str, Any],
        usage: dict[str, int],
        chat: bool,
        begun: float,
        prompt: str,
        send: Send,
    ) -> None:
        """Send the answer in one piece."""
        await asyncio.sleep(max(len(result.tokens) for result in results) / self.rate)
        self.metrics.first_token.observe(time.monotonic() - begun)
        choices = [choice(index, result, chat) for index, result in enumerate(results)]
        if chat and request.get("logprobs"):
            for entry, result in zip(choices, results, strict=True):
                entry["logprobs"] = {"content": told(prompt, result.tokens, request.get("top_logprobs") or 0)}
        await reply(send, 200, {**frame, "choices": choices, "usage": usage})

    async def stream(
        self,
        frame: dict[str, Any],
        results: list[Generation],
        request: dict[str, Any],
        usage: dict[str, int],
        chat: bool,
        begun: float,
        send: Send,
    ) -> None:
        """Send the tokens one by one, as server-sent events."""
        wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        if chat:
            frame = {**frame, "object": "chat.completion.chunk"}
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def event(payload: object) -> None:
            data = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

        rest = {"usage": None} if wants_usage else {}
        first = True
        for index, result in enumerate(results):
            if chat:
                await event({**frame, "choices": [chunk(index, {"role": "assistant", "content": ""}, None)], **rest})
            if result.calls:
                function = {"name": result.calls, "arguments": ""}
                call = {"index": 0, "id": call_id(frame), "type": "function", "function": function}
                await event({**frame, "choices": [chunk(index, {"tool_calls": [call]}, None)], **rest})
            async for token in self.paced(result):
                if first:
                    self.metrics.first_token.observe(time.monotonic() - begun)
                    first = False
                if result.calls:
                    delta = chunk(index, {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}, None)
                else:
                    delta = chunk(index, {"content": token}, None) if chat else text_chunk(index, token, None)
                await event({**frame, "choices": [delta], **rest})
            last = chunk(index, {}, result.finish) if chat else text_chunk(index, "", result.finish)
            await event({**frame, "choices": [last], **rest})
        if wants_usage:
            await event({**frame, "choices": [], "usage": usage})
        await event("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def paced(self, result: Generation) -> AsyncIterator[str]:
        """Yield the tokens at the engine's pace."""
        for token in result.tokens:
            await asyncio.sleep(1 / self.rate)
            yield token

    # -- what a request may ask ---------------------------------------------------------------------------------

    def invalid(self, message: str, param: str | None = None) -> Refused:
        """Refuse a request whose form is wrong, with each generation's status."""
        return Refused(message, param, 400 if self.settings.llm else 422)

    def parse(self, raw: bytes) -> dict[str, Any]:
        """Read and check a request."""
        invalid = self.invalid
        try:
            request = json.loads(raw)
        except ValueError as problem:
            raise invalid(f"JSON decode error: {problem}") from None
        if not isinstance(request, dict):
            raise invalid("Input should be a valid dictionary or object")
        if not isinstance(request.get("model"), str):
            raise invalid("1 validation error: {'loc': ('body', 'model'), 'msg': 'Field required'}", "model")
        if request["model"] not in self.names:
            raise Refused(f"The model `{request['model']}` does not exist.", "model", 404, "NotFoundError")
        for name, (low, high, text) in NUMBERS.items():
            value = request.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise invalid(f"{name}: Input should be a valid number", name)
            if not low <= value <= high or (name == "top_p" and value == 0):
                raise Refused(text.format(value), name)
        for name in ("max_tokens", "max_completion_tokens", "n", "min_tokens", "seed"):
            value = request.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise invalid(f"{name}: Input should be a valid integer", name)
            if value < {"min_tokens": 0, "seed": value}.get(name, 1):
                raise Refused(f"{name} must be at least 1, got {value}.", name)
        return request

    def prompt(self, request: dict[str, Any], chat: bool) -> tuple[str, str]:
        """Return the whole prompt and the question in it."""
        if not chat:
            prompt = request.get("prompt")
            if not isinstance(prompt, str) or not prompt:
                raise self.invalid("prompt: Input should be a non-empty string", "prompt")
            return prompt, prompt
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise self.invalid("messages: List should have at least 1 item", "messages")
        for message in messages:
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise self.invalid("messages: each needs a role of system, user, assistant or tool", "messages")
        asked = [content(message) for message in messages if message["role"] == "user"]
        return self.model.chat_prompt(messages), asked[-1] if asked else content(messages[-1])

    def guided(self, request: dict[str, Any], question: str, limit: int) -> Generation | None:
        """Return an answer that keeps to the schema which the request has; None when it has none."""
        try:
            function, schema = called_tool(request, question), wanted_schema(request)
        except (KeyError, TypeError) as problem:
            raise self.invalid(f"tools, tool_choice or response_format: {problem!r}", "tools") from None
        if not function and not schema:
            return None
        tokens = self.model.tokenize(document(function.get("parameters") or {} if function else schema, question))
        if len(tokens) > limit:
            return Generation(tokens[:limit], "length", function["name"] if function else "")
        # A function that is named leaves no choice, so vLLM calls that no reason to stop.
        finish = "tool_calls" if function and not isinstance(request.get("tool_choice"), dict) else "stop"
        return Generation(tokens, finish, function["name"] if function else "")

    def limit(self, request: dict[str, Any], chat: bool, used: int) -> int:
        """Return how many tokens may be written."""
        wanted = request.get("max_completion_tokens") or request.get("max_tokens") or (None if chat else 16)
        total = used + (wanted or 0)
        if used >= self.length or total > self.length:
            raise Refused(
                f"This model's maximum context length is {self.length} tokens. However, you requested {total} tokens "
                f"({used} in the {'messages' if chat else 'prompt'}, {wanted or 0} in the completion). "
                "Please reduce the length of the messages or completion.",
                "max_tokens",
            )
        return wanted or self.length - used

    def seed(self, request: dict[str, Any], index: int) -> str:
        """Return what besides the prompt decides; at temperature 0 nothing does."""
        if request.get("temperature") == 0:
            return str(index or "")
        seed = request.get("seed")
        return f"{uuid.uuid4() if seed is None else seed} {index}"


async def unless_gone(answer: Callable[[Send], Coroutine[Any, Any, None]], receive: Receive, send: Send) -> bool:
    """Let an answer go on until its client leaves; whether it came to its end."""
    ended = False

    async def passing(message: MutableMapping[str, Any]) -> None:
        nonlocal ended
        # A server says "disconnect" after a whole answer as well.
        ended = message["type"] == "http.response.body" and not message.get("more_body")
        await send(message)

    working = asyncio.ensure_future(answer(passing))
    waiting = asyncio.ensure_future(receive())
    await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    if not ended and not working.done() and waiting.result()["type"] == "http.disconnect":
        working.cancel()
        await asyncio.wait((working,))
        return False
    await working
    waiting.cancel()
    return True


def told(prompt: str, tokens: list[str], top: int) -> list[dict[str, Any]]:
    """Describe how likely each token was, and which others were less so."""

    def entry(token: str, value: float) -> dict[str, Any]:
        return {"token": token, "logprob": value, "bytes": list(token.encode())}

    found = []
    for index, token in enumerate(tokens):
        value = logprob(prompt, index, token)
        others = [entry(f"{token}{'~' * rank}", round(value - rank, 6)) for rank in range(top)]
        found.append({**entry(token, value), "top_logprobs": others})
    return found


def call_id(frame: dict[str, Any]) -> str:
    """Name a call after the answer it is in."""
    return f"chatcmpl-tool-{frame['id'].rpartition('-')[2]}"


def chunk(index: int, delta: dict[str, Any], finish: str | None) -> dict[str, object]:
    """Build a choice of a streamed chat."""
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def text_chunk(index: int, text: str, finish: str | None) -> dict[str, Any]:
    """Build a choice of a text completion."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def choice(index: int, result: Generation, chat: bool) -> dict[str, Any]:
    """Build a choice of a whole answer."""
    if not chat:
        return text_chunk(index, result.text, result.finish)
    message: dict[str, Any] = {"role": "assistant", "content": result.text, "tool_calls": []}
    if result.calls:
        function = {"name": result.calls, "arguments": result.text}
        call = {"id": f"chatcmpl-tool-{uuid.uuid4().hex}", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": result.finish}


async def body(receive: Receive) -> bytes:
    """Read a whole request body."""
    data = bytearray()
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(data)


def load(folder: Path, seconds: float) -> Model:
    """Load the weights, as slowly as ordered."""
    log.info("Loading model weights from %s", folder)
    model = Model(folder)
    steps = max(1, math.ceil(seconds))
    for step in range(1, steps + 1):
        time.sleep(seconds / steps)
        done = 100 * step // steps
        log.info("Loading safetensors checkpoint shards: %3d%% Completed | %d/%d", done, step, steps)
    return model


def main() -> int:
    """Run the engine."""
    import uvicorn  # The tests need none.

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--max-model-len", type=int)
    args, unknown = parser.parse_known_args()
    settings = Settings.read()
    logs.setup(settings)
    if unknown:
        log.warning("The reference engine ignores these arguments: %s", " ".join(unknown))
    model = load(args.model, float(os.environ.get("NIM_LAB_LOAD_SECONDS", "3")))
    derived = model.config["max_position_embeddings"]
    length = args.max_model_len or derived
    if length > derived:
        raise ValueError(
            f"User-specified max_model_len ({length}) is greater than the derived max_model_len "
            f"(max_position_embeddings={derived} in model's config.json)."
        )
    rate = float(os.environ.get("NIM_LAB_TOKENS_PER_SECOND", "200"))
    app = NimMiddleware(Server(model, settings, args.served_model_name, length, rate))
    log.info("Starting HTTP server on port %d", args.port)
    uvicorn.run(app, host=args.host, port=args.port, log_config=None, timeout_keep_alive=75)
    return 0


if __name__ == "__main__":
    sys.exit(main())
