"""gRPC calls while the proxy and its endpoints are restarted: grpcio on both sides, real proxies, no call may fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.meshproxy.live.processes import ProxyProcess
from waiting import wait_until

grpc = pytest.importorskip("grpc")

CONFIG = """
admin: {{port: 0}}
drain: 10s
listeners:
  - name: calls
    port: 0
    routes:
      - cluster: calls
        retry: {{retry_on: [{retry_on}]}}
clusters:
  - name: calls
    protocol: http2
    endpoints: [{endpoints}]
"""


class GrpcEndpoint:
    """A gRPC server in this process that answers what it is asked."""

    def __init__(self, port: int = 0) -> None:
        self.server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Unary": handler}),))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def stop(self) -> None:
        """As servers of gRPC do: GOAWAY, then what is being answered is answered."""
        self.server.stop(5).wait(10)


class Calls:
    """Unary calls on a channel each, one after the other, in threads."""

    def __init__(self, port: int, *, clients: int = 3) -> None:
        self.port = port
        self.done = 0
        self.failures: list[str] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Calls:
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        goal = self.done + count
        wait_until(lambda: self.done >= goal or self.failures, within=20)

    def _run(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            call: Any = channel.unary_unary("/t.T/Unary")
            while not self._is_over.is_set():
                try:
                    assert call(b"ping", timeout=10) == b"ping"
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code()}: {error.details()}")
                self.done += 1


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def endpoint(stack: ExitStack, port: int = 0) -> GrpcEndpoint:
    made = GrpcEndpoint(port)
    stack.callback(made.stop)
    return made


def config_of(*endpoints: GrpcEndpoint, retry_on: str = "") -> str:
    return CONFIG.format(endpoints=", ".join(f"127.0.0.1:{one.port}" for one in endpoints), retry_on=retry_on)


def test_a_hot_restart_fails_no_call(stack: ExitStack, tmp_path: Path) -> None:
    config = config_of(endpoint(stack), endpoint(stack))
    running = stack.enter_context(ProxyProcess(tmp_path, config))
    with Calls(running.port) as calls:
        for _ in range(2):
            after = stack.enter_context(ProxyProcess(tmp_path, config, hot_restart=True))
            assert running.wait(15) == 0
            running = after
            calls.more(50)
    assert calls.failures == []


def test_a_rolling_restart_of_endpoints_fails_no_call(stack: ExitStack, tmp_path: Path) -> None:
    ones = [endpoint(stack) for _ in range(3)]
    # A server of grpcio that stops answers "cancelled" to calls that it has read and not begun.
    running = stack.enter_context(ProxyProcess(tmp_path, config_of(*ones, retry_on="cancelled")))
    with Calls(running.port) as calls:
        for number, old in enumerate(ones):
            old.stop()
            calls.more(30)
            ones[number] = endpoint(stack, old.port)
            calls.more(30)
    assert calls.failures == []


def test_a_reload_fails_no_call(stack: ExitStack, tmp_path: Path) -> None:
    first, second = endpoint(stack), endpoint(stack)
    running = stack.enter_context(ProxyProcess(tmp_path, config_of(first)))
    with Calls(running.port) as calls:
        for number in range(6):
            running.rewrite(config_of((first, second)[(number + 1) % 2]))
            assert running.admin("/reload", method="POST") == "taken\n"
            calls.more(30)
    assert calls.failures == []
    stats = running.stats()
    assert stats["listeners"]["calls"]["requests_http2"] == calls.done
    assert stats["routes"]["calls"]["route-0"]["calls"]["answers"]["2xx"] == calls.done
