# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why the driver did not install, from a recorded failure of DKMS and from what package managers say."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.baremetal.nim.plugins.filter.driver_failure import FilterModule

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures/dkms"
LOG = "/var/lib/dkms/nvidia-current-open/550.163.01/build/make.log"
SKIPPED = "Module build for kernel 6.8.0-85-generic was skipped since the\nkernel headers for this kernel do not seem to be installed."
APT = {
    "msg": "'/usr/bin/apt-get -y install x' failed: E: Sub-process /usr/bin/dpkg returned an error code (1)\n",
    "failed": True,
}
#: ansible-core 2.19 and 2.20 say that, 2.21 says it in other words.
COMMAND = {"cmd": ["rhel-drivers", "install"], "rc": 1, "msg": "non-zero return code", "stdout": "", "stderr": ""}
RECORDED = {**APT, "stdout": (FIXTURES / "apt-stdout.txt").read_text()}
driver_failure = FilterModule().filters()["driver_failure"]


def test_pain_12_driver_that_does_not_fit_the_kernel_is_told_with_the_compilers_words():
    assert driver_failure(RECORDED)["log"] == LOG
    reason = driver_failure(RECORDED, (FIXTURES / "make.log").read_text())["reason"]
    assert reason.startswith(
        "DKMS cannot build nvidia-current-open 550.163.01 for kernel 6.12.117+deb13-cloud-amd64: nv-pci.c:237:9: error: too few"
    )
    assert LOG in reason and "nvidia_driver_kernel" in reason


def test_log_that_is_gone_is_still_named():
    reason = driver_failure(RECORDED, "")["reason"]
    assert f"cloud-amd64: ({LOG})" in reason


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"msg": "No package matching 'nvidia-open' is available"}, "No package matching 'nvidia-open' is available."),
        ({"msg": "", "stderr": "dkms:\n  not found"}, "dkms: not found."),
        ({**COMMAND, "stdout": "Looking", "stderr": "no drivers available"}, "no drivers available."),
        ({**COMMAND, "stdout": "no drivers\navailable"}, "no drivers available."),
        ({**COMMAND, "msg": "The command exited with a non-zero return code.", "stderr": "no drivers available"}, "no drivers available."),
        (COMMAND, "non-zero return code."),
        ({**COMMAND, "msg": "Error executing command: rhel-drivers: No such file", "rc": 2}, "rhel-drivers: No such file."),
        ({}, "unknown."),
        (
            {"msg": "One or more items failed", "results": [{"msg": "fine"}, {"failed": True, "msg": "fingerprint is A, wanted B."}]},
            "fingerprint is A, wanted B.",
        ),
        (
            {**APT, "stdout": SKIPPED},
            "returned an error code (1). The headers of kernel 6.8.0-85-generic are not installed, so DKMS built nothing for it.",
        ),
    ],
)  # fmt: skip
def test_other_failures_keep_their_words(result, reason):
    told = driver_failure(result, "")
    assert told["log"] is None and told["reason"].endswith(reason)
