# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the deployments of a service, and which of them may be kept. Private to the collection; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Deployments that a record remembers.
REMEMBERED = 20
#: What it remembers of each.
SUMMARY = ("image", "image_reference", "config_hash", "deployed_at", "verified")


def parse_record(text: bytes | str | None) -> dict[str, Any] | None:
    """A deployment record, None when the text is none."""
    try:
        value = json.loads(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def history(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Deployments before the next one, oldest first: those that RECORD, of the last one, remembers, and itself."""
    if not record:
        return []
    last = {key: record[key] for key in SUMMARY if key in record}
    return [*record.get("history", []), last][-REMEMBERED:]


def with_failure(record: Mapping[str, Any], image: str, reason: str, now: str) -> dict[str, Any]:
    """The record of a deployment that came back because a later one, of IMAGE, failed for REASON."""
    failed = {"image": image, "deployed_at": now, "verified": False, "reason": " ".join(reason.split())[:500]}
    return {**record, "history": [*record.get("history", []), failed][-REMEMBERED:]}


def keepable(record: Mapping[str, Any] | None, sums: Mapping[str, str | None], kept: Mapping[str, Any] | None) -> str:
    """What to do about the copy of the deployment that RECORD tells of: ``copy`` it, ``keep`` the copy there is, or ``none``.

    SUMS are the SHA-256 sums of its files as they are now, KEPT is the record in the copy that there is. Only what was
    verified, and is still as it was then, is worth coming back to.
    """
    if not record or not record.get("verified"):
        return "none"
    wanted = record.get("files", {})
    if all(path in wanted and wanted[path] == found for path, found in sums.items()):
        return "copy"
    # A killed upgrade has replaced the files; the copy that it made first is still of what is recorded.
    return "keep" if kept and kept.get("config_hash") == record.get("config_hash") else "none"


def another(record: Mapping[str, Any] | None, kept: Mapping[str, Any] | None) -> bool:
    """Whether the copy that there is (its record is KEPT) is of another deployment than RECORD."""
    return bool(record and kept) and (record or {}).get("config_hash") != (kept or {}).get("config_hash")


def unit_place(record: Mapping[str, Any] | None, places: Sequence[str]) -> str:
    """The one of PLACES where the deployment that RECORD tells of has its unit, the first where it tells nothing."""
    files = (record or {}).get("files") or {}
    return next((path for path in places if path in files), places[0])


def told(record: Mapping[str, Any]) -> str:
    """When a service was deployed, how often before, and from what it came back, for a table."""
    at = str(record.get("deployed_at") or "")[:16].replace("T", " ")
    at += " UTC" if at else ""
    past = record.get("history") or []
    if past and not past[-1].get("verified", True):
        return f"{at}, back from {str(past[-1].get('image', '')).rpartition(':')[2] or 'another'}"
    return at or "-"
