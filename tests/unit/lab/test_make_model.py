# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The random model for the real engine."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import make_model
import make_reference_weights
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made model."""
    out = tmp_path_factory.mktemp("model")
    make_model.main(out)
    return out


def header(data: bytes) -> tuple[dict[str, dict[str, object]], int]:
    """Return the tensors of a safetensors file and the size of its data."""
    (length,) = struct.unpack_from("<Q", data)
    tensors = json.loads(data[8 : 8 + length])
    del tensors["__metadata__"]
    return tensors, len(data) - 8 - length


def check(data: bytes) -> None:
    """Check that tensors follow each other without gap and that shapes and sizes agree."""
    tensors, size = header(data)
    bytes_of = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}
    at = 0
    for entry in tensors.values():
        begin, end = entry["data_offsets"]  # type: ignore[misc]
        assert begin == at
        assert end - begin == math.prod(entry["shape"]) * bytes_of[str(entry["dtype"])]  # type: ignore[arg-type]
        at = end
    assert at == size


def test_safetensors_are_valid(folder: Path) -> None:
    check((folder / "model.safetensors").read_bytes())
    for precision in ("bf16", "fp8"):
        check(make_reference_weights.files(precision)["model.safetensors"])


def test_tensors_are_those_of_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tensors, _size = header((folder / "model.safetensors").read_bytes())
    assert tensors["lm_head.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert sum("down_proj" in name for name in tensors) == config["num_hidden_layers"]
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]


def test_tokenizer_knows_every_byte(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(256))
    assert vocab["a"] == ord("a")
    assert vocab["Ġ"] == ord(" ")
    assert [token["id"] for token in tokenizer["added_tokens"]] == list(range(256, 261))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert "add_generation_prompt" in settings["chat_template"]


def test_only_text_can_be_written() -> None:
    """All but letters and the space are pushed down by the first hidden unit, which no layer touches."""
    weights = make_model.tensors()
    assert all(row[0] == 1.0 for row in weights["model.embed_tokens.weight"])
    allowed = {token for token, row in enumerate(weights["lm_head.weight"]) if row[0] == 0.0}
    assert allowed == {ord(letter) for letter in make_model.WRITES}
    for name, matrix in weights.items():
        if "o_proj" in name or "down_proj" in name:
            assert not any(matrix[0])


def test_is_the_same_each_time(folder: Path) -> None:
    assert make_model.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
