# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that bring an image and its weights onto a host, word by word."""

from __future__ import annotations

import itertools
import subprocess

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _staging
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import PROTOCOL_LABEL

DOCKER = "/usr/bin/docker"
KEY = "nvapi-9J3k2LmNoPqRsTuVwXyZ"
REPOSITORY = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
IMAGE_ID = "sha256:0c58bd6b07f7c7b2c1a6bb5a9ac0a1bba5ab59fa30c8ce2a3a40d4bd3f0f1a2b"
SERVICE = {
    "name": "llama",
    "engine": "docker",
    "image": f"{REPOSITORY}:1.8.6",
    "path": "/var/lib/nim/cache/llama",
    "mounts": {"": "/opt/nim/.cache"},
    "devices": ["nvidia.com/gpu=0", "nvidia.com/gpu=1"],
    "ulimits": ["memlock=-1", "nofile=65536"],
    "capabilities": None,
    "env": {"NIM_TELEMETRY_MODE": "0", "NIM_MODEL_PROFILE": "tp2 bf16"},
    "secret_env": {},
    "prefetch": ["download-to-cache", "-p", "tp2 bf16"],
    "prefetch_entrypoint": False,
    "prefetch_env": {},
    "stage_key": "9c1185a5c5e9fc54612808977ee8f548b2258d31",
    "share_key": "0b7a31c2d6f8",
    "api_key": KEY,
}
IMAGE = {"Id": IMAGE_ID, "Config": {"Entrypoint": ["/opt/nvidia/nvidia_entrypoint.sh", "--"], "Cmd": ["start"]}}
HEAD = [DOCKER, "run", "--rm", "--init", "--name", "nim-stage-llama", "--pull", "never"]
HEAD += ["--log-driver", "none", "--security-opt", "no-new-privileges"]
OPTIONS = [
    "--device",
    "nvidia.com/gpu=0",
    "--device",
    "nvidia.com/gpu=1",
    "--ulimit",
    "memlock=-1",
    "--ulimit",
    "nofile=65536",
]
OPTIONS += ["--env", "NIM_MODEL_PROFILE=tp2 bf16", "--env", "NIM_TELEMETRY_MODE=0"]
VOLUME = ["--volume", "/var/lib/nim/cache/llama:/opt/nim/.cache"]
SHELL = ["--interactive", "--entrypoint", "/bin/sh", IMAGE_ID, "-c", _staging.KEY_FROM_STDIN, "sh"]
BARE = {**SERVICE, "devices": [], "ulimits": [], "env": {}, "prefetch": ["download-to-cache"]}
NATIVE = {
    **BARE,
    "prefetch": [],
    "prefetch_env": {"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1"},
    "mounts": {"model": "/model", "kernels": "/opt/cache"},
}
ONCE = ["--env", "NIM_ENGINE_MODEL_DOWNLOAD_ONLY=1"]
TWO_VOLUMES = [
    "--volume",
    "/var/lib/nim/cache/llama/kernels:/opt/cache",
    "--volume",
    "/var/lib/nim/cache/llama/model:/model",
]
SPEECH = {**BARE, "prefetch": ["nim_download_to_cache"], "prefetch_entrypoint": True}


def test_podman_stages_without_limits_that_docker_has_not():
    service, image = {**SERVICE, "engine": "podman"}, {**IMAGE, "Id": IMAGE_ID}
    docker = _staging.stage_command("/usr/bin/podman", SERVICE, image, True)
    podman = _staging.stage_command("/usr/bin/podman", service, image, True)
    assert [word for word in podman if word not in docker] == ["--pids-limit", "0", "label=disable"]
    at = len(HEAD)
    assert podman[at:] == ["--pids-limit", "0", "--security-opt", "label=disable", *docker[at:]]


def test_pull_command():
    assert _staging.pull_command(DOCKER, SERVICE["image"]) == [DOCKER, "pull", f"{REPOSITORY}:1.8.6"]


@pytest.mark.parametrize(
    ("service", "image", "with_key", "expected"),
    [
        pytest.param(
            SERVICE, IMAGE, False, [*HEAD, *OPTIONS, *VOLUME, IMAGE_ID, *SERVICE["prefetch"]], id="without-key"
        ),
        pytest.param(
            SERVICE,
            IMAGE,
            True,
            [*HEAD, *OPTIONS, *VOLUME, *SHELL, "/opt/nvidia/nvidia_entrypoint.sh", "--", *SERVICE["prefetch"]],
            id="with-key",
        ),
        pytest.param(BARE, IMAGE, False, [*HEAD, *VOLUME, IMAGE_ID, "download-to-cache"], id="bare"),
        pytest.param(
            {**BARE, "capabilities": []},
            IMAGE,
            False,
            [*HEAD, "--cap-drop", "ALL", *VOLUME, IMAGE_ID, "download-to-cache"],
            id="no-capabilities",
        ),
        pytest.param(
            {**BARE, "capabilities": ["CHOWN"]},
            IMAGE,
            False,
            [*HEAD, "--cap-drop", "ALL", "--cap-add", "CHOWN", *VOLUME, IMAGE_ID, "download-to-cache"],
            id="one-capability",
        ),
        pytest.param(
            BARE,
            {"Id": IMAGE_ID, "Config": {"Entrypoint": None}},
            True,
            [*HEAD, *VOLUME, *SHELL, "download-to-cache"],
            id="no-entrypoint",
        ),
        pytest.param(
            BARE, {"Id": IMAGE_ID}, True, [*HEAD, *VOLUME, *SHELL, "download-to-cache"], id="no-configuration"
        ),
        pytest.param(
            NATIVE,
            IMAGE,
            True,
            [*HEAD, *ONCE, *TWO_VOLUMES, *SHELL, "/opt/nvidia/nvidia_entrypoint.sh", "--", "start"],
            id="image-that-downloads-by-itself",
        ),
        pytest.param(NATIVE, IMAGE, False, [*HEAD, *ONCE, *TWO_VOLUMES, IMAGE_ID, "start"], id="the-same-without-key"),
        pytest.param(
            SPEECH,
            IMAGE,
            True,
            [*HEAD, *VOLUME, *SHELL, "nim_download_to_cache"],
            id="command-in-place-of-the-entrypoint",
        ),
        pytest.param(
            SPEECH,
            IMAGE,
            False,
            [*HEAD, *VOLUME, "--entrypoint", "nim_download_to_cache", IMAGE_ID],
            id="in-place-without-key",
        ),
    ],
)
def test_stage_command(service, image, with_key, expected):
    assert _staging.stage_command(DOCKER, service, image, with_key) == expected


@pytest.mark.parametrize(
    ("key_file", "properties"),
    [
        pytest.param(None, [], id="plain"),
        pytest.param(
            "/run/nim/nim-stage-llama.service.key",
            ["--property=StandardInput=file:/run/nim/nim-stage-llama.service.key"],
            id="key-from-a-file",
        ),
    ],
)
def test_transient_unit(key_file, properties):
    assert _staging.transient_unit("nim-stage-llama.service", "download of llama", [DOCKER, "run"], key_file) == [
        "systemd-run",
        "--quiet",
        "--unit=nim-stage-llama.service",
        "--description=download of llama",
        "--property=Type=exec",
        "--property=RemainAfterExit=yes",
        "--property=KillMode=mixed",
        "--property=Environment=HOME=/root LC_ALL=C",
        *properties,
        "--",
        DOCKER,
        "run",
    ]


@pytest.mark.parametrize(
    ("size", "total", "rate", "words"),
    [
        (0, 0, 0.0, "0 B"),
        (3_100_000_000, 0, 0.0, "3.1 GB"),
        (3_100_000_000, 0, 310e6, "3.1 GB, 310.0 MB/s"),
        (3_100_000_000, 15_900_000_000, 310e6, "3.1 GB of 15.9 GB, 310.0 MB/s, 41 s left"),
        (3_100_000_000, 15_900_000_000, 0.0, "3.1 GB of 15.9 GB"),
        (16_000_000_000, 15_900_000_000, 310e6, "16.0 GB of 15.9 GB, 310.0 MB/s"),
        (3_100_000_000, 0, -1.0, "3.1 GB"),
    ],
)
def test_progress(size, total, rate, words):
    assert _staging.progress(size, total, rate) == words


@pytest.mark.parametrize(
    ("contract", "labels", "said"),
    [
        ("native", {PROTOCOL_LABEL: "native-v1"}, []),
        ("native", {}, []),
        ("llm", None, []),
        ("", {PROTOCOL_LABEL: "native-v1"}, []),
        ("llm", {PROTOCOL_LABEL: "native-v1"}, ["contract is llm", "is native-v1", "wanted contract: native"]),
        ("native", {PROTOCOL_LABEL: "legacy"}, ["contract is native", "is legacy", "classic or llm"]),
    ],
)
def test_the_images_label_speaks_against_another_contract(contract, labels, said):
    problem = _staging.contract_problem(contract, {"Id": IMAGE_ID, "Config": {"Labels": labels}})
    assert bool(problem) == bool(said)
    assert all(words in problem for words in said)


def test_the_key_is_in_no_command():
    for service, image, with_key in itertools.product((SERVICE, BARE), (IMAGE, {"Id": IMAGE_ID}), (True, False)):
        command = _staging.stage_command(DOCKER, service, image, with_key)
        unit = _staging.transient_unit("nim-stage-llama.service", "download", command, "/run/nim/k")
        assert not [word for word in unit if KEY in word]


def test_the_key_reaches_the_images_own_command_and_nothing_else():
    """The shell part of the command, run for real: no argument carries the key, the environment does."""
    command = _staging.stage_command(DOCKER, {**BARE, "prefetch": ["printenv", "NGC_API_KEY"]}, {"Id": IMAGE_ID}, True)
    inner = command[command.index(IMAGE_ID) + 1 :]
    done = subprocess.run(["/bin/sh", *inner], input=f"{KEY} \\n\nmore\n", capture_output=True, text=True, check=True)
    assert done.stdout == f"{KEY} \\n\n"


def test_without_a_key_on_standard_input_nothing_runs():
    inner = ["-c", _staging.KEY_FROM_STDIN, "sh", "echo", "ran"]
    done = subprocess.run(["/bin/sh", *inner], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode != 0, done.stdout) == (True, "")


@pytest.mark.parametrize(
    ("digests", "expected"),
    [
        pytest.param([f"{REPOSITORY}@sha256:aa"], f"{REPOSITORY}@sha256:aa", id="one"),
        pytest.param(
            [f"mirror.example.com/{REPOSITORY}@sha256:bb", f"{REPOSITORY}-base@sha256:cc", f"{REPOSITORY}@sha256:aa"],
            f"{REPOSITORY}@sha256:aa",
            id="several",
        ),
        pytest.param([f"mirror.example.com/{REPOSITORY}@sha256:bb"], IMAGE_ID, id="of-another-repository"),
        pytest.param([], IMAGE_ID, id="loaded-from-a-file"),
        pytest.param(None, IMAGE_ID, id="none"),
    ],
)
def test_image_reference(digests, expected):
    assert _staging.image_reference({"Id": IMAGE_ID, "RepoDigests": digests}, REPOSITORY) == expected


PULL = """\
1.8.6: Pulling from nim/meta/llama-3.1-8b-instruct
a1b2c3d4e5f6: Already exists
d5fd17ec1767: Pulling fs layer
4f4fb700ef54: Pulling fs layer
0b1c2d3e4f50: Pulling fs layer
0b1c2d3e4f50: Waiting
4f4fb700ef54: Verifying Checksum
4f4fb700ef54: Download complete
d5fd17ec1767: Download complete
d5fd17ec1767: Pull complete
4f4fb700ef54: Pull complete
0b1c2d3e4f50: Pull complete
Digest: sha256:6b3d3a4e3c1f7e0a9d5c2b8f4e6a7d9c0b1f2e3d4c5b6a798897a6b5c4d3e2f1
Status: Downloaded newer image for nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6
""".splitlines()
PODMAN_PULL = """\
Trying to pull nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.6...
Getting image source signatures
Copying blob sha256:ae9bde08f42d6df4a183ab924864935d1a0bb9a23d73faef3b6bc29d22c8494a
Copying blob sha256:65ba0662916acac0e288a59713d76cba3b57be5f44663b4ca1943a3cf0a63a33
Copying config sha256:4e943acfe4bdf557691f1d290be0274d2e46991a1f42adeb3b2225ab527987a4
Writing manifest to image destination
4e943acfe4bdf557691f1d290be0274d2e46991a1f42adeb3b2225ab527987a4
""".splitlines()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        pytest.param([], "asking the registry", id="nothing-yet"),
        pytest.param(PULL[:2], "asking the registry", id="only-known-layers"),
        pytest.param(PULL[:5], "0 of 3 layers", id="begun"),
        pytest.param(PULL[:10], "1 of 3 layers", id="one"),
        pytest.param(PULL, "3 of 3 layers", id="all"),
        pytest.param([*PULL[:10], *PULL[2:10]], "1 of 3 layers", id="told-twice"),
        pytest.param(PODMAN_PULL[:2], "asking the registry", id="podman-asks"),
        pytest.param(PODMAN_PULL, "2 layers", id="podman"),
    ],
)
def test_pull_progress(lines, words):
    assert _staging.pull_progress(lines) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (4_096, "4.1 kB"),
        (262_144_000, "262.1 MB"),
        (15_900_000_000, "15.9 GB"),
        (1_450_000_000_000, "1.4 TB"),
        (2_500_000_000_000_000, "2500.0 TB"),
    ],
)
def test_amount(size, words):
    assert _staging.amount(size) == words


@pytest.mark.parametrize(
    ("lines", "line"),
    [([], ""), (["", "  "], ""), (["first", " last \n", "", " "], "last")],
    ids=["none", "empty", "last"],
)
def test_last_line(lines, line):
    assert _staging.last_line(lines) == line
