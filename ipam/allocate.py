"""The allocation policy: which address next. Functions of values, without input or output.

Round robin, as the reference: the search starts behind the set's last reservation and goes once around all of the
set's ranges, so that a pod that crashes in a loop does not see its old address again soon. Read next: store.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cni_plugins.errors import CniError, Code, invalid_config

from .ranges import Range, RangeSet, to_address, to_number


class Stretch(NamedTuple):
    """Numbers from `first` to `last` that may be handed out, if they are free."""

    first: int
    last: int


def search_order(range_set: RangeSet, last_reserved: int | None) -> Iterator[Stretch]:
    """Every address of the set once, the gateways left out, in the order in which to try."""
    ranges = range_set.ranges
    if last_reserved is None or last_reserved not in range_set:  # nothing yet, or the configuration has changed
        for part in ranges:
            yield from _without_gateway(part, part.first, part.last)
        return
    here = ranges.index(range_set.range_of(last_reserved))
    yield from _without_gateway(ranges[here], last_reserved + 1, ranges[here].last)
    for part in ranges[here + 1 :] + ranges[:here]:
        yield from _without_gateway(part, part.first, part.last)
    yield from _without_gateway(ranges[here], ranges[here].first, last_reserved)


def _without_gateway(part: Range, first: int, last: int) -> Iterator[Stretch]:
    gateway = to_number(part.gateway)
    cuts = [(first, gateway - 1), (gateway + 1, last)] if first <= gateway <= last else [(first, last)]
    yield from (Stretch(start, end) for start, end in cuts if start <= end)


def assign_requests(sets: tuple[RangeSet, ...], requested: tuple[int, ...]) -> tuple[int | None, ...]:
    """The requested address of each set, or None where the set may choose. Raises CniError 7."""
    left = list(requested)
    assigned: list[int | None] = []
    for range_set in sets:
        number = next((n for n in left if n in range_set), None)
        if number is not None:
            left.remove(number)
            if number == to_number(range_set.range_of(number).gateway):
                raise invalid_config(f"the requested address {to_address(number)} is the gateway of its range")
        assigned.append(number)
    if left:
        words = " ".join(str(to_address(number)) for number in left)
        raise invalid_config(
            f"requested addresses cannot be served: {words}",
            "each must lie in a range set of its own: " + "; ".join(map(str, sets)),
        )
    return tuple(assigned)


def exhausted(range_set: RangeSet, position: int) -> CniError:
    """The error for a set without a free address."""
    return CniError(
        Code.EXHAUSTED,
        f"no free address in range set {position}: {range_set}",
        "widen the range, or let GC remove what stopped pods left behind",
    )
