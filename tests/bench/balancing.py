"""What balancing costs: nanoseconds a pick, milliseconds a table, and the longest slice while tables are built.

    .venv/bin/python tests/bench/balancing.py [ENDPOINTS]

Run by hand on a quiet machine. Picks are the best of many rounds; slices are timed on uvloop, as the proxy runs them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshproxy.balance.builds import TableBuilds
from meshproxy.cluster import Cluster
from meshproxy.config import BalancerName, Balancing, ClusterConfig, EndpointConfig, StaticDiscovery

ROUNDS = 100
KEYS = 1000
CHANGES = 20
POLICIES: tuple[BalancerName, ...] = ("maglev", "ring_hash", "round_robin", "least_request", "random", "peak_ewma")


def endpoints(count: int, *, first: int = 0) -> tuple[EndpointConfig, ...]:
    return tuple(
        EndpointConfig(address=f"10.0.{number // 250}.{number % 250}", port=8080)
        for number in range(first, first + count)
    )


def cluster_of(balancing: Balancing, *, builds: TableBuilds | None = None) -> Cluster:
    config = ClusterConfig(name="bench", discovery=StaticDiscovery(endpoints=()), balancing=balancing)
    return Cluster(config, builds=builds)


def pick_ns(balancing: Balancing, count: int, *, rounds: int = ROUNDS) -> float:
    """Return what a pick takes, the best of many rounds."""
    cluster = cluster_of(balancing)
    cluster.update(endpoints(count))
    keys = [Random(number).getrandbits(64) for number in range(KEYS)]
    pick = cluster.pick
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for key in keys:
            pick(key)
        best = min(best, time.perf_counter() - began)
    return best / KEYS * 1e9


async def slices_s(balancing: Balancing, count: int, *, changes: int = CHANGES) -> list[float]:
    """Return the processor time of each slice while endpoints came and went: other processes do not count."""
    loop = asyncio.get_running_loop()
    taken: list[float] = []

    def call_soon(callback: Callable[[], None]) -> None:
        def timed() -> None:
            began = time.thread_time()
            callback()
            taken.append(time.thread_time() - began)

        loop.call_soon(timed)

    builds = TableBuilds(call_soon)
    cluster = cluster_of(balancing, builds=builds)
    for change in range(changes):
        cluster.update(endpoints(count, first=change))
        while builds.is_busy:
            await asyncio.sleep(0)
    return taken


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"{count} endpoints")
    for policy in POLICIES:
        print(f"  {policy:14} {pick_ns(Balancing(policy=policy), count):5.0f} ns a pick")
    bounded = Balancing(policy="maglev", hash_balance_factor=125)
    print(f"  {'maglev, 125 %':14} {pick_ns(bounded, count):5.0f} ns a pick")
    for name, balancing in (
        ("maglev, 65,537 slots", Balancing(policy="maglev")),
        ("ring, 1,024 points", Balancing(policy="ring_hash")),
        ("ring, 100,000 points", Balancing(policy="ring_hash", ring_minimum_size=100_000)),
    ):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            taken = runner.run(slices_s(balancing, count))
        print(
            f"  {name:20} {sum(taken) / CHANGES * 1e3:5.1f} ms a table in {len(taken) // CHANGES} slices,"
            f" the longest of {CHANGES} tables {max(taken) * 1e3:.2f} ms"
        )


if __name__ == "__main__":
    main()
