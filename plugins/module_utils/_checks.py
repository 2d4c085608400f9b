# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The probes of an endpoint that is ready: what each asks, and how it is judged.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _expect, _features, _media, _retrieval
from ansible_collections.baremetal.nim.plugins.module_utils._chat import (
    CHAT_PATH,
    Answer,
    chat_payload,
    clock,
    context_length,
)
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import Endpoint
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._info import PATHS, read_metrics
from ansible_collections.baremetal.nim.plugins.module_utils._refusal import error_text, http_fault

# Long enough to have a pace, and to be still under way when its reader leaves.
_LONG = "Count from one to two hundred in words, one after the other."
_LONG_TOKENS = 96
_ABORTED_TOKENS = 1024
# No model listed without its length takes so many words.
_OVERLONG = 300_000
# An engine drops a request whose client has gone at its next step.
_FREED_WITHIN = 10.0
_NO_MODEL = "-that-is-not-served"
_NO_KEY = "not-the-key-of-this-endpoint"


class Checks:
    """Asks one endpoint what its options want to know.

    options: those of chat_completion. model: the model to ask. card: what /v1/models says of it.
    facts: dict, what was learned so far, for the result of the module. request and path: the
    JSON that was sent last, and where to; None when it was none.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        endpoint: Endpoint,
        model: str,
        card: Mapping[str, Any],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._endpoint = endpoint
        self._model = model
        self._card = card
        self._now = now
        self._sleep = sleep
        self.facts: dict[str, Any] = {"answers": [], "checks": []}
        self.request: dict[str, Any] | None = None
        self.path = CHAT_PATH

    def run(self, probes: Iterable[str]) -> None:
        """Ask the probes in their own order. Raises Fault at the first that fails; Broken when a connection breaks."""
        wanted = set(probes)
        for name, probe in PROBES.items():
            if name not in wanted:
                continue
            start = self._now()
            check: dict[str, Any] = {"probe": name, "passed": False, "detail": ""}
            self.facts["checks"].append(check)
            try:
                check["detail"] = probe(self)
                check["passed"] = True
            except Fault as fault:
                check["detail"] = str(fault)
                raise
            finally:
                check["duration"] = round(self._now() - start, 6)

    def _prompts(self) -> list[dict[str, Any]]:
        options = self._options
        own = {key: options[key] for key in (*_expect.SPEC, "prompt", "messages", "max_tokens", "temperature")}
        return [
            {**own, "messages": None, **{key: value for key, value in prompt.items() if value is not None}}
            for prompt in options["prompts"] or []
        ] or [own]

    def _payload(self, prompt: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        messages = prompt["messages"] or [{"role": "user", "content": prompt["prompt"]}]
        payload = chat_payload(self._model, messages, prompt["max_tokens"], prompt["temperature"])
        self.path, self.request = CHAT_PATH, {**payload, **changes}
        return self.request

    def _own(self, **changes: Any) -> dict[str, Any]:
        """A request of this collection's words, not of the user's."""
        limit = max(self._options["max_tokens"], _features.LEAST_TOKENS)
        own = {"messages": None, "prompt": _LONG, "max_tokens": limit, "temperature": self._options["temperature"]}
        return self._payload(own, **changes)

    def _accept(self, probe: str, answer: Answer) -> None:
        speed = _expect.speed(answer) if answer.arrivals else None
        self.facts["answers"].append(
            {
                "probe": probe,
                "content": answer.content,
                "finish_reason": answer.finish_reason,
                "usage": answer.usage,
                "duration": round(answer.duration, 6),
                "ttft": None if answer.ttft is None else round(answer.ttft, 6),
                "tokens_per_second": None if speed is None else round(speed, 3),
            }
        )
        if "content" not in self.facts:
            self.facts.update(content=answer.content, finish_reason=answer.finish_reason, usage=answer.usage)

    def completion(self) -> str:
        """Plain answers to all prompts."""
        prompts = self._prompts()
        for prompt in prompts:
            answer = self._endpoint.complete(self._payload(prompt))
            self._accept("completion", answer)
            self.facts.setdefault("duration", round(answer.duration, 6))
            _expect.check(answer, prompt)
        return _counted(len(prompts), "answer")

    def stream(self) -> str:
        """Streamed answers to all prompts."""
        prompts = self._prompts()
        for prompt in prompts:
            answer = self._stream(prompt)
            if _expect.is_burst(answer):
                # Once may be chance: a busy host reads late.
                answer = self._stream(prompt)
            self._accept("stream", answer)
            self.facts.setdefault("ttft", None if answer.ttft is None else round(answer.ttft, 6))
            self.facts.setdefault("stream_duration", round(answer.duration, 6))
            _refuse_burst(answer)
            _expect.check(answer, prompt, streamed=True)
        return _counted(len(prompts), "streamed answer")

    def _stream(self, prompt: Mapping[str, Any]) -> Answer:
        return self._endpoint.stream(self._payload(prompt, stream=True, stream_options={"include_usage": True}))

    def pace(self) -> str:
        """A stream long enough to be sure that its tokens come one by one, and how fast."""
        options = self._options
        prompt = {
            "messages": None,
            "prompt": _LONG,
            "max_tokens": max(options["max_tokens"], _LONG_TOKENS),
            "temperature": options["temperature"],
        }
        answer = self._stream(prompt)
        if _expect.is_burst(answer):
            answer = self._stream(prompt)
        self._accept("pace", answer)
        _refuse_burst(answer)
        if not _expect.has_pace(answer):
            pieces = len(answer.arrivals)
            raise Fault(
                "bad_response",
                f"a stream of {answer.usage.get('completion_tokens', 'unknown')} tokens came in {pieces} pieces",
                f"at least {_expect.FEW} tokens, or pieces, to tell its pace",
                [shorten(answer.content)],
            )
        speed = _expect.speed(answer)
        self.facts["tokens_per_second"] = None if speed is None else round(speed, 3)
        _expect.check(answer, {key: options[key] for key in ("max_ttft", "min_tokens_per_second")}, streamed=True)
        return f"{len(answer.arrivals)} pieces" + ("" if speed is None else f", {speed:.3g} tokens/s")

    def tool_call(self) -> str:
        """A call of a tool, with arguments of its schema."""
        request = self._own(**_features.tool_call_request(self._options["tool_choice"]))
        arguments = _features.check_tool_call(self._endpoint.complete(request, tools=True))
        return f"called with {arguments}"

    def json_schema(self) -> str:
        """An answer in JSON of a schema."""
        document = _features.check_json_schema(self._endpoint.complete(self._own(**_features.json_schema_request())))
        return f"answered {document}"

    def logprobs(self) -> str:
        """An answer that tells how likely its tokens were."""
        answer = self._endpoint.complete(self._payload(self._prompts()[0], **_features.logprobs_request()))
        return _counted(_features.check_logprobs(answer), "token")

    def vision(self) -> str:
        """An answer about a picture."""
        own = self._options["image_file"] is None
        data = _media.square() if own else _media.read_file(self._options["image_file"], _media.MOST_IMAGE_BYTES)
        prompt = self._prompts()[0]
        question = _media.QUESTION if own else prompt["prompt"]
        answer = self._endpoint.complete(self._payload({**prompt, "messages": _media.image_messages(data, question)}))
        self._accept("vision", answer)
        expected = {**prompt, "expect_regex": _media.COLOUR} if own else prompt
        _expect.check(answer, expected)
        return f"answered {shorten(answer.content, 80)!r}"

    def embedding(self) -> str:
        """Vectors that have a meaning: a query is nearest to the passage that answers it."""
        found = []
        for kind, texts in (("query", [_retrieval.QUERY]), ("passage", _retrieval.PASSAGES)):
            self.path, self.request = _retrieval.EMBEDDINGS_PATH, _retrieval.embedding_request(self._model, texts, kind)
            body = self._endpoint.json("POST", self.path, json=self.request)
            found.append(_retrieval.read_embeddings(body, len(texts), self._model))
        near = _retrieval.check_meaning(found[0][0], found[1])
        return f"{len(found[0][0])} dimensions, cosines {', '.join(f'{value:.3f}' for value in near)}"

    def ranking(self) -> str:
        """An order of passages with the one first that answers the query."""
        self.path, self.request = _retrieval.RANKING_PATH, _retrieval.ranking_request(self._model)
        order = _retrieval.read_ranking(self._endpoint.json("POST", self.path, json=self.request))
        return f"order {', '.join(map(str, order))}"

    def transcription(self) -> str:
        """What is heard in a file, or in a tone, in which there is nothing to hear."""
        path = self._options["audio_file"]
        data = _media.tone() if path is None else _media.read_file(path, _media.MOST_AUDIO_BYTES)
        self.path = _media.TRANSCRIPTIONS_PATH
        body = self._endpoint.json(
            "POST",
            self.path,
            files={"file": ("sound.wav", data, "audio/wav")},
            data={"language": self._options["language"]},
        )
        text = _media.read_transcription(body)
        if path is not None:
            _expect.check(Answer(text, "stop"), {"expect_regex": self._options["expect_regex"]})
        self.facts["content"] = text
        return f"heard {shorten(text, 80)!r}"

    def speech(self) -> str:
        """A WAV file with a voice in it."""
        self.path = _media.SYNTHESIZE_PATH
        language, voice = self._options["language"], self._options["voice"]
        voice = voice or _media.choose_voice(self._endpoint.json("GET", _media.VOICES_PATH), language)
        fields = {"text": _media.SPOKEN, "language": language, "voice": voice}
        # As a form, which is the only thing this path takes.
        form = {name: (None, value) for name, value in fields.items()}
        seen = _media.read_speech(self._endpoint.content("POST", self.path, files=form))
        return f"{seen['seconds']:.1f} s at {seen['sample_rate']} Hz by {voice}"

    def unknown_model(self) -> str:
        """A model that is not served is refused, not answered by another one."""
        model = self._model + _NO_MODEL
        return self._refused(self._payload(self._prompts()[0], model=model), (404,), f"model {model}")

    def overlong_input(self) -> str:
        """What does not fit is refused, and does no harm."""
        length = context_length(self._card)
        words = _OVERLONG if length is None else length + 64
        payload = self._own(messages=[{"role": "user", "content": "word " * words}], max_tokens=1)
        seen = self._refused(payload, (400, 413, 422), f"{words} words" + (f" for {length} tokens" if length else ""))
        status, detail = self._endpoint.ready(self._options["ready_path"], self._options["request_timeout"])
        if status != 200:
            raise Fault(
                "dead_engine", f"{detail} from GET {self._options['ready_path']} after too long an input", "HTTP 200"
            )
        return seen

    def wrong_key(self) -> str:
        """The key is asked for, and looked at."""
        payload = self._payload(self._prompts()[0])
        headers = {"Authorization": f"Bearer {_NO_KEY}"}
        return self._refused(payload, (401, 403), "a wrong key", headers=headers)

    def client_abort(self) -> str:
        """A client that leaves makes room: its request does not go on, and the next one is answered."""
        before = self._running()
        under_way = self._endpoint.leave(
            self._own(max_tokens=_ABORTED_TOKENS, stream=True, stream_options={"include_usage": True})
        )
        seen = "the answer had ended before its client left"
        if under_way and before is None:
            seen = "no metrics tell of running requests"
        elif under_way and before is not None:
            seen = ""
            running: float | None = None
            for elapsed in clock(_FREED_WITHIN, 0.2, self._now, self._sleep):
                running = self._running()
                # Others may have come meanwhile; what counts is that it falls back once.
                if running is not None and running <= before:
                    seen = f"freed within {elapsed:.1f} s"
                    break
            if not seen:
                raise Fault(
                    "dead_engine",
                    f"{running or 0:g} requests run {_FREED_WITHIN:g} s after a client left, {before or 0:g} did before it came",
                    "a request to end with its client",
                )
        self._endpoint.complete(self._payload(self._prompts()[0]))
        return f"{seen}; the next request was answered"

    def _running(self) -> float | None:
        """How many requests the engine works on, by its metrics; None where they do not tell."""
        response = self._endpoint.send("GET", PATHS["metrics"])
        if response.status_code != 200:
            return None
        try:
            told: float | None = read_metrics(response.content.decode("utf-8", "replace"))["requests_running"]
        except ValueError:
            return None
        return told

    def _refused(self, payload: Mapping[str, Any], wanted: tuple[int, ...], what: str, **kwargs: Any) -> str:
        """Send what must be refused; the status and words of that."""
        response = self._endpoint.send("POST", CHAT_PATH, json=payload, **kwargs)
        status, body = response.status_code, response.content.decode("utf-8", "replace")
        said = error_text(body)
        seen = f"HTTP {status}" + (f" ({said})" if said else "")
        if status in wanted:
            return seen
        judged = http_fault(f"POST {CHAT_PATH}", status, body, response.headers)
        # What is busy or broken says nothing about what it refuses.
        broken = judged if judged and (status >= 500 or judged.patience) else None
        raise Fault(
            broken.failure_class if broken else "bad_response",
            f"{what} got {seen} from POST {CHAT_PATH}",
            f"HTTP {' or '.join(map(str, wanted))}",
            [said] if said else [],
            remedy=broken.remedy if broken else "",
            patience=broken.patience if broken else 0.0,
            retry_after=broken.retry_after if broken else None,
        )


#: Probe -> what asks it, in the order they are asked in. The plain completion goes first: the very first one may compile kernels,
#: which is no time to first token. What provokes the endpoint goes last.
PROBES: dict[str, Callable[[Checks], str]] = {
    "completion": Checks.completion,
    "stream": Checks.stream,
    "pace": Checks.pace,
    "tool_call": Checks.tool_call,
    "json_schema": Checks.json_schema,
    "logprobs": Checks.logprobs,
    "vision": Checks.vision,
    "embedding": Checks.embedding,
    "ranking": Checks.ranking,
    "transcription": Checks.transcription,
    "speech": Checks.speech,
    "unknown_model": Checks.unknown_model,
    "wrong_key": Checks.wrong_key,
    "client_abort": Checks.client_abort,
    "overlong_input": Checks.overlong_input,
}


def _refuse_burst(answer: Answer) -> None:
    if _expect.is_burst(answer):
        first, last = answer.arrivals[0], answer.arrivals[-1]
        pieces = len(answer.arrivals)
        raise Fault(
            "buffered_stream",
            f"{pieces} piece{'' if pieces == 1 else 's'} of a stream came within {1000 * (last - first):.1f} ms, {first:.3g} s after the request",
            "each token when it is made",
            [f"seconds of the first pieces: {', '.join(f'{at:.4f}' for at in answer.arrivals[: _expect.FEW])}"],
        )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
