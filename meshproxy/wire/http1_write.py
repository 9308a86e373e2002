"""Heads to HTTP/1.1 bytes: those a codec of HTTP/1.1 has read go out as they came, others field by field."""

from __future__ import annotations

from http import HTTPStatus

from meshproxy.message import RequestHead, ResponseHead
from meshproxy.wire.http1_fields import HTTP1

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


def request_bytes(head: RequestHead) -> bytes:
    """A request's head, blank line included. A body of unknown length is announced as chunked."""
    if head.read_origin is HTTP1:
        lines = [head.origin]
        fields = head.added
    else:
        lines = [
            b"%b %b HTTP/1.1\r\nhost: %b\r\n"
            % (head.method, head.authority if head.method == b"CONNECT" else head.path, head.authority)
        ]
        fields = head.fields
        if head.content_length is not None:
            lines.append(b"content-length: %d\r\n" % head.content_length)
    lines += [b"%b: %b\r\n" % pair for pair in fields]
    if head.has_body and head.content_length is None:
        lines.append(b"transfer-encoding: chunked\r\n")
    if head.upgrade is not None and head.upgrade != b"connect":
        lines.append(b"connection: upgrade\r\nupgrade: %b\r\n" % head.upgrade)
    lines.append(b"\r\n")
    return b"".join(lines)  # type: ignore[arg-type]  # the origin of HTTP1 is bytes


def response_lines(head: ResponseHead) -> bytes:
    """An answer's head but for what concerns the connection, and without the blank line."""
    if head.read_origin is HTTP1:
        origin = head.origin
        assert isinstance(origin, bytes)
        return b"".join([origin, *[b"%b: %b\r\n" % pair for pair in head.added]]) if head.added else origin
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, _REASONS.get(head.status, b""))]
    lines += [b"%b: %b\r\n" % pair for pair in head.fields]
    # RFC 9110 8.6: neither with 1xx and 204, nor with what CONNECT opened.
    if head.content_length is not None and head.status >= 200 and head.status != 204:
        lines.append(b"content-length: %d\r\n" % head.content_length)
    return b"".join(lines)
