"""Requests on the direct way are carried, counted and balanced as an exchange would, and become one when they must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hpack import Decoder

from meshproxy.access_log import Record
from meshproxy.cluster import Cluster
from meshproxy.config import (
    Balancing,
    ClusterConfig,
    EndpointConfig,
    Forward,
    HashPolicy,
    HeaderMatch,
    Listener,
    Retry,
    Route,
    RouteMatch,
    StaticDiscovery,
    WeightedCluster,
)
from meshproxy.hash_key import hash_value
from meshproxy.http2_transport import GATHERED_READS, OUTBOX
from meshproxy.listener import ListenerRuntime
from meshproxy.message import Fields
from meshproxy.passage import DirectConnection
from meshproxy.route import Router
from meshproxy.shell import Shell
from meshproxy.upstream import pool_of
from meshproxy.upstream_http2 import NOBODY, ClientConnection, Http2Pool
from meshproxy.wire import http2_frames as f
from tests.meshproxy.wire.http2_recording import GET, POST, RawPeer, parse

ENDPOINTS = tuple(EndpointConfig(address="127.0.0.1", port=port) for port in (1, 2, 3))
FORWARD = Forward(
    clusters=(WeightedCluster(cluster="there"),), retry=Retry(retry_on=("5xx",)), hash=(HashPolicy(header="x-key"),)
)


class FakeTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> object:
        return ("10.0.0.1", 1234) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def take(self) -> list[tuple[int, int, int, bytes]]:
        OUTBOX.flush()  # as if the turn of the loop were over
        data, self.written = self.written, b""
        return parse(data)


@dataclass
class Wired:
    """A client's connection, and one connection to each endpoint."""

    listener: ListenerRuntime
    cluster: Cluster
    client: DirectConnection
    to_client: FakeTransport
    upstream: list[ClientConnection]
    to_endpoint: list[FakeTransport]
    peer: RawPeer = field(default_factory=RawPeer)
    _next: int = 1
    _decoders: dict[int, Decoder] = field(default_factory=dict)

    def ask(self, fields: Fields, *, body: bytes | None = None) -> int:
        """Send a whole request in one piece; return its stream."""
        stream, self._next = self._next, self._next + 2
        if body is None:
            sent = self.peer.headers(stream, fields)
        else:
            sent = self.peer.headers(stream, fields, flags=f.END_HEADERS)
            sent += self.peer.frame(f.DATA, body, flags=f.END_STREAM, stream=stream)
        self.client.data_received(sent)
        return stream

    def asked(self) -> list[tuple[int, int, dict[bytes, bytes]]]:
        """Requests that reached endpoints since: which one, on which stream, its fields."""
        found = []
        for index, transport in enumerate(self.to_endpoint):
            decoder = self._decoders.setdefault(index, Decoder())
            for kind, _, stream, payload in transport.take():
                if kind == f.HEADERS:
                    found.append((index, stream, dict(decoder.decode(payload, raw=True))))
        return found

    def answer(self, index: int, stream: int, status: bytes = b"200", body: bytes = b"hello") -> None:
        head = self.peer.headers(stream, [(b":status", status), (b"server", b"t")], flags=f.END_HEADERS)
        self.upstream[index].data_received(head + self.peer.frame(f.DATA, body, flags=1, stream=stream))

    def answers(self) -> list[tuple[int, int, int]]:
        return [(kind, flags, stream) for kind, flags, stream, _ in self.to_client.take() if stream]

    def assert_even(self) -> None:
        """Nobody is counted as under way."""
        assert self.cluster.active_requests == self.cluster.pending_requests == self.cluster.active_retries == 0
        assert [endpoint.active for endpoint in self.cluster.endpoints] == [0, 0, 0]
        assert not self.client.connection.streams
        assert not any(each.connection.streams for each in self.upstream)


@asynccontextmanager
async def wired(forward: Forward = FORWARD) -> AsyncIterator[Wired]:
    config = ClusterConfig(
        name="there",
        discovery=StaticDiscovery(endpoints=ENDPOINTS),
        protocol="http2",
        balancing=Balancing(policy="maglev" if forward.hash else "round_robin"),
    )
    routes = (Route(name="all", action=forward),)
    async with asyncio.TaskGroup() as tasks:
        shell = Shell(asyncio.get_running_loop(), tasks)
        cluster = Cluster(config)
        cluster.update(ENDPOINTS)
        settings = Listener(name="here", port=0, routes=routes)
        listener = ListenerRuntime(settings, router=Router(settings), clusters={"there": cluster}, shell=shell)
        to_client: Any = FakeTransport()
        client = DirectConnection(listener, to_client, lambda connection: None)
        client.data_received(RawPeer().start())
        upstream, to_endpoint = [], []
        for endpoint in cluster.endpoints:
            pool = pool_of(endpoint, cluster, shell)
            assert isinstance(pool, Http2Pool)
            connection, transport = ClientConnection(pool), FakeTransport()
            connection.connection_made(transport)  # type: ignore[arg-type]
            pool._connecting += 1  # as if it had dialled
            cluster.connections += 1
            connection.data_received(RawPeer().start(is_server=True))
            upstream.append(connection)
            to_endpoint.append(transport)
        found = Wired(listener, cluster, client, to_client, upstream, to_endpoint)
        to_client.take()
        for transport in to_endpoint:
            transport.written = transport.written.removeprefix(f.PREFACE)
        found.asked()
        yield found


Story = Callable[[Wired], None]


def tell(story: Story, forward: Forward = FORWARD) -> None:
    async def run() -> None:
        async with wired(forward) as found:
            story(found)

    asyncio.run(run())


def with_key(key: bytes, *, number: int = 0) -> Fields:
    return [*GET, (b"x-key", key), (b"x-id", b"%d" % number)]


def test_a_request_and_its_answer_pass_and_are_counted() -> None:
    def story(found: Wired) -> None:
        found.ask(with_key(b"a"))
        ((index, stream, fields),) = found.asked()
        assert (fields[b":path"], fields[b"x-key"], fields[b"x-forwarded-for"]) == (b"/", b"a", b"10.0.0.1")
        assert len(fields[b"x-request-id"]) == 32
        assert len(fields[b"traceparent"]) == 55
        found.answer(index, stream)
        assert found.answers() == [(f.HEADERS, f.END_HEADERS, 1), (f.DATA, f.END_STREAM, 1)]
        assert found.cluster.endpoints[index].successes == 1
        assert found.listener.router.plans[0].stats["there"].answers[2] == 1
        found.assert_even()

    tell(story)


def test_what_is_asked_in_one_turn_of_the_loop_goes_out_together() -> None:
    def story(found: Wired) -> None:
        streams = [found.ask(with_key(b"a", number=number)) for number in range(3)]
        assert not any(transport.written for transport in found.to_endpoint)
        OUTBOX.flush()
        (sent,) = [parse(transport.written) for transport in found.to_endpoint if transport.written]
        assert [kind for kind, *_ in sent] == [f.HEADERS] * len(streams)

    tell(story)


def test_only_so_many_wait_for_each_other() -> None:
    def story(found: Wired) -> None:
        for number in range(GATHERED_READS):
            found.ask(with_key(b"a", number=number))
        (sent,) = [parse(transport.written) for transport in found.to_endpoint if transport.written]
        assert len(sent) == GATHERED_READS

    tell(story)


def test_nothing_is_sent_to_an_endpoint_that_goes_in_the_same_turn() -> None:
    def story(found: Wired) -> None:
        found.ask(with_key(b"a"))
        for connection in found.upstream:
            connection.connection_lost(None)
        OUTBOX.flush()
        assert not any(transport.written for transport in found.to_endpoint)

    tell(story, replace(FORWARD, retry=Retry()))


def test_every_key_goes_to_its_endpoint_however_its_head_is_read() -> None:
    def story(found: Wired) -> None:
        for number in range(60):
            key = b"key-%d" % (number // 2)
            found.ask(with_key(key, number=number))
            ((index, stream, fields),) = found.asked()
            assert (fields[b"x-key"], fields[b"x-id"]) == (key, b"%d" % number)
            assert found.cluster.endpoints[index] is found.cluster.pick(hash_value(key))
            found.answer(index, stream)
        found.assert_even()

    tell(story)


def test_a_body_in_one_piece_goes_along() -> None:
    def story(found: Wired) -> None:
        found.ask([*POST, (b"x-key", b"a"), (b"content-length", b"4")], body=b"ping")
        OUTBOX.flush()
        sent = [frame for transport in found.to_endpoint for frame in parse(transport.written)]
        assert [(kind, flags, payload) for kind, flags, _, payload in sent][1:] == [(f.DATA, f.END_STREAM, b"ping")]
        ((index, stream, fields),) = found.asked()
        assert fields[b"content-length"] == b"4"
        found.answer(index, stream)
        found.assert_even()

    tell(story)


def test_a_failing_answer_is_retried_as_an_exchange() -> None:
    async def run() -> None:
        async with wired() as found:
            found.ask(with_key(b"a"))
            ((index, stream, first),) = found.asked()
            found.answer(index, stream, b"503")
            assert found.answers() == []
            while not (asked := found.asked()):
                await asyncio.sleep(0)
            ((other, stream, second),) = asked
            assert other != index
            assert second == first  # the same ids, too
            found.answer(other, stream)
            assert [stream for _, _, stream in found.answers()] == [1, 1]
            assert [found.cluster.endpoints[each].failures for each in (index, other)] == [1, 0]
            found.assert_even()

    asyncio.run(run())


@pytest.mark.parametrize("body", [None, b"ping"])
def test_a_client_that_goes_resets_its_attempt(body: bytes | None) -> None:
    def story(found: Wired) -> None:
        stream = found.ask([*(POST if body else GET), (b"x-key", b"a")], body=body)
        ((index, there, _),) = found.asked()
        found.client.data_received(f.rst_stream_frame(stream, f.Code.CANCEL))
        assert (f.RST_STREAM, there) in [(kind, number) for kind, _, number, _ in found.to_endpoint[index].take()]
        found.assert_even()

    tell(story)


def test_an_answer_in_pieces_is_carried_in_pieces() -> None:
    def story(found: Wired) -> None:
        found.ask(with_key(b"a"))
        ((index, stream, _),) = found.asked()
        upstream = found.upstream[index]
        upstream.data_received(found.peer.headers(stream, [(b":status", b"200")], flags=f.END_HEADERS))
        upstream.data_received(found.peer.frame(f.DATA, b"a", stream=stream))
        upstream.data_received(found.peer.frame(f.DATA, b"b", flags=1, stream=stream))
        assert found.answers() == [
            (f.HEADERS, f.END_HEADERS, 1),
            (f.DATA, 0, 1),
            (f.DATA, f.END_STREAM, 1),
        ]
        found.assert_even()

    tell(story)


def test_grpc_with_trailers_passes_whole_and_its_failure_counts() -> None:
    def story(found: Wired) -> None:
        for status in (b"0", b"14"):
            found.ask([*POST, (b"x-key", b"a"), (b"content-type", b"application/grpc")], body=b"\0\0\0\0\0")
            ((index, stream, _),) = found.asked()
            answer = found.peer.headers(stream, [(b":status", b"200")], flags=f.END_HEADERS)
            answer += found.peer.frame(f.DATA, b"\0\0\0\0\0", stream=stream)
            answer += found.peer.headers(stream, [(b"grpc-status", status)])
            found.upstream[index].data_received(answer)
            kinds = [(kind, flags) for kind, flags, _ in found.answers()]
            assert kinds == [(f.HEADERS, 4), (f.DATA, 0), (f.HEADERS, 5)]
        counted = [(endpoint.successes, endpoint.failures) for endpoint in found.cluster.endpoints]
        assert sorted(counted) == [(0, 0), (0, 0), (1, 1)]
        found.assert_even()

    tell(story, replace(FORWARD, retry=Retry()))


def test_a_reload_moves_the_requests_that_come_after_it() -> None:
    def story(found: Wired) -> None:
        found.ask(with_key(b"a"))
        ((index, stream, _),) = found.asked()
        listener = found.listener
        listener.router = Router(replace(listener.config, routes=()))
        found.ask(with_key(b"a"))
        assert found.asked() == []
        found.answer(index, stream)
        assert [stream for _, _, stream in found.answers()] == [3, 3, 1, 1]
        found.assert_even()

    tell(story)


def test_routes_by_header_are_asked_for_each_request() -> None:
    async def run() -> None:
        async with wired() as found:
            config = found.listener.config
            match = RouteMatch(headers=(HeaderMatch(name="x-id"),))
            one = Route(name="with", match=match, action=replace(FORWARD, hash=()))
            found.listener.router = Router(replace(config, routes=(one, *config.routes)))
            for number in range(8):
                found.ask(with_key(b"a", number=number))
                ((index, stream, _),) = found.asked()
                found.answer(index, stream)
            found.ask([*GET, (b"x-key", b"a")])
            plans = found.listener.router.plans
            assert [plan.stats["there"].answers[2] for plan in plans] == [8, 0]
            ((index, stream, _),) = found.asked()
            found.answer(index, stream)
            assert [plan.stats["there"].answers[2] for plan in plans] == [8, 1]

    asyncio.run(run())


def test_a_time_that_is_up_is_answered_as_by_an_exchange() -> None:
    async def run() -> None:
        async with wired(replace(FORWARD, timeout_s=0.05)) as found:
            found.listener.shell.wheel.start()
            found.ask(with_key(b"a"))
            ((index, there, _),) = found.asked()
            while not (answers := found.to_client.take()):
                await asyncio.sleep(0)
            fields = dict(Decoder().decode(answers[0][3], raw=True))
            assert (fields[b":status"], fields[b"x-netloom-error"]) == (b"504", b"timeout")
            assert (f.RST_STREAM, there) in [(kind, number) for kind, _, number, _ in found.to_endpoint[index].take()]
            found.listener.shell.wheel.stop()
            found.assert_even()

    asyncio.run(run())


def test_the_next_requests_are_spread_though_connections_are_missing() -> None:
    def story(found: Wired) -> None:
        for _ in range(6):
            found.ask(GET)
        assert sorted(index for index, _, _ in found.asked()) == [0, 0, 1, 1, 2, 2]

    tell(story, replace(FORWARD, hash=()))


def test_connect_is_refused_unless_it_is_allowed() -> None:
    def story(found: Wired) -> None:
        found.ask([(b":method", b"CONNECT"), (b":authority", b"a.test:80")])
        ((_, _, _, payload),) = found.to_client.take()
        assert (b":status", b"405") in list(Decoder().decode(payload, raw=True))
        assert found.asked() == []
        found.assert_even()

    tell(story)


def test_a_listener_that_samples_traces_says_so() -> None:
    def story(found: Wired) -> None:
        found.listener.config = replace(found.listener.config, traced_percent=100)
        found.ask(with_key(b"a"))
        ((index, stream, fields),) = found.asked()
        assert fields[b"traceparent"].endswith(b"-01")
        found.answer(index, stream)

    tell(story)


class KeptLog:
    """An access log in memory."""

    is_on = True

    def __init__(self) -> None:
        self.records: list[Record] = []

    def wants(self, *, failed: bool) -> bool:
        return True

    def write(self, record: Record, *, failed: bool) -> None:
        self.records.append(record)


def test_the_access_log_tells_of_it_as_of_any_request() -> None:
    def story(found: Wired) -> None:
        log: Any = KeptLog()
        found.listener.log = log
        found.ask([*POST, (b"x-key", b"a")], body=b"ping")
        ((index, stream, fields),) = found.asked()
        found.answer(index, stream)
        (record,) = log.records
        assert (record.method, record.path, record.status, record.attempts) == (b"POST", b"/", 200, 1)
        assert (record.bytes_received, record.bytes_sent, record.cluster) == (4, 5, "there")
        assert record.traceparent == fields[b"traceparent"]
        found.assert_even()

    tell(story)


def test_a_connection_that_nobody_uses_is_closed_in_time_and_an_old_one_takes_no_more() -> None:
    def story(found: Wired) -> None:
        idle, used, _ = found.upstream
        idle.on_second(found.cluster.config.idle_timeout_s - 1)
        assert not found.to_endpoint[0].is_closed
        idle.on_second(found.cluster.config.idle_timeout_s + 1)
        assert found.to_endpoint[0].is_closed
        receiver: Any = NOBODY
        stream = used.open(receiver)
        used.retire()
        assert not used.connection.has_room
        assert not found.to_endpoint[1].is_closed
        stream.reset()
        assert found.to_endpoint[1].is_closed

    tell(story)


def test_a_connection_takes_as_many_requests_as_it_may() -> None:
    def story(found: Wired) -> None:
        for connection in found.upstream:
            connection.max_requests = 1
        for _ in range(2):
            found.ask(with_key(b"a"))
        ((index, stream, _),) = found.asked()  # the second waits for another connection
        assert found.cluster.pending_requests == 1
        found.answer(index, stream)
        assert found.to_endpoint[index].is_closed
        found.client.data_received(f.rst_stream_frame(3, f.Code.CANCEL))
        found.assert_even()

    async def run() -> None:
        async with wired() as found:
            story(found)

    asyncio.run(run())
