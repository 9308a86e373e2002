"""What each ingress policy drops, and what it must not: real connections, IPv4 and IPv6, bridged and routed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from namespaces import Namespace, Pod
from tests.calls import Plugins
from tests.packets import ANSWER_TIMEOUT_S, ETH_P_LOCAL, SILENCE_TIMEOUT_S, Tap, connected, source_seen, talk
from tests.ports import Ports, mapping

NODE_V4, NODE_V6 = "192.0.2.1", "2001:db8:1::1"
OUTSIDE_V4, OUTSIDE_V6 = "192.0.2.2", "2001:db8:1::2"


@dataclass(frozen=True)
class Net:
    """A bridge network, portmap and firewall, with pods that are numbered from 2 on."""

    number: int
    ports: Ports
    firewall: Plugins

    @classmethod
    def make(cls, node: Namespace, folder: Path, number: int, policy: str, **bridge: object) -> Net:
        ranges = [[{"subnet": f"10.{number}.0.0/24"}], [{"subnet": f"fd0{number}::/64"}]]
        keys = {
            "name": f"net{number}", "bridge": f"br{number}", "ipam": {"type": "host-local", "ranges": ranges}, **bridge,
        }  # fmt: skip
        config = {"cniVersion": "1.1.0", "name": f"net{number}", "type": "firewall", "ingressPolicy": policy}
        return cls(number, Ports(node, folder, bridge=keys), Plugins(node, folder, config))

    def add(self, name: str, *mappings: dict[str, object]) -> Pod:
        """A pod, wired, published, and under the policy."""
        pod = self.ports.bridge.host.add_pod(name)
        result = self.ports.publish(pod, *mappings)
        self.firewall.add(pod, prevResult=result)
        return pod

    def v4(self, last: int) -> str:
        return f"10.{self.number}.0.{last}"

    def v6(self, last: int) -> str:
        return f"fd0{self.number}::{last}"


def reaches(client: Namespace | Pod, server: Namespace | Pod, *addresses: str) -> bool:
    """Whether TCP gets through to every one of the addresses, patiently: a bridge's first IPv6 packets may wait."""
    for address in addresses:
        with connected(client, server, address) as (ours, theirs):
            assert talk(ours, theirs)
    return True


def is_cut_off(client: Namespace | Pod, server: Namespace | Pod, *addresses: str) -> bool:
    """Whether TCP gets through to none of the addresses."""
    for address in addresses:
        with (
            contextlib.suppress(OSError),
            connected(client, server, address, timeout_s=SILENCE_TIMEOUT_S),
        ):
            return False
    return True


@pytest.fixture(params=[True, False], ids=["br_netfilter", "plain bridge"])
def is_netfiltered(request: pytest.FixtureRequest, node: Namespace) -> bool:
    """Whether bridged packets pass the host's IP tables, as Kubernetes demands."""
    for family in ("ip", "ip6"):
        node.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{family}tables={int(request.param)}")
    return bool(request.param)


def way_back(outside: Namespace, *nets: Net) -> None:
    """The outside knows the pods' subnets: what stops it is a filter or nothing."""
    for net in nets:
        outside.run("ip", "route", "replace", f"{net.v4(0)}/24", "via", NODE_V4)
        outside.run("ip", "-6", "route", "replace", f"{net.v6(0)}/64", "via", NODE_V6)


def test_open_lets_everybody_in_and_adds_nothing(node: Namespace, outside: Namespace, bin_dir: Path) -> None:
    one, two = Net.make(node, bin_dir, 1, "open"), Net.make(node, bin_dir, 2, "open")
    a, b, c = one.add("a"), one.add("b"), two.add("c")
    assert "netloom_firewall" not in node.run("nft", "list", "ruleset").stdout
    way_back(outside, one)
    for client in (b, c, node, outside):
        assert reaches(client, a, one.v4(2), one.v6(2))


def test_same_bridge_drops_other_bridges_and_nothing_else(
    is_netfiltered: bool, node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    one, two = Net.make(node, bin_dir, 1, "same-bridge"), Net.make(node, bin_dir, 2, "same-bridge")
    a, b, c = one.add("a"), one.add("b"), two.add("c")
    way_back(outside, one, two)
    assert is_cut_off(a, c, two.v4(2), two.v6(2))
    assert is_cut_off(c, a, one.v4(2), one.v6(2))
    for client in (a, b, node, outside):
        assert reaches(client, a, one.v4(2), one.v6(2))
    assert reaches(a, outside, OUTSIDE_V4, OUTSIDE_V6)
    assert reaches(c, node, NODE_V4, NODE_V6, one.v4(1), two.v4(1))


def test_isolated_drops_all_other_pods_and_nothing_else(
    is_netfiltered: bool, node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    one, two = Net.make(node, bin_dir, 1, "isolated"), Net.make(node, bin_dir, 2, "isolated")
    a, b, c = one.add("a"), one.add("b"), two.add("c")
    way_back(outside, one, two)
    assert is_cut_off(a, b, one.v4(3), one.v6(3))
    assert is_cut_off(b, a, one.v4(2), one.v6(2))
    assert is_cut_off(a, c, two.v4(2), two.v6(2))
    for client in (a, node, outside):
        assert reaches(client, a, one.v4(2), one.v6(2))
    assert reaches(a, outside, OUTSIDE_V4, OUTSIDE_V6)
    assert reaches(a, node, NODE_V4, NODE_V6, one.v4(1))


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
def test_a_pod_reaches_itself_by_its_host_port(
    policy: str, is_netfiltered: bool, node: Namespace, bin_dir: Path
) -> None:
    net = Net.make(node, bin_dir, 1, policy, hairpinMode=is_netfiltered)
    pod = net.add("a", mapping(8080, 80))
    assert source_seen(pod, pod, net.v4(2), port=80, to=NODE_V4, to_port=8080) == net.v4(1)
    assert source_seen(pod, pod, net.v6(2), port=80, to=NODE_V6, to_port=8080) == net.v6(1)


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
def test_the_outside_and_the_host_reach_host_ports(
    policy: str, is_netfiltered: bool, node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    net = Net.make(node, bin_dir, 1, policy)
    pod = net.add("a", mapping(8080, 80))
    assert source_seen(outside, pod, net.v4(2), port=80, to=NODE_V4, to_port=8080) == OUTSIDE_V4
    assert source_seen(outside, pod, net.v6(2), port=80, to=NODE_V6, to_port=8080) == OUTSIDE_V6
    assert source_seen(node, pod, net.v4(2), port=80, to="127.0.0.1", to_port=8080) == net.v4(1)


def test_host_ports_are_no_way_around_isolation(is_netfiltered: bool, node: Namespace, bin_dir: Path) -> None:
    net = Net.make(node, bin_dir, 1, "isolated")
    a, b = net.add("a", mapping(8080, 80)), net.add("b")
    with pytest.raises(OSError, match=r"timed out|refused"):
        source_seen(b, a, net.v4(2), port=80, to=NODE_V4, to_port=8080, timeout_s=SILENCE_TIMEOUT_S)


def test_a_connection_to_the_outside_lives_on_when_another_pod_comes_and_goes(
    node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    net = Net.make(node, bin_dir, 1, "isolated")
    a = net.add("a")
    with connected(a, outside, OUTSIDE_V4) as (ours, theirs):
        assert talk(ours, theirs)
        b = net.add("b")
        assert talk(ours, theirs)
        net.firewall.delete(b)
        net.ports.bridge.delete(b)
        assert talk(ours, theirs)


def test_frames_of_any_kind_are_isolated(node: Namespace, bin_dir: Path) -> None:
    """Not IP alone: nothing can be learnt about a neighbour, and no protocol slips through."""
    net = Net.make(node, bin_dir, 1, "isolated")
    a, b = net.add("a"), net.add("b")
    with Tap(a, "eth0") as sender, Tap(b, "eth0") as neighbour, Tap(node, "br1") as host:
        sender.send(b"to all")
        sender.send(b"to one", to=neighbour.mac)
        assert host.receive() == b"to all"
        host.send(b"from host", to=neighbour.mac)
        assert neighbour.receive() == b"from host"


@contextlib.contextmanager
def tap_device(host: Namespace, name: str) -> Iterator[int]:
    """A tap device: what is written to the descriptor arrives on the link, and the other way round."""
    with host.inside():
        fd = os.open("/dev/net/tun", os.O_RDWR)  # belongs to the network where it is opened
    try:
        with host.inside():
            fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
        yield fd
    finally:
        os.close(fd)


def frame_to(fd: int, payload: bytes) -> bytes:
    """Read frames until one of the tests' protocol comes; it must carry `payload`."""
    while True:
        assert select.select([fd], [], [], ANSWER_TIMEOUT_S)[0], f"no frame with {payload!r}"
        frame = os.read(fd, 2048)
        if frame[12:14] == ETH_P_LOCAL.to_bytes(2, "big"):
            return frame[14:].rstrip(b"\0")


def test_an_isolated_pod_reaches_what_is_no_pod_on_its_bridge(node: Namespace, bin_dir: Path) -> None:
    """A physical uplink is a port of the bridge, too; a tap device stands for one here, since it is no veth."""
    net = Net.make(node, bin_dir, 1, "isolated")
    a, b = net.add("a"), net.add("b")
    with tap_device(node, "wire0") as wire, Tap(a, "eth0") as sender, Tap(b, "eth0") as neighbour:
        node.run("ip", "link", "set", "wire0", "up", "master", "br1")
        sender.send(b"out")
        assert frame_to(wire, b"out") == b"out"
        head = bytes.fromhex((neighbour.mac + "02:00:00:00:00:09").replace(":", "")) + ETH_P_LOCAL.to_bytes(2, "big")
        os.write(wire, head + b"in".ljust(46, b"\0"))
        assert neighbour.receive() == b"in"


@contextlib.contextmanager
def raw(pod: Pod) -> Iterator[socket.socket]:
    with pod.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.bind(("eth0", 0))
        yield sock


def datagram(mac: str, source: str, destination: str, payload: bytes, *, pod_mac: bytes) -> bytes:
    """A frame to the gateway with a UDP packet to port 7777."""
    body = struct.pack("!HHHH", 40000, 7777, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0,
        IPv4Address(source).packed, IPv4Address(destination).packed,
    )  # fmt: skip
    total = sum(struct.unpack("!10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    frame = bytes.fromhex(mac.replace(":", "")) + pod_mac + b"\x08\x00"
    return frame + head[:10] + struct.pack("!H", checksum) + head[12:] + body


def test_a_forged_source_address_is_no_way_to_another_bridge(
    node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    one, two = Net.make(node, bin_dir, 1, "same-bridge"), Net.make(node, bin_dir, 2, "same-bridge")
    a, c = one.add("a"), two.add("c")
    way_back(outside, two)
    for link in ("all", "br1"):
        node.run("sysctl", "-qw", f"net.ipv4.conf.{link}.rp_filter=0")  # the kernel's own check must not be what helps
    gateway = one.firewall.results["a", "eth0"]["interfaces"][0]["mac"]
    with c.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with outside.inside():
        honest = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, honest, raw(a) as wire:
        server.settimeout(ANSWER_TIMEOUT_S)
        server.bind((two.v4(2), 7777))
        for source in (two.v4(9), OUTSIDE_V4, one.v4(2)):
            wire.send(datagram(gateway, source, two.v4(2), b"evil", pod_mac=wire.getsockname()[4]))
        honest.sendto(b"good", (two.v4(2), 7777))
        assert server.recv(16) == b"good"


def test_an_isolated_pod_is_not_reached_by_routing_back_through_the_gateway(
    node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    net = Net.make(node, bin_dir, 1, "isolated")
    a, b = net.add("a"), net.add("b")
    way_back(outside, net)
    gateway = net.firewall.results["a", "eth0"]["interfaces"][0]["mac"]
    node.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
    node.run("sysctl", "-qw", "net.ipv4.conf.br1.rp_filter=0")
    with b.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with outside.inside():
        honest = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, honest, raw(a) as wire:
        server.settimeout(ANSWER_TIMEOUT_S)
        server.bind((net.v4(3), 7777))
        for source in (net.v4(2), net.v4(3), net.v4(99), OUTSIDE_V4):
            wire.send(datagram(gateway, source, net.v4(3), b"evil", pod_mac=wire.getsockname()[4]))
        honest.sendto(b"good", (net.v4(3), 7777))
        assert server.recv(16) == b"good"
