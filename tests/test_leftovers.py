"""leftovers() sees each kind of thing that a plugin may leave, and nothing on a host that had no plugin."""

from __future__ import annotations

import pytest

from namespaces import Namespace
from tests.leftovers import leftovers

NFT_TABLE = """
table inet netloom_example {
    set pods { type ipv4_addr; elements = { 10.1.0.2 comment "net/pod/eth0" } }
    map ports { type inet_service : ipv4_addr; elements = { 80 : 10.1.0.2 } }
}
"""

# What is left, made by a shell on the host, and a word of each line that tells it.
THINGS = {
    "address": ("mkdir -p /var/lib/cni/networks/n && printf pod >/var/lib/cni/networks/n/10.1.0.2", ["address n/10.1"]),
    "state": ("mkdir /run/netloom && echo >/run/netloom/pod.json", ["file /run/netloom/pod.json"]),
    "result": ("mkdir -p /var/lib/cni/results && echo >/var/lib/cni/results/n-pod-eth0", ["results/n-pod-eth0"]),
    "link": ("ip link add stray type bridge", ["bridge stray"]),
    "qdisc": ("tc qdisc add dev lo root tbf rate 1mbit burst 10kb latency 1ms", ["qdisc tbf on lo"]),
    "rule": ("ip rule add from 10.1.0.2 table 100", ["ip -4 rule"]),
    "rule6": ("ip -6 rule add from fd01::2 table 100", ["ip -6 rule"]),
    "nft": (f"nft -f - <<'END'\n{NFT_TABLE}\nEND", ["netloom_example pods", "netloom_example ports", "nft table inet"]),
    "chain": ("iptables -t nat -N CNI-DN-0123456789abcdef0123", ["nft chain ip nat CNI-DN-0123456789abcdef0123"]),
}


@pytest.mark.parametrize("thing", THINGS)
def test_each_kind_of_thing_left_is_told(host: Namespace, thing: str) -> None:
    command, words = THINGS[thing]
    assert leftovers(host) == []
    host.run("sh", "-c", command)
    lines = leftovers(host)
    assert len(lines) == len(words)
    for word in words:
        assert any(word in line for line in lines), lines


def test_what_stays_by_design_is_not_told(host: Namespace) -> None:
    folder = "/var/lib/cni/networks/n"
    host.run("sh", "-c", f"mkdir -p {folder} && touch {folder}/lock {folder}/last_reserved_ip.0")
    host.run("sh", "-c", "mkdir /run/netloom && touch /run/netloom/agent.sock")
    host.run("ip", "link", "add", "netloom0", "type", "bridge")
    host.run("nft", "add", "table", "inet", "of_somebody_else")
    assert leftovers(host, links=["netloom0"]) == []
