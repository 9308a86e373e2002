"""The verbs of portmap: what ADD, CHECK, DEL, GC and STATUS promise to a runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace
from tests.bridges import bridge_config
from tests.calls import REFERENCE, Plugins
from tests.ports import Ports, mapping, netloom_tables, runtime
from tests.snapshot import snapshot as whole_snapshot

MAPPINGS = (mapping(8080, 80), mapping(5353, 53, "udp", "127.0.0.1"))
CONDITIONS: dict[str, Any] = {"conditionsV4": ["!", "-s", "10.9.0.0/16"]}


def snapshot(host: Namespace) -> list[str]:
    """Without the lock file: it stays, as it belongs to the host."""
    return [line for line in whole_snapshot(host) if "portmap.lock" not in line]


def localnet(host: Namespace, link: str = "br0") -> str:
    return host.run("sysctl", "-n", f"net.ipv4.conf.{link}.route_localnet").stdout.strip()


def test_the_result_is_the_one_that_came(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    came = ports.wire(pod)
    assert ports.publish(pod, *MAPPINGS) == came
    assert ports.portmap.add(pod, prevResult=came) == came


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_without_prev_result_it_is_no_chained_plugin(verb: str, host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    answer = Ports(host, bin_dir).portmap.call(verb, pod, runtimeConfig=runtime(*MAPPINGS))
    assert answer.code == 7, answer


@pytest.mark.parametrize("conditions", [{}, CONDITIONS], ids=["plain", "conditions"])
@pytest.mark.parametrize("told", ["all", "no prevResult", "no mappings, no prevResult", "bad mappings", "no namespace"])
def test_del_leaves_nothing_whatever_it_is_told(
    told: str, conditions: dict[str, Any], host: Namespace, bin_dir: Path
) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir, **conditions)
    ports.wire(pod)
    before = snapshot(host)
    ports.publish(pod, *MAPPINGS)
    assert snapshot(host) != before
    ways: dict[str, dict[str, Any]] = {
        "all": {},
        "no prevResult": {"prevResult": None},
        "no mappings, no prevResult": {"prevResult": None, "runtimeConfig": None},
        "bad mappings": {"runtimeConfig": runtime({"hostPort": "x"})},
        "no namespace": {"netns": "", "prevResult": None},
    }
    more = ways[told]
    ports.unpublish(pod, **more)
    assert snapshot(host) == before
    ports.unpublish(pod, **more)
    ports.unpublish("a", **more)
    assert snapshot(host) == before


def test_del_with_prev_result_and_no_mappings_trusts_the_runtime(host: Namespace, bin_dir: Path) -> None:
    """libcni keeps both in one cache: no mappings means that ADD had none."""
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    ports.publish(pod, *MAPPINGS)
    before = snapshot(host)
    ports.portmap.delete(pod)
    assert snapshot(host) == before


@pytest.mark.parametrize(
    ("at_add", "at_del"), [(CONDITIONS, {}), ({}, CONDITIONS), (CONDITIONS, {"conditionsV4": ["-i", "eth0"]})]
)
def test_del_finds_the_ports_after_the_conditions_were_changed(
    at_add: dict[str, Any], at_del: dict[str, Any], host: Namespace, bin_dir: Path
) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    ports.publish(pod, *MAPPINGS, **at_add)
    ports.unpublish(pod, **at_del)
    assert netloom_tables(host) == []


def test_the_ways_of_containerd(host: Namespace, bin_dir: Path) -> None:
    """Capital letters; the second and third DEL without namespace and prevResult."""
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    ports.wire(pod)
    before = snapshot(host)
    entries = [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]
    keys: dict[str, Any] = {"runtimeConfig": {"portMappings": entries}}
    ports.portmap.add(pod, prevResult=ports.bridge.results["a", "eth0"], **keys)
    ports.portmap.check(pod, **keys)
    ports.portmap.delete(pod, **keys)
    for _ in range(2):
        ports.portmap.delete(pod, **keys, netns="", prevResult=None)
    assert snapshot(host) == before


def test_route_localnet_is_switched_on_where_the_pod_is_and_taken_back_at_the_end(
    host: Namespace, bin_dir: Path
) -> None:
    one, two = host.add_pod("a"), host.add_pod("b")
    ports = Ports(host, bin_dir)
    ports.wire(one)
    ports.wire(two)
    assert localnet(host) == "0"
    ports.publish(one, mapping(80, 80))
    ports.publish(two, mapping(81, 80, host_ip="127.0.0.1"))
    assert localnet(host) == "1"
    ports.unpublish(one)
    assert localnet(host) == "1"
    ports.unpublish(two)
    assert localnet(host) == "0"


def test_route_localnet_that_was_on_stays_on(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    ports.wire(pod)
    host.run("sysctl", "-qw", "net.ipv4.conf.br0.route_localnet=1")
    ports.publish(pod, mapping(80, 80))
    ports.unpublish(pod)
    assert localnet(host) == "1"


def test_an_add_that_fails_midway_leaves_nothing(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir, **CONDITIONS)
    ports.wire(pod)
    before = snapshot(host)
    host.run("mount", "--bind", "/proc/sys", "/proc/sys")
    host.run("mount", "-o", "remount,ro,bind", "/proc/sys")
    answer = ports.try_publish(pod, *MAPPINGS)
    assert (answer.code, "route_localnet" in answer.words) == (5, True), answer
    host.run("umount", "/proc/sys")
    assert snapshot(host) == before


def test_a_bridge_that_is_gone_is_no_obstacle_to_del(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    ports.publish(pod, *MAPPINGS)
    host.run("ip", "link", "del", "br0")
    ports.unpublish(pod)
    assert netloom_tables(host) == []


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("delete table inet netloom_portmap", "nft table inet netloom_portmap is missing"),
        ("flush map inet netloom_portmap ports4", "of netloom_portmap ports4 is missing"),
        ("flush set inet netloom_portmap served4", "of netloom_portmap served4 is missing"),
        ("flush chain inet netloom_portmap guard", "the rule 'nobody outside reaches loopback' is missing"),
        ("flush chain inet netloom_portmap prerouting", "the rule 'to this host' is missing"),
    ],
)
def test_check_names_what_is_missing(harm: str, words: str, host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    ports.publish(pod, *MAPPINGS)
    assert ports.check(pod).code == 0
    host.run("nft", harm)
    answer = ports.check(pod)
    assert (answer.code, words in answer.words) == (102, True), answer


def test_check_sees_a_mapping_that_leads_elsewhere_and_route_localnet(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir)
    ports.publish(pod, mapping(8080, 80))
    host.run("sysctl", "-qw", "net.ipv4.conf.br0.route_localnet=0")
    assert "route_localnet is 0" in ports.check(pod).words
    host.run("sysctl", "-qw", "net.ipv4.conf.br0.route_localnet=1")
    assert ports.check(pod).code == 0
    for verb, value in (("delete", "10.1.0.2 . 80"), ("add", "10.1.0.2 . 81")):
        element = f'tcp . 8080 comment "net/a/eth0" : {value}'
        host.run("nft", f"{verb} element inet netloom_portmap ports4 {{ {element} }}")
    assert "leads elsewhere" in ports.check(pod).words


def test_gc_makes_rules_anew_and_keeps_the_elements(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir, **CONDITIONS)
    ports.publish(pod, *MAPPINGS)
    before = snapshot(host)
    for name in netloom_tables(host):
        host.run("nft", f"flush chain {name.removeprefix('table ')} prerouting")
    assert ports.check(pod).code == 102
    ports.gc(pod)
    assert snapshot(host) == before


def test_gc_without_anything_to_do_succeeds(host: Namespace, bin_dir: Path) -> None:
    before = snapshot(host)
    Ports(host, bin_dir).gc()
    assert snapshot(host) == before


def test_status_says_that_an_add_can_be_served(host: Namespace, bin_dir: Path) -> None:
    before = snapshot(host)
    assert Ports(host, bin_dir).portmap.status().code == 0
    assert Ports(host, bin_dir, conditionsV4=["-p", "tcp"]).portmap.status().code == 2
    assert snapshot(host) == before


@pytest.mark.one_mode
def test_status_without_rights_says_what_to_do(host: Namespace, bin_dir: Path) -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "portmap"}
    env = {"CNI_COMMAND": "STATUS", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    program = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", str(bin_dir / "portmap"))
    done = host.run(*program, input=json.dumps(config), env=env, check=False)
    answer = json.loads(done.stdout)
    assert (answer["code"], "run as root" in answer["details"]) == (50, True), answer


def test_a_mapping_without_effect_is_told_and_refuses_nobody(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    ports = Ports(host, bin_dir, bridge={"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}})
    ports.wire(pod)
    answer = ports.try_publish(pod, mapping(80, 80, host_ip="2001:db8::1"))
    assert (answer.code, "host port 2001:db8::1 80/tcp has no effect" in answer.stderr) == (0, True), answer
    assert netloom_tables(host) == []
    assert ports.check(pod).code == 0
    ports.unpublish(pod)


@pytest.mark.skipif(not (REFERENCE / "portmap").exists(), reason="needs containernetworking-plugins")
def test_check_passes_for_a_pod_that_the_reference_wired(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, REFERENCE, bridge_config(cniVersion="1.0.0"))
    theirs = Plugins(host, REFERENCE, {"cniVersion": "1.0.0", "name": "net", "type": "portmap"})
    keys: dict[str, Any] = {"runtimeConfig": runtime(mapping(8080, 80))}
    theirs.add(pod, prevResult=bridge.add(pod), **keys)
    ours = theirs.of(bin_dir)
    ours.check(pod, **keys)
    ours.delete(pod, **keys)
    theirs.delete(pod, **keys)
    assert ours.try_check(pod, **keys).code == 102
