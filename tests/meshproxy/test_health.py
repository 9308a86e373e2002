"""Health checks against real servers: what counts as an answer, and what several answers amount to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from meshproxy.config import ClusterConfig, EndpointConfig, HealthCheck, StaticDiscovery
from meshproxy.endpoint import Endpoint
from meshproxy.health import HealthChecks, Verdict
from meshproxy.health_probes import CheckFailed, probe
from tests.meshproxy.clusters import cluster, endpoints

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Owner:
    def on_failure(self, endpoint: Endpoint) -> None: ...


def endpoint_at(port: int) -> Endpoint:
    return Endpoint(EndpointConfig(address="127.0.0.1", port=port), owner=Owner())


def cluster_config(protocol: str = "http1") -> ClusterConfig:
    return ClusterConfig(
        name="web",
        discovery=StaticDiscovery(endpoints=()),
        protocol=protocol,  # type: ignore[arg-type]
    )


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "0.0.0.0", 0)
    async with server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            while not tasks:  # a client that only connects is gone before it is accepted
                await asyncio.sleep(0)
            await asyncio.wait(tasks)


def answers(response: bytes, requests: list[bytes] | None = None) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            request = await reader.readuntil(b"\r\n\r\n")
            if requests is not None:
                requests.append(request)
            writer.write(response)
            await writer.drain()

    return handle


def ask(handler: Handler, check: HealthCheck, *, protocol: str = "http1") -> None:
    """Ask a server with this handler once; raises what the probe raises."""

    async def story() -> None:
        async with serving(handler) as port, asyncio.timeout(5):
            await probe(check, cluster_config(protocol), endpoint_at(port))

    asyncio.run(story())


def test_an_http_check_asks_for_its_path_and_host() -> None:
    requests: list[bytes] = []
    ask(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", requests), HealthCheck(path="/ready?deep=1"))
    assert requests[0].startswith(b"GET /ready?deep=1 HTTP/1.1\r\nHost: web\r\n")
    ask(answers(b"HTTP/1.0 204 Fine\r\n\r\n", requests), HealthCheck(host="a.b", expected_statuses=(204,)))
    assert b"Host: a.b\r\n" in requests[1]


def test_an_interim_answer_is_not_the_answer() -> None:
    ask(answers(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), HealthCheck())


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 503 Unavailable\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",  # not among the expected
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5,
        b"x" * 100_000,
    ],
)
def test_bad_http_answers_are_failures(response: bytes) -> None:
    with pytest.raises((CheckFailed, ConnectionError)):
        ask(answers(response), HealthCheck())


def test_a_tcp_check_wants_a_connection_only() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    ask(silent, HealthCheck(kind="tcp"))


@pytest.mark.parametrize("kind", ["tcp", "http", "grpc"])
def test_nobody_there_is_a_failure(kind: Any) -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await probe(HealthCheck(kind=kind), cluster_config(), endpoint_at(port))

    asyncio.run(story())


def http2_server(status: str) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        connection.ping(b"12345678")
        writer.write(connection.data_to_send())
        while data := await reader.read(65_536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    connection.send_headers(event.stream_id, [(":status", "103")])
                    connection.send_headers(event.stream_id, [(":status", status)])
                    connection.send_data(event.stream_id, b"ok", end_stream=True, pad_length=7)
            writer.write(connection.data_to_send())
            await writer.drain()

    return handle


def test_an_http2_cluster_is_asked_in_http2() -> None:
    ask(http2_server("200"), HealthCheck(), protocol="http2")
    with pytest.raises(CheckFailed, match="status 500"):
        ask(http2_server("500"), HealthCheck(), protocol="http2")
    with pytest.raises(CheckFailed):
        ask(answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"), HealthCheck(), protocol="http2")


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]
    """grpc.health.v1, in bytes: `statuses` by service; one that is not there is not found."""

    def __init__(self, statuses: dict[str, int]) -> None:
        self.statuses = statuses

    def service(self, call: Any) -> Any:
        if call.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self.check)

    def check(self, request: bytes, context: Any) -> bytes:
        name = request[2:].decode() if request else ""
        if name not in self.statuses:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no {name}")
        return bytes((0x08, self.statuses[name])) if self.statuses[name] else b""


@contextlib.contextmanager
def grpc_server(*handlers: Any) -> Iterator[int]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def test_a_grpc_check_asks_a_real_server() -> None:
    def asked(port: int, service: str) -> None:
        asyncio.run(probe(HealthCheck(kind="grpc", service=service), cluster_config("http2"), endpoint_at(port)))

    with grpc_server(Health({"": 1, "shop.Cart": 1, "shop.Sick": 2, "shop.Unknown": 0})) as port:
        asked(port, "")
        asked(port, "shop.Cart")
        faults = {"shop.Sick": "not serving: 2", "shop.Unknown": "not serving: 0", "none": "status 5"}
        for service, fault in faults.items():
            with pytest.raises(CheckFailed, match=fault):
                asked(port, service)
    with grpc_server() as port, pytest.raises(CheckFailed, match="grpc-status 12"):
        asked(port, "")


def test_the_first_answer_decides_and_then_it_takes_several() -> None:
    check = HealthCheck(healthy_threshold=2, unhealthy_threshold=3)
    verdict = Verdict(is_healthy=False)
    story = [True, False, False, True, False, False, False, True, False, True, True]
    told = [verdict.add(check, is_good=is_good) for is_good in story]
    assert told == [True, True, True, True, True, True, False, False, False, False, True]
    assert not Verdict(is_healthy=True).add(check, is_good=False)


class Naps:
    """A sleep that lasts until the test lets all sleepers go on."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self._changed = asyncio.Condition()

    async def __call__(self, _seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        async with self._changed:
            self._changed.notify_all()
        await future

    async def begun(self, count: int) -> None:
        """Wait until so many sleep."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.waiting) == count)

    def end(self) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting.clear()


def test_a_cluster_goes_by_the_verdicts_of_its_present_endpoints() -> None:
    async def story() -> None:
        naps = Naps()
        status = b"200"

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answers(b"HTTP/1.1 " + status + b" \r\n\r\n")(reader, writer)

        check = HealthCheck(unhealthy_threshold=1, healthy_threshold=1)
        subject = cluster(health_check=check)
        async with serving(handle) as port, asyncio.timeout(5), asyncio.TaskGroup() as group:
            checks = HealthChecks(subject, check, start=group.create_task, sleep=naps)
            subject.update(endpoints([0, 1], port=port))
            checks.follow()
            assert not any(one.is_healthy for one in subject.endpoints)
            await naps.begun(2)
            assert all(one.is_healthy for one in subject.endpoints)
            status = b"500"
            naps.end()
            await naps.begun(2)
            assert not any(one.is_healthy for one in subject.endpoints)
            subject.update(endpoints([0], port=port))
            checks.follow()
            asked = subject.stats.health_checks
            status = b"200"
            naps.end()
            await naps.begun(1)
            assert subject.endpoints[0].is_healthy
            assert subject.stats.health_checks == asked + 1  # nobody asks the one that has left
            assert subject.stats.health_check_failures == 2
            checks.end()

    asyncio.run(story())


def test_a_frozen_endpoint_is_unhealthy_after_the_timeout() -> None:
    async def story() -> None:
        naps = Naps()

        async def frozen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        check = HealthCheck(timeout_s=0.05)
        subject = cluster(health_check=check)
        async with serving(frozen) as port, asyncio.timeout(5), asyncio.TaskGroup() as group:
            subject.update(endpoints([0], port=port))
            checks = HealthChecks(subject, check, start=group.create_task, sleep=naps)
            checks.follow()
            await naps.begun(1)
            assert not subject.endpoints[0].is_healthy
            checks.end()

    asyncio.run(story())
