"""A cluster while the proxy runs: its endpoints, which of them takes the next request, and how much goes on.

`pick` is hot and synchronous. Everything that changes the answer (a snapshot, a health check, an ejection) comes in by
a method and takes effect before that returns; hash tables follow in slices (balance/hashed.py). Endpoints that stay
over a snapshot keep their pool, counters and ejection. Localities of one priority share by the weights of their
endpoints, so they need nothing of their own. Read next: endpoint.py, balance/, outlier.py, retry.py.
"""

from __future__ import annotations

import logging
import random as random_module
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Protocol

from meshproxy import outlier
from meshproxy.balance.builds import TableBuilds
from meshproxy.balance.draw import Draw
from meshproxy.balance.hashed import Hashed
from meshproxy.balance.least_request import LeastRequest
from meshproxy.balance.maglev import maglev_steps
from meshproxy.balance.peak_ewma import PeakEwma
from meshproxy.balance.priorities import shares
from meshproxy.balance.random_choice import RandomChoice
from meshproxy.balance.ring_hash import ring_steps
from meshproxy.balance.round_robin import RoundRobin, WeightedRoundRobin
from meshproxy.balance.slow_start import warmth
from meshproxy.config import ClusterConfig, EndpointConfig
from meshproxy.discovery.source import Snapshot
from meshproxy.endpoint import Endpoint
from meshproxy.metrics import ClusterStats

__all__ = ["Cluster", "Endpoint"]

log = logging.getLogger(__name__)


class Picker(Protocol):
    """A policy of balance/ over the endpoints of one priority."""

    def pick(self, hash_key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        """Return an endpoint, another than `avoid` if there is one; None where nothing may be picked."""


class Nobody:
    """The picker of a cluster without endpoints."""

    __slots__ = ()

    def pick(self, _key: int | None, _avoid: Endpoint | None, /) -> Endpoint | None:
        return None


class Panicking:
    """A picker over all endpoints of a priority, ill or not, that counts how often it is asked."""

    __slots__ = ("picker", "stats")

    def __init__(self, picker: Picker, stats: ClusterStats) -> None:
        self.picker = picker
        self.stats = stats

    def pick(self, hash_key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        self.stats.panics += 1
        return self.picker.pick(hash_key, avoid)


class Cluster:
    """A service's endpoints and counters. The exchange counts active_*, pending_requests and connections."""

    __slots__ = (
        "_borders",
        "_builds",
        "_by_key",
        "_clock",
        "_hashed",
        "_pickers",
        "_random",
        "_sole",
        "_turn",
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
        "retry_samples",
        "stats",
    )

    def __init__(
        self,
        config: ClusterConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
        builds: TableBuilds | None = None,
        stats: ClusterStats | None = None,
    ) -> None:
        """`builds` is shared by all clusters of a loop. Without it, tables are built when endpoints change."""
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
        self.retry_samples: deque[tuple[float, int, int]] = deque()  # retry.py's
        self.stats = stats if stats is not None else ClusterStats()
        self._clock = clock
        self._random = random
        self._builds = builds if builds is not None else TableBuilds()
        self._by_key: dict[str, Endpoint] = {}
        self._hashed: dict[int, Hashed] = {}  # of each priority: it outlives snapshots
        self._turn = int(random() * 1_000_000)  # proxies that start at one time must not all begin with the first
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
            endpoint.joined_at = self._clock()
            log.info("cluster %s: %s is %s", self.name, endpoint.key, "healthy" if is_healthy else "unhealthy")
            self._rebalance()

    def on_failure(self, endpoint: Endpoint) -> None:
        """Eject the endpoint if that was one failure too many, and if enough others stay."""
        detection = self.config.outlier_detection
        if detection is None or endpoint.is_ejected or endpoint.is_gone:
            return
        if not outlier.is_outlier(
            detection,
            consecutive_5xx=endpoint.consecutive_5xx,
            consecutive_gateway_failures=endpoint.consecutive_gateway_failures,
        ):
            return
        ejected = sum(one.is_ejected for one in self.endpoints)
        if not outlier.may_eject(detection, ejected=ejected, total=len(self.endpoints)):
            return
        endpoint.is_ejected = True
        endpoint.ejection_count += 1
        endpoint.ejections += 1
        self.stats.ejections += 1
        duration_s = outlier.ejection_s(detection, count=endpoint.ejection_count)
        endpoint.ejected_until = self._clock() + duration_s
        log.warning("cluster %s: %s ejected for %g s", self.name, endpoint.key, duration_s)
        self._rebalance()

    def end_ejections(self) -> None:
        """Let those return whose time is over; once each interval of the outlier detection."""
        detection = self.config.outlier_detection
        now = self._clock()
        has_changed = False
        for endpoint in self.endpoints:
            if not endpoint.is_ejected:
                # Good for an interval: the next ejection is shorter again.
                endpoint.ejection_count = max(0, endpoint.ejection_count - 1)
            elif detection is None or endpoint.ejected_until <= now:
                endpoint.is_ejected = False
                endpoint.joined_at = now
                # On probation: one more failure is enough.
                endpoint.consecutive_5xx = detection.consecutive_5xx - 1 if detection else 0
                endpoint.consecutive_gateway_failures = (
                    max(0, detection.consecutive_gateway_failure - 1) if detection else 0
                )
                has_changed = True
                log.info("cluster %s: %s is back from its ejection", self.name, endpoint.key)
        if has_changed:
            self._rebalance()

    def reconfigure(self, config: ClusterConfig) -> None:
        """Take over another configuration of the same cluster: what flows goes on."""
        has_new_balancing = config.balancing != self.config.balancing
        had_checks = self.config.health_check is not None
        self.config = config
        if has_new_balancing:
            self._hashed.clear()
        for endpoint in self.endpoints:
            if has_new_balancing:
                self._set_decay(endpoint)
            if config.health_check is None:
                endpoint.is_healthy = True
            elif not had_checks:
                endpoint.is_healthy = True  # until a check says otherwise: a reload must not empty a cluster
            if config.outlier_detection is None:
                endpoint.is_ejected = False
        self._rebalance()

    def close(self) -> None:
        """The cluster is no longer configured: dismiss all its endpoints."""
        self.update(())

    def now(self) -> float:
        """Return the cluster's time, in seconds."""
        return self._clock()

    def _new_endpoint(self, config: EndpointConfig, now: float) -> Endpoint:
        endpoint = Endpoint(config, owner=self, now=now, is_healthy=self.config.health_check is None)
        self._set_decay(endpoint)
        return endpoint

    def _set_decay(self, endpoint: Endpoint) -> None:
        balancing = self.config.balancing
        endpoint.decay_s = balancing.ewma_decay_s if balancing.policy == "peak_ewma" else 0
        endpoint.rtt_s = balancing.ewma_default_rtt_s

    def _dismiss(self, endpoint: Endpoint) -> None:
        endpoint.is_gone = True
        endpoint.is_available = False
        if endpoint.pool is not None:
            endpoint.pool.close()

    def _rebalance(self) -> None:
        """Share the load among priorities, and let each policy know its endpoints."""
        levels: dict[int, list[Endpoint]] = {}
        for endpoint in self.endpoints:
            endpoint.is_available = endpoint.is_healthy and not endpoint.is_ejected
            levels.setdefault(endpoint.config.priority, []).append(endpoint)
        for priority in self._hashed.keys() - levels.keys():
            del self._hashed[priority]
        ordered = sorted(levels.items())
        parts = shares(
            [(sum(one.is_available for one in level), len(level)) for _, level in ordered],
            panic_threshold_percent=self.config.balancing.panic_threshold_percent,
        )
        pickers: list[Picker] = []
        for part, (priority, level) in zip(parts, ordered, strict=True):
            if part.is_panicking:
                for endpoint in level:
                    endpoint.is_available = True
            members = [endpoint for endpoint in level if endpoint.is_available]
            picker = self._picker(priority, members) if members else Nobody()
            pickers.append(Panicking(picker, self.stats) if part.is_panicking else picker)
        self._pickers = pickers
        self._borders = list(accumulate(part.load_percent for part in parts))
        takers = [picker for picker, part in zip(pickers, parts, strict=True) if part.load_percent]
        self._sole = (takers[0] if takers else Nobody()) if len(takers) < 2 else None

    def _picker(self, priority: int, members: Sequence[Endpoint]) -> Picker:
        balancing = self.config.balancing
        if balancing.policy in ("maglev", "ring_hash"):
            hashed = self._hashed.get(priority)
            if hashed is None:
                hashed = self._hashed[priority] = self._new_hashed()
            hashed.set_members(members)
            return hashed
        warmth_of = self._warmth if balancing.slow_start_s > 0 else None
        if balancing.policy == "round_robin":
            if warmth_of is None and len({member.weight for member in members}) == 1:
                self._turn += 1
                return RoundRobin(members, turn=self._turn)
            return WeightedRoundRobin(members, weight_of=self._warm_weight, random=self._random)
        draw = Draw(members, random=self._random, warmth_of=warmth_of)
        if balancing.policy == "least_request":
            return LeastRequest(draw, choices=balancing.choices)
        if balancing.policy == "peak_ewma":
            return PeakEwma(draw, clock=self._clock)
        return RandomChoice(draw)

    def _new_hashed(self) -> Hashed:
        balancing = self.config.balancing
        size = balancing.maglev_table_size
        minimum, maximum = balancing.ring_minimum_size, balancing.ring_maximum_size
        is_maglev = balancing.policy == "maglev"
        return Hashed(
            ("maglev", size) if is_maglev else ("ring_hash", minimum, maximum),
            partial(maglev_steps, size=size) if is_maglev else partial(ring_steps, minimum=minimum, maximum=maximum),
            builds=self._builds,
            random=self._random,
            load=self._load,
            balance_factor=balancing.hash_balance_factor,
        )

    def _load(self) -> int:
        return self.active_requests

    def _warmth(self, endpoint: Endpoint) -> float:
        return warmth(self._clock() - endpoint.joined_at, window_s=self.config.balancing.slow_start_s)

    def _warm_weight(self, endpoint: Endpoint) -> float:
        window_s = self.config.balancing.slow_start_s
        return endpoint.weight if window_s <= 0 else endpoint.weight * self._warmth(endpoint)
