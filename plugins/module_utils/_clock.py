# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two clocks, compared at one moment. Private to the collection; pure but for elapsed().

Times are seconds since 1970, which no time zone changes; durations are by a clock that nobody sets.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from typing import Any

#: Seconds by which two answers may differ that are the same one.
_SAME = 2.0


def elapsed() -> float:
    """Seconds by a clock that only goes forward, also while the machine sleeps where the system has such a one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def ahead(host: float, after: float, before: float, end: float, took: float) -> dict[str, float]:
    """How far the clock of a host is ahead of the controller's, as bounds: ``least`` and ``most``, in seconds.

    HOST is the host's time when its read began, AFTER the seconds that the read took from there. BEFORE and END are the controller's
    times when it asked and when it had the answer, TOOK the seconds between. The host looked at its clock somewhere in between,
    but not in the last AFTER seconds: however long the read takes, only the way there and back is unknown.
    """
    way = max(took - after, 0.0)
    # By the first look at the controller's clock, and by the second: they differ only where that clock was set meanwhile.
    begun, ended = host - before, host - end + took
    return {"least": round(min(begun, ended) - way, 3), "most": round(max(begun, ended), 3)}


def off(clock: Mapping[str, Any]) -> float:
    """The smallest difference that the bounds leave; 0.0 where the clocks may agree."""
    least, most = float(clock["least"]), float(clock["most"])
    return least if least > 0 else most if most < 0 else 0.0


def utc(seconds: float) -> str:
    """A time for people, who must not have to guess the zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def iso(seconds: float) -> str:
    """A time for files, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def sentence(clock: Mapping[str, Any], said: float, allowed: float) -> str:
    """Why a host's CLOCK, which SAID a time, is off by more than is ALLOWED, and the cure; empty where it may be right."""
    seconds = off(clock)
    if abs(seconds) <= allowed:
        return ""
    near, far = sorted(round(abs(clock[bound])) for bound in ("least", "most"))
    return (
        f"clock is {near if near == far else f'{near} to {far}'} s {'ahead of' if seconds > 0 else 'behind'} the controller's: it said"
        f" {utc(said)}, allowed are {allowed:g} s (preflight_max_clock_skew); TLS and package signatures need true time:"
        f" start systemd-timesyncd or chrony.{_zone(seconds)}"
    )


def _zone(seconds: float) -> str:
    """What a difference as of a time zone, of whole quarters of an hour, comes from most often."""
    quarters = round(seconds / 900)
    if not 2 <= abs(quarters) <= 56 or abs(seconds - quarters * 900) > 30:
        return ""
    return " By so much a time zone may differ from UTC, as if the clock had been set to local time: see timedatectl."


def stamp(text: str) -> float | None:
    """A time as systemd writes it where the zone is UTC (``Mon 2026-11-23 17:47:02 UTC``), None where it is none."""
    try:
        return float(calendar.timegm(time.strptime(text.partition(" ")[2], "%Y-%m-%d %H:%M:%S UTC")))
    except ValueError:
        return None


def changed_since(changed: float, entered: float, at: float | None, now: float, monotonic: float) -> bool:
    """Whether a file, CHANGED at this time of the clock, is newer than a unit that became active ENTERED seconds after the boot.

    AT is the time of the clock then, as systemd noted it to the second, None where it did not; NOW and MONOTONIC are the two clocks now.
    The clock may have been set since, in either direction: the earlier of the two answers is taken, so that a change is rather seen
    twice than never. A file of the future was dated by a clock that was wrong, and proves nothing.
    """
    began = now - monotonic + entered
    if at is not None and abs(at - began) > _SAME:
        began = min(began, at)
    return began < changed <= now
