"""DEL: removes all of its attachment, and nothing else, whatever it is told and however often it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Pod
from tests.bridges import DUAL, GATEWAY_V4, bridge_config
from tests.calls import Answer, Plugins
from tests.leftovers import leftovers
from tests.packets import connected, talk
from tests.snapshot import snapshot

GARBAGE: dict[str, Any] = {"mtu": "huge", "bridge": 5, "vlan": [], "ipMasq": "yes", "hairpinMode": 1, "dns": 7}


def as_usual(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.try_delete(pod)


def without_netns(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.try_delete(pod, netns="")


def without_prev_result(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.call("DEL", pod)


def without_either(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.call("DEL", pod.name)


def without_cni_args(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.try_delete(pod, environ={"CNI_ARGS": None, "PATH": None, "HOME": None})


def with_a_garbage_configuration(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.call("DEL", pod, **GARBAGE)


def with_another_bridge(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.call("DEL", pod, bridge="br7", isDefaultGateway=None, ipMasq=None, macspoofchk=None)


def with_a_dead_path(bridge: Plugins, pod: Pod) -> Answer:
    return bridge.try_delete(pod, netns="/proc/1/no/such/ns/net")


def after_the_netns_was_deleted(bridge: Plugins, pod: Pod) -> Answer:
    path = pod.path
    pod.close()
    return bridge.try_delete(pod, netns=path)


def after_the_link_was_deleted(bridge: Plugins, pod: Pod) -> Answer:
    pod.run("ip", "link", "delete", "eth0")
    return bridge.try_delete(pod)


def after_the_bridge_was_deleted(bridge: Plugins, pod: Pod) -> Answer:
    bridge.host.run("ip", "link", "delete", "br0")
    return bridge.try_delete(pod)


def after_the_ruleset_was_flushed(bridge: Plugins, pod: Pod) -> Answer:
    bridge.host.run("nft", "flush", "ruleset")
    return bridge.try_delete(pod)


def after_the_pods_address_was_changed(bridge: Plugins, pod: Pod) -> Answer:
    result = bridge.results[pod.name, "eth0"]
    moved = {**result, "ips": [{"address": "10.1.0.99/24", "interface": 2}]}
    return bridge.call("DEL", pod, prevResult=moved)


WAYS = (
    as_usual,
    without_netns,
    without_prev_result,
    without_either,
    without_cni_args,
    with_a_garbage_configuration,
    with_another_bridge,
    with_a_dead_path,
    after_the_netns_was_deleted,
    after_the_link_was_deleted,
    after_the_bridge_was_deleted,
    after_the_ruleset_was_flushed,
    after_the_pods_address_was_changed,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_del_removes_everything(way: Callable[[Plugins, Pod], Answer], host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True))
    bridge.add(pod)
    answer = way(bridge, pod)
    assert (answer.exit_code, answer.stdout) == (0, ""), answer
    assert leftovers(host, links=["br0"]) == []
    if pod.name in host.pods:
        assert "eth0" not in pod.run("ip", "link").stdout


def test_del_again_is_no_error_and_del_of_what_never_was_neither(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, bin_dir, bridge_config(ipMasq=True, macspoofchk=True))
    bridge.delete(pod)
    bridge.add(pod)
    bridge.delete(pod)
    bridge.delete(pod)
    bridge.delete(pod.name)
    assert leftovers(host, links=["br0"]) == []


def test_del_of_one_network_leaves_another_ones_interface_of_the_same_name(host: Namespace, bin_dir: Path) -> None:
    """A runtime calls DEL of a network whose ADD failed because the name was taken."""
    pod = host.add_pod("a")
    one = Plugins(host, bin_dir, bridge_config(ipMasq=True, macspoofchk=True))
    one.add(pod)
    before = snapshot(host), snapshot(pod)
    two = Plugins(host, bin_dir, bridge_config(name="net2", ipMasq=True, macspoofchk=True))
    with connected(pod, host, GATEWAY_V4) as ends:
        assert two.try_add(pod).code == 101
        two.delete(pod)
        two.delete(pod, prevResult=one.results["a", "eth0"])
        assert talk(*ends)
    assert (snapshot(host), snapshot(pod)) == before
    one.check(pod)


def test_del_leaves_other_pods_as_they_are(host: Namespace, bin_dir: Path) -> None:
    stays, goes = host.add_pod("stays"), host.add_pod("goes")
    bridge = Plugins(host, bin_dir, bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True))
    bridge.add(stays)
    before = snapshot(host), snapshot(stays)
    bridge.add(goes)
    with connected(stays, host, GATEWAY_V4) as ends:
        bridge.delete(goes)
        assert talk(*ends)
    assert (snapshot(host), snapshot(stays)) == before
    bridge.check(stays)


def test_del_frees_the_address_for_the_next_pod_with_its_rules(host: Namespace, bin_dir: Path) -> None:
    """An address whose DEL never came (its elements are still there) is taken over by its next pod."""
    one, two = host.add_pod("one"), host.add_pod("two")
    fixed = {"type": "static", "addresses": [{"address": "10.1.0.9/24"}]}
    bridge = Plugins(host, bin_dir, bridge_config(ipam=fixed, ipMasq=True))
    bridge.add(one)
    one.close()
    bridge.add(two)
    ruleset = host.run("nft", "list", "ruleset").stdout
    assert "net/two/eth0" in ruleset
    assert "net/one/eth0" not in ruleset
    bridge.delete("one")
    bridge.check(two)
    bridge.delete(two)
    assert leftovers(host, links=["br0"]) == []
