"""Header blocks mean what the library `hpack` says they mean, and what we write is understood by it."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.message import Fields
from meshproxy.wire.hpack import (
    ENCODED,
    KNOWN,
    NeverIndexed,
    decode_block,
    encode_block,
    encode_field,
    read_integer,
    split_block,
    write_integer,
)
from meshproxy.wire.hpack_huffman import HuffmanError, decode_huffman
from meshproxy.wire.http2_frames import Code, ConnectionFault, StreamFault

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=200).map(str.encode)
values = st.binary(max_size=300).map(lambda raw: bytes(byte for byte in raw if byte > 0x20 and byte != 0x7F))
known_names = st.sampled_from(
    [b"user-agent", b"accept", b"content-type", b"date", b"x-id", b"authorization", b"www-authenticate"]
)
of_one_connection = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te"}
fields = st.lists(st.tuples(names | known_names, values), max_size=20).filter(
    lambda found: not of_one_connection.intersection(name for name, _ in found)
)


def tableless() -> Encoder:
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder


@settings(max_examples=150, deadline=None)
@given(fields, st.booleans())
def test_what_the_library_writes_is_read_as_it_was_meant(pairs: Fields, huffman: bool) -> None:
    assert decode_block(tableless().encode(pairs, huffman=huffman)) == pairs


@settings(max_examples=150, deadline=None)
@given(fields)
def test_what_is_written_is_read_by_the_library_and_changes_no_table(pairs: Fields) -> None:
    decoder = Decoder()
    assert list(decoder.decode(encode_block(pairs), raw=True)) == pairs
    assert not decoder.header_table.dynamic_entries


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_a_random_block_is_refused_or_means_what_the_library_says(block: bytes) -> None:
    try:
        mine: Fields | None = decode_block(block)
    except (ConnectionFault, StreamFault):
        mine = None
    if mine is not None:
        decoder = Decoder()
        decoder.max_allowed_table_size = 0
        decoder.header_table_size = 0
        assert list(decoder.decode(block, raw=True)) == mine


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_huffman_strings_are_read_or_refused_as_by_the_library(data: bytes) -> None:
    from hpack.exceptions import HPACKDecodingError
    from hpack.huffman_table import decode_huffman as oracle

    try:
        expected: bytes | None = bytes(oracle(data))
    except HPACKDecodingError:
        expected = None
    try:
        assert decode_huffman(data) == expected
    except HuffmanError:
        assert expected is None


def test_padding_of_seven_bits_is_read_and_of_eight_refused_whatever_the_last_symbol_ends_with() -> None:
    ends = set()
    for number in range(1000):
        text = b"%d" % number
        data = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
        ends.add((data[-1] == 0xFF, sum(REQUEST_CODES_LENGTH[byte] for byte in text) % 8))
        assert decode_huffman(data) == text
        with pytest.raises(HuffmanError):
            decode_huffman(data + b"\xff")
    assert (True, 1) in ends


@given(st.integers(0, 2**20), st.sampled_from([0x0F, 0x1F, 0x3F, 0x7F]))
def test_integers_are_read_as_they_were_written(value: int, mask: int) -> None:
    raw = write_integer(value, first=0, mask=mask)
    assert read_integer(raw, 0, mask=mask) == (value, len(raw))


def test_a_field_that_must_never_be_indexed_stays_so() -> None:
    block = tableless().encode([NeverIndexedHeaderTuple(b"x-secret", b"1"), (b"x-open", b"1")])
    secret, plain = decode_block(block)
    assert isinstance(secret, NeverIndexed)
    assert encode_field(secret)[0] & 0xF0 == 0x10
    assert encode_field(plain)[0] & 0xF0 == 0
    assert encode_block([(b"x-secret", b"1")]) != encode_block([secret])


def test_splitting_cuts_between_fields() -> None:
    pairs = [(b":path", b"/"), (b"x" * 130, b"y" * 300), (b"user-agent", b"z"), (b"accept-encoding", b"gzip, deflate")]
    block = encode_block(pairs)
    assert b"".join(split_block(block)) == block
    assert [encode_field(pair) for pair in pairs] == split_block(block)


def test_ids_do_not_fill_the_caches() -> None:
    before = len(KNOWN), len(ENCODED)
    for number in range(3000):
        decode_block(encode_block([(b"x-correlation", b"%d" % number)]))
    assert len(KNOWN) - before[0] < 400
    assert len(ENCODED) - before[1] < 400


def test_the_caches_are_bounded() -> None:
    for number in range(6000):
        decode_block(encode_block([(b"x-name-%d" % number, b"1")]))
    assert len(KNOWN) <= 4096
    assert len(ENCODED) <= 4096


@pytest.mark.parametrize("block", [b"\x80", b"\xbe", b"\x00\x05a", b"\x7f\xff\xff\xff\xff\xff"])
def test_a_broken_block_costs_the_connection(block: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        decode_block(block)
    assert caught.value.code is Code.COMPRESSION_ERROR
