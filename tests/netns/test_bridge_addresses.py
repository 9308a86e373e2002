"""Addresses, gateways and routes: what the bridge plugin configures, seen with iproute2, and used at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Place
from tests.bridges import DUAL, GATEWAY_V4, GATEWAY_V6, V4, bridge_config
from tests.calls import Plugins
from tests.leftovers import leftovers
from tests.packets import connected, talk
from waiting import wait_until

# The kernel's duplicate address detection takes 1 to 2 s; a connection on one host 1 ms.
AT_ONCE_S = 0.5


def addresses(place: Place, link: str, family: str = "-4") -> set[str]:
    """The global addresses of a link, in CIDR notation."""
    found = json.loads(place.run("ip", family, "-json", "address", "show", "dev", link, "scope", "global").stdout)
    return {f"{a['local']}/{a['prefixlen']}" for entry in found for a in entry.get("addr_info", ()) if "local" in a}


def routes(place: Place, family: str = "-4", table: str = "main") -> list[dict[str, Any]]:
    """The routes of one table."""
    found = json.loads(place.run("ip", family, "-details", "-json", "route", "show", "table", table).stdout or "[]")
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("keys", "has_gateway", "has_default"),
    [
        ({"isDefaultGateway": None}, False, False),
        ({"isDefaultGateway": None, "isGateway": True}, True, False),
        ({"isDefaultGateway": True}, True, True),
    ],
)
def test_gateway_and_default_route_are_there_when_asked_for(
    keys: dict[str, Any], has_gateway: bool, has_default: bool, host: Namespace, bin_dir: Path
) -> None:
    pod = host.add_pod("a")
    result = Plugins(host, bin_dir, bridge_config(ipam=DUAL, **keys)).add(pod)
    assert addresses(pod, "eth0") == {"10.1.0.2/24"}
    assert addresses(pod, "eth0", "-6") == {"fd01::2/64"}
    assert addresses(host, "br0") == ({"10.1.0.1/24"} if has_gateway else set())
    assert addresses(host, "br0", "-6") == ({"fd01::1/64"} if has_gateway else set())
    for family, gateway in (("-4", GATEWAY_V4), ("-6", GATEWAY_V6)):
        found = [route["gateway"] for route in routes(pod, family) if route["dst"] == "default"]
        assert found == ([gateway] if has_default else [])
    assert [route["gw"] for route in result.get("routes", ())] == ([GATEWAY_V4, GATEWAY_V6] if has_default else [])


def test_forwarding_is_on_where_the_bridge_is_the_gateway(host: Namespace, bin_dir: Path) -> None:
    Plugins(host, bin_dir, bridge_config(ipam=DUAL)).add(host.add_pod("a"))
    keys = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.br0.accept_ra")
    assert host.run("sysctl", "-n", *keys).stdout.split() == ["1", "1", "0"]


def test_routes_of_the_ipam_carry_all_their_details(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    wanted = [
        {"dst": "192.168.0.0/16"},
        {"dst": "172.16.0.0/12", "gw": "10.1.0.77"},
        {"dst": "172.31.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 50},
        {"dst": "203.0.113.0/24", "table": 100, "scope": 253},
        {"dst": "198.51.100.0/24", "table": 1000, "gw": "10.1.0.78"},
    ]
    bridge = Plugins(host, bin_dir, bridge_config(isDefaultGateway=None, isGateway=True, ipam={**V4, "routes": wanted}))
    result = bridge.add(pod)
    assert result["routes"] == wanted
    found = {route["dst"]: route for route in routes(pod)}
    assert found["192.168.0.0/16"]["gateway"] == GATEWAY_V4
    assert found["172.16.0.0/12"]["gateway"] == "10.1.0.77"
    detailed = found["172.31.0.0/16"]
    assert (detailed["metric"], detailed["metrics"]) == (50, [{"mtu": 1300, "advmss": 1200}])
    (link_scope,) = routes(pod, table="100")
    assert (link_scope["dst"], link_scope["scope"], link_scope.get("gateway")) == ("203.0.113.0/24", "link", None)
    (far_table,) = routes(pod, table="1000")
    assert far_table["gateway"] == "10.1.0.78"
    bridge.check(pod)


def test_a_pod_on_two_networks_with_default_routes_gets_both_and_keeps_one(host: Namespace, bin_dir: Path) -> None:
    """The reference puts the later one first; it must not be left out silently, as CHECK asks for it."""
    pod = host.add_pod("a")
    second = {"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd02::/64"}]]}
    one = Plugins(host, bin_dir, bridge_config(ipam=DUAL))
    two = Plugins(host, bin_dir, bridge_config(name="net2", bridge="br1", ipam=second))
    one.add(pod)
    two.add(pod, ifname="eth1")
    assert [r["gateway"] for r in routes(pod) if r["dst"] == "default"] == ["10.2.0.1", "10.1.0.1"]
    one.check(pod)
    two.check(pod, ifname="eth1")
    two.delete(pod, ifname="eth1")
    one.check(pod)


def test_both_families_are_usable_as_soon_as_add_returns(host: Namespace, bin_dir: Path) -> None:
    one, two = host.add_pod("a"), host.add_pod("b")
    bridge = Plugins(host, bin_dir, bridge_config(ipam=DUAL))
    bridge.add(one)
    ends = [(host, GATEWAY_V6), (host, GATEWAY_V4)]
    took = []
    for place, address in ends:
        start = time.monotonic()
        with connected(one, place, address) as (ours, theirs):
            took.append(time.monotonic() - start)
            assert talk(ours, theirs)
    bridge.add(two)
    start = time.monotonic()
    with connected(two, one, "fd01::2"):
        took.append(time.monotonic() - start)
    assert max(took) < AT_ONCE_S, took


def test_enabledad_waits_until_the_address_is_known_to_be_unique(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    Plugins(host, bin_dir, bridge_config(ipam=DUAL, enabledad=True)).add(pod)
    (entry,) = json.loads(pod.run("ip", "-6", "-json", "address", "show", "dev", "eth0", "scope", "global").stdout)
    (address,) = [a for a in entry["addr_info"] if "local" in a]
    assert "tentative" not in address
    assert not address.get("nodad")
    with connected(pod, host, GATEWAY_V6) as ends:
        assert talk(*ends)


def test_enabledad_refuses_an_address_that_somebody_on_the_link_has(host: Namespace, bin_dir: Path) -> None:
    squatter, pod = host.add_pod("squatter"), host.add_pod("a")
    plain = Plugins(host, bin_dir, bridge_config(ipam=None))
    plain.add(squatter)
    squatter.run("ip", "address", "add", "fd01::2/64", "dev", "eth0", "nodad")
    answer = plain.other(ipam=DUAL, enabledad=True).try_add(pod)
    assert answer.code == 104
    assert "fd01::2" in answer.words
    plain.delete(squatter)
    assert leftovers(host, links=["br0"]) == []


def test_another_gateway_on_the_bridge_is_refused_and_the_attachment_undone(host: Namespace, bin_dir: Path) -> None:
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "address", "add", "10.9.0.1/24", "dev", "br0")
    pod = host.add_pod("a")
    answer = Plugins(host, bin_dir, bridge_config(ipMasq=True)).try_add(pod)
    assert answer.code == 7
    assert "bridge br0 has the address 10.9.0.1/24, not 10.1.0.1/24" in answer.words
    assert "forceAddress" in answer.words
    assert addresses(host, "br0") == {"10.9.0.1/24"}
    assert leftovers(host, links=["br0"]) == []
    assert "eth0" not in pod.run("ip", "link").stdout


def test_force_address_replaces_the_bridges_address(host: Namespace, bin_dir: Path) -> None:
    first = Plugins(host, bin_dir, bridge_config(ipam=DUAL))
    first.add(host.add_pod("a"))
    ranges = [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd01::/60"}]]
    changed = first.other(name="net2", forceAddress=True, ipam={"type": "host-local", "ranges": ranges})
    changed.add(host.add_pod("b"))
    assert addresses(host, "br0") == {"10.2.0.1/24"}
    assert addresses(host, "br0", "-6") == {"fd01::1/60"}


def test_subnets_of_one_range_set_share_the_bridge(host: Namespace, bin_dir: Path) -> None:
    """Each address of one ADD brings its own gateway; those of one ADD never conflict."""
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(ipam={"type": "host-local", "ranges": ranges}))
    bridge.add(pod)
    assert addresses(host, "br0") == {"10.1.0.1/24", "10.2.0.1/24"}
    bridge.check(pod)


def test_an_existing_bridge_keeps_its_address_and_mtu(host: Namespace, bin_dir: Path) -> None:
    host.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:99", "mtu", "1450", "type", "bridge")
    result = Plugins(host, bin_dir, bridge_config()).add(host.add_pod("a"))
    assert result["interfaces"][0] == {"name": "br0", "mac": "02:00:00:00:00:99", "mtu": 1450}
    wait_until(lambda: "UP" in host.run("ip", "-brief", "link", "show", "br0").stdout, within=5)
