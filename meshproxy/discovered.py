"""A cluster with what keeps it current: its discovery, its health checks. One for each cluster of the stack.

`begin` takes at once what the configuration names, and starts the rest as tasks, which end with `end`. A source that
crashes is a bug: it is logged and counted, and the cluster keeps its last endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from meshproxy.balance.builds import TableBuilds
from meshproxy.cluster import Cluster
from meshproxy.config import ClusterConfig, DnsDiscovery, FileDiscovery, StaticDiscovery
from meshproxy.discovery.source import Snapshot, Source
from meshproxy.log import LOGGER, fields
from meshproxy.metrics import Statistics
from meshproxy.shell import Shell


class DiscoveredCluster:
    """`cluster` is what requests see; it is `known` once it has had a first snapshot."""

    __slots__ = ("_shell", "_statistics", "_tasks", "_timer", "cluster", "known")

    def __init__(self, config: ClusterConfig, *, shell: Shell, statistics: Statistics, builds: TableBuilds) -> None:
        self._shell = shell
        self._statistics = statistics
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.cluster = Cluster(config, random=shell.random, builds=builds, stats=statistics.cluster(config.name))
        self.known = asyncio.Event()

    def __repr__(self) -> str:
        return f"DiscoveredCluster({self.cluster!r}, {len(self._tasks)} tasks)"

    def begin(self) -> None:
        config = self.cluster.config
        if isinstance(config.discovery, StaticDiscovery):
            self._take(config.discovery.endpoints)
        else:
            self._start("discovery", self._follow(source_of(config.discovery)))
        self._watch_ejections()

    def adopt(self, config: ClusterConfig) -> bool:
        """Go on with another configuration, keeping endpoints and their pools; False: that takes a new cluster."""
        before = self.cluster.config
        if not is_adoptable(before, config):
            return False
        if config == before:
            return True
        self.cluster.reconfigure(config)
        if isinstance(config.discovery, StaticDiscovery) and config.discovery != before.discovery:
            self._take(config.discovery.endpoints)
        self._watch_ejections()
        return True

    def end(self) -> None:
        """Nobody asks for it any more: its requests end, its idle connections close."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        if self._timer is not None:
            self._timer.cancel()
        self.cluster.close()

    def _watch_ejections(self) -> None:
        """Let ejected endpoints return, looked at once each interval."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        detection = self.cluster.config.outlier_detection
        if detection is not None:
            self.cluster.end_ejections()
            self._timer = self._shell.loop.call_later(detection.interval_s, self._watch_ejections)

    def _take(self, snapshot: Snapshot) -> None:
        self._statistics.cluster(self.cluster.name).snapshots += 1
        self.cluster.update(snapshot)
        self.known.set()
        LOGGER.debug("snapshot %s", fields(cluster=self.cluster.name, endpoints=len(snapshot)))

    async def _follow(self, source: Source) -> None:
        async for snapshot in source.snapshots():
            self._take(snapshot)

    def _start(self, what: str, coroutine: Coroutine[object, object, None]) -> None:
        self._tasks.append(self._shell.tasks.create_task(self._guard(what, coroutine)))

    async def _guard(self, what: str, coroutine: Coroutine[object, object, None]) -> None:
        try:
            await coroutine
        except Exception:  # noqa: BLE001 - the crash barrier of a cluster: the others must go on
            self._statistics.loop_errors += 1
            LOGGER.exception("%s has crashed %s", what, fields(cluster=self.cluster.name))


def source_of(discovery: FileDiscovery | DnsDiscovery) -> Source:
    """The source, imported where it is needed: dnspython alone takes 60 ms and 12 MB."""
    raise NotImplementedError(discovery)


def is_adoptable(before: ClusterConfig, after: ClusterConfig) -> bool:
    """Whether a living cluster can go over: not to another protocol, whose connections differ, or another source."""
    if before.protocol != after.protocol or before.health_check != after.health_check:
        return False
    both_static = isinstance(before.discovery, StaticDiscovery) and isinstance(after.discovery, StaticDiscovery)
    return both_static or before.discovery == after.discovery
