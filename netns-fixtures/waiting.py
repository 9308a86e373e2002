"""Waiting for a claim to hold: the only place in the tests that polls.

Tests never sleep (a sleep is too short on a slow machine and too long on a fast one); they say what must become true.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Short at first, since most claims hold within a millisecond or two; then longer, to leave a busy machine to its work.
FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.05


def wait_until(claim: Callable[[], T], *, within: float) -> T:
    """Call `claim` until its value is true, and return that value.

    An AssertionError of the claim means "not yet". Raises AssertionError, with the last value or the last failed
    assertion, when it does not hold `within` that many seconds. The claim is always tried at least twice.
    """
    deadline = time.monotonic() + within
    pause = FIRST_PAUSE_S
    last_try = False
    while True:
        failure: AssertionError | None = None
        shown = ""
        try:
            value = claim()
            if value:
                return value
            shown = f"last value: {value!r}"
        except AssertionError as error:
            failure = error
            shown = f"last failure: {error}"
        if last_try:
            name = getattr(claim, "__qualname__", repr(claim))
            raise AssertionError(f"{name} did not hold within {within} s; {shown}") from failure
        remaining = deadline - time.monotonic()
        last_try = remaining <= pause
        select.select([], [], [], max(0.0, min(pause, remaining)))
        pause = min(pause * 2, LONGEST_PAUSE_S)
