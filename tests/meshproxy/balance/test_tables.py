"""The tables of the hash policies: what they hold, how they are built, how little they change."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.balance.builds import Steps, Table
from meshproxy.balance.maglev import MaglevTable, maglev_steps
from meshproxy.balance.ring_hash import RingTable, ring_steps
from tests.meshproxy.balance import reference

SIZES = st.sampled_from([2, 3, 5, 7, 101, 1009, 4093])
WEIGHTS = st.lists(st.one_of(st.just(1), st.integers(1, 10), st.integers(1, 100_000)), min_size=1, max_size=40)
KEYS = Random(3).sample([f"10.1.{number // 200}.{number % 200}:8080" for number in range(1000)], 1000)


def built(steps: Steps) -> tuple[Table, int]:
    """Return the table, and how many slices it took."""
    slices = 1
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value, slices
        slices += 1


def maglev(count: int, *, weights: list[int] | None = None, size: int = 65_537) -> MaglevTable:
    table, _ = built(maglev_steps(KEYS[:count], weights or [1] * count, size=size))
    assert isinstance(table, MaglevTable)
    return table


def ring(count: int, *, weights: list[int] | None = None, minimum: int = 1024, maximum: int = 8_388_608) -> RingTable:
    table, _ = built(ring_steps(KEYS[:count], weights or [1] * count, minimum=minimum, maximum=maximum))
    assert isinstance(table, RingTable)
    return table


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, size=SIZES)
def test_maglev_is_the_obvious_table_slot_for_slot(weights: list[int], size: int) -> None:
    table = maglev(len(weights), weights=weights, size=size)
    assert [mark - 1 for mark in table.slots] == reference.maglev(KEYS[: len(weights)], weights, size)


@pytest.mark.parametrize("count", [1, 3, 200, 300])
def test_maglev_of_the_usual_size_is_the_obvious_table(count: int) -> None:
    size = 65_537
    assert [mark - 1 for mark in maglev(count).slots] == reference.maglev(KEYS[:count], [1] * count, size)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=30), minimum=st.integers(1, 2000))
def test_the_ring_is_the_obvious_ring_point_for_point(weights: list[int], minimum: int) -> None:
    table = ring(len(weights), weights=weights, minimum=minimum)
    points = list(zip(table.hashes, table.owners, strict=True))
    assert points == reference.ring(KEYS[: len(weights)], weights, minimum, 8_388_608)


def test_the_ring_obeys_its_maximum() -> None:
    assert len(ring(3, minimum=1000, maximum=500).hashes) == 500


def test_a_key_belongs_to_the_first_point_at_or_after_it_and_wraps() -> None:
    table = ring(5)
    points = sorted(zip(table.hashes, table.owners, strict=True))
    assert table.find(points[7][0]) == points[7][1]
    assert table.find(points[7][0] + 1) == points[8][1]
    assert table.find(points[-1][0] + 1) == points[0][1]
    assert table.find(0) == points[0][1]


@settings(max_examples=20, deadline=None)
@given(weights=st.lists(st.integers(1, 20), min_size=2, max_size=20))
def test_maglev_honours_weights(weights: list[int]) -> None:
    counts = Counter(maglev(len(weights), weights=weights).slots)
    for place, weight in enumerate(weights):
        assert counts[place + 1] / 65_537 == pytest.approx(weight / sum(weights), rel=0.02)


def test_few_keys_move_when_one_of_a_hundred_leaves() -> None:
    random = Random(1)
    keys = [random.getrandbits(64) for _ in range(20_000)]
    for before, after, most in (
        (maglev(100), maglev(99), 0.025),
        (ring(100, minimum=10_000), ring(99, minimum=9_900), 0.012),
    ):
        moved = sum(before.find(key) != after.find(key) for key in keys if before.find(key) != 99)
        assert moved / len(keys) < most


def test_every_endpoint_has_keys() -> None:
    keys = [Random(number).getrandbits(64) for number in range(20_000)]
    for table in (maglev(1000), ring(500, minimum=20_000)):
        count = 1000 if isinstance(table, MaglevTable) else 500
        assert {table.find(key) for key in keys} == set(range(count))


def test_stand_ins_of_a_key_are_several_endpoints() -> None:
    for table in (maglev(50), ring(50)):
        for number in range(50):
            key = Random(number).getrandbits(64)
            assert len({table.find_other(key, attempt) for attempt in range(1, 17)}) > 8


@pytest.mark.parametrize("count", [3, 200, 900])
def test_maglev_is_built_in_many_slices(count: int) -> None:
    _, slices = built(maglev_steps(KEYS[:count], [1] * count, size=65_537))
    # 18 ms of work: at 40 slices half a millisecond each.
    assert slices > 40


def test_a_large_ring_is_built_in_many_slices() -> None:
    _, slices = built(ring_steps(KEYS[:200], [1] * 200, minimum=100_000, maximum=8_388_608))
    assert slices > 150
