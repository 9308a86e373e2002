"""Clusters to test with: endpoints by number, a clock that is told what time it is, a loop that is stepped by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from meshproxy.balance.builds import TableBuilds
from meshproxy.cluster import Cluster
from meshproxy.config import Balancing, ClusterConfig, EndpointConfig, StaticDiscovery


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Turns:
    """The call_soon of a loop: each `step` does what was asked for up to then."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()

    def __call__(self, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def step(self) -> bool:
        for _ in range(len(self.waiting)):
            self.waiting.popleft()()
        return bool(self.waiting)

    def run(self) -> int:
        """Step until nothing waits; return how many steps that took."""
        steps = 0
        while self.waiting:
            self.step()
            steps += 1
        return steps


class Pool:
    """Remembers whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def address(number: int) -> str:
    return f"127.0.{number // 250}.{number % 250 + 1}"


def endpoints(
    numbers: Sequence[int], *, weights: Sequence[int] | None = None, port: int = 8080, **details: Any
) -> tuple[EndpointConfig, ...]:
    """Return endpoints that hold their address over calls: number 7 is always the same."""
    return tuple(
        EndpointConfig(address=address(number), port=port, weight=weights[place] if weights else 1, **details)
        for place, number in enumerate(numbers)
    )


def cluster(
    *snapshots: tuple[EndpointConfig, ...],
    balancing: Balancing | None = None,
    clock: Callable[[], float] | None = None,
    call_soon: Callable[[Callable[[], None]], None] | None = None,
    seed: int = 1,
    **details: Any,
) -> Cluster:
    """Return a cluster that has seen these snapshots."""
    made = Cluster(
        ClusterConfig(
            name="web",
            discovery=StaticDiscovery(endpoints=()),
            balancing=balancing if balancing is not None else Balancing(),
            **details,
        ),
        clock=clock if clock is not None else Clock(),
        random=Random(seed).random,
        builds=TableBuilds(call_soon) if call_soon is not None else None,
    )
    for snapshot in snapshots:
        made.update(snapshot)
    return made
