# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a server means that does not answer: statuses, error documents and ends of streams, read into failure classes. Pure.

The words are those of vLLM, SGLang, TensorRT-LLM, Triton, llama.cpp, TGI, Ollama, Dynamo, Ray Serve, LiteLLM and of the proxies nginx,
HAProxy, Envoy, Traefik, Kong, Apache and those of clouds. A full queue and a dead engine look alike (HTTP 5xx) and are cured by opposite
means, so the words decide, and the status where they say nothing.
This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import parse_json

#: Reasons with which an answer has ended well: those of the API, and what engines have for them.
ENDED_WELL = frozenset(
    ["stop", "length", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "stop_token", "end_turn"]
    + ["max_tokens", "max_length", "limit"]
)
#: Seconds that a proxy is given to find what it is before: health may turn green there first.
UPSTREAM_PATIENCE = 15.0
# How guardrails and gateways say that it is them who will not.
_POLICY = re.compile(
    r"content[ _-]?(policy|filter|management|moderation)|guard ?rail|(violat|against)\w{0,20} .{0,200}\bpolic|safety (policy|filter|system)"
    r"|moderation|blocked by .{0,200}\bpolic|flagged as",
    re.IGNORECASE,
)
_POLICY_REASON = re.compile(
    r"filter|polic|safety|refus|guard|recitation|blocked|moderat|prohibited|spii", re.IGNORECASE
)
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,120}\b(does not exist|not (exist|found|loaded|served|available)|unknown)|(unknown|invalid|no such) model|model_not_found",
    re.IGNORECASE,
)
# The engine itself says that it is over. A proxy may say this with any status.
_DEAD = re.compile(
    r"engine_?dead|engine( ?core)?( proc\w{0,20})?( loop)? (is |has |was )?(dead|died|not running|not alive|stopped|crashed|unhealthy)"
    r"|enginecore encountered|background loop (has errored|is (not running|stopped))|worker\w{0,20} (has |have )?(died|is dead|crashed)"
    r"|cuda error|nccl error|illegal memory access|device-side assert|out of memory",
    re.IGNORECASE,
)
_OVERLOAD = re.compile(
    r"over ?load|too[ _]many[ _]([\w-]{1,20}[ _]){0,2}(requests|connections)|\brate[ _-]?limit|throttl|quota|queue ?full|back-?pressure"
    r"|\bqueues?\b.{0,40}\b(is |are )?(full|exceed\w{0,9}|overflow\w{0,9}|limit|timed? ?out|timeout)"
    r"|(exceed\w{0,9}|full|maximum|max|timed? ?out in)\b.{0,30}\bqueue"
    r"|max(imum)? (number of )?(pending|queued|concurrent|waiting)|\b(busy|at (full |max\w{0,9} )?capacity)\b|capacity (is )?(exceeded|reached)"
    r"|no (free |idle )?slots?( (is|are))? available|concurren\w{1,9} limit|(reset reason|details?):? overflow|high demand|retry later",
    re.IGNORECASE,
)
_LOADING = re.compile(
    r"\bloading\b|still (starting|initiali[sz]ing|loading)|not (yet )?ready|warming up|is (starting|initiali[sz]ing)",
    re.IGNORECASE,
)
# A proxy that has nothing behind it.
_UPSTREAM = re.compile(
    r"bad gateway|no (live|healthy) upstream|upstream (connect|server|request) |no server is available|no available server|backend fetch failed"
    r"|\bno (available |healthy |ready |running |live ){0,5}(workers?|backends?|endpoints?|instances?|targets?|upstreams?|replicas?|peers?|hosts?)\b"
    r"|failure to get a peer|connection ?(error|refused|reset)|connect call failed|(cannot|can't|could not|unable to|failed to) connect"
    r"|connection attempts failed|no responders|name or service not known|no route to host|host is (unreachable|down)|proxy error"
    r"|from the upstream|gateway time-?out|maintenance downtime|temporarily unable to service",
    re.IGNORECASE,
)
# Only its limits (limit_req, limit_conn) make nginx itself say this; with nothing behind it says 502.
_NGINX_LIMIT = re.compile(
    r"503 service (temporarily )?unavailable.{0,2000}<center>(nginx|openresty)", re.IGNORECASE | re.DOTALL
)
# What a page does not show; one that is never closed hides nothing.
_HIDDEN = tuple(
    (re.compile(rf"<{name}\b", re.IGNORECASE), re.compile(rf"</{name}>", re.IGNORECASE))
    for name in ("head", "style", "script")
)
_TAG = re.compile(r"<[^<>]*>")
#: So much of a page is looked at. Those of proxies have a few hundred bytes.
_PAGE = 65536
_SOON = re.compile(
    r"(?:try again|retry)(?: after| in)?:? {0,9}(\d{1,9}(?:\.\d{1,9})?) {0,9}(ms|milliseconds?|m|min|minutes?|s|sec|seconds?)?\b",
    re.IGNORECASE,
)
_SYMBOLS = (
    (re.compile(r"rate_?limit|over_?load|throttl|too_?many|quota|resource_?exhausted", re.IGNORECASE), 429),
    (re.compile(r"auth|api_?key|permission|forbidden", re.IGNORECASE), 401),
    (re.compile(r"not_?found", re.IGNORECASE), 404),
    (
        re.compile(r"context_length|invalid|bad_?request|validation|unprocessable|content_|too_large", re.IGNORECASE),
        400,
    ),
    (re.compile(r"unavailable", re.IGNORECASE), 503),
)
_WORDS = ("error", "errors", "message", "detail", "error_message", "error_msg", "msg", "reason", "title")
_NUMBERS = ("code", "status_code", "status", "http_status_code", "http_code", "error_code")
_CURE_UPSTREAM = "Start the service that the proxy stands before, or correct the proxy's address of it."
_CURE_TIMEOUT = (
    "See whether the engine hangs (its journal, /v1/metrics), or takes longer than the proxy before it waits."
)


def error_text(body: str) -> str:
    """Return the server's own words from an error body: OpenAI, vLLM, FastAPI and other shapes, else its beginning."""
    try:
        parsed = parse_json(body)
    except ValueError:
        return shorten(_page_text(body[:_PAGE]) if body.lstrip()[:1] == "<" else body) or shorten(body)
    return shorten(words_of(parsed))


def _page_text(page: str) -> str:
    """What a page of a proxy shows."""
    for opens, closes in _HIDDEN:
        parts, place = [], 0
        while True:
            begin = opens.search(page, place)
            end = closes.search(page, begin.end()) if begin else None
            if not begin or not end:
                break
            parts.append(page[place : begin.start()])
            place = end.end()
        page = " ".join([*parts, page[place:]])
    text = _TAG.sub(" ", page)
    try:
        return html.unescape(text)
    except ValueError:
        # A character by a number of thousands of digits.
        return text


def words_of(document: Any) -> str:
    """Return the words of an error document, or itself."""
    if isinstance(document, str):
        return document
    if isinstance(document, list) and document:
        return "; ".join(words_of(item) for item in document[:3])
    if not isinstance(document, Mapping):
        return json.dumps(document)
    if document.get("msg") and isinstance(document.get("loc"), list):
        return f"{'.'.join(map(str, document['loc']))}: {document['msg']}"
    for key in (*_WORDS, *(("text",) if "error_code" in document else ())):
        inner = document.get(key)
        if inner and not isinstance(inner, (bool, int, float)):
            return words_of(inner)
    return json.dumps(document)


def error_in(document: Any) -> Any:
    """Return the error that a parsed answer or chunk is or holds, in any of the shapes; None where it is none."""
    if not isinstance(document, Mapping):
        return None
    if document.get("error"):
        return document["error"]
    if "error" in (document.get("object"), document.get("type")):
        return document
    choices = document.get("choices")
    if isinstance(choices, list):
        # Gateways put the error of another server where its answer would be.
        return next((one["error"] for one in choices if isinstance(one, Mapping) and one.get("error")), None)
    if any(document.get(key) for key in ("error_code", "error_type", "error_message", "error_msg", "errors", "detail")):
        return document
    number = _status_in(document)
    told = any(isinstance(document.get(key), str) for key in ("message", "msg"))
    return document if told and (number or document.get("type")) else None


def retry_after(headers: Mapping[str, str] | None, said: str = "") -> float | None:
    """Return the seconds after which a server wants to be asked again; None where it does not tell.

    headers: of the answer, in any case. A date counts from the server's own, since clocks differ.
    """
    fields = {name.lower(): value.strip() for name, value in (headers or {}).items()}
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = fields.get(name, "")
        if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
            return float(value) * factor
    try:
        then = parsedate_to_datetime(fields["retry-after"])
        now = parsedate_to_datetime(fields["date"]) if "date" in fields else datetime.now(timezone.utc)
        return max(0.0, (then - now).total_seconds())
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        match = _SOON.search(said)
    if not match:
        return None
    unit = (match[2] or "s").lower()
    return float(match[1]) * (0.001 if unit.startswith(("ms", "mil")) else 60.0 if unit.startswith("m") else 1.0)


def refusal(
    status: int,
    said: str,
    seen: str,
    kinds: str = "",
    headers: Mapping[str, str] | None = None,
    page: str = "",
    wanted: str = "HTTP 200",
    evidence: Sequence[str] | None = None,
) -> Fault:
    """Return what a refusal means: its class, whether waiting may help, and its cure.

    said: the server's words. seen: begins the message. kinds: symbols that stand beside the words. page: the whole body.
    """
    wait = retry_after(headers, said)
    failure_class, patience, more, remedy = _meaning(status, said, f"{said} {kinds}", page, wait is not None)
    shown = ([said] if said else []) if evidence is None else evidence
    return Fault(failure_class, seen + more, wanted, shown, remedy=remedy, patience=patience, retry_after=wait)


def _meaning(status: int, said: str, text: str, page: str, returns: bool) -> tuple[str, float, str, str]:
    """Class, patience, further words and own cure of a refusal. returns: whether the server says when to come back."""
    if status in (400, 403, 422, 451) and _POLICY.search(text):
        return "refused_by_policy", 0.0, "", ""
    if status in (401, 403, 407):
        return "auth", 0.0, "", ""
    if (status == 404 and "model" in said.lower()) or (status in (400, 404, 422) and _NO_MODEL.search(text)):
        return "wrong_model", 0.0, "", ""
    if status in (429, 529) or (status == 408 and _OVERLOAD.search(text)):
        return "overloaded", math.inf, "", ""
    if status < 500:
        return "slow" if status == 408 else "bad_response", 0.0, "", ""
    return _server_error(status, said, text, page, returns)


def _server_error(status: int, said: str, text: str, page: str, returns: bool) -> tuple[str, float, str, str]:
    if _DEAD.search(text):
        return "dead_engine", 0.0, "", ""
    if _OVERLOAD.search(text) or (status == 503 and _NGINX_LIMIT.search(page)):
        return "overloaded", math.inf, "", ""
    if status == 503 and _LOADING.search(text):
        return "starting", math.inf, "", ""
    # HAProxy has one page for "nothing behind" and for "queue full"; who tells a time to come back knows of one.
    if status == 503 and returns:
        return "overloaded", math.inf, "", ""
    if status in (504, 524):
        return "dead_engine", UPSTREAM_PATIENCE, ": a proxy that waited too long for what is behind it", _CURE_TIMEOUT
    # An engine answers in JSON; a page, or nothing, is a proxy's.
    bare = status == 503 and (not said or page.lstrip().startswith("<"))
    if bare or status == 502 or 520 <= status <= 527 or _UPSTREAM.search(text):
        return "dead_engine", UPSTREAM_PATIENCE, ": a proxy that reaches nothing behind it", _CURE_UPSTREAM
    return "dead_engine", UPSTREAM_PATIENCE if status == 503 else 0.0, "", ""


def http_fault(request: str, status: int, body: str, headers: Mapping[str, str] | None = None) -> Fault | None:
    """Judge the status of an answer given after the endpoint was ready; None for 200.

    request: str such as "GET /v1/models". body: str, the text of the answer. headers: of the answer.
    """
    if status == 200:
        return None
    said = error_text(body)
    seen = f"HTTP {status} from {request}" + (f" ({said})" if said else "")
    try:
        kinds = _kinds(parse_json(body))
    except ValueError:
        kinds = ""
    return refusal(status, said, seen, kinds, headers, body[:_PAGE])


def error_fault(request: str, document: Any, status: int = 0) -> Fault:
    """Return what an error document means that came where an answer, or more of one, should be.

    document: the whole of it, parsed or a text. status: what is known of it besides; an error that tells none is the server's own.
    """
    error = error_in(document)
    error = document if error is None else error
    words, kinds = words_of(error), _kinds(document)
    number = _status_in(error) or _status_in(document) or status
    if not number:
        number = next((code for pattern, code in _SYMBOLS if pattern.search(kinds)), 500)
    whole = (document if isinstance(document, str) else json.dumps(document))[:_PAGE]
    seen = f"{request} broke off: {shorten(words)}"
    return refusal(
        number, shorten(words), seen, kinds, wanted="a complete answer", evidence=[shorten(whole, 500)], page=whole
    )


def end_fault(request: str, reason: Any, said: str = "", done: bool = True) -> Fault | None:
    """Return why a stream that has ended is no whole answer; None where it is one.

    reason: its finish_reason, a text, or what SGLang writes in its place. said: what came last. done: whether [DONE] was said.
    """
    if isinstance(reason, Mapping):
        if reason.get("message"):
            return error_fault(request, {"error": dict(reason)})
        reason = reason.get("type")
    if isinstance(reason, str) and reason.lower() in ENDED_WELL:
        return None
    words = f" ({shorten(said)})" if said.strip() else ""
    if isinstance(reason, str) and _POLICY_REASON.search(reason):
        return Fault("refused_by_policy", f"{request} was refused{words}, finish_reason {reason}", "an answer")
    if reason:
        return Fault(
            "incomplete", f"{request} was given up{words}, finish_reason {shorten(str(reason), 80)}", "a whole answer"
        )
    end = "ended without finish_reason" if done else "ended without [DONE] and without finish_reason"
    return Fault("incomplete", f"{request} {end}", "a complete answer")


def _status_in(document: Any) -> int:
    """The HTTP status that a document tells, as a number or a text, with two digits more for the detail or without; 0 for none."""
    if not isinstance(document, Mapping):
        return 0
    for key in _NUMBERS:
        value = document.get(key)
        if (
            isinstance(value, (int, str))
            and not isinstance(value, bool)
            and re.fullmatch(r"[45]\d\d(\d\d)?", str(value))
        ):
            return int(str(value)[:3])
    return 0


def _kinds(document: Any) -> str:
    """The symbols of an error document: types and codes that are words."""
    found = []
    for part in (document, error_in(document)):
        if isinstance(part, Mapping):
            found += [str(part[key])[:200] for key in ("type", "code", "error_type", "status") if part.get(key)]
    return " ".join(word for word in found if not word.isdigit())
