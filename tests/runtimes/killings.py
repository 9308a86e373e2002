"""A node agent in a runtime's cell that is killed every second and started again, and a runtime that tries again.

A call that dies with the agent is error 11, try again: a kubelet does so by itself, in tests `insist` does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from namespaces import CommandFailed
from tests.agent.running import Host, RunningAgent
from tests.runtimes.cri import CriError

T = TypeVar("T")

INTERVAL_S = 1.0
ENOUGH = 5  # kills; a quiet machine runs eight pods in less than three seconds
# Of a call that died with its agent, and of the one that finds what that left: a runtime may ask for a DEL only once.
TRY_AGAIN = ("the netloom agent ended while it ran this call", "frees what a dead pod holds")


class Killings:
    """What was killed and what was tried again."""

    def __init__(self) -> None:
        self.kills = 0
        self.repeats = 0

    def insist(self, call: Callable[[], T], *, undo: Callable[[], object] = lambda: None) -> T:
        """Call until it succeeds; `undo` comes between two tries. Raises any error that does not say 'try again'."""
        while True:
            try:
                return call()
            except (CommandFailed, CriError) as error:
                if not any(words in str(error) for words in TRY_AGAIN):
                    raise
                self.repeats += 1
                undo()


@contextmanager
def killings(host: Host, log: Path) -> Iterator[Killings]:
    """While inside, an agent on `host` dies every second."""
    found = Killings()
    ended = threading.Event()
    agent = RunningAgent(host, log)

    def kill() -> None:
        while not ended.wait(INTERVAL_S):
            agent.kill()
            found.kills += 1
            agent.start()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        agent.kill()
    print(f"{found.kills} kills, {found.repeats} calls repeated, {len(agent.calls())} calls handled by agents")
    assert found.kills >= ENOUGH
    assert agent.calls()
