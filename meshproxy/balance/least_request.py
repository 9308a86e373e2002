"""The least busy of a few drawn at random (the power of two choices).

Candidates are drawn by weight, and compared by requests over weight; the first drawn wins a tie. So an idle cluster is
used by weight, too, which comparing alone would not do.
"""

from __future__ import annotations

from meshproxy.balance.draw import Draw
from meshproxy.endpoint import Endpoint


class LeastRequest:
    """`choices` draws a pick."""

    __slots__ = ("choices", "draw")

    def __init__(self, draw: Draw, *, choices: int = 2) -> None:
        self.draw = draw
        self.choices = choices

    def pick(self, _key: int | None, avoid: Endpoint | None, /) -> Endpoint | None:
        one = self.draw.one
        best = one() if avoid is None else self.draw.other_than(avoid)
        for _ in range(self.choices - 1):
            endpoint = one()
            # Products instead of quotients: no division, no rounding.
            if endpoint.active * best.weight < best.active * endpoint.weight and endpoint is not avoid:
                best = endpoint
        return best
