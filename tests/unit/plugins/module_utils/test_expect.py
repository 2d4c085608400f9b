# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _expect
from ansible_collections.baremetal.nim.plugins.module_utils._chat import Answer
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault


def answer(content="It is Paris.", tokens=5, finish="stop", arrivals=(), ttft=None):
    usage = {} if tokens is None else {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    return Answer(content, finish, usage, 1.0, ttft, list(arrivals))


def even(number, gap, start=0.5):
    return [start + gap * index for index in range(number)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict.fromkeys(_expect.SPEC),
        {"expect_regex": r"(?i)\bparis\b"},
        {"expect_script": "Latin"},
        {"expect_finish_reason": "stop"},
        {"expect_min_tokens": 5, "expect_max_tokens": 5},
    ],
)
def test_check_accepts(options):
    _expect.check(answer(), options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"expect_regex": "Rome"}, "the answer is 'It is Paris.', wanted a match of 'Rome'"),
        ({"expect_script": "Han"}, "(letters of Latin), wanted letters of Han"),
        ({"expect_finish_reason": "length"}, "(finish_reason stop), wanted finish_reason length"),
        ({"expect_min_tokens": 6}, "(5 tokens), wanted at least 6 tokens"),
        ({"expect_max_tokens": 4}, "(5 tokens), wanted at most 4 tokens"),
        ({"expect_min_tokens": 6, "expect_max_tokens": 9}, "(5 tokens), wanted at least 6 and at most 9 tokens"),
        (
            {"expect_regex": "Rome", "expect_script": "Thai", "expect_max_tokens": 1},
            "(letters of Latin and 5 tokens), wanted a match of 'Rome' and letters of Thai and at most 1 tokens",
        ),
    ],
)
def test_check_names_all_that_is_not_as_expected(options, text):
    with pytest.raises(Fault) as caught:
        _expect.check(answer(), options)
    assert (caught.value.failure_class, caught.value.evidence) == ("wrong_answer", ["It is Paris."])
    assert text in str(caught.value)


def test_check_without_usage():
    with pytest.raises(Fault, match="an unknown number of tokens"):
        _expect.check(answer(tokens=None), {"expect_max_tokens": 9})


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("樱花", ["Han"]),
        ("東京はどこ", ["Han", "Hiragana"]),
        ("カタカナ", ["Katakana"]),
        ("안녕", ["Hangul"]),
        ("Привет, мир", ["Cyrillic"]),
        ("مرحبا", ["Arabic"]),
        ("नमस्ते", ["Devanagari"]),
        ("สวัสดี", ["Thai"]),
        ("שלום", ["Hebrew"]),
        ("Ω and Größe", ["Greek", "Latin"]),
        ("42, 🚀!", []),
        ("", []),
    ],
)
def test_scripts(text, scripts):
    assert _expect.scripts(text) == scripts


@pytest.mark.parametrize(
    ("given", "speed"),
    [
        # 11 tokens in 10 gaps of 20 ms.
        (answer(tokens=11, arrivals=even(11, 0.02)), 50.0),
        # Several tokens to a piece: tokens count, pieces do not.
        (answer(tokens=21, arrivals=even(11, 0.02)), 100.0),
        (answer(tokens=7, arrivals=even(7, 0.02)), None),
        (answer(tokens=20, arrivals=[0.5]), None),
        (answer(tokens=20, arrivals=[0.5] * 20), None),
        (answer(tokens=None, arrivals=even(20, 0.02)), None),
    ],
)
def test_speed(given, speed):
    assert _expect.speed(given) == (None if speed is None else pytest.approx(speed))


@pytest.mark.parametrize(
    ("arrivals", "burst"),
    [
        (even(7, 0.0), None),
        (even(8, 0.0), True),
        (even(40, 0.0001), True),
        # nginx passes on 4 kB at a time.
        ([0.5 + index // 16 * 0.2 + index % 16 * 0.00005 for index in range(64)], True),
        # The same whole answer, which a busy reader took in three times.
        ([0.5 + index * 0.00005 + index // 20 * 0.002 for index in range(60)], True),
        (even(40, 0.003), False),
        # A small model, as fast as there are.
        (even(64, 0.00045), True),
        ([0.5 + index // 4 * 0.0018 + index % 4 * 0.0002 for index in range(64)], False),
        # Speculative decoding: what a step accepts comes at once.
        ([0.5 + index // 4 * 0.03 + index % 4 * 0.00005 for index in range(64)], False),
        ([0.5 + index // 20 * 0.05 for index in range(100)], False),
        # A busy reader finds some pieces together.
        ([0.5 + index // 2 * 0.01 + index % 2 * 0.002 for index in range(40)], False),
    ],
)
def test_is_burst(arrivals, burst):
    assert _expect.is_burst(answer(arrivals=arrivals)) is burst


def test_slow():
    paced = answer(tokens=11, arrivals=even(11, 0.02), ttft=0.5)
    _expect.check(paced, {"max_ttft": 0.5, "min_tokens_per_second": 49}, streamed=True)
    # A plain answer has no pace.
    _expect.check(paced, {"max_ttft": 0.1, "min_tokens_per_second": 51})
    with pytest.raises(Fault) as caught:
        _expect.check(paced, {"max_ttft": 0.1, "min_tokens_per_second": 51}, streamed=True)
    assert caught.value.failure_class == "slow"
    assert str(caught.value) == (
        "the first token came after 0.5 s and tokens came at 50 tokens/s, wanted it within 0.1 s and at least 51 tokens/s"
    )


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, []),
        ({"expect_regex": "a+", "expect_min_tokens": 1, "expect_max_tokens": 1, "max_tokens": 1}, []),
        ({"expect_regex": "("}, ["expect_regex '(' is no regular expression"]),
        ({"expect_min_tokens": 0, "max_ttft": -1}, ["expect_min_tokens is 0", "max_ttft is -1"]),
        ({"expect_min_tokens": 3, "expect_max_tokens": 2}, ["expect_min_tokens is 3, it must not be above"]),
        ({"expect_min_tokens": 3, "max_tokens": 2}, ["max_tokens lets an answer have 2 only"]),
    ],
)
def test_problems(options, found):
    problems = _expect.problems(options)
    assert len(problems) == len(found)
    assert all(text in problem for text, problem in zip(found, problems))
