"""Topologies made real: packets flow as drawn, and everything is undone, also after a failure on the way."""

import socket
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from namespaces import Namespace, NamespaceError
from pytest_netns import NetworkFactory, machine_state
from topology import Topology

HALFWAY = """\
[hosts.a]
[hosts.b]
sysctls = { "net.ipv4.no_such_thing" = 1 }
[[links]]
ends = [{ host = "a", name = "x" }, { host = "b", name = "x" }]
"""


def exchange(client: Namespace, server: Namespace, address: str, *, source: str | None = None) -> str:
    """One TCP connection with a byte each way; returns the client's address as the server saw it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server.inside():
        listener = socket.create_server((address, 0), family=family)
    listener.settimeout(5)
    with listener, client.inside():
        target = (address, listener.getsockname()[1])
        connection = socket.create_connection(target, timeout=5, source_address=(source, 0) if source else None)
        accepted, peer = listener.accept()
        with connection, accepted:
            connection.sendall(b"?")
            assert accepted.recv(1) == b"?"
            accepted.sendall(b"!")
            assert connection.recv(1) == b"!"
    return str(peer[0])


@pytest.mark.parametrize(("address", "seen"), [("192.0.2.2", "192.0.2.1"), ("2001:db8:1::2", "2001:db8:1::1")])
def test_two_hosts_talk_in_both_families(network: NetworkFactory, address: str, seen: str) -> None:
    hosts = network("two-pods")
    assert exchange(hosts["a"], hosts["b"], address) == seen


@pytest.mark.parametrize("address", ["192.0.2.2", "198.51.100.2", "2001:db8:1::2", "2001:db8:2::2"])
def test_node_reaches_what_is_outside(node: Namespace, outside: Namespace, address: str) -> None:
    assert exchange(node, outside, address) in {"192.0.2.1", "2001:db8:1::1"}


# A pod's address, and where it connects to.
POD_SOURCES = [("10.1.2.3", "198.51.100.2"), ("fd00:1::3", "2001:db8:2::2")]


def add_loopback(host: Namespace, address: str) -> None:
    """Stands for a pod's address: it is the node's, but of a subnet that only the routed topology knows."""
    with host.inside(), IPRoute() as netlink:
        netlink.addr("add", index=1, address=address, prefixlen=128 if ":" in address else 32)


@pytest.mark.parametrize("source", [source for source, _ in POD_SOURCES])
def test_outside_has_no_way_back_to_pods(node: Namespace, outside: Namespace, source: str) -> None:
    add_loopback(node, source)
    with outside.inside(), pytest.raises(OSError, match="unreachable"):
        socket.create_connection((source, 1), timeout=5)


@pytest.mark.parametrize(("source", "address"), POD_SOURCES)
def test_routed_outside_sees_the_address_of_a_pod(network: NetworkFactory, source: str, address: str) -> None:
    hosts = network("routed")
    add_loopback(hosts["node"], source)
    assert exchange(hosts["node"], hosts["outside"], address, source=source) == source


def test_node_forwards_both_families(node: Namespace) -> None:
    assert node.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
    assert node.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").stdout == "1\n"


@pytest.mark.parametrize(("address", "seen"), [("192.0.2.130", "192.0.2.2"), ("2001:db8:b::2", "2001:db8:a::2")])
def test_two_nodes_talk_through_the_router(network: NetworkFactory, address: str, seen: str) -> None:
    hosts = network("two-nodes")
    assert exchange(hosts["node-a"], hosts["node-b"], address) == seen


def test_both_ends_have_the_mtu_of_the_link(network: NetworkFactory, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    ends = 'ends = [{ host = "a", name = "x" }, { host = "b", name = "y" }]'
    file.write_text(f"[hosts.a]\n[hosts.b]\n[[links]]\nmtu = 1400\n{ends}\n")
    hosts = network(file)
    for host, name in (("a", "x"), ("b", "y")):
        with hosts[host].inside(), IPRoute() as netlink:
            assert netlink.get_links(ifname=name)[0].get("mtu") == 1400


def test_down_leaves_nothing_and_up_works_again() -> None:
    before = machine_state()
    for _ in range(3):
        with Topology.load("node").up() as hosts:
            assert set(hosts) == {"node", "outside"}
            assert machine_state() - before == {f"holder {host.pid} of host {name}" for name, host in hosts.items()}
        assert machine_state() == before


def test_a_failure_on_the_way_undoes_what_was_done() -> None:
    before = machine_state()
    with pytest.raises(NamespaceError, match=r"halfway: host b: .*no_such_thing"):
        Topology.parse(HALFWAY, name="halfway").up()
    assert machine_state() == before


def test_one_topology_can_be_up_twice(network: NetworkFactory) -> None:
    one, other = network("two-pods"), network("two-pods")
    one.close()
    assert exchange(other["a"], other["b"], "192.0.2.2") == "192.0.2.1"
