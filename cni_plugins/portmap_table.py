"""Host ports in nftables: one table for all networks with a constant number of rules; a mapping is a few elements.

`ports4`, `hostips4` (and 6) translate a host port to a pod's address and port. Masqueraded on the way to the pod are
those whose replies would miss the translation: the host's loopback, and the pod's own subnet, which is bridged
(`neighbours4`: source prefix and pod), if they asked for one of our ports (`served4`: pod, protocol, host port). A
mapping is an element of hashed sets alone, since the kernel removes one from a set of intervals by walking all of it.

`claims4` and `specifics4` are the ledger that makes the kernel refuse a port that is held: a mapping of any address
inserts (protocol, port) -> ANY_ADDRESS for itself alone; one of a single address inserts the shared mark (protocol,
port) -> SOME_ADDRESSES, and (address, protocol, port) in `specifics4` for itself. The kernel takes an equal mark again
and refuses another value, so the two kinds exclude each other as with bind(2). Nobody removes a mark along with its
mapping; portmap_ledger.py takes stock where one is in the way. `localnets` remembers on which links we switched on
route_localnet.

Conditions get a table of the same shape, with the conditions in its jump rules, for the translation alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from .nft import (
    CT_ORIGINAL_DPORT,
    IFNAME,
    IIFNAME,
    INET_PROTO,
    INET_SERVICE,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    IPV6_ADDR,
    IS_IPV4,
    IS_IPV6,
    L4PROTO,
    PROTOCOLS,
    TH_DPORT,
    TO_LOCAL,
    WAS_DNATED,
    Chain,
    Dnat,
    Element,
    Hook,
    In,
    Key,
    Masquerade,
    Match,
    Rule,
    Set,
    Table,
    Verdict,
    explain,
    ifname,
    prefix,
)
from .owner import Owner
from .portmap_config import Condition, Conditions, Mapping, PortmapConfig
from .results import IPAddress, IPInterface, IPNetwork

_RAW, _DSTNAT, _SRCNAT = -300, -100, 100  # linux/netfilter_ipv4.h: before conntrack, and the two NAT priorities
_LOOPBACK = IPv4Network("127.0.0.0/8")
_LOOPBACK6 = IPv6Network("::1/128")
_EVERYBODY: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}

NAME = "netloom_portmap"
SOME_ADDRESSES, ANY_ADDRESS = 1, 2  # of a type that nft(8) shows as a number
MARK_OWNER = "some addresses: see specifics"  # no tag: white space
LOCALNET_OWNER = "route_localnet was off"
SPECIFICS = {"claims4": "specifics4", "claims6": "specifics6"}
# Where another owner's element is replaced: the address is the new pod's, whoever had it before.
ADDRESS_SETS = ("neighbours4", "neighbours6", "served4", "served6")

_TRANSLATION = (
    Set("ports4", (INET_PROTO, INET_SERVICE), (IPV4_ADDR, INET_SERVICE)),
    Set("ports6", (INET_PROTO, INET_SERVICE), (IPV6_ADDR, INET_SERVICE)),
    Set("hostips4", (IPV4_ADDR, INET_PROTO, INET_SERVICE), (IPV4_ADDR, INET_SERVICE)),
    Set("hostips6", (IPV6_ADDR, INET_PROTO, INET_SERVICE), (IPV6_ADDR, INET_SERVICE)),
)
_TRANSLATING = {spec.name for spec in _TRANSLATION}
_HOSTPORTS = Chain(
    "hostports",
    rules=(
        # IPv6 has no route_localnet: translated, a connection to [::1] would hang instead of falling back to IPv4.
        Rule((prefix(IP6_DADDR, _LOOPBACK6), Verdict("return")), "IPv6 loopback cannot leave the host"),
        Rule((Dnat("ip", (IP_DADDR, L4PROTO, TH_DPORT), "hostips4"),), "host port of one address"),
        Rule((Dnat("ip6", (IP6_DADDR, L4PROTO, TH_DPORT), "hostips6"),), "host port of one address (v6)"),
        Rule((IS_IPV4, Dnat("ip", (L4PROTO, TH_DPORT), "ports4")), "host port of any address"),
        Rule((IS_IPV6, Dnat("ip6", (L4PROTO, TH_DPORT), "ports6")), "host port of any address (v6)"),
    ),
)


def _translating(jumps: tuple[Rule, ...]) -> tuple[Chain, ...]:
    """Only what is addressed to this host may be translated (GHSA-jv3w-x3r3-g6rm): the jumps say so."""
    return (
        _HOSTPORTS,
        Chain("prerouting", hook=Hook("nat", "prerouting", _DSTNAT), rules=jumps),
        Chain("output", hook=Hook("nat", "output", _DSTNAT), rules=jumps),
    )


def _served(protocol: str) -> tuple[Rule, Rule]:
    """One protocol's rules: nft(8) can read the original port only where the protocol is known. The port that was asked
    for tells our translation from others' to the same pod."""
    known = Match(L4PROTO, bytes([PROTOCOLS[protocol]]), protocol)
    v4, v6 = (IP_DADDR, L4PROTO, CT_ORIGINAL_DPORT), (IP6_DADDR, L4PROTO, CT_ORIGINAL_DPORT)
    return (
        Rule((known, In(v4, "served4"), Masquerade()), f"{protocol} by a host port"),
        Rule((known, In(v6, "served6"), Masquerade()), f"{protocol} by a host port (v6)"),
    )


def _guard(selector_words: str, match: Match) -> Rule:
    return Rule((ifname(IIFNAME, "lo", invert=True), match, Verdict("drop")), selector_words)


TABLE = Table(
    family="inet",
    name=NAME,
    sets=(
        *_TRANSLATION,
        Set("neighbours4", (IPV4_ADDR, IPV4_ADDR), interval=True),
        Set("neighbours6", (IPV6_ADDR, IPV6_ADDR), interval=True),
        Set("served4", (IPV4_ADDR, INET_PROTO, INET_SERVICE)),
        Set("served6", (IPV6_ADDR, INET_PROTO, INET_SERVICE)),
        Set("claims4", (INET_PROTO, INET_SERVICE), (INET_SERVICE,)),
        Set("claims6", (INET_PROTO, INET_SERVICE), (INET_SERVICE,)),
        Set("specifics4", (IPV4_ADDR, INET_PROTO, INET_SERVICE)),
        Set("specifics6", (IPV6_ADDR, INET_PROTO, INET_SERVICE)),
        Set("localnets", (IFNAME,), lasting=True),
    ),
    chains=(
        *_translating((Rule((TO_LOCAL, Verdict("jump", "hostports")), "to this host"),)),
        Chain("served", rules=tuple(rule for protocol in PROTOCOLS for rule in _served(protocol))),
        Chain(
            "postrouting",
            hook=Hook("nat", "postrouting", _SRCNAT),
            rules=(
                Rule((WAS_DNATED, prefix(IP_SADDR, _LOOPBACK), Verdict("goto", "served")), "from this host's loopback"),
                Rule(
                    (WAS_DNATED, In((IP_SADDR, IP_DADDR), "neighbours4"), Verdict("goto", "served")),
                    "replies must come back by this host",
                ),
                Rule(
                    (WAS_DNATED, In((IP6_SADDR, IP6_DADDR), "neighbours6"), Verdict("goto", "served")),
                    "replies must come back by this host (v6)",
                ),
            ),
        ),
        Chain(
            "guard",
            hook=Hook("filter", "prerouting", _RAW),
            rules=(
                # With route_localnet the kernel takes loopback addresses from the wire (CVE-2020-8558).
                _guard("nobody outside reaches loopback", prefix(IP_DADDR, _LOOPBACK)),
                _guard("nobody outside speaks as loopback", prefix(IP_SADDR, _LOOPBACK)),
            ),
        ),
    ),
)


def conditional_table(conditions: Conditions) -> Table:
    """The table for mappings under these conditions."""
    name = hashlib.sha256(conditions.text.encode()).hexdigest()[:8]
    jumps = (
        Rule((TO_LOCAL, *_matches(conditions.v4, IS_IPV4), Verdict("jump", "hostports")), "to this host"),
        Rule((TO_LOCAL, *_matches(conditions.v6, IS_IPV6), Verdict("jump", "hostports")), "to this host (v6)"),
    )
    return Table("inet", f"{NAME}_{name}", _TRANSLATION, _translating(jumps))


def conditional_tables(names: Iterable[str]) -> tuple[Table, ...]:
    """Those of all nft tables that hold conditional mappings, whatever the conditions: for sweeping."""
    return tuple(Table("inet", name, _TRANSLATION, _translating(())) for name in names if name.startswith(f"{NAME}_"))


def _matches(conditions: tuple[Condition, ...], family: Match) -> tuple[Match, ...]:
    """The conditions; those on addresses imply the family, others need it said."""
    found = [] if any(not isinstance(condition.value, str) for condition in conditions) else [family]
    for condition in conditions:
        if isinstance(condition.value, str):
            found.append(ifname(IIFNAME, condition.value, invert=condition.invert))
            continue
        v4 = condition.value.version == 4
        source, destination = (IP_SADDR, IP_DADDR) if v4 else (IP6_SADDR, IP6_DADDR)
        selector = source if condition.kind == "source" else destination
        found.append(prefix(selector, condition.value, invert=condition.invert))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class PortPlan:
    """What one pod adds. `elements` go to the main table, `conditional` to the conditions' one; `towards` is the
    pod's address to which loopback addresses must be routed, where some must."""

    elements: tuple[Element, ...]
    conditional: tuple[Element, ...]
    conditional_table: Table | None
    towards: IPAddress | None

    @property
    def translating(self) -> tuple[Table, tuple[Element, ...]]:
        """The table that leads to the pod, and the elements in it that do."""
        if self.conditional_table is not None:
            return self.conditional_table, self.conditional
        return TABLE, tuple(element for element in self.elements if element.set_name in _TRANSLATING)

    @property
    def text(self) -> str:
        """For `nft -f`."""
        main = explain(TABLE, self.elements)
        return main if self.conditional_table is None else main + explain(self.conditional_table, self.conditional)


def plan(owner: Owner, config: PortmapConfig, addresses: tuple[IPInterface, ...]) -> PortPlan:
    """Decide what the pod adds. The ledger comes first: it is what names the holder of a port that is taken."""
    families = tuple(address.version for address in addresses)
    main = ledger(owner, config, families) + masquerading(owner, config, addresses)
    translating = translation(owner, config, addresses)
    towards = needs_localnet(config, addresses)
    if config.conditions:
        return PortPlan(main, translating, conditional_table(config.conditions), towards)
    return PortPlan(main + translating, (), None, towards)


def translation(owner: Owner, config: PortmapConfig, addresses: Iterable[IPInterface]) -> tuple[Element, ...]:
    """The elements that translate; in the main table, or in the conditions' one."""
    return tuple(
        Element(
            f"ports{address.version}" if mapping.host_ip is None else f"hostips{address.version}",
            _key(mapping),
            owner.tag,
            (address.ip, mapping.container_port),
        )
        for mapping, address in _pairs(config, addresses)
    )


def ledger(owner: Owner, config: PortmapConfig, families: Iterable[int]) -> tuple[Element, ...]:
    """What makes the kernel refuse the same ports to others. Needs no address of the pod."""
    found: list[Element] = []
    for mapping in config.mappings:
        port = (PROTOCOLS[mapping.protocol], mapping.host_port)
        for family in families:
            if family not in mapping.families:
                continue
            if mapping.host_ip is None:
                found.append(Element(f"claims{family}", port, owner.tag, (ANY_ADDRESS,)))
            else:
                found.append(Element(f"claims{family}", port, MARK_OWNER, (SOME_ADDRESSES,), shared=True))
                found.append(Element(f"specifics{family}", _key(mapping), owner.tag))
    return tuple(dict.fromkeys(found))


def masquerading(owner: Owner, config: PortmapConfig, addresses: Iterable[IPInterface]) -> tuple[Element, ...]:
    """Whose connections to the pod are masqueraded, and by which ports."""
    if not config.snat:
        return ()
    found = []
    for mapping, address in _pairs(config, addresses):
        family, pod = address.version, address.ip
        source = _EVERYBODY[family] if config.masq_all else address.network
        found.append(Element(f"neighbours{family}", (source, pod), owner.tag))
        port = (PROTOCOLS[mapping.protocol], mapping.host_port)
        found.append(Element(f"served{family}", (pod, *port), owner.tag))
    return tuple(dict.fromkeys(found))  # a pod has its neighbours once, and a port of two host addresses


def is_for_loopback(mapping: Mapping) -> bool:
    """Whether the host reaches the mapping at 127.0.0.1."""
    if mapping.host_ip is None:
        return 4 in mapping.families
    return mapping.host_ip.version == 4 and mapping.host_ip.is_loopback


def needs_localnet(config: PortmapConfig, addresses: Iterable[IPInterface]) -> IPAddress | None:
    """The pod's address towards which loopback addresses must be routed, where some must. Without `snat` the pod
    would answer to its own loopback."""
    if not config.snat or not any(is_for_loopback(mapping) for mapping in config.mappings):
        return None
    return next((address.ip for address in addresses if address.version == 4), None)


def localnet(link: str) -> Element:
    """That we switch on route_localnet of that link."""
    return Element("localnets", (link,), LOCALNET_OWNER, shared=True)


def without_effect(config: PortmapConfig, families: Iterable[int]) -> tuple[Mapping, ...]:
    """The mappings that cannot be served: the pod has no address of that family, or it is IPv6's loopback."""
    held = set(families)
    return tuple(
        mapping
        for mapping in config.mappings
        if not held & set(mapping.families)
        or (mapping.host_ip is not None and mapping.host_ip.version == 6 and mapping.host_ip.is_loopback)
    )


def _key(mapping: Mapping) -> tuple[Key, ...]:
    port = (PROTOCOLS[mapping.protocol], mapping.host_port)
    return port if mapping.host_ip is None else (mapping.host_ip, *port)


def _pairs(config: PortmapConfig, addresses: Iterable[IPInterface]) -> list[tuple[Mapping, IPInterface]]:
    """Each mapping with the address of the pod that it leads to, family by family."""
    held = tuple(addresses)
    return [
        (mapping, address) for mapping in config.mappings for address in held if address.version in mapping.families
    ]
