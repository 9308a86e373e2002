"""Maglev and the ring as the papers and Envoy have them: slow, obvious, what the quick ones are held against."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from xxhash import xxh64_intdigest


def maglev(keys: Sequence[str], weights: Sequence[int], size: int) -> list[int]:
    """Return the place of the owner of each slot."""
    table = [-1] * size
    shares = [weight / sum(weights) for weight in weights]
    targets = [0.0] * len(keys)
    nexts = [0] * len(keys)
    filled = 0
    iteration = 0
    while filled < size:
        iteration += 1
        for key, place in sorted(zip(keys, range(len(keys)), strict=True)):
            if filled == size:
                break
            if iteration * shares[place] < targets[place]:
                continue
            targets[place] += max(shares)
            offset = xxh64_intdigest(key.encode(), 0) % size
            skip = xxh64_intdigest(key.encode(), 1) % (size - 1) + 1
            while True:
                slot = (offset + nexts[place] * skip) % size
                nexts[place] += 1
                if table[slot] < 0:
                    break
            table[slot] = place
            filled += 1
    return table


def ring(keys: Sequence[str], weights: Sequence[int], minimum: int, maximum: int) -> list[tuple[int, int]]:
    """Return the points, sorted: hash and place of the owner."""
    shares = [weight / sum(weights) for weight in weights]
    scale = min(ceil(min(shares) * minimum) / min(shares), float(maximum))
    points: list[tuple[int, int]] = []
    target = 0.0
    for place, key in enumerate(keys):
        target += scale * shares[place]
        number = 0
        while len(points) < target:
            points.append((xxh64_intdigest(f"{key}_{number}".encode()), place))
            number += 1
    return sorted(points)
