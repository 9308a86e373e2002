"""A call goes to the agent, or is run by the launcher where the agent cannot take it; once, in either case."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cni_plugins import __version__, registry
from cni_plugins.install import library_folders
from cni_plugins.script import Program, render
from namespaces import Namespace
from tests.agent.gate import Gate
from tests.agent.running import SOCKET, RunningAgent
from tests.calls import Plugins
from tests.leftovers import leftovers
from waiting import wait_until

LINKS = ["br0"]


def test_every_verb_is_handled_by_the_agent(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    pod = host.add_pod("a")
    bridge.add(pod)
    bridge.check(pod)
    assert bridge.status().exit_code == 0
    assert bridge.gc([pod]).exit_code == 0
    bridge.delete(pod)
    assert [(line["verb"], line["code"]) for line in agent.calls()] == [
        ("ADD", 0), ("CHECK", 0), ("STATUS", 0), ("GC", 0), ("DEL", 0),
    ]  # fmt: skip
    assert leftovers(host, links=LINKS) == []


def test_version_and_arguments_never_come_to_the_agent(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    assert bridge.call("VERSION").exit_code == 0
    assert host.run(bridge.folder / "bridge", "--help").returncode == 0
    assert agent.calls() == []


def test_an_error_of_the_plugin_is_the_answer_and_not_a_reason_to_run_it_again(
    agent: RunningAgent, bridge: Plugins, host: Namespace
) -> None:
    pod = host.add_pod("a")
    bridge.add(pod)
    answer = bridge.try_add(pod)
    assert (answer.exit_code, answer.code) == (1, 101)
    assert [line["code"] for line in agent.calls()] == [0, 101]


def test_what_a_plugin_says_besides_its_result_goes_to_its_runtime_and_into_the_log(
    agent: RunningAgent, host: Namespace, bin_dir: Path
) -> None:
    prev = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]}
    ports = [{"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "2001:db8::1"}]
    config = {"cniVersion": "1.1.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": ports}}
    answer = Plugins(host, bin_dir, config).try_add(host.add_pod("a"), prevResult=prev)
    assert (answer.exit_code, "has no effect" in answer.stderr) == (0, True), answer
    assert answer.stderr == agent.calls()[0]["stderr"]
    assert all(line.startswith("{") for line in agent.log.read_text().splitlines())


def works(bridge: Plugins, host: Namespace) -> float:
    """ADD and DEL succeed and leave nothing; returns how long the ADD took."""
    pod = host.add_pod("works")
    before = time.monotonic()
    bridge.add(pod)
    took_s = time.monotonic() - before
    bridge.delete(pod)
    pod.close()
    assert leftovers(host, links=LINKS) == []
    return took_s


def test_without_a_socket_calls_run_by_themselves(bridge: Plugins, host: Namespace) -> None:
    works(bridge, host)


def test_the_socket_of_a_killed_agent_is_no_obstacle(agent: RunningAgent, bridge: Plugins, host: Namespace) -> None:
    agent.kill()
    assert host.path_from_outside(SOCKET).is_socket()
    works(bridge, host)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_something_else_at_the_socket_s_place_is_no_obstacle(kind: str, bridge: Plugins, host: Namespace) -> None:
    path = host.path_from_outside(SOCKET)
    path.parent.mkdir()
    if kind == "file":
        path.write_text("not a socket")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/nowhere")
    works(bridge, host)


@contextmanager
def server(path: Path, kind: int, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Somebody else's server at the agent's place."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def saying(*messages: bytes, hangs_up: bool = False) -> Callable[[socket.socket], None]:
    """Send these messages, then listen until the launcher goes, or hang up."""

    def serve(connection: socket.socket) -> None:
        for message in messages:
            connection.send(message)
        while not hangs_up and connection.recv(1 << 20):
            pass

    return serve


def hanging_up_after_the_call(connection: socket.socket) -> None:
    connection.recv(1 << 20)


SERVERS: dict[str, tuple[int, Callable[[socket.socket], None]]] = {
    "closes at once": (socket.SOCK_SEQPACKET, saying(hangs_up=True)),
    "closes after the call": (socket.SOCK_SEQPACKET, hanging_up_after_the_call),
    "answers garbage": (socket.SOCK_SEQPACKET, saying(b"\0\xff" * 500)),
    "answers nothing in a message": (socket.SOCK_SEQPACKET, saying(b"")),
    "says wait and closes": (socket.SOCK_SEQPACKET, saying(b"W", hangs_up=True)),
    "says wait and garbage": (socket.SOCK_SEQPACKET, saying(b"W", b"garbage")),
    "is silent": (socket.SOCK_SEQPACKET, saying()),
    "streams": (socket.SOCK_STREAM, saying(b"W")),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_of_another_protocol_is_no_obstacle(kind: str, bridge: Plugins, host: Namespace) -> None:
    with server(host.path_from_outside(SOCKET), *SERVERS[kind]):
        works(bridge, host)


def test_an_agent_of_another_folder_or_version_declines(
    agent: RunningAgent, bridge: Plugins, host: Namespace, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / "source").symlink_to(registry.SOURCE)
    folders = (str(other / "source"), *library_folders()[1:])
    for name in ("bridge", "host-local"):
        path = other / "bin" / name
        path.write_bytes(render(Program(name, __version__, sys.executable, folders)))
        path.chmod(0o755)
    works(Plugins(host, other / "bin", bridge.config), host)
    assert agent.calls() == []
    assert f"the launcher is of {__version__} {other}/source" in agent.events("declined")[0]["reason"]


def test_a_message_too_large_for_the_socket_is_run_by_the_launcher(
    agent: RunningAgent, bridge: Plugins, host: Namespace
) -> None:
    large = bridge.other(filler="x" * 300_000)
    works(large, host)
    assert agent.calls() == []
    works(bridge.other(filler="x" * 140_000), host)
    assert len(agent.calls()) == 2


def test_a_launcher_in_another_network_namespace_works_there(
    agent: RunningAgent, bridge: Plugins, host: Namespace
) -> None:
    where, pod = host.add_pod("where"), host.add_pod("a")
    bridge.host = where  # type: ignore[assignment]
    bridge.add(pod)
    assert "br0" in where.run("ip", "link").stdout
    assert "br0" not in host.run("ip", "link").stdout
    bridge.delete(pod)
    assert agent.calls() == []


@pytest.mark.parametrize("ipam", ["ours", "foreign"])
def test_a_launcher_with_other_mounts_works_with_its_own_files(
    ipam: str, agent: RunningAgent, bridge: Plugins, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    """What a path means (of reservations, of a delegate) is what it means to the runtime."""
    pod = host.add_pod("a")
    network = bridge if ipam == "ours" else gated
    gate.open()
    environ = {
        "PATH": os.environ["PATH"], "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0", "CNI_PATH": ":".join(map(str, network.path)),
    }  # fmt: skip
    script = f"mount -t tmpfs none /var/lib/cni && {network.folder}/bridge && ls /var/lib/cni"
    done = host.run("unshare", "--mount", "sh", "-c", script, input=json.dumps(network.config), env=environ)
    assert ("networks" in done.stdout) == (ipam == "ours")
    assert not host.path_from_outside("/var/lib/cni/networks").exists()
    assert agent.calls() == []
    assert "another mount namespace" in agent.events("declined")[0]["reason"]


def test_a_suspended_agent_costs_two_seconds_and_never_runs_the_call_later(
    agent: RunningAgent, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    agent.signal(signal.SIGSTOP)
    pod = host.add_pod("a")
    gate.open()
    before = time.monotonic()
    gated.add(pod)
    assert 1.5 < time.monotonic() - before < 6
    agent.signal(signal.SIGCONT)
    wait_until(lambda: agent.events("lost") + agent.events("declined"), within=10)
    gated.delete(pod)
    assert gate.log == ["ADD a", "done a", "DEL a"]
    assert [line["verb"] for line in agent.calls()] == ["DEL"]
    assert leftovers(host, links=LINKS) == []


def test_an_agent_that_dies_with_a_call_is_error_11_and_the_call_is_not_repeated(
    agent: RunningAgent, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    pod = host.add_pod("a")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gated.try_add, pod)
        wait_until(lambda: gate.log == ["ADD a"], within=10)
        agent.kill()
        assert answer.result().code == 11
    gate.open()  # what the agent had started goes on without it
    wait_until(lambda: gate.log == ["ADD a", "done a"], within=10)
    gated.delete(pod)
    assert gate.log == ["ADD a", "done a", "DEL a"]
    assert leftovers(host, links=LINKS) == []


def test_calls_beyond_the_workers_wait_for_their_turn(
    agent: RunningAgent, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    pods = [host.add_pod(f"p{i}") for i in range(40)]
    with ThreadPoolExecutor(len(pods)) as pool:
        answers = [pool.submit(gated.try_add, pod) for pod in pods]
        wait_until(lambda: len(gate.log) == 32, within=30)
        gate.open(times=len(pods))
        assert [answer.result().exit_code for answer in answers] == [0] * len(pods)
    assert len(agent.calls("ADD")) == len(pods)
    assert sorted(gate.log) == sorted(f"{word} {pod.name}" for pod in pods for word in ("ADD", "done"))


def test_a_del_never_overtakes_the_add_of_a_launcher_that_was_killed(
    agent: RunningAgent, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    pod = host.add_pod("a")
    with ThreadPoolExecutor(2) as pool:
        pool.submit(gated.try_add, pod)
        wait_until(lambda: gate.log == ["ADD a"], within=10)
        for pid in launchers_of(agent):
            os.kill(pid, signal.SIGKILL)
        deleted = pool.submit(gated.try_delete, pod)
        other = host.add_pod("b")
        gate.open(times=0)
        assert gated.try_delete(other).exit_code == 0  # other attachments do not wait
        assert not deleted.done()
        gate.open()
        assert deleted.result().exit_code == 0
    assert gate.log == ["ADD a", "DEL b", "done a", "DEL a"]
    assert agent.events("declined") + agent.events("lost") == []
    assert [(line["verb"], line["containerID"]) for line in agent.calls()] == [("DEL", "b"), ("ADD", "a"), ("DEL", "a")]
    assert leftovers(host, links=LINKS) == []


def launchers_of(agent: RunningAgent) -> list[int]:
    """The launchers that wait for this agent: Python processes of the host that run launcher.py."""
    found = []
    mounts = os.stat(f"/proc/{agent.pid}/ns/mnt").st_ino
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            if b"launcher" in command and os.stat(f"/proc/{entry}/ns/mnt").st_ino == mounts:
                found.append(int(entry))
        except OSError:
            continue
    return found
