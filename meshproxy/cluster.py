"""A cluster while the proxy runs: its endpoints, which of them takes the next request, and how much goes on.

`pick` is hot and synchronous. Everything that changes the answer (a snapshot, a health check, an ejection) comes in by
a method and takes effect before that returns; hash tables follow in slices (balance/hashed.py). Endpoints that stay
over a snapshot keep their pool, counters and ejection. To read next: endpoint.py, balance/, outlier.py, retry.py.
"""

from __future__ import annotations

import random as random_module
import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Protocol

from meshproxy.balance.priorities import shares
from meshproxy.balance.round_robin import RoundRobin, WeightedRoundRobin
from meshproxy.config import ClusterConfig, EndpointConfig
from meshproxy.discovery.source import Snapshot
from meshproxy.endpoint import Endpoint
from meshproxy.metrics import ClusterStats

__all__ = ["Cluster", "Endpoint"]


class Picker(Protocol):
    """A policy of balance/ over the endpoints of one priority."""

    def pick(self, hash_key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        """Return an endpoint, another than `avoid` if there is one; None where nothing may be picked."""


class Nobody:
    """The picker of a cluster without endpoints."""

    __slots__ = ()

    def pick(self, _key: int | None, _avoid: Endpoint | None, /) -> Endpoint | None:
        return None


class Cluster:
    """A service's endpoints and counters. The exchange counts active_*, pending_requests and connections."""

    __slots__ = (
        "_borders",
        "_by_key",
        "_clock",
        "_pickers",
        "_random",
        "_sole",
        "active_requests",
        "active_retries",
        "config",
        "connections",
        "endpoints",
        "is_discovered",
        "name",
        "pending_requests",
        "picks",
        "retries",
        "stats",
    )

    def __init__(
        self,
        config: ClusterConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self.name = config.name
        self.config = config
        self.endpoints: tuple[Endpoint, ...] = ()
        self.active_requests = 0  # with those in back-off and those that wait for a connection
        self.pending_requests = 0  # wait for a connection
        self.connections = 0
        self.active_retries = 0  # with those in back-off
        self.picks = 0  # attempts, all told; of them
        self.retries = 0
        self.is_discovered = False  # a first snapshot has come
        self.stats = ClusterStats()  # the stack sets its own, kept over a reload
        self._clock = clock
        self._random = random
        self._by_key: dict[str, Endpoint] = {}
        self._pickers: list[Picker] = []
        self._borders: list[int] = []  # of the priorities' loads, running sum in percent
        self._sole: Picker | None = Nobody()  # takes all the load, the usual case

    def __repr__(self) -> str:
        available = sum(endpoint.is_available for endpoint in self.endpoints)
        return f"<Cluster {self.name} {available}/{len(self.endpoints)} active={self.active_requests}>"

    def pick(self, hash_key: int | None, *, avoid: Endpoint | None = None) -> Endpoint | None:
        """Return the endpoint for the next attempt, another than `avoid` where there is one; None: nobody is there."""
        self.picks += 1
        if self._sole is not None:
            return self._sole.pick(hash_key, avoid)
        # Envoy's: a key's priority is its hash modulo 100.
        percent = hash_key % 100 if hash_key is not None else int(self._random() * 100)
        return self._pickers[bisect_right(self._borders, percent)].pick(hash_key, avoid)

    def update(self, snapshot: Snapshot) -> None:
        """Take over a complete set of endpoints. Pools of those that leave or changed their identity are closed."""
        now = self._clock()
        before = self._by_key
        after: dict[str, Endpoint] = {}
        for config in snapshot:
            known = before.get(config.key)
            if config.key in after:
                continue  # the first of equals counts, as in Envoy
            if known is not None and known.config.identity == config.identity:
                known.config = config
                known.weight = config.weight
                after[config.key] = known
            else:
                after[config.key] = self._new_endpoint(config, now)
        self._by_key = after
        self.endpoints = tuple(after.values())
        self.is_discovered = True
        for endpoint in before.values():
            if after.get(endpoint.key) is not endpoint:
                self._dismiss(endpoint)
        self._rebalance()

    def set_healthy(self, endpoint: Endpoint, *, is_healthy: bool) -> None:
        """Take over the verdict of the active health checks."""
        if endpoint.is_healthy != is_healthy:
            endpoint.is_healthy = is_healthy
            self._rebalance()

    def on_failure(self, endpoint: Endpoint) -> None:
        """Eject the endpoint if that was one failure too many."""

    def _new_endpoint(self, config: EndpointConfig, now: float) -> Endpoint:
        return Endpoint(config, owner=self, now=now, is_healthy=self.config.health_check is None)

    def _dismiss(self, endpoint: Endpoint) -> None:
        endpoint.is_gone = True
        endpoint.is_available = False
        if endpoint.pool is not None:
            endpoint.pool.close()

    def _rebalance(self) -> None:
        """Share the load among priorities, and let each policy know its endpoints."""
        levels: dict[int, list[Endpoint]] = {}
        for endpoint in self.endpoints:
            levels.setdefault(endpoint.config.priority, []).append(endpoint)
        all_of = [levels[priority] for priority in sorted(levels)]
        fit_of = [[one for one in level if one.is_healthy and not one.is_ejected] for level in all_of]
        parts = shares(
            [(len(fit), len(level)) for fit, level in zip(fit_of, all_of, strict=True)],
            panic_threshold_percent=self.config.balancing.panic_threshold_percent,
        )
        self._pickers = []
        for part, fit, level in zip(parts, fit_of, all_of, strict=True):
            members = level if part.is_panicking else fit
            for endpoint in level:
                endpoint.is_available = part.is_panicking or (endpoint.is_healthy and not endpoint.is_ejected)
            self._pickers.append(self._picker(members))
        self._borders = list(accumulate(part.load_percent for part in parts))
        takers = [picker for picker, part in zip(self._pickers, parts, strict=True) if part.load_percent == 100]
        self._sole = takers[0] if takers else None if any(part.load_percent for part in parts) else Nobody()

    def _picker(self, members: list[Endpoint]) -> Picker:
        if not members:
            return Nobody()
        if len({member.weight for member in members}) > 1:
            return WeightedRoundRobin(members, weight_of=lambda member: member.weight, random=self._random)
        return RoundRobin(members, turn=int(self._random() * len(members)))
