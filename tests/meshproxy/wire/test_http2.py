"""The engine speaks HTTP/2 with itself and with h2, in both roles, however its bytes are cut."""

from __future__ import annotations

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.wire import http2_frames as f
from meshproxy.wire.hpack import encode_block
from meshproxy.wire.http2_frames import Code
from tests.meshproxy.wire.http2_recording import GET, POST, RawPeer, Recorder, parse

OK = encode_block([(b":status", b"200"), (b"x", b"y")])


def join(one: Recorder, other: Recorder, *, step: int = 1 << 30) -> None:
    """Carry bytes both ways until nobody has any."""
    while (sent := one.take()) or other.connection.out:
        back = other.take()
        for start in range(0, len(sent), step):
            other.connection.receive(sent[start : start + step])
        for start in range(0, len(back), step):
            one.connection.receive(back[start : start + step])


def joined() -> tuple[Recorder, Recorder]:
    client, server = Recorder(is_server=False), Recorder(is_server=True)
    join(client, server)
    return client, server


def h2_client() -> tuple[H2Connection, Recorder]:
    client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    server = Recorder(is_server=True)
    exchange(client, server)
    return client, server


def exchange(library: H2Connection, recorder: Recorder) -> list[object]:
    """Carry bytes both ways until nobody has any; return the library's events."""
    events: list[object] = []
    while (sent := library.data_to_send()) or recorder.connection.out:
        recorder.connection.receive(sent)
        events += library.receive_data(recorder.take())
    return events


def test_a_whole_exchange_with_body_and_trailers_both_ways() -> None:
    client, server = joined()
    stream = client.request([*POST, (b"content-length", b"5")], end=False)
    stream.write(b"he")
    stream.write(b"llo")
    stream.finish([(b"x-sum", b"1")])
    join(client, server)
    assert server.events == [
        ("head", 1, (b"POST", b"a.test", b"/"), (), 5, False),
        ("data", 1, b"hello"),
        ("end", 1, ((b"x-sum", b"1"),)),
    ]
    answer = server.streams[0]
    answer.write_head(encode_block([(b":status", b"103")]), end=False)
    answer.write_head(OK, end=False)
    answer.write(b"bye")
    answer.finish([(b"grpc-status", b"0")])
    join(client, server)
    assert client.events == [
        ("head", 1, 103, (), None, False),
        ("head", 1, 200, ((b"x", b"y"),), None, False),
        ("data", 1, b"bye"),
        ("end", 1, ((b"grpc-status", b"0"),)),
    ]
    assert not client.connection.streams
    assert not server.connection.streams


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.lists(st.binary(min_size=1, max_size=40_000), max_size=4))
def test_cutting_the_bytes_changes_nothing(step: int, pieces: list[bytes]) -> None:
    whole, cut = (
        (Recorder(is_server=False), Recorder(is_server=True)),
        (Recorder(is_server=False), Recorder(is_server=True)),
    )
    for (client, server), size in ((whole, 1 << 30), (cut, step)):
        stream = client.request(POST, end=False)
        for piece in pieces:
            stream.write(piece)
        stream.finish([])
        join(client, server, step=size)
    assert whole[1].events == cut[1].events
    assert whole[1].events[-1] == ("end", 1, ())


def test_h2_as_client_is_served() -> None:
    client, server = h2_client()
    for stream_id in (1, 3):
        client.send_headers(stream_id, [*POST, (b"x-id", b"%d" % stream_id)])
        client.send_data(stream_id, b"body", end_stream=True)
    exchange(client, server)
    assert [event[0] for event in server.events] == ["head", "data", "end"] * 2
    for stream in server.streams:
        stream.write_head(OK, end=False)
        stream.write(b"x" * 30_000)
        stream.finish([(b"t", b"1")])
    events = exchange(client, server)
    assert [type(event) for event in events if not isinstance(event, DataReceived)].count(ResponseReceived) == 2
    assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) == 60_000
    assert sum(isinstance(event, TrailersReceived) for event in events) == 2


def test_h2_as_server_is_understood() -> None:
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.initiate_connection()
    client = Recorder(is_server=False)
    exchange(server, client)
    for _ in range(3):
        client.request(GET, end=True)
    exchange(server, client)
    for stream_id in (5, 1, 3):
        server.send_headers(stream_id, [(b":status", b"200"), (b"server", b"h2")])
        server.send_data(stream_id, b"hello", end_stream=True)
    exchange(server, client)
    assert [event[1] for event in client.events if event[0] == "end"] == [5, 1, 3]
    assert ("head", 5, 200, ((b"server", b"h2"),), None, False) in client.events


def test_data_waits_for_the_streams_window_and_says_so() -> None:
    client, server = h2_client()
    client.send_headers(1, GET, end_stream=True)
    exchange(client, server)
    stream = server.streams[0]
    stream.write_head(OK, end=False)
    stream.write(b"x" * 100_000)
    stream.finish([])
    received = sum(len(e.data) for e in exchange(client, server) if isinstance(e, DataReceived))
    assert received == 65_535
    assert server.events[-1] == ("blocked", 1, True)
    client.increment_flow_control_window(100_000)
    exchange(client, server)
    client.increment_flow_control_window(100_000, stream_id=1)
    events = exchange(client, server)
    assert sum(len(e.data) for e in events if isinstance(e, DataReceived)) == 100_000 - 65_535
    assert isinstance(events[-1], StreamEnded)
    assert not server.connection.streams


def test_a_smaller_initial_window_may_make_a_window_negative() -> None:
    client, server = h2_client()
    client.send_headers(1, GET, end_stream=True)
    exchange(client, server)
    stream = server.streams[0]
    stream.write_head(OK, end=False)
    stream.write(b"x" * 1000)
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    exchange(client, server)
    stream.write(b"y")
    assert stream.send_left == -900
    assert stream.pending is not None
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 5000})
    exchange(client, server)
    assert server.events[-1] == ("blocked", 1, False)


def test_a_held_stream_stops_its_sender_and_no_other() -> None:
    client, server = joined()
    held, free = client.request(POST, end=False), client.request(POST, end=False)
    join(client, server)
    server.streams[0].hold()
    for _ in range(100):
        held.write(b"x" * 10_000)
        free.write(b"y" * 10_000)
        join(client, server)
    got = {1: 0, 3: 0}
    for event in server.events:
        if event[0] == "data" and isinstance(event[2], bytes):
            got[1 if event[1] == 1 else 3] += len(event[2])
    assert got[1] == server.connection.window_bytes
    assert got[3] == 1_000_000
    server.streams[0].release()
    join(client, server)
    assert held.pending is None or len(b"".join(held.pending)) < 1_000_000 - got[1]


def test_nothing_is_sent_while_the_socket_is_full() -> None:
    client, server = joined()
    stream = client.request(POST, end=False)
    client.connection.set_write_paused(is_paused=True)
    stream.write(b"x")
    join(client, server)
    assert [event[0] for event in server.events] == ["head"]
    client.connection.set_write_paused(is_paused=False)
    join(client, server)
    assert server.events[-1] == ("data", 1, b"x")


def test_the_last_data_ends_the_stream_itself() -> None:
    client, _ = joined()
    stream = client.request(POST, end=False)
    stream.write(b"x")
    stream.finish([])
    assert [(kind, flags) for kind, flags, _, _ in parse(client.take())] == [(f.HEADERS, 4), (f.DATA, f.END_STREAM)]


def test_data_that_looks_like_a_frame_is_not_changed() -> None:
    client, _ = joined()
    stream = client.request(POST, end=False)
    payload = b"xxx\0\0\0\0\0\x01"
    stream.write(payload)
    client.connection.out.append(f.window_update_frame(0, 5))
    stream.finish([])
    assert payload in [data for _, _, _, data in parse(client.take())]


def test_a_reset_by_the_peer_is_told_once_and_what_follows_is_ignored() -> None:
    client, server = joined()
    stream = client.request(POST, end=False)
    join(client, server)
    server.streams[0].reset(Code.CANCEL)
    stream.write(b"late")  # crosses the reset
    join(client, server)
    assert client.events == [("reset", 1, Code.CANCEL, False)]
    assert server.connection.fault is None
    assert server.events[-1][0] == "head"


def test_refused_streams_are_unprocessed() -> None:
    client, server = joined()
    client.request(GET, end=True)
    join(client, server)
    server.streams[0].reset(Code.REFUSED_STREAM)
    join(client, server)
    assert client.events == [("reset", 1, Code.REFUSED_STREAM, True)]


def test_streams_after_the_last_of_goaway_are_unprocessed() -> None:
    client, _ = joined()
    for _ in range(3):
        client.request(GET, end=True)
    client.connection.receive(f.goaway_frame(3, Code.NO_ERROR))
    assert client.events == [("reset", 5, Code.REFUSED_STREAM, True), ("goaway",)]
    assert not client.connection.has_room
    assert list(client.connection.streams) == [1, 3]


def test_a_drain_lets_streams_end_and_takes_no_more_after_its_second_goaway() -> None:
    client, server = joined()
    client.request(GET, end=True)
    join(client, server)
    server.connection.drain()
    sent = RawPeer().headers(3, GET)
    server.connection.receive(sent)  # crossed the first GOAWAY
    server.connection.finish_drain()
    server.connection.receive(RawPeer().headers(5, GET))
    assert list(server.connection.streams) == [1, 3]
    goaways = [payload[:4] for kind, _, _, payload in parse(server.take()) if kind == f.GOAWAY]
    assert goaways == [b"\x7f\xff\xff\xff", b"\0\0\0\x03"]


def test_a_lost_connection_ends_every_stream() -> None:
    client, _ = joined()
    for _ in range(2):
        client.request(GET, end=True)
    client.connection.lose("gone")
    assert [event[:2] for event in client.events] == [("reset", 1), ("reset", 3)]
    assert not client.connection.streams


def test_no_more_streams_are_opened_than_the_peer_takes() -> None:
    client, server = Recorder(is_server=False), Recorder(is_server=True, max_streams=2)
    join(client, server)
    client.request(GET, end=True)
    client.request(GET, end=True)
    assert not client.connection.has_room
    join(client, server)
    server.streams[0].write_head(OK, end=True)
    join(client, server)
    assert client.connection.has_room


def test_long_heads_go_out_in_continuations() -> None:
    client, server = joined()
    stream = client.request([*GET, *[(b"x-%d" % n, b"y" * 500) for n in range(60)]], end=True)
    join(client, server)
    head = server.events[0]
    assert isinstance(head[3], tuple)
    assert len(head[3]) == 60
    assert stream.id == 1


def test_an_answer_to_head_may_name_a_length() -> None:
    client, server = joined()
    stream = client.request([(b":method", b"HEAD"), *GET[1:]], end=True)
    stream.without_body = True
    join(client, server)
    server.streams[0].write_head(encode_block([(b":status", b"200"), (b"content-length", b"9")]), end=True)
    join(client, server)
    assert client.events == [("head", 1, 200, (), 9, True)]


@pytest.mark.parametrize("end", [True, False])
def test_an_upload_that_is_answered_early_can_be_stopped(end: bool) -> None:
    client, server = h2_client()
    client.send_headers(1, POST, end_stream=end)
    exchange(client, server)
    server.streams[0].write_head(OK, end=True)
    if not end:
        server.streams[0].reset(Code.NO_ERROR)
    events = exchange(client, server)
    assert any(isinstance(event, StreamReset) for event in events) is not end
    assert not server.connection.streams


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_make_it_crash(data: bytes, is_server: bool) -> None:
    recorder = Recorder(is_server=is_server)
    recorder.connection.receive(RawPeer().start(is_server=not is_server) + data)
    recorder.take()
