"""Active health checks: a question to each endpoint again and again, and what its answers amount to.

An endpoint nobody has asked yet counts as unhealthy, and its first answer decides; after that it takes some in a row to
change the verdict. All off the hot path: a coroutine an endpoint, a connection a question. The questions themselves:
health_probes.py.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from meshproxy.cluster import Cluster
from meshproxy.config import HealthCheck
from meshproxy.endpoint import Endpoint
from meshproxy.health_probes import CheckFailed, probe

# Of all clusters together: with 1,000 clusters of ten, the start would open 10,000 connections at one time.
CHECKS_AT_ONE_TIME = 64


@dataclass(slots=True)
class Verdict:
    """What the checks of one endpoint amount to so far."""

    is_healthy: bool
    is_new: bool = True
    in_a_row: int = 0  # answers against the verdict

    def add(self, check: HealthCheck, *, is_good: bool) -> bool:
        """Count one more answer; return the verdict."""
        if self.is_new:
            self.is_new = False
            self.is_healthy = is_good
        elif is_good == self.is_healthy:
            self.in_a_row = 0
        else:
            self.in_a_row += 1
            if self.in_a_row >= (check.healthy_threshold if is_good else check.unhealthy_threshold):
                self.is_healthy = is_good
                self.in_a_row = 0
        return self.is_healthy


class HealthChecks:
    """The checks of one cluster. Call `follow` after each snapshot, and `end`.

    `start` makes tasks, as TaskGroup.create_task; `slots` bounds how many checks run at one time, over all clusters.
    """

    def __init__(
        self,
        cluster: Cluster,
        check: HealthCheck,
        *,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        slots: asyncio.Semaphore | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._cluster = cluster
        self._check = check
        self._start = start
        self._slots = slots if slots is not None else asyncio.Semaphore(CHECKS_AT_ONE_TIME)
        self._sleep = sleep
        self._random = random
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    def follow(self) -> None:
        """Ask the endpoints that the cluster has now, and no others."""
        present = set(self._cluster.endpoints)
        for endpoint in self._tasks.keys() - present:
            self._tasks.pop(endpoint).cancel()
        for endpoint in present - self._tasks.keys():
            self._tasks[endpoint] = self._start(self._ask_again_and_again(endpoint))

    def end(self) -> None:
        """Ask nobody any more; the verdicts stay."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _ask_again_and_again(self, endpoint: Endpoint) -> None:
        verdict = Verdict(endpoint.is_healthy)
        # Those that begin at one time shall not go on at one time.
        pause_s = self._check.interval_s * self._random()
        while True:
            is_good = await self._ask(endpoint)
            self._cluster.set_healthy(endpoint, is_healthy=verdict.add(self._check, is_good=is_good))
            await self._sleep(pause_s)
            pause_s = self._check.interval_s

    async def _ask(self, endpoint: Endpoint) -> bool:
        stats = self._cluster.stats
        stats.health_checks += 1
        async with self._slots:
            try:
                async with asyncio.timeout(self._check.timeout_s):
                    await probe(self._check, self._cluster.config, endpoint)
            except (CheckFailed, OSError, TimeoutError):
                stats.health_check_failures += 1
                return False
        return True
