"""CHECK: passes after ADD, and after any damage names the first thing that is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from namespaces import Namespace, Pod
from tests.bridges import DUAL, bridge_config
from tests.calls import Plugins
from tests.packets import set_up

Damage = Callable[[Namespace, Pod, str], None]


def host_link(bridge: Plugins, pod: Pod) -> str:
    return str(bridge.results[pod.name, "eth0"]["interfaces"][1]["name"])


def delete_rule(host: Namespace, comment: str) -> None:
    listed = json.loads(host.run("nft", "--json", "list", "table", "inet", "netloom_masquerade").stdout)
    (handle,) = [
        item["rule"]["handle"] for item in listed["nftables"] if item.get("rule", {}).get("comment") == comment
    ]
    host.run(*f"nft delete rule inet netloom_masquerade postrouting handle {handle}".split())


def on_host(command: str) -> Damage:
    return lambda host, pod, link: void(host.run(*command.replace("LINK", link).split()))


def in_pod(command: str) -> Damage:
    return lambda host, pod, link: void(pod.run(*command.split()))


def void(_: object) -> None:
    return


# What is done to a pod's network, and what CHECK says then.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "address": (in_pod("ip address del 10.1.0.2/24 dev eth0"), "address 10.1.0.2/24 of eth0 is missing in the pod"),
    "v6 address": (in_pod("ip -6 address del fd01::2/64 dev eth0"), "address fd01::2/64 of eth0 is missing in the pod"),
    "route": (in_pod("ip route del default"), "route 0.0.0.0/0 via 10.1.0.1 of eth0 is missing in the pod"),
    "v6 route": (in_pod("ip -6 route del default"), "route ::/0 via fd01::1 of eth0 is missing in the pod"),
    "route by another gateway": (
        in_pod("ip route replace default via 10.1.0.7"),
        "route 0.0.0.0/0 via 10.1.0.1 of eth0 is missing in the pod",
    ),
    "link renamed": (in_pod("ip link set eth0 name eth9"), "link eth0 is missing in the pod"),
    "link deleted": (in_pod("ip link del eth0"), "link eth0 is missing in the pod"),
    "link down": (in_pod("ip link set eth0 down"), "link eth0 is down in the pod"),
    "mac changed": (
        in_pod("ip link set eth0 address 02:00:00:00:00:77"),
        "link eth0 has the address 02:00:00:00:00:77",
    ),
    "host link down": (on_host("ip link set LINK down"), "link LINK is down on the host"),
    "host link renamed": (on_host("ip link set LINK name veth9"), "is not the one in prevResult"),
    "no port": (on_host("ip link set LINK nomaster"), "link LINK is no port of bridge br0"),
    "port of another bridge": (
        lambda host, pod, link: void(
            (
                host.run(*["ip", "link", "add", "br9", "type", "bridge"]),
                host.run(*f"ip link set {link} master br9".split()),
            )
        ),
        "link LINK is no port of bridge br0",
    ),
    "bridge down": (on_host("ip link set br0 down"), "bridge br0 is down"),
    "bridge deleted": (on_host("ip link del br0"), "bridge br0 is missing"),
    "gateway": (on_host("ip address del 10.1.0.1/24 dev br0"), "address 10.1.0.1/24 of br0 is missing on the host"),
    "hairpin": (on_host("bridge link set dev LINK hairpin off"), "hairpin mode of LINK is off"),
    "isolation": (on_host("bridge link set dev LINK isolated off"), "isolation of LINK is off"),
    "masquerade element": (
        on_host("nft delete element inet netloom_masquerade pods4 { 10.1.0.2 }"),
        "nft element 10.1.0.2 of netloom_masquerade pods4 is missing",
    ),
    "masquerade rule": (
        lambda host, pod, link: delete_rule(host, "multicast: as it is"),
        "nft chain netloom_masquerade postrouting: the rule 'multicast: as it is' is missing",
    ),
    "masquerade chain flushed": (
        on_host("nft flush chain inet netloom_masquerade postrouting"),
        "the rule 'to its own subnet: as it is' is missing",
    ),
    "masquerade table": (
        on_host("nft delete table inet netloom_masquerade"),
        "nft table inet netloom_masquerade is missing",
    ),
    "spoof check element": (
        on_host("nft delete element bridge netloom_spoofcheck ports { LINK }"),
        "nft element LINK of netloom_spoofcheck ports is missing",
    ),
    "spoof check flushed": (
        on_host("nft flush chain bridge netloom_spoofcheck prerouting"),
        "nft chain netloom_spoofcheck prerouting: the rule 'a pod must use its own MAC address' is missing",
    ),
    "whole ruleset": (on_host("nft flush ruleset"), "nft table inet netloom_masquerade is missing"),
    "address freed": (
        on_host("rm /var/lib/cni/networks/net/10.1.0.2"),
        "10.1.0.2 is not reserved for a eth0",
    ),
}


EVERYTHING = {"ipam": DUAL, "ipMasq": True, "macspoofchk": True, "hairpinMode": True, "portIsolation": True}


def test_check_passes_after_add(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(**EVERYTHING))
    bridge.add(pod)
    bridge.check(pod)
    host.add_pod("b")
    bridge.add(host.pods["b"])
    bridge.check(pod)


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_names_what_is_missing(damage: str, host: Namespace, bin_dir: Path) -> None:
    destroy, words = DAMAGES[damage]
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(**EVERYTHING))
    bridge.add(pod)
    link = host_link(bridge, pod)
    destroy(host, pod, link)
    answer = bridge.try_check(pod)
    assert answer.code == 102, answer
    assert words.replace("LINK", link) in answer.body["msg"]


def test_check_tolerates_what_later_plugins_do(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(ipMasq=True))
    bridge.add(pod)
    set_up(pod)
    for command in (
        "ip link set eth0 mtu 1400",
        "ip link set eth0 promisc on",
        "ip address add 10.99.0.1/32 dev eth0",
        "ip route add 10.98.0.0/16 via 10.1.0.1",
        "ip route add 0.0.0.0/0 via 10.1.0.1 metric 5",
    ):
        pod.run(*command.split())
    host.run("nft", "add", "table", "inet", "of_somebody_else")
    result = bridge.results["a", "eth0"]
    grown = {**result, "interfaces": [*result["interfaces"], {"name": "ifb0", "mac": "02:00:00:00:00:01"}]}
    bridge.check(pod, prevResult=grown)
    foreign = {"address": "10.99.0.1/32", "interface": 3}
    bridge.check(pod, prevResult={**grown, "ips": [*result["ips"], foreign]})


def test_check_without_prev_result_is_an_invalid_configuration(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config())
    bridge.add(pod)
    assert bridge.call("CHECK", pod).code == 7


def test_check_of_another_attachment_fails(host: Namespace, bin_dir: Path) -> None:
    one, two = host.add_pod("a"), host.add_pod("b")
    bridge = Plugins(host, bin_dir, bridge_config())
    bridge.add(one)
    bridge.add(two)
    answer = bridge.try_check(two, prevResult=bridge.results["a", "eth0"])
    assert answer.code == 102
