# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the benchmark stage: what is taken, and what is refused before any load."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.filter.nim_benchmark_options import nim_benchmark_options


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        (None, {}),
        ("", {}),
        ({"concurrency": [1, 4]}, {"concurrency": [1, 4]}),
        # As extra variables and surveys give them.
        ('{"concurrency": [1, 4]}', {"concurrency": [1, 4]}),
        ("{requests: 3, slo: {ttft_ms: 5}}", {"requests": 3, "slo": {"ttft_ms": 5}}),
        ({"requests": "3", "concurrency": "1,4"}, {"requests": "3", "concurrency": "1,4"}),
        ({"prompts": None}, {"prompts": None}),
        ({"gates": [{"metric": "ttft_ms", "max": 1}]}, {"gates": [{"metric": "ttft_ms", "max": 1}]}),
        # A file of the host that measures, at which the controller cannot look.
        ({"ca_path": "/etc/nowhere.pem"}, {"ca_path": "/etc/nowhere.pem"}),
    ],
)
def test_options_are_given_back(given, options):
    assert nim_benchmark_options(given) == options


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gate": [{"metric": "ttft_ms", "max": 1}]}, ["the unknown key 'gate'. Did you mean 'gates'?"]),
        ({"concurency": [1]}, ["the unknown key 'concurency'. Did you mean 'concurrency'?"]),
        ({"gates": [{"metric": "ttft_ms", "maximum": 1}]}, ["the unknown key gates.maximum"]),
        ({"gates": [{"metric": "ttft"}]}, ["ttft_ms"]),
        ({"slo": {"ttft": 1}}, ["the unknown key slo.ttft"]),
        ({"gates": [{"metric": "ttft_ms"}]}, ["gate 1 (ttft_ms): give min or max"]),
        ({"gates": [{"metric": "ttft_ms", "max": float("nan")}]}, ["no number is kept by min None and max nan"]),
        ({"gates": [{"metric": "ttft_ms", "min": 5, "max": 1}]}, ["no number is kept by min 5.0 and max 1.0"]),
        (
            {"gates": [{"metric": "ttft_ms", "max": 1, "at": 3}], "concurrency": [1]},
            ["at 3 is not a value of the sweep"],
        ),
        ({"concurrency": [1], "request_rate": [1]}, ["mutually exclusive"]),
        ({"requests": "many"}, ["requests"]),
        ({"url": "http://x", "run_id": "x"}, ["url is not for nim_benchmark", "run_id is not for nim_benchmark"]),
        ({"baseline": {}}, ["say nim_benchmark_baseline"]),
        ({"api_key": "sk-top secret"}, ["api_key holds spaces"]),
        ([1], ["it is no dictionary"]),
        ("[1]", ["it is no dictionary"]),
        ("{", ["it is a text that is no YAML"]),
        ({"gate": 1, "requests": 0, "model": "m"}, ["'gate'", "requests is 0", "model is not for"]),
    ],
)
def test_what_nobody_reads_is_refused(given, words):
    with pytest.raises(AnsibleFilterError) as caught:
        nim_benchmark_options(given)
    assert all(text in str(caught.value) for text in ["nim_benchmark: ", *words]), str(caught.value)
    assert "sk-top" not in str(caught.value)


def test_a_misspelt_variable_is_refused():
    names = ["nim_benchmark", "nim_benchmark_results", "nim_benchmark_profiles", "other"]
    assert nim_benchmark_options({}, names) == {}
    with pytest.raises(AnsibleFilterError, match="nim_benchmark_basline is read by nobody"):
        nim_benchmark_options({}, [*names, "nim_benchmark_basline"])
