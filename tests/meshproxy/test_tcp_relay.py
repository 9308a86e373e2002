"""TCP through the proxy, and how a listener tells what its clients speak."""

from __future__ import annotations

import asyncio

import pytest

from meshproxy.server import PREFACE, protocol_of
from tests.meshproxy.proxying import Client, ScriptedEndpoint, proxy, run, wait_until
from tests.meshproxy.test_exchange import closed_port

TCP = {"protocol": "tcp", "cluster": "web"}
AUTO = {"cluster": "web"}


@pytest.mark.parametrize(
    ("data", "may_be_tcp", "protocol"),
    [
        (PREFACE, True, "http2"),
        (PREFACE + b"\0\0\0", False, "http2"),
        (PREFACE[:23], True, None),
        (b"P", True, None),
        (b"PRI * HTTP/2.0\r\n\r\nXX", True, "http1"),
        (b"POST ", True, "http1"),
        (b"GET / HTTP/1.1\r\n", True, "http1"),
        (b"GE", True, None),
        (b"M-SEARCH ", True, "http1"),
        (b"\x16\x03\x01", True, "tcp"),
        (b"\x16\x03\x01", False, "http1"),
        (b"hello\n", True, "tcp"),
        (b"PROXYPROXYPROXYPROXYPROXY", True, "tcp"),
        (b"SSH-2.0-client\r\n", True, "tcp"),
    ],
)
def test_the_first_bytes_tell_the_protocol(data: bytes, may_be_tcp: bool, protocol: str | None) -> None:
    assert protocol_of(data, may_be_tcp=may_be_tcp) == protocol


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", PREFACE, b"\x16\x03\x01", b"hello world"])
def test_more_bytes_never_change_what_was_told(data: bytes) -> None:
    told = [protocol_of(data[:end], may_be_tcp=True) for end in range(1, len(data) + 1)]
    known = [protocol for protocol in told if protocol is not None]
    assert len(set(known)) == 1
    assert told == [None] * (len(told) - len(known)) + known


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write(b"bye")


def test_bytes_pass_both_ways_and_each_direction_ends_by_itself() -> None:
    async def story() -> None:
        async with ScriptedEndpoint(echo).listening() as endpoint, proxy(endpoint.port, listener=TCP) as mesh:
            client = await mesh.connect()
            client.send(b"hello")
            assert await client.reader.readexactly(5) == b"hello"
            client.writer.write_eof()
            assert await client.reader.read() == b"bye"
            await wait_until(lambda: mesh.cluster.connections == 0)
            assert mesh.cluster.endpoints[0].active == 0
            assert mesh.listener.stats.connections_active == 0

    run(story())


def test_a_client_that_ends_before_the_endpoint_is_connected_loses_nothing() -> None:
    async def story() -> None:
        async with ScriptedEndpoint(echo).listening() as endpoint, proxy(endpoint.port, listener=TCP) as mesh:
            client = await mesh.connect()
            client.send(b"a" * 300_000)
            client.writer.write_eof()
            assert await client.reader.read() == b"a" * 300_000 + b"bye"

    run(story())


def test_megabytes_arrive_whole() -> None:
    async def story() -> None:
        async with ScriptedEndpoint(echo).listening() as endpoint, proxy(endpoint.port, listener=TCP) as mesh:
            client = await mesh.connect()
            data = bytes(range(256)) * 40_000
            client.send(data)
            client.writer.write_eof()
            assert await client.reader.read() == data + b"bye"

    run(story())


@pytest.mark.parametrize("listener", [TCP, AUTO], ids=["declared", "detected"])
def test_a_server_that_speaks_first_is_heard_by_a_silent_client(listener: dict[str, str]) -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 ready\r\n")
            await reader.read()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port, listener=listener) as mesh:
            client = await mesh.connect()
            assert await client.reader.readline() == b"220 ready\r\n"

    run(story())


def test_one_port_serves_http_and_anything_else() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as web, proxy(web.port, listener=AUTO) as mesh:
            client = await mesh.connect()
            assert (await client.get()).body == b"ok"
            raw = await mesh.connect()
            raw.send(b"\x16\x03\x01 no HTTP\r\n\r\n")
            await wait_until(lambda: len(web.heads) == 2)
            assert web.heads[1] == b"\x16\x03\x01 no HTTP\r\n\r\n"

    run(story())


def test_an_endpoint_that_refuses_is_passed_over() -> None:
    async def story() -> None:
        refusing = await closed_port()
        async with ScriptedEndpoint(echo).listening() as endpoint, proxy(refusing, endpoint.port, listener=TCP) as mesh:
            for _ in range(4):
                client = await mesh.connect()
                client.send(b"hello")
                assert await client.reader.readexactly(5) == b"hello"
                client.close()

    run(story())


def test_no_endpoint_means_no_connection() -> None:
    async def story() -> None:
        async with proxy(await closed_port(), listener=TCP) as mesh:
            assert await (await mesh.connect()).is_closed()
            await wait_until(lambda: mesh.cluster.connections == 0)

    run(story())


def test_a_reset_is_passed_on() -> None:
    async def story() -> None:
        async with ScriptedEndpoint(echo).listening() as endpoint, proxy(endpoint.port, listener=TCP) as mesh:
            client = await mesh.connect()
            client.send(b"hello")
            await client.reader.readexactly(5)
            endpoint.break_connections()
            assert await client.is_closed()
            await wait_until(lambda: mesh.cluster.connections == 0)

    run(story())


def test_a_relay_where_nothing_happens_is_closed() -> None:
    async def story() -> None:
        short = {**TCP, "tcp_idle_s": 0.1}
        async with ScriptedEndpoint(echo).listening() as endpoint, proxy(endpoint.port, listener=short) as mesh:
            assert await (await mesh.connect()).is_closed()
            await wait_until(lambda: mesh.cluster.connections == 0)

    run(story())


async def _push(client: Client, size: int) -> int:
    sent = 0
    while sent < size:
        client.send(b"a" * 65_536)
        sent += 65_536
        try:
            async with asyncio.timeout(0.3):
                await client.writer.drain()
        except TimeoutError:
            break
    return sent


def test_a_slow_endpoint_stops_the_client() -> None:
    async def story() -> None:
        release = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await release.wait()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port, listener=TCP) as mesh:
            client = await mesh.connect()
            assert await _push(client, 200_000_000) < 100_000_000
            release.set()

    run(story())
