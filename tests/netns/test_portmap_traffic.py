"""What portmap promises of packets: who reaches a pod by a port of the host, and who must not. Real connections."""

from __future__ import annotations

import contextlib
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from namespaces import Namespace, Place
from tests.packets import ANSWER_TIMEOUT_S, SILENCE_TIMEOUT_S, connected, source_seen
from tests.ports import Ports, mapping

POD_V4, POD_V6 = "10.1.0.2", "fd01::2"
NODE_V4, NODE_V6 = "192.0.2.1", "2001:db8:1::1"
OUTSIDE_V4, OUTSIDE_V6 = "192.0.2.2", "2001:db8:1::2"
GATEWAY_V4, GATEWAY_V6 = "10.1.0.1", "fd01::1"
BOTH = pytest.mark.parametrize(("pod_at", "node_at"), [(POD_V4, NODE_V4), (POD_V6, NODE_V6)], ids=["IPv4", "IPv6"])


def is_served(client: Place, server: Place, at: str, to: str, to_port: int = 8080, port: int = 80) -> bool:
    """Whether a listener at `at` of `server` is reached by (`to`, `to_port`)."""
    with contextlib.suppress(OSError):
        return bool(source_seen(client, server, at, port=port, to=to, to_port=to_port))
    return False


def is_silent(client: Place, server: Place, at: str, to: str, to_port: int = 8080, port: int = 80) -> bool:
    """Whether it is not; tells sooner."""
    with (
        contextlib.suppress(OSError),
        connected(client, server, at, port=port, to=to, to_port=to_port, timeout_s=SILENCE_TIMEOUT_S),
    ):
        return False
    return True


@BOTH
def test_the_outside_reaches_the_pod_and_keeps_its_address(
    pod_at: str, node_at: str, node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    pod = node.add_pod("a")
    Ports(node, bin_dir).publish(pod, mapping(8080, 80))
    seen = source_seen(outside, pod, pod_at, port=80, to=node_at, to_port=8080)
    assert seen == (OUTSIDE_V4 if pod_at == POD_V4 else OUTSIDE_V6)


@BOTH
def test_the_host_reaches_the_pod_by_its_own_address(pod_at: str, node_at: str, node: Namespace, bin_dir: Path) -> None:
    pod = node.add_pod("a")
    Ports(node, bin_dir).publish(pod, mapping(8080, 80))
    assert source_seen(node, pod, pod_at, port=80, to=node_at, to_port=8080) == node_at


def test_the_host_reaches_the_pod_by_localhost(node: Namespace, bin_dir: Path) -> None:
    pod = node.add_pod("a")
    Ports(node, bin_dir).publish(pod, mapping(8080, 80))
    assert source_seen(node, pod, POD_V4, port=80, to="127.0.0.1", to_port=8080) == GATEWAY_V4
    assert source_seen(node, pod, POD_V4, port=80, to="127.1.2.3", to_port=8080) == GATEWAY_V4


def test_ipv6_localhost_is_refused_at_once_and_its_own_servers_are_reached(node: Namespace, bin_dir: Path) -> None:
    pod = node.add_pod("a")
    Ports(node, bin_dir).publish(pod, mapping(8080, 80))
    with pytest.raises(ConnectionRefusedError):
        source_seen(node, pod, POD_V6, port=80, to="::1", to_port=8080)
    assert source_seen(node, node, "::1", port=8080) == "::1"


@BOTH
@pytest.mark.parametrize("is_netfiltered", [True, False], ids=["br_netfilter", "plain bridge"])
def test_a_pod_reaches_itself_and_its_neighbour_by_host_ports(
    is_netfiltered: bool, pod_at: str, node_at: str, node: Namespace, bin_dir: Path
) -> None:
    one, two = node.add_pod("a"), node.add_pod("b")
    # Bridged packets that br_netfilter translates go back by the port they came from: that is hairpin mode.
    ports = Ports(node, bin_dir, bridge={"hairpinMode": is_netfiltered})
    for family in ("ip", "ip6"):
        node.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{family}tables={int(is_netfiltered)}")
    ports.publish(one, mapping(8080, 80))
    ports.wire(two)
    gateway = GATEWAY_V4 if pod_at == POD_V4 else GATEWAY_V6
    assert source_seen(one, one, pod_at, port=80, to=node_at, to_port=8080) == gateway
    assert source_seen(two, one, pod_at, port=80, to=node_at, to_port=8080) == gateway
    assert source_seen(two, one, pod_at, port=80, to=gateway, to_port=8080) == gateway


def test_a_pod_of_another_network_reaches_the_pod_by_the_host_port(node: Namespace, bin_dir: Path) -> None:
    one, two = node.add_pod("a"), node.add_pod("b")
    Ports(node, bin_dir).publish(one, mapping(8080, 80))
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}]]}
    Ports(node, bin_dir, bridge={"name": "other", "bridge": "br1", "ipam": ipam}).wire(two)
    assert is_served(two, one, POD_V4, NODE_V4)
    assert is_served(two, one, POD_V4, "10.2.0.1")


def test_only_what_is_addressed_to_the_host_is_translated(node: Namespace, outside: Namespace, bin_dir: Path) -> None:
    one, two = node.add_pod("a"), node.add_pod("b")
    ports = Ports(node, bin_dir)
    ports.publish(one, mapping(8080, 80))
    ports.wire(two)
    # Both go through the host to port 8080 of somebody else: that is who answers.
    assert source_seen(two, outside, OUTSIDE_V4, port=8080) == NODE_V4
    assert source_seen(node, outside, OUTSIDE_V6, port=8080) == NODE_V6
    assert is_served(node, two, "10.1.0.3", "10.1.0.3", 8080, 8080)


def test_a_mapping_of_one_address_serves_that_address_alone(node: Namespace, outside: Namespace, bin_dir: Path) -> None:
    pod = node.add_pod("a")
    ports = Ports(node, bin_dir)
    ports.publish(
        pod,
        mapping(8080, 80, host_ip="127.0.0.1"),
        mapping(8081, 81, host_ip=NODE_V4),
        mapping(8082, 82, host_ip=NODE_V6),
    )
    assert is_served(node, pod, POD_V4, "127.0.0.1", 8080, 80)
    assert is_silent(node, pod, POD_V4, NODE_V4, 8080, 80)
    assert is_silent(outside, pod, POD_V4, NODE_V4, 8080, 80)
    assert is_served(outside, pod, POD_V4, NODE_V4, 8081, 81)
    assert is_silent(node, pod, POD_V4, "127.0.0.1", 8081, 81)
    assert is_silent(outside, pod, POD_V6, NODE_V6, 8081, 81)
    assert is_served(outside, pod, POD_V6, NODE_V6, 8082, 82)
    assert is_silent(outside, pod, POD_V4, NODE_V4, 8082, 82)


@pytest.mark.parametrize(("any_address", "served"), [("0.0.0.0", {4}), ("::", {6}), ("::ffff:0.0.0.0", {4})])
def test_an_unspecified_address_means_its_own_family(
    any_address: str, served: set[int], node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    pod = node.add_pod("a")
    Ports(node, bin_dir).publish(pod, mapping(8080, 80, host_ip=any_address))
    assert (is_served if (4 in served) else is_silent)(outside, pod, POD_V4, NODE_V4)
    assert (is_served if (6 in served) else is_silent)(outside, pod, POD_V6, NODE_V6)


def test_a_pod_with_ipv6_alone_is_served(node: Namespace, outside: Namespace, bin_dir: Path) -> None:
    pod = node.add_pod("a")
    ports = Ports(node, bin_dir, bridge={"ipam": {"type": "host-local", "ranges": [[{"subnet": "fd01::/64"}]]}})
    ports.publish(pod, mapping(8080, 80), mapping(8081, 81, host_ip="127.0.0.1"))
    assert is_served(outside, pod, POD_V6, NODE_V6)
    assert ports.check(pod).exit_code == 0
    assert is_silent(node, pod, POD_V6, "127.0.0.1", 8081, 81)


def test_without_snat_the_pod_sees_who_really_called(node: Namespace, outside: Namespace, bin_dir: Path) -> None:
    one, two = node.add_pod("a"), node.add_pod("b")
    ports = Ports(node, bin_dir, bridge={"hairpinMode": True}, snat=False)
    ports.publish(one, mapping(8080, 80))
    ports.wire(two)
    assert source_seen(outside, one, POD_V4, port=80, to=NODE_V4, to_port=8080) == OUTSIDE_V4
    node.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")  # else the reply would miss the host
    assert source_seen(two, one, POD_V4, port=80, to=NODE_V4, to_port=8080) == "10.1.0.3"
    assert is_silent(node, one, POD_V4, "127.0.0.1")


@BOTH
def test_masq_all_hides_everybody(
    pod_at: str, node_at: str, node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    pod = node.add_pod("a")
    Ports(node, bin_dir, masqAll=True).publish(pod, mapping(8080, 80))
    seen = source_seen(outside, pod, pod_at, port=80, to=node_at, to_port=8080)
    assert seen == (GATEWAY_V4 if pod_at == POD_V4 else GATEWAY_V6)
    assert is_served(node, pod, POD_V4, "127.0.0.1")


def test_connections_to_the_pod_itself_are_never_masqueraded(node: Namespace, bin_dir: Path) -> None:
    one, two = node.add_pod("a"), node.add_pod("b")
    ports = Ports(node, bin_dir, masqAll=True)
    ports.publish(one, mapping(8080, 80), mapping(81, 81))
    ports.wire(two)
    node.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")  # so that the host sees them at all
    for port in (80, 81):
        assert source_seen(two, one, POD_V4, port=port) == "10.1.0.3"


@pytest.mark.parametrize(
    ("conditions", "from_outside", "from_pod", "from_node"),
    [
        (["-s", "192.0.2.0/24"], True, False, True),
        (["!", "-s", "192.0.2.0/24"], False, True, False),
        (["-d", NODE_V4], True, True, True),
        (["!", "--destination", "192.0.2.0/24"], False, False, False),
        (["-i", "uplink"], True, False, False),
        (["!", "--in-interface", "uplink", "-s", "10.1.0.0/16"], False, True, False),
    ],
)
def test_conditions_limit_who_is_served(
    conditions: list[str], from_outside: bool, from_pod: bool, from_node: bool,
    node: Namespace, outside: Namespace, bin_dir: Path,
) -> None:  # fmt: skip
    one, two = node.add_pod("a"), node.add_pod("b")
    ports = Ports(node, bin_dir, conditionsV4=conditions)
    ports.publish(one, mapping(8080, 80))
    ports.wire(two)
    assert (is_served if from_outside else is_silent)(outside, one, POD_V4, NODE_V4)
    assert (is_served if from_pod else is_silent)(two, one, POD_V4, NODE_V4)
    assert (is_served if from_node else is_silent)(node, one, POD_V4, NODE_V4)
    assert is_served(outside, one, POD_V6, NODE_V6)
    assert ports.check(one).exit_code == 0


def udp(place: Place, at: str = "", port: int = 0) -> socket.socket:
    """A datagram socket of `place`."""
    with place.inside():
        sock = socket.socket(socket.AF_INET6 if ":" in at else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(ANSWER_TIMEOUT_S)
    if at:
        sock.bind((at, port))
    return sock


@BOTH
def test_a_datagram_flow_that_is_older_than_the_mapping_reaches_the_pod(
    pod_at: str, node_at: str, node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    pod = node.add_pod("a")
    ports = Ports(node, bin_dir)
    ports.wire(pod)
    outside_at = OUTSIDE_V4 if pod_at == POD_V4 else OUTSIDE_V6
    # Somebody's rule, of another port, so that the flow is tracked at all.
    node.run("nft", "add table inet other; add chain inet other c { type nat hook prerouting priority 0; }")
    with udp(outside, outside_at) as client, udp(node, node_at, 5353) as here, udp(pod, pod_at, 53) as server:
        client.sendto(b"before", (node_at, 5353))
        assert here.recv(16) == b"before"
        ports.publish(pod, mapping(5353, 53, "udp"))
        client.sendto(b"after", (node_at, 5353))
        assert server.recvfrom(16)[0] == b"after"


def test_a_datagram_flow_goes_to_the_pod_that_has_the_port_now(
    node: Namespace, outside: Namespace, bin_dir: Path
) -> None:
    one, two = node.add_pod("a"), node.add_pod("b")
    ports = Ports(node, bin_dir)
    with udp(outside, OUTSIDE_V4) as client:
        ports.publish(one, mapping(5353, 53, "udp"))
        with udp(one, POD_V4, 53) as first:
            client.sendto(b"first", (NODE_V4, 5353))
            data, peer = first.recvfrom(16)
            assert data == b"first"
            first.sendto(b"reply", peer)
            assert client.recvfrom(16) == (b"reply", (NODE_V4, 5353))
        ports.unpublish(one)
        assert "dport=5353" not in node.run("conntrack", "-L", "-p", "udp").stdout
        ports.publish(two, mapping(5353, 53, "udp"))
        with udp(two, "10.1.0.3", 53) as second:
            client.sendto(b"second", (NODE_V4, 5353))
            assert second.recvfrom(16)[0] == b"second"


def test_sctp_is_translated(node: Namespace, outside: Namespace, bin_dir: Path) -> None:
    """By raw packets: the kernel under test need not have SCTP itself."""
    pod = node.add_pod("a")
    Ports(node, bin_dir).publish(pod, mapping(9999, 99, "sctp"))
    with outside.inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    with pod.inside():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    with sender, receiver:
        receiver.settimeout(ANSWER_TIMEOUT_S)
        # A common header and an INIT chunk (RFC 9260, 3.1 and 3.3.2); the checksum is CRC32c of all with itself zero.
        init = struct.pack("!BBHIIHHI", 1, 0, 20, 0x1234, 65535, 1, 1, 1)
        head = struct.pack("!HHI", 5000, 9999, 0)
        checksum = struct.pack("<I", crc32c(head + b"\0\0\0\0" + init))
        sender.sendto(head + checksum + init, (NODE_V4, 0))
        packet = receiver.recv(2048)
        assert struct.unpack_from("!HH", packet, 20) == (5000, 99)


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def ip_udp(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """An IPv4 packet with a datagram in it (no UDP checksum: RFC 768 allows that)."""
    body = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0,
        IPv4Address(source).packed, IPv4Address(destination).packed,
    )  # fmt: skip
    total = sum(struct.unpack("!10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + head[12:] + body


@pytest.mark.parametrize(
    ("source", "destination"), [(POD_V4, "127.0.0.1"), ("127.0.0.1", GATEWAY_V4)], ids=["to it", "as it"]
)
@pytest.mark.parametrize("is_guarded", [True, False])
def test_a_pod_cannot_reach_the_hosts_loopback_or_speak_as_it(
    is_guarded: bool, source: str, destination: str, node: Namespace, bin_dir: Path
) -> None:
    """CVE-2020-8558. Without the guard it can, so the packet is right, and the guard is what stops it."""
    pod = node.add_pod("a")
    gateway = Ports(node, bin_dir).publish(pod, mapping(8080, 80))["interfaces"][0]["mac"]
    assert node.run("sysctl", "-n", "net.ipv4.conf.br0.route_localnet").stdout.strip() == "1"
    node.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
    node.run("sysctl", "-qw", "net.ipv4.conf.br0.rp_filter=0")
    node.run("sysctl", "-qw", "net.ipv4.conf.br0.accept_local=1")
    if not is_guarded:
        node.run("nft", "flush chain inet netloom_portmap guard")
    with pod.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with wire, udp(node, "0.0.0.0", 7777) as server:
        wire.bind(("eth0", 0))
        for packet in (ip_udp(source, destination, 7777, b"evil"), ip_udp(POD_V4, GATEWAY_V4, 7777, b"good")):
            wire.send(bytes.fromhex((gateway + wire.getsockname()[4].hex()).replace(":", "")) + b"\x08\x00" + packet)
        assert server.recv(16) == (b"good" if is_guarded else b"evil")
