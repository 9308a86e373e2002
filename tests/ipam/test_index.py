"""The index alone, against a dictionary."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ipam.index import Index, build_index, open_index, owner_key

BOOT = bytes(range(16))
OWNERS = [owner_key(b"owner %d" % i) for i in range(6)]
numbers = st.one_of(st.integers(0, 40), st.integers(4090, 4100), st.integers(2**127, 2**127 + 9))


def memory() -> int:
    return os.memfd_create("test")


class IndexAgainstModel(RuleBasedStateMachine):
    """Add and remove at random: finds and free numbers stay those of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, bytes] = {}
        self.index: Index = build_index(memory(), [])

    def teardown(self) -> None:
        self.index.close()

    @rule(number=numbers, owner=st.sampled_from(OWNERS))
    def add(self, number: int, owner: bytes) -> None:
        if number not in self.model:
            self.model[number] = owner
            self.index.add(owner, number)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model)))
        self.index.remove(self.model.pop(number), number)

    @rule()
    def build_anew(self) -> None:
        self.index.close()
        self.index = build_index(memory(), [(owner, number) for number, owner in self.model.items()])

    @rule(first=numbers, length=st.integers(0, 9000))
    def first_free(self, first: int, length: int) -> None:
        expected = next((n for n in range(first, first + length + 1) if n not in self.model), None)
        assert self.index.first_free(first, first + length) == expected

    @invariant()
    def every_owner_is_found(self) -> None:
        for owner in OWNERS:
            assert sorted(self.index.find(owner)) == sorted(n for n, o in self.model.items() if o == owner)


TestIndexAgainstModel = IndexAgainstModel.TestCase
TestIndexAgainstModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.fixture
def index() -> Iterator[Index]:
    opened = build_index(memory(), [])
    yield opened
    opened.close()


def test_an_owner_of_many_addresses_is_found_whole(index: Index) -> None:
    for number in range(200):  # far beyond one bucket
        index.add(OWNERS[0], number)
    for number in range(0, 200, 2):
        index.remove(OWNERS[0], number)
    assert sorted(index.find(OWNERS[0])) == list(range(1, 200, 2))


def test_freed_records_are_used_again(index: Index) -> None:
    index.add(OWNERS[0], 0)
    size = repr(index)
    for number in range(500):
        index.add(OWNERS[1], number % 60 + 1)
        index.remove(OWNERS[1], number % 60 + 1)
    assert repr(index) == size


def test_a_built_index_equals_one_grown(index: Index) -> None:
    entries = [(OWNERS[number % 3], number) for number in range(300)]
    for owner, number in entries:
        index.add(owner, number)
    built = build_index(memory(), entries)
    assert [sorted(built.find(o)) for o in OWNERS] == [sorted(index.find(o)) for o in OWNERS]
    assert built.first_free(0, 999) == index.first_free(0, 999) == 300
    built.close()


def test_a_huge_free_range_needs_one_look(index: Index) -> None:
    assert index.first_free(5, 2**64) == 5


@given(st.binary(max_size=200))
def test_damage_is_an_os_error_or_nothing_found(garbage: bytes) -> None:
    fd = memory()
    built = build_index(fd, [(OWNERS[0], 7)])
    os.ftruncate(fd, 0)
    os.pwrite(fd, garbage, 0)
    with pytest.raises(OSError, match="damaged"):
        built.find(OWNERS[0])
    built.close()


def test_a_chain_that_leads_back_is_damage(index: Index) -> None:
    fd = memory()
    looped = build_index(fd, [(OWNERS[0], n) for n in range(40)])
    size = os.fstat(fd).st_size
    for offset in range(4096, size - 768 + 1, 768):
        os.pwrite(fd, (4096).to_bytes(24, "little"), offset + 744)
    with pytest.raises(OSError, match="damaged"):
        looped.find(OWNERS[0])
    looped.close()


@pytest.mark.parametrize("change", ["none", "boot", "stamp", "directory", "short", "garbage", "missing"])
def test_an_index_is_opened_only_for_the_state_that_it_describes(change: str, tmp_path: Path) -> None:
    path, directory = tmp_path / "index", tmp_path / "net"
    directory.mkdir()
    os.utime(directory, ns=(5, 5_000_000_000))
    built = build_index(os.open(path, os.O_RDWR | os.O_CREAT), [])
    built.seal(BOOT, os.stat(directory), 5_000_000_000)
    built.close()
    boot = BOOT
    match change:
        case "boot":
            boot = bytes(16)
        case "stamp":
            (directory / "10.1.0.2").touch()
        case "directory":
            directory.rename(tmp_path / "old")
            directory.mkdir()
            os.utime(directory, ns=(5, 5_000_000_000))
        case "short":
            os.truncate(path, 20)
        case "garbage":
            path.write_bytes(b"x" * 5000)
        case "missing":
            path.unlink()
    found = open_index(str(path), boot, os.stat(directory))
    assert (found is not None) == (change == "none")
    if found is not None:
        found.close()
