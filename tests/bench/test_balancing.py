"""The benchmark of the balancing runs: one tiny case. It measures nothing that a test could hold."""

from __future__ import annotations

import asyncio

from meshproxy.config import Balancing
from tests.bench.balancing import pick_ns, slices_s


def test_picks_and_slices_are_measured() -> None:
    assert pick_ns(Balancing(policy="ring_hash"), 3, rounds=1) > 0
    assert len(asyncio.run(slices_s(Balancing(policy="maglev"), 3, changes=1))) > 10
