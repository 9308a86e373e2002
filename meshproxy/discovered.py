"""A cluster with what keeps it current: its discovery, its health checks, the return of ejected endpoints.

`begin` takes at once what the configuration names, and starts the rest as tasks, which end with `end`. `adopt` goes
over to another configuration without a gap: until another source has told its first endpoints, those before stay. A
source that crashes is a bug: it is logged and counted, and the cluster keeps its last endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from meshproxy.balance.builds import TableBuilds
from meshproxy.cluster import Cluster
from meshproxy.config import ClusterConfig, StaticDiscovery
from meshproxy.discovery.source import Snapshot, Source
from meshproxy.discovery.sources import source_of
from meshproxy.health import CHECKS_AT_ONE_TIME, HealthChecks
from meshproxy.log import LOGGER, fields
from meshproxy.metrics import Statistics
from meshproxy.shell import Shell


class Keeping:
    """What all clusters of a stack share: the loop's tasks, the queue of tables, the slots of health checks."""

    __slots__ = ("builds", "shell", "slots", "statistics")

    def __init__(self, shell: Shell, statistics: Statistics) -> None:
        self.shell = shell
        self.statistics = statistics
        self.builds = TableBuilds(shell.loop.call_soon)
        self.slots = asyncio.Semaphore(CHECKS_AT_ONE_TIME)


class DiscoveredCluster:
    """`cluster` is what requests see; it is `known` once it has had a first snapshot."""

    __slots__ = ("_checks", "_discovery", "_ejections", "_keeping", "cluster", "known")

    def __init__(self, config: ClusterConfig, keeping: Keeping) -> None:
        self._keeping = keeping
        self._discovery: asyncio.Task[None] | None = None
        self._checks: HealthChecks | None = None
        self._ejections: asyncio.TimerHandle | None = None
        stats = keeping.statistics.cluster(config.name)
        self.cluster = Cluster(config, random=keeping.shell.random, builds=keeping.builds, stats=stats)
        self.known = asyncio.Event()

    def __repr__(self) -> str:
        return f"DiscoveredCluster({self.cluster!r})"

    def begin(self) -> None:
        self._begin_checks()
        self._begin_discovery()
        self._watch_ejections()

    def adopt(self, config: ClusterConfig) -> None:
        """Go over to another configuration; endpoints that stay keep their pools, counters and state."""
        before = self.cluster.config
        if config == before:
            return
        self.cluster.reconfigure(config)
        if config.health_check != before.health_check:
            self._begin_checks()
        if config.discovery != before.discovery:
            self._begin_discovery()
        self._watch_ejections()

    def end(self) -> None:
        """Nobody asks for it any more: its requests end, its idle connections close."""
        for one in (self._discovery, self._ejections):
            if one is not None:
                one.cancel()
        if self._checks is not None:
            self._checks.end()
        self.cluster.close()

    def _begin_discovery(self) -> None:
        if self._discovery is not None:
            self._discovery.cancel()
            self._discovery = None
        discovery = self.cluster.config.discovery
        if isinstance(discovery, StaticDiscovery):
            self._take(discovery.endpoints)
        else:
            self._discovery = self._start(self._follow(source_of(discovery)))

    def _begin_checks(self) -> None:
        if self._checks is not None:
            self._checks.end()
            self._checks = None
        check = self.cluster.config.health_check
        if check is not None:
            self._checks = HealthChecks(self.cluster, check, start=self._start, slots=self._keeping.slots)
            self._checks.follow()

    def _watch_ejections(self) -> None:
        """Let ejected endpoints return, looked at once each interval."""
        if self._ejections is not None:
            self._ejections.cancel()
            self._ejections = None
        detection = self.cluster.config.outlier_detection
        if detection is not None:
            self.cluster.end_ejections()
            self._ejections = self._keeping.shell.loop.call_later(detection.interval_s, self._watch_ejections)

    def _take(self, snapshot: Snapshot) -> None:
        self._keeping.statistics.cluster(self.cluster.name).snapshots += 1
        self.cluster.update(snapshot)
        if self._checks is not None:
            self._checks.follow()
        self.known.set()
        LOGGER.debug("snapshot %s", fields(cluster=self.cluster.name, endpoints=len(snapshot)))

    async def _follow(self, source: Source) -> None:
        async for snapshot in source.snapshots():
            self._take(snapshot)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._keeping.shell.tasks.create_task(self._guard(coroutine))

    async def _guard(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Exception:  # noqa: BLE001 - the crash barrier of a cluster: the others must go on
            self._keeping.statistics.loop_errors += 1
            LOGGER.exception(
                "crashed %s", fields(cluster=self.cluster.name, what=getattr(coroutine, "__qualname__", ""))
            )


def is_adoptable(before: ClusterConfig, after: ClusterConfig) -> bool:
    """Whether a living cluster can go over: not to another protocol, whose connections differ."""
    return before.protocol == after.protocol
