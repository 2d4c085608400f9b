#!/usr/bin/env python3
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights server of the lab.

GET /v2/models/<org>/<name>/<version>/files         JSON list of name, size, sha256
GET /v2/models/<org>/<name>/<version>/files/<file>  the file, ranges too
GET /lab/requests                                   what was asked so far; DELETE forgets it

The key file has one key a line; "forbidden:KEY" is known but has no rights. It is read again whenever it changes.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import re
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

FILES = re.compile(r"/v2/models/(?P<model>[^/]+/[^/]+/[^/]+)/files(?:/(?P<file>[^/]+))?")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
CHUNK = 1 << 16


class Weights(http.server.ThreadingHTTPServer):
    """The server and what its requests share."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], root: Path, keys: Path, log: Path, rate: int = 0) -> None:
        super().__init__(address, Handler)
        self.root, self.keys, self.log, self.rate = root.resolve(), keys, log, rate
        self.lock = threading.Lock()
        self.seen: Counter[tuple[str, int, str]] = Counter()
        self.sums: dict[tuple[str, int, int], str] = {}
        self.bytes = 0
        self.active = 0
        self.idle = threading.Condition()

    def status_of(self, key: str) -> int:
        """Return 200, 401 or 403 for a key. The file is a line or two, so it is simply read each time."""
        known = self.keys.read_text(encoding="utf-8").split() if self.keys.exists() else []
        if f"forbidden:{key}" in known:
            return 403
        return 200 if key and not key.startswith("forbidden:") and key in known else 401

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, computed once per content."""
        stat = path.stat()
        identity = (str(path), stat.st_mtime_ns, stat.st_size)
        if identity not in self.sums:
            with path.open("rb") as file:
                self.sums[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.sums[identity]

    def note(self, entry: dict[str, object]) -> None:
        """Log one request."""
        with self.lock:
            self.seen[(str(entry["method"]), int(str(entry["status"])), str(entry["path"]))] += 1
            self.bytes += int(str(entry["bytes"]))
            with self.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")

    def settle(self) -> None:
        """Wait until the requests under way are noted: a client has its answer a moment earlier."""
        with self.idle:
            self.idle.wait_for(lambda: not self.active, timeout=5)

    def summary(self) -> dict[str, object]:
        """Count what was asked."""
        self.settle()
        with self.lock:
            rows = [{"method": m, "status": s, "path": p, "count": count} for (m, s, p), count in self.seen.items()]
            return {"count": sum(self.seen.values()), "bytes": self.bytes, "requests": rows}

    def forget(self) -> None:
        """Start counting anew."""
        self.settle()
        with self.lock:
            self.seen.clear()
            self.bytes = 0


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Weights

    def do_GET(self) -> None:
        """Answer a GET."""
        path = unquote(urlsplit(self.path).path)
        if path == "/lab/requests":
            self._json(200, self.server.summary())
            return
        if path == "/healthz":
            self._json(200, {"status": "ok"})
            return
        self.key = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        status, sent = 500, 0
        with self.server.idle:
            self.server.active += 1
        try:
            status, sent = self._weights(path)
        finally:
            self.server.note(
                {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "client": self.client_address[0],
                    "method": "GET",
                    "path": path,
                    "range": self.headers.get("Range"),
                    "status": status,
                    "bytes": sent,
                    # Enough to tell keys apart, never enough to use one.
                    "key": self.key[-4:] if len(self.key) >= 16 else "",
                }
            )
            with self.server.idle:
                self.server.active -= 1
                self.server.idle.notify_all()

    def do_DELETE(self) -> None:
        """Forget what was counted."""
        if urlsplit(self.path).path != "/lab/requests":
            self._json(404, {"error": "Not Found"})
            return
        self.server.forget()
        self._json(200, {})

    def _weights(self, path: str) -> tuple[int, int]:
        """Answer with weights; return the status and the bytes of file that went out."""
        status = self.server.status_of(self.key)
        if status != 200:
            return self._json(status, {"error": {401: "Unauthorized", 403: "Forbidden"}[status]}), 0
        match = FILES.fullmatch(path)
        folder = (self.server.root / match["model"]).resolve() if match else self.server.root
        if not match or not folder.is_relative_to(self.server.root) or not folder.is_dir():
            return self._json(404, {"error": "Not Found"}), 0
        files = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
        if match["file"] is None:
            rows = [
                {"name": name, "size": file.stat().st_size, "sha256": self.server.digest(file)}
                for name, file in files.items()
            ]
            return self._json(200, rows), 0
        if match["file"] not in files:
            return self._json(404, {"error": "Not Found"}), 0
        return self._send_file(files[match["file"]])

    def _send_file(self, path: Path) -> tuple[int, int]:
        size = path.stat().st_size
        start, end = 0, size - 1
        ranged = RANGE.fullmatch(self.headers.get("Range", ""))
        if ranged:
            start, end = int(ranged[1]), min(int(ranged[2] or end), end)
            if start > end:
                return self._json(416, {"error": "Range Not Satisfiable"}, {"Content-Range": f"bytes */{size}"}), 0
        status = 206 if ranged else 200
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{self.server.digest(path)}"')
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        sent = 0
        with path.open("rb") as file:
            file.seek(start)
            while sent <= end - start and (data := file.read(min(CHUNK, end - start + 1 - sent))):
                try:
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True
                    break
                sent += len(data)
                if self.server.rate:
                    time.sleep(len(data) / self.server.rate)
        return status, sent

    def _json(self, status: int, body: object, headers: dict[str, str] | None = None) -> int:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        return status

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: the log file tells it."""


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--rate", type=int, default=0, help="bytes per second of each download, 0: as fast as it goes")
    args = parser.parse_args()
    Weights(("", args.port), args.root, args.keys, args.log, args.rate).serve_forever()


if __name__ == "__main__":
    main()
