# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the stand-in lies, and how to ask an ASGI application."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

IMAGES = Path(__file__).resolve().parents[2] / "lab" / "images"
sys.path[:0] = [str(IMAGES / "nim"), str(IMAGES / "vendor")]
KEY = "nvapi-for-the-unit-tests-0123456789"


class Answer(NamedTuple):
    """What an ASGI application sent."""

    status: int
    body: str

    @property
    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events but the closing one."""
        *events, last, rest = self.body.split("\n\n")
        assert (last, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


@contextmanager
def over_http(app: Callable[..., Awaitable[None]]) -> Iterator[str]:
    """Serve an ASGI application on a port of its own; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def ask(app: Callable[..., Awaitable[None]], path: str, payload: Any = None) -> Answer:
    """Send one request to an ASGI application."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET" if payload is None else "POST", "path": path}
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    assert not sent[-1].get("more_body")
    return Answer(sent[0]["status"], body.decode())
