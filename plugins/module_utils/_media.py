# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The dialogue with NIMs that hear, speak and see: sound and pictures made and read. Pure but for files that are named.

This module util is private to the collection and may change at any time. Source: NVIDIA's HTTP references of the speech NIMs
(recognition and synthesis), the OpenAI API reference (pictures in messages), the RIFF and PNG formats.
"""

from __future__ import annotations

import array
import base64
import io
import math
import struct
import sys
import wave
import zlib
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten

TRANSCRIPTIONS_PATH = "/v1/audio/transcriptions"
SYNTHESIZE_PATH = "/v1/audio/synthesize"
VOICES_PATH = "/v1/audio/list_voices"
SPOKEN = "This is a test of the speech service."
QUESTION = "Which colour has this square? Answer with one word."
COLOUR = r"(?i)\bred\b"
#: Recognition takes files up to this size.
MOST_AUDIO_BYTES = 25 * 2**20
MOST_IMAGE_BYTES = 20 * 2**20
_RATE = 16000
# The loudness of a whisper, of full scale, and what seven words may take.
_SILENCE = 0.001
_LEAST_SECONDS, _MOST_SECONDS = 0.3, 30.0
_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


def tone(seconds: float = 1.0, pitch: float = 440.0) -> bytes:
    """Return a WAV file with a tone: 16 bits, mono, 16 kHz."""
    samples = array.array(
        "h", (int(12000 * math.sin(2 * math.pi * pitch * number / _RATE)) for number in range(int(seconds * _RATE)))
    )
    if sys.byteorder == "big":
        samples.byteswap()
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes(samples.tobytes())
    return sink.getvalue()


def read_transcription(body: Any) -> str:
    """Return the text that was heard; Fault bad_response when the answer has none."""
    text = body.get("text") if isinstance(body, Mapping) else None
    if not isinstance(text, str):
        raise Fault(
            "bad_response", f"POST {TRANSCRIPTIONS_PATH} answered {shorten(repr(body))}", "an object with a text"
        )
    return text


def choose_voice(body: Any, language: str) -> str:
    """Return the first voice of a language in an answer of /v1/audio/list_voices.

    The answer has lists of voices by locales, which stand separated by commas. Raises Fault bad_response when no list has
    the language.
    """
    groups = body if isinstance(body, Mapping) else {}
    for locales, group in groups.items():
        voices = group.get("voices") if isinstance(group, Mapping) else None
        if language.lower() in str(locales).lower().split(",") and isinstance(voices, list):
            # One list may have the voices of many locales: MODEL.LOCALE.SPEAKER.
            own = [voice for voice in voices if f".{language.lower()}." in str(voice).lower()] or voices
            if own and isinstance(own[0], str):
                return own[0]
    known = ", ".join(map(str, groups)) or shorten(repr(body), 80)
    raise Fault("bad_response", f"GET {VOICES_PATH} has voices for {known}", f"one for {language}")


def read_speech(data: bytes) -> dict[str, Any]:
    """Return what a WAV file holds: sample_rate (Hz), seconds, loudness (root mean square, of full scale).

    Raises Fault bad_response when it is none, silent, or too short or long for the text.
    """
    request = f"POST {SYNTHESIZE_PATH}"
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError, struct.error) as exc:
        seen = f"{request} answered {len(data)} bytes that are no WAV ({exc or type(exc).__name__})"
        raise Fault("bad_response", seen, "a WAV file", [repr(data[:64])]) from exc
    if width != 2 or not rate:
        raise Fault("bad_response", f"{request} answered samples of {8 * width} bits at {rate} Hz", "16 bits")
    samples = array.array("h", frames[: len(frames) // 2 * 2])
    if sys.byteorder == "big":
        samples.byteswap()
    seconds = len(samples) / channels / rate
    loudness = math.sqrt(sum(sample * sample for sample in samples) / len(samples)) / 32768 if samples else 0.0
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        wanted = f"{_LEAST_SECONDS:g} to {_MOST_SECONDS:g} s"
        raise Fault("bad_response", f"{request} answered {seconds:.2f} s of sound for {SPOKEN!r}", wanted)
    if loudness < _SILENCE:
        raise Fault("bad_response", f"{request} answered {seconds:.2f} s of silence", "speech")
    return {"sample_rate": rate, "seconds": round(seconds, 3), "loudness": round(loudness, 4)}


def square(colour: tuple[int, int, int] = (255, 0, 0), side: int = 64) -> bytes:
    """Return a PNG file with a square of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def image_type(data: bytes) -> str | None:
    """Return the media type of a picture by how it begins; None for what is none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _IMAGES.items() if data.startswith(start)), None)


def image_messages(data: bytes, question: str) -> list[dict[str, Any]]:
    """Return messages that ask about a picture, which must be one."""
    url = f"data:{image_type(data)};base64,{base64.b64encode(data).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, picture]}]


def read_file(path: str, most: int) -> bytes:
    """Return the content of a file; ValueError with its name, size and the limit when that is above MOST bytes."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} is longer than {most} bytes")
    return data
