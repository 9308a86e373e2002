"""Real clients and servers of HTTP/2 through the proxy: curl, h2load, nghttpd, and h2 where it must be slow or rude."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes, Settings

from tests.meshproxy.http2_running import RunningProxy, nghttpd, proxy

pytestmark = pytest.mark.skipif(shutil.which("nghttpd") is None, reason="needs nghttpd (nghttp2-server)")

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"), (b":path", b"/small")]
POST = [(b":method", b"POST"), *GET[1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("www")
    (path / "small").write_bytes(b"hello\n")
    (path / "large").write_bytes(os.urandom(5_000_000))
    return path


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[RunningProxy]:
    with nghttpd(folder) as port, proxy(port) as running:
        yield running


class Peer:
    """h2 on a socket, either side."""

    def __init__(self, sock: socket.socket, *, client: bool, window: int = 65_535) -> None:
        self.sock = sock
        sock.settimeout(10)
        self.h2 = H2Connection(H2Configuration(client_side=client, header_encoding=None))
        self.h2.local_settings = Settings(client=client, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.initiate_connection()
        self.events: list[Event] = []
        self.send()

    def send(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def read(self) -> list[Event]:
        data = self.sock.recv(65_536)
        events: list[Event] = self.h2.receive_data(data) if data else [ConnectionTerminated()]
        self.send()
        self.events += events
        return events

    def wait_for(self, kind: type[Event], count: int = 1) -> list[Event]:
        while len(found := [event for event in self.events if isinstance(event, kind)]) < count:
            self.read()
        return found


@contextlib.contextmanager
def client_of(running: RunningProxy, *, window: int = 65_535) -> Iterator[Peer]:
    with socket.create_connection(("127.0.0.1", running.port)) as sock:
        yield Peer(sock, client=True, window=window)


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        yield sock, sock.getsockname()[1]


def curl(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["curl", "-s", "--max-time", "20", *words], capture_output=True, check=False)


@pytest.mark.parametrize("flavour", [("--http2-prior-knowledge",), ("--http1.1",)])
def test_curl_gets_a_large_file_unchanged(served: RunningProxy, folder: Path, flavour: tuple[str, ...]) -> None:
    found = curl(*flavour, f"http://127.0.0.1:{served.port}/large")
    assert found.returncode == 0
    assert found.stdout == (folder / "large").read_bytes()


@pytest.mark.parametrize("flavour", ["--http2-prior-knowledge", "--http1.1"])
def test_curl_uploads_what_an_echo_gives_back(folder: Path, flavour: str) -> None:
    with nghttpd(folder, "--echo-upload") as port, proxy(port) as running:
        found = curl(
            flavour, "-X", "POST", "--data-binary", f"@{folder / 'large'}", f"http://127.0.0.1:{running.port}/e"
        )
        assert found.stdout == (folder / "large").read_bytes()


def test_trailers_arrive(folder: Path) -> None:
    with nghttpd(folder, "--trailer", "x-sum: 5") as port, proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, GET, end_stream=True)
        client.send()
        client.wait_for(StreamEnded)
        assert any(getattr(event, "headers", None) == [(b"x-sum", b"5")] for event in client.events)


def test_head_and_missing_files_are_answered(served: RunningProxy) -> None:
    found = curl("--http2-prior-knowledge", "-I", f"http://127.0.0.1:{served.port}/small")
    assert b"content-length: 6" in found.stdout
    found = curl(
        "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{served.port}/no"
    )
    assert found.stdout == b"404"


def test_http2_clients_reach_an_http1_endpoint(tmp_path: Path) -> None:
    with listening() as (sock, port), proxy(port, upstream="http1") as running, client_of(running) as client:
        client.h2.send_headers(1, [*POST, (b"te", b"trailers"), (b"cookie", b"a=1"), (b"cookie", b"b=2")])
        client.h2.send_data(1, b"ping", end_stream=True)
        client.send()
        endpoint, _ = sock.accept()
        with endpoint:
            request = b""
            while b"ping" not in request:
                request += endpoint.recv(65_536)
            assert request.startswith(b"POST /small HTTP/1.1\r\n")
            assert b"host: a.test\r\n" in request.lower()
            assert b"cookie: a=1; b=2\r\n" in request
            endpoint.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npong\r\n0\r\nx-t: 1\r\n\r\n")
            client.wait_for(StreamEnded)
        assert b"".join(e.data for e in client.events if isinstance(e, DataReceived)) == b"pong"


def test_h2load_has_no_failed_request(served: RunningProxy) -> None:
    found = subprocess.run(
        ["h2load", "-n", "5000", "-c", "10", "-m", "20", f"http://127.0.0.1:{served.port}/small"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert "5000 succeeded, 0 failed, 0 errored" in found.stdout


def test_more_streams_than_an_endpoint_takes_wait_for_another_connection(folder: Path) -> None:
    with nghttpd(folder, "-m", "3") as port, proxy(port) as running, client_of(running) as client:
        for number in range(20):
            client.h2.send_headers(1 + 2 * number, GET, end_stream=True)
        client.send()
        client.wait_for(StreamEnded, 20)
        assert {dict(e.headers)[b":status"] for e in client.wait_for(ResponseReceived, 20)} == {b"200"}  # type: ignore[attr-defined]


def test_a_client_that_reads_nothing_costs_little_and_stops_nobody(folder: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(200_000_000)
    with nghttpd(tmp_path) as port, proxy(port) as running, client_of(running, window=0) as lazy:
        with client_of(running) as other:
            path = [*GET[:3], (b":path", b"/huge")]
            lazy.h2.send_headers(1, path, end_stream=True)
            lazy.send()
            lazy.wait_for(ResponseReceived)
            before = running.peak_kib()
            other.h2.send_headers(1, path, end_stream=True)
            other.send()
            received = 0
            while received < 50_000_000:
                for event in other.read():
                    if isinstance(event, DataReceived):
                        received += len(event.data)
                        other.h2.acknowledge_received_data(event.flow_controlled_length, 1)
                other.send()
        assert running.peak_kib() - before < 8_000
        assert not any(isinstance(event, DataReceived) for event in lazy.events)


def test_an_endpoint_that_reads_nothing_of_an_upload_stops_its_client() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, POST)
        client.send()
        endpoint = Peer(sock.accept()[0], client=False, window=10_000)
        endpoint.wait_for(RequestReceived)
        sent = 0
        while sent < 1_000_000 and client.h2.local_flow_control_window(1) > 0:
            size = min(16_384, client.h2.local_flow_control_window(1))
            client.h2.send_data(1, b"x" * size)
            client.send()
            sent += size
            client.sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                client.read()
        # What the endpoint takes, and one window of ours.
        assert 100_000 < sent < 300_000
        endpoint.sock.close()


def test_a_client_that_resets_resets_its_attempt() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, POST)
        client.send()
        endpoint = Peer(sock.accept()[0], client=False)
        endpoint.wait_for(RequestReceived)
        client.h2.reset_stream(1)
        client.send()
        endpoint.wait_for(StreamReset)
        endpoint.sock.close()


def test_a_refused_stream_is_repeated_even_for_a_post() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, POST)
        client.h2.send_data(1, b"body", end_stream=True)
        client.send()
        endpoint = Peer(sock.accept()[0], client=False)
        endpoint.wait_for(RequestReceived)
        endpoint.h2.reset_stream(1, error_code=7)
        endpoint.send()
        endpoint.wait_for(RequestReceived, 2)
        endpoint.h2.send_headers(3, [(b":status", b"200")], end_stream=True)
        endpoint.send()
        client.wait_for(StreamEnded)
        endpoint.sock.close()


def test_after_goaway_requests_go_to_a_new_connection_and_running_ones_end() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, GET, end_stream=True)
        client.send()
        old = Peer(sock.accept()[0], client=False)
        old.wait_for(RequestReceived)
        old.sock.sendall(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0")  # h2 would close at once
        client.h2.ping(b"12345678")
        client.h2.send_headers(3, GET, end_stream=True)
        client.send()
        new = Peer(sock.accept()[0], client=False)
        new.wait_for(RequestReceived)
        for endpoint in (new, old):
            endpoint.h2.send_headers(1, [(b":status", b"200")], end_stream=True)
            endpoint.send()
        client.wait_for(StreamEnded, 2)
        for endpoint in (new, old):
            endpoint.sock.close()


def test_a_connection_that_breaks_is_told_as_the_kind_of_error_it_is() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, POST, end_stream=True)
        client.send()
        endpoint = Peer(sock.accept()[0], client=False)
        endpoint.wait_for(RequestReceived)
        endpoint.sock.close()
        (answer,) = client.wait_for(ResponseReceived)
        fields = dict(answer.headers)  # type: ignore[attr-defined]
        assert (fields[b":status"], fields[b"x-netloom-error"]) == (b"503", b"reset")


def test_a_malformed_answer_is_a_bad_gateway() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, POST, end_stream=True)
        client.send()
        endpoint = Peer(sock.accept()[0], client=False)
        endpoint.wait_for(RequestReceived)
        endpoint.sock.sendall(b"\0\0\x05\x01\x05\0\0\0\x01\x88\x00\x01A\x00")  # an upper-case name
        (answer,) = client.wait_for(ResponseReceived)
        assert dict(answer.headers)[b":status"] == b"502"  # type: ignore[attr-defined]
        endpoint.sock.close()


def test_an_endpoint_that_speaks_no_http2_fails_at_once() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, GET, end_stream=True)
        client.send()
        for _ in range(3):  # it is tried again: nothing was sent to it
            endpoint, _ = sock.accept()
            endpoint.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            endpoint.close()
        (answer,) = client.wait_for(ResponseReceived)
        assert dict(answer.headers)[b":status"] == b"503"  # type: ignore[attr-defined]


def test_a_draining_proxy_ends_what_runs_and_takes_no_more() -> None:
    with listening() as (sock, port), proxy(port) as running, client_of(running) as client:
        client.h2.send_headers(1, GET, end_stream=True)
        client.send()
        endpoint = Peer(sock.accept()[0], client=False)
        endpoint.wait_for(RequestReceived)
        running.drain()
        client.wait_for(ConnectionTerminated)  # GOAWAY
        endpoint.h2.send_headers(1, [(b":status", b"200")], end_stream=True)
        endpoint.send()
        data = b""
        while piece := client.sock.recv(65_536):  # h2 takes nothing after GOAWAY
            data += piece
        assert b"\x01\x05\0\0\0\x01" in data  # HEADERS that end stream 1
        assert running.process.wait(10) == 0
        endpoint.sock.close()


def test_a_head_that_does_not_end_is_given_up(folder: Path) -> None:
    begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x01\x01\x01\0\0\0\x01\x82"
    with (
        nghttpd(folder) as port,
        proxy(port, more=("--head-timeout-s", "1")) as running,
        socket.create_connection(("127.0.0.1", running.port)) as sock,
    ):
        sock.settimeout(10)
        sock.sendall(begun)
        while sock.recv(65_536):
            pass


@pytest.mark.parametrize(
    "begun", [b"PRI * HTT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x50\x01\x05\0\0\0\x01"]
)
def test_a_head_that_comes_byte_by_byte_is_given_up(folder: Path, begun: bytes) -> None:
    with (
        nghttpd(folder) as port,
        proxy(port, more=("--head-timeout-s", "1")) as running,
        socket.create_connection(("127.0.0.1", running.port)) as sock,
    ):
        sock.sendall(begun)
        sock.settimeout(0.3)
        for byte in b"P/2.0\r\n\r\nS" if begun.startswith(b"PRI * HTT") and len(begun) < 20 else b"\x82" * 15:
            try:
                sock.sendall(bytes((byte,)))
                while sock.recv(65_536):
                    pass
                return
            except TimeoutError:
                continue
            except OSError:
                return
        pytest.fail("it is still open")


def test_a_window_that_stays_shut_is_given_up(folder: Path) -> None:
    with (
        nghttpd(folder) as port,
        proxy(port, more=("--stream-idle-s", "1")) as running,
        client_of(running, window=0) as client,
    ):
        client.h2.send_headers(1, GET, end_stream=True)
        client.send()
        client.wait_for(StreamReset)
