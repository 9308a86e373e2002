"""A cluster with what keeps it current: its discovery, its health checks. One for each cluster of the stack.

`begin` takes at once what the configuration names, and starts the rest as tasks, which end with `end`. A source that
crashes is a bug: it is logged and counted, and the cluster keeps its last endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

from meshproxy.cluster import Cluster
from meshproxy.config import ClusterConfig, DnsDiscovery, FileDiscovery, StaticDiscovery
from meshproxy.discovery.source import Snapshot, Source
from meshproxy.log import LOGGER, fields
from meshproxy.metrics import Statistics
from meshproxy.shell import Shell

# What may change in a cluster that lives on: it is read anew by each request, or each connection.
_SOFT = ("discovery", "circuit_breaker", "connect_timeout_s", "idle_timeout_s")


class DiscoveredCluster:
    """`cluster` is what requests see; it is `known` once it has had a first snapshot."""

    __slots__ = ("_shell", "_statistics", "_tasks", "cluster", "known")

    def __init__(self, config: ClusterConfig, *, shell: Shell, statistics: Statistics) -> None:
        self._shell = shell
        self._statistics = statistics
        self._tasks: list[asyncio.Task[None]] = []
        self.cluster = Cluster(config, random=shell.random)
        self.cluster.stats = statistics.cluster(config.name)
        self.known = asyncio.Event()

    def __repr__(self) -> str:
        return f"DiscoveredCluster({self.cluster!r}, {len(self._tasks)} tasks)"

    def begin(self) -> None:
        config = self.cluster.config
        if isinstance(config.discovery, StaticDiscovery):
            self._take(config.discovery.endpoints)
        else:
            self._start("discovery", self._follow(source_of(config.discovery)))

    def adopt(self, config: ClusterConfig) -> bool:
        """Go on with another configuration, keeping endpoints and their pools; False: that takes a new cluster."""
        before = self.cluster.config
        if not is_adoptable(before, config):
            return False
        self.cluster.config = config
        if isinstance(config.discovery, StaticDiscovery) and config.discovery != before.discovery:
            self._take(config.discovery.endpoints)
        return True

    def end(self) -> None:
        """Nobody asks for it any more: its requests end, its idle connections close."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self.cluster.update(())

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
    """Whether only that changes which a living cluster can take: its static endpoints, limits, timeouts."""
    if before.discovery != after.discovery and not (
        isinstance(before.discovery, StaticDiscovery) and isinstance(after.discovery, StaticDiscovery)
    ):
        return False
    return replace(after, **{name: getattr(before, name) for name in _SOFT}) == before
