"""TCP as it comes: bytes from a client to an endpoint and back, each direction ending by itself.

The endpoint is connected to at once, not when the client speaks: it may be the one who begins. While one side cannot
take more, the other is not read from, so a relay holds a few buffers of the kernel's size, whatever passes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from meshproxy.cluster import Cluster, Endpoint
from meshproxy.hash_key import hash_value
from meshproxy.listener import ListenerRuntime
from meshproxy.message import ProxyError
from meshproxy.shell import Timed, ticks
from meshproxy.upstream import dial

_MAX_ATTEMPTS = 3


class TcpRelay(asyncio.Protocol):
    """The client's side; `_Far` is the endpoint's."""

    __slots__ = (
        "_cluster",
        "_early",
        "_endpoint",
        "_far",
        "_far_has_ended",
        "_has_ended",
        "_is_gone",
        "_is_paused",
        "_listener",
        "_on_close",
        "_peer_address",
        "_transport",
        "active_tick",
        "bytes_received",
        "bytes_sent",
        "due_tick",
        "slot",
        "started_at",
        "wheel",
        "write",
    )

    def __init__(
        self, listener: ListenerRuntime, transport: asyncio.Transport, on_close: Callable[[TcpRelay], None]
    ) -> None:
        self._listener = listener
        self._transport = transport
        self.write = transport.write
        self.wheel = listener.shell.wheel
        self._on_close = on_close
        self._peer_address = str((transport.get_extra_info("peername") or ("unknown",))[0])
        self._far: _Far | None = None
        self._early: list[bytes] = []
        self._has_ended = False  # the client's direction
        self._far_has_ended = False
        self._is_paused = False  # the client's side is not read from
        self._is_gone = False
        self._cluster: Cluster | None = None
        self._endpoint: Endpoint | None = None
        self.bytes_received = 0
        self.bytes_sent = 0
        self.due_tick = 0
        self.slot: set[Timed] | None = None
        self.active_tick = self.wheel.tick
        self.started_at = listener.shell.now()
        listener.stats.tcp_connections += 1
        listener.shell.tasks.create_task(self._connect())
        self._wind()

    def __repr__(self) -> str:
        return f"<TcpRelay {self._peer_address} to {self._endpoint!r}>"

    def drain(self) -> None:
        """A relay ends when its two sides do."""

    async def _connect(self) -> None:
        listener = self._listener
        cluster = listener.clusters.get(listener.config.cluster or "")
        error = ProxyError("proxy", "no-healthy-endpoint")
        avoid: Endpoint | None = None
        for _ in range(_MAX_ATTEMPTS if cluster is not None else 0):
            assert cluster is not None
            if cluster.connections >= cluster.config.circuit_breaker.max_connections:
                cluster.stats.overflow_connections += 1
                break
            endpoint = cluster.pick(hash_value(self._peer_address.encode()), avoid=avoid)
            if endpoint is None:
                cluster.stats.no_healthy_endpoint += 1
                break
            cluster.connections += 1
            endpoint.active += 1
            self._cluster, self._endpoint = cluster, endpoint
            try:
                await dial(
                    endpoint, lambda: _Far(self), timeout_s=cluster.config.connect_timeout_s, shell=listener.shell
                )
            except ProxyError as failure:
                error = failure
                self._release(error)
                avoid = endpoint
                if self._is_gone:
                    return
                continue
            cluster.stats.connections += 1
            return
        listener.stats.refuse(error.kind)
        self._transport.abort()

    # -- the client's side

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self.active_tick = self.wheel.tick
        far = self._far
        if far is not None:
            far.write(data)
            return
        self._early.append(data)
        self.pause_near()

    def eof_received(self) -> bool:
        self._has_ended = True
        far = self._far
        if far is not None:
            if self._far_has_ended:
                far.transport.close()
                return False
            far.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(None if exc is None else ProxyError("client", "client-gone"))

    def pause_writing(self) -> None:
        if self._far is not None:
            self._far.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._far is not None:
            self._far.transport.resume_reading()

    # -- the endpoint's side

    def on_connected(self, far: _Far) -> None:
        if self._is_gone:
            far.transport.abort()
            return
        self._far = far
        if self._early:
            early, self._early = self._early, []
            self.resume_near()
            far.transport.writelines(early)  # may pause again
        if self._has_ended:
            far.transport.write_eof()

    def on_far_end(self) -> bool:
        """Return whether the endpoint's side is to stay open, for the client's direction."""
        self._far_has_ended = True
        if self._transport.is_closing() or self._has_ended:
            self._transport.close()
            return False
        self._transport.write_eof()
        return True

    def on_far_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._transport.close()
        else:
            self._transport.abort()
        self._end(None if exc is None else ProxyError("endpoint", "reset", str(exc)))

    def pause_near(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume_near(self) -> None:
        if self._is_paused and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    # -- the end

    def on_due(self) -> None:
        if self.wheel.tick - self.active_tick >= ticks(self._listener.config.tcp_idle_s):
            self._transport.abort()
        else:
            self._wind()

    def _wind(self) -> None:
        if self._listener.config.tcp_idle_s:
            self.wheel.put_at(self, self.active_tick + ticks(self._listener.config.tcp_idle_s))

    def _end(self, error: ProxyError | None) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        self._release(error)
        stats = self._listener.stats
        stats.bytes_received += self.bytes_received
        stats.bytes_sent += self.bytes_sent
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None
        if self._far is not None and error is not None:
            self._far.transport.abort()
        elif self._far is not None:
            self._far.transport.close()
        self._on_close(self)

    def _release(self, error: ProxyError | None) -> None:
        if self._cluster is None or self._endpoint is None:
            return
        self._cluster.connections -= 1
        self._endpoint.active -= 1
        duration_s = self._listener.shell.now() - self.started_at
        if error is None or error.side == "endpoint":
            self._endpoint.report(200 if error is None else None, error.kind if error else None, duration_s)
        self._cluster = self._endpoint = None


class _Far(asyncio.Protocol):
    """The endpoint's side of a relay."""

    __slots__ = ("_relay", "_write_near", "transport", "write")

    transport: asyncio.Transport

    def __init__(self, relay: TcpRelay) -> None:
        self._relay = relay
        self._write_near = relay.write

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name.
        self.transport = cast("asyncio.Transport", transport)
        self.write = self.transport.write
        self._relay.on_connected(self)

    def data_received(self, data: bytes) -> None:
        relay = self._relay
        relay.bytes_sent += len(data)
        relay.active_tick = relay.wheel.tick
        self._write_near(data)

    def eof_received(self) -> bool:
        return self._relay.on_far_end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.on_far_lost(exc)

    def pause_writing(self) -> None:
        self._relay.pause_near()

    def resume_writing(self) -> None:
        self._relay.resume_near()
