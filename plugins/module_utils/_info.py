# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a running NIM tells of itself: each answer read into the same few keys, whatever generation gave it.

This module util is private to the collection and may change at any time. The readers are pure and raise ValueError in words that
complete the sentence "GET <path> ...".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _exposition
from ansible_collections.baremetal.nim.plugins.module_utils._endpoint import Endpoint
from ansible_collections.baremetal.nim.plugins.module_utils._fault import UNFORESEEN, Fault, shorten
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import parse_json
from ansible_collections.baremetal.nim.plugins.module_utils._foreign import printable as _printable

#: What is asked besides the readiness, by the key of the result.
PATHS = {
    "live": "/v1/health/live",
    "models": "/v1/models",
    "metadata": "/v1/metadata",
    "version": "/v1/version",
    "manifest": "/v1/manifest",
    "metrics": "/v1/metrics",
}
#: Most entries of a list that are told of, and characters of a text.
_MOST = 1000
#: Names of a measured value: NIM 2.x with vLLM (and vLLM before 0.12), NIM 1.x, SGLang. The first that is there counts.
_GAUGES = {
    "requests_running": ("vllm:num_requests_running", "num_requests_running", "sglang:num_running_reqs"),
    "requests_waiting": ("vllm:num_requests_waiting", "num_requests_waiting", "sglang:num_queue_reqs"),
    "requests_max": ("num_request_max",),
}
_COUNTERS = {
    "prompt_tokens_total": ("vllm:prompt_tokens_total", "prompt_tokens_total", "sglang:prompt_tokens_total"),
    "generation_tokens_total": (
        "vllm:generation_tokens_total",
        "generation_tokens_total",
        "sglang:generation_tokens_total",
    ),
    "requests_failed_total": ("request_failure_total",),
    "preemptions_total": ("vllm:num_preemptions_total",),
}
_KV_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "gpu_cache_usage_perc", "sglang:token_usage")
_FINISHED = ("vllm:request_success_total", "request_finish_total", "request_success_total", "sglang:num_requests_total")
_LATENCIES = {
    "time_to_first_token": (
        "vllm:time_to_first_token_seconds",
        "time_to_first_token_seconds",
        "sglang:time_to_first_token_seconds",
    ),
    "inter_token_latency": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
    ),
    "e2e_latency": (
        "vllm:e2e_request_latency_seconds",
        "e2e_request_latency_seconds",
        "sglang:e2e_request_latency_seconds",
    ),
    "queue_time": ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds"),
}


# -- reading answers ---------------------------------------------------------------------------------------------------


def read_models(body: Any) -> list[dict[str, Any]]:
    """Return the models of a /v1/models answer: id, root, parent, owned_by, max_model_len, and whether it is an adapter."""
    data = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(data, list):
        raise ValueError(f"has no list of models: {_short(body)}")
    models = []
    for card in data:
        if not isinstance(card, Mapping) or not isinstance(card.get("id"), str):
            raise ValueError(f"lists something without an id: {_short(card)}")
        length = card.get("max_model_len")
        models.append(
            {
                "id": _told(card["id"]),
                "root": _text(card.get("root")),
                "parent": _text(card.get("parent")),
                "owned_by": _text(card.get("owned_by")),
                "max_model_len": length if isinstance(length, int) else None,
                # A LoRA adapter is served beside its parent, by the same weights.
                "adapter": bool(_text(card.get("parent"))),
            }
        )
    return models


def read_metadata(body: Any) -> dict[str, Any]:
    """Return what a /v1/metadata answer says, with names of one style; what it does not say is None or empty."""
    body = _mapping(body)
    if not {"version", "modelInfo", "assetInfo"} & set(body):
        raise ValueError(f"has neither version nor models: {_short(body)}")
    models = [entry for entry in _list(body.get("modelInfo")) if isinstance(entry, Mapping)]
    licence = body.get("licenseInfo")
    licence = licence if isinstance(licence, Mapping) else {}
    size = licence.get("size")
    return {
        "version": _text(body.get("version")),
        "profile": _text(body.get("selectedModelProfileId")),
        "models": [
            {"short_name": _text(entry.get("shortName")), "url": _text(entry.get("modelUrl"))} for entry in models
        ],
        "assets": [_told(str(asset)) for asset in _list(body.get("assetInfo"))],
        "repository_override": _text(body.get("repository_override")),
        "license": {
            **{key: _text(licence.get(key)) for key in ("name", "path", "sha", "url")},
            "size_bytes": size if isinstance(size, int) else None,
        },
    }


def read_version(body: Any) -> dict[str, Any]:
    """Return release and api of a /v1/version answer."""
    body = _mapping(body)
    found = {key: _text(body.get(key)) for key in ("release", "api")}
    if not any(found.values()):
        raise ValueError(f"has neither release nor api: {_short(body)}")
    return found


def read_manifest(body: Any) -> dict[str, Any]:
    """Return file and profiles (id, tags) of a /v1/manifest answer, in both schemas of manifests."""
    body = _mapping(body)
    manifest = body["manifest"] if isinstance(body.get("manifest"), Mapping) else body
    listed = manifest.get("profiles")
    if isinstance(listed, list):
        entries = [(entry.get("id"), entry) for entry in listed if isinstance(entry, Mapping)]
    else:
        # The first schema is a mapping by id, and other keys of the answer are none.
        entries = [(key, entry) for key, entry in manifest.items() if isinstance(entry, Mapping) and "tags" in entry]
    if not entries and not isinstance(listed, list):
        raise ValueError(f"has no profiles: {_short(body)}")
    return {
        "file": _text(body.get("manifest_file")),
        "profiles": [
            {
                "id": _told(str(ident)),
                "tags": {
                    _told(str(key)): _told(str(value))
                    for key, value in (entry["tags"] if isinstance(entry.get("tags"), Mapping) else {}).items()
                },
            }
            for ident, entry in entries
        ],
    }


def read_metrics(text: str) -> dict[str, Any]:
    """Return a /v1/metrics answer under the names of one schema; what the engine does not tell is None.

    Series of several engines or models of one NIM are added up; of the use of their caches, the highest counts.
    """
    try:
        samples = _exposition.parse(text)
    except ValueError as exc:
        raise ValueError(f"has no metrics of Prometheus: {exc}") from None
    by_name: dict[str, list[_exposition.Sample]] = {}
    for sample in samples:
        # Neither is what adds up to no number.
        if math.isfinite(sample.value) and abs(sample.value) < 1e200:
            by_name.setdefault(sample.name, []).append(sample)

    def values(names: Iterable[str], ending: str = "") -> list[float]:
        found = next((by_name[name + ending] for name in names if name + ending in by_name), [])
        return [sample.value for sample in found]

    usage = values(_KV_CACHE)
    finished: dict[str, float] = {}
    for sample in next((by_name[name] for name in _FINISHED if name in by_name), []):
        reason = _printable(sample.labels.get("finished_reason") or "any", 40)
        finished[reason] = finished.get(reason, 0) + sample.value
    latencies = {}
    for key, names in _LATENCIES.items():
        total, count = values(names, "_sum"), values(names, "_count")
        latencies[key] = {
            "count": _sum(count),
            "sum_s": round(sum(total), 6) if total else None,
            "mean_ms": round(sum(total) / sum(count) * 1000, 3) if total and sum(count) else None,
        }
    return {
        "names": _names(by_name),
        **{key: _sum(values(names)) for key, names in {**_GAUGES, **_COUNTERS}.items()},
        "kv_cache_usage": max(usage) if usage else None,
        "requests_finished": {reason: _whole(count) for reason, count in finished.items()},
        **latencies,
    }


def _names(names: Iterable[str]) -> str | None:
    """Whose names they are."""
    names = set(names)
    for engine in ("vllm", "sglang"):
        if any(name.startswith(f"{engine}:") for name in names):
            return engine
    return "classic" if names & {"num_requests_running", "gpu_cache_usage_perc", "prompt_tokens_total"} else None


def _sum(values: Iterable[float]) -> float | None:
    values = list(values)
    return _whole(sum(values)) if values else None


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _mapping(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise ValueError(f"has no object: {_short(body)}")
    return body


def _told(text: str) -> str:
    return _printable(text, _MOST)


def _list(value: Any) -> list[Any]:
    return value[:_MOST] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return _told(value) if isinstance(value, str) and value else None


def _short(body: Any) -> str:
    return shorten(json.dumps(body), 80)


_READERS: dict[str, Callable[[Any], Any]] = {
    "models": read_models,
    "metadata": read_metadata,
    "version": read_version,
    "manifest": read_manifest,
}


# -- asking ------------------------------------------------------------------------------------------------------------


def ask(endpoint: Endpoint, ready_path: str) -> dict[str, Any]:
    """Return what the endpoint tells of itself. Raises Fault when it cannot be asked, or is nothing like a NIM."""
    # First and alone: what cannot be reached is not asked six times more.
    status, words = endpoint.ready(ready_path, endpoint.request_timeout)
    if status is None:
        raise Fault("unreachable", f"GET {ready_path} found no endpoint ({words})", "an answer of any status")
    result: dict[str, Any] = {
        "ready": status == 200,
        "responses": {"ready": {"path": ready_path, "status": status, "problem": None if status == 200 else words}},
    }
    # Side by side, so that a dead engine that hangs costs its time once.
    with ThreadPoolExecutor(max_workers=len(PATHS)) as pool:
        answers = dict(zip(PATHS, pool.map(endpoint.look, PATHS.values())))
    for key, path in PATHS.items():
        status, body, problem = answers[key]
        data = None
        if not problem and key != "live":
            try:
                data = read_metrics(body) if key == "metrics" else _READERS[key](_json(body))
            except ValueError as exc:
                problem = shorten(str(exc), 500)
            except UNFORESEEN as exc:
                problem = f"cannot be read: {shorten(repr(exc))}"
        result["responses"][key] = {"path": path, "status": status, "problem": problem}
        result[key] = problem is None if key == "live" else data
    _refuse_strangers(result)
    models = result["models"] or []
    result["model"] = next((model["id"] for model in models if not model["adapter"]), None)
    result["adapters"] = [model["id"] for model in models if model["adapter"]]
    return result


def _refuse_strangers(result: Mapping[str, Any]) -> None:
    """Raise Fault for a server that answers with something else whatever it is asked, such as a web page."""
    answers = [result["responses"][key] for key in _READERS]
    refused = [f"GET {answer['path']} {answer['problem']}" for answer in answers if answer["status"] == 200]
    if refused and all(answer["problem"] for answer in answers):
        raise Fault("bad_response", refused[0], "the answers of a NIM", refused)


def _json(body: str) -> Any:
    try:
        return parse_json(body)
    except ValueError:
        raise ValueError(f"is no JSON: {shorten(body, 80)!r}") from None
