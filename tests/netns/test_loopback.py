"""The loopback plugin on a real kernel, beside the reference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from namespaces import Namespace
from tests.plugin import PluginError, run_plugin
from tests.wiring import link_of

CONFIG = {"cniVersion": "0.3.1", "name": "cni-loopback"}  # as containerd has it built in
PREV = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a"}],
    "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.1.0.1"]},
}


def loopback(host: Namespace, verb: str, pod: Any = None, **more: Any) -> dict[str, Any]:
    config = {**CONFIG, **more.pop("config", {})}
    return run_plugin(host, "loopback", verb, config, pod, ifname="lo", **more)


def test_add_brings_lo_up_and_tells_its_addresses(host: Namespace) -> None:
    pod = host.add_pod("a")
    result = loopback(host, "ADD", pod, config={"cniVersion": "1.0.0"})
    assert result["interfaces"] == [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.path}]
    assert result["ips"] == [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}]
    assert "UP" in link_of(pod, "lo")["flags"]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_the_result_is_the_references(version: str, host: Namespace) -> None:
    pod = host.add_pod("a")
    theirs = loopback(host, "ADD", pod, config={"cniVersion": version}, reference=True)
    ours = loopback(host, "ADD", pod, config={"cniVersion": version})
    for ip in ours["ips"]:  # the reference leaves out what versions below 1.0 demand (CNI SPEC 0.4.0, Result)
        assert (ip.pop("version", None) is None) == (version == "1.0.0")
    assert json.dumps(ours) == json.dumps(theirs)


def test_lo_without_ipv6_has_one_address(host: Namespace) -> None:
    pod = host.add_pod("a")
    pod.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    assert [ip["address"] for ip in loopback(host, "ADD", pod)["ips"]] == ["127.0.0.1/8"]


def test_a_previous_result_passes_through(host: Namespace) -> None:
    pod = host.add_pod("a")
    assert loopback(host, "ADD", pod, config={"cniVersion": "1.1.0", "prevResult": PREV}) == PREV
    assert "UP" in link_of(pod, "lo")["flags"]


def test_add_refuses_a_foreign_address_on_lo_and_leaves_lo_as_it_was(host: Namespace) -> None:
    pod = host.add_pod("a")
    pod.run("ip", "address", "add", "10.1.0.2/24", "dev", "lo")
    with pytest.raises(PluginError, match=r"lo in the pod has the address 10\.1\.0\.2/24") as caught:
        loopback(host, "ADD", pod)
    assert caught.value.code == 7
    assert "UP" not in link_of(pod, "lo")["flags"]


def test_check_sees_lo_go_down(host: Namespace) -> None:
    pod = host.add_pod("a")
    config = {"cniVersion": "1.1.0", "prevResult": loopback(host, "ADD", pod, config={"cniVersion": "1.1.0"})}
    assert loopback(host, "CHECK", pod, config=config) == {}
    pod.run("ip", "link", "set", "lo", "down")
    with pytest.raises(PluginError, match="lo is down in the pod"):
        loopback(host, "CHECK", pod, config=config)


def test_del_takes_lo_down_twice(host: Namespace) -> None:
    pod = host.add_pod("a")
    loopback(host, "ADD", pod)
    for _ in range(2):
        loopback(host, "DEL", pod)
        assert "UP" not in link_of(pod, "lo")["flags"]


@pytest.mark.parametrize("netns", ["", "/run/netns/gone"])
def test_del_succeeds_when_netns_is_gone(netns: str, host: Namespace) -> None:
    assert loopback(host, "DEL", netns=netns) == {}


def test_gc_and_status_have_nothing_to_say(host: Namespace) -> None:
    assert loopback(host, "GC", config={"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}) == {}
    assert loopback(host, "STATUS", config={"cniVersion": "1.1.0"}) == {}
