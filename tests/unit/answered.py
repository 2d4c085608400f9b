# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Streamed answers as servers write them, byte by byte, and what a benchmark makes of them."""

from __future__ import annotations

import json

from ansible_collections.baremetal.nim.plugins.module_utils._answers import Reading, Record


def event(body):
    return b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"


def content(text="word", **delta):
    return event({"choices": [{"delta": {"content": text, **delta}}]})


def usage(prompt, completion):
    return event(
        {
            "choices": [],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        }
    )


END = event({"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]})
DONE = event(b"[DONE]")


def answered(start, times, prompt=10, completion=None):
    """A record as a stream gives it: content at these moments by a fake clock, and a usage chunk."""
    record = Record(start)
    reading = Reading(record)
    reading.feed(content(""), start + 0.001)
    for at in times:
        reading.feed(content(), at)
    reading.feed(END, times[-1])
    reading.feed(usage(prompt, len(times) if completion is None else completion), times[-1] + 1)
    reading.feed(DONE, times[-1] + 2)
    reading.end(times[-1] + 2)
    return record


def failed(start, kind="unreachable"):
    record = Record(start)
    record.error, record.text = kind, f"it is {kind}"
    return record
