"""A listener while the proxy runs: what all of its connections share. A reload replaces `router` and `clusters`.

server.py accepts for it; an exchange reads it once, when it begins.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshproxy.access_log import RequestLog
from meshproxy.cluster import Cluster
from meshproxy.config import Listener
from meshproxy.metrics import ListenerStats
from meshproxy.route import Router
from meshproxy.shell import Shell


class ListenerRuntime:
    """Mutable by the stack only; connections read."""

    __slots__ = ("clusters", "config", "is_draining", "log", "router", "shell", "stats")

    def __init__(
        self,
        config: Listener,
        *,
        router: Router,
        clusters: Mapping[str, Cluster],
        shell: Shell,
        stats: ListenerStats | None = None,
        log: RequestLog | None = None,
    ) -> None:
        self.config = config
        self.router = router
        self.clusters = clusters
        self.shell = shell
        self.stats = stats or ListenerStats()
        self.log = log
        self.is_draining = False

    def __repr__(self) -> str:
        return f"<ListenerRuntime {self.config.name} draining={self.is_draining}>"
