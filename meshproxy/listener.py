"""A listener while the proxy runs: what all of its connections share. A reload replaces `router` and `clusters`.

server.py accepts for it; an exchange reads it once, when it begins.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshproxy.access_log import RequestLog
from meshproxy.cluster import Cluster
from meshproxy.config import Listener
from meshproxy.identity import forwarded_for, forwarded_proto, is_traceparent
from meshproxy.message import RequestHead
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

    def stamp(self, head: RequestHead, peer_address: str) -> None:
        """Give a request what it is to be known by: X-Forwarded-*, x-request-id, traceparent. Not hot; see identity.py.

        server_http1.py writes the same into the bytes of a usual head, all at once.
        """
        mode = self.config.forwarded_for
        if mode != "keep":
            came = head.all_of(b"x-forwarded-for")
            chain = forwarded_for(b", ".join(came) or None, peer_address.encode(), mode=mode)
            _put(head, b"x-forwarded-for", chain, replaces=bool(came))
            scheme = head.get(b"x-forwarded-proto")
            _put(
                head,
                b"x-forwarded-proto",
                forwarded_proto(scheme, head.scheme, mode=mode),
                replaces=scheme is not None,
            )
        randomness = self.shell.randomness
        if head.get(b"x-request-id") is None:
            head.add(b"x-request-id", randomness.token())
        trace = head.all_of(b"traceparent")
        # W3C Trace Context 3.2: more than one is none.
        parent = trace[0] if len(trace) == 1 and is_traceparent(trace[0]) else None
        if parent is None:
            head.drop(b"tracestate")
        sampled = self.starts_sampled()
        _put(head, b"traceparent", randomness.traceparent(parent, sampled=sampled), replaces=bool(trace))

    def starts_sampled(self) -> bool:
        """Whether a trace that starts now carries the flag "sampled"."""
        percent = self.config.traced_percent
        return percent > 0 and self.shell.random() * 100 < percent

    def __repr__(self) -> str:
        return f"<ListenerRuntime {self.config.name} draining={self.is_draining}>"


def _put(head: RequestHead, name: bytes, value: bytes | None, *, replaces: bool) -> None:
    if value is None:
        return
    if replaces:
        head.put(name, value)
    else:
        head.add(name, value)
