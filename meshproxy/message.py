"""What flows through the proxy, whatever the wire format: heads of requests and answers, and why one failed.

wire/ makes these values from bytes and bytes from these values. Nothing here does I/O.

A head is read once and mostly forwarded as it came, so its fields are parsed only when somebody asks for them. The
codec that read a head may leave its bytes in `origin`; a codec of the same wire format writes those again instead of
encoding `fields`. Whoever changes a head uses `add`, `put` and `drop`, which keep the two in step, or assigns `fields`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Fields = list[tuple[bytes, bytes]]
# From what a codec left in `origin` to the fields in it. One function of each codec, never a closure for each head.
ReadOrigin = Callable[[object], Fields]


class _Head:
    """What both heads share: fields in lower case, in order, and the bytes they were read from."""

    __slots__ = ("_fields", "added", "content_length", "has_body", "origin", "read_origin")

    _fields: Fields | None
    added: Fields  # what came after `origin` was read; a codec that writes `origin` writes these behind it
    content_length: int | None
    has_body: bool
    origin: object
    read_origin: ReadOrigin | None

    @property
    def fields(self) -> Fields:
        """All fields; read only: changes go through the methods below, or assign a new list."""
        fields = self._fields
        if fields is None:
            assert self.read_origin is not None
            self._fields = fields = self.read_origin(self.origin) + self.added
        return fields

    @fields.setter
    def fields(self, fields: Fields) -> None:
        self._fields = fields
        self.origin = self.read_origin = None
        self.added = []

    def get(self, name: bytes) -> bytes | None:
        """The first value of `name` (in lower case), or None."""
        for field, value in self.fields:
            if field == name:
                return value
        return None

    def all_of(self, name: bytes) -> list[bytes]:
        """Every value of `name` (in lower case), in order."""
        return [value for field, value in self.fields if field == name]

    def add(self, name: bytes, value: bytes) -> None:
        """Append a field. Cheap: the bytes in `origin` stay good."""
        if self.origin is not None:
            self.added = [*self.added, (name, value)]
        if self._fields is not None:
            self._fields = [*self._fields, (name, value)]

    def put(self, name: bytes, value: bytes) -> None:
        """Replace every field `name` by this one."""
        self.fields = [pair for pair in self.fields if pair[0] != name] + [(name, value)]

    def drop(self, name: bytes) -> None:
        """Remove every field `name`."""
        if self.get(name) is not None:
            self.fields = [pair for pair in self.fields if pair[0] != name]


class RequestHead(_Head):
    """A request's head. `fields`: names in lower case, in order, as received but for what frames the message or speaks
    of one connection only (RFC 9110 7.6.1): connection and what it names, keep-alive, transfer-encoding,
    content-length, te but `trailers`, host."""

    __slots__ = ("authority", "method", "path", "scheme", "upgrade")

    def __init__(
        self,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        path: bytes,
        fields: Fields | None = None,
        content_length: int | None = None,
        has_body: bool = False,  # noqa: FBT001, FBT002 - a value's field
        upgrade: bytes | None = None,
        origin: object = None,
        read_origin: ReadOrigin | None = None,
    ) -> None:
        self.method = method
        self.scheme = scheme  # b"http" unless the client said otherwise
        self.authority = authority  # Host or :authority; to change it, or `path` or `method`, use `retarget`
        self.path = path  # origin form with its query; b"*" for OPTIONS *
        self._fields = fields if fields is not None or origin is not None else []
        self.content_length = content_length
        self.has_body = has_body  # a body may follow: chunked, a length above 0, HTTP/2 without END_STREAM
        self.upgrade = upgrade  # the protocol of an Upgrade, or b"connect" for CONNECT
        self.origin = origin
        self.read_origin = read_origin
        self.added: Fields = []

    def retarget(self, *, path: bytes | None = None, authority: bytes | None = None) -> None:
        """Ask for something else than was asked; the bytes in `origin` hold the old target and go."""
        if path is not None:
            self.path = path
        if authority is not None:
            self.authority = authority
        self.fields = self.fields

    def copy(self) -> RequestHead:
        """A head that can be changed without changing this one: for a mirror."""
        head = RequestHead(
            self.method,
            self.scheme,
            self.authority,
            self.path,
            self._fields,
            self.content_length,
            self.has_body,
            self.upgrade,
            self.origin,
            self.read_origin,
        )
        head.added = self.added
        return head

    def __repr__(self) -> str:
        return f"RequestHead({self.method!r} {self.authority!r} {self.path!r} fields={self.fields!r})"


class ResponseHead(_Head):
    """An answer's head; `fields` as in RequestHead. Heads may be shared between answers: `copy` before a change."""

    __slots__ = ("status",)

    def __init__(
        self,
        status: int,
        fields: Fields | None = None,
        content_length: int | None = None,
        has_body: bool = True,  # noqa: FBT001, FBT002 - a value's field
        origin: object = None,
        read_origin: ReadOrigin | None = None,
    ) -> None:
        self.status = status
        self._fields = fields if fields is not None or origin is not None else []
        self.content_length = content_length
        self.has_body = has_body
        self.origin = origin
        self.read_origin = read_origin
        self.added: Fields = []

    def copy(self) -> ResponseHead:
        """A head that can be changed without changing this one."""
        head = ResponseHead(
            self.status, self._fields, self.content_length, self.has_body, self.origin, self.read_origin
        )
        head.added = self.added
        return head

    def __repr__(self) -> str:
        return f"ResponseHead({self.status} fields={self.fields!r})"


ErrorKind = Literal[
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


@dataclass(slots=True)
class ProxyError(Exception):
    """Why a request or an attempt failed: whose fault, what happened, whether the endpoint may have worked on it."""

    side: Literal["client", "proxy", "endpoint"]
    kind: ErrorKind  # the value of x-netloom-error and of the metrics' label
    detail: str = ""
    # Provably unprocessed: connect refused, reset before any byte on a reused connection, REFUSED_STREAM, GOAWAY past
    # the last stream id. Such an attempt may be repeated whatever the method.
    unprocessed: bool = False

    def __str__(self) -> str:
        return f"{self.kind} ({self.side}): {self.detail}" if self.detail else f"{self.kind} ({self.side})"
