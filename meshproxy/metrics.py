"""Counters that the hot path increments: plain slotted objects of integers; kept over a reload, since kept by name.

Nothing here formats: metrics_text.py renders them for Prometheus, admin.py serves that. A counter costs what an
attribute's `+= 1` costs (25 ns); prometheus_client's took 1 us, with its lock.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

# Upper bounds in seconds. Envoy's histogram buckets up to a minute, without those that nobody tells apart.
DURATION_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class ListenerStats:
    """Of one listener. `active` is a gauge, the others only grow."""

    connections: int = 0
    connections_active: int = 0
    connections_refused: int = 0  # beyond max_connections
    requests_active: int = 0
    requests_http1: int = 0
    requests_http2: int = 0
    requests_upgraded: int = 0  # WebSocket and other tunnels
    tcp_connections: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    # Requests refused before they had a route, by ProxyError.kind: bad-request, head-too-large, head-timeout, no-route.
    refused: dict[str, int] = field(default_factory=dict)

    def refuse(self, kind: str) -> None:
        self.refused[kind] = self.refused.get(kind, 0) + 1


@dataclass(slots=True)
class RouteStats:
    """Of one (listener, route, cluster). The cluster is empty for answers by ourselves."""

    # By status // 100; index 0: the client went, or the connection broke, before a head.
    answers: list[int] = field(default_factory=lambda: [0] * 6)
    duration_buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BOUNDS_S) + 1))
    duration_sum_s: float = 0.0
    # Answers that we made because no endpoint gave one, by ProxyError.kind.
    failures: dict[str, int] = field(default_factory=dict)

    def count(self, status: int, duration_s: float) -> None:
        """Count one finished request. 0.35 us."""
        self.answers[status // 100 if status < 600 else 5] += 1
        self.duration_buckets[bisect_left(DURATION_BOUNDS_S, duration_s)] += 1
        self.duration_sum_s += duration_s

    def fail(self, kind: str) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + 1


@dataclass(slots=True)
class ClusterStats:
    """Of one cluster, beside the gauges and the endpoints' counters that cluster.py holds."""

    attempts: int = 0
    retries: int = 0
    retry_success: int = 0
    retry_overflow: int = 0  # wanted when the budget was used up; some are made a moment later
    hedges: int = 0
    mirrors: int = 0
    overflow_requests: int = 0  # 503 at once: circuit breaker
    overflow_pending: int = 0
    overflow_connections: int = 0
    no_healthy_endpoint: int = 0
    connections: int = 0  # opened
    connections_http2: int = 0
    connections_reused: int = 0
    connect_failures: int = 0
    connect_timeouts: int = 0
    timeouts: int = 0
    per_try_timeouts: int = 0
    resets: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    ejections: int = 0
    panics: int = 0  # picks while the healthy were too few to be the only ones asked
    health_checks: int = 0
    health_check_failures: int = 0
    snapshots: int = 0


@dataclass(slots=True)
class Statistics:
    """All counters of one process, by name: a reload finds those it had."""

    listeners: dict[str, ListenerStats] = field(default_factory=dict)
    routes: dict[tuple[str, str, str], RouteStats] = field(default_factory=dict)
    clusters: dict[str, ClusterStats] = field(default_factory=dict)
    reloads: int = 0
    reload_failures: int = 0
    config_refused: bool = False  # the file as it is was refused: the one before runs on
    access_log_lines: int = 0
    access_log_lost: int = 0
    loop_errors: int = 0  # exceptions that reached the event loop: each one is a bug

    def listener(self, name: str) -> ListenerStats:
        return self.listeners.setdefault(name, ListenerStats())

    def route(self, listener: str, route: str, *, cluster: str) -> RouteStats:
        return self.routes.setdefault((listener, route, cluster), RouteStats())

    def cluster(self, name: str) -> ClusterStats:
        return self.clusters.setdefault(name, ClusterStats())
