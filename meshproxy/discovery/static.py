"""Endpoints as the configuration names them: one snapshot, then no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

from meshproxy.config import StaticDiscovery
from meshproxy.discovery.source import Snapshot


class StaticSource:
    """Yields the configured endpoints once."""

    def __init__(self, config: StaticDiscovery) -> None:
        self.config = config

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Iterate over the one snapshot."""
        yield self.config.endpoints
