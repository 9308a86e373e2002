"""The bridge plugin's result, and the links it makes: what ADD says is what the kernel has, in every version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.results import VERSIONS
from namespaces import Namespace, Place
from tests.bridges import DUAL, bridge_config
from tests.calls import Plugins
from tests.leftovers import leftovers
from tests.snapshot import snapshot


def link_of(place: Place, name: str) -> dict[str, Any]:
    """A link as iproute2 sees it."""
    found = json.loads(place.run("ip", "-json", "-details", "address", "show", "dev", name).stdout)
    assert isinstance(found[0], dict)
    return found[0]


def test_the_result_names_bridge_host_link_and_pod_link_as_they_are(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    result = Plugins(host, bin_dir, bridge_config(mtu=1400)).add(pod)
    bridge, host_end, pod_end = result["interfaces"]
    assert (bridge["name"], pod_end["name"], pod_end["sandbox"]) == ("br0", "eth0", pod.path)
    for interface, place in ((bridge, host), (host_end, host), (pod_end, pod)):
        link = link_of(place, interface["name"])
        assert (link["address"], link["mtu"]) == (interface["mac"], interface["mtu"]) == (link["address"], 1400)
        assert "UP" in link["flags"]
    assert link_of(host, host_end["name"])["master"] == "br0"
    assert result["ips"] == [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 2}]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_answer_is_in_the_version_of_the_configuration(version: str, host: Namespace, bin_dir: Path) -> None:
    result = Plugins(host, bin_dir, bridge_config(cniVersion=version, ipam=DUAL)).add(host.add_pod("a"))
    assert result["cniVersion"] == version
    if version < "0.3":
        assert result["ip4"]["ip"] == "10.1.0.2/24"
        assert result["ip4"]["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]
        assert result["ip6"]["ip"] == "fd01::2/64"
        assert "interfaces" not in result
        return
    assert [ip.get("version") for ip in result["ips"]] == (["4", "6"] if version < "1.0" else [None, None])
    assert [ip["interface"] for ip in result["ips"]] == [2, 2]
    assert all(("mtu" in interface) == (version >= "1.1") for interface in result["interfaces"])


@pytest.mark.parametrize(
    ("asked", "wins"),
    [
        ({"runtimeConfig", "args", "environ"}, "runtimeConfig"),
        ({"args", "environ"}, "args"),
        ({"environ"}, "environ"),
    ],
)
def test_the_mac_address_is_the_most_specific_one_asked_for(
    asked: set[str], wins: str, host: Namespace, bin_dir: Path
) -> None:
    macs = {"runtimeConfig": "02:00:00:00:00:0a", "args": "02:00:00:00:00:0b", "environ": "02:00:00:00:00:0C"}
    keys: dict[str, Any] = {}
    if "runtimeConfig" in asked:
        keys["runtimeConfig"] = {"mac": macs["runtimeConfig"]}
    if "args" in asked:
        keys["args"] = {"cni": {"mac": macs["args"]}}
    pod = host.add_pod("a")
    arguments = f"IgnoreUnknown=1;MAC={macs['environ']};K8S_POD_NAME=a"
    result = Plugins(host, bin_dir, bridge_config(ipam=None)).add(pod, environ={"CNI_ARGS": arguments}, **keys)
    assert result["interfaces"][2]["mac"] == link_of(pod, "eth0")["address"] == macs[wins].lower()


def test_without_ipam_the_link_is_up_and_has_no_address(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(ipam=None, ipMasq=True))
    result = bridge.add(pod)
    assert "ips" not in result
    assert link_of(pod, "eth0")["operstate"] == "UP"
    assert all(address["family"] == "inet6" for address in link_of(pod, "eth0")["addr_info"])  # link-local
    bridge.check(pod)
    bridge.delete(pod)
    assert leftovers(host, links=["br0"]) == []


def test_disable_container_interface_leaves_the_pods_link_down(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(ipam=None, disableContainerInterface=True))
    bridge.add(pod)
    link = link_of(pod, "eth0")
    assert "UP" not in link["flags"]
    assert link["addr_info"] == []
    bridge.check(pod)


def test_disable_container_interface_with_ipam_is_refused(host: Namespace, bin_dir: Path) -> None:
    answer = Plugins(host, bin_dir, bridge_config(disableContainerInterface=True)).try_add(host.add_pod("a"))
    assert answer.code == 7


def test_promisc_mode_makes_the_bridge_promiscuous(host: Namespace, bin_dir: Path) -> None:
    Plugins(host, bin_dir, bridge_config(ipam=None, promiscMode=True)).add(host.add_pod("a"))
    assert link_of(host, "br0")["promiscuity"] == 1
    assert "PROMISC" in link_of(host, "br0")["flags"]


def test_promisc_mode_and_hairpin_mode_exclude_each_other(host: Namespace, bin_dir: Path) -> None:
    answer = Plugins(host, bin_dir, bridge_config(promiscMode=True, hairpinMode=True)).try_add(host.add_pod("a"))
    assert answer.code == 7


def test_dns_of_the_configuration_goes_into_the_result(host: Namespace, bin_dir: Path) -> None:
    dns = {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["example.org"], "options": ["ndots:2"]}
    assert Plugins(host, bin_dir, bridge_config(dns=dns)).add(host.add_pod("a"))["dns"] == dns


def test_the_result_without_the_key_bridge_is_on_cni0(host: Namespace, bin_dir: Path) -> None:
    result = Plugins(host, bin_dir, bridge_config(bridge=None, ipam=None)).add(host.add_pod("a"))
    assert result["interfaces"][0]["name"] == "cni0"


@pytest.mark.parametrize("key", ["name", "type"])
def test_a_configuration_without_its_name_is_refused_and_without_its_type_is_not(
    key: str, host: Namespace, bin_dir: Path
) -> None:
    config = bridge_config(ipam=None)
    del config[key]
    answer = Plugins(host, bin_dir, bridge_config()).call("ADD", host.add_pod("a"), stdin=json.dumps(config))
    assert answer.code == (7 if key == "name" else 0)


def test_the_bridge_is_not_taken_from_a_link_of_another_kind(host: Namespace, bin_dir: Path) -> None:
    host.run("ip", "link", "add", "br0", "type", "veth", "peer", "name", "other")
    pod = host.add_pod("a")
    before = snapshot(host)
    answer = Plugins(host, bin_dir, bridge_config()).try_add(pod)
    assert answer.code == 7
    assert "br0 exists and is no bridge but a veth" in answer.words
    assert snapshot(host) == before


# --- vlans: this kernel's bridges may lack them (CONFIG_BRIDGE_VLAN_FILTERING)


@pytest.fixture(scope="module")
def filters_vlans() -> bool:
    with Namespace.create("probe") as probe:
        made = probe.run("ip", "link", "add", "br0", "type", "bridge", "vlan_filtering", "1", check=False)
        if made.returncode != 0:
            return False
        return bool(link_of(probe, "br0")["linkinfo"]["info_data"].get("vlan_filtering"))


@pytest.mark.parametrize("keys", [{"vlan": 100}, {"vlanTrunk": [{"id": 100}, {"minID": 200, "maxID": 210}]}])
def test_vlans_are_set_or_refused_in_words(
    keys: dict[str, Any], filters_vlans: bool, host: Namespace, bin_dir: Path
) -> None:
    pod = host.add_pod("a")
    before = snapshot(host)
    bridge = Plugins(host, bin_dir, bridge_config(ipam=None, isDefaultGateway=None, **keys))
    answer = bridge.try_add(pod)
    if not filters_vlans:
        assert answer.code == 2
        assert "this kernel's bridges cannot filter vlans" in answer.words
        assert snapshot(host) == before
        return
    assert answer.code == 0
    shown = host.run("bridge", "vlan", "show", "dev", answer.body["interfaces"][1]["name"]).stdout
    assert "100" in shown
    assert ("PVID" in shown) == ("vlan" in keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"vlan": 4095},
        {"vlan": -1},
        {"vlan": "100"},
        {"vlanTrunk": [{"id": 0}]},
        {"vlanTrunk": [{"minID": 20, "maxID": 10}]},
        {"vlanTrunk": [{"minID": 20}]},
        {"vlanTrunk": 5},
        {"vlan": 100, "vlanTrunk": [{"id": 200}]},
        {"vlan": 100, "isGateway": True},
    ],
    ids=json.dumps,
)
def test_impossible_vlans_are_invalid(keys: dict[str, Any], host: Namespace, bin_dir: Path) -> None:
    bridge = Plugins(host, bin_dir, bridge_config(ipam=None, isDefaultGateway=None, **keys))
    assert bridge.try_add(host.add_pod("a")).code == 7
