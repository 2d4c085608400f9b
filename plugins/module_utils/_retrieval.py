# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The dialogue with NIMs that embed and rank text: requests built, answers read and judged. Pure.

This module util is private to the collection and may change at any time. Source: NVIDIA's references of the NeMo Retriever
embedding and reranking NIMs (1.x and 2.x).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault, shorten

if TYPE_CHECKING:
    # Newer than the oldest Python of hosts.
    from typing import TypeGuard

EMBEDDINGS_PATH = "/v1/embeddings"
RANKING_PATH = "/v1/ranking"
QUERY = "Which city is the capital of France?"
#: The first answers the query; the others are about something else altogether.
PASSAGES = (
    "Paris is the capital city of France and lies on the river Seine.",
    "A carburettor mixes air with fuel before it is burned in the cylinders of an engine.",
    "Bread rises because yeast turns sugar into gas while the dough rests.",
)
# Floats of half precision are rounded.
_SAME = 1e-6


def embedding_request(model: str, texts: Sequence[str], kind: str) -> dict[str, Any]:
    """Return the body of a request for embeddings. kind: query or passage, which asymmetric models tell apart."""
    return {"model": model, "input": list(texts), "input_type": kind, "encoding_format": "float", "truncate": "END"}


def read_embeddings(body: Any, count: int, model: str) -> list[list[float]]:
    """Return the vectors of an answer in the order of the texts.

    Raises Fault wrong_model for the answer of another model, and bad_response naming everything else that is wrong.
    """
    data = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(data, list):
        raise _bad(EMBEDDINGS_PATH, ["data is no list"], "a list of embeddings", body)
    _check_model(body, model)
    problems = [] if body.get("object") == "list" else [f"object is {body.get('object')!r}, not 'list'"]
    if len(data) != count:
        problems.append(f"{len(data)} embeddings for {count} texts")
    vectors: dict[int, list[float]] = {}
    for place, entry in enumerate(data):
        index = entry.get("index") if isinstance(entry, Mapping) else None
        vector = entry.get("embedding") if isinstance(entry, Mapping) else None
        if not _is_index(index, count) or index in vectors:
            problems.append(f"embedding {place}: index is {index!r}")
        elif not isinstance(vector, list) or not vector or not all(map(_is_number, vector)):
            problems.append(f"embedding {place}: is {shorten(repr(vector), 60)}, not a list of numbers")
        elif not any(vector):
            problems.append(f"embedding {place}: is all zeros")
        else:
            vectors[index] = [float(number) for number in vector]
    sizes = sorted({len(vector) for vector in vectors.values()})
    if len(sizes) > 1:
        problems.append(f"embeddings have {' and '.join(map(str, sizes))} dimensions")
    if problems:
        raise _bad(EMBEDDINGS_PATH, problems, "one vector of the same size for each text", body)
    return [vectors[index] for index in range(count)]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how much two vectors point the same way, from -1 to 1."""
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other)) / lengths


def check_meaning(query: Sequence[float], passages: Sequence[Sequence[float]]) -> list[float]:
    """Return how near each passage is to the query. Raises Fault wrong_answer unless the first is the nearest."""
    if any(len(passage) != len(query) for passage in passages):
        raise Fault("bad_response", "queries and passages have different dimensions", "the same")
    near = [cosine(query, passage) for passage in passages]
    told = ", ".join(f"{value:.3f}" for value in near)
    # Of numbers too large to be multiplied nothing is near anything.
    if not near[0] - max(near[1:]) > _SAME:
        raise Fault(
            "wrong_answer",
            f"the passage that answers the query is no nearer to it than others (cosines {told})",
            "the first to be the nearest",
            [f"{value:.4f} {text}" for value, text in zip(near, PASSAGES)],
        )
    return near


def ranking_request(model: str) -> dict[str, Any]:
    """Return the body of a request for a ranking, in which the passage that answers comes last."""
    passages = [{"text": text} for text in reversed(PASSAGES)]
    return {"model": model, "query": {"text": QUERY}, "passages": passages, "truncate": "END"}


def read_ranking(body: Any) -> list[int]:
    """Return the places of the passages, best first.

    Raises Fault bad_response naming all that is wrong, wrong_answer when the passage that answers is not the first.
    """
    rankings = body.get("rankings") if isinstance(body, Mapping) else None
    if not isinstance(rankings, list):
        raise _bad(RANKING_PATH, ["rankings is no list"], "a list of rankings", body)
    count = len(PASSAGES)
    problems: list[str] = []
    order: list[int] = []
    logits: list[float] = []
    for place, entry in enumerate(rankings):
        index, logit = (entry.get(key) if isinstance(entry, Mapping) else None for key in ("index", "logit"))
        if not _is_index(index, count) or index in order:
            problems.append(f"ranking {place}: index is {index!r}")
        elif not _is_number(logit):
            problems.append(f"ranking {place}: logit is {logit!r}, not a number")
        else:
            order.append(index)
            logits.append(logit)
    if not problems and len(order) != count:
        problems.append(f"{len(order)} rankings for {count} passages")
    if not problems and logits != sorted(logits, reverse=True):
        problems.append("rankings are not in the order of their logits")
    if problems:
        raise _bad(RANKING_PATH, problems, "each passage once, best first", body)
    if order[0] != count - 1:
        ranked = [PASSAGES[count - 1 - index] for index in order]
        raise Fault("wrong_answer", f"best is {ranked[0]!r} for {QUERY!r}", f"{PASSAGES[0]!r}", ranked)
    return order


def _check_model(body: Mapping[str, Any], model: str) -> None:
    answered = body.get("model")
    if isinstance(answered, str) and answered and answered != model:
        raise Fault("wrong_model", f"model {answered} answered", f"model {model}")


def _is_index(value: Any, count: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _bad(path: str, problems: Sequence[str], wanted: str, body: Any) -> Fault:
    return Fault(
        "bad_response",
        f"POST {path} answered badly: {'; '.join(problems[:5])}",
        wanted,
        [shorten(json.dumps(body), 500)],
    )
