"""Clients and endpoints that misbehave at random for a while: nothing is left over, and nothing crashes."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from meshproxy.config import CircuitBreaker, Mirror, Retry
from tests.meshproxy.proxying import Client, Proxy, ScriptedEndpoint, forward, proxy, run, wait_until
from tests.meshproxy.test_exchange import is_quiet

# By hand: more rounds, another seed.
ROUNDS = int(os.environ.get("NETLOOM_CHAOS", "15"))
SEED = int(os.environ.get("NETLOOM_SEED", "1"))


def misbehaving(chance: random.Random) -> ScriptedEndpoint:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await endpoint.read_request(reader)
            match chance.randrange(12):
                case 0:
                    return
                case 1:
                    writer.transport.abort()
                    return
                case 2:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal")
                    return
                case 3:
                    writer.write(b"nonsense\r\n\r\n")
                    return
                case 4:
                    await asyncio.sleep(chance.random() * 0.2)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
                case 5:
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n")
                    await asyncio.sleep(0)
                    writer.write(b"0\r\n\r\n")
                case 6:
                    writer.write(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")
                case 7:
                    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
                    return
                case 8:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokEXTRA")
                case _:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()

    endpoint = ScriptedEndpoint(serve)
    return endpoint


async def behave_badly(mesh: Proxy, chance: random.Random) -> None:
    """One client's life."""
    client = await mesh.connect()
    for _ in range(chance.randrange(1, 8)):
        match chance.randrange(8):
            case 0:
                client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n" * 3)
                await answers(client, 3)
            case 1:
                client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100000\r\n\r\n" + b"a" * 50_000)
                await asyncio.sleep(0)
                break
            case 2:
                client.send(b"PUT / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
                await answers(client, 1)
            case 3:
                client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
                break
            case 4:
                client.send(b"GET / HTTP/1.1\r\nHost: web\r\nX : bad\r\n\r\n")
                await answers(client, 1)
            case 5:
                client.send(b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc")
                await answers(client, 1)
            case _:
                client.send(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: keep-alive\r\n\r\n")
                await answers(client, 1)
    if chance.random() < 0.5:
        client.close()
    else:
        client.writer.transport.abort()


async def answers(client: Client, count: int) -> None:
    try:
        for _ in range(count):
            assert (await client.answer()).status in (200, 400, 502, 503, 504)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass


@pytest.mark.parametrize("hedges", [False, True])
def test_nothing_is_left_over_after_chaos(hedges: bool) -> None:
    async def story() -> None:
        crashes: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(context))
        chance = random.Random(SEED)
        endpoints = [misbehaving(chance) for _ in range(3)]
        retry = Retry(
            retry_on=("5xx", "reset", "connect-failure"),
            num_retries=2,
            per_try_timeout_s=0.05,
            hedge_on_per_try_timeout=hedges,
            back_off_base_s=0.001,
        )
        async with endpoints[0].listening() as one, endpoints[1].listening() as two, endpoints[2].listening() as three:
            routes = (forward(retry=retry, timeout_s=0.5, mirrors=(Mirror(cluster="shadow"),)),)
            breaker = CircuitBreaker(max_connections=8, max_pending_requests=10)
            others: dict[str, tuple[int, ...]] = {"shadow": (three.port,)}
            async with proxy(one.port, two.port, routes=routes, others=others, circuit_breaker=breaker) as mesh:
                for _ in range(ROUNDS):
                    await asyncio.gather(*(behave_badly(mesh, chance) for _ in range(10)))
                await wait_until(lambda: is_quiet(mesh) and mesh.listener.stats.connections_active == 0)
                shadow = mesh.clusters["shadow"]
                await wait_until(lambda: shadow.active_requests == 0 and shadow.endpoints[0].active == 0)
                assert mesh.listener.stats.requests_active == 0
                for cluster in mesh.clusters.values():
                    pools = [endpoint.pool for endpoint in cluster.endpoints if endpoint.pool is not None]
                    assert cluster.connections == sum(len(pool._idle) for pool in pools)
                    assert all(not pool._waiting and not pool._connecting for pool in pools)
        # The scripted endpoints' own tasks may end with a broken connection; nothing else may crash.
        assert [context for context in crashes if "task" not in context] == []

    run(story())
