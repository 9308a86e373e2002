"""Starting, ending and restarting an agent: no call is lost, repeated or half done, whatever happens to the agent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from namespaces import Namespace, Pod
from tests.agent.conftest import AgentFactory
from tests.agent.gate import Gate
from tests.agent.running import NETLOOM, SOCKET, RunningAgent, connect
from tests.calls import Answer, Plugins, addresses_of, together
from tests.leftovers import leftovers
from waiting import wait_until

LINKS = ["br0"]
AT_ONCE = 64


def test_an_agent_is_ready_in_well_under_a_second(agent: RunningAgent) -> None:
    starts = [agent.started_s]
    for _ in range(4):
        agent.stop()
        agent.start()
        starts.append(agent.started_s)
    print(f"ready after {sorted(starts)[2]:.2f} s (median of 5), resident {agent.memory_kib} KiB")
    assert min(starts) < 1.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals, agent: RunningAgent, host: Namespace) -> None:
    agent.signal(number)
    assert agent.wait() == 0
    assert not host.path_from_outside(SOCKET).exists()
    assert agent.events("ended")


def test_calls_in_flight_end_well_when_it_is_told_to_end(
    agent: RunningAgent, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    pods = [host.add_pod(f"p{number}") for number in range(8)]
    with ThreadPoolExecutor(len(pods)) as pool:
        answers = [pool.submit(gated.try_add, pod) for pod in pods]
        wait_until(lambda: len(gate.log) == len(pods), within=20)
        agent.signal(signal.SIGTERM)
        wait_until(lambda: not _accepts(host), within=10)
        late = host.add_pod("late")
        gate.open()  # for the late one, which runs by itself: the agent takes no more
        gate.open(times=len(pods))
        gated.add(late)
        assert [answer.result().exit_code for answer in answers] == [0] * len(pods)
    assert agent.wait() == 0
    assert sorted(line["containerID"] for line in agent.calls("ADD")) == sorted(pod.name for pod in pods)


def test_a_del_waits_for_the_add_of_an_agent_that_ends(
    agent: RunningAgent, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    """Its launcher may be dead: the runtime's DEL finds no agent, and must not overtake what that one still does."""
    pod = host.add_pod("pod")
    with ThreadPoolExecutor(2) as pool:
        added = pool.submit(gated.try_add, pod)
        wait_until(lambda: len(gate.log) == 1, within=20)
        agent.signal(signal.SIGTERM)
        wait_until(lambda: not _accepts(host), within=10)
        deleted = pool.submit(gated.try_delete, pod)
        place = os.stat(host.path_from_outside("/run/netloom/calls.lock")).st_ino
        wait_until(lambda: _waiters(place) == 1, within=20)
        assert len(gate.log) == 1
        gate.open()
        assert (added.result().exit_code, deleted.result().exit_code) == (0, 0)
    assert agent.wait() == 0
    assert leftovers(host, links=LINKS) == []


def _waiters(inode: int) -> int:
    """Of /proc/locks: who waits for a lock of that file."""
    lines = Path("/proc/locks").read_text().splitlines()
    return sum("->" in line and f":{inode} " in line for line in lines)


def _accepts(host: Namespace) -> bool:
    try:
        connect(host.path_from_outside(SOCKET)).close()
        return True
    except OSError:
        return False


def test_a_second_agent_is_refused_and_the_first_goes_on(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    done = host.run(*NETLOOM, "agent", check=False)
    assert done.returncode == 1
    assert f"a netloom agent runs already (pid {agent.pid})" in done.stderr
    assert "stop it first" in done.stderr
    bridge.add(host.add_pod("a"))
    assert len(agent.calls()) == 1


def test_an_agent_with_another_socket_may_run_beside_it(agent: RunningAgent, start_agent: AgentFactory) -> None:
    assert start_agent("--socket", "/run/netloom/other.sock").is_running


def test_an_agent_that_cannot_start_leaves_no_socket(host: Namespace) -> None:
    done = host.run(*NETLOOM, "agent", "--metrics", "192.0.2.77:80", check=False)
    assert done.returncode == 1
    assert "could not serve metrics on 192.0.2.77:80" in done.stderr
    assert not host.path_from_outside(SOCKET).exists()
    done = host.run(*NETLOOM, "agent", "--metrics", "nonsense", check=False)
    assert "expected HOST:PORT" in done.stderr


def test_agents_that_start_at_once_leave_one(host: Namespace, start_agent: AgentFactory, tmp_path: Path) -> None:
    logs = [(tmp_path / f"racer{number}").open("wb") for number in range(4)]
    racers = [host.popen(*NETLOOM, "agent", stdin=subprocess.DEVNULL, stderr=log) for log in logs]

    def ended() -> list[subprocess.Popen[bytes]]:
        return [racer for racer in racers if racer.poll() is not None]

    wait_until(lambda: len(ended()) == 3, within=30)
    assert [racer.returncode for racer in ended()] == [1, 1, 1]
    assert _accepts(host)
    for log in logs:
        log.close()


def test_killed_and_restarted_under_64_parallel_calls_every_call_ends_well_once(
    agent: RunningAgent, bridge: Plugins, host: Namespace
) -> None:
    pods = [host.add_pod(f"p{number}") for number in range(AT_ONCE)]
    kills = 0
    ended = threading.Event()

    def has_worked() -> bool:
        return len(agent.calls()) > 8 * (kills + 1) or ended.is_set()

    def kill_again_and_again() -> None:
        nonlocal kills
        while not ended.is_set():
            wait_until(has_worked, within=60)
            agent.kill()
            kills += 1
            agent.start()

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    try:
        added = together([partial(bridge.try_add, pod) for pod in pods], at_once=AT_ONCE)
        _assert_right_or_11(added, {"ADD"})
        # What broke off is unknown, until DEL: then the attachment can be made again.
        broken = [pod for pod, answer in zip(pods, added, strict=True) if answer.code == 11]
        _assert_right_or_11(together([partial(_until_done, bridge.try_delete, pod) for pod in broken]), set())
        again = together([partial(_until_added, bridge, pod) for pod in broken])
        assert [answer.exit_code for answer in again] == [0] * len(broken)
        taken = [address for pod in pods for address in addresses_of(bridge.results[pod.name, "eth0"])]
        assert len(set(taken)) == 2 * len(pods)
        checked = together([partial(_until_done, bridge.try_check, pod) for pod in pods], at_once=AT_ONCE)
        assert [answer.exit_code for answer in checked] == [0] * len(pods)
        deleted = together([partial(_until_done, bridge.try_delete, pod) for pod in pods], at_once=AT_ONCE)
        assert [answer.exit_code for answer in deleted] == [0] * len(pods)
    finally:
        ended.set()
        killer.join()
    codes = Counter(answer.code for answer in added)
    handled = Counter(line["verb"] for line in agent.calls())
    print(f"{kills} kills; ADD: {codes[0]} right, {codes[11]} error 11; handled by agents: {dict(handled)}")
    assert kills > 2
    assert handled["ADD"] > 0
    assert leftovers(host, links=LINKS) == []


def _assert_right_or_11(answers: list[Answer], verbs: set[str]) -> None:
    for answer in answers:
        assert answer.code in (0, 11), answer
        if answer.code == 0 and "ADD" in verbs:
            assert len(answer.body["ips"]) == 2
        if answer.code == 11:
            assert answer.exit_code == 1
            assert "try again" in answer.words


def _until_done(call: Callable[[Pod], Answer], pod: Pod) -> Answer:
    """As a runtime: error 11 means try again."""
    while (answer := call(pod)).code == 11:
        pass
    return answer


def _until_added(bridge: Plugins, pod: Pod) -> Answer:
    while (answer := bridge.try_add(pod)).code == 11:
        assert _until_done(bridge.try_delete, pod).exit_code == 0
    return answer


def test_gc_removes_what_killed_agents_left(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    for number in range(10):
        pods = [host.add_pod(f"p{number}-{i}") for i in range(4)]
        with ThreadPoolExecutor(len(pods)) as pool:
            answers = [pool.submit(bridge.try_add, pod) for pod in pods]
            calls = len(agent.calls())
            wait_until(lambda: len(agent.calls()) > calls or all(a.done() for a in answers), within=20)  # noqa: B023
            agent.kill()
            assert {answer.result().code for answer in answers} <= {0, 11}
        agent.start()
    assert bridge.gc([]).exit_code == 0
    assert leftovers(host, links=LINKS) == []
