"""One health question over one connection: TCP, HTTP/1.1, HTTP/2, gRPC. Returns when the answer is good, else raises.

The smallest clients that will do. They accept what a lenient client would: it is the endpoint's health that is in
question, not its manners. Callers bound the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import hpack

from meshproxy.config import ClusterConfig, HealthCheck
from meshproxy.endpoint import Endpoint

USER_AGENT = "meshproxy-health"
MAX_ANSWER_BYTES = 64 * 1024

# RFC 9113 3.4, 4.1, 6: the frames a single request needs.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

GRPC_PATH = "/grpc.health.v1.Health/Check"
GRPC_SERVING = 1


class CheckFailed(Exception):
    """The endpoint answered, but not well."""


async def probe(check: HealthCheck, cluster: ClusterConfig, endpoint: Endpoint) -> None:
    """Ask once. Raises CheckFailed, or OSError where there is nobody to answer."""
    host = check.host or cluster.name
    async with _connected(endpoint) as (reader, writer):
        if check.kind == "grpc":
            await _ask_grpc(reader, writer, host=host, service=check.service)
        elif check.kind == "http" and cluster.protocol == "http2":
            status = (await _ask_http2(reader, writer, _get(check.path, host)))[0].get(":status", "")
            _check_status(int(status) if status.isdigit() else 0, check)
        elif check.kind == "http":
            _check_status(await _ask_http1(reader, writer, path=check.path, host=host), check)


@contextlib.asynccontextmanager
async def _connected(endpoint: Endpoint) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(endpoint.address, endpoint.port, limit=MAX_ANSWER_BYTES)
    try:
        yield reader, writer
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, hpack.HPACKError) as error:
        raise CheckFailed(f"no whole answer: {error}") from error
    finally:
        writer.transport.abort()  # nothing more to say; and a frozen endpoint must not hold us


def _check_status(status: int, check: HealthCheck) -> None:
    if status not in check.expected_statuses:
        raise CheckFailed(f"status {status}, expected {check.expected_statuses}")


async def _ask_http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, path: str, host: str) -> int:
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n\r\n".encode()
    )
    while True:
        line = await reader.readuntil(b"\n")
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise CheckFailed(f"not HTTP/1: {line[:40]!r}")
        while (await reader.readuntil(b"\n")).strip():
            pass
        if not rest.startswith(b"1"):  # 100-199: the answer is still to come (RFC 9110 15.2)
            return int(rest[:3])


async def _ask_grpc(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, host: str, service: str) -> None:
    """Ask grpc.health.v1 (one string in, one enumeration out: no need of protobuf)."""
    name = service.encode()
    message = (b"\x0a" + _varint(len(name)) + name) if name else b""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", GRPC_PATH),
        (":authority", host),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", USER_AGENT),
    ]
    found, body = await _ask_http2(reader, writer, fields, body=struct.pack(">BL", 0, len(message)) + message)
    if found.get("grpc-status") != "0":
        raise CheckFailed(f"grpc-status {found.get('grpc-status')}: {found.get('grpc-message', '')}")
    # Prefix of five bytes, then field 1, a varint; 0 (unknown) is not sent at all.
    status = body[6] if len(body) == 7 and body[5] == 0x08 else 0
    if status != GRPC_SERVING:
        raise CheckFailed(f"not serving: {status}")


async def _ask_http2(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fields: list[tuple[str, str]], body: bytes = b""
) -> tuple[dict[str, str], bytes]:
    """Send one request by prior knowledge; return all fields of the final answer, trailers included, and its body."""
    block = hpack.Encoder().encode(fields)
    end = 0 if body else END_STREAM
    writer.write(PREFACE + _frame(SETTINGS) + _frame(HEADERS, END_HEADERS | end, block, stream=1))
    if body:
        writer.write(_frame(DATA, END_STREAM, body, stream=1))
    decoder = hpack.Decoder()
    found: dict[str, str] = {}
    received = block = b""
    ends_stream = False
    while True:
        head = await reader.readexactly(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        if length > MAX_ANSWER_BYTES:
            raise CheckFailed(f"a frame of {length} bytes")
        payload = await reader.readexactly(length)
        if kind == SETTINGS and not flags & ACK:
            writer.write(_frame(SETTINGS, ACK))
        elif kind == PING and not flags & ACK:
            writer.write(_frame(PING, ACK, payload))
        elif kind in (RST_STREAM, GOAWAY):
            raise CheckFailed("stream reset" if kind == RST_STREAM else "connection closing")
        elif kind == DATA:
            received += _unpadded(payload, flags)
            if len(received) > MAX_ANSWER_BYTES:
                raise CheckFailed("too long an answer")
        elif kind in (HEADERS, CONTINUATION):
            if kind == HEADERS:
                ends_stream = bool(flags & END_STREAM)
                block = _unpadded(payload, flags)[5 if flags & PRIORITY else 0 :]
            else:
                block += payload
            if not flags & END_HEADERS:
                continue
            found.update((str(name), str(value)) for name, value in decoder.decode(block))
            if ends_stream:
                return found, received
            continue
        if kind == DATA and flags & END_STREAM:
            return found, received


def _get(path: str, host: str) -> list[tuple[str, str]]:
    return [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", host),
        ("user-agent", USER_AGENT),
    ]


def _frame(kind: int, flags: int = 0, payload: bytes = b"", *, stream: int = 0) -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _unpadded(payload: bytes, flags: int) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & PADDED and payload else payload


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
