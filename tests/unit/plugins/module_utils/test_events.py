# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Server-sent events, however they are cut."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _events
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", ["a", "b"], id="plain"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"], id="CRLF"),
        pytest.param(b"data: a\r\rdata: b\r\r", ["a", "b"], id="CR"),
        pytest.param(b": ping\n\ndata: a\n: keep-alive\n\n:\n\n", ["a"], id="comments"),
        pytest.param(b"data: a\ndata: b\n\n", ["a\nb"], id="several lines of data"),
        pytest.param(b"data:a\n\ndata:  b\n\n", ["a", " b"], id="one space after the colon belongs to it"),
        pytest.param(b"event: message\nid: 7\nretry: 10\ndata: a\n\n", ["a"], id="other fields"),
        pytest.param(b"event: ping\n\n\n\ndata: a\n\n", ["a"], id="events without data"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", ["a"], id="byte order mark"),
        pytest.param("data: Grüße 🚀\n\n".encode(), ["Grüße 🚀"], id="UTF-8"),
        pytest.param(b"data: a\xff\n\n", ["a\ufffd"], id="not UTF-8"),
        pytest.param(b"data: a\n\ndata: [DONE]\n\n", ["a", "[DONE]"], id="done"),
        pytest.param(b"data: a\n\ndata: cut", ["a"], id="unfinished event"),
        pytest.param(b"database: a\n\n", [], id="another field that begins alike"),
        pytest.param(b"", [], id="nothing"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_sse_data(stream, events, size):
    cut = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert list(_events.sse_data(cut)) == events


def written(events, end, comments):
    """A stream with these events, as a server may write it."""
    lines = []
    for index, event in enumerate(events):
        lines += [": keep-alive", ""] if index in comments else []
        lines += [f"data: {line}" for line in event.split("\n")] + ["event: message", ""]
    return "".join(line + end for line in lines).encode()


@given(
    events=st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=("Cs",)), max_size=20).flatmap(
        lambda text: st.sampled_from([text, f"{text}\n{text}"])), max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    comments=st.sets(st.integers(0, 5)),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)  # fmt: skip
def test_sse_data_gives_what_was_written_however_it_is_cut(events, end, comments, cuts):
    stream = written(events, end, comments)
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    parts = [stream[start:stop] for start, stop in zip(places, places[1:])]
    assert list(_events.sse_data(parts)) == events


@given(stream=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=12))
def test_sse_data_of_any_bytes_does_not_depend_on_where_they_are_cut(stream, cuts):
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    parts = [stream[start:stop] for start, stop in zip(places, places[1:])]
    assert list(_events.sse_data(parts)) == list(_events.sse_data([stream]))


def test_sse_data_yields_each_event_as_soon_as_it_is_complete():
    came = []

    def source():
        for part in (b"data: a\n\n", b"data: b\n", b"\n"):
            came.append(part)
            yield part

    events = _events.sse_data(source())
    assert (next(events), len(came)) == ("a", 1)
    assert (next(events), len(came)) == ("b", 3)
