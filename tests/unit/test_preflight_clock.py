# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole reads of this machine, by the role: controllers and hosts in other time zones, hosts that are slow, clocks that are wrong."""

from __future__ import annotations

import re
import sys
import time

import pytest
from ansible_collections.baremetal.nim.tests.unit.role_play import HERE, play_role

SKEWED = """\
import time
real, time.time = time.time, lambda: real() + {skew}
"""


def changing_now():
    """A time zone whose clocks go back by an hour in this very hour: each local time comes twice."""
    now = time.gmtime()
    # Summer is two hours ahead of UTC and ends when its clocks show this hour's end.
    day, hour = now.tm_yday + (now.tm_hour + 2) // 24, (now.tm_hour + 2) % 24
    return f"XST-1XDT-2,J{1 if day > 200 else 200},{day - 1}/{hour}:{now.tm_min:02}"


@pytest.fixture
def refused(tmp_path):
    """Reads and judges; returns what is said of the clock, and all that was told."""

    def run(*, zone="UTC", hosts="gpu01,", skew=None, slow=0.0, allowed=2, arguments=(), **play):
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        given = {"nvidia_driver_source": "preinstalled", "preflight_max_clock_skew": allowed, **HERE}
        if skew is not None:
            # A host whose clock is off: its Python tells another time.
            (tmp_path / "sitecustomize.py").write_text(SKEWED.format(skew=skew))
            (programs / "skewed").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
            (programs / "skewed").chmod(0o755)
            given["ansible_python_interpreter"] = str(programs / "skewed")
        if slow:
            (programs / "systemctl").write_text(f"#!/bin/sh\nrm {tmp_path}/$host.slow && sleep {slow}\nexit 1\n")
            (programs / "systemctl").chmod(0o755)
            (tmp_path / "gpu02.slow").touch()
            play["environment"] = {"host": "{{ inventory_hostname }}", "PATH": f"{programs}:/usr/bin:/bin"}
        told = play_role(
            tmp_path, "preflight", given, "-i", hosts, *arguments, environment={"TZ": zone}, programs=programs, play=play
        )[1]  # fmt: skip
        assert told.count("fatal: [") == hosts.count(","), told
        # Ansible shows it twice.
        return sorted(set(re.findall(r"clock is .*? chrony", told))), told

    return run


# The last one is another zone each minute: made when the test runs, not when its name is.
@pytest.mark.parametrize("zone", ["XST-8", "XST+5XDT,M3.2.0,M11.1.0", "XST-5:45", "changing now"])
def test_zone_of_the_controller_is_of_no_matter(refused, zone):
    assert refused(zone=changing_now() if zone == "changing now" else zone)[0] == []


@pytest.mark.parametrize("arguments", [(), ("--check",)])
def test_host_in_another_zone(refused, arguments):
    assert refused(zone="XST-8", environment={"TZ": "XST+11:30"}, arguments=arguments)[0] == []


@pytest.mark.parametrize("forks", ["1", "5"])
def test_host_that_waited_for_another_is_not_off(refused, forks):
    """One host is read for longer than clocks may differ, by itself or while all others wait for their turn."""
    found, told = refused(hosts="gpu01,gpu02,gpu03,", slow=4.0, arguments=("--forks", forks))
    assert found == [], told


@pytest.mark.parametrize("skew", [3600, -20700, 600])
def test_clock_that_is_wrong_is_told(refused, skew):
    """However slow this machine is, what is told is true."""
    found, told = refused(zone="XST-8", skew=skew, allowed=120)
    assert len(found) == 1, told
    said = re.search(
        r"clock is (?:(\d+) to )?(\d+) s (ahead of|behind) the controller's: it said \S+ \S+ UTC", found[0]
    )
    assert said and said[3] == ("ahead of" if skew > 0 else "behind"), found
    assert int(said[1] or said[2]) - 1 <= abs(skew) <= int(said[2]) + 1, found
