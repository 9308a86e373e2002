"""GC removes what no valid attachment of its network owns, and mends rules; STATUS tells whether an ADD would work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Pod
from network import Network
from tests.bridges import DUAL, bridge_config
from tests.calls import Plugins, together
from tests.leftovers import leftovers
from tests.packets import source_seen
from tests.snapshot import snapshot


def owners_in(lines: list[str]) -> set[str]:
    """The pods that a snapshot still speaks of (they are called p0, p1, ...)."""
    words = " ".join(lines).replace("/", " ").replace("\\r", " ").replace("'", " ").replace('"', " ").split()
    return {word for word in words if word[0] == "p" and word[1:].isdigit()}


@pytest.fixture
def ten(host: Namespace, bin_dir: Path) -> tuple[Plugins, list[Pod]]:
    """Ten pods with all that a pod may own."""
    bridge = Plugins(host, bin_dir, bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True))
    pods = [host.add_pod(f"p{i}") for i in range(10)]
    answers = together([lambda pod=pod: bridge.try_add(pod) for pod in pods], at_once=4)  # type: ignore[misc]
    assert [answer.exit_code for answer in answers] == [0] * 10
    return bridge, pods


def test_gc_with_five_of_ten_valid_removes_the_other_five_wholly(ten: tuple[Plugins, list[Pod]]) -> None:
    bridge, pods = ten
    valid = pods[::2]
    answer = bridge.gc(valid)
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert owners_in(snapshot(bridge.host)) == {pod.name for pod in valid}
    for pod in pods:
        assert ("eth0" in pod.run("ip", "link").stdout) == (pod in valid)
    bridge.check(valid[0])
    bridge.check(valid[-1])


def test_gc_with_an_empty_list_removes_all(ten: tuple[Plugins, list[Pod]]) -> None:
    bridge, _ = ten
    assert bridge.gc([]).exit_code == 0
    assert leftovers(bridge.host, links=["br0"]) == []


def test_gc_leaves_other_networks_alone(host: Namespace, bin_dir: Path) -> None:
    mine = Plugins(host, bin_dir, bridge_config(ipMasq=True, macspoofchk=True))
    # A longer name with ours as its beginning: tags must not be told apart by their first letters alone.
    other = mine.other(name="net2", bridge="br1", ipam={"type": "host-local", "subnet": "10.2.0.0/24"})
    pod, neighbour = host.add_pod("a"), host.add_pod("b")
    other.add(neighbour)
    before = snapshot(host), snapshot(neighbour)
    mine.add(pod)
    assert mine.gc([]).exit_code == 0
    host.run("ip", "link", "delete", "br0")
    assert (snapshot(host), snapshot(neighbour)) == before
    other.check(neighbour)


def test_gc_is_not_read_out_of_silence(host: Namespace, bin_dir: Path) -> None:
    bridge = Plugins(host, bin_dir, bridge_config())
    pod = host.add_pod("a")
    bridge.add(pod)
    assert bridge.call("GC").code == 7
    halved: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "a"}]}
    assert bridge.call("GC", **halved).code == 7
    bridge.check(pod)


def test_gc_of_an_old_version_does_not_exist(host: Namespace, bin_dir: Path) -> None:
    assert Plugins(host, bin_dir, bridge_config(cniVersion="1.0.0")).gc([]).code == 1


def test_a_link_without_a_tag_is_removed(host: Namespace, bin_dir: Path) -> None:
    """Killed between making the pair and tagging it: only the name tells whose it is."""
    bridge = Plugins(host, bin_dir, bridge_config(ipam=None))
    one, two = host.add_pod("a"), host.add_pod("b")
    for pod in (one, two):
        bridge.add(pod)
        link = bridge.results[pod.name, "eth0"]["interfaces"][1]["name"]
        host.run("ip", "link", "set", link, "alias", "")
    host.run("ip", "link", "add", "vethofsomebody", "type", "veth", "peer", "name", "vethofothers")
    assert bridge.gc([one]).exit_code == 0
    assert "eth0" in one.run("ip", "link").stdout
    assert "eth0" not in two.run("ip", "link").stdout
    assert "vethofsomebody" in host.run("ip", "link").stdout


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush chain inet netloom_masquerade postrouting",
        "nft insert rule inet netloom_masquerade postrouting return",
        "nft flush chain bridge netloom_spoofcheck prerouting",
    ],
)
def test_gc_makes_rules_anew_that_somebody_changed(damage: str, node_network: Network, bin_dir: Path) -> None:
    node, outside = node_network["node"], node_network["outside"]
    pod = node.add_pod("a")
    bridge = Plugins(node, bin_dir, bridge_config(ipMasq=True, macspoofchk=True))
    bridge.add(pod)
    before = snapshot(node)
    node.run(*damage.split())
    assert bridge.try_check(pod).code == 102
    assert bridge.gc([pod]).exit_code == 0
    assert snapshot(node) == before
    bridge.check(pod)
    assert source_seen(pod, outside, "198.51.100.2") == "192.0.2.1"


def test_status_is_50_when_no_address_is_free_and_0_when_one_is(host: Namespace, bin_dir: Path) -> None:
    ranges = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.2"}]]}
    bridge = Plugins(host, bin_dir, bridge_config(ipam=ranges, ipMasq=True))
    before = snapshot(host)
    assert bridge.status().exit_code == 0
    assert snapshot(host) == before
    pod = host.add_pod("a")
    bridge.add(pod)
    answer = bridge.status()
    assert answer.code == 50
    assert "no free address" in answer.words
    bridge.delete(pod)
    assert (bridge.status().exit_code, bridge.status().stdout) == (0, "")
