"""gRPC through the proxy, grpcio on both sides: every kind of call, deadlines, cancellation, status, long messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.meshproxy.http2_running import RunningProxy, proxy

grpc = pytest.importorskip("grpc")

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
ENOUGH_S = 20


@dataclass
class Backend:
    """A gRPC server of bytes, and what it saw."""

    port: int = 0
    calls: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    time_left_s: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def unary(self, request: bytes, context: object) -> bytes:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())  # type: ignore[attr-defined]
        self.time_left_s = context.time_remaining()  # type: ignore[attr-defined]
        context.set_trailing_metadata((("x-calls", str(self.calls)),))  # type: ignore[attr-defined]
        return request

    def count(self, request: bytes, context: object) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def total(self, requests: Iterator[bytes], context: object) -> bytes:
        return b"%d" % sum(len(each) for each in requests)

    def echo(self, requests: Iterator[bytes], context: object) -> Iterator[bytes]:
        yield from requests

    def fail(self, request: bytes, context: object) -> bytes:
        self.calls += 1
        if self.calls < int(request):
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")  # type: ignore[attr-defined]
        return b"%d" % self.calls

    def hang(self, request: bytes, context: object) -> Iterator[bytes]:
        yield b"begun"
        context.add_callback(self.cancelled.set)  # type: ignore[attr-defined]
        self.cancelled.wait(ENOUGH_S)


@contextmanager
def backend() -> Iterator[Backend]:
    found = Backend()
    server = grpc.server(ThreadPoolExecutor(8), options=UNLIMITED)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(found.unary),
        "Count": grpc.unary_stream_rpc_method_handler(found.count),
        "Total": grpc.stream_unary_rpc_method_handler(found.total),
        "Echo": grpc.stream_stream_rpc_method_handler(found.echo),
        "Fail": grpc.unary_unary_rpc_method_handler(found.fail),
        "Hang": grpc.unary_stream_rpc_method_handler(found.hang),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    found.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield found
    finally:
        found.cancelled.set()
        server.stop(None).wait(ENOUGH_S)


@contextmanager
def channel_to(running: RunningProxy) -> Iterator[object]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", options=UNLIMITED) as channel:
        yield channel


@pytest.fixture
def server() -> Iterator[Backend]:
    with backend() as found:
        yield found


@pytest.fixture
def channel(server: Backend) -> Iterator[object]:
    with proxy(server.port) as running, channel_to(running) as found:
        yield found


def test_unary_calls_carry_metadata_both_ways(server: Backend, channel: object) -> None:
    unary = channel.unary_unary("/t.T/Unary")  # type: ignore[attr-defined]
    for number in range(50):
        answer, call = unary.with_call(b"%d" % number, metadata=(("x-id", f"{number}"),), timeout=ENOUGH_S)
        assert answer == b"%d" % number
        assert server.metadata["x-id"] == f"{number}"
        assert dict(call.trailing_metadata())["x-calls"] == f"{number + 1}"
    assert "x-request-id" in server.metadata
    assert server.metadata["traceparent"].startswith("00-")


def test_an_endpoint_streams(channel: object) -> None:
    count = channel.unary_stream("/t.T/Count")  # type: ignore[attr-defined]
    assert list(count(b"500", timeout=ENOUGH_S)) == [b"%d" % number for number in range(500)]


def test_a_client_streams(channel: object) -> None:
    total = channel.stream_unary("/t.T/Total")  # type: ignore[attr-defined]
    assert total((b"x" * 1000 for _ in range(500)), timeout=ENOUGH_S) == b"500000"


def test_both_stream_in_turn(channel: object) -> None:
    answered = threading.Semaphore(1)

    def ask() -> Iterator[bytes]:
        for number in range(100):
            answered.acquire(timeout=ENOUGH_S)
            yield b"%d" % number

    got = []
    for answer in channel.stream_stream("/t.T/Echo")(ask(), timeout=ENOUGH_S):  # type: ignore[attr-defined]
        got.append(answer)
        answered.release()
    assert got == [b"%d" % number for number in range(100)]


def test_a_message_of_100_megabytes_goes_through_in_little_memory(server: Backend) -> None:
    message = bytes(100_000_000)
    with proxy(server.port) as running, channel_to(running) as channel:
        before = running.peak_kib()
        assert channel.unary_unary("/t.T/Unary")(message, timeout=60) == message  # type: ignore[attr-defined]
        assert running.peak_kib() - before < 16_000


def test_the_clients_deadline_bounds_the_call(server: Backend) -> None:
    with proxy(server.port, more=("--timeout-s", "60")) as running, channel_to(running) as channel:
        call = channel.unary_stream("/t.T/Hang")(b"", timeout=0.3)  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert server.cancelled.wait(ENOUGH_S)


def test_the_deadline_reaches_the_endpoint(server: Backend, channel: object) -> None:
    channel.unary_unary("/t.T/Unary")(b"", timeout=7)  # type: ignore[attr-defined]
    assert server.time_left_s is not None
    assert 5 < server.time_left_s <= 7


def test_a_call_that_is_cancelled_is_cancelled_at_the_endpoint(server: Backend, channel: object) -> None:
    call = channel.unary_stream("/t.T/Hang")(b"", timeout=ENOUGH_S)  # type: ignore[attr-defined]
    assert next(call) == b"begun"
    call.cancel()
    assert server.cancelled.wait(ENOUGH_S)


def test_unavailable_in_trailers_is_retried_where_the_route_says_so(server: Backend) -> None:
    with proxy(server.port, more=("--retry-on", "unavailable")) as running, channel_to(running) as channel:
        assert channel.unary_unary("/t.T/Fail")(b"2", timeout=ENOUGH_S) == b"2"  # type: ignore[attr-defined]
    assert server.calls == 2


def test_without_an_endpoint_the_status_says_unavailable() -> None:
    with backend() as gone:
        port = gone.port
    with proxy(port) as running, channel_to(running) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t.T/Unary")(b"", timeout=ENOUGH_S)  # type: ignore[attr-defined]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (
            dict(caught.value.initial_metadata() or ()).get("x-netloom-error")
            or dict(caught.value.trailing_metadata()).get("x-netloom-error") == "connect-failure"
        )


def test_calls_of_one_connection_are_spread_over_endpoints() -> None:
    with backend() as one, backend() as other, proxy(one.port, other.port) as running, channel_to(running) as channel:
        for _ in range(20):
            channel.unary_unary("/t.T/Unary")(b"", timeout=ENOUGH_S)  # type: ignore[attr-defined]
        assert (one.calls, other.calls) == (10, 10)
