# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults to order, by NIM_LAB_FAULT (comma separated): what field reports say a NIM does when it breaks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# `touch` it in a running container and the engine is dead while the front end stays up.
KILL_FILE = Path("/tmp/lab-kill-engine")  # noqa: S108
WRONG_MODEL = "meta/llama-3.2-1b-instruct"

CRASH = """\
Traceback (most recent call last):
  File "/opt/nim/llm/nim_llm_sdk/entrypoints/launch.py", line 99, in <module>
    main()
  File "/opt/nim/llm/nim_llm_sdk/entrypoints/launch.py", line 42, in main
    inference_env = prepare_environment()
  File "/opt/nim/llm/nim_llm_sdk/engine/async_trtllm_engine.py", line 217, in __init__
    raise RuntimeError("Engine core initialization failed. See root cause above.")
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"""

OUT_OF_MEMORY = """\
Traceback (most recent call last):
  File "/opt/nim/llm/vllm/v1/worker/gpu_model_runner.py", line 3142, in load_model
    self.model = model_loader.load_model(vllm_config=self.vllm_config, model_config=self.model_config)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total capacity of 139.81 GiB of \
which 512.00 MiB is free. Process 4711 has 126.20 GiB memory in use. Of the allocated memory 12.52 GiB is allocated by \
PyTorch, and 63.75 MiB is reserved by PyTorch but unallocated."""

# What the log calls the death of the engine, and what the answers say.
DEAD = {
    "classic": (
        "vllm.engine.async_llm_engine.AsyncEngineDeadError",
        "Engine loop is not running. Inspect the stacktrace to find the original error: "
        "RuntimeError('CUDA error: an illegal memory access was encountered').",
    ),
    "llm": (
        "vllm.v1.engine.exceptions.EngineDeadError",
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    ),
}


def on(name: str) -> bool:
    """Whether this fault was ordered."""
    return name in os.environ.get("NIM_LAB_FAULT", "").replace(" ", "").split(",")


def engine_dead() -> bool:
    """Whether the engine is to play dead now."""
    return on("dead_engine") or KILL_FILE.exists()


def main() -> int:
    """Be an engine that does not come up."""
    if on("out_of_memory"):
        time.sleep(1)
        print(OUT_OF_MEMORY, file=sys.stderr, flush=True)
        return 1
    while True:
        print("Waiting for core engine process(es) to start.", file=sys.stderr, flush=True)
        time.sleep(10)


if __name__ == "__main__":
    sys.exit(main())
