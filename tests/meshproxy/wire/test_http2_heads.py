"""Heads are read from blocks by every way, with the same meaning; what is forwarded means what came."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder

from meshproxy.message import Fields
from meshproxy.wire.http2_frames import StreamFault
from meshproxy.wire.http2_head_reader import HeadReader
from meshproxy.wire.http2_heads import HeadTooLarge, encode_request, encode_response
from tests.meshproxy.wire.http2_recording import GET


def tableless(fields: Fields, *, huffman: bool = True) -> bytes:
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.encode([])
    return encoder.encode(fields, huffman=huffman)


def decoded(block: bytes) -> Fields:
    return list(Decoder().decode(block, raw=True))


def reader(**limits: int) -> HeadReader:
    made = HeadReader(is_server=True, **({"max_bytes": 8192, "max_fields": 100} | limits))
    made.forget_table()
    return made


def with_id(number: int, *, path: bytes = b"/", length: int | None = None) -> Fields:
    fields = [*GET[:3], (b":path", path), (b"accept", b"*/*"), (b"x-id", b"id-%d" % number), (b"user-agent", b"t")]
    return fields if length is None else [*fields, (b"content-length", b"%d" % length)]


@pytest.mark.parametrize("huffman", [True, False])
def test_blocks_that_differ_in_an_id_a_path_and_a_length_are_read_by_their_shape(huffman: bool) -> None:
    one = reader()
    for number in range(8):
        fields = with_id(number, path=b"/items/%d" % number, length=number * 10)
        head = one.read(tableless(fields, huffman=huffman)).full().request_head(end=False)
        assert head.path == b"/items/%d" % number
        assert head.content_length == number * 10
        assert head.fields == fields[4:-1]
        sent = decoded(encode_request(head))
        assert sorted(sent) == sorted(fields)
    assert "holes [b':path', b'x-id', b'content-length']" in repr(one)


@pytest.mark.parametrize("bad", [b"a\0b", b"a\r\nb", b" a", b"a\x7f"])
def test_a_hole_is_as_strict_as_any_field(bad: bytes) -> None:
    one = reader()
    for number in range(3):
        one.read(tableless(with_id(number)))
    fields = [(name, bad if name == b"x-id" else value) for name, value in with_id(0)]
    with pytest.raises(StreamFault):
        one.read(tableless(fields, huffman=False))


def test_a_path_in_a_hole_is_as_strict_as_any() -> None:
    one = reader()
    for number in range(3):
        one.read(tableless(with_id(0, path=b"/%d" % number)))
    with pytest.raises(StreamFault):
        one.read(tableless(with_id(0, path=b"/a b")))


def test_a_long_value_or_another_name_in_a_hole_is_read_field_by_field() -> None:
    one = reader()
    for number in range(3):
        one.read(tableless(with_id(number)))
    for fields in ([*GET, (b"accept", b"*/*"), (b"x-id", b"x" * 500), (b"user-agent", b"t")], [*GET, (b"y", b"1")]):
        assert one.read(tableless(fields)).full().fields == fields[4:]


def test_two_kinds_of_requests_in_turn_both_get_a_shape() -> None:
    one = reader()
    for number in range(6):
        one.read(tableless(with_id(number)))
        one.read(tableless([*GET, (b"x-other", b"v%d" % number)]))
    assert repr(one).count("holes [b'x-") == 2


def test_a_value_in_a_hole_counts_for_the_limit() -> None:
    one = reader(max_bytes=400)
    for number in range(3):
        one.read(tableless(with_id(number)))
    with pytest.raises(HeadTooLarge):
        one.read(tableless([(n, b"x" * 120 if n == b"x-id" else v) for n, v in with_id(0)]))


def test_incremental_indexing_is_not_passed_on() -> None:
    """A peer may ask for it although the table is of size 0; the next hop's may be larger."""
    block = tableless(GET) + b"\x40\x04x-id\x011" + b"\x7a\x01b"
    head = reader().read(block).request_head(end=True)
    decoder = Decoder()
    assert list(decoder.decode(encode_request(head), raw=True))[4:] == [(b"x-id", b"1"), (b"user-agent", b"b")]
    assert not decoder.header_table.dynamic_entries


def test_cookies_in_pieces_become_one() -> None:
    head = (
        reader()
        .read(tableless([*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")]))
        .full()
        .request_head(end=True)
    )
    assert head.fields == [(b"cookie", b"a=1; b=2"), (b"x", b"y")]
    assert (b"cookie", b"a=1; b=2") in decoded(encode_request(head))


def test_host_stands_in_for_authority_and_is_not_a_field() -> None:
    head = (
        reader().read(tableless([*GET[:2], GET[3], (b"host", b"b.test"), (b"a", b"1")])).full().request_head(end=True)
    )
    assert (head.authority, head.fields) == (b"b.test", [(b"a", b"1")])


def test_what_is_added_and_changed_goes_out() -> None:
    block = reader().read(tableless([*GET, (b"a", b"1"), (b"b", b"2")]))
    head = block.request_head(end=True)
    head.add(b"c", b"3")
    assert decoded(encode_request(head))[4:] == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    head.drop(b"a")
    assert decoded(encode_request(head))[4:] == [(b"b", b"2"), (b"c", b"3")]
    assert block.request_head(end=True).fields == [(b"a", b"1"), (b"b", b"2")]


def test_until_the_peer_has_acknowledged_it_may_use_a_table() -> None:
    one = HeadReader(is_server=False, max_bytes=8192, max_fields=100)
    encoder = Encoder()
    answer = [(b":status", b"200"), (b"server", b"x"), (b"content-length", b"5")]
    first, second = encoder.encode(answer), encoder.encode(answer)
    assert len(second) < len(first)
    for data in (first, second):
        head = one.read(data).response_head(end=False)
        assert (head.status, head.fields, head.content_length) == (200, answer[1:2], 5)
        assert decoded(encode_response(head)) == answer
