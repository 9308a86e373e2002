"""Killed at any system call, whoever makes a pod's network leaves only what the next DEL or GC removes.

One test a campaign: see zygote.py for what is killed and what is looked at, campaigns.py for how many kills.
"""

from __future__ import annotations

import faulthandler

import pytest

from tests.kill.campaigns import PLANS, Campaigns, Plan
from tests.kill.conftest import FINDINGS


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_killed_at_any_system_call_it_leaves_what_del_or_gc_removes(
    plan: Plan, campaigns: Campaigns, pytestconfig: pytest.Config
) -> None:
    faulthandler.cancel_dump_traceback_later()  # a long run is no hang: the zygote watches over each kill
    found = campaigns.findings(plan)
    pytestconfig.stash.setdefault(FINDINGS, {})[plan] = found
    assert "\n".join(found.problems) == ""
    assert found.left == ()
    assert all(found.kills.values()), found.words
    assert all(found.borders.values()), found.words
