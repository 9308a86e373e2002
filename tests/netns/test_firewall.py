"""The verbs of firewall: what ADD, CHECK, DEL, GC and STATUS promise to a runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from namespaces import Namespace, Pod
from tests import forked
from tests.bridges import DUAL, bridge_config
from tests.calls import REFERENCE, Plugins
from tests.snapshot import snapshot

POLICIES = pytest.mark.parametrize("policy", ["same-bridge", "isolated"])


class Guarded:
    """A bridge network with the firewall chained to it."""

    def __init__(self, host: Namespace, folder: Path, policy: str = "isolated", **bridge: object) -> None:
        self.bridge = Plugins(host, folder, bridge_config(ipam=DUAL, **bridge))
        name = self.bridge.config["name"]
        config = {"cniVersion": "1.1.0", "name": name, "type": "firewall", "ingressPolicy": policy}
        self.firewall = Plugins(host, folder, config)

    def add(self, pod: Pod) -> dict[str, Any]:
        return self.firewall.add(pod, prevResult=self.bridge.add(pod))


def firewall_tables(host: Namespace) -> list[str]:
    lines = host.run("nft", "list", "tables").stdout.splitlines()
    return sorted(line for line in lines if "netloom" in line)


def ruleset(host: Namespace) -> str:
    return host.run("nft", "list", "ruleset").stdout


@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_the_result_is_the_one_that_came(policy: str, host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    guarded = Guarded(host, bin_dir, policy)
    came = guarded.bridge.add(pod)
    assert guarded.firewall.add(pod, prevResult=came) == came


@POLICIES
@pytest.mark.parametrize("told", ["all", "no prevResult", "another policy", "bad policy", "no namespace"])
def test_del_leaves_nothing_whatever_it_is_told(told: str, policy: str, host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    guarded = Guarded(host, bin_dir, policy)
    came = guarded.bridge.add(pod)
    before = snapshot(host)
    guarded.firewall.add(pod, prevResult=came)
    assert snapshot(host) != before
    ways: dict[str, dict[str, Any]] = {
        "all": {},
        "no prevResult": {"prevResult": None},
        "another policy": {"ingressPolicy": "open"},
        "bad policy": {"ingressPolicy": "?", "prevResult": None},
        "no namespace": {"netns": "", "prevResult": None},
    }
    for _ in range(2):
        guarded.firewall.delete(pod, **ways[told])
        assert snapshot(host) == before


@POLICIES
def test_the_tables_go_with_the_last_pod_of_all_networks(policy: str, host: Namespace, bin_dir: Path) -> None:
    one = Guarded(host, bin_dir, policy, name="one")
    two = Guarded(host, bin_dir, policy, name="two", bridge="br1")
    a, b = host.add_pod("a"), host.add_pod("b")
    one.add(a)
    two.add(b)
    one.firewall.delete(a)
    two.firewall.check(b)
    assert '"br0"' in ruleset(host)  # bridges belong to networks: listed as long as a pod is there
    two.firewall.delete(b)
    assert firewall_tables(host) == []


@POLICIES
def test_pods_are_elements_and_rules_are_constant(policy: str, host: Namespace, bin_dir: Path) -> None:
    guarded = Guarded(host, bin_dir, policy)
    counts = []
    for number in range(3):
        guarded.add(host.add_pod(f"p{number}"))
        items = json.loads(host.run("nft", "--json", "list", "ruleset").stdout)["nftables"]
        counts.append(sum("rule" in item or "chain" in item for item in items))
    assert len(set(counts)) == 1


def test_every_verb_sends_the_same_messages_however_many_pods_there_are(host: Namespace, bin_dir: Path) -> None:
    guarded = Guarded(host, bin_dir)
    pod = host.add_pod("a")
    prev = guarded.bridge.add(pod)

    def costs() -> dict[str, tuple[int, int]]:
        found = {}
        for verb in ("ADD", "CHECK", "DEL"):
            env = {
                "CNI_COMMAND": verb, "CNI_CONTAINERID": pod.name, "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path,
            }  # fmt: skip
            body = json.dumps({**guarded.firewall.config, "prevResult": prev}).encode()
            done = forked.call(host, "firewall", env, body)
            assert done.answer is not None
            assert done.answer.exit_code == 0, done
            found[verb] = (done.messages, done.datagrams)
        return found

    resident = {
        **prev,
        "interfaces": [{"name": "br0"}, {"name": "vethx"}, {"name": "eth0", "sandbox": "/x"}],
        "ips": [],
    }
    other = host.add_pod("other")
    guarded.firewall.add(other, prevResult=resident)
    alone = costs()
    for number in range(40):
        resident["interfaces"][1] = {"name": f"veth{number}"}
        resident["ips"] = [{"address": f"10.1.0.{100 + number}/24", "interface": 2}]
        environ = {"CNI_CONTAINERID": f"r{number}"}
        assert guarded.firewall.call("ADD", other, environ=environ, prevResult=resident).code == 0
    assert costs() == alone


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("delete table inet netloom_firewall", "nft table inet netloom_firewall is missing"),
        ("delete table bridge netloom_isolation", "nft table bridge netloom_isolation is missing"),
        ("flush set inet netloom_firewall bridges", "netloom_firewall bridges is missing"),
        ("flush set inet netloom_firewall isolated6", "netloom_firewall isolated6 is missing"),
        ("flush chain inet netloom_firewall forward", "the rule 'back by the same bridge' is missing"),
        ("flush chain bridge netloom_isolation forward", "the rule 'hairpin: to itself' is missing"),
    ],
)
def test_check_names_what_is_missing(harm: str, words: str, host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    guarded = Guarded(host, bin_dir)
    guarded.add(pod)
    guarded.firewall.check(pod)
    host.run("nft", harm)
    answer = guarded.firewall.try_check(pod)
    assert (answer.code, words in answer.words) == (102, True), answer


@POLICIES
def test_gc_removes_dead_pods_of_this_network_alone_and_makes_rules_anew(
    policy: str, host: Namespace, bin_dir: Path
) -> None:
    one = Guarded(host, bin_dir, policy, name="one")
    two = Guarded(host, bin_dir, policy, name="two", bridge="br1")
    a, b, c = (host.add_pod(name) for name in "abc")
    one.add(a)
    one.add(b)
    two.add(c)
    host.run("nft", "flush chain inet netloom_firewall forward")
    answer = one.firewall.gc([a])
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert '"one/b/eth0"' not in ruleset(host).replace("comment ", "")
    one.firewall.check(a)
    two.firewall.check(c)
    one.firewall.gc([])
    two.firewall.gc([])
    assert firewall_tables(host) == []


@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_status_and_gc_of_an_idle_host_change_nothing(policy: str, host: Namespace, bin_dir: Path) -> None:
    guarded = Guarded(host, bin_dir, policy)
    before = snapshot(host)
    assert guarded.firewall.status().code == 0
    assert guarded.firewall.gc([]).code == 0
    assert snapshot(host) == before


@pytest.mark.parametrize("is_dropping", [False, True])
def test_a_foreign_chain_that_drops_pods_traffic_is_told(*, is_dropping: bool, host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    guarded = Guarded(host, bin_dir, "open")
    prev = guarded.bridge.add(pod)
    for family in ("ip", "ip6"):
        policy = "drop" if is_dropping else "accept"
        hook = f"{{ type filter hook forward priority 0; policy {policy}; }}"
        host.run("nft", f"add table {family} filter; add chain {family} filter FORWARD {hook}")
    answer = guarded.firewall.try_add(pod, prevResult=prev)
    told = (
        "firewall: net/a/eth0: the nft chain ip filter FORWARD and ip6 filter FORWARD drops pods' traffic that no rule"
        " of its own accepts: iptables -I FORWARD -i br0 -j ACCEPT; iptables -I FORWARD -o br0 -j ACCEPT\n"
    )
    assert answer.stderr == (told if is_dropping else "")


@pytest.mark.skipif(not (REFERENCE / "firewall").exists(), reason="needs containernetworking-plugins")
def test_check_passes_for_a_pod_that_the_reference_wired(host: Namespace, bin_dir: Path) -> None:
    pod = host.add_pod("a")
    bridge = Plugins(host, REFERENCE, bridge_config(cniVersion="1.0.0"))
    config = {"cniVersion": "1.0.0", "name": "net", "type": "firewall", "ingressPolicy": "same-bridge"}
    theirs = Plugins(host, REFERENCE, config)
    theirs.add(pod, prevResult=bridge.add(pod))
    ours = theirs.of(bin_dir)
    ours.check(pod)
    ours.delete(pod)
    host.run("nft", "flush", "ruleset")
    assert ours.try_check(pod).code == 102
