# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the entry of a service says of its verification, and whether anything reads it. Pure, and light: filters load it in every task.

An expectation that no probe looks at would pass for one that was met.
This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._written import near

# Probes whose answers are compared with expectations, and those that send the prompts.
_ANSWERS = frozenset({"completion", "stream", "vision"})
_PACED = frozenset({"stream", "pace"})
_ASKED = frozenset({"completion", "stream", "logprobs", "vision", "unknown_model", "wrong_key", "client_abort"})
#: Option to the probes that read it. Others are read by more of them, or by none.
READERS: dict[str, frozenset[str]] = {
    "audio_file": frozenset({"transcription"}),
    "expect_finish_reason": _ANSWERS,
    "expect_max_tokens": _ANSWERS,
    "expect_min_tokens": _ANSWERS,
    "expect_regex": _ANSWERS | {"transcription"},
    "expect_script": _ANSWERS,
    "image_file": frozenset({"vision"}),
    "language": frozenset({"speech", "transcription"}),
    "max_ttft": _PACED,
    "messages": _ASKED,
    "min_tokens_per_second": _PACED,
    "prompt": _ASKED,
    "prompts": _ASKED,
    "tool_choice": frozenset({"tool_call"}),
    "voice": frozenset({"speech"}),
}
#: What is asked where nothing is said.
DEFAULT_PROBES = ("completion", "stream")
#: Keys of an item of ``prompts``.
PROMPT_KEYS = (
    *("prompt", "messages", "max_tokens", "temperature", "expect_regex", "expect_script", "expect_finish_reason"),
    *("expect_min_tokens", "expect_max_tokens", "max_ttft", "min_tokens_per_second"),
)


def unread_options(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the options of a verification because nobody would read it, in words for an operator."""
    probes = options.get("probes")
    asked = DEFAULT_PROBES if probes is None else [probes] if isinstance(probes, str) else list(probes)
    for key, readers in READERS.items():
        if options.get(key) is not None and not readers.intersection(map(str, asked)):
            told = ", ".join(map(str, asked)) or "none"
            yield f"verify.{key} is read by no probe of {told}; add one of {', '.join(sorted(readers))}, or leave it out."
    answers = _ANSWERS.intersection(map(str, asked))
    if (
        options.get("expect_regex") is not None
        and "transcription" in asked
        and not answers
        and not options.get("audio_file")
    ):
        yield "verify.expect_regex is read where something is to be heard; give audio_file, or leave it out."
    yield from _prompts(options.get("prompts"))


def _prompts(prompts: Any) -> Iterator[str]:
    if prompts is None:
        return
    if not isinstance(prompts, (list, tuple)):
        yield "verify.prompts is no list, wanted one such as [{prompt: …, expect_regex: …}]."
        return
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, Mapping):
            yield f"verify.prompts[{number}] is no dictionary, wanted one such as {{prompt: …, expect_regex: …}}."
            continue
        for key in prompt:
            if key not in PROMPT_KEYS:
                yield f"verify.prompts[{number}] has the unknown key {key!r}.{near(str(key), PROMPT_KEYS)}"
