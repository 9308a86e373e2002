"""One connection of HTTP/1.1 to an endpoint: the UpstreamStream of one request after the other.

Hot where an answer arrives whole in one piece; everything else goes through `_read`. The pool is upstream.py's.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from meshproxy.message import Fields, ProxyError, RequestHead
from meshproxy.retry import IDEMPOTENT_METHODS
from meshproxy.wire.chunked import ChunkedReader, last_chunk
from meshproxy.wire.http1_fields import HTTP1, BadMessage, has_bad_line_end
from meshproxy.wire.http1_response import BY_CHUNKS, BY_CLOSE, BY_LENGTH, NO_BODY, read_response, remembered
from meshproxy.wire.http1_write import request_bytes

if TYPE_CHECKING:
    from meshproxy.parts import AnswerReceiver
    from meshproxy.upstream import Http1Pool

# Envoy's limits of an answer's head.
MAX_HEAD_BYTES: Final = 60 * 1024
MAX_FIELDS: Final = 100

# tcpi_bytes_acked of struct tcp_info, linux/tcp.h (since Linux 4.1).
TCP_INFO_BYTES: Final = 256
BYTES_ACKED: Final = struct.Struct("Q")
BYTES_ACKED_AT: Final = 120

# What the connection waits for.
IDLE: Final = 0
HEAD: Final = 1
LENGTH: Final = 2
CHUNKS: Final = 3
CLOSE: Final = 4  # the body ends with the connection
TUNNEL: Final = 5
GONE: Final = 6


class Http1Connection(asyncio.Protocol):
    """A connection that carries one request at a time for the `receiver` that has it."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_is_chunking",
        "_is_keep_alive",
        "_is_paused",
        "_is_sent",
        "_left",
        "_method",
        "_pool",
        "_sent",
        "_sent_before",
        "_state",
        "_transport",
        "_upgrade",
        "_write",
        "born_tick",
        "idle_since",
        "receiver",
        "requests",
    )

    _transport: asyncio.Transport

    def __init__(self, pool: Http1Pool) -> None:
        self._pool = pool
        self.receiver: AnswerReceiver | None = None
        self._state = IDLE
        self._buffer = b""
        self._left = 0
        self._chunks: ChunkedReader | None = None
        self._method = b""
        self._upgrade: bytes | None = None
        self._is_sent = True  # the request has gone out whole
        self._is_chunking = False  # its body goes out in chunks
        self._is_keep_alive = True
        self._is_paused = False
        self._sent = 0  # bytes of requests, all told
        self._sent_before = 0  # and before this one
        self.requests = 0
        self.idle_since = 0
        self.born_tick = pool.wheel.tick

    def __repr__(self) -> str:
        return f"<Http1Connection {self._pool.endpoint.key} state={self._state} requests={self.requests}>"

    # -- UpstreamStream

    def send_request(self, head: RequestHead, *, end: bool) -> None:
        self._state = HEAD
        self.requests += 1
        self._method = head.method
        self._upgrade = head.upgrade
        self._is_sent = end
        self._sent_before = self._sent
        if end and head.read_origin is HTTP1 and not head.added:
            self._is_chunking = False
            data: bytes = head.origin + b"\r\n"  # type: ignore[operator]  # the origin of HTTP1 is bytes
        else:
            self._is_chunking = head.has_body and head.content_length is None
            data = request_bytes(head)
            if end and self._is_chunking:
                data += last_chunk([])
        self._sent += len(data)
        self._write(data)

    def send_data(self, data: bytes) -> None:
        if self._is_chunking:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._sent += len(data)
        self._write(data)

    def send_end(self, trailers: Fields) -> None:
        self._is_sent = True
        if self._is_chunking:
            data = last_chunk(trailers)
            self._sent += len(data)
            self._write(data)
        elif self._state == TUNNEL:
            self._transport.write_eof()

    def reset(self) -> None:
        self.receiver = None
        if self._state != GONE:
            self._state = GONE
            self._transport.abort()
            self._pool.forget(self)

    def pause_answer(self) -> None:
        if self._state != GONE and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_answer(self) -> None:
        if self._state != GONE and self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    # -- the pool's

    def shut(self) -> None:
        """Close an idle connection."""
        if self._state != GONE:
            self._state = GONE
            self._transport.close()
            self._pool.forget(self)

    # -- the loop's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name.
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.write
        self._pool.on_connected(self)

    def data_received(self, data: bytes) -> None:
        if self._state == HEAD and not self._buffer:
            # The answer with a known head and all of its body: 1.3 us less than the way through _read.
            end = data.find(b"\r\n\r\n") + 4
            response = remembered(data[:end])
            if (
                response is not None
                and response.framing == BY_LENGTH
                and response.length == len(data) - end
                and self._is_sent
                and response.keep_alive
                and self._method != b"HEAD"
            ):
                receiver = self.receiver
                assert receiver is not None
                self._free()
                receiver.on_answer(response.head, data[end:])
                return
        self._read(data)

    def eof_received(self) -> bool:
        # A tunnel ends when the endpoint has said its last word; the client's half-close, before that, is passed on.
        if self._state in (TUNNEL, CLOSE) and self.receiver is not None:
            receiver = self.receiver
            self._lose()
            receiver.on_answer_end([])
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._state == GONE:
            return
        receiver = self.receiver
        state = self._state
        self._lose()
        if receiver is None:
            return
        if state in (TUNNEL, CLOSE) and exc is None:
            receiver.on_answer_end([])
            return
        # A reused connection that ends before a byte of the answer: the endpoint has most likely closed it before it
        # knew of the request. For a method that may run twice that is enough; for another one the kernel must know it.
        is_stale = (
            state == HEAD
            and not self._buffer
            and self.requests > 1
            and (self._method in IDEMPOTENT_METHODS or self._is_unheard())
        )
        if is_stale:
            self._pool.distrust_idle()
        detail = "" if exc is None else f": {exc}"
        self._pool.stats.resets += 1
        receiver.on_failure(ProxyError("endpoint", "reset", f"{self._pool.endpoint.key}{detail}", unprocessed=is_stale))

    def pause_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.pause_request()

    def resume_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.resume_request()

    # -- reading

    def _read(self, data: bytes) -> None:
        try:
            while data:
                receiver = self.receiver
                if receiver is None:
                    # RFC 9112 9.2: an answer that nobody asked for. Whom would the next one belong to?
                    self.shut()
                    return
                match self._state:
                    case 1:  # HEAD
                        data = self._read_head(data)
                    case 2:  # LENGTH
                        piece, data = data[: self._left], data[self._left :]
                        self._left -= len(piece)
                        receiver.on_answer_data(piece)
                        if not self._left and self._state == LENGTH:
                            self._end([], excess=data)
                            return
                    case 3:  # CHUNKS
                        assert self._chunks is not None
                        piece = self._chunks.feed(data)
                        if piece:
                            receiver.on_answer_data(piece)
                        if self._chunks.trailers is not None and self._state == CHUNKS:
                            self._end(self._chunks.trailers, excess=self._chunks.rest)
                        return
                    case _:
                        if self._state != GONE:
                            receiver.on_answer_data(data)
                        return
        except BadMessage as error:
            receiver = self.receiver
            self.reset()
            if receiver is not None:
                receiver.on_failure(ProxyError("endpoint", "bad-answer", f"{self._pool.endpoint.key}: {error.detail}"))

    def _read_head(self, data: bytes) -> bytes:
        """Read one head; return what comes after it. Keeps what is not whole yet."""
        data = self._buffer + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > MAX_HEAD_BYTES:
            if len(data) > MAX_HEAD_BYTES:
                raise BadMessage(502, "head too large")
            if has_bad_line_end(data):
                raise BadMessage(502, "bare CR or LF")
            self._buffer = data
            return b""
        response = read_response(data[:end], method=self._method, max_fields=MAX_FIELDS)
        self._buffer = b""
        rest = data[end:]
        receiver = self.receiver
        assert receiver is not None
        head = response.head
        if head.status < 200 and head.status != 101:
            receiver.on_interim(head)
            return rest
        if (head.status == 101 and self._upgrade is not None) or (
            self._upgrade == b"connect" and 200 <= head.status < 300
        ):
            self._state = TUNNEL
            receiver.on_answer_head(head, end=False)
            return rest
        if head.status == 101:
            raise BadMessage(502, "101 without a request for it")
        self._is_keep_alive = response.keep_alive
        if response.framing == NO_BODY:
            self._end_with_head(response.head, excess=rest)
            return b""
        if response.framing == BY_LENGTH and len(rest) == response.length and self._is_sent:
            if response.keep_alive:
                self._free()
            else:
                self.shut()
            receiver.on_answer(head, rest)
            return b""
        self._left = response.length
        self._state = {BY_LENGTH: LENGTH, BY_CHUNKS: CHUNKS, BY_CLOSE: CLOSE}[response.framing]
        self._chunks = ChunkedReader() if response.framing == BY_CHUNKS else None
        receiver.on_answer_head(head, end=False)
        return rest

    def _end_with_head(self, head: object, *, excess: bytes) -> None:
        receiver = self.receiver
        assert receiver is not None
        self._free(excess=excess)
        receiver.on_answer_head(head, end=True)  # type: ignore[arg-type]

    def _end(self, trailers: Fields, *, excess: bytes) -> None:
        receiver = self.receiver
        assert receiver is not None
        self._free(excess=excess)
        receiver.on_answer_end(trailers)

    def _free(self, *, excess: bytes = b"") -> None:
        """The answer is all here: back to the pool, unless something speaks against another request."""
        self.receiver = None
        self._state = IDLE
        self._chunks = None
        if excess or not self._is_keep_alive or not self._is_sent or self._pool.is_spent(self):
            self.shut()
        else:
            if self._is_paused:
                self.resume_answer()
            self._pool.release(self)

    def _is_unheard(self) -> bool:
        """Whether the endpoint's kernel has acknowledged no byte of this request: nobody can have read it."""
        sock = self._transport.get_extra_info("socket")
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        except (OSError, ValueError):
            return False
        if len(info) < BYTES_ACKED.size + BYTES_ACKED_AT:
            return False
        acked: int = BYTES_ACKED.unpack_from(info, BYTES_ACKED_AT)[0]
        return acked <= self._sent_before + 1  # the SYN counts as one

    def _lose(self) -> None:
        self.receiver = None
        self._state = GONE
        self._pool.forget(self)
