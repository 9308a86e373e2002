"""Every attack of the table is refused with its status, and no endpoint hears of it."""

from __future__ import annotations

import asyncio

import pytest

from tests.meshproxy.proxying import ScriptedEndpoint, proxy, run
from tests.meshproxy.wire.http1_abuse import CASES, OK


def test_the_table_is_long_enough_and_names_each_case_once() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("step", [None, 1], ids=["whole", "byte by byte"])
def test_attacks_are_refused_before_any_endpoint_hears_of_them(step: int | None) -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            for case in CASES:
                endpoint.heads.clear()
                endpoint.bodies.clear()
                client = await mesh.connect()
                # Small writes, each its own segment: the loop turns between them, so that the proxy reads each alone.
                size = len(case.data) if step is None or len(case.data) > 2000 else step
                for at in range(0, len(case.data), size):
                    client.send(case.data[at : at + size])
                    await asyncio.sleep(0)
                answer = await client.answer()
                assert answer.status == (case.status or 200), case.name
                if case.status is not None:
                    assert answer.field("connection") == "close", case.name
                    assert endpoint.bodies == [], case.name
                    assert await client.is_closed(), case.name
                else:
                    assert len(endpoint.heads) == 1, case.name
                client.close()

    run(story())


def test_what_follows_a_refused_request_is_never_read_as_one() -> None:
    async def story() -> None:
        async with ScriptedEndpoint().listening() as endpoint, proxy(endpoint.port) as mesh:
            client = await mesh.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n\r\n" + OK)
            assert (await client.answer()).status == 400
            assert await client.is_closed()
            assert endpoint.heads == []

    run(story())
