# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the deployments of a service, and which of them may be kept. Private to the collection; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _readback

#: Deployments that a record remembers.
REMEMBERED = 20
#: What it remembers of each.
SUMMARY = ("image", "image_reference", "config_hash", "deployed_at", "verified")


#: Files that a record has sums of.
_MOST_FILES = 100
_SUM = _readback.matching(re.compile("[0-9a-f]+"), 128)
_DEPLOYED = {
    "image": _readback.word(),
    "image_reference": _readback.word(),
    "config_hash": _readback.word(200),
    "deployed_at": _readback.word(100),
    "verified": _readback.flag,
}
_PAST = {**_DEPLOYED, "reason": _readback.word(1000)}
_RECORD = _readback.fields(
    {
        **_DEPLOYED,
        "name": _readback.word(200),
        "engine": _readback.word(100),
        "contract": _readback.word(100),
        "gpus": _readback.items(_readback.word(200), 1000),
        "url": _readback.matching(re.compile(r"https?://\S+")),
        "grpc_port": _readback.or_none(_readback.count),
        "ready_path": _readback.matching(re.compile(r"/\S*")),
        "verify": _readback.mapping,
        "files": _readback.table(_readback.place, _SUM, _MOST_FILES),
        "key_at_runtime": _readback.flag,
        "model": _readback.or_none(_readback.word()),
        "ready_after_s": _readback.or_none(_readback.amount),
        "ttft_ms": _readback.or_none(_readback.amount),
        "watchdog": _readback.mapping,
        "history": _readback.items(_readback.fields(_PAST), REMEMBERED),
    }
)


def parse_record(data: bytes | str | None) -> dict[str, Any] | None:
    """A deployment record: what of it is of its kind. None when there is none."""
    found: dict[str, Any] | None = _readback.document(data, _RECORD)
    return found


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
