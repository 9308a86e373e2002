"""What conf/ holds for the agent: systemd's unit and socket, the Kubernetes manifest; tried for real where possible."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import __version__
from namespaces import Namespace
from tests.agent.conftest import AgentFactory
from tests.agent.gate import Gate
from tests.agent.running import SOCKET, connect
from tests.agent.yaml_subset import load
from tests.calls import Plugins
from tests.leftovers import leftovers

CONF = Path(__file__).resolve().parents[2] / "conf"
UNITS = ("netloom-agent.service", "netloom-agent.socket")
# As systemd passes a socket: descriptor 3, and the number of who may take it.
AS_SYSTEMD = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


def settings(unit: str) -> list[tuple[str, str]]:
    """`key, value` of each line."""
    lines = (CONF / unit).read_text().splitlines()
    return [(key, value) for key, equals, value in (line.partition("=") for line in lines) if equals and key[0] != "#"]


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    for unit in UNITS:
        text = (CONF / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/usr/local/bin/netloom", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / unit) for unit in UNITS)],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"], "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_socket_is_where_the_executables_look_for_it_and_root_s_alone() -> None:
    found = dict(settings("netloom-agent.socket"))
    assert (found["ListenSequentialPacket"], found["SocketMode"]) == (SOCKET, "0600")


def test_nothing_in_the_service_gives_the_agent_mounts_of_its_own() -> None:
    own = ("Protect", "Private", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "Bind", "Root", "Temporary")
    assert [key for key, _ in settings("netloom-agent.service") if key.startswith((*own, "DynamicUser"))] == []


def test_the_service_s_capabilities_suffice(
    start_agent: AgentFactory, bridge: Plugins, gated: Plugins, gate: Gate, host: Namespace
) -> None:
    words = " ".join(
        value for key, value in settings("netloom-agent.service") if key == "CapabilityBoundingSet"
    ).split()
    names = ",".join("+" + word.removeprefix("CAP_").lower() for word in words)
    agent = start_agent(prefix=("setpriv", "--no-new-privs", f"--bounding-set=-all,{names}"))
    gate.open()
    for number, network in enumerate((bridge, gated)):
        pod = host.add_pod(f"p{number}")
        network.add(pod)
        network.check(pod)
        assert network.gc([pod]).exit_code == 0
        network.delete(pod)
    assert len(agent.calls()) == 8
    assert leftovers(host, links=["br0"]) == []


@contextmanager
def listening(host: Namespace) -> Iterator[socket.socket]:
    """systemd's part: a socket that listens on, whoever serves it."""
    path = host.path_from_outside(SOCKET)
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1024)
        yield listener


def test_an_agent_takes_the_socket_that_systemd_passes_and_leaves_it(
    start_agent: AgentFactory, bridge: Plugins, host: Namespace
) -> None:
    with listening(host) as listener:
        given = {"prefix": (sys.executable, "-c", AS_SYSTEMD, str(listener.fileno())), "pass_fds": (listener.fileno(),)}
        agent = start_agent(**given)
        pod = host.add_pod("a")
        bridge.add(pod)
        assert len(agent.calls()) == 1
        assert agent.stop() == 0
        waiting = connect(host.path_from_outside(SOCKET))  # into the queue: systemd's socket listens on
        waiting.close()
        agent.start()
        bridge.delete(pod)
        assert len(agent.calls()) == 2


def test_calls_that_come_while_the_agent_restarts_wait_for_it(
    start_agent: AgentFactory, bridge: Plugins, host: Namespace
) -> None:
    with listening(host) as listener:
        given = {"prefix": (sys.executable, "-c", AS_SYSTEMD, str(listener.fileno())), "pass_fds": (listener.fileno(),)}
        agent = start_agent(**given)
        agent.kill()
        pods = [host.add_pod(f"p{number}") for number in range(4)]
        with ThreadPoolExecutor(len(pods)) as pool:
            answers = [pool.submit(bridge.try_add, pod) for pod in pods]
            agent.start()
            assert [answer.result().exit_code for answer in answers] == [0] * len(pods)
        assert agent.calls()  # how many: as many as a slow machine starts within the launcher's two seconds
    assert bridge.gc([]).exit_code == 0
    assert leftovers(host, links=["br0"]) == []


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_when_it_is_ready_and_when_it_ends(
    is_abstract: bool, start_agent: AgentFactory, host: Namespace, tmp_path: Path
) -> None:
    path = "@netloom-tests" if is_abstract else str(tmp_path / "notify")
    with host.inside(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:  # abstract names are of a netns
        told.bind(path.replace("@", "\0", 1) if is_abstract else path)
        told.settimeout(20)
        agent = start_agent(prefix=("env", f"NOTIFY_SOCKET={path}"))
        assert told.recv(100) == b"READY=1"
        agent.stop()
        assert told.recv(100) == b"STOPPING=1"


# --- Kubernetes


@pytest.fixture
def daemonset() -> dict[str, Any]:
    found = load((CONF / "netloom-agent-daemonset.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_the_manifest_is_a_daemonset_that_selects_its_own_pods(daemonset: dict[str, Any]) -> None:
    assert (daemonset["apiVersion"], daemonset["kind"]) == ("apps/v1", "DaemonSet")
    spec = daemonset["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    pod = spec["template"]["spec"]
    assert (pod["hostNetwork"], pod["hostPID"]) == ("true", "true")
    assert pod["tolerations"] == [{"operator": "Exists"}]


def test_the_manifest_runs_one_version_from_the_node_s_own_folder(daemonset: dict[str, Any]) -> None:
    pod = daemonset["spec"]["template"]["spec"]
    copy, install = pod["initContainers"]
    (agent,) = pod["containers"]
    program = f"/opt/netloom/{__version__}/bin/netloom"
    assert install["command"][:2] == agent["command"][:2] == ["nsenter", "--target=1"]
    assert (install["command"][-2:], agent["command"][5:7]) == ([program, "install"], [program, "agent"])
    assert "--mount" in install["command"]
    assert "--net" in agent["command"]
    assert {container["image"].rpartition(":")[2] for container in (copy, install, agent)} == {__version__}
    assert all(container["securityContext"] == {"privileged": "true"} for container in (install, agent))
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    assert [volumes[mount["name"]] for mount in copy["volumeMounts"]] == ["/opt/netloom"]


def test_the_manifest_s_copy_is_whole_or_not_there(daemonset: dict[str, Any], host: Namespace, tmp_path: Path) -> None:
    script = daemonset["spec"]["template"]["spec"]["initContainers"][0]["command"][2]
    image, node = tmp_path / "opt/netloom", tmp_path / "node/opt/netloom"
    (image / __version__ / "bin").mkdir(parents=True)
    (image / __version__ / "bin/netloom").write_text("first")
    (node / ".new").mkdir(parents=True)  # of a copy that was killed
    script = script.replace("/node/opt", str(tmp_path / "node/opt")).replace(" /opt/netloom", f" {image}")
    for _ in range(2):  # the second finds it there
        subprocess.run(["/bin/sh", "-euc", script], check=True)
        assert (node / __version__ / "bin/netloom").read_text() == "first"
        assert [path.name for path in node.iterdir()] == [__version__]
        (image / __version__ / "bin/netloom").write_text("second")


@pytest.mark.parametrize(
    "text", ["a: [1]", "a: {b: 1}", "a: &x 1", "a:\n  b: 1\n c: 2", "a: 1\na: 2", "a:", "a: 'x'", "a: b: c", "\ta: 1"]
)
def test_the_reader_of_manifests_refuses_what_it_does_not_know(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        load(text)
