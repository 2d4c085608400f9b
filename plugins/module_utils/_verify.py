# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One slice of the wait for an endpoint, and its verification once it is ready.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.baremetal.nim.plugins.module_utils._chat import (
    CHAT_PATH,
    chat_payload,
    check_metadata,
    check_profile,
    choose_model,
    clock,
)
from ansible_collections.baremetal.nim.plugins.module_utils._checks import Checks
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import Broken, Endpoint, curl
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault
from ansible_collections.baremetal.nim.plugins.module_utils._media import SYNTHESIZE_PATH, VOICES_PATH
from ansible_collections.baremetal.nim.plugins.module_utils._service_probes import WITHOUT_MODELS
from ansible_collections.baremetal.nim.plugins.module_utils._startup import Startup
from ansible_collections.baremetal.nim.plugins.module_utils._unit import UnitWatch, last_words

# A health check that hangs must not blind the wait; under load a healthy one may still take its time.
_READY_TIMEOUT = 30.0
# systemd learns of a death a moment after the connection broke.
_SETTLE = 3.0
# Whoever refuses and does not say when to come back is asked after so many seconds, doubled each time.
_BACK_OFF = (1.0, 10.0)
_HISTORY = 100
_READABLE = 4000
# Failures seen from outside whose cause the unit's journal may tell.
_JOURNAL_HELPS = ("dead_engine", "downloading", "starting")


class Verification:
    """Waits for one endpoint and verifies it.

    options: the options of chat_completion. resume: what an earlier slice of the same wait handed over.
    result: dict, complete after run(), whether that returned or raised.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        endpoint: Endpoint,
        watch: UnitWatch | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._endpoint = endpoint
        self._watch = watch
        self._now = now
        self._sleep = sleep
        self._resume: Mapping[str, Any] = options.get("resume") or {}
        self._breaks: int = self._resume.get("breaks") or 0
        # Of refusals that may pass, the last: class, words, when its like began, when to ask again, and the seconds until then.
        self._refused: dict[str, Any] = dict(self._resume.get("refused") or {})
        self._refusal: Fault | None = None
        self._start = now()
        self._model: str | None = options["model"]
        self._request: dict[str, Any] | None = None
        self._path = CHAT_PATH
        self.result: dict[str, Any] = {
            "answers": [],
            "changed": False,
            "checks": [],
            "content": None,
            "duration": None,
            "elapsed": 0.0,
            "evidence": [],
            "failure_class": None,
            "finish_reason": None,
            "history": [],
            "last_log": "",
            "model": self._model,
            "models": [],
            "next_command": None,
            "phase": "unreachable",
            "ready_after": None,
            "stage": None,
            "status": None,
            "stream_duration": None,
            "tokens_per_second": None,
            "ttft": None,
            "unit": {},
            "usage": {},
            "verified_at": None,
            "waiting": False,
        }

    def run(self) -> None:
        """Wait, then verify; afterwards the result says waiting when max_wait came first. Raises Fault."""
        try:
            self._run()
        except Fault as fault:
            if self._watch and fault.failure_class in _JOURNAL_HELPS:
                lines, culprit = self._watch.evidence()
                fault.evidence += lines
                fault.culprit = fault.culprit or culprit
            self.result.update(
                evidence=fault.evidence,
                failure_class=fault.failure_class,
                next_command=self._next_command(fault),
            )
            raise
        finally:
            self.result["elapsed"] = self._elapsed()
            if self._watch:
                self.result["unit"] = self._watch.state.as_dict()

    def _run(self) -> None:
        options = self._options
        left = max(0.0, options["timeout"] - self._elapsed())
        max_wait = options["max_wait"]
        for _elapsed in clock(
            left if max_wait is None else min(left, max_wait), options["poll_interval"], self._now, self._sleep
        ):
            if self._watch:
                self._watch.check(force=self._watch.starts)
                if self._watch.starts:
                    state = self._watch.state
                    self._note("starting", f"unit {state.name} is {state.active_state} ({state.sub_state})")
                    continue
            if self._elapsed() < self._refused.get("again_at", 0.0):
                self._note("ready", self._refused["words"])
                continue
            if self._is_ready():
                try:
                    self._verify()
                except Broken as exc:
                    self._broken(exc)
                    continue
                except Fault as fault:
                    if self._may_pass(fault):
                        continue
                    if fault.failure_class == "dead_engine":
                        self._settle()
                    raise
                return
        if self._elapsed() >= options["timeout"]:
            if self._refusal and self.result["status"] == 200:
                raise self._refusal
            silent = self.result["status"] is None and not self._watch
            detail = self.result["history"][-1]["detail"]
            seen = f"GET {options['ready_path']} was not ready within {options['timeout']:g} s (last: {detail})"
            downloading = self.result["stage"] == "downloading"
            raise Fault("unreachable" if silent else "downloading" if downloading else "starting", seen, "HTTP 200")
        self._hand_over()

    def _is_ready(self) -> bool:
        options = self._options
        patience = min(_READY_TIMEOUT, options["request_timeout"], max(1.0, options["timeout"] - self._elapsed()))
        status, detail = self._endpoint.ready(options["ready_path"], patience)
        self.result["status"] = status
        if status == 200:
            self.result["ready_after"] = self._elapsed()
            self._note("ready", detail)
            return True
        # A service whose unit lives and whose port is silent is one that starts.
        startup = self._watch.startup() if self._watch else None
        self._note("unreachable" if status is None and not self._watch else "starting", detail, startup)
        return False

    def _verify(self) -> None:
        options = self._options
        endpoint = self._endpoint
        if "health" in options["probes"]:
            if self._watch:
                self._watch.check(force=True)
            self._note("verified", "ready")
            return
        # An empty list asks for no answer, but for the model.
        if options["probes"] and WITHOUT_MODELS.issuperset(options["probes"]):
            checks = Checks(options, endpoint, "", {}, self._now, self._sleep)
        else:
            checks = Checks(options, endpoint, *self._choose_model(), self._now, self._sleep)
        try:
            checks.run(options["probes"])
        finally:
            self.result.update(checks.facts)
            self._path, self._request = checks.path, checks.request
        if self._watch:
            # The answer may have come from something else that holds the port of a service in a crash loop.
            self._watch.check(force=True)
        self._note("verified", f"{self._model} answered" if self._model else "answered")

    def _choose_model(self) -> tuple[str, Mapping[str, Any]]:
        """The model to ask, and what /v1/models says of it."""
        options, endpoint = self._options, self._endpoint
        models = endpoint.models()
        self.result["models"] = list(models)
        model = choose_model(options["model"], models)
        self.result["model"] = self._model = model
        if options["check_metadata"] or options["expect_profile"]:
            metadata = endpoint.metadata()
            if options["check_metadata"]:
                check_metadata(model, metadata)
            if options["expect_profile"]:
                check_profile(options["expect_profile"], metadata)
        return model, models[model]

    def _broken(self, exc: Broken) -> None:
        """Forgive the first broken connection: health may turn green a moment before the engine listens."""
        self._settle()
        self._breaks += 1
        if self._breaks > 1:
            raise Fault("dead_engine", f"{exc} though the endpoint is ready", "a completion") from exc
        self.result["ready_after"] = None
        self._note("starting", str(exc))

    def _may_pass(self, fault: Fault) -> bool:
        """Whether to ask again after a refusal, and then when: as the server wants it, but not beyond the deadline."""
        if not fault.patience:
            return False
        now, timeout, before = self._elapsed(), self._options["timeout"], self._refused
        since = before["since"] if before.get("kind") == fault.failure_class else now
        first, most = _BACK_OFF
        pause = min(most, max(first, 2 * before.get("pause", 0.0)))
        if fault.retry_after is not None:
            pause = max(fault.retry_after, self._options["poll_interval"])
        if now + pause >= min(timeout, since + fault.patience):
            told = "" if fault.retry_after is None else f"it wants to be asked again in {fault.retry_after:g} s, "
            fault.evidence.append(f"refused for {now - since:.0f} s, {told}the wait ends after {timeout:g} s")
            return False
        words = f"{str(fault).rpartition(', wanted ')[0]}; asking again after {pause:g} s"
        self._refusal = fault
        self._refused = {
            "kind": fault.failure_class,
            "words": words,
            "since": since,
            "again_at": now + pause,
            "pause": pause,
        }
        self._note("ready", words)
        return True

    def _settle(self) -> None:
        """Prefer the unit's own account of a death to the broken answer it caused."""
        if self._watch:
            for _elapsed in clock(_SETTLE, 0.5, self._now, self._sleep):
                self._watch.check(force=True)

    def _hand_over(self) -> None:
        self.result.update(waiting=True, resume={"elapsed": self._elapsed(), "breaks": self._breaks})
        if self._refused:
            self.result["resume"]["refused"] = self._refused
        if self._watch:
            self.result["last_log"] = last_words(self._watch.life())
            self.result["resume"].update(restarts=self._watch.restarts, invocation_id=self._watch.invocation_id)

    def _note(self, phase: str, detail: str, startup: Startup | None = None) -> None:
        stage = startup.stage if startup else None
        self.result.update(phase=phase, stage=stage)
        history = self.result["history"]
        entry = {"phase": phase, "stage": stage, "detail": startup.words if startup else detail}
        last = history[-1] if history else {}
        if stage and (last.get("phase"), last.get("stage")) == (phase, stage):
            # How far a stage has come is no new stage.
            last.update(entry)
        elif {key: last.get(key) for key in entry} != entry:
            history.append(dict(entry, at=self._elapsed()))
            del history[:-_HISTORY]

    def _elapsed(self) -> float:
        return round((self._resume.get("elapsed") or 0.0) + self._now() - self._start, 3)

    def _payload(self, stream: bool = False) -> dict[str, Any]:
        """A request that shows the failure: the last one that was sent, unless that is too long to read."""
        if self._request and len(json.dumps(self._request)) < _READABLE:
            return self._request
        options = self._options
        messages = options["messages"] or [{"role": "user", "content": options["prompt"]}]
        return chat_payload(self._model or "MODEL", messages, options["max_tokens"], options["temperature"], stream)

    def _next_command(self, fault: Fault) -> str:
        unit = self._options["unit"]
        failure_class = fault.failure_class
        if failure_class in ("driver_mismatch", "gpu_unavailable", "no_profile", "out_of_memory"):
            return "nvidia-smi"
        if failure_class == "disk_full":
            return "df -h"
        if failure_class == "port_in_use":
            return f"ss -ltnp 'sport = :{port_of(self._endpoint.base)}'"
        if failure_class in ("unit_not_found", "unit_unreadable"):
            return f"systemctl status {unit}"
        if unit and (fault.of_unit or failure_class in _JOURNAL_HELPS):
            return f"journalctl -u {unit} -n 100 --no-pager"
        if failure_class in ("auth", "wrong_model"):
            return self._curl("/v1/models")
        if failure_class == "buffered_stream":
            return self._curl(CHAT_PATH, self._payload(stream=True))
        if failure_class in ("overloaded", "slow"):
            return self._curl("/v1/metrics")
        if failure_class in ("bad_response", "dead_engine", "incomplete", "refused_by_policy", "wrong_answer"):
            if self._request is None and self._path != CHAT_PATH:
                # Forms with files are more than a line can show.
                return self._curl(VOICES_PATH if self._path == SYNTHESIZE_PATH else self._options["ready_path"])
            return self._curl(self._path, self._payload())
        return self._curl(self._options["ready_path"])

    def _curl(self, path: str, payload: dict[str, Any] | None = None) -> str:
        return curl(self._endpoint.base + path, self._options, payload)


def port_of(url: str) -> int:
    """Return the TCP port of a URL."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
