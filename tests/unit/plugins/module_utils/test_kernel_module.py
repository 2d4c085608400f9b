# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Orders in which the driver's users go and come back."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _kernel_module as km

#: As /sys/module/*/holders tells it on a host with a display and RDMA.
LOADED = {
    "nvidia_uvm": [],
    "nvidia_drm": [],
    "nvidia_modeset": ["nvidia_drm"],
    "nvidia": ["nvidia_uvm", "nvidia_modeset", "nvidia_peermem"],
    "nvidia_peermem": [],
    "ib_uverbs": ["nvidia_peermem"],
    "nvme": [],
}


def test_users_of_a_module_are_unloaded_before_it():
    order = km.unload_order(LOADED)
    assert sorted(order) == ["nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_peermem", "nvidia_uvm"]
    assert order[-1] == "nvidia"
    assert order.index("nvidia_drm") < order.index("nvidia_modeset")


@pytest.mark.parametrize("loaded", [{}, {"nvme": []}])
def test_nothing_to_unload(loaded):
    assert km.unload_order(loaded) == []


def test_foreign_module_that_uses_nvidia_goes_first():
    assert km.unload_order({"nvidia": ["siteprobe"], "siteprobe": []}) == ["siteprobe", "nvidia"]


def test_circle_of_users_ends():
    assert sorted(km.unload_order({"nvidia": ["nvidia_a"], "nvidia_a": ["nvidia"]})) == ["nvidia", "nvidia_a"]


def units(**states):
    names = {name.replace("__", "-") + ".service": state for name, state in states.items()}
    return {name: {"Id": name, "ActiveState": state} for name, state in names.items()}


def test_pain_20_services_stop_before_telemetry_fabric_and_persistence():
    running = units(
        nvidia__persistenced="active", nim__b="active", nvidia__dcgm="active", nvidia__fabricmanager="active",
        nim__a="activating", dcgm__exporter="active", nim__off="inactive", nvidia__imex="failed",
    )  # fmt: skip
    assert km.stop_order(running) == [
        "nim-a.service",
        "nim-b.service",
        "dcgm-exporter.service",
        "nvidia-dcgm.service",
        "nvidia-fabricmanager.service",
        "nvidia-persistenced.service",
    ]


@pytest.mark.parametrize(
    ("stopped", "refresh", "wanted"),
    [
        (
            ["nim-a.service", "nvidia-persistenced.service"],
            True,
            ["nvidia-persistenced.service", km.CDI_REFRESH, "nim-a.service"],
        ),
        (["nim-a.service", "nim-b.service"], True, [km.CDI_REFRESH, "nim-b.service", "nim-a.service"]),
        (["nvidia-persistenced.service"], True, ["nvidia-persistenced.service", km.CDI_REFRESH]),
        (["nim-a.service", "nvidia-persistenced.service"], False, ["nvidia-persistenced.service", "nim-a.service"]),
        ([], False, []),
    ],
)
def test_pain_4_specification_is_written_before_the_first_service_starts(stopped, refresh, wanted):
    assert km.start_order(stopped, refresh) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('["nim-a.service"]', ["nim-a.service"]),
        ("", []),
        ("{", []),
        ('{"a": 1}', []),
        ('["a.service", 7]', ["a.service"]),
    ],
)
def test_record_of_stopped_units(text, wanted):
    assert km.parse_stopped(text) == wanted


def test_holders_in_words():
    holders = [{"pid": 7, "name": "python3", "unit": "training.service"}, {"pid": 9, "name": "cuda", "unit": None}]
    assert km.describe_holders(holders) == "python3 (pid 7, training.service), cuda (pid 9)"
