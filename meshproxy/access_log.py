"""What is told of each request: JSON lines in a file, and the live stream that admin.py serves from /tail.

The hot path asks `wants()` and builds a Record only then; with the log off and nobody listening a request costs one
attribute look-up. Lines are collected and written four times a second, or at 64 KiB; a disk that is slower than the
requests loses lines, and counts them, rather than memory. The file is opened anew on SIGUSR1 (logrotate).
"""

from __future__ import annotations

import json
import os
import select
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

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


class Follower(Protocol):
    """Who reads along."""

    def __call__(self, line: bytes, /, *, failed: bool) -> None: ...


class RequestLog:
    """Where records go. `is_on` is False while nobody wants any: ask it first."""

    __slots__ = (
        "_config",
        "_fd",
        "_followers",
        "_is_pipe",
        "_lines",
        "_now",
        "_sampled",
        "_size",
        "_statistics",
        "_turns",
        "is_on",
    )

    def __init__(self, config: AccessLog, statistics: Statistics, *, now: Callable[[], datetime] | None = None) -> None:
        self._config = config
        self._statistics = statistics
        self._now = now or (lambda: datetime.now(UTC))
        self._fd = -1
        self._lines: list[bytes] = []
        self._size = 0
        self._sampled = 0
        self._turns = 0
        self._followers: dict[int, Follower] = {}
        self._is_pipe = False
        self.is_on = False
        self._open()

    def __repr__(self) -> str:
        return f"RequestLog({self._config.mode}, {len(self._lines)} lines waiting, {len(self._followers)} followers)"

    def wants(self, *, failed: bool) -> bool:
        """Whether a record of this request must be written. `failed`: 5xx, reset, or the client went."""
        if self._followers:
            return True
        return self._is_logged(failed=failed)

    def write(self, record: Record, *, failed: bool) -> None:
        """Take a record that was wanted."""
        line = render(record, self._now())
        if self._followers:
            for follower in tuple(self._followers.values()):
                follower(line, failed=failed)
            if not self._is_logged(failed=failed):
                return
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
        written = 0
        try:
            # A pipe whose reader sleeps must not stop the loop: less than PIPE_BUF always fits when it is writable.
            while written < len(data) and (not self._is_pipe or select.select((), (self._fd,), (), 0)[1]):
                written += os.write(self._fd, data[written : written + select.PIPE_BUF] if self._is_pipe else data)
        except OSError:  # a full disk, a pipe whose reader is gone
            pass
        begun = written and data[written - 1 : written] != b"\n" and written < len(data)
        if begun:  # the rest of a line that is half written comes first the next time: lines stay whole
            end = data.index(b"\n", written)
            self._lines.append(data[written:end])
            self._size += end - written
            written = end + 1
        lost = data[written:].count(b"\n")
        self._statistics.access_log_lines += len(lines) - lost - bool(begun)
        self._statistics.access_log_lost += lost

    def reopen(self, config: AccessLog | None = None) -> None:
        """Open the file again: it was moved away, or the configuration names another."""
        self.flush()
        before, self._config, old = self._config, config or self._config, self._fd
        self._fd = -1
        try:
            self._open()
        except OSError:
            self._config, self._fd = before, old
            raise
        if old >= 0:
            os.close(old)

    def close(self) -> None:
        self.flush()
        self._close()

    def follow(self, follower: Follower) -> int:
        """Give each record to `follower`, too. Returns what `unfollow` takes."""
        self._turns += 1
        self._followers[self._turns] = follower
        self.is_on = True
        return self._turns

    def unfollow(self, key: int) -> None:
        self._followers.pop(key, None)
        self.is_on = self._config.mode != "off" or bool(self._followers)

    def _is_logged(self, *, failed: bool) -> bool:
        match self._config.mode:
            case "all":
                return True
            case "errors":
                return failed
            case "sampled":
                self._sampled += 1
                return failed or self._sampled % self._config.sample == 0
        return False

    def _open(self) -> None:
        self.is_on = self._config.mode != "off" or bool(self._followers)
        if self._config.mode == "off":
            return
        if self._config.path == "-":
            self._fd = os.dup(1)
        else:
            self._fd = os.open(self._config.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._is_pipe = not stat.S_ISREG(os.fstat(self._fd).st_mode)

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
