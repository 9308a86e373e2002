"""What the admin pages show and do, of one running stack: its state as JSON, its counters, its log, its end.

The stack is seen through a small interface, Shown, which stack.py implements. Whatever is said of one worker is said of
all of them, unless the query has `local`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from meshproxy import metrics_text
from meshproxy.access_log import RequestLog
from meshproxy.admin import JSON, Page, Query, Reply, Send, json_reply
from meshproxy.cluster import Cluster
from meshproxy.config import Config
from meshproxy.metrics import Statistics
from meshproxy.siblings import Siblings, add_up

_LEVELS = ("debug", "info", "warning", "error")
# Requests that a reader of /tail may be behind; then it misses some, and is told how many.
_TAIL_LINES = 1000
_MAX_TAILS = 16
# Written at once: as few system calls as a busy stream needs.
_TAIL_WRITE_BYTES = 16 * 1024
# Comments keep a quiet stream alive through whatever lies between, and find out that a reader has gone.
_TAIL_QUIET_S = 15.0


class Shown(Protocol):
    """What the pages need of the stack."""

    config: Config
    statistics: Statistics
    request_log: RequestLog

    @property
    def clusters(self) -> Mapping[str, Cluster]: ...

    def not_ready(self) -> str | None:
        """Why it is not ready to take requests; None: it is."""

    async def reload_all(self) -> str | None:
        """Read the file again; the reason why it was refused, or None."""

    def drain_all(self) -> None: ...

    def listening(self) -> Mapping[str, str]:
        """By listener: address and port."""


class AdminView:
    """The pages of one worker."""

    __slots__ = ("_shown", "_siblings", "_tails")

    def __init__(self, shown: Shown, siblings: Siblings) -> None:
        self._shown = shown
        self._siblings = siblings
        self._tails = 0

    def __repr__(self) -> str:
        return f"AdminView({self._tails} tails)"

    def pages(self) -> dict[str, Page]:
        return {
            "/ready": Page("200 when it takes requests, 503 with the reason when not", get=self._ready),
            "/live": Page("200 as long as it runs", get=self._live),
            "/config": Page("the configuration that runs, defaults included", get=self._config),
            "/clusters": Page("clusters, and each endpoint's state", get=self._clusters),
            "/stats": Page("counters of listeners and routes", get=self._stats),
            "/metrics": Page("all counters, for Prometheus", get=self._metrics),
            "/logging": Page("the log level; POST ?level=debug, info, warning, error", self._level, self._set_level),
            "/reload": Page("read the configuration again, now", post=self._reload),
            "/drain": Page("stop taking connections, end the requests there are, then exit", post=self._drain),
            "/tail": Page("requests as they end, as server-sent events; ?failed=1: those that failed", get=self._tail),
        }

    async def _live(self, _query: Query) -> Reply:
        return Reply(body="live\n")

    async def _ready(self, query: Query) -> Reply:
        reason = self._shown.not_ready()
        if reason is None and not query.is_local:
            answers = await self._siblings.ask("GET", "/ready?local=1")
            silent = [answer for answer in answers if answer.status != 200]
            if silent:
                said = (silent[0].body or b"no answer").decode().strip()
                reason = f"{len(silent)} of {len(answers) + 1} workers: {said}"
        return Reply(body="ready\n") if reason is None else Reply(503, f"not ready: {reason}\n")

    async def _config(self, _query: Query) -> Reply:
        config = self._shown.config
        parts = [f"{json.dumps(f.name)}: {await _listed(getattr(config, f.name))}" for f in dataclasses.fields(config)]
        return Reply(body="{\n" + ",\n".join(parts) + "\n}\n", content_type=JSON)

    async def _clusters(self, query: Query) -> Reply:
        shown: dict[str, Any] = {}
        for name, cluster in self._shown.clusters.items():
            shown[name] = _shown_cluster(cluster)
            await asyncio.sleep(0)
        if not query.is_local and self._siblings.addresses:
            return await self._summed("/clusters", shown, query)
        parts = []
        for name, one in shown.items():
            parts.append(f"{json.dumps(name)}: {json.dumps(one, indent=2)}")
            await asyncio.sleep(0)
        return Reply(body="{\n" + ",\n".join(parts) + "\n}\n", content_type=JSON)

    async def _stats(self, query: Query) -> Reply:
        statistics = self._shown.statistics
        routes: dict[str, Any] = {}
        for (listener, route, cluster), stats in statistics.routes.items():
            routes.setdefault(listener, {}).setdefault(route, {})[cluster or "(itself)"] = {
                "requests": sum(stats.answers),
                "answers": dict(zip(("none", "1xx", "2xx", "3xx", "4xx", "5xx"), stats.answers, strict=True)),
                "failures": stats.failures,
                "seconds": round(stats.duration_sum_s, 6),
            }
        value = {
            "workers": 1,
            "listening": self._shown.listening(),
            "listeners": {name: asdict(stats) for name, stats in statistics.listeners.items()},
            "routes": routes,
            "clusters": {name: asdict(stats) for name, stats in statistics.clusters.items()},
            "reloads": statistics.reloads,
            "reload_failures": statistics.reload_failures,
            "config_refused": statistics.config_refused,
        }
        return await self._summed("/stats", value, query)

    async def _summed(self, path: str, value: Any, query: Query) -> Reply:
        if not query.is_local:
            for answer in await self._siblings.ask("GET", f"{path}?local=1"):
                if answer.status == 200:
                    value = add_up(value, json.loads(answer.body))
        return json_reply(value)

    async def _metrics(self, query: Query) -> Reply:
        slices = []
        for part in metrics_text.render(self._shown.statistics, self._shown.clusters):
            slices.append(part)
            await asyncio.sleep(0)  # requests first
        page = "".join(slices)
        if not query.is_local and self._siblings.addresses:
            answers = await self._siblings.ask("GET", "/metrics?local=1")
            page = metrics_text.add_up([page, *(a.body.decode() for a in answers if a.status == 200)])
        return Reply(body=page, content_type=metrics_text.CONTENT_TYPE.decode())

    async def _level(self, _query: Query) -> Reply:
        return Reply(body=logging.getLevelName(logging.getLogger("meshproxy").level).lower() + "\n")

    async def _set_level(self, query: Query) -> Reply:
        level = query.values.get("level", "")
        if level not in _LEVELS:
            return Reply(400, f"expected ?level= one of {', '.join(_LEVELS)}, found {level or 'none'}\n")
        logging.getLogger("meshproxy").setLevel(level.upper())
        if not query.is_local:
            await self._siblings.ask("POST", f"/logging?local=1&level={level}")
        return Reply(body=f"{level}\n")

    async def _reload(self, _query: Query) -> Reply:
        reason = await self._shown.reload_all()
        if reason is not None:
            return Reply(400, f"refused, the configuration before runs on:\n{reason}\n")
        return Reply(body="taken\n")

    async def _drain(self, _query: Query) -> Reply:
        self._shown.drain_all()
        return Reply(body="draining\n")

    async def _tail(self, query: Query) -> Reply:
        if self._tails >= _MAX_TAILS:
            return Reply(503, f"{_MAX_TAILS} follow already\n")
        headers = (("x-accel-buffering", "no"),)
        return Reply(content_type="text/event-stream", stream=partial(self._stream, query), headers=headers)

    async def _stream(self, query: Query, send: Send) -> None:
        """Records as events, one line of JSON each, until the client goes."""
        events = _Events(failed_only="failed" in query.values)
        self._tails += 1
        key = self._shown.request_log.follow(events.put_record)
        try:
            async with asyncio.TaskGroup() as group:
                for address in () if query.is_local else self._siblings.addresses:
                    group.create_task(events.relay(self._siblings, address))
                await send(b": requests as they end\n\n")
                while True:
                    await send(await events.next())
        except* ConnectionError:
            pass  # the client went
        finally:
            self._tails -= 1
            self._shown.request_log.unfollow(key)


class _Events:
    """The queue of one reader of /tail: bounded, it drops what is too much for its reader, and says how many."""

    __slots__ = ("_failed_only", "_lost", "_queue")

    def __init__(self, *, failed_only: bool) -> None:
        self._failed_only = failed_only
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_TAIL_LINES)
        self._lost = 0

    def __repr__(self) -> str:
        return f"_Events({self._queue.qsize()} waiting, {self._lost} lost)"

    def put_record(self, line: bytes, /, *, failed: bool) -> None:
        if failed or not self._failed_only:
            self._put(b"data: " + line + b"\n\n")

    async def relay(self, siblings: Siblings, address: bytes) -> None:
        async for line in siblings.follow(address, "/tail?local=1" + ("&failed=1" if self._failed_only else "")):
            if line.startswith(b"data: "):
                self._put(line + b"\n")

    async def next(self) -> bytes:
        try:
            async with asyncio.timeout(_TAIL_QUIET_S):
                event = await self._queue.get()
        except TimeoutError:
            return b": quiet\n\n"
        while not self._queue.empty() and len(event) < _TAIL_WRITE_BYTES:
            event += self._queue.get_nowait()
        if self._lost:
            event, self._lost = event + b'event: lost\ndata: {"lost":%d}\n\n' % self._lost, 0
        return event

    def _put(self, event: bytes) -> None:
        if self._queue.full():
            self._lost += 1
        else:
            self._queue.put_nowait(event)


async def _listed(value: object) -> str:
    """A part of the configuration as JSON; lists item by item, letting requests through in between."""
    if not isinstance(value, tuple):
        shown = asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        return json.dumps(shown, indent=2)
    items = []
    for item in value:
        items.append(json.dumps(asdict(item), indent=2))
        await asyncio.sleep(0)
    return "[" + ",\n".join(items) + "]"


def _shown_cluster(cluster: Cluster) -> dict[str, Any]:
    return {
        "protocol": cluster.config.protocol,
        "policy": cluster.config.balancing.policy,
        "discovered": cluster.is_discovered,
        "active_requests": cluster.active_requests,
        "pending_requests": cluster.pending_requests,
        "active_retries": cluster.active_retries,
        "connections": cluster.connections,
        "endpoints": {
            endpoint.key: {
                "available": endpoint.is_available,
                "healthy": endpoint.is_healthy,
                "ejected": endpoint.is_ejected,
                "weight": endpoint.config.weight,
                "priority": endpoint.config.priority,
                "zone": endpoint.config.locality.zone,
                "identity": endpoint.config.identity,
                "active": endpoint.active,
                "requests": endpoint.requests,
                "successes": endpoint.successes,
                "failures": endpoint.failures,
                "connect_failures": endpoint.connect_failures,
                "timeouts": endpoint.timeouts,
                "ejections": endpoint.ejections,
            }
            for endpoint in cluster.endpoints
        },
    }
