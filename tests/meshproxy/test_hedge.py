"""Which requests get a second attempt beside a slow first one. test_exchange.py has how the two race."""

from __future__ import annotations

import asyncio

from meshproxy.config import Retry
from tests.meshproxy.proxying import ScriptedEndpoint, forward, proxy, run


def silent() -> ScriptedEndpoint:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await endpoint.read_request(reader)
        await reader.read()

    endpoint = ScriptedEndpoint(serve)
    return endpoint


def test_a_post_is_not_hedged() -> None:
    async def story() -> None:
        async with silent().listening() as slow, silent().listening() as other:
            route = forward(timeout_s=0.4, retry=Retry(per_try_timeout_s=0.1, hedge_on_per_try_timeout=True))
            async with proxy(slow.port, other.port, routes=(route,)) as mesh:
                client = await mesh.connect()
                assert (await client.get("/", "Content-Length: 2", method="POST", body=b"hi")).status == 504
                assert len(slow.heads) + len(other.heads) == 1

    run(story())
