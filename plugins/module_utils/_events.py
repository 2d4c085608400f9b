# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Server-sent events out of a byte stream. Pure.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

#: Most characters between two ends of events.
MOST = 4 * 2**20


class Event(NamedTuple):
    """One event. data: its lines of data joined, None where it has none. name: what it is called, empty for most.

    error: what servers say of an error outside of the data, as comment or as a field of that name; empty for none.
    """

    data: str | None
    name: str = ""
    error: str = ""

    @property
    def is_error(self) -> bool:
        """Whether it tells of an error by its form, whatever the data are."""
        return self.name == "error" or bool(self.error)


def sse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Yield each server-sent event in a byte stream that may be cut anywhere, with data or with an error.

    Comments and events with neither are dropped, all three line ends are known, lines of data are joined.
    As the standard asks, an event not closed by an empty line before the stream ends is dropped.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("replace"), translate=True)
    name = error = ""
    data: list[str] = []
    comments: list[str] = []
    # Parts of a line that has not ended; joined once, so that a line in many parts is not copied with each of them.
    pending: list[str] = []
    size = 0
    for chunk in itertools.chain(chunks, (None,)):
        text = decoder.decode(chunk or b"", final=chunk is None)
        size += len(text)
        if size > MOST:
            raise ValueError(f"an event of the stream is longer than {MOST // 2**20} MiB")
        if "\n" not in text:
            pending.append(text)
            continue
        *lines, last = ("".join(pending) + text).split("\n")
        pending = [last]
        for line in lines:
            field, _colon, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
            elif field == "event":
                name = value.strip()
            elif field == "error":
                # llama.cpp's own, which the standard does not know.
                error = value.strip()
            elif line.startswith(":"):
                comments.append(value.strip()[:1000])
                # Who keeps a connection alive for hours says nothing that counts.
                del comments[:-20]
            elif not line:
                if data or name == "error" or error:
                    # Dynamo says in a comment why it stops.
                    error = error or (" ".join(comments) if name == "error" and not data else "")
                    yield Event("\n".join(data) if data else None, name, error)
                name = error = ""
                data, comments = [], []
                size = len(last)


def sse_data(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the data of each server-sent event that has some."""
    return (event.data for event in sse_events(chunks) if event.data is not None)
