"""One stream of an HTTP/2 connection: what is sent on it, and what is told to whoever owns it. Hot.

The owner is a subclass, which spares a call for each event. Data goes out at once where both windows and the socket
allow, else it waits here, whole and in order; `on_blocked` tells the owner to pause and resume the source. Memory is
bounded by the window that the source was given. http2.py reads frames and calls the `on_` methods.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meshproxy.message import Fields
from meshproxy.wire.hpack import encode_block
from meshproxy.wire.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    Code,
    headers_frames,
    rst_stream_frame,
    window_update_frame,
)
from meshproxy.wire.own_code import OwnCode

if TYPE_CHECKING:
    from meshproxy.wire.http2 import Connection
    from meshproxy.wire.http2_heads import Block

_pack = FRAME_HEADER.pack


class Stream(OwnCode):
    """Open until both sides have ended it or one has reset it; then the connection forgets it."""

    __slots__ = (
        "connection",
        "has_head",
        "id",
        "is_held",
        "is_open",
        "length_left",
        "local_open",
        "pending",
        "receive_left",
        "remote_open",
        "seconds_blocked",
        "send_left",
        "trailers",
        "without_body",
    )

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.id = 0
        self.is_open = self.local_open = self.remote_open = True
        self.has_head = False  # the final one has come
        self.without_body = False  # an answer to HEAD: its length says nothing
        self.length_left: int | None = None  # what content-length still announces
        self.send_left = connection.peer_window_bytes
        self.receive_left = connection.window_bytes
        self.is_held = False  # the other side is slow: no more window
        self.pending: deque[bytes] | None = None
        self.trailers: Fields | None = None  # what ends the stream when nothing is pending any more
        self.seconds_blocked = 0

    def __repr__(self) -> str:
        waiting = f" {sum(map(len, self.pending))} bytes wait" if self.pending else ""
        return f"<{type(self).__name__} {self.id} local={self.local_open} remote={self.remote_open}{waiting}>"

    # What the peer did; subclasses answer.

    def on_head(self, block: Block, *, end: bool) -> None:
        """A request, an answer, or a 1xx answer (which never ends)."""
        raise NotImplementedError

    def on_data(self, data: bytes) -> None:
        raise NotImplementedError

    def on_end(self, trailers: Fields) -> None:
        raise NotImplementedError

    def on_whole_answer(self, block: Block, data: bytes) -> None:
        """An answer that ends with its first frame of data: all of it at once."""
        self.on_head(block, end=False)
        self.on_data(data)
        self.on_end([])

    def on_reset(self, code: int, *, unprocessed: bool, is_fault: bool, detail: str) -> None:
        """The stream is gone: reset by the peer, lost with the connection, or for what the peer did wrong."""
        raise NotImplementedError

    def on_blocked(self, *, is_blocked: bool) -> None:
        """What is to be sent waits for the peer; or (False) has gone."""
        raise NotImplementedError

    # What the owner does.

    def write_head(self, block: bytes, *, end: bool) -> None:
        connection = self.connection
        out = connection.out
        if connection.is_first_block:
            # We use no table, and say so in front of the first block: whatever the peer allows is kept (RFC 7541 4.2).
            connection.is_first_block = False
            block = b"\x20" + block
        length = len(block)
        flags = END_STREAM if end else 0
        if length <= connection.peer_frame_bytes:
            out.append(_pack(length << 8 | HEADERS, flags | END_HEADERS, self.id))
            out.append(block)
        else:
            out.append(headers_frames(self.id, block, flags=flags, frame_bytes=connection.peer_frame_bytes))
        if end:
            self._end_local()

    def write(self, data: bytes) -> None:
        length = len(data)
        connection = self.connection
        if (
            self.pending is None
            and length <= self.send_left
            and length <= connection.send_left
            and length <= connection.peer_frame_bytes
            and not connection.is_write_paused
        ):
            if length:
                self.send_left -= length
                connection.send_left -= length
                out = connection.out
                out.append(_pack(length << 8 | DATA, 0, self.id))
                out.append(data)
                connection.last_data = (self.id, len(out))
            return
        if self.pending is None:
            self.pending = deque()
            connection.blocked[self.id] = self
        self.pending.append(data)
        if not self.push():
            self.on_blocked(is_blocked=True)

    def finish(self, trailers: Fields) -> None:
        if self.pending is not None:
            self.trailers = trailers
            return
        if trailers:
            self.write_head(encode_block(trailers), end=True)
            return
        connection = self.connection
        out = connection.out
        if connection.last_data == (self.id, len(out)):
            # The last frame is this stream's data, not yet sent: it ends the stream, and saves the peer a frame.
            out[-2] = _pack(len(out[-1]) << 8 | DATA, END_STREAM, self.id)
        else:
            out.append(_pack(DATA, END_STREAM, self.id))
        self._end_local()

    def write_all(self, data: bytes) -> None:
        """The only data, and the end."""
        length = len(data)
        connection = self.connection
        if (
            length <= self.send_left
            and length <= connection.send_left
            and length <= connection.peer_frame_bytes
            and not connection.is_write_paused
        ):
            connection.send_left -= length
            connection.out.append(_pack(length << 8 | DATA, END_STREAM, self.id))
            connection.out.append(data)
            self._end_local()
        else:
            self.write(data)
            self.finish([])

    def write_answer(self, block: bytes, data: bytes) -> None:
        """A head, the only data, and the end: 0.5 us less than one after the other."""
        connection = self.connection
        length, size = len(data), len(block)
        limit = connection.peer_frame_bytes
        if (
            length <= self.send_left
            and length <= connection.send_left
            and length <= limit
            and size <= limit
            and not connection.is_write_paused
            and not connection.is_first_block
        ):
            connection.send_left -= length
            stream_id = self.id
            connection.out += (
                _pack(size << 8 | HEADERS, END_HEADERS, stream_id),
                block,
                _pack(length << 8 | DATA, END_STREAM, stream_id),
                data,
            )
            if self.remote_open:
                self._end_local()
            else:
                self.close()
        else:
            self.write_head(block, end=False)
            self.write_all(data)

    def reset(self, code: Code) -> None:
        """End it here and now. No event follows."""
        if self.is_open:
            self.connection.out.append(rst_stream_frame(self.id, code))
            self.connection.was_reset(self.id)
            self.close()

    def hold(self) -> None:
        """Give the peer no more window."""
        self.is_held = True

    def release(self) -> None:
        """The other side has taken what came: the peer may send again."""
        if self.is_held:
            self.is_held = False
            self.grant()

    def grant(self) -> None:
        """Tell the peer to go on, in steps of half a window: two updates for each window are enough."""
        connection = self.connection
        increment = connection.window_bytes - self.receive_left
        if self.remote_open and not self.is_held and self.is_open and increment * 2 >= connection.window_bytes:
            self.receive_left += increment
            connection.out.append(window_update_frame(self.id, increment))

    def push(self) -> bool:
        """Send of what waits as much as may be sent. True: nothing waits any more."""
        connection = self.connection
        pending = self.pending
        if pending is None:
            return True
        out = connection.out
        while pending:
            if connection.is_write_paused:
                return False
            data = pending[0]
            length = min(len(data), self.send_left, connection.send_left, connection.peer_frame_bytes)
            if length <= 0 and data:
                return False
            if length == len(data):
                pending.popleft()
            else:
                data, pending[0] = data[:length], data[length:]
            self.seconds_blocked = 0
            if not length:
                continue
            self.send_left -= length
            connection.send_left -= length
            out.append(_pack(length << 8 | DATA, 0, self.id))
            out.append(data)
            connection.last_data = (self.id, len(out))
        self.pending = None
        connection.blocked.pop(self.id, None)
        if self.trailers is not None:
            self.finish(self.trailers)
        return True

    def _end_local(self) -> None:
        self.local_open = False
        if not self.remote_open:
            self.close()
        elif self.connection.is_server:
            self.reset(Code.NO_ERROR)  # the answer is there: the rest of the request is of no use (RFC 9113 8.1)

    def end_remote(self) -> None:
        self.remote_open = False
        if not self.local_open:
            self.close()

    def close(self) -> None:
        """Forget the stream."""
        if self.is_open:
            self.is_open = self.local_open = self.remote_open = False
            connection = self.connection
            connection.streams.pop(self.id, None)
            if self.pending is not None:
                self.pending = None
                connection.blocked.pop(self.id, None)
            if connection.is_draining or connection.waiting:
                connection.owner.on_forgotten(self)
