# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NIMs of NeMo Retriever 2.x (native) and of speech: one server each, with the variables and paths of its generation."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import logging
import os
import sys
import time
import wave
from typing import Any

from . import families, faults, logs
from .api import Receive, Scope, Send, error, reply
from .exceptions import NimError
from .manifest import FAMILY_FILES, FAMILY_MODELS, FAMILY_VERSION
from .ngc_profile import Profile, gpus
from .nim_sdk import Cache
from .reference_server import body
from .settings import Settings

log = logging.getLogger(__name__)
#: What images of 2.2 and newer refuse to start with, and what took its place.
RETIRED = {
    "NIM_BIND_ADDR": "NIM_SERVER_BIND_ADDR",
    "NIM_MODEL_DOWNLOAD_PROVIDER": "NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER",
    "NIM_MODEL_NAME": "NIM_ENGINE_MODEL_NAME",
    "NIM_MODEL_PATH": "NIM_ENGINE_MODEL_PATH",
    "NIM_MODEL_PROFILE": "NIM_ENGINE_PRECISION",
    "NIM_PRECISION": "NIM_ENGINE_PRECISION",
}
VOICES = {"en-US,de-DE": {"voices": ["Lab-Multilingual.EN-US.Ada", "Lab-Multilingual.DE-DE.Konrad"]}}
MOST_AUDIO = 25 * 2**20
MOST_TEXT = 2000


class Refused(Exception):
    """A request that is answered by an error body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class FamilyServer:
    """The HTTP application of either generation."""

    def __init__(self, flavour: str, model: str, profile: str = "", version: str = "0") -> None:
        self.flavour = flavour
        self.model = model
        self.profile = profile
        self.version = version
        self.requests = 0
        ranks = "rerank" in model
        common = {"/v1/health/ready": self.ready, "/v1/health/live": self.live, "/v1/metrics": self.metrics}
        native = {
            "/v1/models": self.models,
            "/v1/metadata": self.metadata,
            **({"/v1/ranking": self.ranking} if ranks else {"/v1/embeddings": self.embeddings}),
        }
        speech = {
            "/v1/audio/list_voices": self.voices,
            "/v1/audio/synthesize": self.synthesize,
            "/v1/audio/transcriptions": self.transcriptions,
        }
        self.paths = {**common, **(native if flavour == "native" else speech)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            handler = self.paths.get(scope["path"])
            if handler is None:
                raise Refused(404, "Not Found")
            data = await body(receive) if scope["method"] == "POST" else b""
            if faults.engine_dead() and scope["method"] == "POST":
                raise Refused(500, "inference failed: CUDA error: an illegal memory access was encountered")
            answer = handler(data, dict(scope["headers"]))
            if isinstance(answer, bytes):
                headers = [(b"content-type", b"audio/wav"), (b"content-length", str(len(answer)).encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": answer})
            else:
                plain = isinstance(answer, str)
                await reply(send, 200, answer, "text/plain; version=0.0.4" if plain else "application/json")
        except Refused as refused:
            await reply(send, refused.status, error("llm", refused.status, "invalid_request_error", refused.message))

    # -- both -----------------------------------------------------------------------------------------------------

    def ready(self, _data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """Tell that requests are taken."""
        return {"object": "health.response", "message": "ready", "status": "ready"}

    def live(self, _data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """Tell that the process lives."""
        return {"object": "health.response", "message": "live", "status": "live"}

    def metrics(self, _data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """Tell how many requests were served."""
        return f"# TYPE nim_requests_total counter\nnim_requests_total {self.requests}\n"

    # -- native ---------------------------------------------------------------------------------------------------

    def models(self, _data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """List the one model."""
        card = {"id": self.model, "object": "model", "created": int(time.time()), "owned_by": "system"}
        return {"object": "list", "data": [card]}

    def metadata(self, _data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """Tell what is loaded."""
        url = f"ngc://nim/{self.model}:{FAMILY_VERSION}"
        info = [{"shortName": self.model.rpartition("/")[2], "modelUrl": url}]
        return {"modelInfo": info, "selectedModelProfileId": self.profile, "version": self.version}

    def embeddings(self, data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """Embed one text or several."""
        request = self.parse(data)
        texts = request.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise Refused(400, "input: wanted a text or a list of texts")
        if request.get("input_type") not in ("query", "passage"):
            raise Refused(400, "input_type is required: query or passage")
        if request.get("dimensions") not in (None, families.DIMENSIONS):
            raise Refused(400, f"dimensions: this model has {families.DIMENSIONS}")
        vectors = [families.embed(text) for text in texts]
        used = sum(len(text.split()) for text in texts)
        entries = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        usage = {"prompt_tokens": used, "total_tokens": used}
        return {"object": "list", "data": entries, "model": self.model, "usage": usage}

    def ranking(self, data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """Rank passages."""
        request = self.parse(data)
        try:
            query, passages = request["query"]["text"], [passage["text"] for passage in request["passages"]]
        except (KeyError, TypeError):
            raise Refused(422, "wanted query: {text}, passages: [{text}]") from None
        rankings = [{"index": index, "logit": logit} for index, logit in families.rank(query, passages)]
        return {"rankings": rankings, "usage": {"prompt_tokens": 0, "total_tokens": 0}}

    def parse(self, data: bytes) -> dict[str, Any]:
        """Read a request for the model."""
        try:
            request = json.loads(data)
        except ValueError as problem:
            raise Refused(400, f"JSON decode error: {problem}") from None
        if not isinstance(request, dict):
            raise Refused(400, "wanted a JSON object")
        if request.get("model") != self.model:
            raise Refused(404, f"The model `{request.get('model')}` does not exist.")
        self.requests += 1
        return request

    # -- speech ---------------------------------------------------------------------------------------------------

    def voices(self, _data: bytes, _headers: dict[bytes, bytes]) -> Any:
        """List the voices."""
        return VOICES

    def synthesize(self, data: bytes, headers: dict[bytes, bytes]) -> Any:
        """Speak a text."""
        form = self.form(data, headers)
        text = form.get("text", b"").decode("utf-8", "replace")
        if not text:
            raise Refused(400, "Bad Request, empty text input")
        if len(text) > MOST_TEXT:
            raise Refused(400, f"text has more than {MOST_TEXT} characters")
        voice = form.get("voice", b"").decode("utf-8", "replace")
        if voice and not any(voice in group["voices"] for group in VOICES.values()):
            raise Refused(400, f"Voice {voice} is not available")
        return families.speak(text)

    def transcriptions(self, data: bytes, headers: dict[bytes, bytes]) -> Any:
        """Write down what is heard."""
        form = self.form(data, headers)
        if "file" not in form:
            raise Refused(400, "file is required")
        if not form.get("language") and not form.get("model"):
            raise Refused(400, "language or model is required")
        if len(form["file"]) > MOST_AUDIO:
            raise Refused(400, "Audio file is too large: 25 MB at most")
        try:
            return {"text": families.hear(form["file"])}
        except (wave.Error, EOFError) as problem:
            raise Refused(400, f"Unsupported audio: {problem}") from None

    def form(self, data: bytes, headers: dict[bytes, bytes]) -> dict[str, bytes]:
        """Read a multipart form."""
        kind = headers.get(b"content-type", b"")
        if not kind.startswith(b"multipart/form-data"):
            # As the real one answers JSON.
            raise Refused(400, "Bad Request, empty text input")
        message = email.message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + data, policy=email.policy.HTTP)
        self.requests += 1
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        return {str(name): part.get_payload(decode=True) for name, part in parts.items()}


def profile_of(flavour: str, model: str) -> Profile:
    """Return the one way to run a model."""
    files = {name: f"ngc://nim/{model}:{FAMILY_VERSION}?file={name}" for name in FAMILY_FILES}
    return Profile(f"{flavour}-lab", {"llm_engine": flavour, "precision": "fp16", "tp": "1", "pp": "1"}, files)


def prepare(settings: Settings, model: str) -> Cache:
    """Bring the weights; what the generation asks of its variables first. Raises NimError."""
    if settings.flavour == "native":
        for name, instead in RETIRED.items():
            if name in os.environ:
                raise NimError(f"{name} is no longer supported: use {instead}")
        provider = os.environ.get("NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER", "huggingface")
        if provider != "ngc":
            raise NimError(f"download provider {provider}: cannot reach huggingface.co: Name or service not known")
    cache = Cache(settings, profile_of(settings.flavour, model))
    cache.ensure()
    return cache


def model_of(flavour: str) -> str:
    """Return the model that this image has."""
    return os.environ.get("NIM_LAB_MODEL") or FAMILY_MODELS[flavour]


async def serve(settings: Settings, model: str) -> None:
    """Serve until told to stop."""
    import uvicorn  # The tests need none.

    app = FamilyServer(settings.flavour, model, profile_of(settings.flavour, model).id, settings.version)
    config = uvicorn.Config(app, host="0.0.0.0", port=settings.port, log_config=None)  # noqa: S104
    if settings.flavour == "speech":
        # Whoever looks whether the port is open finds it so; nothing here speaks gRPC.
        await asyncio.start_server(lambda _reader, writer: writer.close(), "0.0.0.0", settings.grpc_port)  # noqa: S104
    await uvicorn.Server(config).serve()


def main(argv: list[str]) -> int:
    """Run the server, or only bring the weights."""
    settings = Settings.read()
    logs.setup(settings)
    model = model_of(settings.flavour)
    only = "--download-only" in argv or os.environ.get("NIM_ENGINE_MODEL_DOWNLOAD_ONLY") == "1"
    try:
        if faults.on("crash_at_start"):
            raise NimError("RuntimeError: Engine core initialization failed. See root cause above.")
        prepare(settings, model)
        if only:
            log.info("Model %s is downloaded.", model)
            return 0
        if not gpus():
            raise NimError(
                "no GPU was found: could not find a profile that is currently runnable with the detected hardware"
            )
    except NimError as problem:
        log.error("%s", problem)
        return 1
    log.info("Loading model weights of %s", model)
    time.sleep(float(os.environ.get("NIM_LAB_LOAD_SECONDS", "1")))
    log.info("Starting HTTP server on port %d", settings.port)
    asyncio.run(serve(settings, model))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
