"""What a client of HTTP/1.1 sees of the proxy."""

from __future__ import annotations

import asyncio

import pytest

from meshproxy.config import DirectAnswer, Route
from tests.meshproxy.proxying import Client, Proxy, ScriptedEndpoint, proxy, run, wait_until

OK = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"


def test_a_request_and_its_answer_pass_through() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            answer = await client.get("/path?q=1", "X-Mine: kept")
            assert (answer.status, answer.body) == (200, b"ok")
            assert endpoint.heads[0].startswith(b"GET /path?q=1 HTTP/1.1\r\nHost: web\r\nX-Mine: kept\r\n")

    run(story())


def test_requests_are_given_what_they_are_known_by() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            await client.get()
            for name in (
                b"x-forwarded-for: 127.0.0.1",
                b"x-forwarded-proto: http",
                b"x-request-id: ",
                b"traceparent: 00-",
            ):
                assert endpoint.heads[0].count(b"\r\n" + name) == 1
            trace = "0af7651916cd43dd8448eb211c80319c"
            await client.get(
                "/",
                "X-Forwarded-For: 10.0.0.1",
                "X-Request-ID: mine",
                f"traceparent: 00-{trace}-b7ad6b7169203331-01",
                "tracestate: a=b",
            )
            head = endpoint.heads[1].lower()
            assert b"\r\nx-forwarded-for: 10.0.0.1, 127.0.0.1\r\n" in head
            assert head.count(b"x-request-id") == 1
            assert b"x-request-id: mine" in head
            assert head.count(b"\r\ntraceparent: 00-%b-" % trace.encode()) == 1
            assert b"b7ad6b7169203331" not in head
            assert b"\r\ntracestate: a=b\r\n" in head

    run(story())


def test_fields_of_one_connection_end_here() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            endpoint.answer = (
                b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Own\r\nKeep-Alive: timeout=5\r\nX-Own: 1\r\n"
                b"Proxy-Connection: a\r\nContent-Length: 2\r\nX-End: 1\r\n\r\nok"
            )
            client = await mesh.connect()
            answer = await client.get(
                "/", "Connection: keep-alive, X-Own", "X-Own: 1", "Keep-Alive: 1", "TE: gzip", "X-End: 1"
            )
            for head in (endpoint.heads[0].lower(), answer.head.lower()):
                for name in (
                    b"\r\nconnection:",
                    b"\r\nkeep-alive:",
                    b"\r\nx-own:",
                    b"\r\nte:",
                    b"\r\nproxy-connection",
                ):
                    assert b"\r\n" + name not in head
                assert b"\r\nx-end: 1\r\n" in head

    run(story())


def test_keep_alive_serves_request_after_request() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            for _ in range(20):
                assert (await client.get()).status == 200
            assert endpoint.connections == 1

    run(story())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            endpoint.answer = lambda head: (
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head.split()[1]), head.split()[1])
            )
            client = await mesh.connect()
            paths = [b"/%d" % number for number in range(50)]
            client.send(b"".join(b"GET %b HTTP/1.1\r\nHost: web\r\n\r\n" % path for path in paths))
            assert [(await client.answer()).body for _ in paths] == paths

    run(story())


def test_thousands_of_pipelined_requests_do_not_pile_up_on_the_stack() -> None:
    async def story() -> None:
        route = Route(name="all", action=DirectAnswer(status=200, body="x"))
        async with proxy(routes=(route,)) as mesh:
            client = await mesh.connect()
            client.send(OK * 3000)
            for _ in range(3000):
                assert (await client.answer()).body == b"x"

    run(story())


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 200000", b"a" * 200_000),
        ("Transfer-Encoding: chunked", b"30d40\r\n" + b"a" * 200_000 + b"\r\n0\r\n\r\n"),
    ],
)
def test_bodies_pass_in_both_framings(framing: str, body: bytes) -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            answer = await client.get("/", framing, method="POST", body=body)
            assert answer.status == 200
            assert endpoint.bodies == [b"a" * 200_000]
            assert (await client.get()).status == 200

    run(story())


def test_chunked_answers_keep_their_trailers() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            endpoint.answer = (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n"
            )
            client = await mesh.connect()
            client.send(OK)
            answer = await client.reader.readuntil(b"\r\nx-sum: 1\r\n\r\n")
            assert b"transfer-encoding: chunked\r\n" in answer
            assert b";x=y" not in answer
            assert (await client.get()).body == b"abcde"

    run(story())


def test_head_and_bodiless_answers_leave_the_connection_in_step() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            endpoint.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
            answer = await client.get(method="HEAD")
            assert answer.field("content-length") == "1000"
            for status in (204, 304):
                endpoint.answer = b"HTTP/1.1 %d X\r\n\r\n" % status
                assert (await client.get()).status == status
            endpoint.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            assert (await client.get()).body == b""
            assert endpoint.connections == 1

    run(story())


def test_an_answer_that_ends_with_its_connection_arrives_whole() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            assert (await client.get()).body == b"until the end"
            assert (await client.get()).body == b"until the end"

    run(story())


def test_a_client_of_http_1_0_is_answered_and_closed() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            endpoint.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            client = await mesh.connect()
            client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.reader.read()
            assert b"chunked" not in answer
            assert answer.endswith(b"\r\n\r\nok")

    run(story())


def test_expect_continue_is_the_endpoints_to_answer() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(5)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
            await writer.drain()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            assert (await client.answer()).status == 100
            client.send(b"hello")
            assert (await client.answer()).body == b"hello"

    run(story())


def test_an_early_answer_reaches_a_client_that_is_still_sending() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            await writer.drain()
            await reader.read()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 100_000)
            answer = await client.answer()
            assert (answer.status, answer.body, answer.field("connection")) == (413, b"no", "close")
            assert await client.is_closed()

    run(story())


def test_a_websocket_is_a_tunnel_in_both_directions() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b"\r\nconnection: upgrade\r\n" in head
            assert b"\r\nupgrade: websocket\r\n" in head
            writer.write(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
            while data := await reader.read(100):
                writer.write(b"echo " + data)
            writer.write(b"last")

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            answer = await client.answer()
            assert (answer.status, answer.field("upgrade"), answer.field("connection")) == (101, "websocket", "upgrade")
            assert await client.reader.readexactly(5) == b"first"
            client.send(b"hello")
            assert await client.reader.readexactly(10) == b"echo hello"
            client.writer.write_eof()
            assert await client.reader.read() == b"last"
            await wait_until(lambda: mesh.cluster.connections == 0)

    run(story())


def test_an_upgrade_that_the_endpoint_refuses_is_an_ordinary_answer() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            assert (await client.get("/", "Connection: Upgrade", "Upgrade: websocket")).body == b"ok"
            assert (await client.get()).body == b"ok"

    run(story())


def test_an_answer_that_breaks_off_is_never_taken_for_whole() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await writer.drain()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.send(OK)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.answer()

    run(story())


def test_a_slow_head_is_refused() -> None:
    async def story() -> None:
        async with proxy(listener={"head_timeout_s": 0.1}) as mesh:
            client = await mesh.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: ")
            answer = await client.answer()
            assert (answer.status, answer.field("x-netloom-error")) == (408, "head-timeout")
            assert await client.is_closed()

    run(story())


def test_an_idle_connection_is_closed() -> None:
    async def story() -> None:
        async with (
            ScriptedEndpoint().listening() as endpoint,
            proxy(endpoint.port, listener={"idle_timeout_s": 0.1}) as mesh,
        ):
            client = await mesh.connect()
            assert (await client.get()).status == 200
            assert await client.is_closed()

    run(story())


async def _flood(client: Client, mesh: Proxy, size: int) -> int:
    """Send until nobody takes any more; return how much was sent."""
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


def test_a_client_cannot_send_more_than_the_endpoint_takes() -> None:
    async def story() -> None:
        release = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await release.wait()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000000\r\n\r\n")
            # The kernel's buffers take some megabytes; without back-pressure all would go into the proxy.
            assert await _flood(client, mesh, 200_000_000) < 100_000_000
            release.set()

    run(story())


def test_a_slow_client_stops_the_endpoint() -> None:
    async def story() -> None:
        sent = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n")
            while sent < 200_000_000:
                writer.write(b"a" * 100_000)
                sent += 100_000
                await writer.drain()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(OK)
            last = -1
            while last != sent or not sent:
                last = sent
                await asyncio.sleep(0.2)
            assert sent < 100_000_000
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            answer = await client.answer()
            assert len(answer.body) == 200_000_000

    run(story())


def test_draining_ends_idle_connections_and_lets_requests_end() -> None:
    async def story() -> None:
        go = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()

        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port) as mesh:
            idle, busy = await mesh.connect(), await mesh.connect()
            busy.send(OK)
            await wait_until(lambda: endpoint.connections == 1)
            mesh.server.stop_accepting()
            drained = mesh.shell.tasks.create_task(mesh.server.drain())
            assert await idle.is_closed()
            assert not drained.done()
            go.set()
            answer = await busy.answer()
            assert (answer.body, answer.field("connection")) == (b"ok", "close")
            assert await busy.is_closed()
            await drained

    run(story())


def test_a_request_that_crosses_the_drain_is_answered() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            answered, fresh = await mesh.connect(), await mesh.connect()
            assert (await answered.get()).field("connection") is None
            await wait_until(lambda: mesh.listener.stats.connections_active == 2)
            drained = mesh.shell.tasks.create_task(mesh.server.drain())
            await asyncio.sleep(0)
            for client in (answered, fresh):
                answer = await client.get()
                assert (answer.status, answer.field("connection")) == (200, "close")
                assert await client.is_closed()
            await drained

    run(story())


def test_connections_beyond_the_limit_are_refused() -> None:
    async def story() -> None:
        async with (
            ScriptedEndpoint().listening() as endpoint,
            proxy(endpoint.port, listener={"max_connections": 1}) as mesh,
        ):
            first = await mesh.connect()
            assert (await first.get()).status == 200
            assert await (await mesh.connect()).is_closed()
            assert (await first.get()).status == 200
            assert mesh.listener.stats.connections_refused == 1

    run(story())
