"""What header blocks mean: heads of requests and answers, and trailers, after every rule of RFC 9113 8.

A Block is what was found, and keeps the bytes of its fields in a form that any decoder takes, so that forwarding it
encodes nothing. http2_head_reader.py finds blocks, mostly without coming here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from meshproxy.identity import is_traceparent
from meshproxy.message import Fields, RequestHead, ResponseHead
from meshproxy.wire.hpack import (
    ENCODED,
    NeverIndexed,
    encode_ids,
)
from meshproxy.wire.http2_frames import Code, StreamFault

_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_SCHEME: Final = re.compile(rb"[a-z][a-z0-9+.\-]{0,15}")
# RFC 3986 without user information, which RFC 9113 8.3.1 forbids here.
_AUTHORITY: Final = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:%\[\]]{1,255}")
_PATH: Final = re.compile(rb"/[!\"$-~]*")  # no fragment, no blanks, ASCII
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_STATUS: Final = re.compile(rb"[1-5][0-9][0-9]")

# RFC 9113 6.5.2: what the size of a header list adds for each field.
_FIELD_OVERHEAD: Final = 32
# Set aside from a request's fields: whoever forwards it replaces or reads them each time, and appends them again.
ASIDE: Final = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"traceparent", b"grpc-timeout"))


class HeadTooLarge(Exception):
    """The header list is beyond the limit: 431 for a request, a failed attempt for an answer."""


_NOTHING_ASIDE: Final[dict[bytes, bytes]] = {}


class Block:
    """What a header block means. Shared between the requests that sent equal blocks, so never changed.

    `wire` has `fields` as bytes that any decoder takes. Both leave out what RequestHead leaves out, and what is in
    `aside` (values by name, several lines joined).
    """

    __slots__ = (
        "aside",
        "authority",
        "content_length",
        "count",
        "fields",
        "has_request_id",
        "key",
        "key_name",
        "method",
        "passage",
        "path",
        "scheme",
        "sent",
        "size",
        "status",
        "wire",
    )

    def __init__(self, fields: Fields, wire: bytes, size: int) -> None:
        self.fields = fields
        self.count = len(fields)
        self.aside: dict[bytes, bytes] = _NOTHING_ASIDE
        self.has_request_id = False
        self.wire = wire
        self.size = size  # as RFC 9113 10.5.1 counts it
        self.content_length: int | None = None
        self.method = self.scheme = self.authority = self.path = b""
        self.status = 0
        # What others remember of this block: passage.py where such requests go, and the hash of the field `key_name`;
        # both sides the whole head as it is sent.
        self.passage: object = None
        self.key: int | None = None
        self.key_name: bytes | None = None
        self.sent: bytes | None = None

    def full(self) -> Block:
        """With every attribute: see http2_head_reader.Variant."""
        return self

    def request_head(self, *, end: bool) -> RequestHead:
        upgrade = b"connect" if self.method == b"CONNECT" else None
        head = RequestHead(
            self.method,
            self.scheme,
            self.authority,
            self.path,
            None,
            self.content_length,
            not end,
            upgrade,
            self,
            fields_of,
        )
        if self.aside:
            head.added = list(self.aside.items())
        return head

    def response_head(self, *, end: bool) -> ResponseHead:
        return ResponseHead(self.status, None, self.content_length, not end, self, fields_of)


def fields_of(block: object) -> Fields:
    """What message.ReadOrigin asks for."""
    assert isinstance(block, Block)
    return block.fields


def request_bytes_of(block: Block) -> bytes:
    """The block that asks for what `block` asked for, but for what is aside."""
    sent = block.sent
    if sent is None:
        head = block.request_head(end=True)
        head.added = []
        sent = block.sent = encode_request(head)
    return sent


def response_bytes_of(block: Block) -> bytes:
    """The block that answers as `block` does."""
    sent = block.sent
    if sent is None:
        sent = block.sent = encode_response(block.response_head(end=True))
    return sent


def encode_request(head: RequestHead) -> bytes:
    """The block that asks for `head`."""
    if head.method == b"CONNECT":
        start = [(b":method", head.method), (b":authority", head.authority)]
    else:
        start = [
            (b":method", head.method),
            (b":scheme", head.scheme),
            (b":authority", head.authority),
            (b":path", head.path),
        ]
    block = b"".join(map(ENCODED.__getitem__, start))
    origin = head.origin
    if type(origin) is Block:
        block += origin.wire
        if head.added:
            block += encode_ids(head.added)
    else:
        block += b"".join(map(ENCODED.__getitem__, head.fields))
    if head.content_length is not None:
        block += ENCODED[(b"content-length", b"%d" % head.content_length)]
    return block


def encode_response(head: ResponseHead) -> bytes:
    """The block that answers with `head`."""
    block = ENCODED[(b":status", b"%d" % head.status)]
    origin = head.origin
    if type(origin) is Block:
        block += origin.wire
        if head.added:
            block += encode_ids(head.added)
    else:
        block += b"".join(map(ENCODED.__getitem__, head.fields))
    if head.content_length is not None:
        block += ENCODED[(b"content-length", b"%d" % head.content_length)]
    return block


def malformed(detail: str) -> StreamFault:
    return StreamFault(Code.PROTOCOL_ERROR, detail)


def plain_bytes(raw: bytes, field: tuple[bytes, bytes]) -> bytes:
    """The field's bytes as they came, unless they would change the next decoder's table."""
    return ENCODED[field] if raw[0] & 0xC0 == 0x40 else raw


def length_of(value: bytes) -> int:
    if not _LENGTH.fullmatch(value):
        raise malformed("content-length is no number")
    return int(value)


def path_of(value: bytes, method: bytes) -> bytes:
    if not _PATH.fullmatch(value) and not (value == b"*" and method == b"OPTIONS"):
        raise malformed(":path")
    return value


class _Found:
    """A block's fields, sorted: pseudo-headers here, what frames the message there, the rest to be forwarded."""

    __slots__ = ("block", "host", "pseudo")

    def __init__(
        self, raws: Sequence[bytes], fields: Fields, *, allowed: frozenset[bytes], aside: frozenset[bytes] = frozenset()
    ) -> None:
        put_aside: dict[bytes, bytes] = {}
        kept: Fields = []
        wire: list[bytes] = []
        cookie = -1  # where the first one stands
        pseudo: dict[bytes, bytes] = {}
        length: int | None = None
        self.host: bytes | None = None
        is_regular = False
        for raw, field in zip(raws, fields, strict=True):
            name, value = field
            if name[0] == 0x3A:  # a colon
                if is_regular or name in pseudo or name not in allowed:
                    raise malformed(f"{name[:40]!r} unknown, twice, not for this kind of head or after regular fields")
                pseudo[name] = value
                continue
            is_regular = True
            if name == b"content-length":
                if length is not None and length != length_of(value):
                    raise malformed("two values of content-length")
                length = length_of(value)
            elif name == b"host":
                if self.host is not None:
                    raise malformed("two hosts")
                self.host = value
            elif name in aside:
                put_aside[name] = put_aside[name] + b", " + value if name in put_aside else value
            elif name == b"cookie" and cookie >= 0:
                # RFC 9113 8.2.3: one line for whoever is not HTTP/2, and cheaper for whoever is.
                first = kept[cookie]
                joined = (name, first[1] + b"; " + value)
                kept[cookie] = NeverIndexed(joined) if type(first) is NeverIndexed else joined
                wire[cookie] = ENCODED[kept[cookie]]
            else:
                if name == b"cookie":
                    cookie = len(kept)
                kept.append(field)
                wire.append(plain_bytes(raw, field))
        trace = put_aside.get(b"traceparent")
        if trace is not None and not is_traceparent(trace):
            # A trace that is malformed ends here, with all that was said of it (W3C Trace Context 3.2.4).
            del put_aside[b"traceparent"]
            for place in reversed([place for place, (name, _) in enumerate(kept) if name == b"tracestate"]):
                del kept[place], wire[place]
        self.pseudo = pseudo
        self.block = Block(
            kept, b"".join(wire), sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields)
        )
        self.block.content_length = length
        self.block.aside = put_aside or _NOTHING_ASIDE


_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
_RESPONSE_PSEUDO: Final = frozenset((b":status",))


def request_block(raws: Sequence[bytes], fields: Fields) -> Block:
    """The rules of RFC 9113 8.3.1 and 8.5. Raises StreamFault."""
    found = _Found(raws, fields, allowed=_REQUEST_PSEUDO, aside=ASIDE)
    block, pseudo = found.block, found.pseudo
    block.has_request_id = any(name == b"x-request-id" for name, _ in block.fields)
    method = pseudo.get(b":method")
    if method is None or not _METHOD.fullmatch(method):
        raise malformed(":method")
    authority = pseudo.get(b":authority")
    if authority is None:
        authority = found.host
    elif found.host is not None and found.host.lower() != authority.lower():
        raise malformed("host and :authority differ")
    if authority is None or not _AUTHORITY.fullmatch(authority):
        raise malformed(":authority")
    block.method, block.authority = method, authority
    if method == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo:
            raise malformed("CONNECT with :scheme or :path")
        return block
    block.scheme = pseudo.get(b":scheme", b"")
    if not _SCHEME.fullmatch(block.scheme):
        raise malformed(":scheme")
    block.path = path_of(pseudo.get(b":path", b""), method)
    return block


def response_block(raws: Sequence[bytes], fields: Fields) -> Block:
    """The rules of RFC 9113 8.3.2. Raises StreamFault."""
    found = _Found(raws, fields, allowed=_RESPONSE_PSEUDO)
    status = found.pseudo.get(b":status", b"")
    # 101 means nothing here (RFC 9113 8.6).
    if not _STATUS.fullmatch(status) or status == b"101":
        raise malformed(":status")
    found.block.status = int(status)
    return found.block


def trailer_block(raws: Sequence[bytes], fields: Fields) -> Block:
    """Trailers: no pseudo-headers (RFC 9113 8.1). Raises StreamFault."""
    return _Found(raws, fields, allowed=frozenset()).block
