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
    write_integer,
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
_is_value: Final = VALUE.fullmatch


class Variant(Block):
    """A block that is `model` but for some values that decide nothing: neither target nor frame. Half as dear.

    Besides what is here, only what the engine reads is set; `full` makes the block that it stands for.
    """

    __slots__ = ("model", "names", "shape", "values")

    def __init__(self, model: Block, shape: Shape, values: list[bytes], sent: bytes, size: int) -> None:
        self.model = model
        self.shape = shape
        self.names = shape.names  # of the fields that differ
        self.values = values
        self.sent = sent
        self.size = size
        self.count = model.count
        self.content_length = model.content_length
        self.status = model.status

    def full(self) -> Block:
        return self.shape.fill(self.model, self.values)


class Shape:
    """Blocks that differ in the values of few fields: the same bytes but for the holes, which are values."""

    __slots__ = (
        "_around",
        "_block",
        "_holes",
        "_indexes",
        "_raws",
        "_runs",
        "_sent",
        "_size",
        "_wires",
        "failures",
        "names",
    )

    def __init__(self) -> None:
        self._raws: list[bytes] = []
        self._indexes: set[int] = set()  # of the holes among the raws
        self._holes: list[tuple[bytes, int]] = []  # the name before it, and the place in the block's fields
        self._runs: list[bytes] = []  # the bytes around the holes, one more than holes
        self._wires: list[bytes] = []  # the same, as they are forwarded
        self._size = 0
        self.names: frozenset[bytes] = frozenset()
        self._sent: list[bytes] = []  # as `_wires`, for the whole head; empty where a hole decides something
        # One hole that decides nothing, mostly an id: the bytes around it, its value's length included; else 0.
        self._around = 0
        self.failures = 0

    def __repr__(self) -> str:
        return f"Shape({len(self._raws)} fields, holes {[name for name, _ in self._holes]})"

    def copy(self) -> Shape:
        """To learn more: variants still need this one as it is."""
        other = Shape()
        other._raws, other._indexes, other.failures = self._raws, set(self._indexes), self.failures
        return other

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
        self.names = frozenset(name for name, _ in holes)
        self._sent = []
        if block.method and all(place >= 0 for _, place in holes):
            sent = request_bytes_of(block)
            before = sent.find(block.wire)
            self._sent = [sent[:before] + wires[0], *wires[1:-1], wires[-1] + sent[before + len(block.wire) :]]
        self._around = len(runs[0]) + 1 + len(runs[1]) if self._sent and len(holes) == 1 else 0
        return True

    def read(self, data: bytes) -> Block | None:
        """The block that `data` means, if it is of this shape. Raises ConnectionFault, StreamFault."""
        runs = self._runs
        around = self._around
        if around:
            # By the loop below, one hole takes 0.9 us more.
            length = len(data) - around
            if not 0 <= length < 0x7F or not data.startswith(runs[0]) or not data.endswith(runs[1]):
                return None
            position = len(runs[0])
            first = data[position]
            if first & 0x7F != length:
                return None
            end = position + 1 + length
            value = data[position + 1 : end]
            if first & 0x80:
                value = decode_string(value)
            if not _is_value(value):
                raise malformed("value of a field")
            start, rest = self._sent
            return Variant(self._block, self, [value], start + data[position:end] + rest, self._size + len(value))
        if not data.startswith(runs[0]):
            return None
        sent = self._sent
        pieces = [sent[0]] if sent else []
        values: list[bytes] = []
        size = self._size
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
            if place != _PATH_HOLE and not _is_value(value):
                raise malformed("value of a field")
            if place == _ASIDE_HOLE and name == b"traceparent" and not is_traceparent(value):
                return None
            values.append(value)
            if sent:
                pieces.append(data[position:end])
                pieces.append(sent[number])
            size += len(value)
            position = end + len(run)
        if position != total:
            return None
        if sent:
            return Variant(self._block, self, values, b"".join(pieces), size)
        return self.fill(self._block, values)

    def fill(self, model: Block, values: list[bytes]) -> Block:
        """The block with these values in the holes. Raises StreamFault."""
        fields, length, path, aside = model.fields.copy(), model.content_length, model.path, model.aside
        wire = [self._wires[0]]
        size = self._size
        for (name, place), value, after in zip(self._holes, values, self._wires[1:], strict=True):
            size += len(value)
            if place >= 0:
                fields[place] = (name, value)
                wire.append(write_integer(len(value), first=0, mask=0x7F) + value)
            elif place == _PATH_HOLE:
                path = path_of(value, model.method)
            elif place == _LENGTH_HOLE:
                length = length_of(value)
            else:
                aside = {**aside, name: value}
            wire.append(after)
        block = Block(fields, b"".join(wire), size)
        block.content_length = length
        block.aside, block.has_request_id = aside, model.has_request_id
        block.method, block.scheme, block.authority, block.path = model.method, model.scheme, model.authority, path
        block.status = model.status
        if path == model.path and model.key_name not in self.names:
            block.key, block.key_name = model.key, model.key_name
        return block


class HeadReader:
    """The blocks of one connection that its peer sends; `make` gives them their meaning."""

    __slots__ = ("_decoder", "_make", "_max_bytes", "_max_fields", "_recent", "_shapes", "known")

    def __init__(self, *, is_server: bool, max_bytes: int, max_fields: int) -> None:
        self._make = request_block if is_server else response_block
        # Heads that have been read before, on whatever connection. For others only after `forget_table`.
        self.known = _REQUEST_BLOCKS if is_server else _RESPONSE_BLOCKS
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
            block = self.known.get(data)
            if block is None:
                for shape in self._shapes:
                    block = shape.read(data)
                    if block is not None:
                        break
                else:
                    block = self._read_fields(data)
        else:
            block = self._make(*self._decode(data))
        if block.size > self._max_bytes or block.count > self._max_fields:
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
        if block.size > self._max_bytes or block.count > self._max_fields:
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
        _remember(self.known, data, block)
        names = tuple([name for name, _ in fields])
        shape = self._recent.get(names)
        if shape is None:
            if len(self._recent) >= _MAX_SHAPES:
                self._recent.clear()
                self._shapes.clear()
            shape = self._recent[names] = Shape()
        elif shape in self._shapes:
            self._shapes.remove(shape)
            shape = self._recent[names] = shape.copy()
        if shape.failures < _MAX_FAILURES and shape.learn(raws, fields, block):
            self._shapes.append(shape)
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
