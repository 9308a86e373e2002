"""In turns; by weight where weights differ.

Equal weights cost an index. Different ones are an earliest-deadline-first queue, as in Envoy: an endpoint's next turn
comes 1/weight after its last, so that 1:3 comes out as a, b, b, b spread evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace

from meshproxy.endpoint import Endpoint


class RoundRobin:
    """Turns over `members`, all of them of equal weight; begins at `turn`."""

    __slots__ = ("members", "turn")

    def __init__(self, members: Sequence[Endpoint], *, turn: int = 0) -> None:
        self.members = members
        self.turn = turn % len(members)

    def pick(self, _key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        members = self.members
        endpoint = members[self.turn]
        self.turn = self.turn + 1 if self.turn + 1 < len(members) else 0
        return endpoint if endpoint is not avoid or len(members) == 1 else self.pick(None, avoid)


class WeightedRoundRobin:
    """Turns by weight. `weight_of` is asked at each turn, so that a slow start takes effect while it lasts."""

    __slots__ = ("queue", "weight_of")

    def __init__(
        self,
        members: Sequence[Endpoint],
        *,
        weight_of: Callable[[Endpoint], float],
        random: Callable[[], float],
    ) -> None:
        self.weight_of = weight_of
        # Random first turns: proxies that get one snapshot at one time must not all begin with the same endpoint.
        self.queue = [(random() / weight_of(member), place, member) for place, member in enumerate(members)]
        heapify(self.queue)

    def pick(self, _key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        queue = self.queue
        for _ in range(2):
            deadline, place, endpoint = queue[0]
            heapreplace(queue, (deadline + 1 / self.weight_of(endpoint), place, endpoint))
            if endpoint is not avoid:
                return endpoint
        # The avoided one may own several turns in a row.
        return min((turn for turn in queue if turn[2] is not avoid), default=queue[0])[2]
