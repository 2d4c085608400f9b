# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a journal shows why a service ended: tracebacks folded, and the words of the process that failed first. Pure.

An engine is several processes (vLLM: APIServer, EngineCore, a Worker for each GPU). When one fails, those above it fail because of
it and say more about it than it did: hundreds of lines whose last ones are the least telling.
This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ansible_collections.baremetal.nim.plugins.module_utils._foreign import MOST_OF_A_LINE
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import line as printable_line

ACCESS_LOG = re.compile(r'"(GET|HEAD|POST|OPTIONS) \S{1,2000} HTTP/\d')
# Who wrote a line: vLLM's and Ray's processes, and torch's ranks.
_SOURCE = re.compile(r"\(([^()]{0,100}\bpid=\d{1,10}(?!\d)[^()]{0,100})\) ?|\[(rank\d{1,6})\]: ?")
# What stands before the words of a log: level, time, place; of vLLM, NIM, TensorRT-LLM and SGLang. Indentation after it counts.
_HEAD = re.compile(
    r"(?:\[\d[^\]]{0,60}\] ?|\[(?:TensorRT-LLM|TRT-LLM)\] ?){0,6}"
    r"\[?\b(?P<level>DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL|D|I|W|E|F)\b\]?:?"
    r"(?: {1,9}\d[\d/-]{0,20} [\d:.,]{1,20})?(?: {1,9}\[?[\w./-]{1,200}:\d{1,7}\])? ?"
)
_TIME = re.compile(r"\[\d[^\]]{0,60}\] ")
_QUIET = ("DEBUG", "INFO", "WARNING", "WARN", "D", "I", "W")
_TRACEBACK = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):")
_FRAME = re.compile(r'\s*File "(?P<path>[^"]+)", line \d+')
_CHAIN = re.compile(r"(During handling of the above exception|The above exception was the direct cause)")
_GROUP = re.compile(r"\s*\| ?")
_GROUP_RULE = re.compile(r"\s+\+[-+ \d.]*$")
# Frames of C++: torch, glibc, TensorRT-LLM.
_NATIVE_FRAME = re.compile(r"\s*(frame )?#\d+:? |\d+ +0x[0-9a-f]+ ")
EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception|Interrupt|Exit)\b(: |$)")
_POINTER = re.compile(
    r"root cause above|above\)? for the root cause|stack trace\b.{0,100} for (the )?root cause|in a background process",
    re.IGNORECASE,
)
# A process that was killed says nothing; who misses it does.
_DEATH = re.compile(
    r"(exited|died|terminated|was killed|ended) unexpectedly|died with exit code|killed by signal", re.IGNORECASE
)
_ENGINES = re.compile(r"/(vllm|tensorrt_llm|trtllm|sglang|nim\w*|nemo\w*|triton_\w+)/")
_LIBRARIES = re.compile(
    r"^<|/lib(64)?/python[\d.]+/(?!(site|dist)-packages/)|/(torch|uvloop|ray|starlette|uvicorn|fastapi)/|\.pyx$"
)
# Failures so many lines apart have nothing to do with each other.
_APART = 50


class _Line(NamedTuple):
    raw: str
    source: str
    level: str
    text: str


@dataclass
class _Trace:
    """A traceback that is being read."""

    frames: list[tuple[str, str]] = field(default_factory=list)

    def own(self) -> list[str]:
        """The innermost frame of the engine's own code; of anybody's but a library's, where the engine has none in it."""
        for wanted in (_ENGINES.search, lambda path: not _LIBRARIES.search(path), lambda _path: True):
            found = [raw for path, raw in self.frames if wanted(path)]
            if found:
                return found[-1:]
        return []


@dataclass
class Story:
    """A journal as people read it.

    lines: each with who wrote it, tracebacks folded to their innermost own frame and the exception. source: the process that failed
    first, None where no exception tells. culprit: its exception, or what tells of its death; empty where nothing does. marks: places of
    the lines that tell most, the most telling first.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    source: str | None = None
    culprit: str = ""
    marks: list[int] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """All lines."""
        return [raw for _source, raw in self.lines]

    @property
    def own(self) -> list[str]:
        """The lines of the process that failed first."""
        return [raw for source, raw in self.lines if self.source and source == self.source]

    def evidence(self, limit: int, cause: str = "") -> list[str]:
        """At most so many lines, those that tell most among them: of the process that failed first, and of who has no name.

        cause: a line that must be there, even where no line is wanted.
        """
        wanted = [number for number, (_source, raw) in enumerate(self.lines) if raw == cause][-1:]
        wanted += [number for number in self.marks if number not in wanted]
        chosen = set(wanted[:limit])
        others = [
            number
            for number, (source, _raw) in enumerate(self.lines)
            if number not in chosen and (not self.source or source in ("", self.source))
        ]
        room = limit - len(chosen)
        found = [self.lines[number][1] for number in sorted(chosen.union(others[-room:] if room else ()))]
        if cause and cause not in found:
            found = [cause, *found[max(0, len(found) + 1 - limit) :]]
        return found


def read(lines: Iterable[str]) -> Story:
    """Read the journal of one life of a service, oldest first."""
    story, failures = Story(), _fold(lines)
    story.lines = [(line.source, line.raw) for line, _failed in failures]
    failed = [number for number, (_line, is_failure) in enumerate(failures) if is_failure]
    cluster: list[int] = []
    for number in reversed(failed):
        if cluster and cluster[0] - number > _APART:
            break
        cluster.insert(0, number)
    telling = [number for number in cluster if not _POINTER.search(failures[number][0].text)]
    if telling:
        story.source = failures[telling[0]][0].source
        number = [one for one in telling if failures[one][0].source == story.source][-1]
        # The frame before it, and what was said before the traceback.
        around = [
            place for place in range(number - 1, max(-1, number - 3), -1) if _belongs(failures[place][0], story.source)
        ]
        story.marks = list(dict.fromkeys([number, *around, telling[0]]))
        story.culprit = failures[number][0].raw
    else:
        dead = [number for number, (line, _failed) in enumerate(failures) if _DEATH.search(line.text)]
        near = [number for number in dead if not cluster or cluster[0] - number <= _APART]
        story.marks = (near or cluster)[-1:]
        story.culprit = failures[story.marks[0]][0].raw if story.marks else ""
    return story


def _belongs(line: _Line, source: str) -> bool:
    return line.source == source and (bool(_FRAME.match(line.text)) or line.level not in (*_QUIET, ""))


def _fold(lines: Iterable[str]) -> list[tuple[_Line, bool]]:
    """Lines without the frames of tracebacks, each with whether it is the exception of a failure."""
    found: list[tuple[_Line, bool]] = []
    open_traces: dict[str, _Trace] = {}
    seen: set[tuple[str, str]] = set()
    sources: set[str] = set()

    def close(line: _Line) -> None:
        trace = open_traces.pop(line.source)
        if _CHAIN.match(line.text):
            return
        if (line.source, line.text) in seen and not ACCESS_LOG.search(line.raw):
            # Engines log an exception and then die of it.
            return
        seen.add((line.source, line.text))
        found.extend((_parsed(raw), False) for raw in trace.own())
        found.append((line, line.level not in _QUIET))

    for raw in lines:
        line = _parsed(raw)
        if not line.text.strip():
            continue
        if line.source not in sources and line.text.startswith("    "):
            # The first line there is, from the midst of a traceback.
            open_traces[line.source] = _Trace()
        sources.add(line.source)
        trace = open_traces.get(line.source)
        head = _TRACEBACK.search(line.text)
        frame = _FRAME.match(line.text)
        if head:
            if trace is None and line.text[: head.start()].strip(" +"):
                found.append((line._replace(raw=raw[: raw.index("Traceback")].rstrip()), False))
            open_traces[line.source] = _Trace()
        elif frame:
            open_traces.setdefault(line.source, _Trace()).frames.append((frame["path"], raw))
        elif _NATIVE_FRAME.match(line.text) or _GROUP_RULE.match(line.text):
            continue
        elif trace is not None:
            if line.text[:1].strip():
                close(line)
        elif _CHAIN.match(line.text):
            continue
        else:
            # An exception may be told without its traceback.
            is_failure = bool(EXCEPTION.search(line.text)) and line.level not in _QUIET and not ACCESS_LOG.search(raw)
            found.append((line, is_failure))
    for trace in open_traces.values():
        found.extend((_parsed(raw), False) for raw in trace.own())
    return found


def _parsed(raw: str) -> _Line:
    # However a line came here.
    raw = raw if len(raw) <= MOST_OF_A_LINE and raw.isprintable() else printable_line(raw)
    source, text = "", raw
    # Of a worker in an engine in an actor; more is nobody's name.
    for _nested in range(5):
        match = _SOURCE.match(text)
        if not match:
            break
        source, text = match[1] or match[2], text[match.end() :]
    head = _HEAD.match(text)
    level = head["level"] if head else ""
    # Without a level: SGLang's time and rank.
    begin = head or _TIME.match(text)
    text = text[begin.end() :] if begin else text
    group = _GROUP.match(text)
    return _Line(raw, source, level, text[group.end() :] if group else text)


def fold(lines: Sequence[str]) -> list[str]:
    """Return lines with their tracebacks folded."""
    return [line.raw for line, _failed in _fold(lines)]
