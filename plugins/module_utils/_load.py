# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load of a benchmark: an HTTP/1.1 client for many streams at a time, closed and open loop.

Threads with requests take several times the processor time for each event of a stream (docs/benchmark.md has numbers),
and that time would be in every latency; so this is asyncio on sockets, and nothing more of HTTP than such answers need.
This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import Prompts, Reading, Record
from ansible_collections.baremetal.nim.plugins.module_utils._chat import (
    CHAT_PATH,
    choose_model,
    http_fault,
    parse_json,
    read_models,
)
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten

_TICK = 0.25
_HEAD_LIMIT = 65536
# A server that answers nobody any more ends its step after so many failures in a row, or twice the requests in flight.
_GIVE_UP = 10
# A client that computes all the time measures itself.
_BUSY = 90.0


class Broken(Exception):
    """The connection ended before the answer did. begun: whether anything of the answer had come."""

    def __init__(self, words: str, begun: bool) -> None:
        super().__init__(words)
        self.begun = begun


class _Answer:
    """What becomes of one request: status, body, and a future that ends with it."""

    __slots__ = ("body", "future", "keep", "kind", "reading", "status")

    def __init__(self, future: asyncio.Future[None], reading: Reading | None) -> None:
        self.future = future
        self.reading = reading
        self.status = 0
        self.kind = ""
        self.keep = True
        self.body = b""

    def data(self, data: bytes, at: float) -> None:
        """Take a part of the body."""
        if self.reading is not None and self.status == 200:
            self.reading.feed(data, at)
        else:
            self.body += data


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. Each read is stamped before it is looked at."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._transport: asyncio.Transport | None = None
        self._answer: _Answer | None = None
        self._buffer = b""
        self._in_body = False
        # Bytes of the body to come; None for chunks, -1 for all until the connection ends.
        self._left: int | None = None
        self.used = False

    @property
    def open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, answer: _Answer) -> None:
        """Send a request; its answer's future ends when all has come."""
        self._answer, self._buffer, self._in_body = answer, b"", False
        if self._transport is None or self._transport.is_closing():
            self.connection_lost(None)
            return
        self._transport.write(request)

    def close(self) -> None:
        """Break off."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has gone."""
        answer, self._answer = self._answer, None
        if answer is None or answer.future.done():
            return
        if self._in_body and self._left == -1 and exc is None:
            try:
                self._finish(answer, self._now())
            except Fault as fault:
                answer.future.set_exception(fault)
            return
        begun = self._in_body or bool(self._buffer)
        answer.future.set_exception(Broken(shorten(str(exc)) if exc else "connection closed", begun))

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        at = self._now()
        answer = self._answer
        if answer is None:
            # Nobody asked: this connection is of no use any more.
            self.close()
            return
        try:
            self._take(data, answer, at)
        except (Fault, ValueError) as exc:
            self.close()
            if not answer.future.done():
                answer.future.set_exception(exc)

    def _take(self, data: bytes, answer: _Answer, at: float) -> None:
        if not self._in_body:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_LIMIT:
                    raise Fault("bad_response", "the head of the answer has no end", "HTTP/1.1")
                return
            head, data, self._buffer = self._buffer[:end], self._buffer[end + 4 :], b""
            self._head(head, answer)
            if not self._in_body:
                # An interim answer (1xx) came before the real one.
                self._take(data, answer, at)
                return
        if self._left is None:
            if self._chunks(data, answer, at):
                self._finish(answer, at)
            return
        if data:
            answer.data(data if self._left < 0 else data[: self._left], at)
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(answer, at)

    def _head(self, head: bytes, answer: _Answer) -> None:
        status, *lines = head.decode("latin-1").split("\r\n")
        words = status.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise Fault("bad_response", f"the answer begins with {shorten(status, 80)!r}", "HTTP/1.1")
        if words[1].startswith("1"):
            return
        fields = {}
        for line in lines:
            name, _colon, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
        answer.status, answer.kind = int(words[1]), fields.get("content-type", "untyped")
        connection = fields.get("connection", "").lower()
        answer.keep = "close" not in connection and (words[0] != "HTTP/1.0" or "keep-alive" in connection)
        if "chunked" in fields.get("transfer-encoding", "").lower():
            self._left = None
        elif fields.get("content-length", "").isdigit():
            self._left = int(fields["content-length"])
        else:
            self._left, answer.keep = -1, False
        self._in_body = True

    def _chunks(self, data: bytes, answer: _Answer, at: float) -> bool:
        """Pass on the chunks that have come whole; whether the last one was among them."""
        buffer = self._buffer + data if self._buffer else data
        place, parts, ended = 0, [], False
        while True:
            line = buffer.find(b"\r\n", place)
            if line < 0:
                break
            size = int(buffer[place:line].partition(b";")[0], 16)
            if size == 0:
                # Trailers may follow; an empty line ends them.
                ended = buffer.find(b"\r\n\r\n", line) >= 0
                break
            after = line + 2 + size
            if len(buffer) < after + 2:
                break
            parts.append(buffer[line + 2 : after])
            place = after + 2
        self._buffer = buffer[place:]
        if parts:
            answer.data(parts[0] if len(parts) == 1 else b"".join(parts), at)
        return ended

    def _finish(self, answer: _Answer, at: float) -> None:
        self._answer = None
        if answer.reading is not None and answer.status == 200:
            answer.reading.end(at)
        if not answer.keep:
            self.close()
        if not answer.future.done():
            answer.future.set_result(None)


class Client:
    """Asks one endpoint, over connections that are kept.

    options: of the module. Raises Fault from what asks once; stream() writes failures into its record.
    """

    def __init__(self, options: Mapping[str, Any], base: str, now: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(base)
        self.base = base
        self._now = now
        self._timeout = float(options["request_timeout"])
        self._host, self._tls = parts.hostname or "", _tls(options) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        fields = [f"Host: {parts.netloc}", "User-Agent: baremetal.nim", "Accept: */*"]
        if options["api_key"]:
            fields.append(f"Authorization: Bearer {options['api_key']}")
        self._fields = "\r\n".join(fields)
        self._post = self._head("POST", CHAT_PATH) + b"\r\nContent-Type: application/json\r\nContent-Length: "
        self._idle: list[_Connection] = []

    def _head(self, method: str, path: str) -> bytes:
        return f"{method} {self._path}{path} HTTP/1.1\r\n{self._fields}".encode("latin-1")

    def close(self) -> None:
        """Close what is kept open."""
        while self._idle:
            self._idle.pop().close()

    async def models(self) -> list[str]:
        """Return the ids that /v1/models lists."""
        request = "GET /v1/models"
        with _faults(request, self.base, self._timeout):
            answer = await self._exchange(self._head("GET", "/v1/models") + b"\r\n\r\n", None)
        body = answer.body.decode("utf-8", "replace")
        fault = http_fault(request, answer.status, body)
        if fault:
            raise fault
        return list(read_models(parse_json(request, body)))

    async def stream(self, body: Mapping[str, Any], record: Record | None = None) -> Record:
        """Send one request. What goes wrong is in the record: class and words."""
        data = json.dumps(body).encode()
        request = b"%b%d\r\n\r\n%b" % (self._post, len(data), data)
        record = record or Record(self._now())
        try:
            with _faults(f"POST {CHAT_PATH}", self.base, self._timeout):
                answer = await self._exchange(request, Reading(record))
                if answer.status != 200:
                    _refuse(answer)
        except Fault as fault:
            record.error, record.text = fault.failure_class, shorten(str(fault))
        return record

    async def _exchange(self, request: bytes, reading: Reading | None) -> _Answer:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        while True:
            connection = await self._connection(end)
            answer = _Answer(loop.create_future(), reading)
            timer = loop.call_at(end, _expire, answer)
            stale = connection.used
            connection.used = True
            connection.send(request, answer)
            try:
                await answer.future
            except Broken as exc:
                # A server may close an idle connection at the very moment that it is used again.
                if not stale or exc.begun:
                    raise
                continue
            finally:
                timer.cancel()
                if answer.future.cancelled() or answer.future.exception() is not None:
                    connection.close()
                elif answer.keep and connection.open:
                    self._idle.append(connection)
            return answer

    async def _connection(self, end: float) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        opening = loop.create_connection(
            lambda: _Connection(self._now), self._host, self._port, ssl=self._tls, happy_eyeballs_delay=0.25
        )
        return (await asyncio.wait_for(opening, max(0.001, end - loop.time())))[1]


def _expire(answer: _Answer) -> None:
    if not answer.future.done():
        answer.future.set_exception(asyncio.TimeoutError())


def _refuse(answer: _Answer) -> None:
    body = answer.body.decode("utf-8", "replace")
    fault = http_fault(f"POST {CHAT_PATH}", answer.status, body)
    if fault and answer.status == 429:
        fault.failure_class = "overloaded"
    if fault:
        raise fault


@contextlib.contextmanager
def _faults(request: str, base: str, timeout: float) -> Iterator[None]:
    """Turn errors of the network into Fault."""
    try:
        yield
    except Fault:
        raise
    except asyncio.TimeoutError:
        raise Fault("slow", f"no whole answer to {request} within {timeout:g} s", "a completion") from None
    except Broken as exc:
        raise Fault("dead_engine", f"{request} broke off ({exc})", "a whole answer") from None
    except ssl.SSLError as exc:
        raise Fault("tls", f"TLS failed ({shorten(exc.reason or str(exc))})", "a trusted connection") from None
    except OSError as exc:
        # asyncio puts "Connect call failed" in the place of the system's own words; a resolver's errors are below 0.
        words = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else shorten(exc.strerror or str(exc))
        raise Fault("unreachable", f"no connection to {base} ({words})", "an endpoint that listens") from None
    except ValueError as exc:
        raise Fault("bad_response", f"{request} answered no HTTP ({shorten(str(exc))})", "HTTP/1.1") from None


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    path = options["ca_path"]
    try:
        is_directory = bool(path) and os.path.isdir(path)
        context = ssl.create_default_context(
            cafile=None if is_directory else path, capath=path if is_directory else None
        )
        if not options["validate_certs"]:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if options["client_cert"]:
            context.load_cert_chain(options["client_cert"], options["client_key"])
    except (OSError, ssl.SSLError) as exc:
        raise Fault("tls", f"the certificates cannot be used ({shorten(str(exc))})", "PEM files that fit") from None
    return context


class Run:
    """One benchmark of one endpoint.

    options: of the module, sound. tick: called a few times a second with phase and detail; what it raises ends the run.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        base: str,
        tick: Callable[[str, str], None] = lambda _phase, _detail: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._base = base
        self._tick = tick
        self._now = now
        self._prompts = Prompts(options["prompts"], options["seed"])
        self._words = options["input_tokens"]
        self._fixed = bool(options["fixed_output"])
        self._model = ""
        self._client: Client | None = None
        self.warnings: list[str] = []

    def run(self) -> dict[str, Any]:
        """Return model, workload and steps. Raises Fault when the endpoint cannot be benchmarked at all."""
        return asyncio.run(self._bounded())

    async def _bounded(self) -> dict[str, Any]:
        task = asyncio.ensure_future(self._all())
        done, _pending = await asyncio.wait({task}, timeout=self._options["timeout"])
        if not done:
            task.cancel()
            await asyncio.wait({task})
            limit = self._options["timeout"]
            raise Fault(
                "slow", f"the benchmark did not end within {limit:g} s", "its end: raise timeout, or ask for less"
            )
        return task.result()

    async def _all(self) -> dict[str, Any]:
        options = self._options
        self._client = client = Client(options, self._base, self._now)
        try:
            self._tick("preparing", "asking for the model")
            self._model = choose_model(options["model"], await client.models())
            await self._fit()
            steps = []
            for number, level in enumerate(_benchmark.levels(options)):
                steps.append(await self._step(level, options["seed"] + number))
                if steps[-1]["aborted"]:
                    break
        finally:
            client.close()
        if options["prompts"] is None and all(step["input_tokens_mean"] is None for step in steps):
            self.warnings.append(
                "The server does not count tokens: those of the prompts are guessed, one for each word."
            )
        return {
            "model": self._model,
            "workload": {
                "input_tokens": None if options["prompts"] else options["input_tokens"],
                "output_tokens": options["output_tokens"],
                "prompts": len(options["prompts"] or []),
                "fixed_output": self._fixed,
                "temperature": options["temperature"],
                "seed": options["seed"],
            },
            "steps": steps,
        }

    async def _ask(self, words: int, max_tokens: int) -> Record:
        if self._client is None:
            raise RuntimeError("not running")
        text = self._prompts.text(words)
        body = _benchmark.payload(self._options, self._model, text, max_tokens, self._fixed)
        return await self._client.stream(body)

    async def _fit(self) -> None:
        """Learn what the server makes of the request: whether it takes ignore_eos, and how many tokens a word is."""
        one = await self._ask(16, 1)
        # A strict server refuses fields that it does not know.
        if self._fixed and one.error == "bad_response" and "HTTP 4" in one.text:
            self._fixed = False
            one = await self._ask(16, 1)
            if one.error is None:
                self.warnings.append(
                    "The server refuses ignore_eos and min_tokens: answers end where the model ends them (fixed_output)."
                )
        if one.error is not None and not one.done:
            raise Fault(one.error, one.text, "an answer to a first request", [one.text])
        if self._options["prompts"] is None and one.prompt_tokens is not None:
            more = max(64, self._options["input_tokens"])
            two = await self._ask(more, 1)
            if two.prompt_tokens is not None:
                self._words = _benchmark.words_for(
                    self._options["input_tokens"], (16, one.prompt_tokens), (more, two.prompt_tokens)
                )

    async def _step(self, level: float, seed: int) -> dict[str, Any]:
        options = self._options
        is_open = options["request_rate"] is not None
        facts: dict[str, Any] = {"load": "open" if is_open else "closed", "level": level}
        label = _benchmark.label_of(facts)
        warmup = options["warmup_requests"]
        if warmup is None:
            warmup = 1 if is_open else int(level)
        records: list[Record] = []
        facts["aborted"] = False
        if warmup:
            ticking = asyncio.ensure_future(self._ticks(f"{label} warm-up", records, []))
            try:
                facts["aborted"] = await self._closed(
                    min(warmup, options["max_in_flight"] if is_open else int(level)), warmup, None, records
                )
            finally:
                await _stop(ticking)
        late: list[float] = []
        lags: list[float] = []
        busy = 0.0
        if not facts["aborted"]:
            records = []
            duration = options["duration"]
            if duration is None and options["requests"] is None:
                duration = _benchmark.DEFAULT_DURATION
            ticking = asyncio.ensure_future(self._ticks(label, records, lags))
            before, begin = time.process_time(), self._now()
            with _no_collection():
                try:
                    if is_open:
                        run = self._open(level, options["requests"], duration, seed, records, late)
                    else:
                        run = self._closed(int(level), options["requests"], duration, records)
                    facts["aborted"] = await _first_of(run, ticking)
                finally:
                    await _stop(ticking)
            busy = (time.process_time() - before) / max(self._now() - begin, 0.001) * 100
        facts.update(_benchmark.summarize(records, options["slo"] or {}))
        facts["client_cpu_percent"] = round(busy, 1)
        facts["client_lag_ms"] = _benchmark.statistics(lag * 1000 for lag in lags)
        facts["late_ms"] = _benchmark.statistics(lag * 1000 for lag in late)
        if busy > _BUSY:
            self.warnings.append(
                f"{label}: the client was busy {busy:.0f} % of the time: the numbers may be its own, not the server's."
            )
        if is_open and facts["late_ms"] and facts["late_ms"]["p99"] > 100:
            self.warnings.append(
                f"{label}: requests were sent up to {facts['late_ms']['max']:.0f} ms late (max_in_flight, or a busy client)."
            )
        if facts["completed"] and facts["tokens_from"] == "chunks":
            self.warnings.append(f"{label}: the server sends no usage: tokens are counted as chunks with content.")
        return facts

    async def _closed(self, level: int, count: int | None, duration: float | None, records: list[Record]) -> bool:
        """Keep so many requests in flight; whether that was given up."""
        end = None if duration is None else self._now() + duration
        state = {"sent": 0, "failed": 0}
        give_up = max(_GIVE_UP, 2 * level)

        async def worker() -> None:
            while (
                (count is None or state["sent"] < count)
                and (end is None or self._now() < end)
                and state["failed"] < give_up
            ):
                state["sent"] += 1
                record = await self._ask(self._words, self._options["output_tokens"])
                records.append(record)
                state["failed"] = state["failed"] + 1 if record.error else 0
                if record.error:
                    # Whoever refuses is not to be hammered.
                    await asyncio.sleep(min(0.5, 0.02 * state["failed"]))

        await _all_of([worker() for _number in range(level if count is None else min(level, count))])
        return state["failed"] >= give_up

    async def _open(
        self,
        rate: float,
        count: int | None,
        duration: float | None,
        seed: int,
        records: list[Record],
        late: list[float],
    ) -> bool:
        """Send requests when they are due, whatever becomes of the ones before; whether that was given up."""
        begin = self._now()
        limit = self._options["max_in_flight"]
        running: set[asyncio.Task[None]] = set()
        failed = [0]
        give_up = max(_GIVE_UP, int(2 * rate))

        async def one() -> None:
            record = await self._ask(self._words, self._options["output_tokens"])
            records.append(record)
            failed[0] = failed[0] + 1 if record.error else 0

        try:
            for number, due in enumerate(_benchmark.arrivals(rate, seed)):
                if (count is not None and number >= count) or (duration is not None and due > duration):
                    break
                wait = begin + due - self._now()
                if wait > 0:
                    await asyncio.sleep(wait)
                while len(running) >= limit:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if failed[0] >= give_up:
                    break
                late.append(max(0.0, self._now() - begin - due))
                task = asyncio.ensure_future(one())
                running.add(task)
                task.add_done_callback(running.discard)
            await _all_of(list(running))
        finally:
            for task in running:
                task.cancel()
        return failed[0] >= give_up

    async def _ticks(self, label: str, records: list[Record], lags: list[float]) -> None:
        begin = self._now()
        while True:
            self._tick(label, _benchmark.note_of(records, self._now() - begin))
            before = self._now()
            await asyncio.sleep(_TICK)
            lags.append(max(0.0, self._now() - before - _TICK))


async def _all_of(jobs: list[Any]) -> None:
    """Wait for all; when one raises or the wait is cancelled, the others end as well."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _first_of(run: Any, ticking: asyncio.Task[None]) -> bool:
    """Return what the run returns; what the ticks raise ends it."""
    task: asyncio.Task[bool] = asyncio.ensure_future(run)
    try:
        await asyncio.wait({task, ticking}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            ticking.result()
        return await task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _stop(ticking: asyncio.Task[None]) -> None:
    ticking.cancel()
    await asyncio.wait({ticking})
    if not ticking.cancelled() and ticking.exception() is not None:
        ticking.result()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A collection of garbage stops everything for milliseconds, which would be in the latencies."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
