"""Masquerade, with real packets: the outside sees the node, the inside sees the pod, nothing else changes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from namespaces import Namespace, Pod
from network import Network
from pytest_netns import NetworkFactory
from tests.bridges import DUAL, GATEWAY_V4, GATEWAY_V6, bridge_config
from tests.calls import Plugins
from tests.packets import connected, source_seen

# In the topology `node`, by family: the node towards the outside, the outside itself.
NODE = {4: "192.0.2.1", 6: "2001:db8:1::1"}
OUTSIDE = {4: "198.51.100.2", 6: "2001:db8:2::2"}
GATEWAY = {4: GATEWAY_V4, 6: GATEWAY_V6}
SECOND = {"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd02::/64"}]]}


class Wired:
    """A node with two pods on one network, and one on another, all masqueraded."""

    def __init__(self, network: Network, bin_dir: Path) -> None:
        self.node, self.outside = network["node"], network["outside"]
        self.one, self.two, self.third = (self.node.add_pod(name) for name in ("one", "two", "third"))
        first = Plugins(self.node, bin_dir, bridge_config(ipam=DUAL, ipMasq=True))
        second = Plugins(self.node, bin_dir, bridge_config(name="net2", bridge="br1", ipam=SECOND, ipMasq=True))
        self.addresses: dict[tuple[str, int], str] = {}
        for plugins, pod in ((first, self.one), (first, self.two), (second, self.third)):
            for ip, family in zip(plugins.add(pod)["ips"], (4, 6), strict=True):
                self.addresses[pod.name, family] = ip["address"].partition("/")[0]

    def of(self, pod: Pod, family: int) -> str:
        return self.addresses[pod.name, family]


@pytest.fixture(scope="module")
def wired(module_network: NetworkFactory, bin_dir: Path) -> Wired:
    return Wired(module_network("node"), bin_dir)


@pytest.mark.parametrize("family", [4, 6])
def test_the_outside_sees_the_nodes_address(family: int, wired: Wired) -> None:
    assert source_seen(wired.one, wired.outside, OUTSIDE[family]) == NODE[family]


@pytest.mark.parametrize("family", [4, 6])
def test_the_node_sees_the_pods_own_address(family: int, wired: Wired) -> None:
    for address in (GATEWAY[family], NODE[family]):
        assert source_seen(wired.one, wired.node, address) == wired.of(wired.one, family)


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_of_the_subnet_sees_the_pods_own_address(family: int, wired: Wired) -> None:
    """Also where bridged frames pass the IP hooks (net.bridge.bridge-nf-call-iptables, on by default)."""
    assert source_seen(wired.one, wired.two, wired.of(wired.two, family)) == wired.of(wired.one, family)


@pytest.mark.parametrize("family", [4, 6])
def test_another_network_is_outside(family: int, wired: Wired) -> None:
    """As with the reference: only the pod's own subnet is inside."""
    gateway = {4: "10.2.0.1", 6: "fd02::1"}[family]
    assert source_seen(wired.one, wired.third, wired.of(wired.third, family)) == gateway


@pytest.mark.parametrize("family", [4, 6])
def test_what_comes_in_keeps_its_source(family: int, wired: Wired) -> None:
    seen = source_seen(wired.node, wired.one, wired.of(wired.one, family))
    assert seen == GATEWAY[family]


def index_of(pod: Pod) -> int:
    with pod.inside():
        return socket.if_nametoindex("eth0")


def test_multicast_keeps_the_pods_own_address(wired: Wired) -> None:
    """mDNS and the like are answered to the source: it must be the pod's."""
    for family, group in ((4, "224.0.0.251"), (6, "ff02::fb")):
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        with wired.two.inside():
            receiver = socket.socket(kind, socket.SOCK_DGRAM)
        with wired.one.inside():
            sender = socket.socket(kind, socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.settimeout(5)
            receiver.bind(("", 0))
            index = index_of(wired.two)
            if family == 4:
                own = socket.inet_aton(wired.of(wired.two, 4))
                receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + own)
                sender.bind((wired.of(wired.one, 4), 0))
            else:
                member = socket.inet_pton(kind, group) + index.to_bytes(4, "little")
                receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
                out = index_of(wired.one)
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, out)
                sender.bind((wired.of(wired.one, 6), 0))
            sender.sendto(b"who is there", (group, receiver.getsockname()[1]))
            data, source = receiver.recvfrom(64)
            assert (data, source[0]) == (b"who is there", wired.of(wired.one, family))


def test_without_ip_masq_no_rule_is_made_and_the_source_stays(network: NetworkFactory, bin_dir: Path) -> None:
    routed = network("routed")
    node = routed["node"]
    pod = node.add_pod("a")
    Plugins(node, bin_dir, bridge_config(ipam=DUAL)).add(pod)
    assert source_seen(pod, routed["outside"], OUTSIDE[4]) == "10.1.0.2"
    assert source_seen(pod, routed["outside"], OUTSIDE[6]) == "fd01::2"
    assert node.run("nft", "list", "ruleset").stdout == ""


def test_masquerade_ends_with_its_pod_and_the_next_pod_is_not_touched(
    node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    bridge = Plugins(node, bin_dir, bridge_config(ipMasq=True))
    one, two = node.add_pod("a"), node.add_pod("b")
    bridge.add(one)
    bridge.add(two)
    with connected(two, outside, OUTSIDE[4]) as (ours, theirs):
        bridge.delete(one)
        theirs.sendall(b"still here")
        assert ours.recv(16) == b"still here"
    assert source_seen(two, outside, OUTSIDE[4]) == NODE[4]
    bridge.delete(two)
    assert node.run("nft", "list", "ruleset").stdout == ""


def test_pods_of_a_subnet_share_its_element(host: Namespace, bin_dir: Path) -> None:
    """The kernel copies a set of intervals in each transaction: it may not grow with the pods. A subnet within another
    is covered by that one; the table goes with its last pod."""
    wide = Plugins(host, bin_dir, bridge_config(name="wide", ipam=_range("10.1.0.0/16"), ipMasq=True))
    narrow = Plugins(host, bin_dir, bridge_config(name="narrow", bridge="br1", ipam=_range("10.1.7.0/24"), ipMasq=True))
    pods = [(plugins, host.add_pod(f"{name}{i}")) for name, plugins in (("w", wide), ("n", narrow)) for i in range(3)]
    for plugins, pod in pods:
        plugins.add(pod)
        plugins.check(pod)
    assert _subnets(host) == ["10.1.0.0/16"]
    for plugins, pod in pods[1:]:
        plugins.delete(pod)
    assert _subnets(host) == ["10.1.0.0/16"]
    wide.delete(pods[0][1])
    assert host.run("nft", "list", "ruleset").stdout == ""


def _range(subnet: str) -> dict[str, object]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}]]}


def _subnets(host: Namespace) -> list[str]:
    listed = json.loads(host.run("nft", "--json", "list", "set", "inet", "netloom_masquerade", "subnets4").stdout)
    found = []
    for element in listed["nftables"][1]["set"]["elem"]:
        source, destination = (part["prefix"] for part in element["elem"]["val"]["concat"])
        assert source == destination
        found.append(f"{source['addr']}/{source['len']}")
    return found
