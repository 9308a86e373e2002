"""An HTTP/2 connection, either side of it, without I/O (RFC 9113). Hot.

Bytes from the socket go into `receive`; what is to be sent gathers in `out`. Frames about the connection are
http2_control.py's. Streams (http2_stream.py) tell their owner
what happened. What a peer does wrong costs it the stream or the connection, with the code the RFC asks for; floods cost
it the connection (http2_limits.py). Priorities are ignored (RFC 9113 5.3.2), pushes refused.

Windows: a stream's is given back as the other side of the proxy takes what came; the connection's at once, so that one
slow receiver never stops the others. Memory is bounded by streams x window.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol

from meshproxy.wire import http2_frames as frames
from meshproxy.wire.http2_control import CONTROL
from meshproxy.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HAS_PRIORITY,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PREFACE,
    SETTINGS,
    Code,
    ConnectionFault,
    StreamFault,
    without_extras,
    without_padding,
    word_at,
)
from meshproxy.wire.http2_head_reader import HeadReader
from meshproxy.wire.http2_heads import HeadTooLarge
from meshproxy.wire.http2_limits import Allowance
from meshproxy.wire.http2_stream import Stream

# A stream's. Enough for 128 MB/s at 1 ms; what one stalled stream may cost us.
STREAM_WINDOW_BYTES: Final = 128 * 1024
CONNECTION_WINDOW_BYTES: Final = 4 * 1024 * 1024
_MAX_CONTINUATIONS: Final = 32  # of one head; bytes are bounded, too. CVE-2024-27316
_MAX_RESET_IDS: Final = 256  # what is still under way for streams we have reset is ignored for so many

_MAX_WORD: Final = frames.DEFAULT_FRAME_BYTES << 8 | 0xFF
_unpack: Final = FRAME_HEADER.unpack_from


class Owner(Protocol):
    """What a connection tells the shell; streams tell the rest."""

    def make_stream(self) -> Stream:
        """For a request that came."""

    def on_settings(self) -> None:
        """The peer's settings have come, or changed."""

    def on_goaway(self) -> None:
        """The peer takes no more streams."""

    def on_forgotten(self, stream: Stream, /) -> None:
        """A stream is over, while the connection drains or somebody is `waiting`."""


class Connection:
    """One connection. `fault` is set when the peer has lost it: send what is in `out`, then close."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_stream",
        "_continuations",
        "_last_id",
        "_max_block_bytes",
        "_receive_left",
        "_reset_ids",
        "_rest",
        "_unpreface",
        "allowance",
        "blocked",
        "fault",
        "goaway_id",
        "has_settings",
        "is_draining",
        "is_first_block",
        "is_server",
        "is_write_paused",
        "last_data",
        "max_streams",
        "out",
        "owner",
        "peer_frame_bytes",
        "peer_max_streams",
        "peer_window_bytes",
        "reader",
        "send_left",
        "settings_acknowledged",
        "streams",
        "waiting",
        "window_bytes",
    )

    def __init__(
        self,
        owner: Owner,
        *,
        is_server: bool,
        max_streams: int = 100,
        max_head_bytes: int = 60 * 1024,
        max_fields: int = 100,
        window_bytes: int = STREAM_WINDOW_BYTES,
    ) -> None:
        self.owner = owner
        self.is_server = is_server
        self.max_streams = max_streams
        self.window_bytes = window_bytes
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}  # those with data that waits
        self.out: list[bytes] = []
        self.last_data = (0, 0)  # stream and length of `out` after a DATA frame: Stream.finish may add its flag
        self.waiting: Collection[object] = ()  # the owner's: who would open a stream if there were room
        self.is_first_block = True
        self.is_write_paused = False
        self.fault: ConnectionFault | None = None
        self.is_draining = False  # no new streams: we or the peer said so
        self.goaway_id = MAX_STREAM_ID  # the last stream that we said we take
        self.send_left = self.peer_window_bytes = frames.DEFAULT_WINDOW_BYTES
        self.peer_frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.peer_max_streams = 100  # until it has said (RFC 9113 5.1.2 advises no less)
        self.settings_acknowledged = False
        self.has_settings = False
        self.allowance = Allowance()
        self.reader = HeadReader(is_server=is_server, max_bytes=max_head_bytes, max_fields=max_fields)
        self._max_block_bytes = max_head_bytes
        self._receive_left = CONNECTION_WINDOW_BYTES
        self._last_id = 0  # of the streams that requests opened, whoever sends them
        self._reset_ids: dict[int, None] = {}
        self._rest = b""
        self._unpreface = PREFACE if is_server else b""  # what of the preface has not come
        self._block: list[bytes] | None = None  # a head whose end has not come
        self._block_stream = self._block_flags = self._continuations = 0
        settings = {frames.HEADER_TABLE_SIZE: 0, frames.INITIAL_WINDOW_SIZE: window_bytes}
        settings[frames.MAX_HEADER_LIST_SIZE] = max_head_bytes
        if is_server:
            settings[frames.MAX_CONCURRENT_STREAMS] = max_streams
        else:
            settings[frames.ENABLE_PUSH] = 0
            self.out.append(PREFACE)
        self.out.append(frames.settings_frame(settings))
        self.out.append(frames.window_update_frame(0, CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES))

    def __repr__(self) -> str:
        state = self.fault or ("draining" if self.is_draining else "open")
        return f"<Connection {state} streams={len(self.streams)} blocked={len(self.blocked)}>"

    @property
    def is_amid_head(self) -> bool:
        """A head or the preface has begun and not ended: the shell bounds how long that may take."""
        return self.head_stream != 0 or bool(self._unpreface) or not self.has_settings

    @property
    def head_stream(self) -> int:
        """The stream of a head that has begun and not ended, -1 where that cannot be told yet, or 0."""
        if self._block is not None:
            return self._block_stream
        rest = self._rest
        if not rest or rest[3:4] == b"\0":  # a frame of DATA may come as slowly as its stream may
            return 0
        return word_at(rest, 5) or -1 if len(rest) >= 9 else -1

    def receive(self, data: bytes) -> None:
        """Take what came. Afterwards look at `fault` and send `out`."""
        if self.fault is not None:
            return
        try:
            if self._unpreface:
                data = self._take_preface(data)
            if self._rest:
                data = self._rest + data
                self._rest = b""
            position, size = 0, len(data)
            streams, is_server = self.streams, self.is_server
            if not self.has_settings and size >= 9 and (data[3] != SETTINGS or data[4] & ACK):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")  # RFC 9113 3.4
            while size - position >= 9:
                word, flags, stream_id = _unpack(data, position)
                if word > _MAX_WORD:
                    raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a frame is longer than 16,384 bytes")
                start = position + 9
                end = start + (word >> 8)
                if end > size:
                    break
                kind = word & 0xFF
                if stream_id > MAX_STREAM_ID:
                    stream_id &= MAX_STREAM_ID
                position = end
                if self._block is not None and (kind != CONTINUATION or stream_id != self._block_stream):
                    raise ConnectionFault(Code.PROTOCOL_ERROR, "a head is interrupted by another frame")
                try:
                    if kind == DATA:
                        stream = streams.get(stream_id)
                        length = end - start
                        self._receive_left -= length
                        if self._receive_left * 2 < CONNECTION_WINDOW_BYTES:
                            self._grant()
                        if stream is None or not stream.remote_open:
                            self._on_stray_data(stream_id)
                            continue
                        stream.receive_left -= length
                        if flags & PADDED:
                            start, end = without_padding(data, start, end)
                        self._on_data(stream, data[start:end], flags)
                    elif kind == HEADERS:
                        if flags == END_HEADERS and not is_server and size - end >= 9:
                            # Most answers are a head and one frame of data: read together, they cost 1 us less.
                            word, next_flags, next_id = _unpack(data, end)
                            after = end + 9 + (word >> 8)
                            if (
                                word & 0xFF == DATA
                                and next_flags == END_STREAM
                                and next_id == stream_id
                                and after <= size
                                and self._on_answer(stream_id, data[start:end], data[end + 9 : after])
                            ):
                                position = after
                                continue
                        if flags & (PADDED | HAS_PRIORITY):
                            start, end = without_extras(data, start, end, flags)
                        if flags & END_HEADERS:
                            self._on_block(stream_id, data[start:end], flags)
                        else:
                            self._begin_block(stream_id, data[start:end], flags)
                    elif kind == CONTINUATION:
                        self._on_continuation(flags, stream_id, data[start:end])
                    elif kind in CONTROL:  # RFC 9113 4.1: unknown types are ignored
                        CONTROL[kind](self, flags, stream_id, data[start:end])
                except StreamFault as fault:
                    self._fail_stream(stream_id, fault)
                if self.fault is not None:
                    return
            if position < size:
                self._rest = data[position:] if position else data
        except ConnectionFault as fault:
            self.fail(fault)

    def fail(self, fault: ConnectionFault) -> None:
        """Give the connection up for what the peer did: GOAWAY, and every stream is gone."""
        if self.fault is not None:
            return
        self.fault = fault
        last = self._last_id if self.is_server else 0
        self.out.append(frames.goaway_frame(last, fault.code, fault.detail[:100].encode()))
        self.lose(str(fault))

    def lose(self, detail: str) -> None:
        """The connection is over: every stream ends as if it were reset."""
        self.is_draining = True
        for stream in list(self.streams.values()):
            stream.close()
            stream.on_reset(Code.INTERNAL_ERROR, unprocessed=False, is_fault=self.fault is not None, detail=detail)

    def drain(self) -> None:
        """Take no new streams but those under way (RFC 9113 6.8); `finish_drain` a round trip later."""
        if not self.is_draining and self.fault is None:
            self.is_draining = True
            self.out.append(frames.goaway_frame(MAX_STREAM_ID if self.is_server else 0, Code.NO_ERROR))

    def finish_drain(self) -> None:
        """From here on, streams that were not yet seen are not taken; their clients send them elsewhere."""
        if self.is_server and self.goaway_id == MAX_STREAM_ID and self.fault is None:
            self.goaway_id = self._last_id
            self.out.append(frames.goaway_frame(self._last_id, Code.NO_ERROR))

    def open(self, stream: Stream) -> None:
        """Give a request's stream its number."""
        stream.id = self._last_id = self._last_id + 2 if self._last_id else 1
        self.streams[stream.id] = stream

    @property
    def has_room(self) -> bool:
        """Whether a request may be sent now."""
        return not self.is_draining and len(self.streams) < self.peer_max_streams and self._last_id < MAX_STREAM_ID - 2

    def was_reset(self, stream_id: int) -> None:
        """What is under way for this stream is to be ignored (RFC 9113 5.1)."""
        if len(self._reset_ids) >= _MAX_RESET_IDS:
            del self._reset_ids[next(iter(self._reset_ids))]
        self._reset_ids[stream_id] = None

    def set_write_paused(self, *, is_paused: bool) -> None:
        """The socket takes no more data, or does again."""
        self.is_write_paused = is_paused
        if not is_paused:
            self.push_all()

    def tick(self) -> list[Stream]:
        """A second has passed. Returns the streams whose data waits, `seconds_blocked` counted."""
        self.allowance.refill()
        for stream in self.blocked.values():
            stream.seconds_blocked += 1
        return list(self.blocked.values())

    def _take_preface(self, data: bytes) -> bytes:
        count = min(len(data), len(self._unpreface))
        if data[:count] != self._unpreface[:count]:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "no preface")
        self._unpreface = self._unpreface[count:]
        return data[count:]

    def _fail_stream(self, stream_id: int, fault: StreamFault) -> None:
        if fault.code != Code.REFUSED_STREAM or self.settings_acknowledged:  # before, it could not know better
            self.allowance.spend("faults")
        stream = self.streams.get(stream_id)
        self.out.append(frames.rst_stream_frame(stream_id, fault.code))
        self.was_reset(stream_id)
        if stream is not None:
            stream.close()
            stream.on_reset(fault.code, unprocessed=False, is_fault=True, detail=str(fault))

    def _grant(self) -> None:
        if self._receive_left < 0:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self.out.append(frames.window_update_frame(0, CONNECTION_WINDOW_BYTES - self._receive_left))
        self._receive_left = CONNECTION_WINDOW_BYTES

    def _on_stray_data(self, stream_id: int) -> None:
        """Data where none may come (RFC 9113 5.1, 6.1)."""
        self.check_not_idle(stream_id, "DATA")
        if stream_id in self._reset_ids or stream_id > self.goaway_id:
            return
        raise StreamFault(Code.STREAM_CLOSED, "DATA on a closed stream")

    def _on_data(self, stream: Stream, data: bytes, flags: int) -> None:
        if stream.receive_left < 0:
            raise StreamFault(Code.FLOW_CONTROL_ERROR, "more data than the stream's window")
        if not stream.has_head:
            raise StreamFault(Code.PROTOCOL_ERROR, "DATA before the answer's head")
        length = len(data)
        if stream.length_left is not None:
            stream.length_left -= length
            if stream.length_left < 0 or (flags & END_STREAM and stream.length_left):
                raise StreamFault(Code.PROTOCOL_ERROR, "the data is not of content-length")  # RFC 9113 8.1.1
        if length:
            stream.on_data(data)
        elif not flags & END_STREAM:
            self.allowance.spend("empty data")
        if flags & END_STREAM:
            if stream.is_open:
                stream.end_remote()
                stream.on_end([])
        elif stream.receive_left * 2 < self.window_bytes:
            stream.grant()

    def _on_answer(self, stream_id: int, head: bytes, data: bytes) -> bool:
        """A whole answer. False: it is to be read frame by frame, for whatever reason."""
        stream = self.streams.get(stream_id)
        length = len(data)
        if stream is None or stream.has_head or not self.settings_acknowledged or length > stream.receive_left:
            return False
        block = self.reader.known.get(head)
        if block is None or block.status < 200 or stream.without_body:
            return False
        if block.content_length != length and block.content_length is not None:
            return False
        self._receive_left -= length
        if self._receive_left * 2 < CONNECTION_WINDOW_BYTES:
            self._grant()
        stream.has_head = True
        stream.remote_open = False
        if not stream.local_open:
            stream.close()
        stream.on_whole_answer(block, data)
        return True

    def _begin_block(self, stream_id: int, piece: bytes, flags: int) -> None:
        self._block = [piece]
        self._block_stream, self._block_flags, self._continuations = stream_id, flags, 0

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.append(payload)
        self._continuations += 1
        if self._continuations > _MAX_CONTINUATIONS or sum(map(len, block)) > self._max_block_bytes:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a head in too many pieces, or too long")
        if flags & END_HEADERS:
            self._block = None
            self._on_block(stream_id, b"".join(block), self._block_flags)

    def _on_block(self, stream_id: int, data: bytes, flags: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self.is_server:
                self._on_stray_block(stream_id, data)
                return
            if stream_id <= self._last_id or not stream_id & 1:
                self._on_stray_block(stream_id, data)
                return
            self._last_id = stream_id
            if stream_id > self.goaway_id:
                self.reader.skip(data)
                return
            if len(self.streams) >= self.max_streams:
                self.reader.skip(data)
                raise StreamFault(Code.REFUSED_STREAM, "more streams than allowed")  # RFC 9113 5.1.2
            try:
                block = self.reader.read(data)
            except HeadTooLarge:
                self._refuse_head(stream_id, ended=bool(flags & END_STREAM))
                return
            stream = self.owner.make_stream()
            stream.id = stream_id
            self.streams[stream_id] = stream
        elif stream.has_head:
            self._on_trailers(stream, data, flags)
            return
        else:
            try:
                block = self.reader.read(data)
            except HeadTooLarge:
                raise StreamFault(Code.CANCEL, "the answer's head is too large") from None
            if block.status < 200:
                if flags & END_STREAM:
                    raise StreamFault(Code.PROTOCOL_ERROR, "an interim answer that ends")
                self.allowance.spend("empty data")
                stream.on_head(block, end=False)
                return
        stream.has_head = True
        if flags & END_STREAM:
            if block.content_length and not stream.without_body and block.status != 304:
                raise StreamFault(Code.PROTOCOL_ERROR, "content-length without content")
            stream.remote_open = False
            if not stream.local_open:
                stream.close()
            stream.on_head(block, end=True)
            return
        if block.content_length is not None:
            stream.length_left = 0 if stream.without_body or block.status in (204, 304) else block.content_length
        stream.on_head(block, end=False)

    def _on_trailers(self, stream: Stream, data: bytes, flags: int) -> None:
        if not stream.remote_open:
            self.reader.skip(data)
            raise StreamFault(Code.STREAM_CLOSED, "HEADERS after the end")
        try:
            trailers = self.reader.read_trailers(data)
        except HeadTooLarge:
            raise StreamFault(Code.CANCEL, "the trailers are too large") from None
        if not flags & END_STREAM:
            raise StreamFault(Code.PROTOCOL_ERROR, "trailers that do not end the stream")  # RFC 9113 8.1
        if stream.length_left:
            raise StreamFault(Code.PROTOCOL_ERROR, "the data is not of content-length")
        stream.end_remote()
        stream.on_end(trailers)

    def _on_stray_block(self, stream_id: int, data: bytes) -> None:
        self.reader.skip(data)
        if self.is_server and (stream_id == 0 or not stream_id & 1):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "HEADERS on a stream that is not the client's")
        self.check_not_idle(stream_id, "HEADERS")
        if stream_id not in self._reset_ids:
            raise ConnectionFault(Code.STREAM_CLOSED, "HEADERS on a closed stream")

    def _refuse_head(self, stream_id: int, *, ended: bool) -> None:
        """431 by ourselves: nobody has to hear of this request (RFC 6585 5)."""
        self.allowance.spend("faults")
        stream = Stream(self)
        stream.id = stream_id
        stream.remote_open = not ended
        stream.write_head(b"\x08\x03431", end=True)

    def check_not_idle(self, stream_id: int, what: str) -> None:
        """RFC 9113 5.1: most frames on a stream that was never opened cost the connection."""
        if stream_id == 0 or stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"{what} on an idle stream")

    def push_all(self) -> None:
        for stream in list(self.blocked.values()):
            if self.send_left <= 0 or self.is_write_paused:
                return
            if stream.push() and stream.is_open:
                stream.on_blocked(is_blocked=False)
