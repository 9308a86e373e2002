"""Topology files: what is read, and what is refused with which words."""

import pytest

from topology import Topology, TopologyError, shipped_names

TWO_HOSTS = """\
# a---b
[hosts.a]
[hosts.b]
[[links]]
ends = [
    { host = "a", name = "eth0", addresses = ["192.0.2.1/24"] },
    { host = "b", name = "eth0", addresses = ["192.0.2.2/24"] },
]
"""


def link(first: str = 'host = "a", name = "x"', second: str = 'host = "b", name = "x"', more: str = "") -> str:
    return f"[hosts.a]\n[hosts.b]\n[[links]]\nends = [{{ {first} }}, {{ {second} }}]\n{more}\n"


REFUSED = {
    "not TOML": ("[hosts", "Expected"),
    "no host": ("", "hosts: there is none"),
    "unknown top key": ("hots = 1", "hots: unknown key; there are: hosts, links"),
    "unknown host key": ("[hosts.a]\nadress = 1", "hosts.a.adress: unknown key"),
    "unknown link key": (link(more="mut = 1"), "links[0].mut: unknown key"),
    "unknown end key": (link('host = "a", name = "x", ip = 1'), "links[0].ends[0].ip: unknown key"),
    "unknown route key": ("[hosts.a]\nroutes = [{dst = 1}]", "hosts.a.routes[0].dst: unknown key"),
    "bad host name": ('[hosts."a/b"]', "hosts.a/b: not a name"),
    "host of wrong type": ("[hosts]\na = 1", "hosts.a: expected a table, not 1"),
    "dangling host": (link('host = "c", name = "x"'), "links[0].ends[0].host: there is no host 'c'"),
    "missing end name": (link('host = "a"'), "links[0].ends[0].name: missing"),
    "long link name": (link('host = "a", name = "sixteen-letters-"'), "links[0].ends[0].name"),
    "link named lo": (link('host = "a", name = "lo"'), "links[0].ends[0].name"),
    "one end": ('[hosts.a]\n[[links]]\nends = [{host = "a", name = "x"}]', "links[0].ends: a link has two, not 1"),
    "link name twice": (link('host = "a", name = "x"', 'host = "a", name = "x"'), "x of host a is at links[0]"),
    "address twice": (
        link(
            'host = "a", name = "x", addresses = ["192.0.2.1/24"]',
            'host = "b", name = "x", addresses = ["192.0.2.1/24"]',
        ),
        "192.0.2.1 is at links[0].ends[0].addresses already",
    ),
    "small mtu": (link(more="mtu = 1279"), "links[0].mtu: 1279 is not within"),
    "mtu of wrong type": (link(more="mtu = true"), "links[0].mtu: expected a number, not True"),
    "address without prefix": ('[hosts.a]\nloopback = ["192.0.2.1"]', "hosts.a.loopback[0]: '192.0.2.1' lacks"),
    "bad address": ('[hosts.a]\nloopback = ["192.0.2.256/24"]', "hosts.a.loopback[0]: "),
    "bad route": ('[hosts.a]\nroutes = [{to = "192.0.2.1/24", via = "192.0.2.1"}]', "hosts.a.routes[0]: "),
    "route without via": ('[hosts.a]\nroutes = [{to = "192.0.2.0/24"}]', "hosts.a.routes[0].via: missing"),
    "route of two families": ('[hosts.a]\nroutes = [{to = "::/0", via = "192.0.2.1"}]', "are of two families"),
    "neighbour out of reach": (
        '[hosts.a]\nroutes = [{to = "0.0.0.0/0", via = "192.0.2.1"}]',
        "hosts.a.routes[0].via: 192.0.2.1 is on no link of a",
    ),
    "sysctl of the machine": (
        '[hosts.a]\nsysctls = {"kernel.hostname" = "x"}',
        "hosts.a.sysctls.kernel.hostname: only",
    ),
    "sysctl that climbs": ('[hosts.a]\nsysctls = {"net.ipv4/../../kernel/x" = 1}', "only net.*"),
    "sysctl of wrong type": ('[hosts.a]\nsysctls = {"net.ipv4.ip_forward" = true}', "expected a number or a string"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_file_and_key(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(TopologyError) as caught:
        Topology.parse(text, name="bad", file="some/bad.toml")
    assert str(caught.value).startswith("some/bad.toml: ")
    assert words in str(caught.value)


def test_an_unknown_topology_is_refused_with_those_there_are() -> None:
    with pytest.raises(TopologyError, match="no topology 'nodes'; there are: node, "):
        Topology.load("nodes")


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_topology_begins_with_its_drawing(name: str) -> None:
    topology = Topology.load(name)
    assert topology.drawing.isascii()
    assert "+--" in topology.drawing
    for host in topology.hosts:
        assert host.name in topology.drawing
        for address in host.loopback:
            assert str(address.ip) in topology.drawing
    for end in (end for wire in topology.links for end in wire.ends):
        assert end.name in topology.drawing


def test_what_is_read_is_a_value() -> None:
    one, other = (Topology.parse(TWO_HOSTS, name="x") for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one.drawing == " a---b"
    assert [host.name for host in one.hosts] == ["a", "b"]
    assert one.links[0].mtu == 1500
