# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether anything reads what the entry of a service says of its verification."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _probe, _resolve
from ansible_collections.baremetal.nim.plugins.module_utils._verify_options import (
    DEFAULT_PROBES,
    PROMPT_KEYS,
    READERS,
    unread_options,
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "Hello", "expect_regex": "a", "max_ttft": 2, "max_tokens": 5},
        {"prompts": [{"prompt": "Hello", "expect_script": "Han"}, {"messages": []}]},
        {"probes": ["pace"], "min_tokens_per_second": 5},
        {"probes": "embedding"},
        {"probes": ["transcription"], "language": "de-DE", "audio_file": "/a.wav", "expect_regex": "hello"},
        {"probes": ["speech"], "voice": "a"},
        {"probes": ["tool_call", "completion"], "tool_choice": "auto", "prompt": "Hello"},
        {"probes": ["health"], "expect_regex": None},
        {"probes": [], "check_metadata": False, "expect_profile": "x", "request_timeout": 3},
    ],
)
def test_what_is_read(options):
    assert list(unread_options(options)) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"probes": ["embedding"], "expect_regex": "a"},
            "verify.expect_regex is read by no probe of embedding; add one of completion",
        ),
        (
            {"probes": ["completion"], "max_ttft": 1},
            "verify.max_ttft is read by no probe of completion; add one of pace, stream",
        ),
        ({"probes": ["health"], "prompt": "Hello"}, "verify.prompt is read by no probe of health"),
        ({"probes": [], "prompt": "Hello"}, "verify.prompt is read by no probe of none"),
        ({"image_file": "/a.png"}, "verify.image_file is read by no probe of completion, stream; add one of vision"),
        ({"tool_choice": "auto"}, "add one of tool_call"),
        ({"probes": ["transcription"], "expect_regex": "a"}, "give audio_file"),
        (
            {"prompts": [{"prompt": "a", "expect_regx": "b"}]},
            "prompts[0] has the unknown key 'expect_regx'. Did you mean 'expect_regex'?",
        ),
        ({"prompts": ["a"]}, "verify.prompts[0] is no dictionary"),
        ({"prompts": {"prompt": "a"}}, "verify.prompts is no list"),
    ],
)
def test_what_nobody_reads(options, words):
    (problem,) = unread_options(options)
    assert words in problem


def test_the_names_are_those_of_the_module():
    spec = _probe.ARGUMENT_SPEC
    assert set(PROMPT_KEYS) == set(spec["prompts"]["options"])
    assert tuple(spec["probes"]["default"]) == DEFAULT_PROBES
    assert set(READERS) <= _resolve.VERIFY_KEYS
    assert {probe for readers in READERS.values() for probe in readers} <= set(spec["probes"]["choices"])
