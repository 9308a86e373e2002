"""Many processes at once."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

from tests.ipam.plugin import Network, exit_of, in_child, one_range


def test_processes_at_once_get_different_addresses(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/24"))

    def work(worker: int) -> None:
        for turn in range(8):
            assert network.call("ADD", f"w{worker}-{turn}").code == 0
            if turn % 2:
                assert network.call("DEL", f"w{worker}-{turn}").code == 0

    children = [in_child(partial(work, worker)) for worker in range(12)]
    assert [exit_of(child) for child in children] == [0] * 12
    assert len(network.reservations()) == 48
    assert len(set(network.reservations().values())) == 48
    assert all(network.call("CHECK", f"w{worker}-0").code == 0 for worker in range(12))


def test_of_parallel_adds_of_one_attachment_one_wins(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/24"))
    children = [in_child(lambda: network.call("ADD", "same").addresses) for _ in range(10)]
    assert sorted(exit_of(child) for child in children) == [0] + [1] * 9
    assert len(network.reservations()) == 1


def test_the_last_addresses_go_to_as_many_as_there_are(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/29"))

    def work(worker: int) -> None:
        assert network.call("ADD", f"c{worker}").addresses

    children = [in_child(partial(work, n)) for n in range(12)]
    assert sum(exit_of(child) == 0 for child in children) == 5
    assert len(network.reservations()) == 5


def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/24"))

    def work(worker: int) -> None:
        for turn in range(10_000):
            network.call("ADD", f"w{worker}-{turn % 5}")
            network.call("DEL", f"w{worker}-{turn % 5}")

    for round_ in range(5):
        children = [in_child(partial(work, worker)) for worker in range(4)]
        for turn in range(10 + 7 * round_):  # our own calls, between theirs, set the time
            assert network.call("ADD", f"main{turn}").code == 0
            assert network.call("DEL", f"main{turn}").code == 0
        for child in children:
            os.kill(child, signal.SIGKILL)
            exit_of(child)
    assert all(content.endswith(b"\r\neth0") for content in network.reservations().values())
    for worker in range(4):
        for turn in range(5):
            assert network.call("DEL", f"w{worker}-{turn}").code == 0
    assert network.reservations() == {}
