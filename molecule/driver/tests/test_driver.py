# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver under running services. The tests go on from each other, in this order."""

from __future__ import annotations

import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import ask, eventually, in_container, machine, play, play_and_kill

pytestmark = pytest.mark.usefixtures("journal")

HOST = "gpu01"
OLD, NOW, NEW = "580.126.20", "580.159.04", "595.71.05"
LOCKSTEP = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "libnvidia-ml1", "nvidia-persistenced")


def site(*args, **driver):
    """site.yml with variables of nvidia_driver, without their prefix."""
    return play("site", *args, limit=HOST, extra={f"nvidia_driver_{key}": value for key, value in driver.items()})


def converges(**driver):
    """Runs the play to its end, and again without a change."""
    run = site(**driver)
    assert run.returncode == 0, run.stdout
    assert ask(HOST)
    again = site(**driver)
    assert again.returncode == 0 and "changed=0 " in again.stdout, again.stdout
    return run.stdout


def packages(host):
    """Installed driver packages with their versions."""
    listing = host.check_output("dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n' '*nvidia*' 'libcuda1'")
    rows = (line.split() for line in listing.splitlines())
    return {
        row[1]: row[2]
        for row in rows
        if row[0] in ("ii", "hi") and "container" not in row[1] and "pinning" not in row[1]
    }


def snapshot(host):
    """What a refused change must leave alone: the packages, the loaded driver and the very container."""
    container = host.check_output("docker inspect --format '{{.Id}} {{.State.StartedAt}}' nim-llama")
    return packages(host), loaded(host), container


def loaded(host):
    """Version of the driver in the kernel."""
    return re.search(r"Module for \S+\s+(\S+)", host.check_output("cat /proc/driver/nvidia/version")).group(1)


def refused(host, *told, **driver):
    """The play fails, says TOLD, and the host serves as before."""
    before = snapshot(host)
    run = site(**driver)
    assert run.returncode == 2, run.stdout
    missing = [text for text in told if text not in run.stdout]
    assert not missing, f"not told: {missing}\n{run.stdout}"
    assert snapshot(host) == before
    assert ask(HOST)
    return run.stdout


def test_bare_host_became_one_with_a_driver(host):
    versions = {name: version.split("-")[0] for name, version in packages(host).items()}
    assert {versions[name] for name in LOCKSTEP} == {NOW}, versions
    assert loaded(host) == NOW
    assert "GPU 0: NVIDIA H200" in host.check_output("nvidia-smi -L")
    daemon = host.service("nvidia-persistenced")
    assert daemon.is_running and daemon.is_enabled


def test_pain_2_and_16_updates_leave_the_driver_alone(host):
    held = host.check_output("apt-mark showhold").split()
    assert set(LOCKSTEP) <= set(held), held
    assert "nvidia-container-toolkit" in held
    assert "Unattended-Upgrade::Package-Blacklist" in host.check_output("apt-config dump | grep -A9 Package-Blacklist")
    upgrade = host.check_output("apt-get --simulate -o APT::Get::Show-Upgraded=true upgrade")
    assert "Inst nvidia" not in upgrade and "Inst libcuda" not in upgrade


def test_pain_6_no_fabric_manager_without_a_fabric(host):
    assert "nvidia-fabricmanager" not in packages(host)


def test_check_mode_says_what_an_upgrade_would_do(host):
    before = snapshot(host)
    run = site("--check", branch="595")
    assert run.returncode == 0, run.stdout
    assert f"Would upgrade the driver from {NOW}" in run.stdout
    assert snapshot(host) == before


def test_upgrade_under_a_running_service(host):
    before = host.check_output("docker inspect --format '{{.Id}}' nim-llama")
    converges(branch="595")
    versions = {name: version.split("-")[0] for name, version in packages(host).items()}
    assert {versions[name] for name in LOCKSTEP} == {NEW}, versions
    assert loaded(host) == NEW
    assert f"libcuda.so.{NEW}" in host.check_output("cat /var/run/cdi/nvidia.yaml")
    assert host.check_output("docker inspect --format '{{.Id}}' nim-llama") != before
    assert "GPU 0" in in_container(host, "nvidia-smi -L"), "the container has the new libraries"
    journal = host.check_output("journalctl -o short-monotonic --no-pager -u nim-llama -u nvidia-persistenced")
    stopped = [line for line in journal.splitlines() if "Stopped " in line][-2:]
    assert "nim-llama" in stopped[0] and "ersistence" in stopped[1], "services stop before what they use"


def test_downgrade_to_an_exact_version_and_back(host):
    converges(version=OLD)
    assert loaded(host) == OLD
    converges(version=NOW)
    assert loaded(host) == NOW


def test_foreign_process_on_the_gpu_refuses_the_change(host):
    script = "import os,time; os.open('/dev/nvidia0', os.O_PATH); time.sleep(600)"
    host.check_output(f'systemd-run --unit=training python3 -c "{script}"')
    try:
        refused(host, "python3", "training.service", "nothing was changed", branch="595")
    finally:
        host.run("systemctl stop training")


@pytest.mark.parametrize(
    ("told", "driver"),
    [
        pytest.param(["580.159", "nvidia_driver_version"], {"branch": "580.159"}, id="branch is no branch"),
        pytest.param(["floppy", "cuda_repo"], {"source": "floppy"}, id="unknown source"),
        pytest.param(["595.71.05", "580"], {"version": NEW}, id="version of another branch"),
        pytest.param(["999"], {"branch": "999"}, id="pain 10: no such branch"),
        pytest.param(["http://apt.lab:9/cuda/"], {"branch": "595", "mirror_url": "http://apt.lab:9/cuda/"}, id="unreachable mirror"),
        pytest.param(
            ["fingerprint"], {"branch": "595", "mirror_key_fingerprint": "0123456789ABCDEF0123456789ABCDEF01234567"}, id="pain 8: wrong key"
        ),
        pytest.param(
            ["cuda-foreign-key"], {"branch": "595", "mirror_url": "http://apt.lab:8080/cuda-foreign-key/"}, id="pain 8: signed by another"
        ),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_anything_is_touched(host, told, driver):
    refused(host, *told, **driver)


def test_pain_10_broken_pins_are_found_by_simulation(host):
    pin = "Package: libcuda1\\nPin: version 580.126.20*\\nPin-Priority: 2000\\n"
    host.check_output(f"printf '{pin}' > /etc/apt/preferences.d/site")
    try:
        refused(host, "libcuda1", branch="595")
    finally:
        host.run("rm /etc/apt/preferences.d/site")


def test_pain_12_headers_of_the_running_kernel_are_missing(host):
    kernel = host.check_output("uname -r")
    host.check_output(f"dpkg --purge --force-depends linux-headers-{kernel}")
    try:
        refused(host, f"linux-headers-{kernel}", branch="595", mirror_url="http://apt.lab:8080/cuda-no-headers/")
    finally:
        # The refused run left the poor mirror configured; the next good one replaces it.
        converges()
    assert host.package(f"linux-headers-{kernel}").is_installed


def half_configure(host, package):
    """What dpkg knows of a package whose installation was cut off."""
    edit = f"'/^Package: {package}$/,/^$/s/^Status: \\([a-z]*\\) .*/Status: \\1 ok half-configured/'"
    host.check_output(f"sed -i {edit} /var/lib/dpkg/status")
    assert package in host.check_output("dpkg --audit")


def test_interrupted_dpkg_is_told_where_it_is_not_our_own(host):
    half_configure(host, "procps")
    refused(host, "procps", "dpkg --configure -a", branch="595")
    host.check_output("dpkg --configure -a")
    converges()


def test_interrupted_installation_of_the_driver_is_finished(host):
    half_configure(host, "libcuda1")
    converges()
    assert host.check_output("dpkg --audit") == ""


def test_full_disk_during_the_installation(host):
    # Filling the real disk, whatever its size, would take others down: a small one is laid over a place where dpkg unpacks, and filled.
    place = "/usr/lib/lab-driver"
    host.check_output(f"mount -t tmpfs -o size=64k tmpfs {place}")
    try:
        assert host.run(f"dd if=/dev/zero of={place}/filler bs=4k").rc != 0
        assert int(host.check_output(f"LC_ALL=C df --output=avail {place} | tail -1")) == 0
        run = site(branch="595")
        assert run.returncode == 2 and "No space left on device" in run.stdout, run.stdout
        assert "dpkg --configure -a" in run.stdout
    finally:
        host.check_output(f"umount {place}")
    host.run("dpkg --configure -a")
    converges(branch="595")
    converges()


@pytest.mark.parametrize(
    ("at", "delay"),
    [
        pytest.param("Make room for it", 1.5, id="while services stop"),
        pytest.param("Install the driver", 1.0, id="while packages install"),
        pytest.param("Load the driver and start", 0.3, id="while the driver loads"),
    ],
)
def test_killed_and_run_again(host, at, delay):
    branch = "595" if loaded(host).startswith("580") else "580"
    play_and_kill("site", at, delay, extra={"nvidia_driver_branch": branch}, limit=HOST)
    # What the killed play had asked of the host may still be under way there.
    eventually(lambda: host.run("pgrep -x 'dpkg|apt-get'").rc == 1)
    host.run("dpkg --configure -a")
    converges(branch=branch)
    assert loaded(host).startswith(branch)


def test_pain_22_nouveau_needs_a_reboot_and_says_so(host):
    host.check_output("touch /opt/lab-driver/nouveau")
    host.check_output("rm -f /etc/modprobe.d/baremetal-nim-nouveau.conf")
    machine(HOST).restart(timeout=180)
    eventually(lambda: host.run("true").rc == 0)
    run = site()
    assert run.returncode == 2 and "nouveau" in run.stdout and "nvidia_driver_reboot_allowed" in run.stdout, run.stdout
    assert host.file("/etc/modprobe.d/baremetal-nim-nouveau.conf").exists
    machine(HOST).restart(timeout=180)
    eventually(lambda: host.run("true").rc == 0)
    converges()
    host.check_output("rm /opt/lab-driver/nouveau")
