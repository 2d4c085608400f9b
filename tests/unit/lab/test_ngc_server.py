# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights server: keys, ranges, and what it remembers."""

from __future__ import annotations

import hashlib

import ngc_server
import pytest
import requests
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE
from nim_lab import KEY
from nimlib import manifest

FILES = f"/v2/models/{manifest.MODEL}/{manifest.VERSIONS['reference'].format('bf16')}/files"


def get(server: ngc_server.Weights, path: str, key: str = KEY, **headers: str) -> requests.Response:
    """GET with a key."""
    auth = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.get(f"http://127.0.0.1:{server.server_port}{path}", headers={**auth, **headers}, timeout=PATIENCE)


def test_lists_files_with_size_and_checksum(server: ngc_server.Weights) -> None:
    rows = get(server, FILES).json()
    assert [row["name"] for row in rows] == ["config.json", "model.safetensors", "tokenizer.json"]
    for row in rows:
        data = get(server, f"{FILES}/{row['name']}").content
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["size"], row["sha256"])


@pytest.mark.parametrize(
    ("key", "status"), [("", 401), ("wrong", 401), (f"{KEY}-no-rights", 403), (f"forbidden:{KEY}-no-rights", 401)]
)
def test_refuses_other_keys(server: ngc_server.Weights, key: str, status: int) -> None:
    assert get(server, FILES, key).status_code == status
    assert get(server, f"{FILES}/config.json", key).status_code == status


def test_reads_the_keys_again(server: ngc_server.Weights) -> None:
    server.keys.write_text("nvapi-rotated\n", encoding="utf-8")
    assert get(server, FILES).status_code == 401
    assert get(server, FILES, "nvapi-rotated").status_code == 200


@pytest.mark.parametrize(
    ("asked", "status", "begin", "end"),
    [("bytes=10-", 206, 10, None), ("bytes=10-19", 206, 10, 20), ("bytes=0-99999999", 206, 0, None)],
)
def test_serves_ranges(server: ngc_server.Weights, asked: str, status: int, begin: int, end: int | None) -> None:
    whole = get(server, f"{FILES}/config.json").content
    part = get(server, f"{FILES}/config.json", Range=asked)
    assert (part.status_code, part.content) == (status, whole[begin:end])
    assert part.headers["Content-Range"].endswith(f"/{len(whole)}")


def test_refuses_a_range_past_the_end(server: ngc_server.Weights) -> None:
    assert get(server, f"{FILES}/config.json", Range="bytes=99999999-").status_code == 416


@pytest.mark.parametrize(
    "path", ["/", "/v2/models/a/b/c/files", f"{FILES}/nothing", "/v2/models/%2e%2e/%2e%2e/etc/files"]
)
def test_knows_nothing_else(server: ngc_server.Weights, path: str) -> None:
    assert get(server, path).status_code == 404


def test_remembers_requests_but_no_key(server: ngc_server.Weights) -> None:
    get(server, FILES)
    get(server, FILES, "short")
    get(server, f"{FILES}/config.json")
    summary = get(server, "/lab/requests", "").json()
    assert summary["count"] == 3
    assert {(row["path"], row["status"]): row["count"] for row in summary["requests"]} == {
        (FILES, 200): 1,
        (FILES, 401): 1,
        (f"{FILES}/config.json", 200): 1,
    }
    log = server.log.read_text(encoding="utf-8")
    assert len(log.splitlines()) == 3
    assert KEY not in log
    assert KEY[-4:] in log
    assert "short" not in log
    requests.delete(f"http://127.0.0.1:{server.server_port}/lab/requests", timeout=PATIENCE)
    assert get(server, "/lab/requests", "").json() == {"count": 0, "bytes": 0, "requests": []}
