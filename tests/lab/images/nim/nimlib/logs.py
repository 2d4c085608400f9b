# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines in the two published forms, on stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from .settings import Settings

LEVELS = {"DEFAULT": "INFO", "TRACE": "DEBUG"}


class _Text(logging.Formatter):
    """`INFO 2026-03-03 12:00:10.079 start_server.py:42] message`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        line = f"{record.levelname} {stamp}.{int(record.msecs):03d} {record.filename}:{record.lineno}] "
        return line + record.getMessage() + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return json.dumps(
            {
                "level": record.levelname,
                "time": self.formatTime(record, "%Y-%m-%d %H:%M:%S"),
                "file_name": record.filename,
                "line_number": record.lineno,
                "message": message,
            }
        )


def setup(settings: Settings) -> None:
    """Send every logger, uvicorn's too, through one handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines() if settings.jsonl else _Text())
    level = LEVELS.get(settings.log_level, settings.log_level)
    logging.basicConfig(
        level=level if level in logging.getLevelNamesMapping() else "INFO", handlers=[handler], force=True
    )
    logging.getLogger("asyncio").setLevel("WARNING")


def trace(target: str, message: str) -> None:
    """Print a line of the downloader, which logs by its own rules whatever NIM_LOG_LEVEL says."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    print(f"{stamp}  INFO {target}: {message}", file=sys.stderr, flush=True)
