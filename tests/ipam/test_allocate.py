"""The search order: each address once, starting behind the last reservation."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from ipam.allocate import search_order
from ipam.ranges import Range, RangeSet, to_address

BASE = 0xFFFF0A010000  # 10.1.0.0


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    """Up to four ranges that do not overlap, in any order, each with a gateway inside or outside."""
    bounds = draw(st.lists(st.integers(0, 60), min_size=2, max_size=8, unique=True).map(sorted))
    pairs = list(zip(bounds[0::2], bounds[1::2], strict=False))
    parts = [
        Range(
            ip_network("10.1.0.0/24"),
            BASE + first,
            BASE + last - 1,
            to_address(BASE + draw(st.integers(0, 70))),
        )
        for first, last in pairs
    ]
    return RangeSet(tuple(draw(st.permutations(parts))))


def round_robin(range_set: RangeSet, last: int | None) -> list[int]:
    """The reference's order, spelled out: go on behind `last`, around all ranges, each without its own gateway."""
    everything = [(n, part) for part in range_set.ranges for n in range(part.first, part.last + 1)]
    numbers = [n for n, _ in everything]
    start = numbers.index(last) + 1 if last in numbers else 0
    around = everything[start:] + everything[:start]
    return [n for n, part in around if to_address(n) != part.gateway]


@given(range_sets(), st.none() | st.integers(BASE - 1, BASE + 70))
def test_the_order_is_round_robin(range_set: RangeSet, last: int | None) -> None:
    found = [n for first, end in search_order(range_set, last) for n in range(first, end + 1)]
    assert found == round_robin(range_set, last)


@given(range_sets(), st.none() | st.integers(BASE - 1, BASE + 70))
def test_every_stretch_holds_something(range_set: RangeSet, last: int | None) -> None:
    assert all(first <= end for first, end in search_order(range_set, last))
