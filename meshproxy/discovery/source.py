"""The one interface of all discovery: an async iterator of snapshots.

A source yields each complete set of endpoints as it learns of it, the first as soon as it can. It keeps its last good
snapshot when asking fails: it then yields nothing, and says so in the log. Next: static.py, file.py, dns.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from meshproxy.config import EndpointConfig

Snapshot = tuple[EndpointConfig, ...]


class Source(Protocol):
    """Yields snapshots for ever, or ends when no other will come."""

    def snapshots(self) -> AsyncIterator[Snapshot]:
        """Iterate over complete sets of endpoints, each replacing the one before."""
