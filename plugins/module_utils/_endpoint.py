# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The HTTP side of a NIM endpoint: requests sent, errors of the network turned into Fault or Broken.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import http.client
import json
import shlex
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _bounded
from ansible_collections.baremetal.nim.plugins.module_utils._chat import (
    CHAT_PATH,
    STREAM,
    Answer,
    Stream,
    parse_json,
    read_completion,
    read_models,
)
from ansible_collections.baremetal.nim.plugins.module_utils._events import Event, sse_events
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import parse_json as read_json
from ansible_collections.baremetal.nim.plugins.module_utils._refusal import (
    error_fault,
    error_in,
    error_text,
    http_fault,
)

try:
    import requests
    import urllib3
except ImportError:
    REQUESTS_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    REQUESTS_IMPORT_ERROR = None


# No answer of a NIM about itself is longer than its manifest, which has some megabytes; a stream has much around each token.
_MOST, _MOST_OF_A_STREAM = 16 * 2**20, 64 * 2**20


class Broken(Exception):
    """The connection broke during a request: either the endpoint is still starting, or its engine died. reason: why, alone."""

    def __init__(self, words: str, why: str = "") -> None:
        super().__init__(words)
        self.reason = why or words


class Endpoint:
    """A NIM endpoint.

    base: str, URL without a path. request_timeout: seconds an answer may take.
    verify: True, False, or the path of a CA bundle. cert: client certificate, and key where it is a file of its own.
    """

    def __init__(
        self,
        base: str,
        request_timeout: float,
        api_key: str | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = base
        self.request_timeout = request_timeout
        self._now = now
        self._session = requests.Session()
        # A proxy or a .netrc in the environment is not meant for the service on this host.
        self._session.trust_env = False
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _bounded.adapter())
        self._session.verify = verify
        self._session.cert = cert
        if verify is False:
            # The operator has decided; a warning per request would only fill the output.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if api_key:
            self._session.headers["Authorization"] = "Bearer " + api_key

    def ready(self, path: str, timeout: float) -> tuple[int | None, str]:
        """Ask once whether the endpoint is ready: (HTTP status or None without an answer, the same in words).

        Raises Fault auth or tls, which waiting does not cure.
        """
        try:
            with self._talking("GET " + path, timeout):
                response = self._whole("GET", path, timeout)
        except Broken as exc:
            return None, exc.reason
        except Fault as fault:
            # Whatever answers nonsense, or too much, may yet give way to the endpoint.
            if fault.failure_class == "tls":
                raise
            return None, str(fault).rpartition(", wanted ")[
                0
            ] if fault.failure_class == "bad_response" else f"no answer within {timeout:g} s"
        if response.status_code in (401, 403):
            refused = http_fault("GET " + path, response.status_code, _text(response), response.headers)
            if refused:
                raise refused
        return response.status_code, f"HTTP {response.status_code}"

    def models(self) -> dict[str, Mapping[str, Any]]:
        """Return the models that /v1/models lists, by id."""
        return read_models(self.json("GET", "/v1/models"))

    def metadata(self) -> Any:
        """Return /v1/metadata, or None where the endpoint has none to show."""
        response = self.send("GET", "/v1/metadata")
        try:
            return read_json(_text(response)) if response.status_code == 200 else None
        except ValueError:
            return None

    def complete(self, payload: dict[str, Any], tools: bool = False) -> Answer:
        """Send one plain completion and return its verified answer. tools: whether it may be a call of a tool."""
        start = self._now()
        answer = read_completion(self.json("POST", CHAT_PATH, json=payload), payload["model"], tools)
        answer.duration = self._now() - start
        return answer

    def stream(self, payload: dict[str, Any]) -> Answer:
        """Send one streamed completion and return its verified answer, with the time to the first content."""
        stream = Stream(payload["model"])
        start = self._now()
        with self._streaming(payload, start) as events:
            for event in events:
                stream.take(event, self._now() - start)
                if stream.done:
                    break
        return stream.answer(self._now() - start)

    def leave(self, payload: dict[str, Any]) -> bool:
        """Send one streamed completion and go away at its first content. Returns whether more of it was to come."""
        stream = Stream(payload["model"])
        start = self._now()
        with self._streaming(payload, start) as events:
            for event in events:
                stream.take(event, self._now() - start)
                if stream.ttft is not None or stream.done:
                    break
        return not stream.done

    @contextmanager
    def _streaming(self, payload: dict[str, Any], start: float) -> Iterator[Iterator[Event]]:
        """The events of one stream; the connection is closed behind it."""
        request = "POST " + CHAT_PATH
        with self._talking(request):
            response = self._session.post(
                self.base + CHAT_PATH, json=payload, timeout=self.request_timeout, allow_redirects=False, stream=True
            )
            with response:
                kind = response.headers.get("Content-Type", "untyped")
                if response.status_code != 200 or not kind.startswith("text/event-stream"):
                    text = _text(self._read(response, request))
                    raise http_fault(request, response.status_code, text, response.headers) or _no_stream(kind, text)
                # A chunk is passed on as soon as it is whole, and in parts where it is longer.
                yield sse_events(
                    self._in_time(response.iter_content(chunk_size=65536), start, request, _MOST_OF_A_STREAM)
                )

    def send(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Send one request and return the whole answer, whatever its status. kwargs: as requests takes them."""
        with self._talking(f"{method} {path}"):
            return self._whole(method, path, self.request_timeout, **kwargs)

    def _whole(self, method: str, path: str, timeout: float, **kwargs: Any) -> requests.Response:
        """One answer with its body, of which there may be no more than anybody needs."""
        response = self._session.request(
            method, self.base + path, timeout=timeout, allow_redirects=False, stream=True, **kwargs
        )
        with response:
            return self._read(response, f"{method} {path}")

    def _read(self, response: requests.Response, request: str) -> requests.Response:
        """The answer with its body in it."""
        body, size = [], 0
        for chunk in response.iter_content(chunk_size=65536):
            body.append(chunk)
            size += len(chunk)
            if size > _MOST:
                raise _too_long(request, _MOST)
        # As requests does it itself, which reads all there is.
        response._content = b"".join(body)
        return response

    def look(self, path: str) -> tuple[int | None, str, str | None]:
        """GET a path, whatever comes of it: (HTTP status or None without an answer, body, what is wrong or None).

        Takes request_timeout in all, and a body of 16 MiB at most.
        """
        try:
            response = self.send("GET", path)
        except Broken as exc:
            return None, "", str(exc)
        except Fault as fault:
            return None, "", str(fault).rpartition(", wanted ")[0].replace(f"GET {path} is longer", "is longer")
        text = _text(response)
        if response.status_code == 200:
            return 200, text, None
        said = error_text(text) if response.headers.get("Content-Type", "").startswith("application/json") else ""
        return response.status_code, text, f"HTTP {response.status_code}" + (f" ({said})" if said else "")

    def content(self, method: str, path: str, **kwargs: Any) -> bytes:
        """Send one request and return the body of its answer, which must be HTTP 200."""
        response = self.send(method, path, **kwargs)
        text = "" if response.status_code == 200 else _text(response)
        fault = http_fault(f"{method} {path}", response.status_code, text, response.headers)
        if fault:
            raise fault
        return response.content

    def json(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send one request and return the JSON of its answer, which must be HTTP 200."""
        return parse_json(f"{method} {path}", self.content(method, path, **kwargs).decode("utf-8", "replace"))

    def _in_time(self, chunks: Iterable[bytes], start: float, request: str, most: int) -> Iterator[bytes]:
        """Pass chunks on until the whole request has taken too long: keep-alive comments must not stretch it."""
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if self._now() - start > self.request_timeout:
                raise self._too_slow(request)
            if size > most:
                raise _too_long(request, most)
            yield chunk

    @contextmanager
    def _talking(self, request: str, seconds: float | None = None) -> Iterator[None]:
        """One request, which ends when its time is over, whatever its server does."""
        with _bounded.within(seconds or self.request_timeout) as deadline:
            try:
                yield
            except requests.exceptions.RequestException as exc:
                if deadline.over or _timed_out(exc):
                    raise self._too_slow(request) from exc
                _raise_tls(exc)
                if isinstance(exc, (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError)):
                    raise Broken(f"{request} broke off ({reason(exc)})", reason(exc)) from exc
                raise Fault("bad_response", f"{request} failed ({reason(exc)})", "an HTTP answer") from exc
            except (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException) as exc:
                # What requests does not make its own: a length or a chunk that has none, an end in the midst of TLS.
                if deadline.over:
                    raise self._too_slow(request) from exc
                raise Fault("bad_response", f"{request} failed ({reason(exc)})", "an HTTP answer") from exc
            if deadline.over:
                # An answer without a length ends with its connection, whoever ended that.
                raise self._too_slow(request)

    def _too_slow(self, request: str) -> Fault:
        wanted = "a completion" if request.endswith(CHAT_PATH) else "an answer"
        return Fault("dead_engine", f"no answer to {request} within {self.request_timeout:g} s", wanted)


def connect(base: str, options: Mapping[str, Any]) -> Endpoint:
    """Return an endpoint by the options of a module that has those of the documentation fragment, and request_timeout."""
    cert, key = options["client_cert"], options["client_key"]
    return Endpoint(
        base,
        options["request_timeout"],
        api_key=options["api_key"],
        verify=(options["ca_path"] or True) if options["validate_certs"] else False,
        cert=(cert, key) if cert and key else cert,
    )


def curl(url: str, options: Mapping[str, Any], payload: Mapping[str, Any] | None = None) -> str:
    """Return the command that asks what a module with these options asks. It has no secret in it. payload: JSON to post, if any."""
    streams = bool(payload and payload.get("stream"))
    # Each piece of a stream is shown when it comes, asked for as this collection asks.
    words = ["curl", "-sSiN --compressed" if streams else "-sSi"]
    for flag, name in (("--cacert", "ca_path"), ("--cert", "client_cert"), ("--key", "client_key")):
        words += [flag, shlex.quote(options[name])] if options[name] else []
    if not options["validate_certs"]:
        words.append("-k")
    if options["api_key"]:
        words.append('-H "Authorization: Bearer $API_KEY"')
    if payload is not None:
        words += ["-H 'Content-Type: application/json'", "-d", shlex.quote(json.dumps(payload, ensure_ascii=False))]
    return " ".join([*words, shlex.quote(url)])


def reason(exc: BaseException) -> str:
    """Return the innermost cause of an error of requests in a few words, such as "connection refused"."""
    # An error that was raised "from None" hides what came before, as urllib3 1.26 does with its own first try.
    while (inner := exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)) is not None:
        exc = inner
    return shorten(getattr(exc, "strerror", None) or str(exc) or type(exc).__name__)


def _text(response: requests.Response) -> str:
    # JSON is UTF-8; requests would guess where no charset is declared.
    return response.content.decode("utf-8", "replace")


def _no_stream(kind: str, text: str) -> Fault:
    """What an answer means that is no stream though one was asked for: maybe an error, for which some servers say HTTP 200."""
    try:
        document = read_json(text)
    except ValueError:
        document = None
    if error_in(document) is not None:
        return error_fault(STREAM, document)
    return Fault("bad_response", f"{STREAM} is {kind}", "text/event-stream", [shorten(text)] if text.strip() else [])


def _too_long(request: str, most: int) -> Fault:
    return Fault("bad_response", f"{request} is longer than {most // 2**20} MiB", "an answer that ends")


def _timed_out(exc: Exception) -> bool:
    # While a body is read, requests reports a timeout as a ConnectionError around urllib3's own error.
    return isinstance(exc, requests.exceptions.Timeout) or "Read timed out" in str(exc)


def _raise_tls(exc: Exception) -> None:
    # An end of file in the handshake is a port forwarder in front of a server that is not there yet.
    if isinstance(exc, requests.exceptions.SSLError) and "EOF" not in str(exc):
        raise Fault("tls", f"TLS failed ({reason(exc)})", "a trusted connection") from exc
