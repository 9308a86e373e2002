"""The timer wheel: never early, at most two ticks late."""

from __future__ import annotations

import asyncio

from meshproxy.shell import TICK_S, Timed, TimerWheel, ticks
from tests.meshproxy.proxying import run


class Alarm:
    """Tells when it rang."""

    def __init__(self) -> None:
        self.due_tick = 0
        self.slot: set[Timed] | None = None
        self.rang_at: list[float] = []

    def on_due(self) -> None:
        self.rang_at.append(asyncio.get_running_loop().time())


def test_the_wheel_is_never_early_and_hardly_late() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        wheel = TimerWheel(loop)
        wheel.start()
        wheel.hold()
        alarms = [(delay_s, Alarm()) for delay_s in (0.001, TICK_S, 0.06, 0.2)]
        start = loop.time()
        for delay_s, alarm in alarms:
            wheel.put(alarm, delay_s)
        while not all(alarm.rang_at for _, alarm in alarms):
            await asyncio.sleep(TICK_S)
        wheel.stop()
        for delay_s, alarm in alarms:
            assert len(alarm.rang_at) == 1
            assert alarm.rang_at[0] - start >= delay_s - 0.001  # the loop's clock ticks in milliseconds
            assert alarm.slot is None

    run(story())


def test_what_is_put_again_rings_once_and_what_is_taken_out_never() -> None:
    async def story() -> None:
        wheel = TimerWheel(asyncio.get_running_loop())
        wheel.start()
        wheel.hold()
        moved, gone, last = Alarm(), Alarm(), Alarm()
        wheel.put(moved, 0.05)
        wheel.put(moved, 0.1)
        wheel.put(gone, 0.05)
        assert gone.slot is not None
        gone.slot.discard(gone)
        wheel.put(last, 0.2)
        while not last.rang_at:
            await asyncio.sleep(TICK_S)
        wheel.stop()
        assert (len(moved.rang_at), len(gone.rang_at)) == (1, 0)

    run(story())


def test_what_is_overdue_rings_at_once() -> None:
    async def story() -> None:
        wheel = TimerWheel(asyncio.get_running_loop())
        wheel.start()
        wheel.hold()
        last, overdue = Alarm(), Alarm()
        wheel.put(last, 0.1)
        while not last.rang_at:
            await asyncio.sleep(TICK_S)
        wheel.put_at(overdue, 1)
        while not overdue.rang_at:
            await asyncio.sleep(TICK_S)
        wheel.stop()
        assert overdue.rang_at[0] - last.rang_at[0] < 2

    run(story())


def test_the_wheel_knows_the_time_as_soon_as_it_is_held_again() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        wheel = TimerWheel(loop)
        wheel.start()
        wheel.hold()
        wheel.release()
        start, before = loop.time(), wheel.tick
        await asyncio.sleep(8 * TICK_S)
        wheel.hold()
        assert abs((wheel.tick - before) - (loop.time() - start) / TICK_S) <= 2
        alarm = Alarm()
        wheel.put(alarm, TICK_S)
        while not alarm.rang_at:
            await asyncio.sleep(TICK_S)
        wheel.stop()
        assert alarm.rang_at[0] - start < 1

    run(story())


def test_no_delay_is_no_tick() -> None:
    assert ticks(0) == 0
    assert ticks(TICK_S) == 2
