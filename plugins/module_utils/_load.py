# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The load of a benchmark: its steps, closed and open loop.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark
from ansible_collections.baremetal.nim.plugins.module_utils._answers import Record
from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import Prompts
from ansible_collections.baremetal.nim.plugins.module_utils._chat import choose_model
from ansible_collections.baremetal.nim.plugins.module_utils._client import Client
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault
from ansible_collections.baremetal.nim.plugins.module_utils._limits import allow_files

_TICK = 0.25
# A server that answers nobody any more ends its step after so many failures in a row, or twice the requests in flight.
_GIVE_UP = 10
# A client that computes all the time measures itself.
_BUSY = 90.0
# Seconds for which a server that is busy before the load begins is asked again, and most seconds that one of the load stays away.
_FIRST_PATIENCE, _STAY_AWAY = 10.0, 5.0


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
        # Whether answers are asked to have a length, and whether they have it.
        self._fixed = bool(options["fixed_output"])
        self._kept = True
        self._model = options["model"]
        self._client: Client | None = None
        self._steps: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def run(self) -> dict[str, Any]:
        """Return what seen() does. Raises Fault when the endpoint cannot be benchmarked to the end."""
        asyncio.run(self._bounded())
        return self.seen()

    def seen(self) -> dict[str, Any]:
        """Return model, workload, the steps that were measured, and load and level of those that were not."""
        ran = {step["level"] for step in self._steps}
        return {
            "model": self._model,
            "workload": {**_benchmark.workload(self._options), "fixed_output": self._fixed and self._kept},
            "steps": list(self._steps),
            "not_run": [step for step in _benchmark.planned(self._options) if step["level"] not in ran],
        }

    async def _bounded(self) -> None:
        task = asyncio.ensure_future(self._all())
        done, _pending = await asyncio.wait({task}, timeout=self._options["timeout"])
        if not done:
            task.cancel()
            await asyncio.wait({task})
            limit = self._options["timeout"]
            raise Fault(
                "slow", f"the benchmark did not end within {limit:g} s", "its end: raise timeout, or ask for less"
            )
        task.result()

    async def _all(self) -> None:
        options = self._options
        closed = options["request_rate"] is None
        most = max(_benchmark.levels(options)) if closed else options["max_in_flight"]
        allow_files(int(most), strict=closed)
        self._client = client = Client(options, self._base, self._now)
        try:
            self._tick("preparing", "asking for the model")
            self._model = choose_model(options["model"], await client.models())
            counts = await self._fit()
            for number, level in enumerate(_benchmark.levels(options)):
                self._steps.append(await self._step(level, options["seed"] + number))
                if self._steps[-1]["aborted"]:
                    break
        finally:
            client.close()
        if options["prompts"] is None and not counts:
            self.warnings.append(
                "The server does not count tokens: those of the prompts are guessed, one for each word."
            )

    async def _ask(self, words: int, max_tokens: int) -> Record:
        if self._client is None:
            raise RuntimeError("not running")
        text = self._prompts.text(words)
        body = _benchmark.payload(self._options, self._model, text, max_tokens, self._fixed)
        return await self._client.stream(body)

    async def _ask_patiently(self, words: int) -> Record:
        """Ask for one token; whoever is busy with others is given some time."""
        end = self._now() + _FIRST_PATIENCE
        while True:
            record = await self._ask(words, 1)
            fault = record.fault
            pause = 1.0 if fault is None or fault.retry_after is None else max(0.25, fault.retry_after)
            if fault is None or not fault.patience or self._now() + pause > end:
                return record
            self._tick("preparing", record.text)
            await asyncio.sleep(pause)

    async def _fit(self) -> bool:
        """Learn what the server makes of the request: whether it takes ignore_eos, and how many tokens a word is.

        Returns whether it counts the tokens of a prompt.
        """
        one = await self._ask_patiently(16)
        # A strict server refuses fields that it does not know.
        if self._fixed and one.error == "bad_response" and one.status in (400, 422):
            self._fixed = False
            one = await self._ask_patiently(16)
            if one.error is None:
                self.warnings.append(
                    "The server refuses ignore_eos and min_tokens: answers end where the model ends them (fixed_output)."
                )
        if one.fault is not None and not one.done:
            fault = one.fault
            seen = str(fault).rpartition(", wanted ")[0]
            raise Fault(fault.failure_class, seen, "an answer to a first request", [one.text], remedy=fault.remedy)
        if self._options["prompts"] is not None or one.prompt_tokens is None:
            return one.prompt_tokens is not None
        more = max(64, self._options["input_tokens"])
        two = await self._ask_patiently(more)
        if two.prompt_tokens is None:
            return False
        self._words = _benchmark.words_for(
            self._options["input_tokens"], (16, one.prompt_tokens), (more, two.prompt_tokens)
        )
        # The same number for any prompt is none.
        return two.prompt_tokens != one.prompt_tokens

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
            if not facts["aborted"] and records and records[-1].error:
                # Too few failures to give up, but the last that was seen: one more request tells whether anybody is there.
                again = await self._ask(self._words, 1)
                facts["aborted"] = again.error is not None and not again.done
        facts["last_error"] = records[-1].error if facts["aborted"] and records else None
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
        note = _benchmark.length_note(records, options["output_tokens"]) if self._fixed else ""
        if note:
            self._kept = False
            self.warnings.append(
                f"{label}: {note}: the server takes ignore_eos and min_tokens, and does not keep to them."
            )
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
                    # Whoever refuses is not to be hammered, and may say for how long.
                    wanted = record.fault.retry_after if record.fault else None
                    await asyncio.sleep(min(0.5, 0.02 * state["failed"]) if wanted is None else min(_STAY_AWAY, wanted))

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
