# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an operator expects of an answer, and whether it is so. Pure.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._chat import FINISH_REASONS, Answer
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten

#: Scripts by their names in Unicode, to the first word of the names of their letters.
SCRIPTS = {
    "Arabic": "ARABIC",
    "Armenian": "ARMENIAN",
    "Bengali": "BENGALI",
    "Cyrillic": "CYRILLIC",
    "Devanagari": "DEVANAGARI",
    "Ethiopic": "ETHIOPIC",
    "Georgian": "GEORGIAN",
    "Greek": "GREEK",
    "Gujarati": "GUJARATI",
    "Han": "CJK",
    "Hangul": "HANGUL",
    "Hebrew": "HEBREW",
    "Hiragana": "HIRAGANA",
    "Katakana": "KATAKANA",
    "Khmer": "KHMER",
    "Latin": "LATIN",
    "Tamil": "TAMIL",
    "Telugu": "TELUGU",
    "Thai": "THAI",
}
#: Options of an expectation, for the module and for each of its prompts.
SPEC: dict[str, dict[str, Any]] = {
    "expect_regex": {"type": "str"},
    "expect_script": {"type": "str", "choices": sorted(SCRIPTS)},
    "expect_finish_reason": {"type": "str", "choices": list(FINISH_REASONS)},
    "expect_min_tokens": {"type": "int", "no_log": False},
    "expect_max_tokens": {"type": "int", "no_log": False},
    "max_ttft": {"type": "float"},
    "min_tokens_per_second": {"type": "float", "no_log": False},
}
#: So few pieces of content say nothing about the pace of a stream.
FEW = 8
#: An engine needs a millisecond and more for a step; what a proxy kept comes as fast as it can be read.
BURST = 0.0005
# One step of an engine may give several tokens at once (speculative decoding), rarely so many, and not so long apart.
_LUMP, _LUMPS_APART = 16, 0.1
# An engine that sends many tokens in a piece (vLLM: --stream-interval) has a pace too, from so many pieces on.
_FEWEST = 3


def problems(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with expectations: list of str, each naming option, value and cure."""
    found = []
    pattern = options.get("expect_regex")
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as exc:
            found.append(f"expect_regex {pattern!r} is no regular expression: {exc}")
    for name in ("expect_min_tokens", "expect_max_tokens", "max_ttft", "min_tokens_per_second"):
        if options.get(name) is not None and options[name] <= 0:
            found.append(f"{name} is {options[name]:g}, it must be above 0")
    low, high = options.get("expect_min_tokens"), options.get("expect_max_tokens")
    if low is not None and high is not None and low > high:
        found.append(f"expect_min_tokens is {low}, it must not be above expect_max_tokens, which is {high}")
    limit = options.get("max_tokens")
    if low is not None and limit is not None and low > limit:
        found.append(f"expect_min_tokens is {low}, but max_tokens lets an answer have {limit} only")
    return found


def speed(answer: Answer) -> float | None:
    """Return the tokens per second of a streamed answer after its first; None where too little came to tell."""
    tokens = answer.usage.get("completion_tokens")
    if tokens is None or tokens < FEW or len(answer.arrivals) < 2:
        return None
    seconds = answer.arrivals[-1] - answer.arrivals[0]
    return (tokens - 1) / seconds if seconds > 0 else None


def at_one_blow(pieces: int, lumps: int, seconds: float) -> bool:
    """Return whether so many pieces came faster than any engine makes them: in one lump, or in few that a busy reader made of it."""
    return pieces >= FEW and (lumps == 1 or (seconds < BURST * (pieces - 1) and pieces >= FEW * lumps))


def is_burst(answer: Answer) -> bool | None:
    """Return whether the content of a streamed answer was kept back and came in lumps; None where too little came to tell."""
    at = answer.arrivals
    if len(at) < FEW:
        # Few pieces of many tokens each: of one or two, nobody sees an engine at work. Tokens of a reasoning are in no piece.
        tokens = answer.usage.get("completion_tokens") or 0
        return True if 0 < len(at) < _FEWEST and 4 * FEW <= tokens <= len(answer.content) else None
    starts = [0, *(number for number in range(1, len(at)) if at[number] - at[number - 1] >= BURST)]
    if at_one_blow(len(at), len(starts), at[-1] - at[0]):
        return True
    # A busy reader makes several of one lump, but no such pause as lies between two.
    starts = [0, *(number for number in range(1, len(at)) if at[number] - at[number - 1] >= _LUMPS_APART / 2)]
    if len(starts) == 1:
        return False
    ends = [*(number - 1 for number in starts[1:]), len(at) - 1]
    within = sum(at[end] - at[start] for start, end in zip(starts, ends))
    # The last lump is a rest.
    lumps = len(starts) - 1
    apart = (at[starts[-1]] - at[0]) / lumps
    return within < BURST * len(at) and starts[-1] / lumps >= _LUMP and apart >= _LUMPS_APART


def has_pace(answer: Answer) -> bool:
    """Return whether a streamed answer is long enough, and came in enough pieces, to tell its pace."""
    return len(answer.arrivals) >= FEW or (len(answer.arrivals) >= _FEWEST and speed(answer) is not None)


def scripts(text: str) -> list[str]:
    """Return the names of the scripts whose letters a text has, sorted."""
    words = {unicodedata.name(char, "").split(" ")[0] for char in set(text) if char.isalpha()}
    return sorted(name for name, word in SCRIPTS.items() if word in words)


def check(answer: Answer, options: Mapping[str, Any], streamed: bool = False) -> None:
    """Raise Fault wrong_answer, or slow, naming everything in which an answer is not as expected.

    options: expectations, None for each that is not wanted. streamed: whether its pace can be judged.
    """
    wrong = _wrong(answer, options)
    if wrong:
        told = " and ".join(part for part, _wanted in wrong if part)
        seen, wanted = f" ({told})" if told else "", " and ".join(part for _seen, part in wrong)
        raise Fault("wrong_answer", f"the answer is {shorten(answer.content)!r}{seen}", wanted, [answer.content])
    slow = _slow(answer, options) if streamed else []
    if slow:
        seen, wanted = (" and ".join(parts) for parts in zip(*slow))
        raise Fault("slow", seen, wanted, [f"usage {dict(answer.usage)}, {len(answer.arrivals)} pieces of content"])


def _wrong(answer: Answer, options: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    found = []
    pattern, script, reason = (options.get(f"expect_{name}") for name in ("regex", "script", "finish_reason"))
    if pattern is not None and not re.search(pattern, answer.content):
        found.append(("", f"a match of {pattern!r}"))
    if script is not None and script not in scripts(answer.content):
        found.append((f"letters of {', '.join(scripts(answer.content)) or 'no script'}", f"letters of {script}"))
    if reason is not None and answer.finish_reason != reason:
        found.append((f"finish_reason {answer.finish_reason}", f"finish_reason {reason}"))
    low, high = options.get("expect_min_tokens"), options.get("expect_max_tokens")
    tokens = answer.usage.get("completion_tokens")
    bounds = " and ".join(
        f"{word} {bound}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
    )
    if bounds and (tokens is None or (low is not None and tokens < low) or (high is not None and tokens > high)):
        found.append((f"{'an unknown number of' if tokens is None else tokens} tokens", f"{bounds} tokens"))
    return found


def _slow(answer: Answer, options: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    found = []
    longest, least = options.get("max_ttft"), options.get("min_tokens_per_second")
    if longest is not None and answer.ttft is not None and answer.ttft > longest:
        found.append((f"the first token came after {answer.ttft:.3g} s", f"it within {longest:g} s"))
    if least is not None:
        pace = speed(answer)
        if pace is None:
            tokens = answer.usage.get("completion_tokens", 0)
            found.append(
                (
                    f"{tokens} tokens came, too few to tell their pace",
                    f"a longer answer (prompt, max_tokens) at {least:g} tokens/s",
                )
            )
        elif pace < least:
            found.append((f"tokens came at {pace:.3g} tokens/s", f"at least {least:g} tokens/s"))
    return found
