"""What the parts of the shell share in one process: the loop, the task group, chance, and coarse timers.

A request's deadlines go to the wheel: putting one in and out is a set's `add` and `discard` (0.1 us; call_later and
cancel cost 1.3 us), for which it may fire up to two ticks late, never early (a second late while no client is
connected). What must be exact uses loop.call_later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

from meshproxy.identity import Randomness

TICK_S = 0.025
# While no client is connected nothing but the ageing of idle connections needs the wheel: 0.3 % of a core becomes none.
IDLE_TICK_S = 1.0
# 12.8 s; what is further away is looked at again each time the wheel comes round.
_SLOTS = 512


def ticks(delay_s: float) -> int:
    """How many ticks never end before `delay_s` is over: one more, since the current one has begun; 0 stays 0."""
    return int(delay_s / TICK_S + 1.999) if delay_s else 0


class Timed(Protocol):
    """What the wheel can hold. One thing sits in one slot at a time; whoever put it there may take it out."""

    due_tick: int  # of the wheel's `tick`
    slot: set[Timed] | None

    def on_due(self) -> None:
        """The time has come. `slot` is None again."""


class TimerWheel:
    """Coarse timers, turned by one call_later of the loop: every tick while somebody holds it, else every second."""

    __slots__ = ("_handle", "_holders", "_loop", "_slots", "_started_at", "tick")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[set[Timed]] = [set() for _ in range(_SLOTS)]
        self._started_at = loop.time()
        self._handle: asyncio.TimerHandle | None = None
        self._holders = 0
        self.tick = 0

    def __repr__(self) -> str:
        return f"<TimerWheel tick={self.tick} held={sum(map(len, self._slots))}>"

    def start(self) -> None:
        self._handle = self._loop.call_later(TICK_S, self._turn)

    def hold(self) -> None:
        """A client has connected: from now on `tick` is the time."""
        self._holders += 1
        if self._holders == 1 and self._handle is not None:
            self._handle.cancel()
            self._turn()

    def release(self) -> None:
        self._holders -= 1

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def put(self, timed: Timed, delay_s: float) -> None:
        """Call timed.on_due after `delay_s`, up to two ticks later. Moves it if it is in the wheel."""
        self.put_at(timed, self.tick + ticks(delay_s))

    def put_at(self, timed: Timed, due: int) -> None:
        """Call timed.on_due at that tick, at the next one if that is over. Moves it if it is in the wheel."""
        if due <= self.tick:
            due = self.tick + 1
        if timed.slot is not None:
            timed.slot.discard(timed)
        timed.due_tick = due
        slot = timed.slot = self._slots[due % _SLOTS]
        slot.add(timed)

    def _turn(self) -> None:
        # First of all, so that a crash in one timer (the loop reports it) does not stop all others for ever.
        self._handle = self._loop.call_later(TICK_S if self._holders else IDLE_TICK_S, self._turn)
        # After a pause of the loop, all missed ticks are made up for.
        now_tick = int((self._loop.time() - self._started_at) / TICK_S)
        while self.tick < now_tick:
            self.tick += 1
            slot = self._slots[self.tick % _SLOTS]
            if slot:
                for timed in [timed for timed in slot if timed.due_tick <= self.tick]:
                    if timed.slot is slot:  # not taken out by one that was due before it
                        slot.discard(timed)
                        timed.slot = None
                        timed.on_due()


class Shell:
    """One of it in each process; the stack makes it on the running loop and stops it at the end."""

    __slots__ = ("loop", "now", "random", "randomness", "tasks", "wheel")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tasks: asyncio.TaskGroup,
        *,
        randomness: Randomness | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.loop = loop
        self.tasks = tasks  # what is started here catches what it expects to fail: one crash would end all
        self.wheel = TimerWheel(loop)
        self.randomness = randomness or Randomness()
        self.random = chance
        # uvloop's time() has whole milliseconds, of when this turn of the loop began: most requests would take none.
        # Costs the same, 65 ns.
        self.now = time.monotonic
