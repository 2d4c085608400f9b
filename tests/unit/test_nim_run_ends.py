# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor of a container, with a docker that says how the container ended."""

from __future__ import annotations

import pathlib
import subprocess

import pytest
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE

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
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.splitlines() == [f"container nim-llama {line}" for line in told]


PODMAN = """\
#!/bin/sh
echo "podman $*" >> {log}
case "$1 $2" in
  "secret exists") [ -e {log}.secret ] ;;
  "secret create") cat > {log}.secret ;;
  "secret rm") rm {log}.secret ;;
esac
"""


@pytest.fixture
def podman(tmp_path):
    """Runs what units of Podman have from the script; systemctl tells of JOB."""

    def run(*argv, job="", **environment):
        for name, body in (("podman", PODMAN.format(log=tmp_path / "log")), ("systemctl", f"#!/bin/sh\necho {job}\n")):
            (tmp_path / name).write_text(body)
            (tmp_path / name).chmod(0o755)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **environment}
        return subprocess.run(
            ["sh", SCRIPT, *argv], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    return run


def test_podman_keeps_the_key_for_as_long_as_the_unit_runs(tmp_path, podman):
    (tmp_path / "key").write_text("nvapi-secret\n")
    assert podman("--secret", "nim-llama", str(tmp_path / "key")).returncode == 0
    assert (tmp_path / "log.secret").read_text() == "nvapi-secret"
    for _again in range(2):
        assert podman("--ended", "nim-llama", job="4711", EXIT_CODE="exited", EXIT_STATUS="143").stderr == ""
        assert not (tmp_path / "log.secret").exists()
    assert "nvapi-secret" not in (tmp_path / "log").read_text()


def test_key_that_podman_does_not_take_fails_the_start(tmp_path, podman):
    assert podman("--secret", "nim-llama", str(tmp_path / "none")).returncode != 0


@pytest.mark.parametrize(
    ("environment", "job", "told"),
    [
        ({"EXIT_CODE": "exited", "EXIT_STATUS": "70", "SERVICE_RESULT": "exit-code"}, "", [
            "ended by itself with exit status 70 (NIM: a fault of the GPU that only a restart cures)"]),
        ({"EXIT_CODE": "exited", "EXIT_STATUS": "0", "SERVICE_RESULT": "success"}, "0", ["ended by itself with exit status 0"]),
        ({"EXIT_CODE": "exited", "EXIT_STATUS": "137", "SERVICE_RESULT": "oom-kill"}, "", [
            "was killed: out of memory (oom-kill)", "ended by itself with exit status 137 (killed by SIGKILL)"]),
        ({"EXIT_CODE": "exited", "EXIT_STATUS": "143", "SERVICE_RESULT": "success"}, "4711", []),
        ({"SERVICE_RESULT": "timeout"}, "", []),
    ],
    ids=["fault of the GPU", "success", "out of memory", "stopped", "never started"],
)  # fmt: skip
def test_end_of_a_container_of_podman_is_told(podman, environment, job, told):
    done = podman("--ended", "nim-llama", job=job, **environment)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [f"container nim-llama {line}" for line in told]
