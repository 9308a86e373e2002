"""Endpoints by DNS, from a real server on a real socket that says what each test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from meshproxy.config import DnsDiscovery
from meshproxy.discovery.dns import DnsSource
from meshproxy.discovery.source import Snapshot

Records = dict[tuple[str, str], list[str]]


class DnsServer(asyncio.DatagramProtocol):
    """Answers from `records`; `fault` is a response code for everything, or "silent"."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.ttl_s = 30
        self.fault: str | None = None
        self.questions = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, client: tuple[Any, ...]) -> None:
        self.questions += 1
        if self.fault == "silent":
            return
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if self.fault is not None:
            answer.set_rcode(dns.rcode.from_text(self.fault))
        else:
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True)
            kind = dns.rdatatype.to_text(question.rdtype)
            texts = self.records.get((name, kind))
            if texts:
                answer.answer.append(dns.rrset.from_text_list(question.name, self.ttl_s, "IN", kind, texts))
            elif not any(known == name for known, _ in self.records):
                answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), client)


class Naps:
    """The sleep of a source: says how long it would be, and lasts until the test goes on."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self._over: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        self.asked.put_nowait(seconds)
        await self._over.get()

    def end(self) -> None:
        self._over.put_nowait(None)


class Watched:
    """A source that runs beside the test: its snapshots, and its sleeps."""

    def __init__(self, server: DnsServer, **details: Any) -> None:
        host, port = server.transport.get_extra_info("sockname")
        self.naps = Naps()
        self.snapshots: asyncio.Queue[Snapshot] = asyncio.Queue()
        self.source = DnsSource(DnsDiscovery(resolver=f"{host}:{port}", **details), sleep=self.naps, lifetime_s=0.2)

    async def run(self) -> None:
        async for snapshot in self.source.snapshots():
            self.snapshots.put_nowait(snapshot)

    async def again(self) -> float:
        """Let the source ask once more; return how long it sleeps then."""
        self.naps.end()
        return await self.naps.asked.get()


@contextlib.asynccontextmanager
async def watching(records: Records, **details: Any) -> AsyncIterator[tuple[DnsServer, Watched]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: DnsServer(records), local_addr=("127.0.0.1", 0))
    watched = Watched(server, **details)
    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            task = group.create_task(watched.run())
            yield server, watched
            task.cancel()
    finally:
        transport.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def keys(snapshot: Snapshot) -> list[str]:
    return [endpoint.key for endpoint in snapshot]


def test_addresses_of_both_families_are_endpoints() -> None:
    async def story() -> None:
        records = {("web.test", "A"): ["10.0.0.2", "10.0.0.1"], ("web.test", "AAAA"): ["fd00::1"]}
        async with watching(records, name="web.test", port=80) as (_, watched):
            assert keys(await watched.snapshots.get()) == ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"]
            assert await watched.naps.asked.get() == 30  # the TTL

    run(story())


@pytest.mark.parametrize(("ttl_s", "asked_after_s"), [(0, 1), (7, 7), (86_400, 300)])
def test_the_name_is_asked_again_by_its_ttl_within_bounds(ttl_s: int, asked_after_s: float) -> None:
    async def story() -> None:
        async with watching({("web.test", "A"): ["10.0.0.1"]}, name="web.test", port=80) as (server, watched):
            await watched.naps.asked.get()
            server.ttl_s = ttl_s
            assert await watched.again() == asked_after_s

    run(story())


def test_a_change_is_a_snapshot_and_another_order_is_none() -> None:
    async def story() -> None:
        records = {("web.test", "A"): ["10.0.0.1", "10.0.0.2"]}
        async with watching(records, name="web.test", port=80) as (_, watched):
            await watched.snapshots.get()
            await watched.naps.asked.get()
            records["web.test", "A"].reverse()
            await watched.again()
            assert watched.snapshots.empty()
            records["web.test", "A"].append("10.0.0.3")
            await watched.again()
            assert len(watched.snapshots.get_nowait()) == 3

    run(story())


@pytest.mark.parametrize("fault", ["SERVFAIL", "REFUSED", "NXDOMAIN", "silent"])
def test_a_failure_keeps_the_old_endpoints_and_asks_later_and_later(fault: str) -> None:
    async def story() -> None:
        async with watching({("web.test", "A"): ["10.0.0.1"]}, name="web.test", port=80) as (server, watched):
            await watched.snapshots.get()
            await watched.naps.asked.get()
            server.fault = fault
            count = 2 if fault == "silent" else 8
            assert [await watched.again() for _ in range(count)] == [1, 2, 4, 8, 16, 32, 60, 60][:count]
            assert watched.snapshots.empty()
            assert watched.source.error is not None
            server.fault = None
            assert await watched.again() == 30
            assert watched.snapshots.empty()  # nothing has changed
            assert watched.source.error is None

    run(story())


def test_a_name_that_comes_late_is_found() -> None:
    async def story() -> None:
        records: Records = {}
        async with watching(records, name="web.test", port=80) as (_, watched):
            assert await watched.naps.asked.get() == 1
            records["web.test", "A"] = ["10.0.0.1"]
            await watched.again()
            assert keys(watched.snapshots.get_nowait()) == ["10.0.0.1:80"]

    run(story())


def test_srv_has_ports_weights_and_priorities_of_its_own() -> None:
    async def story() -> None:
        records = {
            ("_http._tcp.web.test", "SRV"): ["20 5 8080 a.test.", "10 0 9090 b.test.", "10 7 9091 gone.test."],
            ("a.test", "A"): ["10.0.0.1"],
            ("b.test", "A"): ["10.0.0.2", "10.0.0.3"],
        }
        async with watching(records, name="_http._tcp.web.test", record="srv") as (_, watched):
            found = [(one.key, one.weight, one.priority) for one in await watched.snapshots.get()]
            assert found == [("10.0.0.2:9090", 1, 0), ("10.0.0.3:9090", 1, 0), ("10.0.0.1:8080", 5, 1)]

    run(story())
