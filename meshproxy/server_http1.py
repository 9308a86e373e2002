"""One connection of HTTP/1.1 from a client: the Downstream of one exchange after the other.

Hot where a request without a body arrives alone and whole; everything else goes through `_read`. Pipelined requests
wait in the buffer until it is their turn, and so are answered in order. What may be a request: wire/http1_request.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from meshproxy.error_answer import ERROR_FIELD
from meshproxy.exchange import Exchange
from meshproxy.http1_stamp import Http1Stamp
from meshproxy.listener import ListenerRuntime
from meshproxy.message import Fields, ProxyError, RequestHead, ResponseHead
from meshproxy.shell import Timed, ticks
from meshproxy.wire.chunked import ChunkedReader, last_chunk
from meshproxy.wire.http1_fields import HTTP1, BadMessage, has_bad_line_end
from meshproxy.wire.http1_request import (
    HOST,
    LENGTH,
    METHOD,
    PATH,
    quick_head,
    quick_match,
    quick_request,
    read_request,
)
from meshproxy.wire.http1_write import response_lines

# What a client may have sent beyond the request that is being answered; then it is no longer read from.
MAX_AHEAD_BYTES: Final = 64 * 1024
# How long a connection that is closed over an unread request is read from, so that the answer is not lost to a RST
# (RFC 9112 9.6).
LINGER_S: Final = 2.0

# A client that has just been answered may be sending its next request: closed now, it would see it fail. One that is
# silent for so long is taken to have nothing more to ask.
DRAIN_IDLE_S: Final = 1.0

# What is read.
HEAD: Final = 0
COUNTED: Final = 1
CHUNKS: Final = 2
WAIT: Final = 3  # the request is all here, its answer is not
TUNNEL: Final = 4
LINGER: Final = 5
GONE: Final = 6


class Http1Downstream(asyncio.Protocol):
    """A client's connection."""

    __slots__ = (
        "_active_tick",
        "_answer_chunked",
        "_buffer",
        "_chunks",
        "_exchange",
        "_head_due",
        "_is_http10",
        "_is_interim_allowed",
        "_is_paused",
        "_is_reading",
        "_keep_alive",
        "_left",
        "_max_fields",
        "_method",
        "_on_close",
        "_stamp",
        "_state",
        "_surely_few_fields",
        "_transport",
        "_upgrade",
        "_wheel",
        "_write",
        "due_tick",
        "listener",
        "peer_address",
        "slot",
    )

    http2 = False

    def __init__(
        self, listener: ListenerRuntime, transport: asyncio.Transport, on_close: Callable[[Http1Downstream], None]
    ) -> None:
        peer_address = str((transport.get_extra_info("peername") or ("unknown",))[0])
        self.listener = listener
        self.peer_address = peer_address
        self._on_close = on_close
        self._transport = transport
        self._write = transport.write
        self._wheel = listener.shell.wheel
        self._exchange: Exchange | None = None
        self._state = HEAD
        self._buffer = b""
        self._left = 0
        self._chunks: ChunkedReader | None = None
        self._method = b""
        self._upgrade: bytes | None = None
        self._keep_alive = True
        self._is_http10 = False
        self._answer_chunked = False
        self._is_paused = False
        self._is_reading = False
        self._head_due = 0
        self._max_fields = listener.config.max_headers
        self._active_tick = self._wheel.tick
        self.due_tick = 0
        self.slot: set[Timed] | None = None
        self._surely_few_fields = self._max_fields * len(b"a:\r\n")
        self._stamp = Http1Stamp(
            peer_address.encode(),
            listener.config.forwarded_for,
            listener.shell.randomness,
            traced_percent=listener.config.traced_percent,
        )
        self._wind()

    def __repr__(self) -> str:
        return f"<Http1Downstream {self.peer_address} state={self._state} buffered={len(self._buffer)}>"

    # -- the loop's

    def data_received(self, data: bytes) -> None:
        if self._state == HEAD and not self._buffer:
            match = quick_match(data)
            if match is not None:
                method, path, host, length = match.group(METHOD, PATH, HOST, LENGTH)
                if (
                    host is not None
                    and length is None
                    and match.end() == len(data)
                    and len(data) < self._surely_few_fields
                    and (origin := self._stamp.origin(match, data)) is not None
                ):
                    self._state = WAIT
                    self._method = method
                    head = RequestHead(method, b"http", host, path, None, None, False, None, origin, HTTP1)
                    exchange = self._exchange = Exchange(self, self.listener, head)
                    exchange.start(end=True)
                    return
        self._read(data)

    def eof_received(self) -> bool:
        exchange = self._exchange
        if self._state == TUNNEL and exchange is not None:
            exchange.on_request_end([])
            return True
        # A client may end its side after its last request; but one that has not said that it is the last one has gone.
        return exchange is not None and self._state == WAIT and not self._keep_alive

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._leave()
        exchange = self._exchange
        if exchange is not None:
            self._exchange = None
            exchange.on_client_gone()
        self._on_close(self)

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.pause_answer()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.resume_answer()

    # -- the server's

    def drain(self) -> None:
        """The next answer is the last one, and says so; who asks nothing more is closed after a while."""
        self._keep_alive = False
        if self._state == HEAD and not self._buffer:
            self._wheel.put_at(self, max(self._wheel.tick + 1, self._active_tick + ticks(DRAIN_IDLE_S)))

    def on_due(self) -> None:
        tick = self._wheel.tick
        if self._state in (LINGER, GONE):
            # As long as the client takes what was written, it may; one that does not must not hold us.
            left = self._transport.get_write_buffer_size()
            if left and left != self._left:
                self._left = left
                self._wheel.put(self, self.listener.config.stream_idle_s or LINGER_S)
            else:
                self._leave()
                self._transport.abort()
        elif self._head_due and tick >= self._head_due:
            self._refuse(ProxyError("client", "head-timeout"), 408)
        elif self._state == HEAD and tick - self._active_tick >= ticks(
            self.listener.config.idle_timeout_s if self._keep_alive else DRAIN_IDLE_S
        ):
            self._close()
        else:
            self._wind()

    # -- Downstream

    def send_answer(self, head: ResponseHead, data: bytes) -> None:
        if (
            head.read_origin is HTTP1
            and head.content_length is not None
            and self._keep_alive
            and self._state == WAIT
            and self._method != b"HEAD"
            and not head.added
            and not self.listener.is_draining
        ):
            self._write(b"%b\r\n%b" % (head.origin, data))  # type: ignore[str-format]  # HTTP1's is bytes
            self._exchange = None
            self._upgrade = None
            self._state = HEAD
            self._active_tick = self._wheel.tick
            if self._buffer or self._is_paused:
                self._go_on()
            return
        if head.content_length is None:
            head = head.copy()
            head.content_length = len(data)
        pieces = self._head_bytes(head, end=False)
        if self._method != b"HEAD":
            pieces += data
        self._write(pieces)
        self._end_answer()

    def send_interim(self, head: ResponseHead) -> None:
        if not self._is_http10:
            self._write(response_lines(head) + b"\r\n")

    def send_head(self, head: ResponseHead, *, end: bool) -> None:
        is_tunnel = self._upgrade is not None and (
            head.status == 101 or (self._upgrade == b"connect" and 200 <= head.status < 300)
        )
        if is_tunnel and not end:
            self._write(response_lines(head) + (b"connection: upgrade\r\n\r\n" if head.status == 101 else b"\r\n"))
            self._begin_tunnel()
            return
        self._write(self._head_bytes(head, end=end))
        if end:
            self._end_answer()

    def send_data(self, data: bytes) -> None:
        if self._answer_chunked:
            self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
        elif self._method != b"HEAD":
            self._write(data)

    def send_end(self, trailers: Fields) -> None:
        if self._state == TUNNEL:
            if self._transport.can_write_eof() and not self._transport.is_closing():
                self._transport.write_eof()
            self._exchange = None
            self._state = LINGER
            self._left = 0
            self._wheel.put(self, LINGER_S)
            return
        if self._answer_chunked:
            self._write(last_chunk(trailers))
        self._end_answer()

    def abort(self, error: ProxyError) -> None:  # noqa: ARG002
        """The answer is cut off: the client must see that it is not whole."""
        self._exchange = None
        self._leave()
        self._transport.abort()

    def pause_request(self) -> None:
        if not self._is_paused and self._state in (COUNTED, CHUNKS, TUNNEL):
            self._is_paused = True
            self._transport.pause_reading()

    def resume_request(self) -> None:
        if self._is_paused and self._state != GONE:
            self._is_paused = False
            self._transport.resume_reading()

    # -- reading

    def _read(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        # An answer that comes at once calls back into _go_on: the loop here goes on, not a deeper one.
        self._is_reading = True
        try:
            while data:
                state = self._state
                if state == HEAD:
                    data = self._read_head(data)
                elif state in (COUNTED, CHUNKS):
                    data = self._read_body(data)
                elif state == TUNNEL:
                    assert self._exchange is not None
                    self._exchange.on_request_data(data)
                    return
                elif state == WAIT:
                    self._buffer = data
                    if len(data) > MAX_AHEAD_BYTES and not self._is_paused:
                        self._is_paused = True
                        self._transport.pause_reading()
                    return
                else:
                    return  # lingering: nobody wants it
                if self._buffer:
                    return  # a head that is not whole
        except BadMessage as error:
            kind = "head-too-large" if error.status == 431 else "bad-request"
            self._refuse(ProxyError("client", kind, error.detail), error.status)  # type: ignore[arg-type]
        finally:
            self._is_reading = False

    def _go_on(self) -> None:
        """The answer is out: read what has come meanwhile."""
        self.resume_request()
        if self._buffer and not self._is_reading:
            data = self._buffer
            self._buffer = b""
            self._read(data)

    def _read_head(self, data: bytes) -> bytes:
        """Read one head and start its exchange; return what comes after it. Keeps what is not whole yet."""
        config = self.listener.config
        if data.startswith(b"\r\n"):
            data = data[2:]  # RFC 9112 2.2: after a body some clients send one
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > config.max_head_bytes:
            if len(data) >= config.max_head_bytes:
                raise BadMessage(431, "head too large")
            if has_bad_line_end(data):
                raise BadMessage(400, "bare CR or LF")
            self._buffer = data
            if not self._head_due:
                self._head_due = self._wheel.tick + ticks(config.head_timeout_s)
                self._wind()
            return b""
        self._head_due = 0
        match = quick_request(data, max_fields=self._max_fields)
        origin = None if match is None else self._stamp.origin(match, data)
        if match is not None and origin is not None:
            head = quick_head(match, origin)
            self._chunks = None
            self._is_http10 = False
        else:
            request = read_request(data[:end], max_fields=self._max_fields)
            head = request.head
            if head.upgrade == b"connect" and not config.allow_connect:
                raise BadMessage(405, "CONNECT is not allowed here")
            self.listener.stamp(head, self.peer_address)
            self._is_http10 = request.is_http10
            self._keep_alive = self._keep_alive and request.keep_alive
            self._chunks = ChunkedReader() if request.is_chunked else None
        self._method = head.method
        self._upgrade = head.upgrade
        self._left = head.content_length or 0
        self._state = CHUNKS if self._chunks is not None else COUNTED if self._left else WAIT
        exchange = self._exchange = Exchange(self, self.listener, head)
        exchange.start(end=self._state == WAIT)
        return data[end:]

    def _read_body(self, data: bytes) -> bytes:
        """Hand over a part of the body; return what comes after its end."""
        exchange = self._exchange
        assert exchange is not None
        if self._chunks is not None:
            try:
                piece = self._chunks.feed(data)
            except BadMessage:
                # The head has gone on; the endpoint must see a request that is not whole.
                exchange.on_client_gone()
                raise
            if piece:
                exchange.on_request_data(piece)
            if self._chunks.trailers is None:
                return b""
            if self._state == CHUNKS:
                self._state = WAIT
                exchange.on_request_end(self._chunks.trailers)
            return self._chunks.rest
        piece, rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        exchange.on_request_data(piece)
        if not self._left and self._state == COUNTED:
            self._state = WAIT
            exchange.on_request_end([])
        return rest

    # -- answering

    def _head_bytes(self, head: ResponseHead, *, end: bool) -> bytes:
        """The answer's head for this client; decides how the body will end."""
        self._answer_chunked = False
        lines = response_lines(head)
        has_body = not end and self._method != b"HEAD"
        if has_body and head.content_length is None:
            if self._is_http10:
                self._keep_alive = False  # the body ends with the connection
            else:
                self._answer_chunked = True
                lines += b"transfer-encoding: chunked\r\n"
        elif end and head.content_length is None and head.has_body is False and self._needs_length(head.status):
            lines += b"content-length: 0\r\n"
        if self._state in (COUNTED, CHUNKS) or self.listener.is_draining:
            self._keep_alive = False  # an early answer: the rest of the request is not read
        return lines + (b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n")

    def _needs_length(self, status: int) -> bool:
        return self._method != b"HEAD" and status >= 200 and status not in (204, 304)

    def _end_answer(self) -> None:
        self._exchange = None
        self._upgrade = None
        self._active_tick = self._wheel.tick
        if self._keep_alive:
            self._state = HEAD
            self._go_on()
        elif self._state == WAIT and not self._buffer:
            self._close()
        else:
            self._linger()

    def _begin_tunnel(self) -> None:
        self._state = TUNNEL
        self.listener.stats.requests_upgraded += 1
        self.resume_request()
        if self._buffer and self._exchange is not None:
            data, self._buffer = self._buffer, b""
            self._exchange.on_request_data(data)

    def _refuse(self, error: ProxyError, status: int) -> None:
        """Answer by ourselves and close: where the next request would begin is not known."""
        self.listener.stats.refuse(error.kind)
        exchange = self._exchange
        if exchange is not None:
            self._exchange = None
            exchange.on_client_gone()
        kind = error.kind.encode()
        self._keep_alive = False
        self._method = b""
        body = b"%b: %b\n" % (kind, error.detail.encode()) if error.detail else b"%b\n" % kind
        head = ResponseHead(status, [(b"content-type", b"text/plain"), (ERROR_FIELD, kind)], len(body))
        self._write(self._head_bytes(head, end=False) + body)
        self._linger()

    def _linger(self) -> None:
        self._state = LINGER
        self._buffer = b""
        self._left = 0
        self.resume_request()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        self._wheel.put(self, LINGER_S)

    def _close(self) -> None:
        self._leave()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._left = 0
            self._wheel.put(self, LINGER_S)

    def _leave(self) -> None:
        self._state = GONE
        self._buffer = b""
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None

    def _wind(self) -> None:
        """Ask the wheel for the next moment that matters."""
        if self._head_due:
            self._wheel.put_at(self, self._head_due)
        else:
            self._wheel.put_at(self, self._active_tick + ticks(self.listener.config.idle_timeout_s))
