"""What the parts of an HTTP/1.1 request cost, without sockets: `python tests/bench/hot_path.py`.

The numbers in the comments of the hot modules come from here. `whole request` is everything that Python does for one,
from the client's bytes to the endpoint's and back, over transports that only take what is written.
"""

from __future__ import annotations

import asyncio
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop

from meshproxy.cluster import Cluster
from meshproxy.config import (
    Balancing,
    ClusterConfig,
    EndpointConfig,
    Forward,
    HashPolicy,
    Listener,
    OutlierDetection,
    Retry,
    Route,
    StaticDiscovery,
    WeightedCluster,
)
from meshproxy.http1_stamp import Http1Stamp
from meshproxy.identity import Randomness
from meshproxy.listener import ListenerRuntime
from meshproxy.route import Router
from meshproxy.server_http1 import Http1Downstream
from meshproxy.shell import Shell
from meshproxy.upstream import Http1Pool, pool_of
from meshproxy.upstream_http1 import Http1Connection
from meshproxy.wire.http1_fields import HTTP1
from meshproxy.wire.http1_request import quick_match, read_request
from meshproxy.wire.http1_response import read_response

REQUEST = (
    b"GET /api/items/17?page=1 HTTP/1.1\r\nHost: web.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    b"Accept: text/html,application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n"
    b"Cookie: session=0123456789abcdef\r\nX-User: user-123456\r\nCache-Control: no-cache\r\n"
)
KNOWN = (
    b"x-forwarded-for: 10.0.0.1\r\nx-forwarded-proto: http\r\nx-request-id: 0af7651916cd43dd8448eb211c80319c\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
)
ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 15:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 1024\r\nConnection: keep-alive\r\n\r\n"
)
ANSWER = ANSWER_HEAD + b"x" * 1024


class Sink:
    """A transport that takes everything."""

    def write(self, data: bytes) -> None: ...

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("192.0.2.1", 1)


def cost_us(do: Callable[[], object], *, number: int = 50_000) -> float:
    """The best of five, since whatever disturbs only adds."""
    return min(timeit.repeat(do, number=number, repeat=5)) / number * 1e6


def parts() -> dict[str, Callable[[], object]]:
    plain, known = REQUEST + b"\r\n", REQUEST + KNOWN + b"\r\n"
    slow = REQUEST + b"TE: trailers\r\n\r\n"
    stamp = Http1Stamp(b"192.0.2.1", "append", Randomness())
    found, found_known = quick_match(plain), quick_match(known)
    assert found is not None
    assert found_known is not None
    return {
        "match a usual head": lambda: quick_match(plain),
        "match one from another meshproxy": lambda: quick_match(known),
        "read a head slowly": lambda: read_request(slow, max_fields=100),
        "stamp a usual head": lambda: stamp.origin(found, plain),
        "stamp one from another meshproxy": lambda: stamp.origin(found_known, known),
        "find the hash key": lambda: HTTP1.values(plain, b"x-user"),
        "read all fields": lambda: HTTP1(plain[:-2]),
        "read an answer's head": lambda: read_response(ANSWER_HEAD, method=b"GET", max_fields=100),
    }


async def whole_request() -> Callable[[], object]:
    config = ClusterConfig(
        name="web",
        discovery=StaticDiscovery(endpoints=()),
        balancing=Balancing(policy="maglev", maglev_table_size=251),
        outlier_detection=OutlierDetection(),
    )
    cluster = Cluster(config)
    cluster.update(tuple(EndpointConfig(address="192.0.2.2", port=port) for port in (1, 2, 3)))
    forward = Forward(
        clusters=(WeightedCluster(cluster="web"),), retry=Retry(retry_on=("5xx",)), hash=(HashPolicy(header="x-user"),)
    )
    listener = Listener(name="in", port=0, routes=(Route(name="all", action=forward),))
    while cluster.pick(1) is None:  # the table is filled beside the requests
        await asyncio.sleep(0.01)
    async with asyncio.TaskGroup() as tasks:
        shell = Shell(asyncio.get_running_loop(), tasks)
        runtime = ListenerRuntime(listener, router=Router(listener), clusters={"web": cluster}, shell=shell)
        transport = cast("Any", Sink())
        client = Http1Downstream(runtime, transport, lambda _: None)
        connections = {}
        for endpoint in cluster.endpoints:
            pool = cast("Http1Pool", pool_of(endpoint, cluster, shell))
            pool._connecting = 1
            connections[endpoint.key] = Http1Connection(pool)
            connections[endpoint.key].connection_made(transport)

    request = REQUEST + b"\r\n"

    def go() -> None:
        client.data_received(request)
        exchange = client._exchange
        assert exchange is not None
        assert exchange.endpoint is not None
        connections[exchange.endpoint.key].data_received(ANSWER)

    return go


def main() -> None:
    for name, do in parts().items():
        print(f"{name:36} {cost_us(do):6.2f} us")

    async def whole() -> None:
        print(f"{'whole request':36} {cost_us(await whole_request()):6.2f} us")

    uvloop.run(whole())


if __name__ == "__main__":
    main()
