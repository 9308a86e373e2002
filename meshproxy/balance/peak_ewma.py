"""The quicker of two drawn at random, by their expected waits: Linkerd's peak EWMA (Endpoint.learn has the average)."""

from __future__ import annotations

from collections.abc import Callable

from meshproxy.balance.draw import Draw
from meshproxy.endpoint import Endpoint


class PeakEwma:
    """Two draws a pick; `clock` in seconds, the one that reports are timed by."""

    __slots__ = ("clock", "draw")

    def __init__(self, draw: Draw, *, clock: Callable[[], float]) -> None:
        self.draw = draw
        self.clock = clock

    def pick(self, _key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        first = self.draw.one() if avoid is None else self.draw.other_than(avoid)
        second = self.draw.one()
        if first is second or second is avoid:
            return first
        now = self.clock()
        return second if second.cost(now) < first.cost(now) else first
