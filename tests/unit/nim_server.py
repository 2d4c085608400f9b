# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A NIM endpoint for tests: a real HTTP server with the published contract, and knobs to break each promise of it."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

MODEL = "meta/llama-3.1-8b-instruct"

# A handler of one path: it gets the server, the request and the parsed body, and answers by itself.
Reply = Callable[["NimServer", "Handler", Any], None]


class NimServer:
    """Serves until closed.

    starting_for: seconds /v1/health/ready answers 503 after the start. models: ids listed. answers_as: model of the
    answers (default the one asked). metadata: body of /v1/metadata, None for 404. api_key: wanted, None for none.
    replies: (method, path) -> Reply that takes the place of the contract. tls: context of the server side.
    length: tokens the models take. gap: seconds between two pieces of a long stream. holds: whether requests go on though their
    client has left.
    """

    def __init__(
        self,
        port: int = 0,
        starting_for: float = 0.0,
        models: Iterable[str] = (MODEL,),
        answers_as: str | None = None,
        metadata: Any = None,
        api_key: str | None = None,
        replies: dict[tuple[str, str], Reply] | None = None,
        tls: ssl.SSLContext | None = None,
        length: int = 4096,
        gap: float = 0.002,
        holds: bool = False,
    ) -> None:
        self.length = length
        self.gap = gap
        self.holds = holds
        self.running = 0
        self.models = list(models)
        self.answers_as = answers_as
        self.metadata = metadata
        self.api_key = api_key
        self.replies = dict(replies or {})
        self.requests: list[tuple[str, str, Any]] = []
        self.ready_at = time.monotonic() + starting_for
        self.over = threading.Event()
        self._httpd = _Httpd(("127.0.0.1", port), Handler)
        self._httpd.nim = self
        if tls:
            self._httpd.socket = tls.wrap_socket(self._httpd.socket, server_side=True)
        self.port = self._httpd.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> NimServer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self.over.set()
        self._httpd.shutdown()
        self._httpd.server_close()

    def asked(self, path: str) -> list[Any]:
        """Return the bodies of the requests made to a path so far."""
        return [body for _method, asked, body in self.requests if asked == path]


class _Httpd(ThreadingHTTPServer):
    daemon_threads = True
    nim: NimServer

    def server_bind(self) -> None:
        # The inherited one asks the DNS for the name of this machine.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests break off on purpose."""


class Handler(BaseHTTPRequestHandler):
    """One connection. HTTP/1.1 with keep-alive, as uvicorn and nginx have it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Httpd
    timeout = 10

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""

    def _serve(self, method: str) -> None:
        nim = self.server.nim
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        form = (self.headers.get("Content-Type") or "").startswith("multipart/form-data")
        body = data.decode("latin-1") if form else json.loads(data) if length else None
        nim.requests.append((method, self.path, body))
        reply = nim.replies.get((method, self.path)) or _CONTRACT.get((method, self.path))
        if reply is None:
            self.send_json(404, {"detail": "Not Found"})
        elif nim.api_key and self.headers.get("Authorization") != f"Bearer {nim.api_key}":
            self.send_json(401, {"error": {"message": "Unauthorized", "type": "AuthenticationError", "code": 401}})
        else:
            reply(nim, self, body)

    def send_body(self, status: int, content_type: str, body: bytes) -> None:
        """Answer with a body of known length."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, status: int, body: Any) -> None:
        """Answer with JSON."""
        self.send_body(status, "application/json", json.dumps(body, ensure_ascii=False).encode())

    def send_stream(self, parts: Iterable[bytes], end: bool = True) -> None:
        """Answer with server-sent events, each part in a chunk of its own; without end the connection breaks."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()
        if end:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = not end

    def reset(self) -> None:
        """Break the connection off without an answer, as a server that dies does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def usage(prompt: int = 16, completion: int = 2) -> dict[str, int]:
    """Return token counts that add up."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(model: str = MODEL, content: Any = "ready", **changes: Any) -> dict[str, Any]:
    """Return the body of a plain completion, as vLLM writes it; changes replace its top-level keys."""
    message = {"role": "assistant", "content": content, "reasoning_content": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    return {
        "id": "chatcmpl-5d0f5f7c",
        "object": "chat.completion",
        "created": 1763881200,
        "model": model,
        "choices": [choice],
        "usage": usage(),
        **changes,
    }


def chunks(model: str = MODEL, words: Iterable[str] = ("re", "ady")) -> list[dict[str, Any]]:
    """Return the chunks of a streamed completion, as vLLM sends them: role, words, end, usage."""
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word}, None) for word in words]
    deltas += [({"content": ""}, "stop")]
    head = {"id": "chatcmpl-5d0f5f7c", "object": "chat.completion.chunk", "created": 1763881200, "model": model}
    events: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    return [*events, {**head, "choices": [], "usage": usage()}]


def sse(events: Iterable[Any]) -> list[bytes]:
    """Return server-sent events for the given bodies, ended by [DONE]."""
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]


def send(status: int, body: Any) -> Reply:
    """Return a reply that always answers the same: JSON, or the given text."""

    def reply(_nim: NimServer, handler: Handler, _body: Any) -> None:
        if isinstance(body, str):
            handler.send_body(status, "text/html", body.encode())
        else:
            handler.send_json(status, body)

    return reply


def hang(nim: NimServer, handler: Handler, _body: Any) -> None:
    """Never answer, for as long as the server lives: whatever its client waits for, it is in vain."""
    nim.over.wait()
    handler.close_connection = True


def send_stream(parts: Iterable[bytes], end: bool = True, stalls: bool = False) -> Reply:
    """Return a reply that streams these bytes to a request for a stream, and keeps to the contract otherwise.

    end: whether the answer has one. stalls: whether its connection then stays, as one that has more to say.
    """

    def reply(nim: NimServer, handler: Handler, body: Any) -> None:
        if body.get("stream"):
            handler.send_stream(parts, end)
            if stalls:
                nim.over.wait()
        else:
            _chat(nim, handler, body)

    return reply


def reset_first(times: int) -> Reply:
    """Return a chat reply that breaks the connection off so many times, and then keeps to the contract."""
    left = [times]

    def reply(nim: NimServer, handler: Handler, body: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            handler.reset()
        else:
            _chat(nim, handler, body)

    return reply


def _health_ready(nim: NimServer, handler: Handler, _body: Any) -> None:
    if time.monotonic() < nim.ready_at:
        handler.send_body(503, "text/html", b"<html><title>503 Service Temporarily Unavailable</title></html>")
    else:
        handler.send_json(200, {"object": "health.response", "message": "ready", "status": "ready"})


def _models(nim: NimServer, handler: Handler, _body: Any) -> None:
    card = {"object": "model", "owned_by": "system", "max_model_len": nim.length}
    data = [{"id": model, "root": model, **card} for model in nim.models]
    handler.send_json(200, {"object": "list", "data": data})


def _metadata(nim: NimServer, handler: Handler, _body: Any) -> None:
    if nim.metadata is None:
        handler.send_json(404, {"detail": "Not Found"})
    else:
        handler.send_json(200, nim.metadata)


def _metrics(nim: NimServer, handler: Handler, _body: Any) -> None:
    text = (
        f'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{model_name="{MODEL}"}} {nim.running}.0\n'
    )
    handler.send_body(200, "text/plain; version=0.0.4", text.encode())


def _chat(nim: NimServer, handler: Handler, body: Any) -> None:
    model = body["model"]
    words = " ".join(str(message["content"]) for message in body["messages"]).split()
    if model not in nim.models:
        error = {"message": f"The model `{model}` does not exist.", "type": "NotFoundError", "code": 404}
        handler.send_json(404, {"error": error})
    elif len(words) > nim.length:
        error = {"message": f"This model's maximum context length is {nim.length} tokens.", "code": 400}
        handler.send_json(400, {"error": error})
    elif body.get("stream") and "Count" in words:
        _count(nim, handler, body)
    elif body.get("stream"):
        handler.send_stream(sse(chunks(nim.answers_as or model)))
    else:
        handler.send_json(200, answer(body, nim.answers_as or model))


def answer(body: Any, model: str = MODEL) -> dict[str, Any]:
    """Return the body of a plain completion that does what its request asks for."""
    if body.get("tools"):
        arguments = json.dumps({"city": "Paris", "unit": "celsius"})
        call = {"id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        done = completion(model, None)
        done["choices"][0]["message"]["tool_calls"] = [call]
        done["choices"][0]["finish_reason"] = "tool_calls"
        return done
    if body.get("response_format"):
        return completion(model, json.dumps({"city": "Paris", "continent": "Europe", "capital": True}))
    done = completion(model)
    if body.get("logprobs"):
        tokens = [{"token": token, "logprob": -0.25, "bytes": list(token.encode())} for token in ("re", "ady")]
        others = [{"token": "go", "logprob": -3.5, "bytes": [103, 111]}]
        content = [{**token, "top_logprobs": [token, *others]} for token in tokens]
        done["choices"][0]["logprobs"] = {"content": content}
    return done


def _count(nim: NimServer, handler: Handler, body: Any) -> None:
    """Stream a long answer piece by piece, unless its reader has left."""
    number = min(body["max_tokens"], 200)
    events = chunks(words=[f"{index} " for index in range(number)])
    events[-1]["usage"] = usage(completion=number)

    def paced() -> Iterator[bytes]:
        for part in sse(events):
            time.sleep(nim.gap)
            yield part

    nim.running += 1
    try:
        handler.send_stream(paced())
    except OSError:
        while nim.holds:
            time.sleep(0.05)
        raise
    finally:
        nim.running -= 1


_CONTRACT: dict[tuple[str, str], Reply] = {
    # Family 2.x: the front answers "live" before any model is loaded.
    ("GET", "/v1/health/live"): send(200, {"object": "health.response", "message": "live", "status": "live"}),
    ("GET", "/v1/health/ready"): _health_ready,
    ("GET", "/v1/models"): _models,
    ("GET", "/v1/metadata"): _metadata,
    ("GET", "/v1/metrics"): _metrics,
    ("POST", "/v1/chat/completions"): _chat,
}
