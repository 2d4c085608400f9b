# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What YAML makes of words without quotes, with and without the file at hand, and what of it is refused."""

from __future__ import annotations

import datetime

import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _written
from ansible_collections.baremetal.nim.plugins.module_utils._resolve import ResolveError, resolve_services
from ansible_collections.baremetal.nim.plugins.module_utils._written import Written

SERVICE = {"name": "llama", "image": "nvcr.io/nim/meta/llama", "tag": "1.8.6", "gpus": [0]}
DEFAULTS = {"cache_root": "/c", "config_dir": "/e", "state_dir": "/s", "bind_address": "127.0.0.1"}
#: Words whose type YAML guesses, and which are none to it.
WORDS = [
    "1.10",
    "2.0",
    "1_000",
    "0755",
    "on",
    "off",
    "yes",
    "no",
    "true",
    "2025-01-01",
    "1:30",
    "1.0e+3",
    "0x1F",
    "0b11",
    ".inf",
    "12",
]
TEXTS = ["1.8.6", "1e3", "12e5", "08", "v1.10", "0.1.0"]


def resolve(written=None, **changes):
    """The service with what was written; the positions of it are those of the one service."""
    spec = {key: value for key, value in {**SERVICE, **changes}.items() if value is not ...}
    return resolve_services([spec], {"gpus": []}, {**DEFAULTS, "written": {0: written or {}}})[0]


def problems(written=None, **changes):
    """Why it is refused."""
    with pytest.raises(ResolveError) as caught:
        resolve(written, **changes)
    return caught.value.problems


def of(path, text):
    """How one value was written."""
    return {path: Written(text, "hosts.yml:7")}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "key", ["tag", "digest", "name", "model", "profile", "cache_seed", "bind_address", "contract", "state"]
)
def test_text_that_is_none_is_refused_with_its_cure(key, word):
    value = yaml.safe_load(word)
    assert not isinstance(value, str)
    told = problems(of((key,), word), **{key: value})
    first = next(problem for problem in told if f": {key} is " in problem)
    assert f"to YAML, written {word} in hosts.yml:7, wanted text" in first
    assert f'quote it: {key}: "{word}".' in first


@pytest.mark.parametrize("word", TEXTS)
def test_text_without_quotes_is_text_where_yaml_takes_it_for_one(word):
    assert resolve(tag=yaml.safe_load(word), contract="llm")["tag"] == word


def test_a_tag_from_somewhere_is_refused_too():
    (problem,) = problems(tag=1.1)
    assert problem == (
        'service llama: tag is 1.1, a number to YAML, wanted text; quote it as it is meant, such as tag: "1.1".'
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1.1, "1.1, a number to YAML"),
        (2, "2, a number to YAML"),
        (True, "true, true or false to YAML"),
        (datetime.date(2025, 1, 1), "2025-01-01, a date to YAML"),
        (["1.10"], "tag is a list, wanted text"),
        ({"a": 1}, "tag is a dictionary, wanted text"),
    ],
)
def test_what_it_is_instead(value, kind):
    (problem,) = (problem for problem in problems(tag=value, contract="llm") if "wanted text" in problem)
    assert kind in problem


@pytest.mark.parametrize("key", ["name", "tag", "image"])
def test_an_option_that_is_empty_is_not_the_word_none(key):
    assert all("None" not in problem for problem in problems(**{key: None}))


# -- variables of the container -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["8192", "true", "false", "0.4", "2.0", "1.5", "-1", "0"])
def test_a_variable_reaches_the_container_as_it_was_written(word):
    assert resolve(of(("env", "NIM_X"), word), env={"NIM_X": yaml.safe_load(word)})["env"]["NIM_X"] == word


@pytest.mark.parametrize(
    "word", ["1.10", "0.40", "1_000", "0755", "on", "Yes", "True", "1:30", "0x1F", "1.0e+3", ".inf", "+5", "2025-01-01"]
)
def test_a_variable_that_yaml_has_changed_is_refused(word):
    (problem,) = problems(of(("env", "NIM_X"), word), env={"NIM_X": yaml.safe_load(word)})
    assert f'written {word} in hosts.yml:7; quote it as it is meant: NIM_X: "{word}".' in problem


@pytest.mark.parametrize(
    ("value", "text"), [(8192, "8192"), (True, "true"), (0.4, "0.4"), ("on", "on"), ("1.10", "1.10")]
)
def test_a_variable_whose_file_is_not_known(value, text):
    assert resolve(env={"NIM_X": value})["env"]["NIM_X"] == text


@pytest.mark.parametrize("value", [1.1, 2.0, 1e-07, float("inf"), float("nan"), datetime.date(2025, 1, 1)])
def test_a_variable_of_which_something_may_be_lost_is_refused(value):
    (problem,) = problems(env={"NIM_X": value})
    assert "quote it as it is meant: NIM_X:" in problem


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, 'env has NIM_X without a value; leave it out, or write NIM_X: "" for an empty one.'),
        ([1], "env has NIM_X, which is a list; write it as one text in quotes."),
        ({"a": 1}, "env has NIM_X, which is a dictionary; write it as one text in quotes."),
    ],
)
def test_a_variable_that_is_no_scalar(value, said):
    assert problems(env={"NIM_X": value}) == [f"service llama: {said}"]


@pytest.mark.parametrize("key", [True, 1, 1.1, None])
def test_a_name_that_is_none(key):
    (problem,) = problems(env={key: "x"})
    assert f"env has {key!r}, which is no name of a variable; quote it" in problem


# -- numbers, truths, GPUs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["01000", "1:30", "0x1F90", "0b1"])
@pytest.mark.parametrize("key", ["port", "uid", "start_timeout", "log_rate", "cache_size_gb"])
def test_a_number_that_was_written_as_another_is_refused(key, word):
    (problem,) = problems(of((key,), word), **{key: yaml.safe_load(word)})
    assert f"written {word} in hosts.yml:7; write the decimal number that you mean." in problem


@pytest.mark.parametrize("word", ["8001", "8_001", "+8001"])
def test_a_number_in_groups_is_the_same_to_everybody(word):
    assert resolve(of(("port",), word), port=yaml.safe_load(word))["port"] == 8001


@pytest.mark.parametrize("key", ["gpu_shared", "offline", "read_only", "key_at_runtime", "cache_read_only"])
@pytest.mark.parametrize("value", ["ja", 2, 1.0, "maybe", []])
def test_a_truth_that_is_none_is_refused(key, value):
    """It was taken for false."""
    (problem,) = problems(**{key: value})
    assert problem == f"service llama: {key} is {value!r}, wanted true or false."


@pytest.mark.parametrize("value", [True, "yes", "On", 1, "1", "y"])
def test_a_truth(value):
    assert resolve(read_only=value)["read_only"] is True


@pytest.mark.parametrize("gpus", [[60], 60])
def test_a_part_of_mig_without_quotes_is_refused(gpus):
    """1:0 is 60 in base 60; 0:1 is text."""
    path = ("gpus", 0) if isinstance(gpus, list) else ("gpus",)
    assert yaml.safe_load("1:0") == 60 and yaml.safe_load("0:1") == "0:1"
    (problem,) = problems(of(path, "1:0"), gpus=gpus)
    assert 'gpus names 60, a number to YAML, written 1:0 in hosts.yml:7; quote a part of MIG: "1:0".' in problem
    (problem,) = problems(gpus=gpus)
    assert 'was it a part of MIG? Quote it: "1:0".' in problem


@pytest.mark.parametrize("value", [True, 1.5, datetime.date(2025, 1, 1), None])
def test_a_gpu_that_is_no_word_is_refused_before_its_driver_is_there(value):
    assert problems(gpus=[value])


# -- other options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verify": {"language": False}}, "verify.language is false, true or false to YAML"),
        ({"verify": {"expect_regex": 4.2}}, "verify.expect_regex is 4.2, a number to YAML"),
        ({"verify": {"prompts": [{"prompt": "a"}, {"prompt": 7}]}}, "verify.prompts[1].prompt is 7, a number to YAML"),
        (
            {"verify": {"prompts": [{"prompt": "a", "expect_regex": 4.2}]}},
            "verify.prompts[0].expect_regex is 4.2, a number",
        ),
        ({"prefetch": ["download", 1.1]}, "prefetch has an item: 1.1, a number to YAML"),
        ({"shm_size": 1.1}, "shm_size: 1.1, a number to YAML"),
        ({"verify": {"url": 1}}, "verify.url is 1, a number to YAML"),
    ],
)
def test_other_options_that_are_text(changes, said):
    assert any(said in problem for problem in problems(**changes))


def test_size_of_shared_memory_in_bytes():
    assert resolve(shm_size=17179869184)["shm_size"] == "17179869184"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": 28.1}, ["x_version is 28.1, a number to YAML"]),
        ({"version": True}, ["x_version is true"]),
        ({"version": 580}, []),
        ({"version": "28.10"}, []),
        ({"version": ""}, []),
        ({"version": None}, []),
        ({"version": ["a", 1.5]}, ["x_version is 1.5"]),
        ({}, []),
    ],
)
def test_options_of_roles(options, said):
    found = _written.option_problems(options, {"version": "x_version"})
    assert len(found) == len(said)
    assert all(problem.startswith(words) for problem, words in zip(found, said))
