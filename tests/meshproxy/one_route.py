"""A proxy in a process of its own for tests and benchmarks: one listener, one route, one cluster.

`python -m tests.meshproxy.one_route --endpoint 127.0.0.1:80 --upstream http2` prints its port. SIGTERM drains it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys

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
from meshproxy.listener import ListenerRuntime
from meshproxy.route import Router
from meshproxy.server import Server
from meshproxy.shell import Shell


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", action="append", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--upstream", choices=("http1", "http2"), default="http2")
    parser.add_argument("--hash-header")
    parser.add_argument("--retry-on", nargs="*", default=[])
    parser.add_argument("--timeout-s", type=float, default=15)
    parser.add_argument("--stream-idle-s", type=float, default=300)
    parser.add_argument("--head-timeout-s", type=float, default=15)
    return parser.parse_args(argv)


async def run(options: argparse.Namespace) -> None:
    endpoints = tuple(
        EndpointConfig(address=address, port=int(port))
        for address, _, port in (text.rpartition(":") for text in options.endpoint)
    )
    config = ClusterConfig(
        name="there",
        discovery=StaticDiscovery(endpoints=endpoints),
        protocol=options.upstream,
        balancing=Balancing(policy="maglev" if options.hash_header else "round_robin"),
        outlier_detection=OutlierDetection(),
    )
    action = Forward(
        clusters=(WeightedCluster(cluster="there"),),
        timeout_s=options.timeout_s,
        retry=Retry(retry_on=tuple(options.retry_on)),
        hash=(HashPolicy(header=options.hash_header),) if options.hash_header else (),
    )
    listener = Listener(
        name="here",
        port=options.port,
        address="127.0.0.1",
        routes=(Route(name="all", action=action),),
        stream_idle_s=options.stream_idle_s,
        head_timeout_s=options.head_timeout_s,
    )
    async with asyncio.TaskGroup() as tasks:
        shell = Shell(asyncio.get_running_loop(), tasks)
        shell.wheel.start()
        cluster = Cluster(config)
        cluster.update(endpoints)
        runtime = ListenerRuntime(listener, router=Router(listener), clusters={"there": cluster}, shell=shell)
        server = Server(runtime)
        await server.start()
        print(server.sockets[0].getsockname()[1], flush=True)
        stopped = asyncio.Event()
        shell.loop.add_signal_handler(signal.SIGTERM, stopped.set)
        gc.collect()
        gc.freeze()
        await stopped.wait()
        server.stop_accepting()
        await server.drain()
        for endpoint in cluster.endpoints:
            if endpoint.pool is not None:
                endpoint.pool.close()
        shell.wheel.stop()


if __name__ == "__main__":
    uvloop.run(run(parse(sys.argv[1:])))
