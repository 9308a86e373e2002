"""The way to an endpoint: its pool, and how a connection is made, within what the cluster bears.

`pool_of` gives an endpoint the pool of its cluster's protocol when the first request needs it. What one connection does
is in upstream_http1.py and upstream_http2.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from meshproxy.cluster import Cluster, Endpoint
from meshproxy.message import ProxyError
from meshproxy.parts import AnswerReceiver, Pool
from meshproxy.shell import TICK_S, Shell, Timed, ticks
from meshproxy.upstream_http1 import Http1Connection
from meshproxy.upstream_http2 import Http2Pool


def pool_of(endpoint: Endpoint, cluster: Cluster, shell: Shell) -> Pool:
    """The endpoint's pool; made now if it has none."""
    pool: Pool | None = endpoint.pool
    if pool is None:
        make = Http2Pool if cluster.config.protocol == "http2" else Http1Pool
        pool = endpoint.pool = make(endpoint, cluster, shell)
    return pool


async def dial(
    endpoint: Endpoint, factory: Callable[[], asyncio.BaseProtocol], *, timeout_s: float, shell: Shell
) -> asyncio.BaseProtocol:
    """Connect. Raises ProxyError: nothing was sent, so whatever failed may be repeated elsewhere."""
    try:
        async with asyncio.timeout(timeout_s):
            _, protocol = await shell.loop.create_connection(factory, endpoint.address, endpoint.port)
    except TimeoutError as error:
        raise ProxyError("endpoint", "connect-timeout", f"{endpoint.key}: {timeout_s:g} s", unprocessed=True) from error
    except OSError as error:
        raise ProxyError("endpoint", "connect-failure", f"{endpoint.key}: {error}", unprocessed=True) from error
    return protocol


class Http1Pool:
    """Connections of HTTP/1.1 to one endpoint: one request each at a time, the one used last first.

    Who finds none idle waits, and one is made for it; whichever becomes free first is taken.
    """

    __slots__ = (
        "_connecting",
        "_idle",
        "_is_closed",
        "_open",
        "_waiting",
        "cluster",
        "due_tick",
        "endpoint",
        "max_age_ticks",
        "max_requests",
        "shell",
        "slot",
        "stats",
        "wheel",
    )

    def __init__(self, endpoint: Endpoint, cluster: Cluster, shell: Shell) -> None:
        config = cluster.config
        self.endpoint = endpoint
        self.cluster = cluster
        self.shell = shell
        self.wheel = shell.wheel
        self.stats = cluster.stats
        self.max_age_ticks = ticks(config.max_connection_age_s)
        self.max_requests = config.max_requests_per_connection
        # Ordered: the last one in is the first one out, so that what is not needed grows old.
        self._idle: dict[Http1Connection, None] = {}
        self._waiting: deque[AnswerReceiver] = deque()
        self._connecting = 0
        self._open = 0
        self._is_closed = False
        self.due_tick = 0
        self.slot: set[Timed] | None = None

    def __repr__(self) -> str:
        return f"<Http1Pool {self.endpoint.key} idle={len(self._idle)} open={self._open} waiting={len(self._waiting)}>"

    def open(self, receiver: AnswerReceiver) -> Http1Connection | None:
        if self._is_closed:
            raise self._left()
        while self._idle:
            connection = self._idle.popitem()[0]
            if self.max_age_ticks and self.is_spent(connection):
                connection.shut()
                continue
            connection.receiver = receiver
            self.stats.connections_reused += 1
            return connection
        cluster = self.cluster
        breaker = cluster.config.circuit_breaker
        if cluster.pending_requests >= breaker.max_pending_requests:
            self.stats.overflow_pending += 1
            raise ProxyError("proxy", "overflow", "pending requests", unprocessed=True)
        self._waiting.append(receiver)
        cluster.pending_requests += 1
        self._connect_if_needed()
        return None

    def cancel(self, receiver: AnswerReceiver) -> None:
        if receiver in self._waiting:
            self._waiting.remove(receiver)
            self.cluster.pending_requests -= 1

    def close(self) -> None:
        self._is_closed = True
        for connection in tuple(self._idle):
            connection.shut()
        self._idle.clear()
        # Later: who is told picks another endpoint, and the cluster that calls us is in the middle of a change.
        self.shell.loop.call_soon(self._fail_waiting)

    def on_due(self) -> None:
        """Close what has been idle for long. The oldest come first."""
        timeout_s = self.cluster.config.idle_timeout_s
        oldest = self.wheel.tick - int(timeout_s / TICK_S)
        for connection in tuple(self._idle):
            if connection.idle_since > oldest:
                break
            del self._idle[connection]
            connection.shut()
        if self._idle:
            self.wheel.put(self, self._look_again_s())

    # -- called by the connections

    def release(self, connection: Http1Connection) -> None:
        """The connection is free, and good for another request."""
        if self._waiting:
            receiver = self._next_waiting()
            connection.receiver = receiver
            receiver.on_upstream(connection)
            return
        connection.idle_since = self.wheel.tick
        self._idle[connection] = None
        if self.slot is None:
            self.wheel.put(self, self._look_again_s())

    def is_spent(self, connection: Http1Connection) -> bool:
        """Whether the connection is to be closed rather than used again."""
        return (
            self._is_closed
            or 0 < self.max_requests <= connection.requests
            or 0 < self.max_age_ticks <= self.wheel.tick - connection.born_tick
        )

    def forget(self, connection: Http1Connection) -> None:
        """The connection is gone."""
        self._idle.pop(connection, None)
        self._open -= 1
        self.cluster.connections -= 1
        if self._waiting:
            self._connect_if_needed()

    def distrust_idle(self) -> None:
        """The one used last was dead already: the others, idle for longer, are most likely, too."""
        for connection in tuple(self._idle):
            connection.shut()
        self._idle.clear()

    # -- connecting

    def _left(self) -> ProxyError:
        return ProxyError("endpoint", "connect-failure", f"{self.endpoint.key} has left", unprocessed=True)

    def _fail_waiting(self) -> None:
        while self._waiting:
            self._next_waiting().on_failure(self._left())

    def _look_again_s(self) -> float:
        return max(1.0, min(60.0, self.cluster.config.idle_timeout_s / 4))

    def _next_waiting(self) -> AnswerReceiver:
        self.cluster.pending_requests -= 1
        return self._waiting.popleft()

    def _connect_if_needed(self) -> None:
        cluster = self.cluster
        # As in Envoy, an endpoint without any connection gets one beyond the limit, or it would never be asked.
        if len(self._waiting) <= self._connecting or self._is_closed:
            return
        if cluster.connections >= cluster.config.circuit_breaker.max_connections and self._open + self._connecting:
            self.stats.overflow_connections += 1
            return
        self._connecting += 1
        cluster.connections += 1
        self.shell.tasks.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await dial(
                self.endpoint,
                lambda: Http1Connection(self),
                timeout_s=self.cluster.config.connect_timeout_s,
                shell=self.shell,
            )
        except ProxyError as error:
            self._connecting -= 1
            self.cluster.connections -= 1
            if error.kind == "connect-timeout":
                self.stats.connect_timeouts += 1
            else:
                self.stats.connect_failures += 1
            if self._waiting:
                self._next_waiting().on_failure(error)
            self._connect_if_needed()

    def on_connected(self, connection: Http1Connection) -> None:
        """Called from within _connect, by the loop."""
        self._connecting -= 1
        self._open += 1
        self.stats.connections += 1
        if self._is_closed:
            connection.shut()
            return
        self.release(connection)
        self._connect_if_needed()
