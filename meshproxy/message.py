"""What flows through the proxy, whatever the wire format: heads of requests and answers, and why one failed.

wire/ makes these values from bytes and bytes from these values. Nothing here does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Fields = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class RequestHead:
    """A request's head. `fields`: names in lower case, in order, as received but for what frames the message or speaks
    of one connection only (RFC 9110 7.6.1): connection and what it names, keep-alive, transfer-encoding,
    content-length, te but `trailers`, host."""

    method: bytes
    scheme: bytes  # b"http" unless the client said otherwise
    authority: bytes  # Host or :authority
    path: bytes  # origin form with its query; b"*" for OPTIONS *
    fields: Fields = field(default_factory=list)
    content_length: int | None = None
    has_body: bool = False  # a body may follow: chunked, a length above 0, HTTP/2 without END_STREAM
    upgrade: bytes | None = None  # the protocol of an Upgrade, or b"connect" for CONNECT


@dataclass(slots=True)
class ResponseHead:
    """An answer's head; `fields` as in RequestHead."""

    status: int
    fields: Fields = field(default_factory=list)
    content_length: int | None = None
    has_body: bool = True


@dataclass(slots=True)
class ProxyError(Exception):
    """Why a request or an attempt failed: whose fault, what happened, whether the endpoint may have worked on it."""

    side: Literal["client", "proxy", "endpoint"]
    # The value of x-netloom-error and of the metrics' label.
    kind: Literal[
        "bad-request",
        "head-too-large",
        "head-timeout",
        "no-route",
        "no-healthy-endpoint",
        "no-cluster",
        "overflow",
        "retry-budget",
        "connect-failure",
        "connect-timeout",
        "reset",
        "refused-stream",
        "bad-answer",
        "timeout",
        "per-try-timeout",
        "idle-timeout",
        "client-gone",
        "draining",
    ]
    detail: str = ""
    # Provably unprocessed: connect refused, reset before any byte on a reused connection, REFUSED_STREAM, GOAWAY past
    # the last stream id. Such an attempt may be repeated whatever the method.
    unprocessed: bool = False

    def __str__(self) -> str:
        return f"{self.kind} ({self.side}): {self.detail}" if self.detail else f"{self.kind} ({self.side})"
