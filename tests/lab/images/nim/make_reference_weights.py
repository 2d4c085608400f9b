# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the weights of the reference engine: make_reference_weights.py OUT [bf16|fp8].

The phrase grammar of phrases.json, its scores and ballast of the usual tensor names go into one safetensors file.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Big enough that a slowed download can be interrupted, small enough to be made and hashed in no time.
BALLAST = 1 << 20
TOKEN = r"<\|\w+\|>|[一-鿿]| ?[A-Za-z]{1,6}|\d|\s|."


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """Pack tensors (type, shape, data) as the format's version 1: header length, JSON header, data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(data for _type, _shape, data in tensors.values())


def files(precision: str = "bf16") -> dict[str, bytes]:
    """Return the files of one model version; equal calls give equal bytes."""
    phrases = json.loads((HERE / "phrases.json").read_text(encoding="utf-8"))
    rng = random.Random(f"reference {precision}")  # noqa: S311
    scores = [rng.gauss(0, 0.5) for name in sorted(phrases["rules"]) for _ in phrases["rules"][name]]
    lexicon = json.dumps(phrases, ensure_ascii=False, separators=(",", ":")).encode()
    width = {"bf16": ("BF16", 2), "fp8": ("F8_E4M3", 1)}[precision]
    tensors = {
        "lm.lexicon": ("U8", [len(lexicon)], lexicon),
        "lm.scores": ("F32", [len(scores)], struct.pack(f"<{len(scores)}f", *scores)),
        **{
            f"model.layers.{layer}.mlp.up_proj.weight": (
                width[0],
                [1024, BALLAST // 1024],
                rng.randbytes(BALLAST * width[1]),
            )
            for layer in range(2)
        },
    }
    weights = safetensors(tensors)
    config = {
        "architectures": ["PhraseGrammarForCausalLM"],
        "model_type": "phrase-grammar",
        "max_position_embeddings": 8192,
        "torch_dtype": {"bf16": "bfloat16", "fp8": "float8_e4m3fn"}[precision],
    }
    tokenizer = {"version": "1.0", "pattern": TOKEN}
    return {
        "config.json": json.dumps(config, indent=2).encode() + b"\n",
        "model.safetensors": weights,
        "tokenizer.json": json.dumps(tokenizer, indent=2, ensure_ascii=False).encode() + b"\n",
    }


def main(out: Path, precision: str = "bf16") -> None:
    """Write the files into OUT."""
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files(precision).items():
        (out / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
