"""The tracer kills where it says: else the kill tests would prove nothing."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_plugins import links
from tests.kill.tracing import NEVER, Border, Run, Tracer, When, asks_only, is_supported

pytestmark = pytest.mark.skipif(not is_supported(), reason="the system calls of this machine are not in tracing.py")


def run(work: Callable[[], None], border: Border = NEVER) -> Run:
    tracer = Tracer()
    return tracer.follow(tracer.start(work), border)


def three_folders(root: Path) -> Callable[[], None]:
    def work() -> None:
        for number in (1, 2, 3):
            (root / str(number)).mkdir()
            (root / str(number)).exists()

    return work


def made(root: Path) -> int:
    return len(list(root.iterdir()))


def test_what_is_not_killed_goes_on_to_its_end(tmp_path: Path) -> None:
    done = run(three_folders(tmp_path))
    assert (done.killed, done.status, done.calls, made(tmp_path)) == (False, 0, ["mkdir"] * 3, 3)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_before_a_call_it_has_made_the_calls_before_that(number: int, tmp_path: Path) -> None:
    done = run(three_folders(tmp_path), Border(number))
    assert (done.killed, done.status, len(done.calls), made(tmp_path)) == (True, -9, number, number - 1)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_within_a_call_it_has_made_that_one_or_not(number: int, tmp_path: Path) -> None:
    done = run(three_folders(tmp_path), Border(number, "within"))
    assert (done.killed, done.status, len(done.calls)) == (True, -9, number)
    assert made(tmp_path) in (number - 1, number)


def test_a_border_beyond_the_last_kills_nobody(tmp_path: Path) -> None:
    assert run(three_folders(tmp_path), Border(4)).status == 0
    assert made(tmp_path) == 3


def test_reading_is_no_border_and_making_a_file_is(tmp_path: Path) -> None:
    def work() -> None:
        with open(tmp_path / "file", "w"):
            pass
        with open(tmp_path / "file") as file:
            file.read()
        os.listdir(tmp_path)

    assert run(work).calls == ["openat"]


def test_threads_are_followed(tmp_path: Path) -> None:
    def work() -> None:
        thread = threading.Thread(target=three_folders(tmp_path))
        thread.start()
        thread.join()

    calls = run(work).calls
    assert (calls.count("mkdir"), made(tmp_path)) == (3, 3)
    for path in tmp_path.iterdir():
        path.rmdir()
    done = run(work, Border(calls.index("mkdir") + 3))
    assert (done.status, made(tmp_path)) == (-9, 2)


def test_the_program_that_it_becomes_is_followed(tmp_path: Path) -> None:
    def work() -> None:
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", f"import os; os.mkdir({str(tmp_path / 'a')!r})"])

    assert [call for call in run(work).calls if call in ("execve", "mkdir")] == ["execve", "mkdir"]


@pytest.mark.parametrize("when", ["before", "within"])
def test_messages_to_the_kernel_are_borders_and_questions_to_it_are_not(when: When) -> None:
    def work() -> None:
        with links.open_route() as route:
            links.get_link(route, "lo")
            list(links.list_links(route))
            links.delete_link(route, "no-such-link")

    calls = run(work).calls
    assert calls.count("sendto") == 1
    assert run(work, Border(len(calls), when)).status == -9


def test_words_between_processes_are_never_taken_for_questions_to_the_kernel() -> None:
    for words in (b"", b"G", b"{}" * 40, b"\0" * 64):
        assert not asks_only(words)


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()

    def work() -> None:
        descriptor = os.open(path, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (tmp_path / "held").mkdir()

    assert run(work, Border(2)).status == -9
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
