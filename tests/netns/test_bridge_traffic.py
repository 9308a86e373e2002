"""What the bridge plugin promises of packets, with real frames: hairpin, isolation, spoof check, old connections."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from namespaces import Namespace, Pod
from network import Network
from tests.bridges import DUAL, GATEWAY_V4, bridge_config
from tests.calls import Plugins
from tests.packets import Tap, connected, is_reachable, talk


def mac_of(host: Namespace, link: str) -> str:
    return str(json.loads(host.run("ip", "-json", "link", "show", "dev", link).stdout)[0]["address"])


@pytest.mark.parametrize("is_hairpin", [False, True])
def test_hairpin_mode_sends_a_pods_frame_back_to_it(is_hairpin: bool, host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    Plugins(host, bin_dir, bridge_config(hairpinMode=is_hairpin)).add(pod)
    with Tap(pod, "eth0") as mine, Tap(host, "br0") as gateway:
        mine.send(b"to all")
        assert gateway.receive() == b"to all"
        gateway.send(b"the end")
        assert mine.receive() == (b"to all" if is_hairpin else b"the end")


@pytest.mark.parametrize("is_isolated", [False, True])
def test_port_isolation_keeps_pods_apart_and_lets_the_host_reach_them(
    is_isolated: bool, host: Namespace, bin_dir: Path
) -> None:
    one, two = host.add_pod("a"), host.add_pod("b")
    bridge = Plugins(host, bin_dir, bridge_config(portIsolation=is_isolated))
    bridge.add(one)
    bridge.add(two)
    with Tap(one, "eth0") as sender, Tap(two, "eth0") as receiver, Tap(host, "br0") as gateway:
        sender.send(b"from pod", to=receiver.mac)
        sender.send(b"to host", to=gateway.mac)
        assert gateway.receive() == b"to host"
        gateway.send(b"from host", to=receiver.mac)
        assert receiver.receive() == (b"from host" if is_isolated else b"from pod")
    assert is_reachable(one, two, "10.1.0.3") == (not is_isolated)
    assert is_reachable(host, two, "10.1.0.3")
    assert is_reachable(two, host, GATEWAY_V4)
    bridge.check(one)


@pytest.mark.parametrize("is_checked", [False, True])
def test_macspoofchk_drops_frames_with_a_borrowed_address(is_checked: bool, host: Namespace, bin_dir: Path) -> None:
    one, two = host.add_pod("a"), host.add_pod("b")
    bridge = Plugins(host, bin_dir, bridge_config(macspoofchk=is_checked))
    bridge.add(one)
    bridge.add(two)
    with Tap(one, "eth0") as spoofer, Tap(two, "eth0") as victim, Tap(host, "br0") as gateway:
        for source in (victim.mac, gateway.mac, "02:00:00:00:00:99"):
            spoofer.send(b"borrowed", source=source)
        spoofer.send(b"own")
        assert gateway.receive() == (b"own" if is_checked else b"borrowed")
        assert victim.receive() == (b"own" if is_checked else b"borrowed")
        victim.send(b"own, too")
        assert spoofer.receive() == b"own, too"
    assert is_reachable(one, two, "10.1.0.3")


def test_macspoofchk_ends_with_the_pod(host: Namespace, bin_dir: Path) -> None:
    one, two = host.add_pod("a"), host.add_pod("b")
    bridge = Plugins(host, bin_dir, bridge_config(macspoofchk=True))
    bridge.add(one)
    bridge.add(two)
    bridge.delete(one)
    ruleset = host.run("nft", "list", "ruleset").stdout
    assert "net/b/eth0" in ruleset
    assert "net/a/eth0" not in ruleset
    bridge.delete(two)
    assert host.run("nft", "list", "ruleset").stdout == ""


def test_connections_survive_other_pods_coming_and_going(node_network: Network, bin_dir: Path) -> None:
    """A bridge with no address of its own takes the lowest of its ports', and changes it as pods come and go."""
    node, outside = node_network["node"], node_network["outside"]
    bridge = Plugins(node, bin_dir, bridge_config(ipam=DUAL, ipMasq=True))
    pods = [node.add_pod(f"p{i}") for i in range(3)]
    for pod in pods[:2]:
        bridge.add(pod)
    # The lowest there is, so that a bridge without an address of its own would have it now, and lose it with the pod.
    lowest = bridge.results["p1", "eth0"]["interfaces"][1]["name"]
    node.run("ip", "link", "set", lowest, "address", "02:00:00:00:00:01")
    mac = mac_of(node, "br0")
    with ExitStack() as stack:
        there = [
            stack.enter_context(connected(pods[0], outside, address)) for address in ("198.51.100.2", "2001:db8:2::2")
        ]
        here = stack.enter_context(connected(pods[0], node, GATEWAY_V4))
        bridge.add(pods[2])
        for pod in pods[1:]:
            bridge.delete(pod)
            assert mac_of(node, "br0") == mac
        assert all(talk(*ends) for ends in [*there, here])


def test_neighbours_learn_at_once_that_an_address_has_a_new_pod(host: Namespace, bin_dir: Path) -> None:
    """Without an announcement, who knew the earlier pod's MAC sends to it for another half minute."""
    old, new, neighbour = host.add_pod("old"), host.add_pod("new"), host.add_pod("neighbour")
    bridge = Plugins(host, bin_dir, bridge_config(ipam=static("10.1.0.9/24", "fd01::9/64")))
    bridge.other(ipam=static("10.1.0.8/24", "fd01::8/64")).add(neighbour)
    bridge.add(old)
    for place, link in ((host, "br0"), (neighbour, "eth0")):
        # ARP believes no second answer within a second (arp(7), locktime); nobody waits for that here.
        place.run("sysctl", "-q", "-w", f"net.ipv4.neigh.{link}.locktime=0")
    wanted = [(place, address) for place in (host, neighbour) for address in ("10.1.0.9", "fd01::9")]
    assert all(is_reachable(place, old, address) for place, address in wanted)
    bridge.delete(old)
    bridge.add(new)
    assert [where for where in wanted if not is_reachable(where[0], new, where[1])] == []


def static(*addresses: str) -> dict[str, object]:
    """An IPAM configuration with fixed addresses."""
    return {"type": "static", "addresses": [{"address": address} for address in addresses]}


def test_pods_of_one_network_reach_each_other(host: Namespace, bin_dir: Path) -> None:
    pods: list[Pod] = [host.add_pod(f"p{i}") for i in range(2)]
    bridge = Plugins(host, bin_dir, bridge_config(ipam=DUAL))
    results = [bridge.add(pod) for pod in pods]
    for ip in results[1]["ips"]:
        assert is_reachable(pods[0], pods[1], ip["address"].partition("/")[0])
