"""Endpoints that answer with the address they were asked at, all of them one server; a client with many questions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

CONNECTIONS = 8
BATCH = 200  # requests pipelined at one time


class AnswersItsAddress(asyncio.Protocol):
    """An endpoint: to each request, the local address it came to."""

    def __init__(self, connections: set[asyncio.Transport]) -> None:
        self.connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.connections.add(transport)
        address, port = transport.get_extra_info("sockname")[:2]
        body = (f"[{address}]:{port}" if ":" in address else f"{address}:{port}").encode()
        self.answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        *heads, self.rest = (self.rest + data).split(b"\r\n\r\n")
        self.transport.write(self.answer * len(heads))


@contextlib.asynccontextmanager
async def endpoint_server() -> AsyncIterator[int]:
    """Serve every address of 127.0.0.0/8 and ::1 on one port."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        listening = socket.create_server(("0.0.0.0", 0), backlog=1024)
        port: int = listening.getsockname()[1]
        try:
            six = socket.create_server(("::1", port), family=socket.AF_INET6, backlog=1024)
        except OSError:
            listening.close()  # taken there: another port
            continue
        break
    else:
        raise AssertionError("no port that is free on both families")
    connections: set[asyncio.Transport] = set()
    async with (
        await loop.create_server(lambda: AnswersItsAddress(connections), sock=listening),
        await loop.create_server(lambda: AnswersItsAddress(connections), sock=six),
    ):
        yield port
        for connection in connections:
            connection.abort()
        await asyncio.sleep(0)  # connection_lost of each


async def answers(port: int, requests: list[bytes]) -> list[str]:
    """Return the bodies of the answers, pipelined over a few connections; of any but 200 all that was said."""

    async def over_one(part: list[bytes]) -> list[str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = []
        try:
            for start in range(0, len(part), BATCH):
                batch = part[start : start + BATCH]
                writer.write(b"".join(batch))
                for _ in batch:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    body = await reader.readexactly(length)
                    found.append(body.decode() if head.startswith(b"HTTP/1.1 200") else f"error: {head + body!r}")
        finally:
            writer.close()
        return found

    parts = [requests[place::CONNECTIONS] for place in range(CONNECTIONS)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(over_one(part)) for part in parts]
    found = [""] * len(requests)
    for place, task in enumerate(tasks):
        found[place::CONNECTIONS] = task.result()
    return found
