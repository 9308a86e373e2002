"""How much of the load each priority takes, and which one panics: Envoy's arithmetic, in whole percents.

A priority is counted as fully available while 1 / 1.4 of its endpoints are, and hands on what it lacks to the next.
When all together lack something, a priority with too few available endpoints panics: it uses all it has, ill or not,
since to send everything to the few that are left would fell these too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OVERPROVISIONING_PERCENT = 140  # Envoy's factor of 1.4


@dataclass(frozen=True, slots=True)
class Share:
    """A priority's percentage of the load, and whether it is taken by all its endpoints."""

    load_percent: int
    is_panicking: bool


def shares(counts: Sequence[tuple[int, int]], *, panic_threshold_percent: float) -> tuple[Share, ...]:
    """Return the share of each priority from its (available, all) endpoints, the highest priority first.

    The loads sum up to 100 unless nothing may be picked at all.
    """
    availability = [
        min(100, OVERPROVISIONING_PERCENT * available // total) if total else 0 for available, total in counts
    ]
    whole = min(100, sum(availability))
    panics = [
        whole < 100 and (100.0 * available / total if total else 0.0) < panic_threshold_percent
        for available, total in counts
    ]
    if all(panics):
        weights = [total for _, total in counts]
        loads = _percents(weights, of=sum(weights))
    else:
        loads = _percents(availability, of=whole)
    return tuple(Share(load, panic) for load, panic in zip(loads, panics, strict=True))


def _percents(weights: Sequence[int], *, of: int) -> list[int]:
    """Share 100 by `weights`, never more than is left; what rounding leaves goes to the first that takes any."""
    if not of:
        return [0] * len(weights)
    left = 100
    loads = []
    for weight in weights:
        load = min(left, weight * 100 // of)
        loads.append(load)
        left -= load
    loads[next(place for place, weight in enumerate(weights) if weight)] += left
    return loads
