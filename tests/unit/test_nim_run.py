# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor of a service, run for real; docker is a small script that writes down what it is told."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

NIM_RUN = pathlib.Path(__file__).parents[2] / "roles/nim_service/files/nim-run"
IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct@sha256:6b3d"
KEY = "nvapi-9J3k2 LmNoPqRsTuVwXyZ"
ARGUMENTS = ["--device", "nvidia.com/gpu=0", "--env-file", "/etc/nim/a b.env", IMAGE]
RUN = [
    "run",
    "--detach",
    "--name",
    "nim-llama",
    "--init",
    "--pull",
    "never",
    "--restart",
    "no",
    "--security-opt",
    "no-new-privileges",
]
RUN += ["--log-driver", "local", "--log-opt", "max-size=20m", "--log-opt", "max-file=3"]
DOCKER = """\
#!/bin/sh
printf '%s\\0' "$@" >> "$LOG"
printf '\\1' >> "$LOG"
case "$1 $2" in
  'image inspect') cat "$WORDS" || { echo 'No such image' >&2; exit 1; } ;;
  'inspect --type') echo 'false 3 false' ;;
esac
"""
#: Entrypoint and command of an image, and what Docker 26.1 answers of them.
WORDS = ["/usr/bin/printf", "[%s]\\n", "it's", "two\nlines\n", "$HOME `id`", "", "a  b", '"q"', "back\\slash", "*"]
ANSWER = """\
'/usr/bin/printf' '[%s]\\n' 'it'\\''s' 'two
lines
' '$HOME `id`' '' 'a  b' '"q"' 'back\\slash' '*'
"""


@pytest.fixture
def nim_run(tmp_path):
    """Runs the supervisor until its container, which ends at once; returns how it left and the calls of docker."""
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "key").write_text(f"{KEY}\n")

    def run(*options, words=ANSWER):
        if words is not None:
            (tmp_path / "words").write_text(words)
        done = subprocess.run(
            [str(NIM_RUN), *options, "nim-llama", "60", *ARGUMENTS],
            env={
                "PATH": f"{docker.parent}:{os.environ['PATH']}",
                "LOG": str(tmp_path / "log"),
                "WORDS": str(tmp_path / "words"),
                "RUNTIME_DIRECTORY": str(tmp_path / "run"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        log = tmp_path / "log"
        calls = log.read_text().split("\1")[:-1] if log.exists() else []
        return done, [call.split("\0")[:-1] for call in calls]

    return run


def started(calls):
    """The arguments of docker run."""
    (found,) = [call for call in calls if call[0] == "run"]
    return found


def test_arguments_go_to_docker_as_they_are(nim_run):
    done, calls = nim_run()
    assert started(calls) == [*RUN, *ARGUMENTS]
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "container nim-llama ended by itself with exit status 3\n"
    assert [call[0] for call in calls] == ["rm", "run", "logs", "inspect", "rm"]


def test_key_comes_in_a_file_and_the_images_words_after_it(nim_run, tmp_path):
    done, calls = nim_run("--key-file", str(tmp_path / "key"))
    assert done.returncode == 3, done.stderr
    call = started(calls)
    volume = f"{tmp_path}/run/ngc_api_key:/run/secrets/ngc_api_key:ro"
    front = [*RUN, "--volume", volume, "--entrypoint", "/bin/sh", *ARGUMENTS, "-c"]
    assert (call[: len(front)], call[len(front) + 1 :]) == (front, ["sh", *WORDS])
    copy = tmp_path / "run/ngc_api_key"
    assert (copy.read_text(), copy.stat().st_mode & 0o777) == (f"{KEY}\n", 0o444)


def test_key_is_in_no_argument(nim_run, tmp_path):
    done, calls = nim_run("--key-file", str(tmp_path / "key"))
    assert not [word for call in calls for word in call if "nvapi" in word]
    assert "nvapi" not in done.stdout + done.stderr


def test_shell_in_the_container_becomes_the_images_command_with_the_key(nim_run, tmp_path):
    """The shell part of the command, run for real."""
    _done, calls = nim_run("--key-file", str(tmp_path / "key"), words="'printenv' 'NGC_API_KEY'")
    option, script, *words = started(calls)[-5:]
    inner = script.replace("/run/secrets/ngc_api_key", str(tmp_path / "run/ngc_api_key"))
    done = subprocess.run(["/bin/sh", option, inner, *words], capture_output=True, text=True, check=True)
    assert done.stdout == f"{KEY}\n"


@pytest.mark.parametrize(
    ("key", "words", "told"),
    [
        pytest.param("lost", ANSWER, "No such file or directory", id="no-key"),
        pytest.param("key", None, "No such image", id="no-image"),
    ],
)
def test_nothing_runs_without(nim_run, tmp_path, key, words, told):
    done, calls = nim_run("--key-file", str(tmp_path / key), words=words)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert not [call for call in calls if call[0] == "run"]


HASTY = """\
#!/bin/sh
printf '%s\\n' "$*" >> "$LOG.limits"
shift 2
case "$2" in run) exit 124 ;; esac
exec "$@"
"""


def test_a_docker_that_hangs_is_told_and_does_not_hold_up_the_unit(nim_run, tmp_path):
    limit = tmp_path / "bin/timeout"
    limit.write_text(HASTY)
    limit.chmod(0o755)
    done, _calls = nim_run()
    assert done.returncode == 124
    assert done.stderr == (
        "docker did not start container nim-llama within 300 s. Next: systemctl status docker; journalctl -u docker -n 50\n"
    )
    limits = (tmp_path / "log.limits").read_text().splitlines()
    assert [line.split()[1:4] for line in limits] == [["120", "docker", "rm"], ["300", "docker", "run"]]


def test_only_the_log_is_followed_for_ever(nim_run, tmp_path):
    limit = tmp_path / "bin/timeout"
    limit.write_text(HASTY.replace("run) exit 124 ;;", ""))
    limit.chmod(0o755)
    done, calls = nim_run("--key-file", str(tmp_path / "key"))
    assert done.returncode == 3, done.stderr
    # Words of the image may have more than one line.
    lines = (tmp_path / "log.limits").read_text().splitlines()
    limited = [line.split()[3] for line in lines if line.startswith("--kill-after=")]
    assert [call[0] for call in calls if call[0] != "logs"] == limited
