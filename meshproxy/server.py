"""Listening sockets: accepts connections, tells their protocol, counts them, and lets them end.

A listener with a declared protocol is not sniffed at. `auto` reads at most the 24 bytes of HTTP/2's preface (RFC 9113
3.4); what is no HTTP/1 request line either is TCP, where the listener has a cluster for it. The protocols are
server_http1.py, server_http2.py and tcp_relay.py; a Server never looks into them.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Final, Protocol, cast, runtime_checkable

from meshproxy.listener import ListenerRuntime
from meshproxy.passage import DirectConnection
from meshproxy.server_http1 import DRAIN_IDLE_S, Http1Downstream
from meshproxy.shell import Timed
from meshproxy.tcp_relay import TcpRelay

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BACKLOG: Final = 4096
# Where the client may be waiting for the server's first word, this is how long it is given to speak itself.
SNIFF_S: Final = 0.025
# A method and a space: what no other protocol begins with. 20 letters are more than any registered method has.
_REQUEST_LINE = re.compile(rb"\r?\n?[A-Z][A-Z\-]{0,19} ")
_MAYBE_REQUEST_LINE = re.compile(rb"\r?\n?(?:[A-Z][A-Z\-]{0,19})?\Z")


@runtime_checkable
class Draining(Protocol):
    """A connection that can be asked to end soon, without breaking what runs."""

    def drain(self) -> None: ...


def protocol_of(data: bytes, *, may_be_tcp: bool) -> str | None:
    """Tell the protocol by a connection's first bytes; None: more are needed."""
    if data.startswith(PREFACE):
        return "http2"
    if PREFACE.startswith(data):
        return None
    if not may_be_tcp or _REQUEST_LINE.match(data):
        return "http1"
    return None if _MAYBE_REQUEST_LINE.match(data) else "tcp"


class Accepted(asyncio.Protocol):
    """A connection before its protocol is known."""

    __slots__ = ("_buffer", "_server", "_transport", "due_tick", "slot")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.due_tick = 0
        self.slot: set[Timed] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name.
        self._transport = cast("asyncio.Transport", transport)
        self._server.on_accepted(self, self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        listener = self._server.listener
        protocol = protocol_of(self._buffer, may_be_tcp=listener.config.cluster is not None)
        if protocol is not None and self._transport is not None:
            self.leave()
            self._server.adopt(self, self._transport, protocol).data_received(self._buffer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.leave()
        self._server.forget(self)

    def on_due(self) -> None:
        """The client is silent: maybe the server speaks first, maybe there is nobody."""
        if self._transport is None:
            return
        listener = self._server.listener
        if listener.config.cluster is None or listener.is_draining:
            self._transport.abort()
            return
        relay = self._server.adopt(self, self._transport, "tcp")
        if self._buffer:
            relay.data_received(self._buffer)

    def drain(self) -> None:
        """Whoever was accepted a moment ago is about to ask something."""
        self._server.listener.shell.wheel.put(self, DRAIN_IDLE_S)

    def leave(self) -> None:
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None


class Server:
    """One listener's socket and its connections."""

    __slots__ = ("_connections", "_drained", "_server", "listener")

    def __init__(self, listener: ListenerRuntime) -> None:
        self.listener = listener
        self._connections: dict[object, asyncio.Transport] = {}
        self._server: asyncio.Server | None = None
        self._drained = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Server {self.listener.config.name} connections={len(self._connections)}>"

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """What it listens on: for the port that 0 became, and for the process that takes over."""
        return tuple(self._server.sockets) if self._server is not None else ()

    async def start(self, sockets: tuple[socket.socket, ...] = ()) -> None:
        """Listen, on these sockets if another process hands them over."""
        loop = self.listener.shell.loop
        config = self.listener.config
        sock = sockets[0] if sockets else listening_socket(config.address, config.port)
        self._server = await loop.create_server(lambda: Accepted(self), sock=sock, backlog=BACKLOG)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def drain(self) -> None:
        """Let the connections end: idle ones now, others after what they are at. Returns when none is left."""
        self.listener.is_draining = True
        for connection in tuple(self._connections):
            if isinstance(connection, Draining):
                connection.drain()
        if self._connections:
            await self._drained.wait()

    def abort(self) -> None:
        """Break what is left: the time to drain is over."""
        for connection in tuple(self._connections.values()):
            connection.abort()

    # -- called by the connections

    def on_accepted(self, accepted: Accepted, transport: asyncio.Transport) -> None:
        listener = self.listener
        stats = listener.stats
        if len(self._connections) >= listener.config.max_connections:
            stats.connections_refused += 1
            transport.abort()
            return
        listener.shell.wheel.hold()
        stats.connections += 1
        stats.connections_active += 1
        self._connections[accepted] = transport
        declared = listener.config.protocol
        if declared != "auto":
            self.adopt(accepted, transport, declared)
        else:
            # Clients that speak first do so at once; a server that does must not wait for its client, ever.
            listener.shell.wheel.put(
                accepted, SNIFF_S if listener.config.cluster is not None else listener.config.head_timeout_s
            )

    def adopt(self, accepted: Accepted, transport: asyncio.Transport, protocol: str) -> asyncio.Protocol:
        """Give the connection to its protocol."""
        connection: asyncio.Protocol
        if protocol == "http1":
            connection = Http1Downstream(self.listener, transport, self.forget)
        elif protocol == "tcp":
            connection = TcpRelay(self.listener, transport, self.forget)
        else:
            connection = DirectConnection(self.listener, transport, self.forget)
        del self._connections[accepted]
        self._connections[connection] = transport
        transport.set_protocol(connection)
        return connection

    def forget(self, connection: object) -> None:
        """The connection has ended."""
        if connection in self._connections:
            del self._connections[connection]
            self.listener.stats.connections_active -= 1
            self.listener.shell.wheel.release()
            if not self._connections and self.listener.is_draining:
                self._drained.set()


def listening_socket(address: str, port: int) -> socket.socket:
    """A socket that other workers may share the port of."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address, port))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
