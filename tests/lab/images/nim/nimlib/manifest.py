# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the model manifest of an image: python3 -m nimlib.manifest FLAVOUR ENGINE > model_manifest.yaml."""

from __future__ import annotations

import hashlib
import sys

MODEL = "meta/llama-3.1-8b-instruct"
FILES = {
    "reference": ["config.json", "model.safetensors", "tokenizer.json"],
    "vllm": ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
}
VERSIONS = {"reference": "1.0.0-reference-{}", "vllm": "1.0.0-random-{}"}
#: The other families, each with a file of weights that is only there to be downloaded.
FAMILY_MODELS = {
    "native": "nvidia/llama-nemotron-embed-1b-v2",
    "speech": "nvidia/magpie-tts-multilingual",
}
RERANKER = "nvidia/llama-nemotron-rerank-1b-v2"
FAMILY_FILES = ["config.json", "model.safetensors"]
FAMILY_VERSION = "1.0.0-lab"
PROFILES = [("bf16", 1), ("bf16", 2), ("bf16", 4)]


def render(flavour: str, engine: str) -> str:
    """Return the manifest, schema 2; the first profile that fits is the one chosen at start."""
    profiles = PROFILES if engine == "vllm" else [*PROFILES[:1], ("fp8", 1), *PROFILES[1:]]
    lines = ["schema_version: 2.0.0", "profile_selection_criteria: default", "profiles:"]
    for precision, tp in profiles:
        name = f"vllm-{precision}-tp{tp}-pp1"
        # Ids differ between images on purpose, as they do between real releases.
        ident = hashlib.sha256(f"{flavour} {engine} {name}".encode()).hexdigest()
        lines += [
            f"  - id: {ident}",
            "    tags:",
            '      feat_lora: "false"',
            "      llm_engine: vllm",
            '      pp: "1"',
            f"      precision: {precision}",
            f'      tp: "{tp}"',
            "    workspace:",
            "      files:",
        ]
        version = VERSIONS[engine].format(precision)
        lines += [f'        {file}: {{uri: "ngc://nim/{MODEL}:{version}?file={file}"}}' for file in FILES[engine]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(*sys.argv[1:3]))
