"""The answer that a client gets when no endpoint gave one: a status with the reason in a field, or gRPC's.

The reason is ProxyError.kind, in x-netloom-error. The detail stays in the access log: it names addresses.
"""

from __future__ import annotations

from typing import Final

from meshproxy.message import ErrorKind, ProxyError, RequestHead, ResponseHead
from meshproxy.retry import GAVE_UP_FIELD

ERROR_FIELD: Final = b"x-netloom-error"

STATUSES: Final[dict[ErrorKind, int]] = {
    "bad-request": 400,
    "head-too-large": 431,
    "head-timeout": 408,
    "no-route": 404,
    "no-healthy-endpoint": 503,
    "no-cluster": 503,
    "overflow": 503,
    "retry-budget": 503,
    "connect-failure": 503,
    "connect-timeout": 503,
    "reset": 503,
    "refused-stream": 503,
    "bad-answer": 502,
    "timeout": 504,
    "per-try-timeout": 504,
    "idle-timeout": 504,
    "client-gone": 499,  # in logs only
    "draining": 503,
}

# grpc/doc/http-grpc-status-mapping.md, and DEADLINE_EXCEEDED where it is known to be one.
_GRPC_STATUSES: Final = {400: 13, 404: 12, 408: 4, 431: 8, 502: 14, 503: 14, 504: 4}
_UNKNOWN: Final = 2


def is_grpc(head: RequestHead) -> bool:
    """Whether the client speaks gRPC: `application/grpc`, or with a `+` and the message's format."""
    kind = head.get(b"content-type")
    return kind is not None and kind.startswith(b"application/grpc") and kind[16:17] in (b"", b"+", b";")


def error_answer(error: ProxyError, request: RequestHead, *, gave_up: bool) -> tuple[ResponseHead, bytes]:
    """Head and body. `gave_up`: the route retries, so whoever asked shall not begin again."""
    status = STATUSES[error.kind]
    kind = error.kind.encode()
    extra = [(GAVE_UP_FIELD, b"1")] if gave_up else []
    if is_grpc(request):
        fields = [
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"%d" % _GRPC_STATUSES.get(status, _UNKNOWN)),
            (b"grpc-message", kind),
            (ERROR_FIELD, kind),
            *extra,
        ]
        return ResponseHead(200, fields, None, has_body=False), b""
    body = b"%b\n" % kind
    fields = [(b"content-type", b"text/plain"), (ERROR_FIELD, kind), *extra]
    return ResponseHead(status, fields, len(body), has_body=True), body
