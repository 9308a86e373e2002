"""A second attempt beside a slow first one: whoever answers first carries the request on, the other is reset.

The exchange makes one when its per-try timeout comes and the route hedges; at most one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.cluster import Endpoint
from meshproxy.message import Fields, ProxyError, ResponseHead
from meshproxy.parts import Pool, UpstreamStream

if TYPE_CHECKING:
    from meshproxy.exchange import Exchange


class Hedge:
    """AnswerReceiver of the second attempt: passes on what it hears, from the moment it has won."""

    __slots__ = ("_exchange", "_has_won", "_pool", "endpoint", "started_at", "stream")

    def __init__(self, exchange: Exchange, endpoint: Endpoint, started_at: float) -> None:
        self._exchange = exchange
        self._pool: Pool | None = None
        self.endpoint = endpoint
        self.started_at = started_at
        self.stream: UpstreamStream | None = None
        self._has_won = False

    def __repr__(self) -> str:
        return f"<Hedge to {self.endpoint!r} won={self._has_won}>"

    @property
    def answer_paused(self) -> bool:
        return self._exchange.answer_paused

    def start(self, pool: Pool) -> None:
        """Raises ProxyError where the pool is full."""
        self._pool = pool
        stream = pool.open(self)
        if stream is not None:
            self.on_upstream(stream)

    def give_up(self) -> None:
        if self.stream is not None:
            self.stream.reset()
        elif self._pool is not None:
            self._pool.cancel(self)

    def on_upstream(self, stream: UpstreamStream) -> None:
        self.stream = stream
        self._exchange.replay(stream)

    def on_interim(self, head: ResponseHead) -> None:
        if self._has_won:
            self._exchange.on_interim(head)

    def on_answer_head(self, head: ResponseHead, *, end: bool) -> None:
        self._win()
        self._exchange.on_answer_head(head, end=end)

    def on_answer_data(self, data: bytes) -> None:
        self._exchange.on_answer_data(data)

    def on_answer_end(self, trailers: Fields) -> None:
        self._exchange.on_answer_end(trailers)

    def on_answer(self, head: ResponseHead, data: bytes) -> None:
        self._win()
        self._exchange.on_answer(head, data)

    def on_failure(self, error: ProxyError) -> None:
        if self._has_won:
            self._exchange.on_failure(error)
        else:
            self._exchange.on_hedge_failure(error)

    def pause_request(self) -> None:
        self._exchange.pause_request()

    def resume_request(self) -> None:
        self._exchange.resume_request()

    def _win(self) -> None:
        if not self._has_won:
            self._has_won = True
            self._exchange.on_hedge_won(self)
