"""What becomes of a request whose endpoint fails, is slow, or is not there."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from meshproxy.config import (
    CircuitBreaker,
    Retry,
)
from tests.meshproxy.proxying import (
    Proxy,
    ScriptedEndpoint,
    endpoint_configs,
    forward,
    proxy,
    run,
    wait_until,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BAD = b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\nbad"
NO_BACK_OFF: dict[str, Any] = {"back_off_base_s": 0, "back_off_max_s": 0}


async def closed_port() -> int:
    """A port that refuses connections."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def is_quiet(mesh: Proxy) -> bool:
    """Nothing is counted as going on."""
    cluster = mesh.cluster
    return (
        cluster.active_requests == cluster.pending_requests == cluster.active_retries == 0
        and all(endpoint.active == 0 for endpoint in cluster.endpoints)
        and "held=" in repr(mesh.shell.wheel)
    )


def test_a_failing_answer_is_repeated_where_the_route_says_so() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as bad, ScriptedEndpoint().listening() as good:
            bad.answer = BAD
            route = forward(retry=Retry(retry_on=("5xx",), **NO_BACK_OFF))
            async with proxy(bad.port, good.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                for _ in range(10):
                    assert (await client.get()).status == 200
                assert len(good.heads) == 10
                assert bad.heads
                assert is_quiet(mesh)

    run(story())


def test_a_failing_answer_is_passed_on_where_it_does_not() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as bad, proxy(bad.port) as mesh:
            bad.answer = BAD
            client = await mesh.connect()
            answer = await client.get()
            assert (answer.status, answer.body, answer.field("x-netloom-error")) == (503, b"bad", None)
            assert len(bad.heads) == 1

    run(story())


def test_retries_stay_within_the_budget_when_all_endpoints_fail() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as bad:
            bad.answer = BAD
            route = forward(retry=Retry(retry_on=("5xx",), num_retries=5, **NO_BACK_OFF))
            async with proxy(bad.port, routes=(route,)) as mesh:
                clients = [await mesh.connect() for _ in range(20)]
                for _ in range(50):
                    answers = await asyncio.gather(*(client.get() for client in clients))
                    assert {answer.status for answer in answers} == {503}
                assert len(bad.heads) <= 1.2 * 1000 + 20
                assert is_quiet(mesh)

    run(story())


def test_a_post_is_sent_once_although_its_endpoint_failed() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await endpoint.read_request(reader)  # and closes

        endpoint = ScriptedEndpoint(serve)
        async with endpoint.listening():
            route = forward(retry=Retry(retry_on=("5xx", "reset", "connect-failure"), **NO_BACK_OFF))
            async with proxy(endpoint.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                answer = await client.get("/", "Content-Length: 2", method="POST", body=b"hi")
                assert (answer.status, answer.field("x-netloom-error")) == (503, "reset")
                assert len(endpoint.heads) == 1

    run(story())


def test_a_stale_connection_costs_nothing_but_another_one() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as endpoint:
            endpoint.setblocking(False)
            async with proxy(endpoint.getsockname()[1]) as mesh:
                client = await mesh.connect()
                client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
                first, _ = await loop.sock_accept(endpoint)
                await loop.sock_recv(first, 65_536)
                await loop.sock_sendall(first, OK)
                assert (await client.answer()).status == 200
                # The endpoint closes, and the proxy has not read that yet when it writes the next request.
                upstream = next(iter(mesh.cluster.endpoints[0].pool._idle))
                upstream._transport.pause_reading()
                first.close()
                client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi")
                await wait_until(lambda: mesh.cluster.active_requests == 1)
                upstream._transport.resume_reading()
                second, _ = await loop.sock_accept(endpoint)
                with second:
                    assert (await loop.sock_recv(second, 65_536)).endswith(b"\r\n\r\nhi")
                    await loop.sock_sendall(second, OK)
                    assert (await client.answer()).status == 200
                    assert mesh.cluster.endpoints[0].failures == 0

    run(story())


def test_a_post_that_the_endpoint_has_heard_is_not_sent_again() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await endpoint.read_request(reader)
            writer.write(OK)
            await endpoint.read_request(reader)  # works on it, and dies: the connection just ends

        endpoint = ScriptedEndpoint(serve)
        async with endpoint.listening(), proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            assert (await client.get()).status == 200
            answer = await client.get("/", "Content-Length: 2", method="POST", body=b"hi")
            assert (answer.status, answer.field("x-netloom-error")) == (503, "reset")
            assert endpoint.bodies == [b"", b"hi"]
            # A method that may run twice is repeated, with a connection of its own.
            assert (await client.get()).status == 200
            assert (await client.get()).status == 200

    run(story())


def test_a_refused_connection_is_repeated_elsewhere_even_for_a_post() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as good, proxy(await closed_port(), good.port) as mesh:
            client = await mesh.connect()
            for _ in range(6):
                assert (await client.get("/", "Content-Length: 2", method="POST", body=b"hi")).status == 200
            assert good.bodies == [b"hi"] * 6

    run(story())


def test_no_endpoint_that_listens_is_a_503_that_says_so() -> None:
    async def story() -> None:
        async with proxy(await closed_port()) as mesh:
            answer = await (await mesh.connect()).get()
            assert (answer.status, answer.field("x-netloom-error")) == (503, "connect-failure")
            assert is_quiet(mesh)
        async with proxy() as mesh:
            answer = await (await mesh.connect()).get()
            assert (answer.status, answer.field("x-netloom-error")) == (503, "no-healthy-endpoint")
            assert is_quiet(mesh)

    run(story())


def test_what_no_route_takes_is_a_404() -> None:
    async def story() -> None:
        async with proxy(routes=()) as mesh:
            client = await mesh.connect()
            for _ in range(2):
                answer = await client.get()
                assert (answer.status, answer.field("x-netloom-error")) == (404, "no-route")

    run(story())


def silent() -> ScriptedEndpoint:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await endpoint.read_request(reader)
        await reader.read()

    endpoint = ScriptedEndpoint(serve)
    return endpoint


def test_a_silent_endpoint_is_a_504_after_the_routes_timeout() -> None:
    async def story() -> None:
        async with silent().listening() as endpoint, proxy(endpoint.port, routes=(forward(timeout_s=0.1),)) as mesh:
            client = await mesh.connect()
            answer = await client.get()
            assert (answer.status, answer.field("x-netloom-error")) == (504, "timeout")
            assert is_quiet(mesh)
            assert mesh.cluster.endpoints[0].timeouts == 1
            await wait_until(lambda: mesh.cluster.connections == 0)

    run(story())


def test_an_answer_that_stops_in_the_middle_is_cut_off() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")
            await reader.read()

        route = forward(timeout_s=0, idle_timeout_s=0.1)
        async with ScriptedEndpoint(serve).listening() as endpoint, proxy(endpoint.port, routes=(route,)) as mesh:
            client = await mesh.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            assert (await client.reader.readuntil(b"abc")).startswith(b"HTTP/1.1 200 OK")
            assert await client.is_closed()
            await wait_until(lambda: is_quiet(mesh) and mesh.cluster.connections == 0)

    run(story())


def test_a_client_that_stops_reading_is_cut_off() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint:
            endpoint.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n" + b"a" * 50_000_000
            route = forward(timeout_s=0, idle_timeout_s=0.2)
            async with proxy(endpoint.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
                await wait_until(lambda: bool(endpoint.heads))
                await wait_until(lambda: mesh.listener.stats.connections_active == 0)
                assert is_quiet(mesh)

    run(story())


def test_a_try_that_takes_too_long_is_repeated_elsewhere() -> None:
    async def story() -> None:
        async with silent().listening() as slow, ScriptedEndpoint().listening() as good:
            route = forward(retry=Retry(retry_on=("reset",), per_try_timeout_s=0.1, **NO_BACK_OFF))
            async with proxy(slow.port, good.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                for _ in range(2):
                    assert (await client.get()).status == 200
                assert mesh.cluster.stats.per_try_timeouts == len(slow.heads) > 0
                assert is_quiet(mesh)

    run(story())


def test_a_hedge_answers_for_a_slow_first_attempt() -> None:
    async def story() -> None:
        async with silent().listening() as slow, ScriptedEndpoint().listening() as good:
            route = forward(retry=Retry(per_try_timeout_s=0.1, hedge_on_per_try_timeout=True))
            async with proxy(slow.port, good.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                for _ in range(2):
                    assert (await client.get()).status == 200
                assert mesh.cluster.stats.hedges == len(slow.heads) > 0
                assert is_quiet(mesh)

    run(story())


def test_the_first_attempt_may_still_win_over_its_hedge() -> None:
    async def story() -> None:
        hedged = asyncio.Event()

        async def serve_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await first.read_request(reader)
            await hedged.wait()
            writer.write(OK.replace(b"ok", b"1."))
            await reader.read()

        async def serve_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await second.read_request(reader)
            hedged.set()
            await reader.read()

        first, second = ScriptedEndpoint(serve_first), ScriptedEndpoint(serve_second)
        async with first.listening(), second.listening():
            route = forward(retry=Retry(per_try_timeout_s=0.1, hedge_on_per_try_timeout=True))
            async with proxy(first.port, second.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                mesh.cluster.update(endpoint_configs(first.port))
                client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
                await wait_until(lambda: bool(first.heads))
                mesh.cluster.update(endpoint_configs(first.port, second.port))
                assert (await client.answer()).body == b"1."
                assert is_quiet(mesh)

    run(story())


def test_a_client_that_goes_takes_its_request_along() -> None:
    async def story() -> None:
        async with silent().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            await wait_until(lambda: bool(endpoint.heads))
            client.close()
            await wait_until(lambda: is_quiet(mesh) and mesh.cluster.connections == 0)

    run(story())


def test_requests_beyond_the_breaker_are_refused_at_once() -> None:
    async def story() -> None:
        breaker = CircuitBreaker(max_requests=1)
        async with silent().listening() as endpoint, proxy(endpoint.port, circuit_breaker=breaker) as mesh:
            client = await mesh.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            await wait_until(lambda: bool(endpoint.heads))
            answer = await (await mesh.connect()).get()
            assert (answer.status, answer.field("x-netloom-error")) == (503, "overflow")
            assert mesh.cluster.stats.overflow_requests == 1

    run(story())


def test_requests_beyond_max_connections_wait_their_turn() -> None:
    async def story() -> None:
        breaker = CircuitBreaker(max_connections=2)
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port, circuit_breaker=breaker) as mesh:
            clients = [await mesh.connect() for _ in range(20)]
            answers = await asyncio.gather(*(client.get() for client in clients))
            assert {answer.status for answer in answers} == {200}
            assert endpoint.connections == 2
            assert is_quiet(mesh)

    run(story())


def test_requests_beyond_the_waiting_ones_are_refused() -> None:
    async def story() -> None:
        async with silent().listening() as endpoint:
            breaker = CircuitBreaker(max_connections=1, max_pending_requests=1)
            async with proxy(endpoint.port, circuit_breaker=breaker) as mesh:
                for _ in range(2):
                    client = await mesh.connect()
                    client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
                    await wait_until(lambda: bool(endpoint.heads))
                await wait_until(lambda: mesh.cluster.pending_requests == 1)
                answer = await (await mesh.connect()).get()
                assert (answer.status, answer.field("x-netloom-error")) == (503, "overflow")

    run(story())


def test_a_small_body_is_sent_again_with_its_attempt() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as bad, ScriptedEndpoint().listening() as good:
            bad.answer = BAD
            route = forward(retry=Retry(retry_on=("5xx",), **NO_BACK_OFF))
            async with proxy(bad.port, good.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                for _ in range(4):
                    answer = await client.get(
                        "/", "Transfer-Encoding: chunked", method="PUT", body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
                    )
                    assert answer.status == 200
                assert good.bodies == [b"abcde"] * 4

    run(story())


def test_a_body_beyond_the_replay_buffer_is_sent_once() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as bad, ScriptedEndpoint().listening() as other:
            bad.answer = other.answer = BAD
            route = forward(retry=Retry(retry_on=("5xx",), **NO_BACK_OFF))
            async with proxy(bad.port, other.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                answer = await client.get("/", "Content-Length: 200000", method="PUT", body=b"a" * 200_000)
                assert answer.status == 503
                assert len(bad.heads + other.heads) == 1

    run(story())
