"""The proxy's own log: events with fields, one line each, on standard error. Requests go to access_log.py.

    2026-11-21T15:04:05.123Z info reload listeners=2 clusters=7

A line is formatted only where its level is on. The level is changed while it runs, by POST /logging.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

LOGGER: Final = logging.getLogger("meshproxy")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{when} {record.levelname.lower()} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def begin(level: str) -> None:
    """Send all of meshproxy's events, and warnings of what it uses, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(level.upper())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def fields(**values: object) -> str:
    """`a=1 b="two words"`."""
    return " ".join(f"{name}={_quoted(value)}" for name, value in values.items())


def _quoted(value: object) -> str:
    text = str(value)
    sound = text and not any(character in ' "=\n\r\t' for character in text)
    return text if sound else '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
