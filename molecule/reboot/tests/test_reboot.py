# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reboot contract on a machine with a kernel of its own. The tests go on from each other, in this order."""

from __future__ import annotations

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import play

OLD, NEW = "580.126.20", "580.159.04"
HERE = pathlib.Path(__file__).resolve().parents[1]


def driver(version, **more):
    """Runs the play for a version; the caller looks at the exit status. An emulated machine is slow to let anybody in."""
    extra = {"nvidia_driver_version": version, **{f"nvidia_driver_{key}": value for key, value in more.items()}}
    return play(str(HERE / "driver.yml"), "-i", str(HERE / "inventory"), "--timeout", "60", extra=extra, limit="vm01")


def boot(host):
    """Identity of this boot of the machine."""
    return host.check_output("cat /proc/sys/kernel/random/boot_id")


def loaded(host):
    """Version of the driver in the kernel."""
    return re.search(r"Module for \S+\s+(\S+)", host.check_output("cat /proc/driver/nvidia/version")).group(1)


def packages(host):
    """The driver's packages with their versions; which branch is pinned does not count."""
    listing = host.check_output("dpkg-query -W '*nvidia*' libcuda1")
    return [line for line in listing.splitlines() if "pinning" not in line]


def test_bare_machine_needs_no_reboot(host):
    before = boot(host)
    run = driver(OLD)
    assert run.returncode == 0, run.stdout
    assert loaded(host) == OLD and boot(host) == before


def test_refused_without_permission(host):
    before = boot(host), packages(host)
    host.check_output("touch /opt/lab-driver/stuck")
    run = driver(NEW)
    assert run.returncode == 2, run.stdout
    for told in ("vm01", "nvidia", "in use", "nvidia_driver_reboot_allowed=true"):
        assert told in run.stdout, run.stdout
    assert (boot(host), packages(host)) == before
    assert loaded(host) == OLD
    assert OLD in host.check_output("nvidia-smi --query-gpu=driver_version --format=csv")


def test_reboots_with_permission_and_goes_on_in_the_same_play(host):
    before = boot(host)
    run = driver(NEW, reboot_allowed=True)
    assert run.returncode == 0, run.stdout
    assert "reboot | Reboot the host" in run.stdout
    # What came after the role in that play already had the new driver.
    assert NEW in run.stdout.partition("TASK [Go on with it]")[2], run.stdout
    assert boot(host) != before and loaded(host) == NEW
    assert host.service("nvidia-persistenced").is_running


def test_second_run_changes_nothing_and_does_not_reboot(host):
    before = boot(host)
    run = driver(NEW, reboot_allowed=True)
    assert run.returncode == 0 and "changed=0 " in run.stdout, run.stdout
    assert boot(host) == before
