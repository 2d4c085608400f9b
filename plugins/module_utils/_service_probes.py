# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the endpoints of services are verified. Pure, and light: filters load it in every task.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Probes of endpoints that serve no chat.
WITHOUT_CHAT = frozenset({"health", "embedding", "ranking", "transcription", "speech"})
#: Those whose endpoints list no models.
WITHOUT_MODELS = frozenset({"health", "transcription", "speech"})
# Three ways to say one thing.
_QUESTIONS = frozenset({"prompt", "messages", "prompts"})


def service_probes(
    items: Iterable[Mapping[str, Any]], timeout: float | None, options: Mapping[str, Any], chat: bool = False
) -> list[dict[str, Any]]:
    """Return how services are verified, as nim_verify takes it.

    items: resolved services, or their records (name, url, ready_path, model, verify, start_timeout). timeout: seconds that
    each may take to be ready, None for its own start_timeout. options: of chat_completion, for all; those of a service win.
    Those that are marked ``outside`` are asked where clients reach them, which shows no unit. chat: whether only those are meant that
    serve chat.
    """
    found = []
    for item in items:
        # Where clients reach a service is no way to tell that this very instance serves.
        own = {key: value for key, value in (item.get("verify") or {}).items() if key != "url"}
        others = {key: value for key, value in options.items() if key not in _QUESTIONS or not own.keys() & _QUESTIONS}
        probe = {
            "name": item["name"],
            "url": item["url"],
            "unit": f"nim-{item['name']}.service",
            "timeout": item["start_timeout"] if timeout is None else timeout,
            **others,
            **own,
        }
        if item.get("outside"):
            del probe["unit"]
        if chat and probe.get("probes") and WITHOUT_CHAT.issuperset(probe["probes"]):
            continue
        for key in ("model", "ready_path"):
            if item.get(key):
                probe[key] = item[key]
        found.append(probe)
    return found
