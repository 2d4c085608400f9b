# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the other families of NIMs do, as small as it can be and still true: texts that are alike lie near each other, and what was
spoken can be heard again."""

from __future__ import annotations

import array
import hashlib
import io
import itertools
import math
import re
import sys
import wave

DIMENSIONS = 256
# Words that carry no meaning of their own.
COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by for from has how in into is it its of on or that the this to was what when where which who why with",
    )
)
ENDINGS = ("ations", "ation", "ings", "ing", "edly", "ed", "ies", "es", "s")
RATE = 22050
# A character is a tone of its own, so long that its pitch can be told from its neighbour's.
SLOT = 882
LOWEST, STEP = 500.0, 50.0
FIRST, LAST = 32, 126


def words(text: str) -> list[str]:
    """Return the words that carry the meaning of a text, without their endings."""
    found = []
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        if word not in COMMON:
            ending = next((end for end in ENDINGS if word.endswith(end) and len(word) - len(end) > 2), "")
            found.append(word.removesuffix(ending))
    return found


def embed(text: str) -> list[float]:
    """Return a vector of length 1; texts with the same words point the same way."""
    vector = [0.0] * DIMENSIONS
    for word in words(text) or [text]:
        digest = hashlib.sha256(word.encode()).digest()
        # A few places for each word, so that two words seldom share all of theirs.
        for at in range(0, 8, 2):
            vector[digest[at]] += 1 if digest[at + 1] % 2 else -1
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [round(value / length, 7) for value in vector]


def rank(query: str, passages: list[str]) -> list[tuple[int, float]]:
    """Return places and logits of passages, best first."""
    asked = embed(query)
    logits = [round(20 * sum(x * y for x, y in zip(asked, embed(text), strict=True)) - 10, 6) for text in passages]
    return sorted(enumerate(logits), key=lambda pair: -pair[1])


def speak(text: str) -> bytes:
    """Return a WAV file in which each character of a text is a tone."""
    samples = array.array("h")
    for char in text:
        code = min(max(ord(char), FIRST), LAST) if char.isascii() else ord("?")
        pitch = LOWEST + STEP * (code - FIRST)
        samples.extend(int(9000 * math.sin(2 * math.pi * pitch * at / RATE)) for at in range(SLOT))
    if sys.byteorder == "big":
        samples.byteswap()
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return sink.getvalue()


def hear(data: bytes) -> str:
    """Return the text that a WAV file of speak() holds; nothing is heard in any other sound. Raises wave.Error, EOFError."""
    with wave.open(io.BytesIO(data)) as file:
        if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (RATE, 2, 1):
            return ""
        samples = array.array("h", file.readframes(file.getnframes()))
    if sys.byteorder == "big":
        samples.byteswap()
    text = ""
    for start in range(0, len(samples) - SLOT + 1, SLOT):
        slot = samples[start : start + SLOT]
        turns = sum(before < 0 <= after for before, after in itertools.pairwise(slot))
        # Each tone begins at its first turn.
        code = round(((turns + 1) * RATE / SLOT - LOWEST) / STEP) + FIRST
        if FIRST <= code <= LAST:
            text += chr(code)
    return text
