"""What `--explain` prints is what a plugin does: its text, loaded by nft(8), gives the same ruleset as our messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_plugins import firewall_table, masquerade, portmap_table, spoofcheck, tables
from cni_plugins.nft import Element, Table, explain
from cni_plugins.owner import Owner
from cni_plugins.portmap_config import Condition, Conditions, Mapping, PortmapConfig
from cni_plugins.results import IPConfig
from namespaces import Namespace

pytestmark = pytest.mark.one_mode
OWNER = Owner("net", "c1", "eth0")
ADDRESSES = (ip_interface("10.1.0.2/24"), ip_interface("fd01::2/64"))
Part = tuple[Table, tuple[Element, ...]]


def ruleset(host: Namespace) -> str:
    """All of nftables as JSON, without what differs by itself: handles, and the order of elements."""

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: plain(inner, name) for name, inner in value.items() if name not in ("handle", "metainfo")}
        if isinstance(value, list):
            entries = [plain(entry) for entry in value]
            return sorted(entries, key=json.dumps) if key == "elem" else entries
        return value

    return json.dumps(plain(json.loads(host.run("nft", "-j", "list", "ruleset").stdout)), indent=1)


def by_messages(host: Namespace, parts: Sequence[Part]) -> str:
    with host.inside(), tables.open_nft() as socket:
        for table, elements in parts:
            tables.ensure(socket, table, elements, take_over=True)
            assert tables.missing(socket, table, elements) is None
    return ruleset(host)


def by_text(host: Namespace, parts: Sequence[Part]) -> str:
    host.run("nft", "flush", "ruleset")
    host.run("nft", "-f", "-", input="".join(explain(table, elements) for table, elements in parts))
    with host.inside(), tables.open_nft() as socket:
        for table, elements in parts:
            assert tables.missing(socket, table, elements) is None
    return ruleset(host)


def parts_of(plan: portmap_table.PortPlan) -> list[Part]:
    main: Part = (portmap_table.TABLE, (*plan.elements, portmap_table.localnet("br0")))
    return [main] if plan.conditional_table is None else [main, (plan.conditional_table, plan.conditional)]


CONDITIONS = Conditions(
    (
        Condition("source", ip_network("192.0.2.0/25"), invert=True),
        Condition("destination", ip_network("10.0.0.0/9")),
        Condition("in-interface", "eth1", invert=True),
    ),
    (Condition("source", ip_network("2001:db8::/33")), Condition("in-interface", "a-15-byte-name0")),
)
MAPPINGS = (
    Mapping(8080, 80, "tcp", None, (4, 6)),
    Mapping(53, 53, "udp", ip_interface("127.0.0.1").ip, (4,)),
    Mapping(99, 9, "sctp", ip_interface("2001:db8::1").ip, (6,)),
)
KNOWN: dict[str, list[Part]] = {
    "masquerade": [(masquerade.TABLE, masquerade.elements(OWNER, [IPConfig(a) for a in ADDRESSES]))],
    "spoofcheck": [(spoofcheck.TABLE, spoofcheck.elements(OWNER, "veth0", "02:00:00:00:00:01"))],
    "portmap": parts_of(
        portmap_table.plan(
            OWNER, PortmapConfig(snat=True, masq_all=False, conditions=Conditions(), mappings=MAPPINGS), ADDRESSES
        )
    ),
    "portmap with conditions": parts_of(
        portmap_table.plan(
            OWNER, PortmapConfig(snat=True, masq_all=True, conditions=CONDITIONS, mappings=MAPPINGS), ADDRESSES
        )
    ),
    "firewall same-bridge": list(firewall_table.plan(OWNER, "br0", "veth0", ADDRESSES, isolated=False).parts),
    "firewall isolated": list(firewall_table.plan(OWNER, "br0", "veth0", ADDRESSES, isolated=True).parts),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_text_gives_the_same_ruleset_as_the_messages(name: str, host: Namespace) -> None:
    ours = by_messages(host, KNOWN[name])
    assert '"elem"' in ours
    assert ours == by_text(host, KNOWN[name])


PORTS = st.integers(1, 65535)
HOST_IPS = st.one_of(st.none(), st.ip_addresses().filter(lambda a: not a.is_unspecified))
CONDITION = st.builds(
    Condition, st.sampled_from(["source", "destination"]), st.integers(1, 32).map(lambda n: ip_network((0, n))),
    st.booleans(),
)  # fmt: skip


@st.composite
def mapping_lists(draw: st.DrawFn) -> tuple[Mapping, ...]:
    found: list[Mapping] = []
    for _ in range(draw(st.integers(1, 4))):
        at = draw(HOST_IPS)
        protocol = draw(st.sampled_from(["tcp", "udp", "sctp"]))
        families = (4, 6) if at is None else (at.version,)
        mapping = Mapping(draw(PORTS), draw(PORTS), protocol, at, families)  # type: ignore[arg-type]
        if not any(mapping.conflicts_with(other) for other in found):
            found.append(mapping)
    return tuple(found)


@given(mappings=mapping_lists(), conditions=st.lists(CONDITION, max_size=3), snat=st.booleans(), masq_all=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ports_under_any_conditions_read_the_same_both_ways(
    *, mappings: tuple[Mapping, ...], conditions: list[Condition], snat: bool, masq_all: bool, host: Namespace
) -> None:
    config = PortmapConfig(snat=snat, masq_all=masq_all, conditions=Conditions(tuple(conditions)), mappings=mappings)
    parts = parts_of(portmap_table.plan(OWNER, config, ADDRESSES))
    host.run("nft", "flush", "ruleset")
    assert by_messages(host, parts) == by_text(host, parts)
