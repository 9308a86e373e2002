"""At random, by weight."""

from __future__ import annotations

from meshproxy.balance.draw import Draw
from meshproxy.endpoint import Endpoint


class RandomChoice:
    """One draw a pick."""

    __slots__ = ("draw",)

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def pick(self, _key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        return self.draw.one() if avoid is None else self.draw.other_than(avoid)
