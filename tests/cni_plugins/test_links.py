"""Links, addresses, routes and settings of the kernel: made, seen as iproute2 sees them, made again, removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from cni_plugins import addresses, announce, links, sysctl
from cni_plugins.errors import CniError, Code
from cni_plugins.links import Link
from cni_plugins.netlink import KernelError, NetlinkSocket
from cni_plugins.netns import Netns, open_netns
from cni_plugins.plan import HOST, POD, Address, Bridge, RouteTo, Veth
from namespaces import Namespace, Pod


class Rig:
    """A host with a bridge, and a pod: sockets to both."""

    def __init__(self, host: Namespace, pod: Pod, netns: Netns, here: NetlinkSocket, there: NetlinkSocket) -> None:
        self.host, self.pod, self.netns, self.here, self.there = host, pod, netns, here, there

    def pair(self, **keys: Any) -> tuple[Link, Link]:
        links.ensure_bridge(self.here, Bridge("br0"))
        veth = Veth(**{"host_name": "vethx", "pod_name": "eth0", "bridge": "br0", "alias": "n/c/eth0", **keys})
        bridge = links.require_link(self.here, veth.bridge)
        return links.make_veth(self.here, self.there, self.netns, veth, bridge=bridge)


@pytest.fixture
def rig(host: Namespace) -> Iterator[Rig]:
    pod = host.add_pod("pod")
    netns = open_netns(pod.netns_path)
    with host.inside(), links.open_route() as here, links.open_route(netns) as there:
        yield Rig(host, pod, netns, here, there)
    netns.close()


def shown(place: Namespace | Pod, name: str) -> dict[str, Any]:
    found = json.loads(place.run("ip", "-json", "-details", "address", "show", "dev", name).stdout)[0]
    assert isinstance(found, dict)
    return found


def test_a_bridge_is_made_up_with_an_address_of_its_own_and_taken_as_it_is_the_next_time(rig: Rig) -> None:
    made = links.ensure_bridge(rig.here, Bridge("br0", mtu=1400))
    assert (made.kind, made.is_up, made.mtu) == ("bridge", True, 1400)
    assert int(made.mac[:2], 16) & 3 == 2  # locally administered, unicast
    again = links.ensure_bridge(rig.here, Bridge("br0", mtu=9000, promisc=True))
    assert (again.index, again.mac, again.mtu) == (made.index, made.mac, 1400)
    assert links.require_link(rig.here, "br0").is_promisc


def test_a_bridge_that_was_taken_down_comes_up_again(rig: Rig) -> None:
    links.ensure_bridge(rig.here, Bridge("br0"))
    rig.host.run("ip", "link", "set", "br0", "down")
    links.ensure_bridge(rig.here, Bridge("br0"))
    assert links.require_link(rig.here, "br0").is_up


def test_a_pair_has_all_that_was_asked_for(rig: Rig) -> None:
    host_end, pod_end = rig.pair(mtu=1400, mac="02:00:00:00:00:07", hairpin=True, isolated=True)
    assert (host_end.alias, host_end.mtu, host_end.is_hairpin, host_end.is_isolated) == ("n/c/eth0", 1400, True, True)
    assert (host_end.is_up, pod_end.is_up) == (True, False)
    assert (pod_end.mac, pod_end.mtu, pod_end.peer) == ("02:00:00:00:00:07", 1400, host_end.index)
    assert shown(rig.host, "vethx")["master"] == "br0"


def test_a_pair_whose_name_is_taken_changes_nothing(rig: Rig) -> None:
    rig.pair()
    before = shown(rig.host, "vethx"), shown(rig.pod, "eth0")
    for name in ("vethx", "vethy"):
        with pytest.raises(CniError) as caught:
            rig.pair(host_name=name)
        assert caught.value.code == Code.ALREADY_EXISTS
    assert (shown(rig.host, "vethx"), shown(rig.pod, "eth0")) == before
    assert links.get_link(rig.here, "vethy") is None


def test_a_pair_for_a_bridge_that_vanished_is_an_error_and_not_made(rig: Rig) -> None:
    rig.pair()
    with pytest.raises(KernelError, match="No such device"):
        rig.pair(host_name="vethy", pod_name="eth1", bridge="nobody")
    assert links.get_link(rig.there, "eth1") is None


def test_deleting_tells_whether_the_link_was_there(rig: Rig) -> None:
    rig.pair()
    assert links.delete_link(rig.here, "vethx")
    assert not links.delete_link(rig.here, "vethx")
    assert links.get_link(rig.there, "eth0") is None


def test_links_are_found_by_name_and_index_and_a_missing_one_is_none(rig: Rig) -> None:
    bridge = links.ensure_bridge(rig.here, Bridge("br0"))
    assert links.get_link_by_index(rig.here, bridge.index) == links.get_link(rig.here, "br0")
    assert links.get_link(rig.here, "nobody") is None
    assert links.get_link_by_index(rig.here, 9999) is None
    with pytest.raises(KernelError):
        links.require_link(rig.here, "nobody")


@pytest.mark.parametrize("text", ["10.1.0.2/24", "10.1.0.2/32", "10.1.0.2/31", "fd01::2/64", "fd01::2/128"])
def test_an_address_is_added_once_listed_and_removed_twice(text: str, rig: Rig) -> None:
    _, pod_end = rig.pair()
    step = Address(POD, "eth0", ip_interface(text))
    assert addresses.ensure_address(rig.there, pod_end, step)
    assert not addresses.ensure_address(rig.there, pod_end, step)
    assert [held.address for held in addresses.list_addresses(rig.there, pod_end, step.address.version)] == [
        step.address
    ]
    (entry,) = shown(rig.pod, "eth0")["addr_info"]
    assert entry.get("broadcast") == ("10.1.0.255" if text == "10.1.0.2/24" else None)
    addresses.delete_address(rig.there, pod_end, step.address)
    addresses.delete_address(rig.there, pod_end, step.address)
    assert addresses.list_addresses(rig.there, pod_end, step.address.version) == []


def test_a_listing_is_of_one_link_alone(rig: Rig) -> None:
    _, pod_end = rig.pair()
    bridge = links.require_link(rig.here, "br0")
    addresses.ensure_address(rig.here, bridge, Address(HOST, "br0", ip_interface("10.1.0.1/24")))
    assert [str(held.address) for held in addresses.list_addresses(rig.here, bridge, 4)] == ["10.1.0.1/24"]
    assert addresses.list_addresses(rig.there, pod_end, 4) == []


def test_a_route_is_found_by_destination_gateway_and_table(rig: Rig) -> None:
    _, pod_end = rig.pair()
    for text in ("10.1.0.2/24", "fd01::2/64"):
        addresses.ensure_address(rig.there, pod_end, Address(POD, "eth0", ip_interface(text)))
    links.set_up(rig.there, pod_end)
    routes = [
        RouteTo(POD, "eth0", ip_network("0.0.0.0/0"), ip_address("10.1.0.1")),
        RouteTo(POD, "eth0", ip_network("10.2.0.0/15")),
        RouteTo(POD, "eth0", ip_network("10.4.0.0/24"), ip_address("10.1.0.9"), mtu=1300, advmss=1200, priority=7),
        RouteTo(POD, "eth0", ip_network("10.5.0.0/24"), ip_address("10.1.0.9"), table=300),
        RouteTo(POD, "eth0", ip_network("::/0"), ip_address("fd01::1")),
        RouteTo(POD, "eth0", ip_network("fd09::/33"), table=300),
    ]
    for step in routes:
        assert not addresses.has_route(rig.there, pod_end, step)
        addresses.ensure_route(rig.there, pod_end, step)
        addresses.ensure_route(rig.there, pod_end, step)
        assert addresses.has_route(rig.there, pod_end, step)
    other = RouteTo(POD, "eth0", ip_network("0.0.0.0/0"), ip_address("10.1.0.7"))
    assert not addresses.has_route(rig.there, pod_end, other)
    assert not addresses.has_route(rig.there, pod_end, RouteTo(POD, "eth0", ip_network("10.2.0.0/16")))
    wrong_table = RouteTo(POD, "eth0", ip_network("10.5.0.0/24"), ip_address("10.1.0.9"), table=301)
    assert not addresses.has_route(rig.there, pod_end, wrong_table)


def test_several_gateways_of_one_ipv6_destination_are_found_each(rig: Rig) -> None:
    _, pod_end = rig.pair()
    addresses.ensure_address(rig.there, pod_end, Address(POD, "eth0", ip_interface("fd01::2/64")))
    links.set_up(rig.there, pod_end)
    routes = [RouteTo(POD, "eth0", ip_network("::/0"), ip_address(f"fd01::{i}")) for i in range(5, 8)]
    for step in routes:
        addresses.ensure_route(rig.there, pod_end, step)
    assert all(addresses.has_route(rig.there, pod_end, step) for step in routes)
    assert not addresses.has_route(rig.there, pod_end, RouteTo(POD, "eth0", ip_network("::/0"), ip_address("fd01::9")))


def test_a_port_carries_frames_when_waiting_is_over(rig: Rig) -> None:
    host_end, pod_end = rig.pair()
    links.set_up(rig.there, pod_end)
    announce.wait_for_port(rig.here, host_end, 5.0)
    port = links.require_link(rig.here, "vethx")
    assert port.port_state == 3  # BR_STATE_FORWARDING


def test_waiting_for_a_port_that_never_comes_ends(rig: Rig) -> None:
    host_end, _ = rig.pair()
    announce.wait_for_port(rig.here, host_end, 0.01)  # the pod's end is down
    links.delete_link(rig.here, "vethx")
    announce.wait_for_port(rig.here, host_end, 5.0)  # it is gone


def test_settings_are_read_and_written_in_their_namespace(rig: Rig) -> None:
    key = "net/ipv4/conf/all/arp_announce"
    sysctl.write(key, "2", rig.netns)
    assert sysctl.read(key, rig.netns) == "2"
    assert sysctl.read(key) == "0"
    assert rig.pod.run("sysctl", "-n", "net.ipv4.conf.all.arp_announce").stdout.strip() == "2"
    assert sysctl.read("net.ipv4.no_such_setting") is None


def test_a_setting_of_a_link_with_dots_in_its_name_is_found(rig: Rig) -> None:
    links.ensure_bridge(rig.here, Bridge("br0.7"))
    sysctl.write("net/ipv4/conf/br0.7/arp_announce", "1")
    assert sysctl.read("net/ipv4/conf/br0.7/arp_announce") == "1"


def test_a_setting_that_the_kernel_refuses_is_an_error_and_one_that_holds_is_not_written(rig: Rig) -> None:
    with pytest.raises(CniError, match="ip_forward"):
        sysctl.write("net/ipv4/ip_forward", "x")
    sysctl.write("kernel/osrelease", sysctl.read("kernel/osrelease") or "")  # read-only, but it is so already


@pytest.mark.parametrize("key", ["", "..", "net/../kernel/panic", "net//ipv4", "/net/ipv4", "net/./ipv4", "net.\0"])
def test_a_setting_that_leads_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(CniError) as caught:
        sysctl.path_of(key)
    assert caught.value.code == Code.INVALID_CONFIG
