"""Connections to endpoints: how long they are kept, and which answers end them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from meshproxy.access_log import RequestLog
from meshproxy.config import AccessLog
from meshproxy.error_answer import error_answer
from meshproxy.message import ProxyError, RequestHead
from meshproxy.metrics import Statistics
from tests.meshproxy.proxying import ScriptedEndpoint, endpoint_configs, proxy, run, wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("settings", "connections"),
    [({}, 1), ({"max_requests_per_connection": 2}, 3), ({"max_connection_age_s": 0.001}, 6)],
    ids=["for ever", "two requests", "some time"],
)
def test_a_connection_is_kept_as_long_as_the_cluster_says(settings: dict[str, Any], connections: int) -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port, **settings) as mesh:
            client = await mesh.connect()
            for _ in range(6):
                tick = mesh.shell.wheel.tick
                await wait_until(lambda tick=tick: mesh.shell.wheel.tick > tick + 2)  # type: ignore[misc]
                assert (await client.get()).status == 200
            assert endpoint.connections == connections

    run(story())


def test_an_idle_connection_grows_old_and_is_closed() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port, idle_timeout_s=0.1) as mesh:
            client = await mesh.connect()
            assert (await client.get()).status == 200
            assert mesh.cluster.connections == 1
            await wait_until(lambda: mesh.cluster.connections == 0)
            assert (await client.get()).status == 200

    run(story())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_an_endpoint_that_says_close_is_believed(answer: bytes) -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            endpoint.answer = answer
            client = await mesh.connect()
            for _ in range(3):
                got = await client.get()
                assert (got.body, got.field("connection")) == (b"ok", None)
            assert endpoint.connections == 3

    run(story())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Surprise\r\n\r\n",
        b"hello\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_is_a_502(answer: bytes) -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            endpoint.answer = answer
            client = await mesh.connect()
            got = await client.get()
            assert (got.status, got.field("x-netloom-error")) == (502, "bad-answer")
            await wait_until(lambda: mesh.cluster.connections == 0)
            assert mesh.cluster.endpoints[0].failures == 1

    run(story())


def test_an_answer_in_single_bytes_is_the_same_answer() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for data in (
                b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
            ):
                writer.write(bytes([data]))
                await asyncio.sleep(0)
            await reader.read()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            assert (await client.get()).status == 103
            assert (await client.answer()).body == b"abc"

    run(story())


def test_a_new_identity_at_an_old_address_gets_new_connections() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            await client.get()
            (config,) = endpoint_configs(endpoint.port)
            mesh.cluster.update((type(config)(address=config.address, port=config.port, identity="another"),))
            await client.get()
            assert endpoint.connections == 2
            await wait_until(lambda: mesh.cluster.connections == 1)

    run(story())


def test_an_endpoint_may_be_asked_to_open_a_tunnel_where_that_is_allowed() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            endpoint.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while data := await reader.read(100):
                writer.write(data)

        endpoint = ScriptedEndpoint(serve)
        async with endpoint.listening(), proxy(endpoint.port, listener={"allow_connect": True}) as mesh:
            client = await mesh.connect()
            client.send(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n")
            assert (await client.answer(has_body=False)).status == 200
            client.send(b"hello")
            assert await client.reader.readexactly(5) == b"hello"
            assert endpoint.heads[0].startswith(b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n")

    run(story())


def test_the_log_tells_what_became_of_a_request(tmp_path: Any) -> None:
    async def story() -> None:
        log = RequestLog(AccessLog(mode="errors", path=str(tmp_path / "log")), Statistics())
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            mesh.listener.log = log
            client = await mesh.connect()
            await client.get("/well")
            endpoint.answer = b"nonsense\r\n\r\n"
            await client.get("/badly")
        log.close()
        (line,) = (tmp_path / "log").read_text().splitlines()
        assert '"path":"/badly"' in line
        assert '"error":"bad-answer"' in line
        assert '"status":502' in line

    run(story())


@pytest.mark.parametrize(
    ("kind", "grpc_status"), [("timeout", b"4"), ("no-route", b"12"), ("overflow", b"14"), ("bad-answer", b"14")]
)
def test_a_client_of_grpc_gets_a_status_it_understands(kind: Any, grpc_status: bytes) -> None:
    head = RequestHead(b"POST", b"http", b"a", b"/s/m", [(b"content-type", b"application/grpc+proto")])
    answer, body = error_answer(ProxyError("proxy", kind), head, gave_up=False)
    assert (answer.status, answer.get(b"grpc-status"), body) == (200, grpc_status, b"")
    assert answer.get(b"x-netloom-error") == kind.encode()


def test_a_websocket_library_speaks_through_the_proxy() -> None:
    websockets_client = pytest.importorskip("websockets.asyncio.client")
    websockets_server = pytest.importorskip("websockets.asyncio.server")

    async def story() -> None:
        async def echo(socket: Any) -> None:
            async for message in socket:
                await socket.send(message)

        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(websockets_server.serve(echo, "127.0.0.1", 0, max_size=None))
            mesh = await stack.enter_async_context(proxy(server.sockets[0].getsockname()[1]))
            url = f"ws://127.0.0.1:{mesh.port}/"
            socket = await stack.enter_async_context(websockets_client.connect(url, max_size=None, proxy=None))
            messages: list[str | bytes] = ["hello", b"\0" * 1_000_000, ""]
            for message in messages:
                await socket.send(message)
                assert await socket.recv() == message

    run(story())
