"""The client's side of HTTP/2: each stream is the Downstream of an exchange (parts.py). Hot.

A request's head gets here what says where it came from: x-forwarded-for and -proto, x-request-id, traceparent. What
gRPC's clients say of their deadline bounds the exchange. Draining: GOAWAY, then another a second later with the last
stream that was taken, then the end of the last stream closes the connection (RFC 9113 6.8).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from meshproxy.exchange import Exchange
from meshproxy.http2_transport import Http2Protocol
from meshproxy.identity import forwarded_for, forwarded_proto
from meshproxy.listener import ListenerRuntime
from meshproxy.message import Fields, ProxyError, RequestHead, ResponseHead
from meshproxy.wire.hpack import encode_ids
from meshproxy.wire.http2 import Connection
from meshproxy.wire.http2_frames import Code
from meshproxy.wire.http2_heads import Block, encode_response
from meshproxy.wire.http2_stream import Stream

if TYPE_CHECKING:
    from meshproxy.metrics import ListenerStats

# PROTOCOL-HTTP2.md of gRPC: at most eight digits and a unit.
_GRPC_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_ABORT_CODES: Final = {"timeout": Code.CANCEL, "idle-timeout": Code.CANCEL, "refused-stream": Code.REFUSED_STREAM}


def grpc_timeout_s(value: bytes) -> float:
    """The seconds that a grpc-timeout allows; 0 where it is malformed: then there is none."""
    found = _GRPC_TIMEOUT.fullmatch(value)
    return 0.0 if found is None else max(int(found[1]) * _UNIT_S[found[2]], 0.001)


class ServerStream(Stream):
    """One request of a client, and the way of its answer."""

    __slots__ = ("exchange", "protocol")

    http2 = True

    def __init__(self, protocol: ServerConnection) -> None:
        super().__init__(protocol.connection)
        self.protocol = protocol
        self.exchange: Exchange | None = None

    @property
    def peer_address(self) -> str:
        return self.protocol.peer_address

    @property
    def listener(self) -> ListenerRuntime:
        return self.protocol.listener

    # -- Stream: what the client does

    def on_head(self, block: Block, *, end: bool) -> None:
        self.begin(block.full(), end=end)

    def begin(self, block: Block, *, end: bool) -> None:
        """Make the request's exchange."""
        protocol = self.protocol
        if block.method == b"CONNECT" and not protocol.listener.config.allow_connect:
            protocol.stats.refuse("bad-request")
            self.send_head(ResponseHead(405, [], content_length=0), end=True)
            return
        head = block.request_head(end=end)
        protocol.identify(head, block)
        self.exchange = exchange = Exchange(self, protocol.listener, head)
        deadline = block.aside.get(b"grpc-timeout") if block.aside else None
        if deadline is None:
            exchange.start(end=end)
        else:
            exchange.start(end=end, limit_s=grpc_timeout_s(deadline))

    def on_data(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.on_request_data(data)

    def on_end(self, trailers: Fields) -> None:
        if self.exchange is not None:
            self.exchange.on_request_end(trailers)

    def on_reset(self, code: int, *, unprocessed: bool, is_fault: bool, detail: str) -> None:  # noqa: ARG002
        if self.exchange is not None:
            self.exchange.on_client_gone()

    def on_blocked(self, *, is_blocked: bool) -> None:
        if self.exchange is None:
            return
        if is_blocked:
            self.exchange.pause_answer()
        else:
            self.exchange.resume_answer()

    # -- Downstream: what the exchange does

    def send_interim(self, head: ResponseHead) -> None:
        if self.is_open:
            self.write_head(encode_response(head), end=False)
            self.protocol.touch()

    def send_head(self, head: ResponseHead, *, end: bool) -> None:
        if self.is_open:
            self.write_head(encode_response(head), end=end)
            self.protocol.touch()

    def send_data(self, data: bytes) -> None:
        if self.is_open:
            self.write(data)
            self.protocol.touch()

    def send_end(self, trailers: Fields) -> None:
        if self.is_open:
            self.finish(trailers)
            self.protocol.touch()

    def send_answer(self, head: ResponseHead, data: bytes) -> None:
        if self.is_open:
            if data:
                self.write_head(encode_response(head), end=False)
                self.write_all(data)
            else:
                self.write_head(encode_response(head), end=True)
            self.protocol.touch()

    def abort(self, error: ProxyError) -> None:
        self.reset(_ABORT_CODES.get(error.kind, Code.INTERNAL_ERROR))
        self.protocol.touch()

    def pause_request(self) -> None:
        self.hold()

    def resume_request(self) -> None:
        self.release()
        self.protocol.touch()


class ServerConnection(Http2Protocol):
    """A client's connection; its first bytes, preface included, are to come to `data_received`."""

    __slots__ = (
        "_forget",
        "_forwarded_mode",
        "_is_gone",
        "_own_bytes",
        "_own_fields",
        "listener",
        "peer_address",
        "stats",
    )

    stats: ListenerStats
    is_gathering = True

    def __init__(
        self, listener: ListenerRuntime, transport: asyncio.Transport, forget: Callable[[object], None]
    ) -> None:
        super().__init__(listener.shell)
        self._forget = forget
        config = listener.config
        self.listener = listener
        self.stats = listener.stats
        peer = transport.get_extra_info("peername")
        self.peer_address = peer[0] if isinstance(peer, tuple) else ""
        self.blocked_limit_s = config.stream_idle_s
        self.head_limit_s = config.head_timeout_s
        self._forwarded_mode = config.forwarded_for
        self._own_fields: Fields = []
        self._is_gone = False
        self.connection = Connection(
            self,
            is_server=True,
            max_streams=config.max_concurrent_streams,
            max_head_bytes=config.max_head_bytes,
            max_fields=config.max_headers,
        )
        if self._forwarded_mode != "keep" and self.peer_address:
            self._own_fields = [(b"x-forwarded-for", self.peer_address.encode()), (b"x-forwarded-proto", b"http")]
        self._own_bytes = encode_ids(self._own_fields) + b"\0\x0btraceparent\x3700-"
        self.connection_made(transport)

    def identify(self, head: RequestHead, block: Block) -> None:
        """Say where the request came from."""
        head.added = self._identity_of(block)

    def identity_bytes(self, block: Block) -> bytes:
        """The same, as it is sent. 0.4 us where the client said nothing of it."""
        if block.aside:
            return encode_ids(self._identity_of(block))
        token = self.shell.randomness.token(80)
        listener = self.listener
        flags = b"-01" if listener.config.traced_percent and listener.starts_sampled() else b"-00"
        trace = self._own_bytes + token[:32] + b"-" + token[32:48] + flags
        return trace if block.has_request_id else trace + b"\0\x0cx-request-id\x20" + token[48:]

    def _identity_of(self, block: Block) -> Fields:
        randomness = self.shell.randomness
        aside = block.aside
        if not aside:
            added = [
                *self._own_fields,
                (b"traceparent", randomness.traceparent(None, sampled=self.listener.starts_sampled())),
            ]
        else:
            mode = self._forwarded_mode
            added = [
                (
                    b"traceparent",
                    randomness.traceparent(aside.get(b"traceparent"), sampled=self.listener.starts_sampled()),
                )
            ]
            addresses = forwarded_for(aside.get(b"x-forwarded-for"), self.peer_address.encode(), mode=mode)
            if addresses:
                added.append((b"x-forwarded-for", addresses))
            added.append((b"x-forwarded-proto", forwarded_proto(aside.get(b"x-forwarded-proto"), b"http", mode=mode)))
            deadline = aside.get(b"grpc-timeout")
            if deadline is not None:
                added.append((b"grpc-timeout", deadline))
        if not block.has_request_id:
            added.append((b"x-request-id", randomness.token(32)))
        return added

    def drain(self) -> None:
        """Let the requests that are here end, take no others."""
        self.connection.drain()
        self.touch()

    # -- http2.Owner

    def make_stream(self) -> Stream:
        return ServerStream(self)

    def on_settings(self) -> None:
        pass

    def on_goaway(self) -> None:
        self._close_if_done()

    def on_forgotten(self, _stream: Stream, /) -> None:
        if self.connection.is_draining:
            self._close_if_done()

    # -- Http2Protocol

    def on_second(self, idle_s: float) -> None:
        connection = self.connection
        if connection.is_draining:
            connection.finish_drain()
            self._close_if_done()
        elif self.listener.is_draining or idle_s > self.listener.config.idle_timeout_s:
            connection.drain()

    def on_stalled(self, stream: Stream) -> None:
        stream.reset(Code.CANCEL)
        stream.on_reset(Code.CANCEL, unprocessed=False, is_fault=False, detail="the client takes nothing")

    def on_gone(self) -> None:
        self._is_gone = True
        self._forget(self)

    def _close_if_done(self) -> None:
        connection = self.connection
        # Before the second GOAWAY a request may still be under way.
        is_final = connection.goaway_id != 2**31 - 1
        if is_final and not connection.streams and not self._is_gone and connection.fault is None:
            self.flush()
            self.transport.close()
