"""An ADD that fails leaves everything as it was: on the host, in the pod, and what is in use by others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace
from network import Network
from tests.bridges import DUAL, GATEWAY_V4, V4, bridge_config
from tests.calls import Plugins
from tests.cni_plugins.stand_in import StandIns, error_text, result_text
from tests.leftovers import leftovers
from tests.packets import connected, is_reachable, talk
from tests.snapshot import snapshot


def exhaust(host: Namespace) -> dict[str, Any]:
    return {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.2"}]]}}


def take_the_bridges_name(host: Namespace) -> dict[str, Any]:
    host.run("ip", "link", "add", "taken", "type", "veth", "peer", "name", "taken2")
    return {"bridge": "taken"}


def give_the_bridge_another_address(host: Namespace) -> dict[str, Any]:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]
    host.run("ip", "-6", "address", "add", "fd01::ff/80", "dev", "br0")
    return {"ipam": {"type": "host-local", "ranges": ranges}}


def ask_for_a_route_nobody_can_take(host: Namespace) -> dict[str, Any]:
    return {"ipam": {**V4, "routes": [{"dst": "192.168.0.0/16", "gw": "172.16.0.1"}]}}


def block_the_nft_table(host: Namespace) -> dict[str, Any]:
    """A table of our name whose set is not ours: the transaction that would make ours fails."""
    host.run("nft", "delete", "table", "inet", "netloom_masquerade")
    host.run("nft", "-f", "-", input="table inet netloom_masquerade { map pods4 { type ipv4_addr : ipv4_addr; }; }")
    return {"ipMasq": True}


def block_the_last_step(host: Namespace) -> dict[str, Any]:
    """The spoof check is the last thing made: when it fails, all else is there."""
    host.run("nft", "delete", "table", "bridge", "netloom_spoofcheck")
    host.run("nft", "-f", "-", input="table bridge netloom_spoofcheck { map ports { type ifname : mark; }; }")
    return {}


def miss_the_ipam_plugin(host: Namespace) -> dict[str, Any]:
    return {"ipam": {"type": "no-such-plugin"}}


MISHAPS: dict[str, tuple[Callable[[Namespace], dict[str, Any]], int]] = {
    "exhausted pool": (exhaust, 103),
    "bridge's name taken": (take_the_bridges_name, 7),
    "bridge's address": (give_the_bridge_another_address, 7),
    "impossible route": (ask_for_a_route_nobody_can_take, 105),
    "nft table of another form": (block_the_nft_table, 105),
    "the last step": (block_the_last_step, 105),
    "no IPAM plugin": (miss_the_ipam_plugin, 106),
}


@pytest.mark.parametrize("mishap", MISHAPS)
def test_a_failed_add_changes_nothing(mishap: str, host: Namespace, bin_dir: Path) -> None:
    prepare, code = MISHAPS[mishap]
    first, second = host.add_pod("first"), host.add_pod("second")
    bridge = Plugins(host, bin_dir, bridge_config(ipMasq=True, macspoofchk=True))
    bridge.add(first)
    keys = prepare(host)
    before = snapshot(host), snapshot(second)
    answer = bridge.other(**keys).try_add(second)
    assert answer.code == code, answer
    assert (snapshot(host), snapshot(second)) == before
    assert is_reachable(host, first, "10.1.0.2")
    retried = Plugins(host, bin_dir, bridge_config(name="net2", ipMasq=None)).try_add(second)
    assert retried.code in (0, 7)  # nothing of the failed one is in the way; 7: the bridge has another address


def test_a_failing_delegate_is_undone_and_its_error_is_ours(host: Namespace, bin_dir: Path, tmp_path: Path) -> None:
    """CNI SPEC, section 4: if a delegate's ADD fails, it is executed again with DEL before the error is returned."""
    stand_ins = StandIns(tmp_path)
    stand_ins.write("pool", {"ADD": (error_text(103, "the pool is dry"), 1), "DEL": (error_text(5, "no disk"), 1)})
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(ipam={"type": "pool"}), path=[stand_ins.bin])
    answer = bridge.try_add(pod)
    assert (answer.code, answer.body["msg"]) == (103, "the pool is dry")
    assert stand_ins.log == ["ADD pool", "DEL pool"]
    assert leftovers(host, links=["br0"]) == []


def test_a_later_failure_undoes_the_delegate_and_is_what_is_told(
    host: Namespace, bin_dir: Path, tmp_path: Path
) -> None:
    stand_ins = StandIns(tmp_path)
    stand_ins.write("pool", {"ADD": (result_text("10.1.0.5/24"), 0), "DEL": (error_text(5, "no disk"), 1)})
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "address", "add", "10.9.0.1/24", "dev", "br0")
    bridge = Plugins(host, bin_dir, bridge_config(ipam={"type": "pool"}), path=[stand_ins.bin])
    answer = bridge.try_add(host.add_pod("a"))
    assert answer.code == 7
    assert "10.9.0.1" in answer.words
    assert stand_ins.log == ["ADD pool", "DEL pool"]
    assert leftovers(host, links=["br0"]) == []


def test_a_delegate_without_an_address_is_an_error_and_undone(host: Namespace, bin_dir: Path, tmp_path: Path) -> None:
    stand_ins = StandIns(tmp_path)
    stand_ins.write("pool", {"ADD": ('{"cniVersion": "1.1.0"}', 0)})
    bridge = Plugins(host, bin_dir, bridge_config(ipam={"type": "pool"}), path=[stand_ins.bin])
    assert bridge.try_add(host.add_pod("a")).code == 7
    assert stand_ins.log == ["ADD pool", "DEL pool"]
    assert leftovers(host, links=["br0"]) == []


@pytest.mark.parametrize("is_same_netns", [True, False])
def test_a_second_add_of_an_attachment_is_an_error_and_harms_nothing(
    is_same_netns: bool, node_network: Network, bin_dir: Path
) -> None:
    node, outside = node_network["node"], node_network["outside"]
    pod, other = node.add_pod("a"), node.add_pod("b")
    bridge = Plugins(node, bin_dir, bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True))
    bridge.add(pod)
    with connected(pod, outside, "198.51.100.2") as there, connected(pod, node, GATEWAY_V4) as here:
        before = snapshot(node), snapshot(pod)
        answer = bridge.call("ADD", pod, netns=pod.path if is_same_netns else other.path)
        assert answer.code == 101
        assert (snapshot(node), snapshot(pod)) == before
        assert talk(*there)
        assert talk(*here)
    bridge.check(pod)
    bridge.delete(pod)
    assert leftovers(node, links=["br0"]) == []


def test_an_interface_of_somebody_else_is_never_replaced(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    pod.run("ip", "link", "add", "eth0", "type", "bridge")
    before = snapshot(pod)
    bridge = Plugins(host, bin_dir, bridge_config())
    assert bridge.try_add(pod).code == 101
    bridge.delete(pod)  # as a runtime does after a failed ADD
    assert snapshot(pod) == before
    assert leftovers(host, links=["br0"]) == []
