"""What is told of each request: JSON lines in a file, and the live stream that admin.py serves from /tail.

The hot path asks `wants()` and builds a Record only then; with the log off and nobody listening a request costs one
attribute look-up. Lines are collected and written four times a second, or at 64 KiB; a disk that is slower than the
requests loses lines, and counts them, rather than memory. The file is opened anew on SIGUSR1 (logrotate).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from meshproxy.config import AccessLog
from meshproxy.metrics import Statistics

FLUSH_S: Final = 0.25
_FLUSH_BYTES = 64 * 1024


@dataclass(slots=True, kw_only=True)
class Record:
    """One finished request."""

    listener: str
    route: str = ""
    cluster: str = ""
    endpoint: str = ""  # ip:port of the last attempt
    protocol: str = "HTTP/1.1"
    method: bytes = b""
    authority: bytes = b""
    path: bytes = b""
    status: int = 0  # 0: the client went before it had an answer
    grpc_status: int | None = None
    error: str | None = None  # ProxyError.kind
    detail: str = ""
    attempts: int = 0
    duration_s: float = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    peer: str = ""
    request_id: bytes = b""
    traceparent: bytes = b""
    user_agent: bytes = b""


class RequestLog:
    """Where records go. `is_on` is False while nobody wants any: ask it first."""

    __slots__ = ("_config", "_fd", "_lines", "_now", "_size", "_statistics", "_tails", "_turn", "is_on")

    def __init__(self, config: AccessLog, statistics: Statistics, *, now: Callable[[], datetime] | None = None) -> None:
        self._config = config
        self._statistics = statistics
        self._now = now or (lambda: datetime.now(UTC))
        self._fd = -1
        self._lines: list[bytes] = []
        self._size = 0
        self._turn = 0
        self._tails: dict[int, Callable[[bytes], None]] = {}
        self.is_on = config.mode != "off"
        self._open()

    def __repr__(self) -> str:
        return f"RequestLog({self._config.mode}, {len(self._lines)} lines waiting, {len(self._tails)} tails)"

    def wants(self, *, failed: bool) -> bool:
        """Whether a record of this request must be written. `failed`: 5xx, reset, or the client went."""
        if self._tails:
            return True
        return self._is_logged(failed=failed)

    def write(self, record: Record, *, failed: bool) -> None:
        line = render(record, self._now())
        for tail in tuple(self._tails.values()):
            tail(line)
        if not self._tails or self._is_logged(failed=failed):
            self._lines.append(line)
            self._size += len(line) + 1
            if self._size >= _FLUSH_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write what was collected. Called from a timer every FLUSH_S."""
        if not self._lines:
            return
        lines, self._lines, self._size = self._lines, [], 0
        data = b"\n".join(lines) + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError:  # a full disk, a pipe whose reader is gone or asleep
            written = 0
        lost = data[written:].count(b"\n")
        self._statistics.access_log_lines += len(lines) - lost
        self._statistics.access_log_lost += lost

    def reopen(self, config: AccessLog | None = None) -> None:
        """Open the file again: it was moved away, or the configuration names another."""
        self.flush()
        self._close()
        self._config = config or self._config
        self.is_on = self._config.mode != "off" or bool(self._tails)
        self._open()

    def close(self) -> None:
        self.flush()
        self._close()

    def tail(self, key: int, send: Callable[[bytes], None] | None) -> None:
        """Give each record, as one line of JSON, to `send` as well; None: no longer."""
        if send is None:
            self._tails.pop(key, None)
        else:
            self._tails[key] = send
        self.is_on = self._config.mode != "off" or bool(self._tails)

    def _is_logged(self, *, failed: bool) -> bool:
        match self._config.mode:
            case "all":
                return True
            case "errors":
                return failed
            case "sampled":
                if not self._lines and not self._turn:
                    pass
                self._turn += 1
                if failed or self._turn >= self._config.sample:
                    self._turn = 0
                    return True
        return False

    def _open(self) -> None:
        if self._config.mode == "off":
            return
        if self._config.path == "-":
            self._fd = os.dup(sys.__stdout__.fileno()) if sys.__stdout__ is not None else -1
        else:
            self._fd = os.open(self._config.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def render(record: Record, now: datetime) -> bytes:
    """One line of JSON, without its end. What is empty or zero stays out, but for status and attempts."""
    line: dict[str, object] = {"time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    for name in Record.__slots__:
        value = getattr(record, name)
        if name == "duration_s":
            line["duration_ms"] = round(value * 1000, 3)
        elif isinstance(value, bytes):
            if value:
                line[name] = value.decode("utf-8", "backslashreplace")
        elif value or name in ("status", "attempts"):
            line[name] = value
    if record.grpc_status is not None:
        line["grpc_status"] = record.grpc_status
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
