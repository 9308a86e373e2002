"""Clients that send garbage, nothing, too much, or are somebody else: each costs a connection, for a while."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest

from cni_plugins.agent import program_id
from cni_plugins.handover import GO, MESSAGE_MAX, READY, WAIT, encode_call
from namespaces import Namespace
from tests.agent import clients
from tests.agent.conftest import AgentFactory
from tests.agent.running import SOCKET, RunningAgent, connect
from tests.calls import Plugins
from tests.forked import in_child
from tests.leftovers import leftovers
from waiting import wait_until

GOOD = encode_call(program_id(), b"bridge", {b"CNI_COMMAND": b"ADD", b"CNI_CONTAINERID": b"x"}, b"{}")
JUNK: dict[str, bytes] = {
    "nothing": b"",
    "a byte": b"G",
    "nul bytes": bytes(1000),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another protocol": GOOD.replace(b"netloom-call-1", b"netloom-call-2"),
    "no length": b"netloom-call-1\n%s\nbridge\n\n" % program_id(),
    "a negative length": b"netloom-call-1\n%s\nbridge\n-5\nabc" % program_id(),
    "a length beyond the end": b"netloom-call-1\n%s\nbridge\n99999\nabc" % program_id(),
    "a length of 5,000 digits": b"netloom-call-1\n%s\nbridge\n%s\nabc" % (program_id(), b"9" * 5000),
    "no such plugin": GOOD.replace(b"bridge", b"brigde"),
    "a plugin that is a path": GOOD.replace(b"bridge", b"../../bridge"),
    "a plugin that is no text": GOOD.replace(b"bridge", b"\xff\xfe"),
    "an environment without names": GOOD.replace(b"CNI_COMMAND=", b"============"),
    "too much": GOOD + b"x" * (MESSAGE_MAX + 1 - len(GOOD)),
    "far too much": GOOD + b"x" * 4_000_000,
    **{f"{size} bytes of a call": GOOD[:size] for size in range(1, len(GOOD), 9)},
}


@contextmanager
def costs_nothing(agent: RunningAgent, bridge: Plugins) -> Iterator[None]:
    """What happens inside leaves the agent as it was: descriptors, threads, memory; and it serves on."""

    def serves() -> None:
        before = len(agent.calls())
        bridge.add(pod)
        bridge.delete(pod)
        assert len(agent.calls()) == before + 2

    pod = bridge.host.add_pod("good")
    serves()
    descriptors, threads, memory_kib = agent.descriptors, agent.threads, agent.memory_kib
    calls = len(agent.calls())
    yield
    wait_until(lambda: agent.descriptors <= descriptors, within=30)
    assert len(agent.calls()) == calls or bridge.results  # no bad client's call was run
    serves()
    wait_until(lambda: agent.descriptors <= descriptors, within=10)
    assert agent.threads <= threads + 1
    assert agent.memory_kib < memory_kib + 12_000
    pod.close()
    assert leftovers(bridge.host, links=["br0"]) == []


@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_declined(kind: str, agent: RunningAgent, host: Namespace) -> None:
    descriptors = agent.descriptors
    with clients.client_of(host) as client:
        client.setsockopt(socket.SOL_SOCKET, 32, 8_000_000)  # SO_SNDBUFFORCE: beyond the usual bound, as root may
        clients.hand(client, JUNK[kind])
        assert clients.is_hung_up(client)
    wait_until(lambda: agent.descriptors == descriptors, within=10)
    assert agent.calls() == []
    assert len(agent.events("declined")) == 1


def test_random_junk_costs_nothing(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    chance = random.Random(20240229)
    with costs_nothing(agent, bridge):
        for _ in range(500):
            data = bytearray(GOOD)
            for _ in range(chance.randrange(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with clients.client_of(host) as client:
                clients.hand(client, bytes(data[: chance.randrange(len(data) + 1)]))
                assert clients.is_hung_up(client)


def test_descriptors_that_nobody_asked_for_are_closed(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    with costs_nothing(agent, bridge), ExitStack() as stack:
        null = os.open("/dev/null", os.O_RDONLY)
        stack.callback(os.close, null)
        for number in range(200):
            client = stack.enter_context(clients.client_of(host))
            with suppress(BrokenPipeError, ConnectionResetError):  # hung up on before the third message
                for _ in range(3):
                    clients.send(client, GOOD if number % 2 else b"junk", [null] * 253)
        pod = host.add_pod("meanwhile")
        bridge.add(pod)
        bridge.delete(pod)
        pod.close()


def test_silent_clients_are_hung_up_on_in_seconds(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    with costs_nothing(agent, bridge), ExitStack() as stack:
        silent = [stack.enter_context(clients.client_of(host)) for _ in range(50)]
        before = time.monotonic()
        assert all(clients.is_hung_up(client) for client in silent)
        assert time.monotonic() - before < 15


def half_open(stop_after: bytes) -> Callable[[], float]:
    """A launcher that says no more once the agent has said `stop_after`; returns how long the agent bears it."""

    verb = "GC" if stop_after == WAIT else "STATUS"

    def run() -> float:
        message = clients.message(verb, {"cniVersion": "1.1.0", "name": "net", "type": "bridge"})
        with connect(SOCKET, timeout_s=30) as client:
            clients.hand(client, message)
            while client.recv(1) != stop_after:
                pass
            before = time.monotonic()
            clients.is_hung_up(client)
            return time.monotonic() - before

    return run


@pytest.mark.parametrize("said", [WAIT, READY])
def test_a_launcher_that_stops_midway_is_hung_up_on(
    said: bytes, agent: RunningAgent, bridge: Plugins, host: Namespace
) -> None:
    with costs_nothing(agent, bridge):
        took_s = in_child(host, half_open(said))
        assert took_s is not None
        assert took_s < 15
        wait_until(lambda: agent.events("lost"), within=10)


def test_a_launcher_that_dies_before_go_is_not_served(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    def die_when_ready() -> None:
        with connect(SOCKET) as client:
            clients.hand(client, clients.message("STATUS", bridge.config))
            while client.recv(1) != READY:
                pass
            os.kill(os.getpid(), signal.SIGKILL)

    with costs_nothing(agent, bridge):
        in_child(host, die_when_ready)
        wait_until(lambda: agent.events("lost"), within=10)
    assert [line["verb"] for line in agent.calls()] == ["ADD", "DEL"] * 2


def test_a_launcher_that_says_go_twice_is_served_once(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    def go_on_and_on() -> bytes:
        with connect(SOCKET) as client:
            clients.hand(client, clients.message("STATUS", bridge.config))
            for _ in range(20):
                client.send(GO)
            found = b""
            try:
                while part := client.recv(1 << 16):
                    found += part[:1]
            except ConnectionResetError:
                pass
            return found

    assert (in_child(host, go_on_and_on) or b"").startswith(READY)
    wait_until(lambda: len(agent.calls()) == 1, within=10)
    bridge.add(host.add_pod("a"))
    assert [line["verb"] for line in agent.calls()] == ["STATUS", "ADD"]


def test_ten_thousand_connections_cost_the_agent_nothing(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = min(10_000, hard - 200)
    try:
        with costs_nothing(agent, bridge), ExitStack() as stack:
            before = time.monotonic()
            held = [stack.enter_context(clients.client_of(host)) for _ in range(wanted)]
            connected_s = time.monotonic() - before
            pod = host.add_pod("meanwhile")
            bridge.add(pod)
            bridge.delete(pod)
            pod.close()
            most = agent.descriptors
            assert all(clients.is_hung_up(client) for client in held)
            took_s = time.monotonic() - before
            print(f"{wanted} connections in {connected_s:.1f} s, all gone after {took_s:.1f} s, {most} descriptors")
            assert most < 1500
            assert took_s < 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_agent_with_few_descriptors_holds_few_connections_and_does_not_spin(
    start_agent: AgentFactory, bridge: Plugins, host: Namespace
) -> None:
    agent = start_agent(prefix=("prlimit", "--nofile=300:400"))
    with costs_nothing(agent, bridge), ExitStack() as stack:
        held = [stack.enter_context(clients.client_of(host)) for _ in range(500)]
        before_s = agent.cpu_s
        assert all(clients.is_hung_up(client) for client in held)
        assert agent.cpu_s - before_s < 1


def test_connections_that_come_and_go_cost_nothing(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    def come_and_go(count: int) -> None:
        for _ in range(count):
            clients.client_of(host).close()

    with costs_nothing(agent, bridge), ThreadPoolExecutor(4) as pool:
        for _ in pool.map(come_and_go, [1000] * 4):
            pass


AS_NOBODY = """
import os, socket, sys
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.settimeout(10)
try:
    client.connect("/run/netloom/agent.sock")
    client.send(b"junk")
    print("connected", client.recv(10))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.environ.get("NETNS_FIXTURES_IN_USERNS") is not None, reason="a user namespace has one user")
@pytest.mark.parametrize("permissions", [0o600, 0o666])
def test_another_user_is_refused(permissions: int, agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    """By the socket's mode; and where somebody has opened that, by who it is."""
    path = host.path_from_outside(SOCKET)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(permissions)
    python = os.path.realpath(sys.executable)
    with costs_nothing(agent, bridge):
        done = host.run(
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-I", "-S", "-c", AS_NOBODY, cwd="/"
        )
        expected = (
            ("PermissionError",)
            if permissions == 0o600
            else ("connected b''", "ConnectionResetError", "BrokenPipeError")
        )
        assert done.stdout.strip() in expected
    assert agent.events("declined") == []
