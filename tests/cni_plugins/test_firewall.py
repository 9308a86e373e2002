"""What the firewall plugin decides, without a kernel: the configuration, the elements, the text of `--explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import firewall, firewall_table, skel
from cni_plugins.errors import CniError
from cni_plugins.firewall import FirewallConfig, parse
from cni_plugins.protocol import Call, Config
from cni_plugins.results import parse_result

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PREV: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "br0"}, {"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
    "ips": [{"address": "10.1.0.2/24", "interface": 2}, {"address": "fd01::2/64", "interface": 2}],
}


def config(prev: dict[str, Any] | None = PREV, **body: Any) -> Config:
    return Config("1.1.0", "net", "firewall", body, None if prev is None else parse_result(prev))


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        ({}, "open"),
        ({"backend": ""}, "open"),  # podman writes that
        ({"backend": "iptables", "ingressPolicy": ""}, "open"),
        ({"ingressPolicy": "same-bridge", "firewalldZone": "public"}, "same-bridge"),
        ({"ingressPolicy": "isolated", "iptablesAdminChainName": "MINE"}, "isolated"),
    ],
)
def test_the_policy_is_read_and_keys_of_the_reference_are_accepted(body: dict[str, Any], policy: str) -> None:
    assert parse(config(**body)) == FirewallConfig(policy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"backend": "firewalld"}, 2, "firewall-cmd --permanent --zone=trusted"),
        ({"backend": "pf"}, 7, "backend must be one of nftables, iptables, firewalld"),
        ({"ingressPolicy": "closed"}, 7, "ingressPolicy must be one of open, same-bridge, isolated"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_what_to_do(body: dict[str, Any], code: int, words: str) -> None:
    with pytest.raises(CniError) as caught:
        parse(config(**body))
    assert (caught.value.code, words in str(caught.value)) == (code, True), caught.value


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
@pytest.mark.parametrize("interfaces", [[], PREV["interfaces"][2:], PREV["interfaces"][1:]])
def test_a_policy_needs_a_bridge_and_a_link(policy: str, interfaces: list[dict[str, Any]]) -> None:
    call = Call("ADD", config({**PREV, "interfaces": interfaces}, ingressPolicy=policy), "c1", "eth0")
    with pytest.raises(CniError, match="names no bridge with a link to the pod") as caught:
        firewall.decide(call)
    assert caught.value.code == 7


@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_without_prev_result_there_is_nothing_to_chain_to(policy: str) -> None:
    with pytest.raises(CniError, match="must be a chained plugin") as caught:
        firewall.decide(Call("ADD", config(None, ingressPolicy=policy), "c1", "eth0"))
    assert caught.value.code == 7


def test_the_tables_that_del_asks_for_first_are_ours() -> None:
    assert tuple((t.family, t.name) for t in (firewall_table.ISOLATION, firewall_table.FORWARD)) == firewall._TABLES


@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_explain_prints_the_script(policy: str) -> None:
    body = {"cniVersion": "1.1.0", "name": "net", "type": "firewall", "prevResult": PREV, "ingressPolicy": policy}
    found = skel.explain(firewall.PLUGIN, {}, json.dumps(body).encode())
    assert found.exit_code == 0
    assert found.stdout.decode() == (GOLDEN / f"firewall-{policy}.txt").read_text()
