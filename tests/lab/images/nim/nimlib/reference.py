# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference engine: a phrase grammar whose rules and scores are the downloaded weights."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLOT = re.compile(r"\{(\w+)\}")
HAN = re.compile(r"[一-鿿]")


@dataclass(frozen=True)
class Generation:
    """What one request gave."""

    tokens: list[str]
    finish: str
    # Name of the function that the text has the arguments of.
    calls: str = ""

    @property
    def text(self) -> str:
        """The tokens as text."""
        return "".join(self.tokens)


def read_safetensors(path: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Read every tensor of a file with its description."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + length :]
    if max(entry["data_offsets"][1] for entry in header.values()) != len(body):
        raise ValueError(f"Error while deserializing header: incomplete metadata, file not fully covered: {path}")
    return {name: (entry, bytes(body[slice(*entry["data_offsets"])])) for name, entry in header.items()}


class Model:
    """A loaded model."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokens = re.compile(
            json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["pattern"], re.DOTALL
        )
        self.tensors = read_safetensors(folder / "model.safetensors")
        lexicon = json.loads(self.tensors["lm.lexicon"][1])
        self.intents, self.topics, self.more = lexicon["intents"], lexicon["topics"], lexicon["more"]
        self.rules: dict[str, list[str]] = lexicon["rules"]
        entry, data = self.tensors["lm.scores"]
        scores = iter(struct.unpack(f"<{entry['shape'][0]}f", data))
        self.scores: dict[str, list[float]] = {
            name: [next(scores) for _ in self.rules[name]] for name in sorted(self.rules)
        }

    def tokenize(self, text: str) -> list[str]:
        """Split text into tokens; joined they are the text again."""
        return self.tokens.findall(text)

    def chat_prompt(self, messages: list[dict[str, Any]]) -> str:
        """Apply the chat template."""
        turns = "".join(f"<|{turn['role']}|>\n{content(turn)}<|eot|>" for turn in messages)
        return f"<|begin|>{turns}<|assistant|>\n"

    def generate(
        self,
        prompt: str,
        question: str,
        *,
        max_tokens: int,
        seed: str = "",
        stop: list[str] | None = None,
        min_tokens: int = 0,
    ) -> Generation:
        """Write an answer to QUESTION; PROMPT and SEED alone decide which one."""
        grammar = _Walk(self, f"{prompt}\0{seed}", question)
        text = grammar.expand(grammar.start)
        tokens = self.tokenize(text)
        while len(tokens) < min(min_tokens, max_tokens):
            tokens += self.tokenize(grammar.joint + grammar.expand(self.more[grammar.lang]))
        text = "".join(tokens)
        ends = [at for word in stop or [] if word and (at := text.find(word)) >= 0]
        if ends:
            tokens = self.tokenize(text[: min(ends)])
        cut = len(tokens) > max_tokens or (min_tokens >= max_tokens and not ends)
        return Generation(tokens[:max_tokens], "length" if cut else "stop")


def logprob(prompt: str, index: int, token: str) -> float:
    """Return the logarithm of a likelihood that only the prompt and the token decide."""
    digest = hashlib.sha256(f"{prompt}\0{index}\0{token}".encode()).digest()
    return round(math.log((int.from_bytes(digest[:4], "big") + 1) / (2**32 + 1)) / 8, 6)


class _Walk:
    """One pass through the grammar."""

    def __init__(self, model: Model, key: str, question: str) -> None:
        self.model = model
        self.key = key
        self.used: dict[str, set[int]] = {}
        self.lang = "zh" if HAN.search(question) else "en"
        self.joint = "" if self.lang == "zh" else " "
        self.start = next(
            intent["start"]
            for intent in model.intents
            if intent["lang"] == self.lang and all(re.search(word, question, re.I) for word in intent["all"])
        )
        found = (re.search(pattern, question, re.I) for pattern in model.topics[self.lang])
        self.topic = next((match[1].strip() for match in found if match), "此事" if self.lang == "zh" else "this")

    def expand(self, rule: str) -> str:
        """Replace every slot of a chosen phrase by what its own rule gives."""
        if rule == "topic":
            return self.topic
        return SLOT.sub(lambda slot: self.expand(slot[1]), self.model.rules[rule][self._choose(rule)])

    def _choose(self, rule: str) -> int:
        """Sample by the learned scores: Gumbel noise from a hash, so that the prompt is the only chance there is."""
        used = self.used.setdefault(rule, set())
        scores = self.model.scores[rule]
        if len(used) >= len(scores):
            used.clear()
            self.key += "\0"

        def noisy(index: int) -> float:
            digest = hashlib.sha256(f"{self.key}\0{rule}\0{len(used)}\0{index}".encode()).digest()
            uniform = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 2)
            return scores[index] - math.log(-math.log(uniform))

        best = max((index for index in range(len(scores)) if index not in used), key=noisy)
        used.add(best)
        return best


def content(message: dict[str, Any]) -> str:
    """Return the text of a message, which may come in parts."""
    value = message.get("content") or ""
    return value if isinstance(value, str) else "".join(part.get("text", "") for part in value)
