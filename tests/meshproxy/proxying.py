"""A proxy on the running loop, with its endpoints beside it: what the tests of the shell talk to.

Everything listens on port 0 of the loopback. `Client` speaks raw bytes, since what is tested is what goes wrong.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvloop

from meshproxy.cluster import Cluster
from meshproxy.config import (
    ClusterConfig,
    EndpointConfig,
    Forward,
    Listener,
    Route,
    StaticDiscovery,
    WeightedCluster,
)
from meshproxy.listener import ListenerRuntime
from meshproxy.metrics import Statistics
from meshproxy.route import Router
from meshproxy.server import Server
from meshproxy.shell import Shell

TEST_LIMIT_S = 20

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run one test's story on the loop that the proxy runs on."""

    async def limited() -> None:
        async with asyncio.timeout(TEST_LIMIT_S):
            await story

    uvloop.run(limited())


class ScriptedEndpoint:
    """A server that does what the test says, connection by connection; keeps the requests it has heard."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.port = 0
        self.answer: bytes | Callable[[bytes], bytes] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self._handler = handler or self._serve
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[ScriptedEndpoint]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.break_connections()

    def break_connections(self) -> None:
        """Reset them all."""
        for writer in tuple(self._writers):
            sock = writer.get_extra_info("socket")
            if sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close_connections(self) -> None:
        for writer in tuple(self._writers):
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            await self._handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await self.read_request(reader)
            answer = self.answer(head) if callable(self.answer) else self.answer
            writer.write(answer)
            await writer.drain()

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        self.bodies.append(await read_body(reader, head))
        return head


async def read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body that the head announces."""
    length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
    if length is not None:
        return await reader.readexactly(int(length[1]))
    if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        pieces = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return b"".join(pieces)
    return b""


@dataclass
class Answer:
    """What a client got."""

    status: int
    head: bytes
    body: bytes

    def field(self, name: str) -> str | None:
        found = re.search(rb"(?i)\r\n%b:[ \t]*([^\r]*)\r\n" % re.escape(name.encode()), self.head)
        return None if found is None else found[1].decode()


class Client:
    """A client's connection, speaking raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, has_body: bool = True) -> Answer:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        may_have_body = has_body and status >= 200 and status not in (204, 304)
        return Answer(status, head, await read_body(self.reader, head) if may_have_body else b"")

    async def get(self, path: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> Answer:
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: web", *lines, "", ""])
        self.send(head.encode() + body)
        return await self.answer(has_body=method != "HEAD")

    async def is_closed(self) -> bool:
        """Wait for the end; nothing may come before it."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


@dataclass
class Proxy:
    """The proxy under test."""

    listener: ListenerRuntime
    server: Server
    clusters: dict[str, Cluster]
    shell: Shell
    stack: AsyncExitStack

    @property
    def port(self) -> int:
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    @property
    def cluster(self) -> Cluster:
        return self.clusters["web"]

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        self.stack.callback(writer.close)
        return Client(reader, writer)


def forward(**more: Any) -> Route:
    return Route(name="all", action=Forward(clusters=(WeightedCluster(cluster="web"),), **more))


def endpoint_configs(*ports: int) -> tuple[EndpointConfig, ...]:
    return tuple(EndpointConfig(address="127.0.0.1", port=port) for port in ports)


@asynccontextmanager
async def proxy(
    *ports: int,
    routes: tuple[Route, ...] | None = None,
    listener: dict[str, Any] | None = None,
    others: dict[str, tuple[int, ...]] | None = None,
    **cluster: Any,
) -> AsyncIterator[Proxy]:
    """A proxy whose cluster `web` has its endpoints at `ports`; `others` are more clusters."""
    statistics = Statistics()
    clusters = {}
    for name, at in {"web": ports, **(others or {})}.items():
        clusters[name] = Cluster(ClusterConfig(name=name, discovery=StaticDiscovery(endpoints=()), **cluster))
        clusters[name].update(endpoint_configs(*at))
    config = replace(
        Listener(name="in", port=0, address="127.0.0.1", routes=(forward(),) if routes is None else routes),
        **(listener or {}),
    )
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        shell = Shell(asyncio.get_running_loop(), tasks)
        shell.wheel.start()
        stack.callback(shell.wheel.stop)
        runtime = ListenerRuntime(config, router=Router(config, statistics), clusters=clusters, shell=shell)
        server = Server(runtime)
        await server.start()
        stack.callback(server.stop_accepting)
        stack.callback(server.abort)
        for one in clusters.values():
            stack.callback(one.update, ())
        yield Proxy(runtime, server, clusters, shell, stack)


async def wait_until(claim: Callable[[], bool]) -> None:
    """Let the loop run until the claim holds; the test's limit ends a wait in vain."""
    while not claim():
        await asyncio.sleep(0.001)
