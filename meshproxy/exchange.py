"""One request and its answer: from the route to the last byte, over one or more attempts.

A Downstream makes an Exchange for each request, calls `start`, then hands over the body. parts.py has the interfaces.
After `on_client_gone` or `abort` nobody calls the other any more. Hot: `start`, `_attempt`, `on_answer` and `_finish`
run once a request; the rest serves bodies in pieces and what goes wrong.
"""

from __future__ import annotations

from meshproxy.attempts import REPLAY_BYTES, Attempts, grpc_status_of
from meshproxy.config import Forward
from meshproxy.error_answer import error_answer
from meshproxy.exchange_record import record_of
from meshproxy.hash_key import hash_value
from meshproxy.listener import ListenerRuntime
from meshproxy.message import Fields, ProxyError, RequestHead, ResponseHead
from meshproxy.mirror import Mirror
from meshproxy.outlier import status_of_grpc
from meshproxy.parts import Downstream
from meshproxy.retry import GAVE_UP_FIELD, return_budget
from meshproxy.route_plan import RoutePlan
from meshproxy.shell import ticks
from meshproxy.wire.http1_fields import HTTP1


class Exchange(Attempts):
    """Also the AnswerReceiver of its attempts: they are attempts.py's, what becomes of their answers is told here."""

    __slots__ = (
        "_cookies",
        "_mirrors",
        "answer_bytes",
        "error",
        "grpc_status",
        "plan",
        "request_bytes",
        "status",
    )

    plan: RoutePlan

    def __init__(self, downstream: Downstream, listener: ListenerRuntime, head: RequestHead) -> None:
        super().__init__(downstream, listener, head)
        self.status = 0
        self.grpc_status: int | None = None
        self.error: ProxyError | None = None
        self.request_bytes = 0
        self.answer_bytes = 0
        self._mirrors: list[Mirror] | None = None
        self._cookies: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"<Exchange {self.head.method!r} {self.head.path!r} attempts={self.attempts} status={self.status}>"

    # -- called by the Downstream

    def start(self, *, end: bool, limit_s: float = 0) -> None:
        """Route and send the request. `end`: it has no body. `limit_s`: the client's own deadline (gRPC), from now."""
        listener = self.listener
        head = self.head
        shell = listener.shell
        self._request_ended = end
        self.started_at = shell.now()
        stats = listener.stats
        if self.downstream.http2:
            stats.requests_http2 += 1
        else:
            stats.requests_http1 += 1
        plan = listener.router.find(head)
        if plan is None:
            self._refuse(ProxyError("client", "no-route"))
            return
        self.plan = plan
        forward = plan.forward
        if forward is None:
            self._answer_directly(plan)
            return
        self._forward = forward
        name = plan.cluster or plan.pick_cluster(shell.random)
        cluster = listener.clusters.get(name)
        if cluster is None:
            self._refuse(ProxyError("proxy", "no-cluster", name), name)
            return
        if cluster.active_requests >= cluster.config.circuit_breaker.max_requests:
            cluster.stats.overflow_requests += 1
            self._refuse(ProxyError("proxy", "overflow", "requests"), name)
            return
        self.cluster = cluster
        cluster.active_requests += 1
        stats.requests_active += 1
        key = plan.key
        if key is not None:
            header = key.header
            if (
                header is not None
                and head.read_origin is HTTP1
                and len(found := HTTP1.values(head.origin, header)) == 1
            ):
                self._key = hash_value(found[0])
            elif key.makes_cookies:
                made = plan.find_key(head, self.downstream.peer_address, token=shell.randomness.token)
                self._key, self._cookies = made.hash, made.cookies
            else:
                self._key = plan.hash_of(head, self.downstream.peer_address)
        if plan.rewrites:
            authority, path = plan.target_of(head)
            head.retarget(authority=authority, path=path)
        if plan.request_edits is not None:
            head.fields = plan.request_edits.apply(head.fields)
        if forward.mirrors:
            self._start_mirrors(forward, end=end)
        idle_s = forward.idle_timeout_s
        self._idle_ticks = ticks(listener.config.stream_idle_s if idle_s is None else idle_s)
        self._active_tick = self._wheel.tick
        if limit_s:
            self._deadline_tick = self._wheel.tick + ticks(limit_s)
        if end:
            self._limit_answer()
        else:
            self._wind()
        self._attempt(None)

    def on_request_data(self, data: bytes) -> None:
        if self.is_done:
            return
        self.request_bytes += len(data)
        self._active_tick = self._wheel.tick
        if self._is_replayable:
            if self._body is None:
                self._body = []
            self._body.append(data)
            self._body_bytes += len(data)
            if self._body_bytes > REPLAY_BYTES:
                if self._stream is None:
                    self.downstream.pause_request()
                else:
                    self._is_replayable = False
                    self._body = None
        if self._mirrors is not None:
            for mirror in self._mirrors:
                mirror.send_data(data)
        if self._stream is not None:
            self._stream.send_data(data)
        if self._hedge is not None and self._hedge.stream is not None:
            self._hedge.stream.send_data(data)

    def on_request_end(self, trailers: Fields) -> None:
        if self.is_done:
            return
        self._request_ended = True
        self._trailers = trailers
        if self._mirrors is not None:
            for mirror in self._mirrors:
                mirror.send_end(trailers)
        self._limit_answer()
        if self._stream is not None:
            self._stream.send_end(trailers)
        if self._hedge is not None and self._hedge.stream is not None:
            self._hedge.stream.send_end(trailers)

    def on_client_gone(self) -> None:
        if self.is_done:
            return
        self.error = ProxyError("client", "client-gone")
        self._drop_attempts("client-gone")
        if self._mirrors is not None and not self._request_ended:
            for mirror in self._mirrors:
                mirror.give_up()
        self._finish(self.status if self._is_answering else 0)

    def pause_answer(self) -> None:
        self.answer_paused = True
        if self._stream is not None:
            self._stream.pause_answer()

    def resume_answer(self) -> None:
        self.answer_paused = False
        self._active_tick = self._wheel.tick
        if self._stream is not None:
            self._stream.resume_answer()

    # -- called by the UpstreamStream

    def on_interim(self, head: ResponseHead) -> None:
        if not self._is_answering:
            self.downstream.send_interim(head)

    def on_answer_head(self, head: ResponseHead, *, end: bool) -> None:
        if end:
            self._stream = None
        if (head.status >= 400 or end) and self._is_retried(head):
            return
        self._take_answer(head.status)
        self._first_byte_at = self.listener.shell.now()
        head = self._edited(head)
        if end:
            self._succeed()
            self.downstream.send_head(head, end=True)
        else:
            self.downstream.send_head(head, end=False)

    def on_answer_data(self, data: bytes) -> None:
        self.answer_bytes += len(data)
        self._active_tick = self._wheel.tick
        self.downstream.send_data(data)

    def on_answer_end(self, trailers: Fields) -> None:
        for name, value in trailers:
            if name == b"grpc-status":
                self.grpc_status = grpc_status_of(value)
        self._succeed()
        self.downstream.send_end(trailers)

    def on_answer(self, head: ResponseHead, data: bytes) -> None:
        # What has answered whole carries somebody else's request already: it must not be reset.
        self._stream = None
        status = head.status
        if status >= 400 and self._is_retried(head):
            return
        self._is_answering = True
        self.status = status
        if self._hedge is not None:
            self._drop_hedge()
        self.answer_bytes = len(data)
        if (
            status >= 400
            or self._cookies
            or self.plan.response_edits is not None
            or self.listener.config.server_header is not None
        ):
            head = self._edited(head)
        self._succeed()
        self.downstream.send_answer(head, data)

    def pause_request(self) -> None:
        self.downstream.pause_request()

    def resume_request(self) -> None:
        self.downstream.resume_request()

    # -- called by the wheel

    def on_due(self) -> None:
        tick = self._wheel.tick
        if self._deadline_tick and tick >= self._deadline_tick:
            self.cluster.stats.timeouts += 1
            self._time_out(ProxyError("endpoint", "timeout"))
        elif self._try_tick and tick >= self._try_tick and not self._is_answering:
            self._try_tick = 0
            self.cluster.stats.per_try_timeouts += 1
            if self._forward.retry.hedge_on_per_try_timeout:
                self._start_hedge()
                self._wind()
            else:
                self._drop_stream()
                self._wind()
                self.on_failure(ProxyError("endpoint", "per-try-timeout"))
        elif self._idle_ticks and tick - self._active_tick >= self._idle_ticks:
            self._time_out(ProxyError("endpoint", "idle-timeout"))
        else:
            self._wind()

    # -- the answer

    def _start_mirrors(self, forward: Forward, *, end: bool) -> None:
        shell = self.listener.shell
        self._mirrors = []
        for mirror in forward.mirrors:
            cluster = self.listener.clusters.get(mirror.cluster)
            if cluster is not None and shell.random() * 100 < mirror.percent:
                cluster.stats.mirrors += 1
                copy = Mirror(cluster, self.head.copy(), shell)
                self._mirrors.append(copy)
                copy.start(self._key, end=end)

    def _limit_answer(self) -> None:
        """The request is all here: from now on the route's timeout runs, as in Envoy."""
        timeout_s = self._forward.timeout_s
        if timeout_s:
            due = self._wheel.tick + ticks(timeout_s)
            if not self._deadline_tick or due < self._deadline_tick:
                self._deadline_tick = due
        self._wind()

    def _time_out(self, error: ProxyError) -> None:
        self._drop_attempts(error.kind)
        self._give_up(error)

    def _edited(self, head: ResponseHead) -> ResponseHead:
        """The head for the client: the route's edits, the cookies made, and the mark of a failure not to be retried."""
        plan = self.plan
        server = self.listener.config.server_header
        marks = head.status >= 500 and bool(self._forward.retry.retry_on)
        if plan.response_edits is None and server is None and not self._cookies and not marks:
            return head
        head = head.copy()
        if plan.response_edits is not None:
            head.fields = plan.response_edits.apply(head.fields)
        if server is not None:
            head.put(b"server", server.encode("latin-1"))
        for cookie in self._cookies:
            head.add(b"set-cookie", cookie)
        if marks and head.get(GAVE_UP_FIELD) is None:
            head.add(GAVE_UP_FIELD, b"1")
        return head

    def _take_answer(self, status: int) -> None:
        """This answer it is: no other attempt follows."""
        self._is_answering = True
        self.status = status
        self._body = None
        self._is_replayable = False
        self._try_tick = 0
        self._drop_hedge()

    def _succeed(self) -> None:
        status = self.status if self.grpc_status is None else status_of_grpc(self.grpc_status)
        self._end_attempt(status, None)
        self._stream = None
        self._finish(self.status)

    def _give_up(self, error: ProxyError) -> None:
        """No attempt is left: say so to the client."""
        self.error = error
        self._drop_hedge()
        self.plan.stats[self.cluster.name].fail(error.kind)
        if self._is_answering:
            self._finish(self.status)
            self.downstream.abort(error)
            return
        head, body = error_answer(error, self.head, gave_up=bool(self._forward.retry.retry_on))
        self.status = head.status
        self._finish(head.status)
        self._answer(self._edited(head), body)

    def _refuse(self, error: ProxyError, cluster: str | None = None) -> None:
        """No cluster takes the request; `cluster` is the one that would have."""
        self.error = error
        if cluster is None:
            self.listener.stats.refuse(error.kind)
            head, body = error_answer(error, self.head, gave_up=False)
        else:
            head, body = error_answer(error, self.head, gave_up=bool(self._forward.retry.retry_on))
            stats = self.plan.stats[cluster]
            stats.fail(error.kind)
            stats.count(head.status, 0.0)
        self.status = head.status
        self.is_done = True
        self._tell()
        self._answer(head, body)

    def _answer_directly(self, plan: RoutePlan) -> None:
        answer = plan.answer_to(self.head)
        assert answer is not None
        head, body = answer
        if plan.response_edits is not None:
            head.fields = plan.response_edits.apply(head.fields)
        self.status = head.status
        self.is_done = True
        plan.stats[""].count(head.status, 0.0)
        self._tell()
        self._answer(head, body)

    def _answer(self, head: ResponseHead, body: bytes) -> None:
        if body:
            self.downstream.send_answer(head, body)
        else:
            self.downstream.send_head(head, end=True)

    def _finish(self, status: int) -> None:
        self.is_done = True
        slot = self.slot
        if slot is not None:
            slot.discard(self)
            self.slot = None
        cluster = self.cluster
        cluster.active_requests -= 1
        stats = self.listener.stats
        stats.requests_active -= 1
        stats.bytes_sent += self.answer_bytes
        cluster.stats.bytes_received += self.answer_bytes
        if self.request_bytes:
            stats.bytes_received += self.request_bytes
            cluster.stats.bytes_sent += self.request_bytes
        if self._holds_retry:
            self._holds_retry = False
            return_budget(cluster)
            if status and status < 500:
                cluster.stats.retry_success += 1
        self.plan.stats[cluster.name].count(status, self.listener.shell.now() - self.started_at)
        self._tell()

    def _tell(self) -> None:
        log = self.listener.log
        if log is not None and log.is_on:
            failed = self.error is not None or self.status >= 500
            if log.wants(failed=failed):
                log.write(record_of(self), failed=failed)
