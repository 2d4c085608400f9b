# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's own driver package, compiled for real. The tests go on from each other, in this order."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import play

HERE = pathlib.Path(__file__).resolve().parents[1]
VERSION = "550.163.01"
#: The kernels of Debian 13 of today took in a change that its driver 550.163.01 does not know (pci_resize_resource has a
#: parameter more); those of Debian 12's backports have not.
ARCHIVES = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie
Components: main contrib non-free non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def driver(kernel):
    """Runs the play for a kernel; the caller looks at the exit status."""
    return play(str(HERE / "driver.yml"), extra={"nvidia_driver_kernel": kernel}, limit="gpu01")


def newest(names):
    """The newest of some kernels of one series."""
    return max(names, key=lambda name: [int(number) for number in name.split("+")[0].split(".")])


@pytest.fixture(scope="module")
def kernels(host):
    """Debian release to the newest 6.12 that there are headers of, among those of Debian 13 and of the backports of Debian 12."""
    host.check_output("rm -f /etc/apt/sources.list")
    host.check_output("printf '%%s' %s > /etc/apt/sources.list.d/debian.sources", ARCHIVES)
    host.check_output("apt-get update -qq")
    pattern = "^linux-headers-6[.]12[.0-9]*[+]deb1[23]-cloud-amd64$"
    names = host.check_output(f"apt-cache search --names-only '{pattern}'").splitlines()
    found = [name.split()[0].removeprefix("linux-headers-") for name in names]
    return {release: newest([name for name in found if release in name]) for release in ("deb12", "deb13")}


def compiled(host, kernel):
    """Asserts that the module on disk is the driver's, and made for the kernel."""
    answer = host.check_output("modinfo -k %s nvidia-current-open", kernel)
    fields = dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)
    assert fields["version"].strip() == VERSION
    assert fields["license"].strip() == "Dual MIT/GPL"
    assert fields["vermagic"].split()[0] == kernel
    assert f"{VERSION}, {kernel}" in host.check_output("dkms status")


def test_module_is_compiled_for_the_kernel(host, kernels):
    run = driver(kernels["deb12"])
    assert run.returncode == 0, run.stdout
    compiled(host, kernels["deb12"])


def test_second_run_changes_nothing(kernels):
    run = driver(kernels["deb12"])
    assert run.returncode == 0 and "changed=0 " in run.stdout, run.stdout


def test_module_that_does_not_compile_is_told_with_the_compilers_words(host, kernels):
    before = host.check_output("dpkg-query -W nvidia-open-kernel-dkms libcuda1")
    run = driver(kernels["deb13"])
    assert host.check_output("dpkg-query -W nvidia-open-kernel-dkms libcuda1") == before
    if run.returncode == 0:
        # The archive has a kernel or a driver by now with which it does compile.
        compiled(host, kernels["deb13"])
        return
    assert f"DKMS cannot build nvidia-current-open {VERSION} for kernel {kernels['deb13']}" in run.stdout, run.stdout
    assert "error: " in run.stdout and "make.log" in run.stdout and "nvidia_driver_kernel" in run.stdout
