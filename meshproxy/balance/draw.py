"""One of many at random, by weight: what random, least_request and peak_ewma draw their candidates with.

An endpoint in its slow start is drawn as if its weight were smaller, by drawing again with the odds of that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from meshproxy.endpoint import Endpoint

# Draws that an endpoint in its slow start may reject in a row: with all of them in it, one must be taken anyway.
MAX_REJECTIONS = 8


class Draw:
    """Draws from `members`. `warmth_of` is the slow start's: 0 to 1; None where there is none."""

    __slots__ = ("borders", "members", "random", "warmth_of")

    def __init__(
        self,
        members: Sequence[Endpoint],
        *,
        random: Callable[[], float],
        warmth_of: Callable[[Endpoint], float] | None = None,
    ) -> None:
        self.members = members
        self.random = random
        self.warmth_of = warmth_of
        is_even = len({member.weight for member in members}) == 1
        self.borders = [] if is_even else list(accumulate(member.weight for member in members))

    def __call__(self) -> Endpoint:
        endpoint = self._draw()
        if self.warmth_of is not None:
            for _ in range(MAX_REJECTIONS):
                if self.random() < self.warmth_of(endpoint):
                    break
                endpoint = self._draw()
        return endpoint

    def other_than(self, avoid: Endpoint | None) -> Endpoint:
        """Draw until it is another; the avoided one if there is nobody else."""
        endpoint = self()
        if endpoint is not avoid:
            return endpoint
        for _ in range(MAX_REJECTIONS):
            endpoint = self()
            if endpoint is not avoid:
                return endpoint
        return next((member for member in self.members if member is not avoid), endpoint)

    def _draw(self) -> Endpoint:
        if self.borders:
            return self.members[bisect_right(self.borders, int(self.random() * self.borders[-1]))]
        return self.members[int(self.random() * len(self.members))]
