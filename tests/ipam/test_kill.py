"""Killed before and after each single system call: nothing half-written, nothing that DEL does not free."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from tests.ipam.plugin import Network, exit_of, in_child, one_range

DUAL = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}


def stopped(nth: int, stop: Callable[[], None], work: Callable[[], object]) -> Callable[[], None]:
    """`work`, with `stop` at the `nth` border of a system call: just before, or just after it."""
    seen = 0

    def at_border(frame: FrameType, event: str, function: object) -> None:
        nonlocal seen
        if event in ("c_call", "c_return") and getattr(function, "__module__", "") in ("posix", "fcntl"):
            seen += 1
            if seen == nth:
                stop()

    def run() -> None:
        sys.setprofile(at_border)
        work()
        sys.setprofile(None)

    return run


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def prepared(root: Path) -> Network:
    network = Network(root, DUAL)
    network.call("ADD", "before")
    network.put("10.1.0.7", "foreign\r\neth0")
    return network


def first_add(network: Network) -> None:
    network.call("ADD", "victim")


def add_and_del_with_an_index(network: Network) -> None:
    for verb in ("CHECK", "ADD", "DEL"):
        network.call(verb, "victim")


def sweep(network: Network) -> None:
    network.gc(("before", "eth0"), ("foreign", "eth0"), ("victim", "eth0"))


def check_whole(network: Network) -> None:
    """Nothing half-written, and DEL frees what is there; the next ADD and DEL find everything in order."""
    lasting = {"10.1.0.2", "fd00::2", "10.1.0.7"}
    complete = {f"{container}\r\neth0".encode() for container in ("before", "foreign", "victim", "next")}
    is_reserved = b"victim\r\neth0" in network.reservations().values()
    assert network.call("CHECK", "victim").code == (0 if is_reserved else 102)
    added = network.call("ADD", "next").addresses
    assert set(network.reservations().values()) <= complete
    assert not set(added) & lasting
    assert network.call("ADD", "next").code == 101
    assert network.call("DEL", "victim").code == 0
    assert set(network.reservations()) == lasting | set(added)
    assert network.call("CHECK", "before").code == network.call("CHECK", "foreign").code == 0
    assert network.call("CHECK", "next").code == network.call("DEL", "next").code == 0
    assert set(network.reservations()) == lasting
    assert [path.name for path in network.state.iterdir()] == ["index"]


@pytest.mark.parametrize("stop", [kill, interrupt])
@pytest.mark.parametrize("act", [first_add, add_and_del_with_an_index, sweep])
def test_stopped_at_any_system_call_it_leaves_nothing_that_del_does_not_free(
    act: Callable[[Network], None], stop: Callable[[], None], memory_dir: Path
) -> None:
    nth = 0
    ended_early = True
    while ended_early:
        nth += 1
        root = memory_dir / str(nth)
        network = prepared(root)
        ended_early = exit_of(in_child(stopped(nth, stop, partial(act, network)))) != 0
        try:
            check_whole(network)
        except AssertionError as error:
            error.add_note(f"stopped at border {nth}")
            raise
        shutil.rmtree(root)
    assert nth > 30, "the act makes no system calls"


def test_the_killed_one_s_lock_is_free(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/24"))
    network.call("ADD", "a")
    exit_of(in_child(stopped(12, kill, lambda: network.call("ADD", "b"))))
    assert network.call("ADD", "c").code == 0


@pytest.mark.parametrize(("last", "then"), [("10.1.0.9", "10.1.0.10"), ("10.1.0.11", "10.1.0.8")])
def test_the_round_robin_s_file_is_never_half_written(last: str, then: str, tmp_path: Path) -> None:
    nth = 0
    ended_early = True
    while ended_early:
        nth += 1
        network = Network(tmp_path / str(nth), one_range("10.1.0.0/24", rangeStart="10.1.0.8", rangeEnd="10.1.0.11"))
        network.put("last_reserved_ip.0", last)
        ended_early = exit_of(in_child(stopped(nth, kill, lambda network=network: network.call("ADD", "a")))) != 0  # type: ignore[misc]
        assert network.files()["last_reserved_ip.0"].decode() in (last, then)


def test_what_a_killed_add_had_not_yet_put_in_place_goes_with_the_next_del(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range("10.1.0.0/24"))
    network.call("ADD", "a")
    (network.state / "new").write_bytes(b"b\r\neth0")
    assert network.call("DEL", "b").code == 0
    assert [path.name for path in network.state.iterdir()] == ["index"]
