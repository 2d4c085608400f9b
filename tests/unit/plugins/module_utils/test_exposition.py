# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text format of Prometheus."""

from __future__ import annotations

import math
import re
import time

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils._exposition import Sample, parse


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("up 1", Sample("up", {}, 1.0)),
        ("up\t1.5e-3  1763881200000", Sample("up", {}, 0.0015)),
        ("vllm:x{} -2", Sample("vllm:x", {}, -2.0)),
        ('x{a="1",b="2"} 3', Sample("x", {"a": "1", "b": "2"}, 3.0)),
        ('x { a = "1" , b="2", } +.5', Sample("x", {"a": "1", "b": "2"}, 0.5)),
        ('x{a="1"}3', Sample("x", {"a": "1"}, 3.0)),
        (r'x{a="C:\\n \"q\"\nend }, {"} 1', Sample("x", {"a": 'C:\\n "q"\nend }, {'}, 1.0)),
        ('x_bucket{le="+Inf"} +Inf', Sample("x_bucket", {"le": "+Inf"}, math.inf)),
        ('x_total 5 # {trace_id="a"} 1.0 1763881200.5', Sample("x_total", {}, 5.0)),
        ('x{model="模型"} 1', Sample("x", {"model": "模型"}, 1.0)),
    ],
)
def test_sample(line, sample):
    assert parse(line + "\n") == [sample]


def test_not_a_number():
    (sample,) = parse("x NaN")
    assert math.isnan(sample.value)


def test_text():
    text = "# HELP x Things, {a} of them\n# TYPE x counter\r\n\n# a remark\nx 1\n  y 2\n# EOF\n"
    assert [(sample.name, sample.value) for sample in parse(text)] == [("x", 1.0), ("y", 2.0)]
    assert parse("") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<html>\n", "line 1: '<html>' is no metric"),
        ('{"detail": "Not Found"}', "line 1"),
        ("x 1\nx\n", "line 2: 'x' is no metric"),
        ("x one", "'x one'"),
        ("x 1_000", "'x 1_000'"),
        ("x 0x10", "'x 0x10'"),
        ("x infinity", "'x infinity'"),
        ("9x 1", "'9x 1'"),
        ('x{a="1" 1', "is no metric"),
        ("x{a=1} 1", "is no metric"),
        ('x{a="1"b="2"} 1', "is no metric"),
        ('x{,a="1"} 1', "is no metric"),
        ('x{a="1",a="2"} 1', "x has a label twice"),
        ('x{a="1",b="2"} 1\nx{b="2",a="1"} 2', 'line 2: \'x{b="2",a="1"} 2\' is there twice'),
        ("# TYPE x number\nx 1", "line 1: type number of x"),
        ("x 1 2 3", "'x 1 2 3'"),
    ],
)
def test_what_is_none(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)


def test_hostile_text_takes_no_time():
    began = time.process_time()
    for text in (
        'x{a="' + "\\" * 50000,
        "x{" + 'a="",' * 20000 + "!",
        "x" + " " * 100000 + "{",
        "# TYPE " + "x" * 100000,
    ):
        try:
            parse(text)
        except ValueError:
            continue
    assert time.process_time() - began < 5


def test_many_lines_are_read_in_time():
    text = "".join(f'vllm:x_bucket{{le="{number}",model_name="m"}} {number}\n' for number in range(20000))
    began = time.process_time()
    assert len(parse(text)) == 20000
    assert time.process_time() - began < 10
