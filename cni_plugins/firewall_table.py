"""Who may send to a pod, in nftables: two tables for all networks, each with a constant number of rules.

`inet netloom_firewall` sees what the host forwards. Bridges that take part are in `bridges`; packets from one of them
to another are dropped by the links they come and go by, so a forged source address is no way around. What goes back by
the bridge it came from is judged by `within`: an isolated pod neither sends nor receives there, except a connection to
itself by its host port. `bridge netloom_isolation` sees the frames between ports of one bridge, whatever is in them
(IPv4, IPv6, ARP): an isolated pod's port exchanges none with any other veth. Links of other kinds are not pods: a
physical uplink in the bridge stays reachable.

A pod is its host link in `pods` (and `ports`), and when isolated its addresses. Bridges stay listed as long as a pod is
there: they belong to networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .nft import (
    IFNAME,
    IIFKIND,
    IIFNAME,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    IPV6_ADDR,
    OIFKIND,
    OIFNAME,
    WAS_DNATED,
    Chain,
    Element,
    Hook,
    In,
    Rule,
    Set,
    Table,
    Verdict,
    explain,
    ifname,
)
from .owner import Owner
from .results import IPInterface

_FILTER = 0  # NF_IP_PRI_FILTER; a drop is final wherever it comes in the order
_FILTER_BRIDGED = -200  # NF_BR_PRI_FILTER_BRIDGED
_NETWORK_OWNER = "a bridge of pods"  # no tag: white space
_DROP, _LEAVE = Verdict("drop"), Verdict("return")

FORWARD = Table(
    family="inet",
    name="netloom_firewall",
    sets=(
        Set("bridges", (IFNAME,), lasting=True),
        Set("loops", (IFNAME, IFNAME), lasting=True),
        Set("pods", (IFNAME,)),
        # With the bridge, as two networks may have the same addresses.
        Set("isolated4", (IFNAME, IPV4_ADDR)),
        Set("isolated6", (IFNAME, IPV6_ADDR)),
        Set("selves4", (IFNAME, IPV4_ADDR, IPV4_ADDR)),
        Set("selves6", (IFNAME, IPV6_ADDR, IPV6_ADDR)),
    ),
    chains=(
        Chain(
            "within",
            rules=(
                Rule((WAS_DNATED, In((OIFNAME, IP_SADDR, IP_DADDR), "selves4"), _LEAVE), "to itself by a host port"),
                Rule(
                    (WAS_DNATED, In((OIFNAME, IP6_SADDR, IP6_DADDR), "selves6"), _LEAVE),
                    "to itself by a host port (v6)",
                ),
                Rule((In((OIFNAME, IP_DADDR), "isolated4"), _DROP), "to an isolated pod"),
                Rule((In((OIFNAME, IP6_DADDR), "isolated6"), _DROP), "to an isolated pod (v6)"),
                Rule((In((IIFNAME, IP_SADDR), "isolated4"), _DROP), "from an isolated pod"),
                Rule((In((IIFNAME, IP6_SADDR), "isolated6"), _DROP), "from an isolated pod (v6)"),
            ),
        ),
        Chain(
            "forward",
            hook=Hook("filter", "forward", _FILTER),
            rules=(
                Rule((In((IIFNAME, OIFNAME), "loops"), Verdict("goto", "within")), "back by the same bridge"),
                Rule((In((IIFNAME,), "bridges"), In((OIFNAME,), "bridges"), _DROP), "from one bridge to another"),
            ),
        ),
    ),
)

ISOLATION = Table(
    family="bridge",
    name="netloom_isolation",
    sets=(Set("ports", (IFNAME,)), Set("selves", (IFNAME, IFNAME))),
    chains=(
        Chain(
            "forward",
            hook=Hook("filter", "forward", _FILTER_BRIDGED),
            rules=(
                # With br_netfilter a connection to itself by a host port is translated within the bridge.
                Rule((In((IIFNAME, OIFNAME), "selves"), _LEAVE), "hairpin: to itself"),
                Rule((ifname(IIFKIND, "veth"), In((OIFNAME,), "ports"), _DROP), "from a pod to an isolated one"),
                Rule((In((IIFNAME,), "ports"), ifname(OIFKIND, "veth"), _DROP), "from an isolated pod to another"),
            ),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class FirewallPlan:
    """What one pod adds to each table."""

    forward: tuple[Element, ...]
    isolation: tuple[Element, ...] = ()

    @property
    def parts(self) -> tuple[tuple[Table, tuple[Element, ...]], ...]:
        """The tables that the pod needs, with its elements; the frames of an isolated pod are stopped first."""
        found = ((ISOLATION, self.isolation), (FORWARD, self.forward))
        return tuple((table, elements) for table, elements in found if elements)

    @property
    def own(self) -> tuple[tuple[Table, tuple[Element, ...]], ...]:
        """What goes with the pod."""
        return tuple((table, tuple(e for e in elements if not e.shared)) for table, elements in self.parts)

    @property
    def text(self) -> str:
        """For `nft -f`."""
        return "".join(explain(table, elements) for table, elements in self.parts)


def plan(
    owner: Owner, bridge: str, host_link: str, addresses: Iterable[IPInterface], *, isolated: bool
) -> FirewallPlan:
    """Decide what the pod adds."""
    forward = [
        Element("bridges", (bridge,), _NETWORK_OWNER, shared=True),
        Element("loops", (bridge, bridge), _NETWORK_OWNER, shared=True),
        Element("pods", (host_link,), owner.tag),
    ]
    if not isolated:
        return FirewallPlan(tuple(forward))
    for address in addresses:
        family, ip = address.version, address.ip
        forward.append(Element(f"isolated{family}", (bridge, ip), owner.tag))
        forward.append(Element(f"selves{family}", (bridge, ip, ip), owner.tag))
    ports = (Element("ports", (host_link,), owner.tag), Element("selves", (host_link, host_link), owner.tag))
    return FirewallPlan(tuple(forward), ports)
