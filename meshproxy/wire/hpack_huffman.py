"""HPACK's Huffman code (RFC 7541 5.2), decoded by zlib. Hot: each new id in a header comes through here.

HPACK's code is canonical, as DEFLATE's codes are (RFC 1951 3.2.2), and all of its symbols of more than 15 bits begin
with 15 ones. So a DEFLATE block whose code has the shorter symbols, and 15 ones as its end, reads HPACK's strings once
the bits of each byte are turned around: a UUID in 1.6 us, where look-ups of 16 bits at a time took 2.8 and the
automaton of the library `hpack` takes 3.9. Strings with a rare symbol, and whatever is not perfect, go bit by bit.
Nothing is encoded this way: it would cost time at both ends, and saves bytes that never leave the data centre.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

if TYPE_CHECKING:
    from zlib import _Decompress as _Decompressor

_SYMBOLS: Final = {
    (length, code): bytes((symbol,))
    for symbol, (code, length) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True))
    if symbol < 256  # the last one is EOS, which must never appear (RFC 7541 5.2)
}
_LONGEST_BITS: Final = 30
_CHUNK_BYTES: Final = 32  # shifting a longer number would make long strings quadratic
_ZLIB_BITS: Final = 15  # no code of DEFLATE is longer
_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # DEFLATE begins at a byte's lowest bit
_LENGTHS: Final = bytes(REQUEST_CODES_LENGTH[:256])
_LONGEST_PADDING: Final = 7
_END: Final = b"\xff\x7f"  # 15 ones and a zero, turned around


class HuffmanError(ValueError):
    """Not a Huffman string: EOS, or padding that is too long or not all ones."""


def _symbol_at(bits: int, count: int) -> tuple[bytes, int]:
    """The first symbol in the `count` lowest bits of `bits` and its length; length 0: none is complete."""
    for length in range(5, min(count, _LONGEST_BITS) + 1):
        symbol = _SYMBOLS.get((length, bits >> (count - length)))
        if symbol is not None:
            return symbol, length
    return b"", 0


def _primed() -> _Decompressor:
    """A decompressor that has read the head of a block with HPACK's code and waits for its symbols."""
    lengths = [length if length <= _ZLIB_BITS else 0 for length in REQUEST_CODES_LENGTH[:256]]
    lengths.append(_ZLIB_BITS)  # the end of the block: 15 ones
    bits: list[int] = []

    def put(value: int, count: int) -> None:
        bits.extend(value >> at & 1 for at in range(count))

    put(0b010, 3)  # an empty block of the fixed code, for what follows to end with a byte
    put(0, 7)
    put(0b101, 3)  # the last block, with a code of its own: 257 symbols, and two distances that do not exist
    put(0, 5)
    put(1, 5)
    put(15, 4)
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15):
        put(0 if symbol > 15 else 4, 3)  # the lengths themselves take four bits each
    for length in (*lengths, 0, 0):
        bits.extend(length >> at & 1 for at in (3, 2, 1, 0))
    assert len(bits) % 8 == 0
    head = bytes(sum(bit << at for at, bit in enumerate(bits[start : start + 8])) for start in range(0, len(bits), 8))
    decompressor = zlib.decompressobj(-15)
    decompressor.decompress(head)
    return decompressor


_PRIMED: Final = _primed()


def decode_huffman(data: bytes) -> bytes:
    """Raises HuffmanError."""
    decompressor = _PRIMED.copy()
    try:
        text = decompressor.decompress(data.translate(_REVERSED) + _END, 2 * len(data) + 16)
    except zlib.error:
        return _decode_slowly(data)
    if decompressor.eof:
        # Padding of up to six ones leaves the end in the second byte of _END; of seven or more, in the first.
        unused = len(decompressor.unused_data)
        if not unused:
            return text
        # Seven it is where the last byte has another bit, or (one UUID in 17) the symbols leave as much: 1.9 us less on
        # average than to read all of those bit by bit. More is an error.
        if unused == 1 and (data[-1] != 0xFF or 8 * len(data) - sum(text.translate(_LENGTHS)) == _LONGEST_PADDING):
            return text
    return _decode_slowly(data)


def _decode_slowly(data: bytes) -> bytes:
    found = []
    bits, count = int.from_bytes(data[:_CHUNK_BYTES], "big"), len(data[:_CHUNK_BYTES]) * 8
    next_chunk = _CHUNK_BYTES
    while True:
        if count < _LONGEST_BITS and next_chunk < len(data):
            chunk = data[next_chunk : next_chunk + _CHUNK_BYTES]
            bits, count = bits << len(chunk) * 8 | int.from_bytes(chunk, "big"), count + len(chunk) * 8
            next_chunk += _CHUNK_BYTES
        symbol, length = _symbol_at(bits, count)
        if not length:
            break
        found.append(symbol)
        count -= length
        bits &= (1 << count) - 1
    if count > _LONGEST_PADDING or bits != (1 << count) - 1:
        raise HuffmanError("EOS, or bad padding")
    return b"".join(found)
