"""Hosts and pods: what is their own, how one gets in and out, and that nothing of them stays."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from keeper import start_time
from namespaces import CommandFailed, Namespace, NamespaceError
from waiting import wait_until

FIXTURES = Path(__file__).resolve().parents[2] / "netns-fixtures"

KILLED_PARENT = """
import sys
from namespaces import Namespace
host = Namespace.create("orphan")
pod = host.add_pod("pod")
inner = pod.popen("sleep", "600")
daemon = host.run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!").stdout.strip()
print(host.pid, inner.pid, daemon, flush=True)
sys.stdin.read()
"""


def is_gone(pid: int) -> bool:
    """A zombie counts as gone: it has neither memory nor namespaces."""
    return start_time(pid) is None


def network_of_this_thread() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def is_loopback_up() -> bool:
    with IPRoute() as netlink:
        return bool(netlink.get_links(ifname="lo")[0]["flags"] & 1)


def test_a_host_has_run_and_cni_directories_of_its_own(host: Namespace) -> None:
    assert host.run("ls", "/run", "/run/netns", "/var/lib/cni").stdout.split() == [
        "/run:", "lock", "netns", "/run/netns:", "/var/lib/cni:",
    ]  # fmt: skip
    host.run("touch", "/run/mark", "/var/lib/cni/mark")
    assert not Path("/run/mark").exists()
    assert not Path("/var/lib/cni/mark").exists()
    assert host.path_from_outside("/run/mark").exists()


def test_a_host_can_have_more_directories_of_its_own(host: Namespace) -> None:
    with Namespace.create("other", private=("/usr/share",)) as other:
        assert other.run("ls", "/usr/share").stdout == ""
    assert host.run("ls", "/usr/share").stdout


def test_lo_is_up_in_a_host_and_down_in_a_pod(host: Namespace) -> None:
    pod = host.add_pod("pod")
    with host.inside():
        assert is_loopback_up()
    with pod.inside():
        assert not is_loopback_up()


def test_a_socket_made_inside_stays_there(host: Namespace) -> None:
    with host.inside():
        server = socket.create_server(("127.0.0.1", 0))
    with server:
        address = server.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        with host.inside():
            client = socket.create_connection(address, timeout=5)
        client.close()


def test_the_thread_returns_home_after_an_error_inside(host: Namespace) -> None:
    home = network_of_this_thread()

    def fail_inside() -> None:
        with host.inside():
            assert network_of_this_thread() != home
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert network_of_this_thread() == home


def test_visits_nest(host: Namespace) -> None:
    pod = host.add_pod("pod")
    with host.inside():
        outer = network_of_this_thread()
        with pod.inside():
            assert network_of_this_thread() != outer
        assert network_of_this_thread() == outer


def test_inside_moves_only_the_calling_thread(host: Namespace) -> None:
    home = network_of_this_thread()
    entered, looked = threading.Event(), threading.Event()

    def visit() -> None:
        with host.inside():
            entered.set()
            looked.wait(10)

    visitor = threading.Thread(target=visit)
    visitor.start()
    assert entered.wait(10)
    assert network_of_this_thread() == home
    looked.set()
    visitor.join()


def test_a_failed_command_shows_both_outputs(host: Namespace) -> None:
    with pytest.raises(CommandFailed) as caught:
        host.run("sh", "-c", "echo to-stdout; echo to-stderr >&2; exit 3")
    assert caught.value.returncode == 3
    for words in ("in host:", "exit status 3", "stdout: to-stdout", "stderr: to-stderr"):
        assert words in str(caught.value)


def test_a_command_may_fail_where_the_caller_looks_himself(host: Namespace) -> None:
    assert host.run("false", check=False).returncode == 1


def test_a_command_gets_input_environment_and_directory(host: Namespace, tmp_path: Path) -> None:
    shown = host.run("sh", "-c", 'cat; echo "$COLOUR $HOME"; pwd', input="in\n", env={"COLOUR": "red"}, cwd=tmp_path)
    assert shown.stdout == f"in\nred \n{tmp_path}\n"
    assert host.run("pwd").stdout.strip() == str(Path.cwd())
    assert host.run("cat", input=b"\xff\x00", text=False).stdout == b"\xff\x00"


def test_a_pod_is_a_mount_that_only_its_host_sees(host: Namespace) -> None:
    pod = host.add_pod("pod")
    assert host.run("stat", "--file-system", "--format=%T", pod.path).stdout.strip() == "nsfs"
    assert not Path(pod.path).exists()
    with pod.inside():
        assert network_of_this_thread() == os.stat(pod.netns_path).st_ino
    assert pod.run("readlink", "/proc/self/ns/net").stdout != host.run("readlink", "/proc/self/ns/net").stdout
    assert pod.run("ls", "/run/netns").stdout.split() == ["pod"]


def test_a_closed_pod_takes_its_links_and_processes_with_it(host: Namespace) -> None:
    pod = host.add_pod("pod")
    process = pod.popen("sleep", "600")
    with host.inside(), IPRoute() as netlink, open(pod.netns_path) as there:
        netlink.link("add", ifname="veth0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": there.fileno()})
        assert netlink.link_lookup(ifname="veth0")
    pod.close()
    pod.close()
    assert process.poll() is not None
    with host.inside(), IPRoute() as netlink:
        wait_until(lambda: not netlink.link_lookup(ifname="veth0"), within=5)
    assert host.pods == {}
    assert not Path(pod.netns_path).exists()
    host.add_pod("pod")


def test_two_pods_cannot_have_one_name(host: Namespace) -> None:
    pod = host.add_pod("pod")
    with pytest.raises(NamespaceError, match="/run/netns/pod"):
        host.add_pod("pod")
    pod.run("true")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a b", "a\n"])
def test_a_bad_name_is_refused(host: Namespace, name: str) -> None:
    with pytest.raises(NamespaceError):
        Namespace.create(name)
    with pytest.raises(NamespaceError):
        host.add_pod(name)


def test_close_ends_background_processes_and_daemons() -> None:
    with Namespace.create("host") as host:
        stubborn = host.popen("sleep", "600", stdout=subprocess.PIPE)
        daemon = int(host.run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!").stdout)
        assert not is_gone(daemon)
    assert stubborn.returncode == -signal.SIGTERM
    assert stubborn.stdout is not None
    assert stubborn.stdout.closed
    assert is_gone(daemon)
    assert is_gone(host.pid)
    host.close()


def test_close_spares_a_process_that_only_visits() -> None:
    host = Namespace.create("host")
    with host.inside():
        host.close()


def test_a_closed_host_refuses_pods() -> None:
    with Namespace.create("host") as host:
        pass
    with pytest.raises(NamespaceError, match="closed"):
        host.add_pod("pod")


def test_a_killed_holder_is_an_error_not_a_hang() -> None:
    with Namespace.create("host") as host:
        os.kill(host.pid, signal.SIGKILL)
        with pytest.raises(NamespaceError, match="host"):
            host.add_pod("pod")


def test_kill_9_of_the_parent_leaves_nothing(host: Namespace) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED_PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(FIXTURES)},
        text=True,
    )
    assert parent.stdout is not None
    with parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert not any(map(is_gone, pids))
        parent.kill()
    wait_until(lambda: all(map(is_gone, pids)), within=10)


@pytest.mark.skipif(shutil.which("nft") is None, reason="the program nft is missing")
def test_nft_works_in_a_host_and_stays_there(host: Namespace) -> None:
    host.run("nft", "add", "table", "inet", "netloom_probe")
    assert "netloom_probe" in host.run("nft", "list", "tables").stdout
    with Namespace.create("other") as other:
        assert other.run("nft", "list", "tables").stdout == ""
