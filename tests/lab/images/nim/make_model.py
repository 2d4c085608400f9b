# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a tiny random Llama that vLLM can load: make_model.py OUT.

Standard library only, fixed seed: two layers, hidden size 64, one token per byte.
"""

from __future__ import annotations

import json
import random
import string
import struct
import sys
from pathlib import Path

SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
VOCAB = 256 + len(SPECIALS) + 3
HIDDEN, INNER, LAYERS, HEADS, CONTEXT = 64, 128, 2, 2, 4096
# What the model may write; a random model left alone would mostly give bytes that are no text.
WRITES = string.ascii_lowercase + " "
TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def alphabet() -> list[str]:
    """Return the printable stand-in of each byte, as byte-level BPE has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


def matrix(rng: random.Random, rows: int, columns: int, silent: bool = False) -> list[list[float]]:
    """Return a random matrix; SILENT ones never write into the first hidden unit."""
    scale = columns**-0.5
    values = [[rng.gauss(0, scale) for _ in range(columns)] for _ in range(rows)]
    if silent:
        values[0] = [0.0] * columns
    return values


def tensors() -> dict[str, list[list[float]]]:
    """Return the weights. The first hidden unit is 1 for every token, which gives the last layer a bias to use."""
    rng = random.Random("baremetal.nim")  # noqa: S311
    allowed = {ord(letter) for letter in WRITES}
    embed = [[1.0, *row[1:]] for row in matrix(rng, VOCAB, HIDDEN)]
    head = [[0.0 if token in allowed else -100.0, *row[1:]] for token, row in enumerate(matrix(rng, VOCAB, HIDDEN))]
    result = {"model.embed_tokens.weight": embed}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        for part in "qkv":
            result[f"{name}self_attn.{part}_proj.weight"] = matrix(rng, HIDDEN, HIDDEN)
        result[f"{name}self_attn.o_proj.weight"] = matrix(rng, HIDDEN, HIDDEN, silent=True)
        result[f"{name}mlp.gate_proj.weight"] = matrix(rng, INNER, HIDDEN)
        result[f"{name}mlp.up_proj.weight"] = matrix(rng, INNER, HIDDEN)
        result[f"{name}mlp.down_proj.weight"] = matrix(rng, HIDDEN, INNER, silent=True)
        result[f"{name}input_layernorm.weight"] = [[1.0] * HIDDEN]
        result[f"{name}post_attention_layernorm.weight"] = [[1.0] * HIDDEN]
    result["model.norm.weight"] = [[1.0] * HIDDEN]
    result["lm_head.weight"] = head
    return result


def safetensors(weights: dict[str, list[list[float]]]) -> bytes:
    """Pack matrices as bfloat16, which is the upper half of a float32."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, rows in weights.items():
        begin = len(body)
        for row in rows:
            packed = struct.pack(f"<{len(row)}f", *row)
            body += b"".join(packed[at + 2 : at + 4] for at in range(0, len(packed), 4))
        shape = [len(rows[0])] if "norm" in name else [len(rows), len(rows[0])]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, len(body)]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + bytes(body)


def tokenizer() -> dict[str, object]:
    """Return a byte-level BPE tokenizer without a single merge."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + index, "content": name, **flags} for index, name in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in enumerate(alphabet())},
            "merges": [],
        },
    }


def files() -> dict[str, bytes]:
    """Return the files of the model; equal calls give equal bytes."""
    begin, end, turn = 256, 257, 260
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": begin,
        "eos_token_id": end,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    # Such a model never ends by itself, and nobody waits for 4096 random letters.
    generation = {"bos_token_id": begin, "eos_token_id": [end, turn], "max_new_tokens": 1024}
    documents = {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": settings,
    }
    result = {name: json.dumps(document, indent=2, ensure_ascii=False).encode() for name, document in documents.items()}
    return {**result, "model.safetensors": safetensors(tensors())}


def main(out: Path) -> None:
    """Write the files into OUT."""
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files().items():
        (out / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
