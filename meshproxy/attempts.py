"""The attempts of one exchange: an endpoint picked and asked, asked again within the budget, hedged, given up.

The half of an exchange that looks to the endpoints; exchange.py, built upon it, is the half that looks to the client.
Whether an attempt is repeated is retry.py's decision, and where the next one goes is the cluster's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from meshproxy.cluster import Cluster, Endpoint
from meshproxy.config import Forward
from meshproxy.hedge import Hedge
from meshproxy.listener import ListenerRuntime
from meshproxy.message import ErrorKind, Fields, ProxyError, RequestHead, ResponseHead
from meshproxy.outlier import status_of_grpc
from meshproxy.parts import Downstream, UpstreamStream
from meshproxy.retry import (
    GAVE_UP_FIELD,
    back_off_s,
    decide,
    decide_hedge,
    is_free,
    retry_after_s,
    return_budget,
    take_budget,
)
from meshproxy.shell import Timed, ticks
from meshproxy.upstream import pool_of

if TYPE_CHECKING:
    from meshproxy.exchange import Exchange

# What a request's body may grow to and still be sent twice; also what is kept while no connection is there to take it.
REPLAY_BYTES: Final = 64 * 1024
# A Retry-After beyond this is not waited for.
MAX_RETRY_AFTER_S: Final = 5.0
# A retry beyond the budget waits for its turn where another endpoint has not failed: the first failures of one that is
# sick come all at once, before it is ejected, and need not reach a client.
MAX_BUDGET_WAIT_S: Final = 0.25
BUDGET_WAIT_STEP_S: Final = 0.005


class Attempts:
    """AnswerReceiver of its attempts, one after the other; what it has reset calls no more. Not used alone."""

    __slots__ = (
        "_active_tick",
        "_attempt_at",
        "_back_off",
        "_body",
        "_body_bytes",
        "_deadline_tick",
        "_first_byte_at",
        "_forward",
        "_hedge",
        "_holds_retry",
        "_idle_ticks",
        "_is_answering",
        "_is_replayable",
        "_is_trying",
        "_key",
        "_request_ended",
        "_stream",
        "_trailers",
        "_try_tick",
        "_wheel",
        "answer_paused",
        "attempts",
        "cluster",
        "downstream",
        "due_tick",
        "endpoint",
        "head",
        "is_done",
        "listener",
        "slot",
        "started_at",
    )

    cluster: Cluster
    _forward: Forward

    def __init__(self, downstream: Downstream, listener: ListenerRuntime, head: RequestHead) -> None:
        self.downstream = downstream
        self.listener = listener
        self.head = head
        self.endpoint: Endpoint | None = None  # of the running attempt, or of the last one
        self.attempts = 0
        self.is_done = False
        self.started_at = 0.0
        self.answer_paused = False
        self.due_tick = 0
        self.slot: set[Timed] | None = None
        self._wheel = listener.shell.wheel
        self._stream: UpstreamStream | None = None
        self._attempt_at = 0.0
        self._first_byte_at = 0.0
        self._body: list[bytes] | None = None
        self._body_bytes = 0
        self._trailers: Fields | None = None
        self._request_ended = False
        self._is_replayable = True
        self._is_answering = False
        self._is_trying = False
        self._holds_retry = False
        self._hedge: Hedge | None = None
        self._back_off: asyncio.TimerHandle | None = None
        self._key: int | None = None
        self._deadline_tick = 0
        self._try_tick = 0
        self._active_tick = 0
        self._idle_ticks = 0

    def _give_up(self, error: ProxyError) -> None:
        """No attempt is left: say so to the client."""
        raise NotImplementedError

    def on_due(self) -> None:
        """The wheel's: see which time is up."""
        raise NotImplementedError

    # -- called by the pool, the UpstreamStream and the hedge

    def on_upstream(self, stream: UpstreamStream) -> None:
        self._stream = stream
        if self.answer_paused:
            stream.pause_answer()
        self.replay(stream)
        if self._body_bytes > REPLAY_BYTES and self._is_replayable:
            self._is_replayable = False
            self._body = None
            self.downstream.resume_request()

    def on_failure(self, error: ProxyError) -> None:
        if self.is_done:
            return
        self._stream = None
        if self._hedge is not None:
            self._end_attempt(None, error)
            return  # the hedge may still answer
        retry = self._forward.retry
        replayable = self._is_replayable and not self._is_answering
        method, made = self.head.method, self.attempts
        is_wanted = decide(retry, method=method, attempts_made=made, error=error, replayable=replayable)
        may_retry = is_wanted and self._may_retry(error)
        self._end_attempt(None, error)
        if may_retry:
            self._repeat(error=error, retry_after=None)
        elif is_wanted and self._is_worth_waiting():
            self._wait_for_budget(error)
        else:
            self._give_up(error)

    def replay(self, stream: UpstreamStream) -> None:
        """Send what there is of the request."""
        body = self._body
        if body is None and not self._trailers:
            stream.send_request(self.head, end=self._request_ended)
            return
        stream.send_request(self.head, end=False)
        for data in body or ():
            stream.send_data(data)
        if self._request_ended:
            stream.send_end(self._trailers or [])

    def on_hedge_won(self, hedge: Hedge) -> None:
        """The hedge's attempt is the exchange's from here on."""
        self._hedge = None
        if self._is_trying:
            self._drop_stream()
            self._end_attempt(None, ProxyError("endpoint", "per-try-timeout"))
        self._is_trying = True
        self._stream = hedge.stream
        self.endpoint = hedge.endpoint
        self._attempt_at = hedge.started_at

    def on_hedge_failure(self, error: ProxyError) -> None:
        hedge = self._hedge
        if hedge is None:
            return
        self._hedge = None
        hedge.endpoint.active -= 1
        hedge.endpoint.report(None, error.kind, self.listener.shell.now() - hedge.started_at)
        if not self._is_trying:  # the first attempt has failed before
            self._give_up(error)

    # -- attempts

    def _attempt(self, avoid: Endpoint | None) -> None:
        self._back_off = None
        cluster = self.cluster
        endpoint = cluster.pick(self._key, avoid=avoid)
        if endpoint is None:
            cluster.stats.no_healthy_endpoint += 1
            self._give_up(ProxyError("proxy", "no-healthy-endpoint"))
            return
        shell = self.listener.shell
        self._attempt_at = shell.now() if self.attempts else self.started_at
        self.attempts += 1
        cluster.stats.attempts += 1
        pool = endpoint.pool
        if pool is None:
            pool = pool_of(endpoint, cluster, shell)
        try:
            stream = pool.open(self)
        except ProxyError as error:
            self._give_up(error)
            return
        self.endpoint = endpoint
        self._is_trying = True
        endpoint.active += 1
        if self._forward.retry.per_try_timeout_s:
            self._try_tick = self._wheel.tick + ticks(self._forward.retry.per_try_timeout_s)
            self._wind()
        if stream is not None:
            if self._body is None and not self.answer_paused and not self._trailers:
                self._stream = stream
                stream.send_request(self.head, end=self._request_ended)
            else:
                self.on_upstream(stream)

    def _is_retried(self, head: ResponseHead) -> bool:
        """Whether the attempt that is answered so has been given up for another one."""
        retry = self._forward.retry
        if not retry.retry_on or self._is_answering:
            return False
        value = head.get(b"grpc-status")
        grpc_status = None if value is None else grpc_status_of(value)
        if not decide(
            retry,
            method=self.head.method,
            attempts_made=self.attempts,
            status=head.status,
            grpc_status=grpc_status,
            replayable=self._is_replayable,
            gave_up=head.get(GAVE_UP_FIELD) is not None,
        ):
            return False
        may_retry = self._may_retry(None)
        if not may_retry and not self._is_worth_waiting():
            return False
        self._drop_hedge()
        self._drop_stream()
        self._end_attempt(head.status if grpc_status is None else status_of_grpc(grpc_status), None)
        if may_retry:
            said = head.get(b"retry-after")
            after_s = None if said is None else retry_after_s(said, date=head.get(b"date"))
            self._repeat(error=None, retry_after=after_s)
        else:
            self._wait_for_budget(ProxyError("proxy", "retry-budget"))
        return True

    def _may_retry(self, error: ProxyError | None) -> bool:
        if is_free(error):
            return True
        if self._holds_retry:  # the budget's share goes from the attempt that ends to the one that follows
            return_budget(self.cluster)
            self._holds_retry = False
        if not take_budget(self.cluster):
            self.cluster.stats.retry_overflow += 1
            return False
        self._holds_retry = True
        return True

    def _is_worth_waiting(self) -> bool:
        """Whether another endpoint would likely answer, so that a retry may wait for the budget."""
        failed = self.endpoint
        return any(e is not failed and e.is_available and not e.consecutive_5xx for e in self.cluster.endpoints)

    def _wait_for_budget(self, error: ProxyError) -> None:
        shell = self.listener.shell
        until = shell.now() + MAX_BUDGET_WAIT_S

        def ask() -> None:
            if take_budget(self.cluster):
                self._holds_retry = True
                self.cluster.stats.retries += 1
                self._attempt(self.endpoint)
            elif shell.now() < until:
                self._back_off = shell.loop.call_later(BUDGET_WAIT_STEP_S, ask)
            else:
                self._back_off = None
                self._give_up(error)

        self._back_off = shell.loop.call_later(BUDGET_WAIT_STEP_S, ask)

    def _repeat(self, *, error: ProxyError | None, retry_after: float | None) -> None:
        self.cluster.stats.retries += 1
        shell = self.listener.shell
        delay_s = 0.0
        if not is_free(error):
            if retry_after is not None:
                retry_after = min(retry_after, MAX_RETRY_AFTER_S)
            delay_s = back_off_s(self._forward.retry, self.attempts, shell.random, retry_after)
        # Never from inside a call of the pool or of the stream that has failed.
        self._back_off = shell.loop.call_later(delay_s, self._attempt, self.endpoint)

    def _start_hedge(self) -> None:
        retry, method = self._forward.retry, self.head.method
        if self._hedge is not None or not decide_hedge(
            retry, method=method, attempts_made=self.attempts, replayable=self._is_replayable
        ):
            return
        endpoint = self.cluster.pick(self._key, avoid=self.endpoint)
        if endpoint is None or not self._may_retry(None):
            return
        shell = self.listener.shell
        hedge = Hedge(cast("Exchange", self), endpoint, shell.now())
        try:
            hedge.start(pool_of(endpoint, self.cluster, shell))
        except ProxyError:
            return
        endpoint.active += 1
        self.attempts += 1
        self.cluster.stats.attempts += 1
        self.cluster.stats.hedges += 1
        self._hedge = hedge

    def _end_attempt(self, status: int | None, error: ProxyError | None) -> None:
        if not self._is_trying:
            return
        self._is_trying = False
        self._try_tick = 0
        endpoint = self.endpoint
        assert endpoint is not None
        endpoint.active -= 1
        if error is not None and error.unprocessed and error.kind == "reset":
            return  # a connection that had gone stale says nothing of its endpoint
        now = self.listener.shell.now()
        kind = None if error is None else error.kind
        endpoint.report(status, kind, (self._first_byte_at or now) - self._attempt_at, now=now)

    def _drop_stream(self) -> None:
        """The running attempt's stream calls no more."""
        stream = self._stream
        if stream is not None:
            self._stream = None
            stream.reset()
        elif self._is_trying and self.endpoint is not None and self.endpoint.pool is not None:
            self.endpoint.pool.cancel(self)

    def _drop_hedge(self) -> None:
        hedge = self._hedge
        if hedge is not None:
            self._hedge = None
            hedge.endpoint.active -= 1
            hedge.give_up()

    def _drop_attempts(self, kind: ErrorKind) -> None:
        if self._back_off is not None:
            self._back_off.cancel()
            self._back_off = None
        self._drop_hedge()
        self._drop_stream()
        self._end_attempt(None, ProxyError("client" if kind == "client-gone" else "endpoint", kind))

    def _wind(self) -> None:
        """Ask the wheel for the next moment that matters."""
        due = self._deadline_tick
        if self._idle_ticks:
            idle = self._active_tick + self._idle_ticks
            if not due or idle < due:
                due = idle
        if self._try_tick and (not due or self._try_tick < due):
            due = self._try_tick
        if due:
            self._wheel.put_at(self, due)


def grpc_status_of(value: bytes) -> int:
    """A decimal number; what is none counts as UNKNOWN."""
    return int(value) if value.isdigit() and len(value) < 4 else 2
