"""HTTP/2 to an endpoint: many requests as streams of few connections. Hot.

The pool gives a request a stream of the first connection that has room, and connects again when none has: a peer's
MAX_CONCURRENT_STREAMS is kept. A connection is used once its SETTINGS have come, so that its limits are known. After
GOAWAY it gets no new request; what the endpoint says it has not looked at fails as unprocessed and may be repeated.
An answer that comes whole in one piece is told in one call, which spares two.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from meshproxy.cluster import Cluster, Endpoint
from meshproxy.http2_transport import Http2Protocol
from meshproxy.message import Fields, ProxyError, RequestHead, ResponseHead
from meshproxy.metrics import ClusterStats
from meshproxy.parts import AnswerReceiver
from meshproxy.shell import Shell
from meshproxy.wire.http2 import Connection
from meshproxy.wire.http2_frames import Code
from meshproxy.wire.http2_heads import Block, encode_request
from meshproxy.wire.http2_stream import Stream

# As upstream_http1.py: Envoy's limits of an answer's head.
MAX_HEAD_BYTES: Final = 60 * 1024
MAX_FIELDS: Final = 100
LAST_STREAM_ID: Final = 2**31 - 1000  # then another connection is due (RFC 9113 5.1.1)


_NONE: Final[Fields] = []


class Direct(Protocol):
    """Who takes an answer as its blocks."""

    def on_whole(self, block: Block, data: bytes, trailers: Fields, /) -> bool:
        """The whole answer. False: it is to be told to the receiver, which may be another one now."""


class ClientStream(Stream):
    """One attempt: the UpstreamStream of its receiver (parts.py)."""

    __slots__ = ("_block", "_data", "_reads", "direct", "protocol", "receiver")

    def __init__(self, protocol: ClientConnection, receiver: AnswerReceiver) -> None:
        # As Stream.__init__, which would cost 0.3 us more as a call.
        self.connection = connection = protocol.connection
        self.is_open = self.local_open = self.remote_open = True
        self.has_head = self.without_body = self.is_held = False
        self.length_left = self.pending = self.trailers = None
        self.send_left = connection.peer_window_bytes
        self.receive_left = connection.window_bytes
        self.seconds_blocked = 0
        self.protocol = protocol
        self.receiver = receiver
        self.direct: Direct | None = None  # takes a whole answer without a head's being made of it: passage.py
        self._block: Block | None = None  # held back: more of the answer may be in what is read now
        self._data: bytes | None = None
        # What the connection had read when this began, if it has carried others: see on_reset.
        self._reads = protocol.reads if protocol.requests > 1 else -1

    # -- Stream: what the endpoint does

    def on_head(self, block: Block, *, end: bool) -> None:
        if end:
            direct = self.direct
            if direct is None or not direct.on_whole(block, b"", _NONE):
                self.receiver.on_answer_head(block.response_head(end=True), end=True)
            if self.is_open:
                self._stop_request()
        elif block.status < 200:
            self.receiver.on_interim(block.response_head(end=False))
        else:
            self._block = block
            self.protocol.held.append(self)

    def on_whole_answer(self, block: Block, data: bytes) -> None:
        direct = self.direct
        if direct is None or not direct.on_whole(block, data, _NONE):
            self.receiver.on_answer(block.response_head(end=False), data)
        if self.is_open:
            self._stop_request()

    def on_data(self, data: bytes) -> None:
        if self._block is not None:
            if self._data is None:
                self._data = data
                return
            self.settle()
            if not self.is_open and not self.remote_open:
                return
        self.receiver.on_answer_data(data)

    def on_end(self, trailers: Fields) -> None:
        block = self._block
        direct = self.direct
        if block is not None and direct is not None and direct.on_whole(block, self._data or b"", trailers):
            self._block = None
        elif block is not None and not trailers:
            self._block = None
            self.receiver.on_answer(block.response_head(end=False), self._data or b"")
        else:
            self.settle()
            self.receiver.on_answer_end(trailers)
        if self.is_open:
            self._stop_request()

    def on_reset(self, code: int, *, unprocessed: bool, is_fault: bool, detail: str) -> None:  # noqa: ARG002
        protocol = self.protocol
        self.settle()
        protocol.pool.stats.resets += 1
        if unprocessed:
            error = ProxyError("endpoint", "refused-stream", detail, unprocessed=True)
        else:
            # The endpoint closed a connection it had used before, and has not said a word since: it never looked.
            stale = protocol.is_lost and not is_fault and self._reads == protocol.reads
            error = ProxyError("endpoint", "bad-answer" if is_fault else "reset", detail, unprocessed=stale)
        self.receiver.on_failure(error)

    def on_blocked(self, *, is_blocked: bool) -> None:
        if is_blocked:
            self.receiver.pause_request()
        else:
            self.receiver.resume_request()

    def settle(self) -> None:
        """Nothing more came with the head: tell what there is."""
        block, data = self._block, self._data
        if block is not None:
            self._block = self._data = None
            self.receiver.on_answer_head(block.response_head(end=False), end=False)
            if data is not None:
                self.receiver.on_answer_data(data)

    def _stop_request(self) -> None:
        """The answer is complete: what is left of the request is of no use."""
        if self.is_open and self.local_open:
            self.reset_with(Code.NO_ERROR)

    # -- UpstreamStream: what the exchange does

    def send_request(self, head: RequestHead, *, end: bool) -> None:
        self.without_body = head.method == b"HEAD"
        self.write_head(encode_request(head), end=end)
        self.protocol.touch()

    def send_data(self, data: bytes) -> None:
        if self.local_open:
            self.write(data)
            self.protocol.touch()

    def send_end(self, trailers: Fields) -> None:
        if self.local_open:
            self.finish(trailers)
            self.protocol.touch()

    def reset(self, code: Code = Code.CANCEL) -> None:
        """Give the attempt up. The receiver hears nothing more."""
        self.receiver = NOBODY
        self._block = None
        self.reset_with(code)

    def reset_with(self, code: Code) -> None:
        super().reset(code)
        self.protocol.touch()

    def pause_answer(self) -> None:
        self.hold()

    def resume_answer(self) -> None:
        self.release()
        self.protocol.touch()


class _Nobody:
    """Receives what comes for an attempt that was given up in the middle of its own event."""

    answer_paused = False

    def on_upstream(self, stream: object, /) -> None: ...

    def on_interim(self, head: ResponseHead, /) -> None: ...

    def on_answer_head(self, head: ResponseHead, /, *, end: bool) -> None: ...

    def on_answer_data(self, data: bytes, /) -> None: ...

    def on_answer_end(self, trailers: Fields, /) -> None: ...

    def on_answer(self, head: ResponseHead, data: bytes, /) -> None: ...

    def on_failure(self, error: ProxyError, /) -> None: ...

    def pause_request(self) -> None: ...

    def resume_request(self) -> None: ...


NOBODY: Final = _Nobody()


class ClientConnection(Http2Protocol):
    """One connection to an endpoint."""

    __slots__ = ("age_s", "is_lost", "is_ready", "max_requests", "pool", "requests")

    def __init__(self, pool: Http2Pool) -> None:
        super().__init__(pool.shell)
        self.pool = pool
        self.connection = Connection(self, is_server=False, max_head_bytes=MAX_HEAD_BYTES, max_fields=MAX_FIELDS)
        self.connection.waiting = pool.waiting
        self.is_ready = False  # settings have come
        self.is_lost = False
        self.requests = 0
        self.max_requests = pool.cluster.config.max_requests_per_connection  # 0: never reached
        self.age_s = 0.0

    def open(self, receiver: AnswerReceiver) -> ClientStream:
        """A stream, where the connection has room."""
        self.requests += 1
        stream = ClientStream(self, receiver)
        self.connection.open(stream)
        if self.requests == self.max_requests or stream.id > LAST_STREAM_ID:
            self.retire()
        return stream

    def retire(self) -> None:
        """No new requests; close after the last one."""
        self.connection.is_draining = True
        self._close_if_done()

    # -- http2.Owner

    def make_stream(self) -> Stream:
        raise AssertionError("a server opens no streams")

    def on_settings(self) -> None:
        if not self.is_ready:
            self.is_ready = True
            self.pool.on_ready(self)
        else:
            self.pool.on_room()

    def on_goaway(self) -> None:
        self._close_if_done()

    def on_forgotten(self, _stream: Stream, /) -> None:
        if self.connection.is_draining:
            self._close_if_done()
        elif self.pool.waiting:
            self.pool.on_room()

    # -- Http2Protocol

    def on_second(self, idle_s: float) -> None:
        config = self.pool.cluster.config
        self.age_s += 1
        if not self.is_ready and self.age_s > config.connect_timeout_s:
            self.transport.abort()  # speaks no HTTP/2
        elif idle_s > config.idle_timeout_s or (
            config.max_connection_age_s and self.age_s >= config.max_connection_age_s
        ):
            self.retire()

    def on_stalled(self, stream: Stream) -> None:
        assert isinstance(stream, ClientStream)
        receiver = stream.receiver
        stream.reset()
        receiver.on_failure(ProxyError("endpoint", "idle-timeout", "the endpoint takes nothing of the request"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        super().connection_lost(exc)

    def on_gone(self) -> None:
        self.pool.forget(self)

    def _close_if_done(self) -> None:
        if not self.connection.streams and not self.is_lost:
            self.flush()
            self.transport.close()


class Http2Pool:
    """The connections to one endpoint (parts.Pool)."""

    __slots__ = ("_connecting", "_connections", "_is_closed", "cluster", "endpoint", "shell", "stats", "waiting")

    def __init__(self, endpoint: Endpoint, cluster: Cluster, shell: Shell) -> None:
        self.endpoint = endpoint
        self.cluster = cluster
        self.shell = shell
        self.stats: ClusterStats = cluster.stats
        self.waiting: deque[AnswerReceiver] = deque()
        self._connections: list[ClientConnection] = []
        self._connecting = 0  # those whose settings have not come, too
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Http2Pool {self.endpoint.key} {self._connections} waiting={len(self.waiting)}>"

    def open_now(self, receiver: AnswerReceiver) -> ClientStream | None:
        """A stream, if there is one without waiting."""
        if not self.waiting:
            for connection in self._connections:
                wire = connection.connection
                # Connection.has_room, but for what open() looks at.
                if len(wire.streams) < wire.peer_max_streams and not wire.is_draining:
                    self.stats.connections_reused += 1
                    return connection.open(receiver)
        return None

    def open(self, receiver: AnswerReceiver) -> ClientStream | None:
        stream = self.open_now(receiver)
        if stream is not None:
            return stream
        if self._is_closed:
            raise self._left()
        cluster = self.cluster
        if cluster.pending_requests >= cluster.config.circuit_breaker.max_pending_requests:
            self.stats.overflow_pending += 1
            raise ProxyError("proxy", "overflow", "pending requests", unprocessed=True)
        self.waiting.append(receiver)
        cluster.pending_requests += 1
        self._connect_if_needed()
        return None

    def cancel(self, receiver: AnswerReceiver) -> None:
        if receiver in self.waiting:
            self.waiting.remove(receiver)
            self.cluster.pending_requests -= 1

    def close(self) -> None:
        self._is_closed = True
        for connection in tuple(self._connections):
            connection.retire()
        # Later: who is told picks another endpoint, and the cluster that calls us is in the middle of a change.
        self.shell.loop.call_soon(self._fail_waiting, self._left())

    # -- called by the connections

    def on_ready(self, connection: ClientConnection) -> None:
        self._connecting -= 1
        if self._is_closed:
            connection.retire()
            return
        self._connections.append(connection)
        self.on_room()

    def on_room(self) -> None:
        """Somebody who waits may be served."""
        for connection in self._connections:
            while self.waiting and connection.connection.has_room:
                receiver = self._next_waiting()
                receiver.on_upstream(connection.open(receiver))
        self._connect_if_needed()

    def forget(self, connection: ClientConnection) -> None:
        """The connection is gone."""
        self.cluster.connections -= 1
        if connection in self._connections:
            self._connections.remove(connection)
        elif not connection.is_ready:
            self._connecting -= 1
            self.stats.connect_failures += 1
            detail = f"{self.endpoint.key}: closed before any SETTINGS"
            self._fail_waiting(ProxyError("endpoint", "connect-failure", detail, unprocessed=True))
        self._connect_if_needed()

    # -- connecting

    def _left(self) -> ProxyError:
        return ProxyError("endpoint", "connect-failure", f"{self.endpoint.key} has left", unprocessed=True)

    def _next_waiting(self) -> AnswerReceiver:
        self.cluster.pending_requests -= 1
        return self.waiting.popleft()

    def _fail_waiting(self, error: ProxyError) -> None:
        for _ in range(len(self.waiting)):
            self._next_waiting().on_failure(error)

    def _connect_if_needed(self) -> None:
        """One connection at a time: the next one only when that is known to be too small."""
        if not self.waiting or self._connecting or self._is_closed:
            return
        cluster = self.cluster
        # As in Envoy, an endpoint without any connection gets one beyond the limit, or it would never be asked.
        if cluster.connections >= cluster.config.circuit_breaker.max_connections and self._connections:
            self.stats.overflow_connections += 1
            return
        self._connecting += 1
        cluster.connections += 1
        self.shell.tasks.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self.cluster.config.connect_timeout_s):
                await self.shell.loop.create_connection(
                    lambda: ClientConnection(self), self.endpoint.address, self.endpoint.port
                )
        except OSError as error:  # TimeoutError is one
            self._connecting -= 1
            self.cluster.connections -= 1
            if isinstance(error, TimeoutError):
                self.stats.connect_timeouts += 1
                failure = ProxyError("endpoint", "connect-timeout", self.endpoint.key, unprocessed=True)
            else:
                self.stats.connect_failures += 1
                failure = ProxyError("endpoint", "connect-failure", f"{self.endpoint.key}: {error}", unprocessed=True)
            self._fail_waiting(failure)
            self._connect_if_needed()
            return
        self.stats.connections += 1
        self.stats.connections_http2 += 1
