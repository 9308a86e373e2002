"""GC comes when runtimes start, perhaps after a crash: calls whose launchers were killed may run in the agent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from namespaces import Namespace
from tests.agent.gate import Gate
from tests.agent.running import RunningAgent
from tests.calls import Plugins
from tests.leftovers import leftovers
from waiting import wait_until


def test_gc_waits_for_the_calls_in_flight_and_removes_what_they_made(
    agent: RunningAgent, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    pod = host.add_pod("a")
    with ThreadPoolExecutor(2) as pool:
        added = pool.submit(gated.try_add, pod)
        wait_until(lambda: gate.log == ["ADD a"], within=10)
        before = agent.descriptors
        swept = pool.submit(gated.gc, [])
        wait_until(lambda: agent.descriptors > before or swept.done(), within=10)
        assert gated.status().exit_code == 0  # comes after the GC, and does not wait
        assert not swept.done()
        gate.open()
        assert added.result().exit_code == 0
        assert swept.result().exit_code == 0
    assert [line["verb"] for line in agent.calls()] == ["STATUS", "ADD", "GC"]
    assert leftovers(host, links=["br0"]) == []
