"""One listener in one worker: its runtime, and a server for each of its sockets.

The sockets are another's (listening.py): each server accepts on a copy, so that to stop accepting closes no queue.
"""

from __future__ import annotations

import asyncio
import socket

from meshproxy.listener import ListenerRuntime
from meshproxy.listening import where_of
from meshproxy.server import Server

# How long a connection that is idle when a drain begins may still bring a request, whose answer then says that the
# connection closes. Closed at once, it would break the request that is on its way to us: HTTP/1 cannot tell.
IDLE_GRACE_S = 5.0


class Serving:
    """Accepts from `accept` to `drain`."""

    __slots__ = ("_servers", "_sockets", "_tasks", "runtime")

    def __init__(self, runtime: ListenerRuntime, sockets: list[socket.socket], *, tasks: asyncio.TaskGroup) -> None:
        self.runtime = runtime
        self._sockets = sockets
        self._tasks = tasks
        self._servers: list[Server] = []

    def __repr__(self) -> str:
        return f"<Serving {self.runtime.config.name} on {self.where}>"

    @property
    def where(self) -> str:
        return where_of(self._sockets[0]) if self._sockets and self._sockets[0].fileno() >= 0 else "closed"

    @property
    def connections(self) -> int:
        return self.runtime.stats.connections_active

    async def accept(self) -> None:
        """Begin, unless it has begun."""
        if not self._servers:
            for sock in self._sockets:
                server = Server(self.runtime)
                self._servers.append(server)
                await server.start((sock.dup(),))

    def drain(self, *, within_s: float) -> None:
        """Accept no more; each answer from now on says that its connection closes. What stays idle is closed later."""
        self.runtime.is_draining = True
        for server in self._servers:
            server.stop_accepting()
        self._tasks.create_task(self._end(min(IDLE_GRACE_S, within_s / 2)))

    def close(self) -> None:
        for server in self._servers:
            server.stop_accepting()

    async def _end(self, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        for server in self._servers:
            await server.drain()
