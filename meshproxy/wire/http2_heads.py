"""What header blocks mean: heads of requests and answers, and trailers, after every rule of RFC 9113 8. Hot.

A head is found in one of three ways, the cheapest first. Blocks that repeat: a dict from the whole block to what it
means (0.1 us). Blocks that differ in a few values only (ids, paths): a `Shape` that this connection has shown before,
with holes where values differ; only the holes are read (2 us with one id). All others: field by field, 12 us.
What is found keeps the bytes of its fields, in a form that any decoder takes, so that forwarding it encodes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.struct import NeverIndexedHeaderTuple

from meshproxy.message import Fields, RequestHead, ResponseHead
from meshproxy.wire.hpack import (
    ENCODED,
    KNOWN,
    VALUE,
    NeverIndexed,
    check_field,
    decode_string,
    encode_ids,
    literal_start,
    split_block,
    value_start,
)
from meshproxy.wire.http2_frames import Code, ConnectionFault, StreamFault

_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_SCHEME: Final = re.compile(rb"[a-z][a-z0-9+.\-]{0,15}")
# RFC 3986 without user information, which RFC 9113 8.3.1 forbids here.
_AUTHORITY: Final = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:%\[\]]{1,255}")
_PATH: Final = re.compile(rb"/[!\"$-~]*")  # no fragment, no blanks, ASCII
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_STATUS: Final = re.compile(rb"[1-5][0-9][0-9]")

# RFC 9113 6.5.2: what the size of a header list adds for each field.
_FIELD_OVERHEAD: Final = 32
_MAX_BLOCKS: Final = 2048
_MAX_BLOCK_BYTES: Final = 2048  # of a remembered one: 2048 of them, decoded, are at most some 10 MB
_MAX_SHAPES: Final = 8  # of one connection
_MAX_HOLES: Final = 4
_MAX_FAILURES: Final = 16  # to find holes for some names: then it is not tried again
# Set aside from a request's fields: whoever forwards it replaces or reads them each time, and appends them again.
ASIDE: Final = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"traceparent", b"grpc-timeout"))
# What no hole may be: these frame the message, or are looked at together with their like.
_NEVER_A_HOLE: Final = frozenset((b":method", b":scheme", b":authority", b":status", b"host", b"cookie", b"te"))


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
        "fields",
        "has_request_id",
        "method",
        "path",
        "scheme",
        "size",
        "status",
        "wire",
    )

    def __init__(self, fields: Fields, wire: bytes, size: int) -> None:
        self.fields = fields
        self.aside: dict[bytes, bytes] = _NOTHING_ASIDE
        self.has_request_id = False
        self.wire = wire
        self.size = size  # as RFC 9113 10.5.1 counts it
        self.content_length: int | None = None
        self.method = self.scheme = self.authority = self.path = b""
        self.status = 0

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


def _malformed(detail: str) -> StreamFault:
    return StreamFault(Code.PROTOCOL_ERROR, detail)


def _plain(raw: bytes, field: tuple[bytes, bytes]) -> bytes:
    """The field's bytes as they came, unless they would change the next decoder's table."""
    return ENCODED[field] if raw[0] & 0xC0 == 0x40 else raw


def _length_of(value: bytes) -> int:
    if not _LENGTH.fullmatch(value):
        raise _malformed("content-length is no number")
    return int(value)


def _path_of(value: bytes, method: bytes) -> bytes:
    if not _PATH.fullmatch(value) and not (value == b"*" and method == b"OPTIONS"):
        raise _malformed(":path")
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
                    raise _malformed(f"{name[:40]!r} unknown, twice, not for this kind of head or after regular fields")
                pseudo[name] = value
                continue
            is_regular = True
            if name == b"content-length":
                if length is not None and length != _length_of(value):
                    raise _malformed("two values of content-length")
                length = _length_of(value)
            elif name == b"host":
                if self.host is not None:
                    raise _malformed("two hosts")
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
                wire.append(_plain(raw, field))
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
        raise _malformed(":method")
    authority = pseudo.get(b":authority")
    if authority is None:
        authority = found.host
    elif found.host is not None and found.host.lower() != authority.lower():
        raise _malformed("host and :authority differ")
    if authority is None or not _AUTHORITY.fullmatch(authority):
        raise _malformed(":authority")
    block.method, block.authority = method, authority
    if method == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo:
            raise _malformed("CONNECT with :scheme or :path")
        return block
    block.scheme = pseudo.get(b":scheme", b"")
    if not _SCHEME.fullmatch(block.scheme):
        raise _malformed(":scheme")
    block.path = _path_of(pseudo.get(b":path", b""), method)
    return block


def response_block(raws: Sequence[bytes], fields: Fields) -> Block:
    """The rules of RFC 9113 8.3.2. Raises StreamFault."""
    found = _Found(raws, fields, allowed=_RESPONSE_PSEUDO)
    status = found.pseudo.get(b":status", b"")
    # 101 means nothing here (RFC 9113 8.6).
    if not _STATUS.fullmatch(status) or status == b"101":
        raise _malformed(":status")
    found.block.status = int(status)
    return found.block


def trailer_block(raws: Sequence[bytes], fields: Fields) -> Block:
    """Trailers: no pseudo-headers (RFC 9113 8.1). Raises StreamFault."""
    return _Found(raws, fields, allowed=frozenset()).block


_PATH_HOLE: Final = -1
_LENGTH_HOLE: Final = -2
_ASIDE_HOLE: Final = -3


class Shape:
    """Blocks that differ in the values of few fields: the same bytes but for the holes, which are values."""

    __slots__ = ("_block", "_holes", "_indexes", "_raws", "_runs", "_size", "_wires", "failures")

    def __init__(self) -> None:
        self._raws: list[bytes] = []
        self._indexes: set[int] = set()  # of the holes among the raws
        self._holes: list[tuple[bytes, int]] = []  # the name before it, and the place in the block's fields
        self._runs: list[bytes] = []  # the bytes around the holes, one more than holes
        self._wires: list[bytes] = []  # the same, as they are forwarded
        self._size = 0
        self.failures = 0

    def __repr__(self) -> str:
        return f"Shape({len(self._raws)} fields, holes {[name for name, _ in self._holes]})"

    def learn(self, raws: list[bytes], fields: Fields, block: Block) -> bool:
        """Widen the holes so that this block of the same names fits, too; False: it starts anew, without holes."""
        if self._raws and self._widen(raws, fields, block):
            return bool(self._holes)
        self.failures += bool(self._raws)
        self._raws = raws
        self._indexes.clear()
        return False

    def _widen(self, raws: list[bytes], fields: Fields, block: Block) -> bool:
        indexes = self._indexes
        indexes.update(index for index, (one, other) in enumerate(zip(self._raws, raws, strict=True)) if one != other)
        if len(indexes) > _MAX_HOLES:
            return False
        for index in indexes:
            start = value_start(raws[index])
            if not start or not self._raws[index].startswith(raws[index][:start]):
                return False
        if _NEVER_A_HOLE.intersection(fields[index][0] for index in indexes):
            return False
        runs, wires = [b""], [b""]
        holes = []
        count = 0  # of the fields that are forwarded as such
        for index, (raw, field) in enumerate(zip(raws, fields, strict=True)):
            name = field[0]
            place = count
            if name[0] == 0x3A:
                place = _PATH_HOLE
            elif name == b"content-length":
                place = _LENGTH_HOLE
            elif name in block.aside:
                place = _ASIDE_HOLE
            if index not in indexes:
                runs[-1] += raw
                wires[-1] += _plain(raw, field) if place >= 0 else b""
            else:
                start = value_start(raw)
                runs[-1] += raw[:start]
                if place >= 0:
                    wires[-1] += literal_start(name) if raw[0] & 0xC0 == 0x40 else raw[:start]
                holes.append((name, place))
                runs.append(b"")
                wires.append(b"")
            count += place >= 0
        # All but pseudo-headers and the length has to be forwarded as it comes, or places would mean nothing.
        if count != len(block.fields) or any(name == b"host" for name, _ in fields):
            return False
        if _ASIDE_HOLE in [place for _, place in holes] and len({name for name, _ in fields}) < len(fields):
            return False  # lines might have been joined
        self._raws, self._block = raws, block
        self._runs, self._wires, self._holes = runs, wires, holes
        self._size = block.size - sum(len(fields[index][1]) for index in indexes)
        return True

    def read(self, data: bytes) -> Block | None:
        """The block that `data` means, if it is of this shape. Raises ConnectionFault, StreamFault."""
        runs = self._runs
        if not data.startswith(runs[0]):
            return None
        model, wires = self._block, self._wires
        fields, length, path, aside = model.fields.copy(), model.content_length, model.path, model.aside
        size = self._size
        wire = [wires[0]]
        position = len(runs[0])
        total = len(data)
        for number, (name, place) in enumerate(self._holes, 1):
            if position >= total:
                return None
            first = data[position]
            end = position + 1 + (first & 0x7F)
            run = runs[number]
            # A value of 127 bytes or more has a longer length: read field by field.
            if first & 0x7F == 0x7F or not data.startswith(run, end):
                return None
            value = data[position + 1 : end]
            if first & 0x80:
                value = decode_string(value)
            if place >= 0:
                if not VALUE.fullmatch(value):
                    raise _malformed(f"value of field {name!r}")
                fields[place] = (name, value)
                wire.append(data[position:end])
            elif place == _PATH_HOLE:
                path = _path_of(value, model.method)
            elif place == _LENGTH_HOLE:
                length = _length_of(value)
            else:
                if not VALUE.fullmatch(value):
                    raise _malformed(f"value of field {name!r}")
                aside = {**aside, name: value}
            wire.append(wires[number])
            size += len(value)
            position = end + len(run)
        if position != total:
            return None
        block = Block(fields, b"".join(wire), size)
        block.content_length = length
        block.aside, block.has_request_id = aside, model.has_request_id
        block.method, block.scheme, block.authority, block.path = model.method, model.scheme, model.authority, path
        block.status = model.status
        return block


class HeadReader:
    """The blocks of one connection that its peer sends; `make` gives them their meaning."""

    __slots__ = ("_blocks", "_decoder", "_make", "_max_bytes", "_max_fields", "_recent", "_shapes")

    def __init__(self, *, is_server: bool, max_bytes: int, max_fields: int) -> None:
        self._make = request_block if is_server else response_block
        self._blocks = _REQUEST_BLOCKS if is_server else _RESPONSE_BLOCKS
        self._max_bytes = max_bytes
        self._max_fields = max_fields
        self._recent: dict[tuple[bytes, ...], Shape] = {}  # by the names of their fields; those without holes, too
        self._shapes: list[Shape] = []  # those with holes
        # Until the peer has acknowledged that there is no table, it may use one of 4,096 bytes (RFC 9113 6.5.2).
        self._decoder: Decoder | None = Decoder(max_header_list_size=max_bytes * 4)

    def __repr__(self) -> str:
        return f"HeadReader({'a table' if self._decoder else 'no table'}, {self._shapes})"

    def forget_table(self) -> None:
        """The peer has acknowledged: from here on its blocks are self-contained."""
        self._decoder = None

    def read(self, data: bytes) -> Block:
        """A head. Raises ConnectionFault, StreamFault, HeadTooLarge."""
        block: Block | None
        if self._decoder is None:
            block = self._blocks.get(data)
            if block is None:
                for shape in self._shapes:
                    block = shape.read(data)
                    if block is not None:
                        break
                else:
                    block = self._read_fields(data)
        else:
            block = self._make(*self._decode(data))
        if block.size > self._max_bytes or len(block.fields) > self._max_fields:
            raise HeadTooLarge
        return block

    def read_trailers(self, data: bytes) -> Fields:
        """Trailers. Raises ConnectionFault, StreamFault, HeadTooLarge."""
        if self._decoder is not None:
            block = trailer_block(*self._decode(data))
        elif data in _TRAILER_BLOCKS:
            block = _TRAILER_BLOCKS[data]
        else:
            raws = split_block(data)
            block = trailer_block(raws, list(map(KNOWN.__getitem__, raws)))
            _remember(_TRAILER_BLOCKS, data, block)
        if block.size > self._max_bytes or len(block.fields) > self._max_fields:
            raise HeadTooLarge
        return block.fields

    def skip(self, data: bytes) -> None:
        """A block nobody wants still changes the table. Raises ConnectionFault."""
        if self._decoder is not None:
            self._decode(data, is_checked=False)

    def _decode(self, data: bytes, *, is_checked: bool = True) -> tuple[list[bytes], Fields]:
        assert self._decoder is not None
        try:
            found = list(self._decoder.decode(data, raw=True))
        except OversizedHeaderListError:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a header list far beyond the limit") from None
        except HPACKError as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, str(error)) from None
        fields: Fields = []
        for name, value in found if is_checked else ():
            check_field(name, value)
        for field in found:
            pair = (bytes(field[0]), bytes(field[1]))
            fields.append(NeverIndexed(pair) if isinstance(field, NeverIndexedHeaderTuple) else pair)
        return list(map(ENCODED.__getitem__, fields)), fields

    def _read_fields(self, data: bytes) -> Block:
        raws = split_block(data)
        fields = list(map(KNOWN.__getitem__, raws))
        block = self._make(raws, fields)
        _remember(self._blocks, data, block)
        names = tuple([name for name, _ in fields])
        shape = self._recent.get(names)
        if shape is None:
            if len(self._recent) >= _MAX_SHAPES:
                self._recent.clear()
                self._shapes.clear()
            shape = self._recent[names] = Shape()
        if shape.failures < _MAX_FAILURES:
            has_holes = shape.learn(raws, fields, block)
            if has_holes != (shape in self._shapes):
                (self._shapes.append if has_holes else self._shapes.remove)(shape)
        return block


def _remember(blocks: dict[bytes, Block], data: bytes, block: Block) -> None:
    if len(data) <= _MAX_BLOCK_BYTES:
        if len(blocks) >= _MAX_BLOCKS:
            blocks.clear()
        blocks[data] = block


# For all connections, as hpack.KNOWN.
_REQUEST_BLOCKS: Final[dict[bytes, Block]] = {}
_RESPONSE_BLOCKS: Final[dict[bytes, Block]] = {}
_TRAILER_BLOCKS: Final[dict[bytes, Block]] = {}
