"""Finds what the header blocks of a connection mean. Hot.

In one of three ways, the cheapest first. Blocks that repeat: a dict from the whole block to what it means (0.1 us).
Blocks that differ in a few values only (ids, paths): a `Shape` that this connection has shown before, with holes where
values differ; only the holes are read (2 us with one id, 5 if it is Huffman-coded). All others: field by field, 10 us,
by the rules of http2_heads.py.
"""

from __future__ import annotations

from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.struct import NeverIndexedHeaderTuple

from meshproxy.identity import is_traceparent
from meshproxy.message import Fields
from meshproxy.wire.hpack import (
    ENCODED,
    KNOWN,
    VALUE,
    NeverIndexed,
    check_field,
    decode_string,
    literal_start,
    split_block,
    value_start,
)
from meshproxy.wire.http2_frames import Code, ConnectionFault
from meshproxy.wire.http2_heads import (
    Block,
    HeadTooLarge,
    length_of,
    malformed,
    path_of,
    plain_bytes,
    request_block,
    request_bytes_of,
    response_block,
    response_bytes_of,
    trailer_block,
)

_MAX_BLOCKS: Final = 2048
_MAX_BLOCK_BYTES: Final = 2048  # of a remembered one: 2048 of them, decoded, are at most some 10 MB
_MAX_SHAPES: Final = 8  # of one connection
_MAX_HOLES: Final = 4
_MAX_FAILURES: Final = 16  # to find holes for some names: then it is not tried again
# What no hole may be: these frame the message, or are looked at together with their like.
_NEVER_A_HOLE: Final = frozenset((b":method", b":scheme", b":authority", b":status", b"host", b"cookie", b"te"))
_PATH_HOLE: Final = -1
_LENGTH_HOLE: Final = -2
_ASIDE_HOLE: Final = -3


class Shape:
    """Blocks that differ in the values of few fields: the same bytes but for the holes, which are values."""

    __slots__ = (
        "_block",
        "_has_target",
        "_holes",
        "_indexes",
        "_names",
        "_raws",
        "_runs",
        "_sent_around",
        "_size",
        "_wires",
        "failures",
    )

    def __init__(self) -> None:
        self._raws: list[bytes] = []
        self._indexes: set[int] = set()  # of the holes among the raws
        self._holes: list[tuple[bytes, int]] = []  # the name before it, and the place in the block's fields
        self._runs: list[bytes] = []  # the bytes around the holes, one more than holes
        self._wires: list[bytes] = []  # the same, as they are forwarded
        self._size = 0
        self._names: frozenset[bytes] = frozenset()
        self._has_target = False  # the path is in no hole
        self._sent_around: tuple[bytes, bytes] | None = None  # what is sent before and after the fields
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
                wires[-1] += plain_bytes(raw, field) if place >= 0 else b""
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
        self._names = frozenset(name for name, _ in holes)
        self._has_target = b":path" not in self._names
        self._sent_around = None
        if self._has_target and b"content-length" not in self._names:
            sent = request_bytes_of(block) if block.method else response_bytes_of(block)
            before = sent.find(block.wire)
            self._sent_around = sent[:before], sent[before + len(block.wire) :]
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
                    raise malformed(f"value of field {name!r}")
                fields[place] = (name, value)
                wire.append(data[position:end])
            elif place == _PATH_HOLE:
                path = path_of(value, model.method)
            elif place == _LENGTH_HOLE:
                length = length_of(value)
            else:
                if not VALUE.fullmatch(value):
                    raise malformed(f"value of field {name!r}")
                if name == b"traceparent" and not is_traceparent(value):
                    return None
                aside = {**aside, name: value}
            wire.append(wires[number])
            size += len(value)
            position = end + len(run)
        if position != total:
            return None
        forwarded = b"".join(wire)
        block = Block(fields, forwarded, size)
        if self._has_target:
            block.is_variant = True
            block.passage = model.passage
            if model.key_name not in self._names:
                block.key, block.key_name = model.key, model.key_name
            if self._sent_around is not None:
                before, after = self._sent_around
                block.sent = before + forwarded + after
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

    def find(self, data: bytes) -> Block | None:
        """A head that has been read before, on whatever connection. Only after `forget_table`."""
        return self._blocks.get(data)

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
