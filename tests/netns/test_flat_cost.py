"""What a pod costs does not depend on how many there are: no rule, no message and no step more with 300 residents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import masquerade, portmap, skel, spoofcheck, tables
from cni_plugins.owner import Owner
from cni_plugins.results import IPConfig
from ipam.store import opened, owner_content
from namespaces import Namespace, Pod
from tests import forked
from tests.bridges import DUAL, bridge_config

RESIDENTS = 300
MAPPINGS = 1000
BRIDGE = bridge_config(ipam=DUAL, ipMasq=True, macspoofchk=True)
PORTMAP = {"cniVersion": "1.1.0", "name": "net", "type": "portmap"}


def fill(host: Namespace, pod: Pod) -> None:
    """Residents as their ADDs leave them, without their links: elements, reservations, port mappings."""
    per_pod = 4

    def residents() -> None:
        with tables.open_nft() as nft, opened("/var/lib/cni/networks/net", create=True) as store:
            assert store is not None
            for number in range(RESIDENTS):
                owner = Owner("net", f"resident-{number}", "eth0")
                v4 = ip_interface(f"10.1.0.{100 + number}/24" if number < 150 else f"10.1.1.{number - 150}/24")
                ips = [IPConfig(v4), IPConfig(ip_interface(f"fd01::1:{number:x}/64"))]
                tables.ensure(nft, masquerade.TABLE, masquerade.elements(owner, ips), take_over=False)
                ports = spoofcheck.elements(owner, f"veth{number}", f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
                tables.ensure(nft, spoofcheck.TABLE, ports, take_over=False)
                for ip in ips:
                    number_on_line = int(ip.address.ip) + (0xFFFF << 32 if ip.address.version == 4 else 0)
                    store.reserve(number_on_line, owner_content(owner.container_id, owner.ifname))
        for number in range(0, MAPPINGS, per_pod):
            ports_of_pod = [
                {"hostPort": 20000 + number + i, "containerPort": 80 + i, "protocol": "tcp"} for i in range(per_pod)
            ]
            prev = {"interfaces": [{"name": "eth0", "sandbox": pod.path}], "ips": [{"address": "10.1.0.100/24"}]}
            body = {**PORTMAP, "prevResult": prev, "runtimeConfig": {"portMappings": ports_of_pod}}
            done = skel.answer(portmap.PLUGIN, environ("ADD", f"mapped-{number}", pod.path), json.dumps(body).encode())
            assert done.exit_code == 0, done

    forked.in_child(host, residents)


def environ(verb: str, container: str, netns: str, bin_dir: Path | str = "/none") -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(bin_dir),
    }


def costs(host: Namespace, pod: Pod, bin_dir: Path, port: int) -> dict[str, tuple[int, int, int]]:
    """Messages, datagrams and steps of each verb of both plugins for one more pod."""
    found = {}
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}}
    prev: Mapping[str, Any] = {}
    for plugin, verb in (
        ("bridge", "ADD"),
        ("portmap", "ADD"),
        ("bridge", "CHECK"),
        ("portmap", "CHECK"),
        ("portmap", "DEL"),
        ("bridge", "DEL"),
    ):
        body = {**(BRIDGE if plugin == "bridge" else {**PORTMAP, **ports})}
        if prev:
            body["prevResult"] = prev
        done = forked.call(host, plugin, environ(verb, pod.name, pod.path, bin_dir), json.dumps(body).encode())
        assert done.answer is not None
        assert done.answer.exit_code == 0, done
        if verb == "ADD" and plugin == "bridge":
            prev = json.loads(done.answer.stdout)
        found[f"{plugin} {verb}"] = (done.messages, done.datagrams, done.steps)
    return found


def ruleset(host: Namespace) -> Counter[str]:
    """How many objects of each kind nftables holds; elements counted one by one."""
    found: Counter[str] = Counter()
    for item in json.loads(host.run("nft", "--json", "list", "ruleset").stdout)["nftables"]:
        for kind, thing in item.items():
            found[kind] += 1
            found["element"] += len(thing.get("elem", ()))
    return found


@pytest.mark.one_mode
def test_residents_add_elements_and_no_rule_and_the_next_pod_costs_the_same(host: Namespace, bin_dir: Path) -> None:
    first, second, third = (host.add_pod(name) for name in ("first", "second", "third"))
    answer = forked.call(host, "bridge", environ("ADD", "first", first.path, bin_dir), json.dumps(BRIDGE).encode())
    assert answer.answer is not None
    prev = json.loads(answer.answer.stdout)
    ports = {"portMappings": [{"hostPort": 9000, "containerPort": 80, "protocol": "tcp"}]}
    mapped = json.dumps({**PORTMAP, "prevResult": prev, "runtimeConfig": ports}).encode()
    forked.call(host, "portmap", environ("ADD", "first", first.path, bin_dir), mapped)
    rules_before = ruleset(host)
    before = costs(host, second, bin_dir, 9001)
    fill(host, first)
    rules_after = ruleset(host)
    assert rules_after["element"] - rules_before["element"] >= 6 * RESIDENTS + 2 * MAPPINGS
    for kind in ("table", "chain", "rule", "set", "map"):
        assert rules_after[kind] == rules_before[kind], kind
    assert costs(host, third, bin_dir, 9002) == before
