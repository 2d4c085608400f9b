# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a NIM that is not ready has come, read from its journal, in the words of an operator. Pure.

This module util is private to the collection and may change at any time. The lines are those of NIM 1.x and its downloader
(nim_hub_ngc), vLLM, TensorRT-LLM, FlashInfer, Hugging Face's progress bars, Docker and Podman.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.baremetal.nim.plugins.module_utils._staging import amount

#: Stage -> what its lines look like, and its words. Groups ``done`` and ``all`` count what WORDS ends with.
_STAGES: dict[str, tuple[str, str, str]] = {
    "pulling": (
        (
            r"unable to find image .{0,300} locally|: pulling from |: (pulling fs layer|pull complete)|trying to pull |^copying blob "
            r"|getting image source signatures"
        ),
        "pulling the image",
        "",
    ),
    "downloading": (
        (
            r"downloading (manifest profile|model|\S{1,500}: \d{1,15}/\d{1,15} bytes)|downloaded filename: |^resuming \S{1,500} at byte"
            r"|%\|[^|]{0,200}\| {0,9}[\d.]{1,15}[kmgt]i?b?/[\d.]{1,15}[kmgt]i?b? |fetching \d{1,9} files"
        ),
        "downloading",
        "",
    ),
    "preparing": (r"preparing model workspace", "preparing the model, which may download it", ""),
    "building": (
        r"(?<!of )building (trt-?llm|tensorrt|rank\d{1,6}|the) engine|reading and converting rank\d{1,6} checkpoint|\btrtllm-build\b",
        "building the engine",
        "",
    ),
    "starting_engine": (
        r"model workspace is now ready|starting vllm v\d|resolved architecture: |initializing an? (v\d )?llm engine",
        "starting the engine",
        "",
    ),
    "loading": (
        (
            r"loading \S{1,100} checkpoint shards: {0,9}\d{1,3}% completed \| (?P<done>\d{1,6})/(?P<all>\d{1,6})"
            r"|starting to load model|loading model weights"
            r"|loading weights took|model loading took"
            r"|total time of building rank\d{1,6} engine|loaded engine size|engine size in bytes"
        ),
        "loading weights",
        "shards",
    ),
    "compiling": (
        (
            r"capturing cuda graphs?\b[^|]{0,200}(?:\|[^|]{0,200}\| {0,9}(?P<done>\d{1,6})/(?P<all>\d{1,6}))?|torch\.compile (takes|took)"
            r"|compiling a graph|dynamo bytecode transform|\[autotuner\]"
        ),
        "compiling graphs",
        "",
    ),
    "warming_up": (r"graph capturing finished|init engine \(profile|warming up", "warming up", ""),
    "serving": (
        r"starting (the )?http server|starting vllm (api )?server|uvicorn running on|application startup complete",
        "starting its HTTP server",
        "",
    ),
}
_PATTERNS = {stage: re.compile(pattern, re.IGNORECASE) for stage, (pattern, _words, _of) in _STAGES.items()}
#: One file on its way: by the NIM's downloader in bytes, by a progress bar in rounded units.
_FILE = re.compile(r"downloading (?P<name>\S{1,500}): (?P<done>\d{1,15})/(?P<all>\d{1,15}) bytes", re.IGNORECASE)
_BAR = re.compile(
    r"(?<![^\s:])(?P<name>[^\s:]{1,500}): {0,9}\d{1,3}%\|[^|]{0,200}\| {0,9}"
    r"(?P<done>\d{1,9}(?:\.\d{1,9})?)(?P<unit>[kMGT])i?B?/(?P<all>\d{1,9}(?:\.\d{1,9})?)(?P<units>[kMGT])i?B? "
)
_DOWNLOADED = re.compile(r"downloaded filename: (?P<name>\S{1,500})", re.IGNORECASE)
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Startup:
    """A stage of a start: its name (a key of the table above), and the same in words, with numbers where there are some.

    done and total: bytes of a download so far and in all, as far as the files named are known; 0 when nothing is.
    """

    stage: str
    words: str
    done: int = 0
    total: int = 0


def startup(lines: Sequence[str]) -> Startup | None:
    """Return the stage that the newest telling line belongs to; None when no line tells.

    lines: the journal of one life of the unit, oldest first.
    """
    for line in reversed(lines):
        for stage, pattern in _PATTERNS.items():
            match = pattern.search(line)
            if match:
                return _downloading(lines) if stage == "downloading" else _counted(stage, match)
    return None


def _counted(stage: str, match: re.Match[str]) -> Startup:
    _pattern, words, of_what = _STAGES[stage]
    groups = match.groupdict()
    if groups.get("all"):
        words += f", {groups['done']} of {groups['all']} {of_what}".rstrip()
    return Startup(stage, words)


def _downloading(lines: Sequence[str]) -> Startup:
    sizes: dict[str, tuple[float, float]] = {}
    files: set[str] = set()
    for line in lines:
        whole = _DOWNLOADED.search(line)
        if whole:
            files.add(whole["name"])
            if whole["name"] in sizes:
                total = sizes[whole["name"]][1]
                sizes[whole["name"]] = (total, total)
            continue
        exact = _FILE.search(line)
        if exact:
            sizes[exact["name"]] = (float(exact["done"]), float(exact["all"]))
            continue
        bar = _BAR.search(line)
        if bar:
            done, total = float(bar["done"]) * _UNITS[bar["unit"]], float(bar["all"]) * _UNITS[bar["units"]]
            sizes[bar["name"]] = (done, total)
    done, total = (int(sum(one[part] for one in sizes.values())) for part in (0, 1))
    words = "downloading"
    if total:
        words += f" {amount(done)} of {amount(total)}"
    elif files:
        words += f", {len(files)} {'file' if len(files) == 1 else 'files'} so far"
    return Startup("downloading", words, done, total)
