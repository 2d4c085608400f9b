# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to one host because of another. Runs after the tests of each host, which remove their services."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import ask, machine, play, service


def running(name):
    """The container of a host's service, and since when it runs."""
    answer = machine(name).exec_run(["docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "nim-llama"])
    assert answer.exit_code == 0, answer
    return answer.output


def test_upgrade_touches_no_host_after_one_that_rolled_back():
    both = play("site")
    assert both.returncode == 0, both.stdout
    before = running("gpu02")
    spec = service("gpu01", tag="2.0.5", env={"NIM_LAB_FAULT": "crash_at_start"}, start_timeout=20)
    run = play("upgrade", extra={"nim_services": [spec]})
    assert run.returncode == 2 and "Rolled back:" in run.stdout, run.stdout
    assert "gpu02" not in run.stdout.partition("PLAY RECAP")[2], run.stdout
    assert running("gpu02") == before
    assert ask("gpu01") and ask("gpu02")
