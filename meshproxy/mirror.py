"""A copy of a request, sent to another cluster, whose answer nobody waits for.

It bears what the original bears, never slows it down, and is given up where its endpoint is slower than the client: a
copy with holes would be worse than none.
"""

from __future__ import annotations

from meshproxy.cluster import Cluster, Endpoint
from meshproxy.message import Fields, ProxyError, RequestHead, ResponseHead
from meshproxy.parts import Pool, UpstreamStream
from meshproxy.shell import Shell, Timed
from meshproxy.upstream import pool_of

_KEPT_BYTES = 64 * 1024
_LIFE_S = 15.0


class Mirror:
    """AnswerReceiver of the copy."""

    __slots__ = (
        "_cluster",
        "_endpoint",
        "_head",
        "_is_ended",
        "_kept",
        "_kept_bytes",
        "_pool",
        "_shell",
        "_status",
        "_stream",
        "_trailers",
        "due_tick",
        "slot",
    )

    answer_paused = False

    def __init__(self, cluster: Cluster, head: RequestHead, shell: Shell) -> None:
        self._cluster = cluster
        self._shell = shell
        self._head = head
        self._stream: UpstreamStream | None = None
        self._pool: Pool | None = None
        self._endpoint: Endpoint | None = None
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._is_ended = False
        self._status = 0
        self._trailers: Fields = []
        self.due_tick = 0
        self.slot: set[Timed] | None = None

    def __repr__(self) -> str:
        return f"<Mirror to {self._endpoint!r} kept={self._kept_bytes}>"

    def start(self, key: int | None, *, end: bool) -> None:
        cluster = self._cluster
        self._is_ended = end
        if cluster.active_requests >= cluster.config.circuit_breaker.max_requests:
            return
        endpoint = self._endpoint = cluster.pick(key)
        if endpoint is None:
            return
        self._pool = pool_of(endpoint, cluster, self._shell)
        try:
            stream = self._pool.open(self)
        except ProxyError:
            self._endpoint = None
            return
        cluster.active_requests += 1
        endpoint.active += 1
        self._shell.wheel.put(self, _LIFE_S)
        if stream is not None:
            self.on_upstream(stream)

    def send_data(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.send_data(data)
        elif self._endpoint is not None:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes > _KEPT_BYTES:
                self.give_up()

    def send_end(self, trailers: Fields) -> None:
        self._is_ended = True
        self._trailers = trailers
        if self._stream is not None:
            self._stream.send_end(trailers)

    def give_up(self) -> None:
        """The original's client has gone, or the copy's endpoint is too slow."""
        if self._endpoint is None:
            return
        if self._stream is not None:
            self._stream.reset()
        elif self._pool is not None:
            self._pool.cancel(self)
        self._end()

    def on_due(self) -> None:
        self.give_up()

    # -- AnswerReceiver

    def on_upstream(self, stream: UpstreamStream) -> None:
        self._stream = stream
        is_whole = self._is_ended and not self._kept and not self._trailers
        stream.send_request(self._head, end=is_whole)
        for data in self._kept:
            stream.send_data(data)
        self._kept = []
        if self._is_ended and not is_whole:
            stream.send_end(self._trailers)

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_answer_head(self, head: ResponseHead, *, end: bool) -> None:
        self._status = head.status
        if end:
            self._end()

    def on_answer_data(self, data: bytes) -> None:
        pass

    def on_answer_end(self, trailers: Fields) -> None:  # noqa: ARG002
        self._end()

    def on_answer(self, head: ResponseHead, data: bytes) -> None:  # noqa: ARG002
        self._end()

    def on_failure(self, error: ProxyError) -> None:  # noqa: ARG002
        self._end()

    def pause_request(self) -> None:
        self._shell.loop.call_soon(self.give_up)

    def resume_request(self) -> None:
        pass

    def _end(self) -> None:
        if self._endpoint is None:
            return
        self._endpoint.active -= 1
        self._cluster.active_requests -= 1
        self._endpoint = None
        self._stream = None
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None
