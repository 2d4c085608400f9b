# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One request of a benchmark: what its streamed answer was, and whether it was one. No network, no clock.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._chat import STREAM, event_fault, parse_json
from ansible_collections.baremetal.nim.plugins.module_utils._events import Event, sse_events
from ansible_collections.baremetal.nim.plugins.module_utils._expect import BURST, at_one_blow
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import parse_json as parse_document
from ansible_collections.baremetal.nim.plugins.module_utils._refusal import end_fault, error_fault, error_in

# Of an answer that is no stream, so much is kept to see what it says.
_KEPT = 4096
#: Most bytes of an event. What is read with each of its parts again must not be long.
_MOST_OF_AN_EVENT = 2**20


def count_of(value: Any) -> int | None:
    """Return a count of tokens as servers write it: a whole number, maybe as a float or a text; None for what is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 30:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # More tokens than that were never made; sums of them are no numbers any more.
    return value if isinstance(value, int) and 0 <= value < 10**15 else None


def output_of(delta: Mapping[str, Any]) -> Any:
    """Return the output in a piece of an answer, whatever kind it is of; something false where there is none."""
    found = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    if found:
        return found
    calls = delta.get("tool_calls")
    for call in (*(calls if isinstance(calls, list) else ()), {"function": delta.get("function_call")}):
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and (function.get("name") or function.get("arguments")):
            return function
    return None


class Record:
    """One request: times by one monotonic clock, counts, and what went wrong."""

    __slots__ = (
        "chunks",
        "done",
        "error",
        "fault",
        "finish",
        "first",
        "gaps",
        "last",
        "start",
        "status",
        "text",
        "usage",
    )

    def __init__(self, start: float) -> None:
        self.start = start
        self.first: float | None = None
        self.last: float | None = None
        self.chunks = 0
        # Seconds between chunks with output.
        self.gaps = array("d")
        self.usage: Mapping[str, Any] | None = None
        self.done = False
        # Why it ended, by the server's word.
        self.finish: Any = None
        # HTTP status; 0 where none came.
        self.status = 0
        # Class of the failure, its words, and the whole of it.
        self.error: str | None = None
        self.text = ""
        self.fault: Fault | None = None

    def fail(self, fault: Fault) -> None:
        """Take down what went wrong."""
        self.error, self.text, self.fault = fault.failure_class, shorten(str(fault)), fault

    @property
    def counted(self) -> int | None:
        """Tokens of the answer as the server counted them; None where it did not."""
        count = count_of((self.usage or {}).get("completion_tokens"))
        # No tokens in an answer that has some: not counted.
        return count or (count if not self.chunks else None)

    @property
    def output_tokens(self) -> int:
        """As the server counted; without its word, the chunks."""
        count = self.counted
        return self.chunks if count is None else count

    @property
    def prompt_tokens(self) -> int | None:
        """As the server counted; no prompt is empty."""
        return count_of((self.usage or {}).get("prompt_tokens")) or None

    @property
    def lumps(self) -> int:
        """In how many blows the output came: what is read together is one."""
        return 0 if self.first is None else 1 + sum(1 for gap in self.gaps if gap >= BURST)

    @property
    def ttft_ms(self) -> float:
        """Milliseconds to the first output; 0 where none came."""
        return 0.0 if self.first is None else (self.first - self.start) * 1000

    @property
    def kept_back(self) -> bool:
        """Whether an answer that is long enough to tell came all at once."""
        return at_one_blow(self.chunks, self.lumps, (self.last or 0.0) - (self.first or 0.0))

    def metrics(self) -> dict[str, float]:
        """The metrics of one good request; what is between tokens only where two tokens or more came one after another."""
        if self.first is None or self.last is None:
            return {}
        found = {"ttft_ms": self.ttft_ms, "e2e_ms": (self.last - self.start) * 1000}
        if self.output_tokens >= 2 and self.lumps >= 2 and not self.kept_back:
            itl = (found["e2e_ms"] - found["ttft_ms"]) / (self.output_tokens - 1)
            found.update(itl_ms=itl, tpot_ms=itl, tokens_per_s_user=1000 / itl)
        return found


class Reading:
    """Reads the body of one streamed answer into a record, as it comes. Raises Fault for an error in the stream."""

    __slots__ = ("_beginning", "_pending", "_refusal", "_said", "record")

    def __init__(self, record: Record) -> None:
        self.record = record
        self._pending = b""
        self._beginning: bytes | None = b""
        self._said = ""
        self._refusal = ""

    def feed(self, data: bytes, at: float) -> None:
        """Take bytes that came at a time. The collection's parser gets whole events, so that each has its own time."""
        if self._beginning is not None:
            self._beginning = (self._beginning + data)[:_KEPT]
        if self._pending:
            data = self._pending + data
        elif data[:6] == b"data: " and data[-2:] == b"\n\n" and data.count(b"\n") == 2 and b"\r" not in data:
            # Nearly all that comes is one event of one line; the parser takes as long for it as for all else.
            self._event(Event(data[6:-2].decode("utf-8", "replace")), at)
            return
        line_feeds, both = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        cut = max(line_feeds + 2 if line_feeds >= 0 else 0, both + 4 if both >= 0 else 0)
        self._pending = data[cut:]
        if len(self._pending) > _MOST_OF_AN_EVENT:
            raise Fault(
                "bad_response", f"an event of {STREAM} is longer than {_MOST_OF_AN_EVENT // 2**20} MiB", "one that ends"
            )
        if cut:
            for event in sse_events((data[:cut],)):
                self._event(event, at)

    def end(self, at: float) -> None:
        """The body has ended: judge the whole."""
        for event in sse_events((self._pending,)):
            self._event(event, at)
        record = self.record
        if self._beginning is not None:
            raise self._no_stream(self._beginning)
        if self._refusal:
            raise Fault("refused_by_policy", f"{STREAM} was refused ({shorten(self._refusal)})", "an answer")
        # Not every server says [DONE]; one that has told why it ended is whole without.
        fault = end_fault(STREAM, record.finish, self._said, record.done)
        if fault:
            raise fault
        if record.first is None:
            raise Fault("bad_response", f"{STREAM} had no content", "a chat.completion.chunk with content")

    def _no_stream(self, beginning: bytes) -> Fault:
        text = beginning.decode("utf-8", "replace")
        try:
            document = parse_document(text)
        except ValueError:
            document = None
        if error_in(document) is not None:
            return error_fault(STREAM, document)
        said = f" ({shorten(text, 80)})" if text.strip() else ""
        return Fault("incomplete", f"{STREAM} ended without [DONE] and without an event{said}", "a complete answer")

    def _event(self, event: Event, at: float) -> None:
        self._beginning = None
        if event.is_error:
            raise event_fault(event)
        data = (event.data or "").strip()
        if data == "[DONE]":
            self.record.done = True
        elif data:
            self._chunk(data, at)

    def _chunk(self, data: str, at: float) -> None:
        record, produced = self.record, False
        try:
            chunk = json.loads(data)
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                output = output_of(delta)
                if output:
                    produced = True
                    self._said = output if isinstance(output, str) else ""
                record.finish = choice.get("finish_reason") or record.finish
                refusal = delta.get("refusal")
                if refusal:
                    self._refusal += refusal
            usage = chunk.get("usage")
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
            parse_json(STREAM, data)
            raise Fault("bad_response", f"{STREAM} has {shorten(data, 80)!r}", "a chat.completion.chunk") from None
        # A word that is in most errors, and in few answers, saves looking for one in each piece.
        if ("choices" not in chunk or "error" in data) and error_in(chunk) is not None:
            raise error_fault(STREAM, chunk)
        if isinstance(usage, Mapping):
            record.usage = usage
        if produced:
            if record.first is None:
                record.first = at
            elif record.last is not None:
                record.gaps.append(at - record.last)
            record.last = at
            record.chunks += 1
