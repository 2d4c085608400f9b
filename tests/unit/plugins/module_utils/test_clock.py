# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two clocks that are compared."""

from __future__ import annotations

import time

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _clock
from hypothesis import given
from hypothesis import strategies as st

NOW = 1795423100.0
#: Local times that differ from UTC by hours, by a quarter of one, by a day and more, and right now by two things at once.
ZONES = ["UTC", "XST-8", "XST+5XDT,M3.2.0,M11.1.0", "XST-5:45", "XST-14", "XST+12", ""]


@pytest.fixture(params=ZONES)
def zone(request, monkeypatch):
    """The process is in another time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


SECONDS = st.floats(0, 1000)


@given(skew=st.floats(-1e6, 1e6), there=SECONDS, read=SECONDS, back=SECONDS)
def test_the_truth_is_between_the_bounds_however_long_it_took(skew, there, read, back):
    took = there + read + back
    clock = _clock.ahead(NOW + there + skew, read, NOW, NOW + took, took)
    assert clock["least"] - 0.001 <= skew <= clock["most"] + 0.001
    # Nobody knows more exactly: only the way there and back is uncertain, and not how long the host took to read.
    assert clock["most"] - clock["least"] == pytest.approx(there + back, abs=0.01)
    assert abs(_clock.off(clock)) <= abs(skew) + 0.001


@given(skew=st.floats(-1e6, 1e6), step=st.floats(-1e5, 1e5), there=SECONDS, read=SECONDS)
def test_a_clock_of_the_controller_that_is_set_meanwhile_only_widens_them(skew, step, there, read):
    took = there + read
    # By the controller's old clock, or by its new one.
    for host in (NOW + there + skew, NOW + there + skew + step):
        clock = _clock.ahead(host, read, NOW, NOW + took + step, took)
        assert clock["least"] - 0.001 <= skew <= clock["most"] + 0.001


@pytest.mark.parametrize(
    ("least", "most", "off"), [(-1.0, 2.0, 0.0), (0.0, 0.0, 0.0), (3.0, 9.0, 3.0), (-9.0, -3.0, -3.0), (-900.0, 5, 0.0)]
)
def test_what_the_way_can_explain_is_no_difference(least, most, off):
    assert _clock.off({"least": least, "most": most}) == off


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (-130.0, 5.0, None),
        (-120.0, -110.0, None),
        (119.0, 500.0, None),
        (121.4, 133.0, "clock is 121 to 133 s ahead of the controller's: it said 2026-11-23 08:38:20 UTC, allowed are 120 s"),
        (-133.0, -121.4, "clock is 121 to 133 s behind the controller's: it said 2026-11-23 08:38:20 UTC"),
        (500.1, 500.3, "clock is 500 s ahead of the controller's"),
    ],
)  # fmt: skip
def test_a_sentence_tells_both_bounds_and_no_local_time(zone, least, most, said):
    sentence = _clock.sentence({"least": least, "most": most}, NOW, 120.0)
    assert sentence.startswith(said) and "chrony" in sentence if said else sentence == ""
    assert "local time" not in sentence


@pytest.mark.parametrize(
    ("seconds", "likely"),
    [(28800, True), (-18000 + 12, True), (20700, True), (-50400, True), (28000, False), (86400, False), (900, False)],
)
def test_difference_of_a_time_zone_is_told(seconds, likely):
    assert ("timedatectl" in _clock.sentence({"least": seconds, "most": seconds + 1}, NOW, 120.0)) is likely


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Mon 2026-11-23 08:38:20 UTC", NOW),
        ("Sun 2026-11-01 05:30:00 UTC", 1793511000.0),
        ("Thu 1970-01-01 00:00:01 UTC", 1.0),
        ("Mon 2026-11-23 16:38:20 CST", None),
        ("Mo 2026-11-23 08:38:20", None),
        ("n/a", None),
        ("", None),
    ],
)
def test_times_of_systemd(zone, text, at):
    assert _clock.stamp(text) == at


HOUR = 3600.0


@pytest.mark.parametrize(
    ("changed", "at", "newer"),
    [
        pytest.param(-50.0, -100.0, True, id="changed-after"),
        pytest.param(-150.0, -100.0, False, id="changed-before"),
        pytest.param(-50.0, None, True, id="changed-after-without-a-note"),
        pytest.param(-150.0, None, False, id="changed-before-without-a-note"),
        pytest.param(-99.6, -101.0, True, id="changed-soon-after"),
        pytest.param(-100.4, -101.0, False, id="noted-to-the-second"),
        pytest.param(-50.0, -100.0 + HOUR, True, id="clock-was-set-back-before-the-change"),
        pytest.param(-50.0 + HOUR, -100.0 + HOUR, False, id="dated-in-the-future-by-a-clock-that-was-wrong"),
        pytest.param(-1000.0, -100.0 - HOUR, True, id="virtual-machine-slept-since-the-start"),
        pytest.param(-150.0 - HOUR, -100.0 - HOUR, False, id="virtual-machine-slept-and-changed-before"),
    ],
)
def test_file_newer_than_a_unit(changed, at, newer):
    """The machine runs for 500 seconds, the unit for 100."""
    noted = None if at is None else NOW + at
    assert _clock.changed_since(NOW + changed, 400.0, noted, NOW, 500.0) is newer


def test_elapsed_is_no_time_of_day(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: -1.0)
    first = _clock.elapsed()
    assert 0 < first <= _clock.elapsed()
    # A system that has only the one.
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert 0 < _clock.elapsed() <= time.monotonic()
