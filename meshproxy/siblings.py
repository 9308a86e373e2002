"""The other workers of one proxy: asking them what they know, over unix sockets that their parent made.

Each worker serves the same admin pages on a socket of its own, with `local`: for itself. A worker that does not answer
(it is being started again) is reported as such, never waited for long.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

_ANSWER_S = 2.0
_LINE_BYTES = 1 << 20  # of a record in /tail, with the longest of paths


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sibling said; status 0: nothing."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Siblings:
    """The addresses of the other workers' sockets, in the abstract namespace."""

    addresses: tuple[bytes, ...] = ()

    async def ask(self, method: str, target: str) -> list[Answer]:
        """Ask all, at once."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(address, method, target)) for address in self.addresses]
        return [task.result() for task in tasks]

    async def follow(self, address: bytes, target: str) -> AsyncIterator[bytes]:
        """The stream that a sibling sends, by lines; ends with it."""
        try:
            reader, writer = await _connect(address)
        except OSError:
            return
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            while line := await reader.readline():
                yield line
        except (OSError, ValueError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


async def _connect(address: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # Connected here, since libuv takes no name that begins with NUL. It does not block: the peer need not accept.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(address)
        return await asyncio.open_unix_connection(sock=sock, limit=_LINE_BYTES)
    except BaseException:
        sock.close()
        raise


async def _ask(address: bytes, method: str, target: str) -> Answer:
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await _connect(address)
            try:
                writer.write(f"{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return Answer(0, b"")
    words = head.split(b" ", 2)
    return Answer(int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, body)


def add_up(first: Any, second: Any) -> Any:
    """One answer of two workers': numbers are summed, mappings joined; `true` only where both say so."""
    if isinstance(first, dict) and isinstance(second, dict):
        merged = dict(first)
        for key, value in second.items():
            merged[key] = add_up(merged[key], value) if key in merged else value
        return merged
    if isinstance(first, bool) and isinstance(second, bool):
        return first and second
    if isinstance(first, int | float) and isinstance(second, int | float):
        return first + second
    return first
