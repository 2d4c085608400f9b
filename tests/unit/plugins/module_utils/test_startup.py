# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils._startup import Startup, startup

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
SELECTED = "INFO 07-23 22:27:24.929 ngc_injector.py:141] Selected profile: 8835c31752fb (vllm-fp16-tp1)"
PREPARING = (
    "INFO 07-23 22:27:25.389 ngc_injector.py:166] Preparing model workspace. This step might download additional files to run "
    "the model."
)
NGC = "2025-05-22T09:03:42.752024Z  INFO nim_hub_ngc::api::tokio::builder: ngc configured with api_loc: api.ngc.nvidia.com"
CONFIG = '2025-05-22T09:03:43.669827Z  INFO nim_hub_ngc::api::tokio: Downloaded filename: config.json to blob: "/opt/nim/.cache/c4c7"'
TOKENS = '2025-05-22T09:03:44.669827Z  INFO nim_hub_ngc::api::tokio: Downloaded filename: tokenizer.json to blob: "/opt/nim/.cache/77"'
SHARDS = "Loading safetensors checkpoint shards:  23% Completed | 7/30 [01:37<05:23, 14.05s/it]"
GRAPHS = "Capturing CUDA graphs (decode, FULL):  82%|████████▏ | 42/51 [00:09<00:02,  4.03it/s]"


def way(name, done, total):
    return f"2026-03-03T12:00:10.079000Z  INFO nim_hub_ngc::api::tokio: Downloading {name}: {done}/{total} bytes (1%)"


def bar(name, share, done, total):
    return f"{name}: {share:3d}%|████▌     | {done}/{total} [00:12<00:14, 181MB/s]"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param(["something else", SELECTED], None, id="nothing that tells"),
        pytest.param(["Unable to find image 'nvcr.io/nim/meta/x:1' locally"], Startup("pulling", "pulling the image"), id="docker"),
        pytest.param(["1.8.6: Pulling from nim/meta/x", "5a7813e071bf: Pull complete"], Startup("pulling", "pulling the image"), id="docker layers"),
        pytest.param(["Trying to pull nvcr.io/nim/meta/x:1...", "Copying blob sha256:5a78"], Startup("pulling", "pulling the image"), id="podman"),
        pytest.param([SELECTED, PREPARING], Startup("preparing", "preparing the model, which may download it"), id="preparing"),
        pytest.param([PREPARING, NGC, CONFIG], Startup("downloading", "downloading, 1 file so far"), id="one file"),
        pytest.param([PREPARING, CONFIG, TOKENS, CONFIG], Startup("downloading", "downloading, 2 files so far"), id="files"),
        pytest.param(
            [way("a.safetensors", 100_000_000, 4_000_000_000), way("a.safetensors", 3_100_000_000, 4_000_000_000)],
            Startup("downloading", "downloading 3.1 GB of 4.0 GB", 3_100_000_000, 4_000_000_000),
            id="bytes of one file",
        ),
        pytest.param(
            [
                way("a.safetensors", 1_000_000_000, 4_000_000_000),
                '2026-03-03T12:00:12Z INFO nim_hub_ngc::api::tokio: Downloaded filename: a.safetensors to blob: "x"',
                way("b.safetensors", 500_000_000, 4_000_000_000),
            ],
            Startup("downloading", "downloading 4.5 GB of 8.0 GB", 4_500_000_000, 8_000_000_000),
            id="bytes of a whole file and one on its way",
        ),
        pytest.param(
            [bar("model-00001-of-00004.safetensors", 45, "2.26G", "4.98G"), bar("model-00002-of-00004.safetensors", 10, "500M", "5.00G")],
            Startup("downloading", "downloading 2.8 GB of 10.0 GB", 2_760_000_000, 9_980_000_000),
            id="progress bars",
        ),
        pytest.param(["Fetching 14 files:  29%|██▊       | 4/14 [00:10<00:20,  2.01s/it]"], Startup("downloading", "downloading"), id="fetching"),
        pytest.param(["Downloading manifest profile: 8835c317"], Startup("downloading", "downloading"), id="profile"),
        pytest.param([CONFIG, "Model workspace is now ready. It took 49 s"], Startup("starting_engine", "starting the engine"), id="workspace"),
        pytest.param(["Initializing a V1 LLM engine (v0.11.0) with config"], Startup("starting_engine", "starting the engine"), id="engine"),
        pytest.param([SHARDS.replace("7/30", "6/30"), SHARDS], Startup("loading", "loading weights, 7 of 30 shards"), id="shards"),
        pytest.param([SHARDS, "INFO gpu_model_runner.py:2007] Model loading took 14.9 GiB"], Startup("loading", "loading weights"), id="loaded"),
        pytest.param(
            ["INFO build_utils.py:239] Total time of reading and converting rank0 checkpoint: 0.18 s"],
            Startup("building", "building the engine"),
            id="TensorRT-LLM",
        ),
        pytest.param(["INFO build_utils.py:247] Total time of building rank0 engine: 83.79 s"], Startup("loading", "loading weights"), id="built"),
        pytest.param([SHARDS, GRAPHS], Startup("compiling", "compiling graphs, 42 of 51"), id="graphs"),
        pytest.param(["INFO monitor.py:34] torch.compile takes 10.21 s in total"], Startup("compiling", "compiling graphs"), id="torch.compile"),
        pytest.param(["[AutoTuner]: Tuning flashinfer::x:  7%|▋  | 1/14 [00:01<00:21]"], Startup("compiling", "compiling graphs"), id="tuning"),
        pytest.param([GRAPHS, "INFO server.py:89] Starting HTTP server on port 8000"], Startup("serving", "starting its HTTP server"), id="serving"),
        pytest.param(['{"level": "INFO", "message": "Starting to load model x..."}'], Startup("loading", "loading weights"), id="JSON"),
    ],
)  # fmt: skip
def test_startup(lines, expected):
    assert startup(lines) == expected


PREFIX = re.compile(r"^\w+ \d+ [\d:.]+ \S+ (?P<who>[^\s\[]+)\[\d+\]: ")


def recorded_lives():
    """The lives of a service on a real H200, by its journal."""
    found = []
    for line in (FIXTURES / "h200-vllm/journal-nim.txt").read_text(encoding="utf-8").splitlines():
        head = PREFIX.match(line)
        words = line[head.end() :] if head else line
        if head and head["who"] == "systemd" and "nim-llama.service" not in words:
            continue
        if words.startswith("Started nim-llama.service"):
            found.append([])
        elif found and (not head or head["who"] == "nim-llama"):
            found[-1].append(words)
    return found


@pytest.mark.parametrize(
    ("number", "stages"),
    [
        (0, ["preparing", "starting_engine", "loading", "warming_up", "serving"]),
        (2, ["preparing", "starting_engine", "loading", "compiling", "warming_up", "serving"]),
        (3, ["preparing", "starting_engine", "loading"]),
        (6, ["preparing", "starting_engine"]),
    ],
    ids=["eager", "compiled", "no memory for its cache", "no memory for its weights"],
)
def test_the_stages_of_starts_on_a_gpu(number, stages):
    """vLLM 0.26 on an H200: eager, compiled, and two that failed for memory."""
    life = recorded_lives()[number]
    seen = [startup(life[:count]) for count in range(1, len(life) + 1)]
    assert [stage for stage, _group in itertools.groupby(one.stage for one in seen if one)] == stages


def test_the_stages_of_a_real_start():
    """vLLM 0.32 on a CPU in this repository's stand-in, as the journal had it."""
    lines = (FIXTURES / "journal" / "vllm-0.32.txt").read_text(encoding="utf-8").splitlines()
    seen = [startup(lines[:number]) for number in range(1, len(lines) + 1)]
    stages = [stage for stage, _group in itertools.groupby(one.stage for one in seen if one)]
    assert stages == ["preparing", "starting_engine", "loading", "warming_up", "serving"]
    assert "loading weights, 1 of 1 shards" in {one.words for one in seen if one}
