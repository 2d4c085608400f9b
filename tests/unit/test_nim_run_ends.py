# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor of a container, with a docker that says how the container ended."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "roles/nim_service/files/nim-run"
DOCKER = """\
#!/bin/sh
[ "$1" != inspect ] || echo false {status} {oom}
"""


@pytest.mark.parametrize(
    ("status", "oom", "told"),
    [
        (0, "false", ["ended by itself with exit status 0"]),
        (1, "false", ["ended by itself with exit status 1"]),
        (70, "false", ["ended by itself with exit status 70 (NIM: a fault of the GPU that only a restart cures)"]),
        (126, "false", ["ended by itself with exit status 126 (the command of the image cannot be run)"]),
        (127, "false", ["ended by itself with exit status 127 (the command of the image is not in it)"]),
        (137, "false", ["ended by itself with exit status 137 (killed by SIGKILL)"]),
        (
            137,
            "true",
            ["was killed: out of memory (oom-kill)", "ended by itself with exit status 137 (killed by SIGKILL)"],
        ),
        (139, "false", ["ended by itself with exit status 139 (segmentation fault)"]),
        (143, "false", ["ended by itself with exit status 143 (ended by SIGTERM)"]),
    ],
)
def test_end_of_a_container_is_told(tmp_path, status, oom, told):
    docker = tmp_path / "docker"
    docker.write_text(DOCKER.format(status=status, oom=oom))
    docker.chmod(0o755)
    done = subprocess.run(
        ["sh", SCRIPT, "nim-llama", "60", "image"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.splitlines() == [f"container nim-llama {line}" for line in told]
