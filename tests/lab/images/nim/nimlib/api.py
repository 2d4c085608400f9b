# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoints that a NIM puts around its engine, as ASGI: the same class serves both engines."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import yaml

from . import faults
from .ngc_profile import find, load
from .settings import Settings

log = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
LICENSE = Path("/opt/nim/LICENSE")
COMPLETIONS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


async def reply(send: Send, status: int, body: object, content_type: str = "application/json") -> None:
    """Send a whole answer."""
    data = body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=False).encode()
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def error(flavour: str, status: int, kind: str, message: str, param: str | None = None) -> dict[str, object]:
    """Build an error body in the form of each generation."""
    body: dict[str, object] = {"message": message, "type": kind, "param": param, "code": status}
    return {"error": body} if flavour == "llm" else {"object": "error", **body}


class NimMiddleware:
    """Answer the NIM endpoints, hand the rest to the engine."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.settings = Settings.read()
        self.profile = find(load(self.settings.manifest), self.settings.profile, self.settings.manifest)
        self.dead = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "")
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif path in COMPLETIONS and faults.engine_dead():
            name, message = faults.DEAD[self.settings.flavour]
            if not self.dead:
                self.dead = True
                log.error("%s: %s", name, message)
            await reply(send, 500, error(self.settings.flavour, 500, "InternalServerError", message))
        elif path == "/v1/metrics":
            await self.app({**scope, "path": "/metrics", "raw_path": b"/metrics"}, receive, send)
        elif (body := self.answer(path)) is not None:
            await reply(send, 200, body)
        else:
            await self.app(scope, receive, send)

    def answer(self, path: str) -> dict[str, object] | None:
        """Return the body of a NIM endpoint, None for a path that is the engine's."""
        match path:
            case "/v1/health/ready" if self.settings.llm:
                return {"object": "health.response", "message": "ready", "status": "ready"}
            case "/v1/health/ready":
                return {"object": "health.response", "message": "Service is ready."}
            case "/v1/health/live":
                return {"object": "health.response", "message": "Service is live."}
            case "/v1/metadata":
                return self.metadata()
            case "/v1/version":
                return {"release": self.settings.version, "api": "2.0.0" if self.settings.llm else "1.0.0"}
            case "/v1/license":
                return {**self.license(), "content": LICENSE.read_text(encoding="utf-8") if LICENSE.exists() else ""}
            case "/v1/manifest":
                manifest = yaml.safe_load(self.settings.manifest.read_text(encoding="utf-8"))
                return {"manifest_file": str(self.settings.manifest), "manifest": manifest}
        return None

    def license(self) -> dict[str, object]:
        """Describe the licence file."""
        data = LICENSE.read_bytes() if LICENSE.exists() else b""
        sha = hashlib.sha256(data).hexdigest()
        return {"name": LICENSE.name, "path": str(LICENSE), "sha": sha, "size": len(data), "type": "file", "url": ""}

    def metadata(self) -> dict[str, object]:
        """Tell what is really loaded, also where the answers claim something else."""
        repo, version = self.profile.source
        if faults.on("wrong_model"):
            repo = faults.WRONG_MODEL
        url = f"ngc://nim/{repo}:{version}"
        return {
            "assetInfo": [url],
            "licenseInfo": self.license(),
            "modelInfo": [{"shortName": f"{repo.rsplit('/', 1)[-1]}:{version}", "modelUrl": url}],
            "repository_override": "",
            "selectedModelProfileId": self.profile.id,
            "version": self.settings.version,
        }
