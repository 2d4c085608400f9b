# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles of the manifest against the GPUs in sight."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from .exceptions import NimError, ProfileError
from .settings import Settings

log = logging.getLogger(__name__)
URI = re.compile(r"ngc://nim/(?P<repo>[^:]+):(?P<version>[^?]+)\?file=(?P<file>.+)")
# Weights and a little room, per GPU of a one-GPU profile; the numbers list-model-profiles of 2.x prints.
GIB = {"bf16": 18, "fp8": 11}


@dataclass(frozen=True)
class Profile:
    """One way to run the model."""

    id: str
    tags: dict[str, str]
    files: dict[str, str]

    @property
    def tp(self) -> int:
        """GPUs that it needs."""
        return int(self.tags["tp"])

    @property
    def name(self) -> str:
        """Readable name, accepted wherever the id is."""
        tags = self.tags
        return f"{tags['llm_engine']}-{tags['precision']}-tp{tags['tp']}-pp{tags['pp']}"

    @property
    def source(self) -> tuple[str, str]:
        """Repository and version of its files."""
        match = URI.fullmatch(next(iter(self.files.values())))
        if not match:
            raise NimError(f"Unsupported URI in the manifest: {next(iter(self.files.values()))}")
        return match["repo"], match["version"]


def load(path: Path) -> list[Profile]:
    """Read a manifest of schema 2."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["profiles"]
    return [
        Profile(entry["id"], entry["tags"], {name: file["uri"] for name, file in entry["workspace"]["files"].items()})
        for entry in entries
    ]


def gpus(dev: Path = Path("/dev"), env: Mapping[str, str] = os.environ) -> list[str]:
    """Return one line per GPU that this container can see, as SYSTEM INFO prints them."""
    indices = sorted(int(node.name[6:]) for node in dev.glob("nvidia[0-9]*") if node.name[6:].isdigit())
    if not indices:
        wanted = env.get("NVIDIA_VISIBLE_DEVICES", "")
        # CDI injection sets "void" and brings device nodes instead.
        indices = list(range(len(wanted.split(",")))) if wanted not in ("", "void", "none") else []
    names = dict.fromkeys(indices, ("2335:10de", env.get("NIM_LAB_GPU_NAME", "NVIDIA H200")))
    if indices and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=index,name,pci.device_id", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20).stdout
        for line in answer.splitlines():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) == 3 and fields[0].isdigit() and int(fields[0]) in names:
                device = fields[2].lower().removeprefix("0x")
                names[int(fields[0])] = (f"{device[:4]}:{device[4:]}", fields[1])
    return [f"[{ids}] ({index}) {name} [current utilization: 0%]" for index, (ids, name) in names.items()]


def find(profiles: list[Profile], wanted: str, manifest: Path) -> Profile:
    """Look a profile up by id or name."""
    for profile in profiles:
        if wanted in (profile.id, profile.name):
            return profile
    raise ProfileError(
        f"Could not match a profile in manifest at {manifest}: '{wanted}' is neither the id nor the name of a profile. "
        "Run list-model-profiles to see them."
    )


def select(settings: Settings, seen: list[str]) -> Profile:
    """Choose the profile to run, or say why none can."""
    profiles = load(settings.manifest)
    fitting = [profile for profile in profiles if profile.tp <= len(seen)]
    log.info("Running NIM without LoRA. Only looking for compatible profiles that do not support LoRA.")
    wanted = find(profiles, settings.profile, settings.manifest) if settings.profile not in ("", "default") else None
    (log.info if fitting else log.error)("Detected %d compatible profile(s).", len(fitting))
    if not fitting or (wanted and wanted not in fitting):
        print(system_info(seen), file=sys.stderr, flush=True)
        what = f"Profile {wanted.id} ({wanted.name}) needs {wanted.tp} GPU(s) and" if wanted else "The model"
        raise ProfileError(
            "Could not find a profile that is currently runnable with the detected hardware. Please check the system "
            f"information above and make sure you have enough free GPUs. {what} found {len(seen)}."
        )
    for profile in fitting:
        log.info("Valid profile: %s (%s) on GPUs %s", profile.id, profile.name, list(range(profile.tp)))
    chosen = wanted or fitting[0]
    log.info("Matched profile_id in manifest: %s with tags: %s", chosen.id, chosen.tags)
    log.info("Selected profile: %s (%s)", chosen.id, chosen.name)
    return chosen


def system_info(seen: list[str]) -> str:
    """Describe the GPUs."""
    return "\n".join(["SYSTEM INFO", "- Free GPUs:" + ("" if seen else " <None>"), *(f"  -  {line}" for line in seen)])


def listing(settings: Settings, seen: list[str]) -> str:
    """Return what list-model-profiles prints."""
    profiles = load(settings.manifest)

    def group(title: str, members: list[Profile], need: bool) -> list[str]:
        lines = [f"- {title}:" + ("" if members else " <None>")]
        for profile in members:
            room = f" [requires >={GIB[profile.tags['precision']] // profile.tp} GB/gpu]" if need else ""
            lines.append(f"  - {profile.id} ({profile.name}){room}")
        return lines

    fitting = [profile for profile in profiles if profile.tp <= len(seen)]
    lines = [system_info(seen), "MODEL PROFILES"]
    lines += group("Compatible with system and runnable", fitting, settings.llm)
    if not settings.llm:
        title = "Compilable to TRT-LLM using just-in-time compilation of HF models to TRTLLM engines"
        lines += group(title, [], False)
    lines += group("Incompatible with system", [profile for profile in profiles if profile not in fitting], False)
    return "\n".join(lines)


def main() -> int:
    """Run list-model-profiles."""
    argparse.ArgumentParser(prog="list-model-profiles", description="List the profiles of this image.").parse_args()
    print(listing(Settings.read(), gpus()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
