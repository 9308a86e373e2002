"""Maglev's table, slot for slot as Envoy fills it, built in steps so that the loop can do other things in between.

Each endpoint walks its own permutation of the slots and takes the next free one when it is its turn; how often that is
goes by weight. A table is a pure value: a byte a slot (two beyond 255 endpoints), the place of the owner plus one.

Hot while it builds, measured for 65,537 slots and 200 endpoints: a plain loop 25 ms; walks as generators 25; with the
last slots found by arithmetic 19. Most of it are the 500,000 looks at slots that are taken already. Refused:
permutations in chunks by list comprehension (31 ms), `compress` over them (41), a thread (the interpreter's lock
makes the loop wait 5 ms at a time).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Generator, Iterator, MutableSequence, Sequence
from itertools import cycle, islice
from math import isqrt

from xxhash import xxh64_intdigest

# Looks at slots between two yields: about 0.3 ms of work.
LOOKS_PER_SLICE = 12_000
# How many slots a scan passes between two yields.
SCANNED_PER_SLICE = 16_384


class MaglevTable:
    """A full table: `find(key)` is the place of the key's endpoint in the sequence the table was built from."""

    __slots__ = ("__weakref__", "size", "slots")

    def __init__(self, slots: Sequence[int]) -> None:
        self.slots = slots
        self.size = len(slots)

    def find(self, key: int) -> int:
        return self.slots[key % self.size] - 1

    def find_other(self, key: int, attempt: int) -> int:
        """Return where the key goes instead, at attempt 1, 2, ... (Envoy's: the key, its bits turned over)."""
        return self.slots[(key ^ ((1 << 64) - attempt)) % self.size] - 1


def maglev_steps(keys: Sequence[str], weights: Sequence[int], *, size: int) -> Generator[None, None, MaglevTable]:
    """Build the table of the endpoints with these keys (`ip:port`); `size` is a prime. Yields between slices."""
    slots: MutableSequence[int] = bytearray(size) if len(keys) < 256 else array("I", bytes(4 * size))
    # Envoy takes them in the order of their keys as texts, whatever order they came in (seen with 1.40).
    order = sorted(range(len(keys)), key=keys.__getitem__)
    offsets = [xxh64_intdigest(keys[place].encode(), 0) % size for place in order]
    skips = [xxh64_intdigest(keys[place].encode(), 1) % (size - 1) + 1 for place in order]
    walks = [
        _walk(slots, place + 1, start=offset, skip=skip)
        for place, offset, skip in zip(order, offsets, skips, strict=True)
    ]
    turns = turns_by_weight([weights[place] for place in order])
    # The fewer slots are free, the longer a walk looks for one: size / free looks. Where that is more than there are
    # free slots, it is quicker to ask for each of them when the walk would come by.
    few = min(size, isqrt(size) * 3 // 4)
    takes = map(next, map(walks.__getitem__, turns))
    free_count = size
    while free_count > few:
        portion = min(free_count - few, int(LOOKS_PER_SLICE / (1.5 + size / free_count)) + 1)
        deque(islice(takes, portion), maxlen=0)
        free_count -= portion
        yield
    free: list[int] = []
    for start in range(0, size, SCANNED_PER_SLICE):
        free += [slot for slot in range(start, min(size, start + SCANNED_PER_SLICE)) if not slots[slot]]
        yield
    inverses = [pow(skip, -1, size) for skip in skips]
    while free:
        turn = next(turns)
        inverse = inverses[turn]
        shift = -offsets[turn] * inverse
        # The slot's number in the walk: (slot - offset) / skip, in whole numbers modulo the prime.
        first = min([(slot * inverse + shift) % size for slot in free])
        slot = (offsets[turn] + first * skips[turn]) % size
        slots[slot] = order[turn] + 1
        free.remove(slot)
        if not len(free) % 32:
            yield
    return MaglevTable(bytes(slots) if isinstance(slots, bytearray) else slots)


def turns_by_weight(weights: Sequence[int]) -> Iterator[int]:
    """Return whose turn it is, for ever: places in `weights`.

    Envoy goes over all endpoints again and again and passes over those that have had their share. It reckons in
    floating point, which decides on ties, so this does, too; but it looks only at those that are due.
    """
    if len(set(weights)) == 1:
        return cycle(range(len(weights)))
    return _weighted_turns(weights)


def _weighted_turns(weights: Sequence[int]) -> Iterator[int]:
    total = sum(weights)
    shares = [weight / total for weight in weights]
    heaviest = max(shares)
    targets = [0.0] * len(shares)
    due = {1: list(range(len(shares)))}
    iteration = 1
    while True:
        for place in sorted(due.pop(iteration, ())):
            yield place
            targets[place] += heaviest
            share = shares[place]
            turn = max(iteration + 1, int(targets[place] / share))
            while turn > iteration + 1 and (turn - 1) * share >= targets[place]:
                turn -= 1
            while turn * share < targets[place]:
                turn += 1
            due.setdefault(turn, []).append(place)
        iteration += 1


def _walk(slots: MutableSequence[int], mark: int, *, start: int, skip: int) -> Iterator[None]:
    """Take the next free slot of a permutation at each step."""
    slot = start
    wrap = len(slots) - skip
    while True:
        while slots[slot]:
            slot = slot + skip if slot < wrap else slot - wrap
        slots[slot] = mark
        yield
