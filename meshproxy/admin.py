"""The operator's endpoint: a small HTTP/1.1 server of its own, so that it answers whatever becomes of the proxy's.

GET looks, POST changes, and nothing else is taken; `/` lists what there is. Requests of web pages are refused (Origin,
or a Host that is a name: DNS rebinding), since the port is usually open to all of its machine. Behind it is a View,
admin_view.py's. With several workers whichever is asked asks the others (siblings.py) and answers for all.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl

_MAX_BODY_BYTES = 64 * 1024
# For the request of a connection; a scraper that keeps its connection comes back within a minute.
_IDLE_S = 120.0
_REQUEST_LINE = re.compile(rb"(GET|HEAD|POST|[A-Z]{3,20}) (/[!-~]*) HTTP/1\.[01]")
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {413: "Content Too Large", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


# Sends a piece of a stream; raises ConnectionError when the client has gone.
Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: whole, or a stream that ends when the client goes."""

    status: int = 200
    body: bytes | str = b""
    content_type: str = TEXT
    stream: Callable[[Send], Coroutine[Any, Any, None]] | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """What was asked beside the path. `is_local`: a sibling asks, for this worker alone."""

    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return "local" in self.values


Handler = Callable[[Query], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Page:
    """One path: what it is for, and who answers which method."""

    text: str
    get: Handler | None = None
    post: Handler | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        looking = ("GET", "HEAD") if self.get else ()
        return looking + (("POST",) if self.post else ())


def json_reply(value: object, *, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value, indent=2, default=str) + "\n", JSON)


class Admin:
    """Answers connections by its pages. `serve` is the callback of asyncio.start_server."""

    __slots__ = ("_open", "_pages")

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = {"/": Page("this list", get=self._index), **pages}
        self._open: set[asyncio.StreamWriter] = set()

    def __repr__(self) -> str:
        return f"Admin({len(self._pages)} pages, {len(self._open)} connections)"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client's matter
        except asyncio.CancelledError:
            pass  # the loop ends; Python 3.11's streams would report it as an error
        finally:
            self._open.discard(writer)
            writer.close()

    def close(self) -> None:
        """End what is open, streams included."""
        for writer in tuple(self._open):
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        try:
            async with asyncio.timeout(_IDLE_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            await _send(writer, Reply(431, "the head is too large\n"))
            return False
        lines = head.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(lines[0])
        fields = _fields(lines[1:-2])
        if match is None or fields is None or "transfer-encoding" in fields:
            await _send(writer, Reply(400, "no request that is understood here\n"))
            return False
        method = match[1].decode()
        path, _, query = match[2].decode().partition("?")
        length = fields.get("content-length", "0")
        if not length.isdigit() or len(length) > 8 or int(length) > _MAX_BODY_BYTES:
            await _send(writer, Reply(413, "no body is needed here\n"))
            return False
        await reader.readexactly(int(length))
        keep = lines[0].endswith(b"1.1") and fields.get("connection", "").lower() != "close"
        reply = refuse_browsers(fields) or await self._answer(method, path, Query(dict(parse_qsl(query))))
        await _send(writer, reply, method=method, keep=keep, reader=reader)
        return keep and reply.stream is None

    async def _answer(self, method: str, path: str, query: Query) -> Reply:
        page = self._pages.get(path)
        if page is None:
            return Reply(404, f"nothing at {path}; GET / lists what there is\n")
        handler = page.post if method == "POST" else page.get if method in ("GET", "HEAD") else None
        if handler is None:
            allow = ", ".join(page.methods)
            return Reply(405, f"{path} takes {allow}\n", headers=(("allow", allow),))
        return await handler(query)

    async def _index(self, _query: Query) -> Reply:
        rows = []
        for path, page in self._pages.items():
            methods = " ".join(method for method in page.methods if method != "HEAD")
            rows.append(f"{methods:<8} {path:<10} {page.text}\n")
        return Reply(body="".join(rows))


def refuse_browsers(fields: Mapping[str, str]) -> Reply | None:
    """Refuse what only a web page sends: it may make its reader's browser post to any port of the machine."""
    host = fields.get("host", "localhost").removesuffix(".")
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if "origin" in fields or fields.get("sec-fetch-site", "none") != "none":
        return Reply(403, "not for web pages\n")
    if name != "localhost":
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            return Reply(403, "ask by address, or as localhost\n")
    return None


def _fields(lines: list[bytes]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name != name.strip() or name.lower() in found:
            return None
        found[name.lower()] = value.strip()
    return found


async def _send(
    writer: asyncio.StreamWriter,
    reply: Reply,
    *,
    method: str = "GET",
    keep: bool = False,
    reader: asyncio.StreamReader | None = None,
) -> None:
    body = reply.body.encode() if isinstance(reply.body, str) else reply.body
    lines = [
        f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}",
        f"content-type: {reply.content_type}",
        "cache-control: no-store",
        *(f"{name}: {value}" for name, value in reply.headers),
    ]
    if reply.stream is None:
        lines.append(f"content-length: {len(body)}")
    if not keep or reply.stream is not None:
        lines.append("connection: close")
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body))
    await writer.drain()
    if reply.stream is not None and reader is not None and method != "HEAD":

        async def send(part: bytes) -> None:
            if writer.is_closing():
                raise ConnectionResetError
            writer.write(part)
            await writer.drain()

        async with asyncio.TaskGroup() as group:
            stream = group.create_task(reply.stream(send))
            await reader.read(1)  # a client that follows has nothing to say: this is its end
            stream.cancel()
