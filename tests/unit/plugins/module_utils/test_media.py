# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _media
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault


def wav(seconds=1.0, width=2, channels=1, rate=22050, value=3000):
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        sample = struct.pack("<h", value) if width == 2 else bytes([128])
        file.writeframes(sample * channels * int(seconds * rate))
    return sink.getvalue()


def test_tone_is_a_wav_file_that_can_be_heard():
    assert _media.read_speech(_media.tone()) == {
        "sample_rate": 16000,
        "seconds": 1.0,
        "loudness": pytest.approx(0.259, abs=0.001),
    }


def test_read_speech_of_two_channels():
    assert _media.read_speech(wav(2.0, channels=2))["seconds"] == 2.0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes that are no WAV"),
        (b"{}", "2 bytes that are no WAV"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "no WAV"),
        (wav(width=1), "samples of 8 bits"),
        (wav(0.1), "0.10 s of sound"),
        (wav(31, rate=8000), "31.00 s of sound"),
        (wav(value=0), "1.00 s of silence"),
        (wav(value=5), "1.00 s of silence"),
    ],
)
def test_read_speech_refuses(data, words):
    with pytest.raises(Fault) as caught:
        _media.read_speech(data)
    assert caught.value.failure_class == "bad_response"
    assert words in str(caught.value)


def test_read_transcription():
    assert _media.read_transcription({"text": "hello", "language": "en"}) == "hello"
    assert _media.read_transcription({"text": ""}) == ""
    for body in (None, [], {}, {"text": None}, "hello"):
        with pytest.raises(Fault, match="wanted an object with a text"):
            _media.read_transcription(body)


MANY = {"en-US,es-US,de-DE": {"voices": ["Magpie.EN-US.Aria", "Magpie.DE-DE.Jonas", "Magpie.ES-US.Diego"]}}


@pytest.mark.parametrize(
    ("body", "language", "voice"),
    [
        (MANY, "de-DE", "Magpie.DE-DE.Jonas"),
        (MANY, "en-us", "Magpie.EN-US.Aria"),
        ({"en-US": {"voices": ["English-US.Female-1"]}}, "en-US", "English-US.Female-1"),
        ({"fr-FR": {"voices": ["a"]}, "it-IT": {"voices": ["b"]}}, "it-IT", "b"),
    ],
)
def test_choose_voice(body, language, voice):
    assert _media.choose_voice(body, language) == voice


@pytest.mark.parametrize(
    "body", [MANY, {}, None, [], {"ja-JP": {}}, {"ja-JP": {"voices": []}}, {"ja-JP": {"voices": [1]}}]
)
def test_choose_voice_of_a_language_that_has_none(body):
    with pytest.raises(Fault, match="wanted one for ja-JP") as caught:
        _media.choose_voice(body, "ja-JP")
    assert caught.value.failure_class == "bad_response"


def test_square_is_a_png_file():
    data = _media.square((1, 2, 3), 4)
    assert _media.image_type(data) == "image/png"
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (width, height, depth, kind) == (4, 4, 8, 2)
    start = data.index(b"IDAT") + 4
    length = struct.unpack(">I", data[start - 8 : start - 4])[0]
    assert zlib.decompress(data[start : start + length]) == (b"\0" + bytes((1, 2, 3)) * 4) * 4
    assert struct.unpack(">I", data[start + length : start + length + 4])[0] == zlib.crc32(
        data[start - 4 : start + length]
    )


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"<svg/>", None),
        (b"", None),
    ],
)
def test_image_type(data, kind):
    assert _media.image_type(data) == kind


def test_image_messages():
    (message,) = _media.image_messages(_media.square(), "Which colour?")
    text, picture = message["content"]
    assert text == {"type": "text", "text": "Which colour?"}
    kind, _comma, data = picture["image_url"]["url"].partition(",")
    assert (kind, base64.b64decode(data)) == ("data:image/png;base64", _media.square())


def test_read_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert _media.read_file(str(path), 5) == b"12345"
    with pytest.raises(ValueError, match="longer than 4 bytes"):
        _media.read_file(str(path), 4)
