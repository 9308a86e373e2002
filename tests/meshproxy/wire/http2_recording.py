"""A shell for tests of the HTTP/2 engine: it writes down what a connection and its streams tell."""

from __future__ import annotations

from hpack import Encoder

from meshproxy.message import Fields
from meshproxy.wire import http2_frames as frames
from meshproxy.wire.http2 import Connection
from meshproxy.wire.http2_heads import Block
from meshproxy.wire.http2_stream import Stream

Event = tuple[object, ...]

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]


class RecordedStream(Stream):
    """Writes its events into its owner's list; data is joined, so that cutting it differently changes nothing."""

    __slots__ = ("events",)

    def __init__(self, connection: Connection, events: list[Event]) -> None:
        super().__init__(connection)
        self.events = events

    def on_head(self, block: Block, *, end: bool) -> None:
        block = block.full()
        what = (block.method, block.authority, block.path) if block.method else block.status
        self.events.append(("head", self.id, what, tuple(block.fields), block.content_length, end))

    def on_data(self, data: bytes) -> None:
        last = self.events[-1]
        if last[:2] == ("data", self.id):
            assert isinstance(last[2], bytes)
            self.events[-1] = ("data", self.id, last[2] + data)
        else:
            self.events.append(("data", self.id, data))

    def on_end(self, trailers: Fields) -> None:
        self.events.append(("end", self.id, tuple(trailers)))

    def on_reset(self, code: int, *, unprocessed: bool, is_fault: bool, detail: str) -> None:
        self.events.append(("reset", self.id, code, unprocessed))

    def on_blocked(self, *, is_blocked: bool) -> None:
        self.events.append(("blocked", self.id, is_blocked))


class Recorder:
    """Owns one connection."""

    def __init__(
        self, *, is_server: bool, max_streams: int = 100, max_head_bytes: int = 60 * 1024, holds: bool = False
    ) -> None:
        self.holds = holds  # streams give no window back
        self.events: list[Event] = []
        self.streams: list[RecordedStream] = []
        self.connection = Connection(self, is_server=is_server, max_streams=max_streams, max_head_bytes=max_head_bytes)

    def make_stream(self) -> Stream:
        stream = RecordedStream(self.connection, self.events)
        self.streams.append(stream)
        if self.holds:
            stream.hold()
        return stream

    def on_settings(self) -> None:
        pass

    def on_goaway(self) -> None:
        self.events.append(("goaway",))

    def on_forgotten(self, stream: Stream) -> None:
        pass

    def request(self, fields: Fields, *, end: bool) -> RecordedStream:
        stream = RecordedStream(self.connection, self.events)
        self.connection.open(stream)
        self.streams.append(stream)
        encoder = Encoder()
        encoder.header_table_size = 0
        stream.write_head(encoder.encode(fields), end=end)
        return stream

    def take(self) -> bytes:
        """What is to be sent."""
        data = b"".join(self.connection.out)
        self.connection.out.clear()
        self.connection.last_data = (0, 0)
        return data


class RawPeer:
    """Writes frames, also wrong ones. Its blocks use no table."""

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._encoder.header_table_size = 0
        self._encoder.encode([])  # swallow the size update

    def start(self, *, is_server: bool = False) -> bytes:
        """Preface, settings, and the acknowledgement of the other's."""
        settings = frames.settings_frame({})
        return (b"" if is_server else frames.PREFACE) + settings + self.frame(frames.SETTINGS, flags=frames.ACK)

    def frame(self, kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
        return frames.frame_header(kind, len(payload), flags=flags, stream_id=stream) + payload

    def headers(self, stream: int, fields: Fields, *, flags: int = frames.END_HEADERS | frames.END_STREAM) -> bytes:
        return self.frame(frames.HEADERS, self._encoder.encode(fields), flags=flags, stream=stream)


def parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The frames in `data`: type, flags, stream, payload."""
    found = []
    position = 0
    while position < len(data):
        word, flags, stream = frames.FRAME_HEADER.unpack_from(data, position)
        end = position + 9 + (word >> 8)
        found.append((word & 0xFF, flags, stream, data[position + 9 : end]))
        position = end
    return found
