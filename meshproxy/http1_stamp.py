"""What a request is known by, written into the bytes of its head: X-Forwarded-*, x-request-id, traceparent.

Hot: the same as ListenerRuntime.stamp, for heads that the quick expression has read, without reading their fields:
0.8 us for a request that brings nothing of it, 1.3 us for one that comes from another meshproxy; by fields it is 14 us.
"""

from __future__ import annotations

import re
from typing import Literal

from meshproxy.identity import Randomness
from meshproxy.wire.http1_request import (
    FORWARDED_FOR,
    FORWARDED_PROTO,
    KEEP_ALIVE,
    REQUEST_ID,
    TRACE_PARENT,
    TRACE_STATE,
    keep_alive_span,
)

# Where in a traceparent the span's id is.
_SPAN_START = 36
_SPAN_END = 52


class Http1Stamp:
    """One for each client's connection: its address is written into each request."""

    __slots__ = (
        "_for_line",
        "_for_more",
        "_is_replacing",
        "_keeps",
        "_proto_line",
        "_randomness",
        "_tail",
        "_traced_below",
    )

    def __init__(
        self,
        peer: bytes,
        mode: Literal["append", "replace", "keep"],
        randomness: Randomness,
        *,
        traced_percent: float = 0,
    ) -> None:
        # The share of trace ids, by their first four digits, that are marked as sampled.
        self._traced_below = b"%04x" % min(int(traced_percent * 655.36), 0xFFFF)
        self._randomness = randomness
        self._is_replacing = mode == "replace"
        self._keeps = mode == "keep"
        self._for_line = b"" if self._keeps else b"x-forwarded-for: %b\r\n" % peer
        self._for_more = b", " + peer
        self._proto_line = b"" if self._keeps else b"x-forwarded-proto: http\r\n"
        self._tail = self._for_line + self._proto_line

    def __repr__(self) -> str:
        return f"Http1Stamp({self._tail!r})"

    def origin(self, match: re.Match[bytes], data: bytes) -> bytes | None:
        """The head to forward, without its blank line; None: it takes more than this."""
        end = match.end() - 2
        token = self._randomness.token
        request_id, forwarded_for, proto, parent, state = match.group(
            REQUEST_ID, FORWARDED_FOR, FORWARDED_PROTO, TRACE_PARENT, TRACE_STATE
        )
        if request_id is None and forwarded_for is None and proto is None and parent is None and state is None:
            digits = token(80)
            start, stop = (-1, -1) if match[KEEP_ALIVE] is None else keep_alive_span(match)
            return b"%b%bx-request-id: %b\r\ntraceparent: 00-%b-%b-%b\r\n" % (
                data[:end] if start < 0 else data[:start] + data[stop:end],
                self._tail,
                digits[:32],
                digits[32:64],
                digits[64:],
                b"01" if digits[32:36] < self._traced_below else b"00",
            )
        if (state is not None and parent is None) or (
            self._is_replacing and (forwarded_for is not None or proto is not None)
        ):
            return None
        return self._edited(match, data[:end])

    def _edited(self, match: re.Match[bytes], origin: bytes) -> bytes:
        token = self._randomness.token
        edits = []
        start, stop = keep_alive_span(match)
        if start >= 0:
            edits.append((start, stop, b""))
        tail = b""
        stop = match.end(FORWARDED_FOR)
        if stop < 0:
            tail = self._for_line
        elif not self._keeps:
            edits.append((stop, stop, self._for_more))
        if match[FORWARDED_PROTO] is None:
            tail += self._proto_line
        if match[REQUEST_ID] is None:
            tail += b"x-request-id: %b\r\n" % token(32)
        start = match.start(TRACE_PARENT)
        if start >= 0:
            edits.append((start + _SPAN_START, start + _SPAN_END, token(16)))
        else:
            trace = token(32)
            sampled = b"01" if trace < self._traced_below else b"00"
            tail += b"traceparent: 00-%b-%b-%b\r\n" % (trace, token(16), sampled)
        # From the end to the start, so that positions stay true.
        edits.sort(reverse=True)
        for start, stop, text in edits:
            origin = origin[:start] + text + origin[stop:]
        return origin + tail
