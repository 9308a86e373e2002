"""An endpoint while the proxy runs: what is counted about it, and whether it may be picked.

The exchange counts `active` up and down and reports how each attempt ended; cluster.py makes endpoints, keeps those
that stay over a new snapshot, and sets `is_available`. Hot: no method here allocates but what it must.
"""

from __future__ import annotations

from math import exp
from typing import Any, Protocol

from meshproxy.config import EndpointConfig

# Attempts that failed for reasons that say something of the endpoint. A refused stream or a client that left does not:
# the first is how endpoints shut down gracefully.
FAULTS = frozenset({"connect-failure", "connect-timeout", "reset", "bad-answer", "timeout", "per-try-timeout"})
CONNECT_FAULTS = frozenset({"connect-failure", "connect-timeout"})
TIMEOUTS = frozenset({"timeout", "per-try-timeout", "connect-timeout"})
GATEWAY_STATUSES = frozenset({502, 503, 504})


class Owner(Protocol):
    """What an endpoint tells its cluster."""

    def on_failure(self, endpoint: Endpoint) -> None:
        """A failed attempt is counted in `consecutive_5xx` and, where it is one, `consecutive_gateway_failures`."""


class Endpoint:
    """One endpoint. Everything but `active`, `pool` and the calls of `report` belongs to the cluster."""

    __slots__ = (
        "active",
        "address",
        "config",
        "connect_failures",
        "consecutive_5xx",
        "consecutive_gateway_failures",
        "decay_s",
        "ejected_until",
        "ejection_count",
        "ejections",
        "estimate_at",
        "failures",
        "is_available",
        "is_ejected",
        "is_gone",
        "is_healthy",
        "joined_at",
        "key",
        "owner",
        "pool",
        "port",
        "requests",
        "rtt_s",
        "successes",
        "timeouts",
        "weight",
    )

    def __init__(self, config: EndpointConfig, *, owner: Owner, now: float = 0, is_healthy: bool = True) -> None:
        self.config = config
        self.owner = owner
        self.address = config.address
        self.port = config.port
        self.key = config.key
        self.weight = config.weight
        self.joined_at = now  # for slow start: when it became available
        self.active = 0  # attempts now; the exchange counts
        # Owned by upstream.py, opaque here. close() is called when the endpoint leaves or changes its identity: no new
        # request, idle connections go at once, running requests end.
        self.pool: Any = None
        # May be picked now: neither gone nor, unless its cluster panics, ejected or unhealthy.
        self.is_available = True
        self.is_gone = False
        self.is_healthy = is_healthy  # by active checks; without any, always
        self.is_ejected = False
        self.ejected_until = 0.0
        self.ejection_count = 0  # how many times in a row: the next one is that much longer
        self.consecutive_5xx = 0
        self.consecutive_gateway_failures = 0
        # Peak EWMA; decay 0: not wanted.
        self.decay_s = 0.0
        self.rtt_s = 0.0
        self.estimate_at = now
        # For metrics, since it joined. requests = successes + failures + what the client gave up.
        self.requests = 0
        self.successes = 0
        self.failures = 0
        self.connect_failures = 0
        self.timeouts = 0
        self.ejections = 0

    def __repr__(self) -> str:
        marks = [
            name
            for name, is_set in (
                ("gone", self.is_gone),
                ("unhealthy", not self.is_healthy),
                ("ejected", self.is_ejected),
            )
            if is_set
        ]
        return f"<Endpoint {self.key} active={self.active} {' '.join(marks)}>"

    def report(self, status: int | None, error: str | None, duration_s: float, *, now: float = 0) -> None:
        """Tell how an attempt ended: with a status (of gRPC: outlier.status_of_grpc) or with a ProxyError's kind.

        `now` (the loop's time) is needed for peak EWMA only. An attempt that was provably unprocessed on a reused
        connection is not to be reported: it says nothing of the endpoint.
        """
        self.requests += 1
        if error is None and status is not None and status < 500:
            self.successes += 1
            self.consecutive_5xx = self.consecutive_gateway_failures = 0
            if self.decay_s:
                self.learn(duration_s, now=now)
            return
        if error is not None and error not in FAULTS:
            return
        self.failures += 1
        self.consecutive_5xx += 1
        if error is None and status not in GATEWAY_STATUSES:
            self.consecutive_gateway_failures = 0
        else:
            self.consecutive_gateway_failures += 1
        if error in CONNECT_FAULTS:
            self.connect_failures += 1
        if error in TIMEOUTS:
            self.timeouts += 1
        if self.decay_s:
            # A failure is never taken for a fast answer, or the quickest to fail would get all traffic.
            self.learn(max(duration_s, self.rtt_s), now=now)
        self.owner.on_failure(self)

    def learn(self, rtt_s: float, *, now: float) -> None:
        """Move the estimate: up to a slower answer at once, down to a faster one by its age (Linkerd's peak EWMA)."""
        if rtt_s >= self.rtt_s:
            self.rtt_s = rtt_s
        else:
            kept = exp((self.estimate_at - now) / self.decay_s)
            self.rtt_s = self.rtt_s * kept + rtt_s * (1 - kept)
        self.estimate_at = now

    def cost(self, now: float) -> float:
        """Return the expected wait here, in seconds; an estimate nobody renews fades.

        Weights count for the requests in flight only: candidates are drawn by weight already.
        """
        return self.rtt_s * exp((self.estimate_at - now) / self.decay_s) * (self.active / self.weight + 1)
