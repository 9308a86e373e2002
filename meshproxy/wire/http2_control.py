"""The frames that speak about a connection rather than carry a message: settings, windows, pings, resets, GOAWAY.

Each function takes one frame of one connection (http2.py), changes its state and appends the answer that the RFC asks
for. All raise ConnectionFault and StreamFault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from meshproxy.wire import http2_frames as frames
from meshproxy.wire.http2_frames import (
    ACK,
    GOAWAY,
    MAX_WINDOW_BYTES,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Code,
    ConnectionFault,
    StreamFault,
    word_at,
)

if TYPE_CHECKING:
    from meshproxy.wire.http2 import Connection


def _on_priority(connection: Connection, _flags: int, stream_id: int, payload: bytes, /) -> None:
    if stream_id == 0:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "PRIORITY on stream 0")
    if len(payload) != 5:
        raise StreamFault(Code.FRAME_SIZE_ERROR, "PRIORITY is not five bytes long")
    connection.allowance.spend("priorities")


def _on_rst_stream(connection: Connection, _flags: int, stream_id: int, payload: bytes, /) -> None:
    if len(payload) != 4:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "RST_STREAM is not four bytes long")
    connection.check_not_idle(stream_id, "RST_STREAM")
    if connection.is_server:
        connection.allowance.spend("resets")
    stream = connection.streams.get(stream_id)
    if stream is not None:
        code = int.from_bytes(payload, "big")
        stream.close()
        stream.on_reset(code, unprocessed=code == Code.REFUSED_STREAM, is_fault=False, detail=f"reset with {code}")


def _on_settings(connection: Connection, flags: int, stream_id: int, payload: bytes, /) -> None:
    if stream_id:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS on a stream")
    if flags & ACK:
        if payload:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS with ACK and a payload")
        if not connection.settings_acknowledged:
            connection.settings_acknowledged = True
            connection.reader.forget_table()
        return
    if connection.has_settings:
        connection.allowance.spend("settings")
    connection.has_settings = True
    for key, value in frames.parse_settings(payload):
        _apply(connection, key, value)
    connection.out.append(frames.frame_header(SETTINGS, 0, flags=ACK, stream_id=0))
    connection.push_all()  # behind the acknowledgement: the peer knows no new window before it
    connection.owner.on_settings()


def _apply(connection: Connection, key: int, value: int) -> None:
    if key == frames.INITIAL_WINDOW_SIZE:
        if value > MAX_WINDOW_BYTES:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "an initial window above 2**31-1")
        change = value - connection.peer_window_bytes
        connection.peer_window_bytes = value
        for stream in connection.streams.values():
            stream.send_left += change
            if stream.send_left > MAX_WINDOW_BYTES:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a stream's window above 2**31-1")
    elif key == frames.MAX_FRAME_SIZE:
        if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MAX_FRAME_BYTES:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame size out of range")
        connection.peer_frame_bytes = min(value, 65_536)  # longer ones only make others wait
    elif key == frames.MAX_CONCURRENT_STREAMS:
        connection.peer_max_streams = value
    elif key == frames.ENABLE_PUSH and (value > 1 or (value and not connection.is_server)):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "ENABLE_PUSH")


def _on_push_promise(_connection: Connection, _flags: int, _stream_id: int, _payload: bytes, /) -> None:
    raise ConnectionFault(Code.PROTOCOL_ERROR, "PUSH_PROMISE, which we refuse")


def _on_ping(connection: Connection, flags: int, stream_id: int, payload: bytes, /) -> None:
    if stream_id:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "PING on a stream")
    if len(payload) != 8:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "PING is not eight bytes long")
    if not flags & ACK:
        connection.allowance.spend("pings")
        connection.out.append(frames.ping_frame(payload, flags=ACK))


def _on_goaway(connection: Connection, _flags: int, stream_id: int, payload: bytes, /) -> None:
    if stream_id:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "GOAWAY on a stream")
    if len(payload) < 8:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "GOAWAY is too short")
    connection.is_draining = True
    if not connection.is_server:
        last = word_at(payload, 0)
        for stream in [stream for number, stream in connection.streams.items() if number > last]:
            stream.close()
            stream.on_reset(
                Code.REFUSED_STREAM, unprocessed=True, is_fault=False, detail="after the last stream of GOAWAY"
            )
    connection.owner.on_goaway()


def _on_window_update(connection: Connection, _flags: int, stream_id: int, payload: bytes, /) -> None:
    if len(payload) != 4:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not four bytes long")
    increment = word_at(payload, 0)
    if stream_id == 0:
        connection.send_left += increment
        if not increment:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "an increment of 0")
        if connection.send_left > MAX_WINDOW_BYTES:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the connection's window above 2**31-1")
        if connection.blocked:
            connection.push_all()
        return
    stream = connection.streams.get(stream_id)
    if stream is None:
        connection.check_not_idle(stream_id, "WINDOW_UPDATE")
        return
    stream.send_left += increment
    if not increment:
        raise StreamFault(Code.PROTOCOL_ERROR, "an increment of 0")
    if stream.send_left > MAX_WINDOW_BYTES:
        raise StreamFault(Code.FLOW_CONTROL_ERROR, "the stream's window above 2**31-1")
    if stream.pending is not None and stream.push() and stream.is_open:
        stream.on_blocked(is_blocked=False)


# By frame type: connection, flags, stream, payload.
CONTROL: Final[dict[int, Callable[[Connection, int, int, bytes], None]]] = {
    PRIORITY: _on_priority,
    RST_STREAM: _on_rst_stream,
    SETTINGS: _on_settings,
    PUSH_PROMISE: _on_push_promise,
    PING: _on_ping,
    GOAWAY: _on_goaway,
    WINDOW_UPDATE: _on_window_update,
}
