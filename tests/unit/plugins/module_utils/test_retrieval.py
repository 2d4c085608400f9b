# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _retrieval
from ansible_collections.baremetal.nim.plugins.module_utils._fault import Fault

MODEL = "nvidia/llama-3.2-nv-embedqa-1b-v2"


def embedded(*vectors, **changes):
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": 9, "total_tokens": 9}, **changes}


def test_read_embeddings_puts_them_in_the_order_of_the_texts():
    body = embedded([1, 0.5], [0, -2.0])
    body["data"].reverse()
    assert _retrieval.read_embeddings(body, 2, MODEL) == [[1.0, 0.5], [0.0, -2.0]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "data is no list"),
        ({"data": {}}, "data is no list"),
        (embedded([1.0, 0.5]), "1 embeddings for 2 texts"),
        (embedded([1.0], [2.0], [3.0]), "embedding 2: index is 2"),
        (embedded([1.0], [2.0], object="embeddings"), "object is 'embeddings'"),
        (embedded([1.0], [2.0, 3.0]), "embeddings have 1 and 2 dimensions"),
        (embedded([1.0], []), "embedding 1: is [], not a list of numbers"),
        (embedded([1.0], "AACAPw=="), "embedding 1: is 'AACAPw=='"),
        (embedded([1.0], [float("nan")]), "embedding 1: is [nan]"),
        (embedded([1.0], [True]), "embedding 1: is [True]"),
        (embedded([1.0, 1.0], [0.0, 0.0]), "embedding 1: is all zeros"),
        (embedded([1.0], [2.0], data=[{"index": 0, "embedding": [1.0]}] * 2), "embedding 1: index is 0"),
        (embedded([1.0], [2.0], data=["x", {"index": True, "embedding": [1.0]}]), "embedding 1: index is True"),
    ],
)
def test_read_embeddings_refuses(body, words):
    with pytest.raises(Fault) as caught:
        _retrieval.read_embeddings(body, 2, MODEL)
    assert caught.value.failure_class == "bad_response"
    assert words in str(caught.value)


def test_read_embeddings_of_another_model():
    with pytest.raises(Fault, match="model other answered") as caught:
        _retrieval.read_embeddings(embedded([1.0], model="other"), 1, MODEL)
    assert caught.value.failure_class == "wrong_model"


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [([1, 0], [2, 0], 1), ([1, 0], [0, 3], 0), ([1, 1], [-1, -1], -1), ([1, 0], [1, 1], 0.7071)],
)
def test_cosine(one, other, value):
    assert _retrieval.cosine(one, other) == pytest.approx(value, abs=1e-4)


def test_check_meaning():
    assert _retrieval.check_meaning([1, 0], [[2, 0.1], [0, 1], [1, 1]])[0] > 0.9
    for passages in ([[0, 1], [1, 0], [0, 1]], [[1, 0], [1, 0], [1, 0]]):
        with pytest.raises(Fault, match="no nearer to it than others") as caught:
            _retrieval.check_meaning([1, 0], passages)
        assert caught.value.failure_class == "wrong_answer"
        assert len(caught.value.evidence) == 3
    with pytest.raises(Fault, match="different dimensions"):
        _retrieval.check_meaning([1, 0], [[1], [1], [1]])


def ranked(*pairs):
    return {"rankings": [{"index": index, "logit": logit} for index, logit in pairs]}


def test_read_ranking():
    assert _retrieval.read_ranking(ranked((2, 4.5), (0, -1), (1, -1))) == [2, 0, 1]
    # The passage that answers is sent last: a server that ranks nothing is found.
    assert _retrieval.ranking_request(MODEL)["passages"][-1]["text"] == _retrieval.PASSAGES[0]


@pytest.mark.parametrize(
    ("body", "failure_class", "words"),
    [
        ([], "bad_response", "rankings is no list"),
        ({"rankings": {}}, "bad_response", "rankings is no list"),
        (ranked((2, 1.0), (0, 0.5)), "bad_response", "2 rankings for 3 passages"),
        (ranked((2, 1.0), (0, 0.5), (0, 0.1)), "bad_response", "ranking 2: index is 0"),
        (ranked((2, 1.0), (0, 0.5), (3, 0.1)), "bad_response", "ranking 2: index is 3"),
        (ranked((2, 1.0), (0, None), (1, 0.1)), "bad_response", "logit is None"),
        (ranked((2, 1.0), (0, 0.1), (1, 0.5)), "bad_response", "not in the order of their logits"),
        (ranked((0, 1.0), (2, 0.5), (1, 0.1)), "wrong_answer", "best is 'Bread rises"),
    ],
)
def test_read_ranking_refuses(body, failure_class, words):
    with pytest.raises(Fault) as caught:
        _retrieval.read_ranking(body)
    assert caught.value.failure_class == failure_class
    assert words in str(caught.value)
