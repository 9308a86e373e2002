"""What a route does with a request on its way: copies, keys, edits, answers of its own."""

from __future__ import annotations

import asyncio

from meshproxy.config import (
    Balancing,
    DirectAnswer,
    Forward,
    HashPolicy,
    HeaderEdits,
    Mirror,
    Rewrite,
    Route,
    RouteMatch,
    StringMatch,
    WeightedCluster,
)
from tests.meshproxy.proxying import (
    ScriptedEndpoint,
    endpoint_configs,
    forward,
    proxy,
    read_body,
    run,
    wait_until,
)
from tests.meshproxy.test_exchange import silent

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_a_mirror_gets_a_copy_and_nobody_waits_for_it() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, silent().listening() as shadow:
            route = forward(mirrors=(Mirror(cluster="shadow"),))
            async with proxy(endpoint.port, routes=(route,), others={"shadow": (shadow.port,)}) as mesh:
                client = await mesh.connect()
                answer = await client.get("/", "Content-Length: 5", method="POST", body=b"hello")
                assert answer.body == b"ok"
                await wait_until(lambda: shadow.bodies == [b"hello"])
                assert endpoint.bodies == [b"hello"]

    run(story())


def test_a_key_always_goes_to_the_same_endpoint() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as one, ScriptedEndpoint().listening() as two:
            route = forward(hash=(HashPolicy(header="X-User"),))
            async with proxy(one.port, two.port, routes=(route,), balancing=Balancing(policy="maglev")) as mesh:
                client = await mesh.connect()
                for user in range(40):
                    for name in ("X-User", "x-user", "X-USER"):
                        await client.get("/", f"{name}:  u{user} ", "Accept: */*")
                assert len(one.heads) + len(two.heads) == 120
                assert len(one.heads) % 3 == 0
                assert one.heads
                assert two.heads

    run(story())


def test_a_cookie_that_the_key_needs_is_made() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint:
            route = forward(hash=(HashPolicy(cookie="stick", cookie_ttl_s=60),))
            async with proxy(endpoint.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                cookie = (await client.get()).field("set-cookie")
                assert cookie is not None
                assert cookie.startswith("stick=")
                assert (await client.get("/", "Cookie: stick=a")).field("set-cookie") is None

    run(story())


def test_routes_change_heads_on_both_ways() -> None:
    async def story() -> None:
        route = Route(
            name="all",
            match=RouteMatch(path=StringMatch(prefix="/api")),
            action=Forward(clusters=(WeightedCluster(cluster="web"),), rewrite=Rewrite(prefix="/v2", host="other")),
            request_headers=HeaderEdits(set={"x-a": "1"}, remove=("x-gone",)),
            response_headers=HeaderEdits(add={"x-b": "2"}),
        )
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port, routes=(route,)) as mesh:
            client = await mesh.connect()
            answer = await client.get("/api/x?q=1", "X-Gone: 1", "X-A: 0")
            assert answer.field("x-b") == "2"
            head = endpoint.heads[0]
            assert head.startswith(b"GET /v2/x?q=1 HTTP/1.1\r\nhost: other\r\n")
            assert b"x-a: 1\r\n" in head
            assert b"x-gone" not in head.lower()
            assert b"x-a: 0" not in head.lower()

    run(story())


def test_a_route_may_answer_itself() -> None:
    async def story() -> None:
        route = Route(name="all", action=DirectAnswer(status=418, body="teapot"))
        async with proxy(routes=(route,)) as mesh:
            client = await mesh.connect()
            answer = await client.get()
            assert (answer.status, answer.body) == (418, b"teapot")
            assert (await client.get(method="HEAD")).field("content-length") == "6"
            assert (await client.get()).body == b"teapot"

    run(story())


def test_an_endpoint_that_left_gets_no_more_requests() -> None:
    async def story() -> None:
        async with (
            ScriptedEndpoint().listening() as old,
            ScriptedEndpoint().listening() as new,
            proxy(old.port) as mesh,
        ):
            client = await mesh.connect()
            await client.get()
            mesh.cluster.update(endpoint_configs(new.port))
            for _ in range(5):
                assert (await client.get()).status == 200
            assert (len(old.heads), len(new.heads)) == (1, 5)
            await wait_until(lambda: mesh.cluster.connections == 1)

    run(story())


def test_an_answer_nobody_asked_for_poisons_no_connection() -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await endpoint.read_request(reader)
            await read_body(reader, head)
            writer.write(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            await reader.read()

        endpoint = ScriptedEndpoint(serve)
        async with endpoint.listening(), proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            for _ in range(3):
                assert (await client.get()).body == b"ok"
            assert endpoint.connections == 3

    run(story())
