"""Masquerade: pods talk to the outside with the node's address, and among themselves with their own.

One nft table for all networks, with three rules a family: what leaves a pod's address is masqueraded unless it goes to
that pod's own subnet or to a multicast group. A pod is one element in `pods4` (its address) and one in `inside4` (its
address and subnet), so that DEL finds them without the namespace, and no rule is ever added for a pod.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from .nft import (
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    IPV6_ADDR,
    Chain,
    Element,
    Hook,
    In,
    Masquerade,
    Rule,
    Set,
    Table,
    Verdict,
    prefix,
)
from .owner import Owner
from .results import IPConfig

_SRCNAT = 100  # NF_IP_PRI_NAT_SRC

TABLE = Table(
    family="inet",
    name="netloom_masquerade",
    sets=(
        Set("pods4", (IPV4_ADDR,)),
        Set("pods6", (IPV6_ADDR,)),
        Set("inside4", (IPV4_ADDR, IPV4_ADDR), interval=True),
        Set("inside6", (IPV6_ADDR, IPV6_ADDR), interval=True),
    ),
    chains=(
        Chain(
            "postrouting",
            hook=Hook("nat", "postrouting", _SRCNAT),
            rules=(
                Rule((In((IP_SADDR, IP_DADDR), "inside4"), Verdict("return")), "to its own subnet: as it is"),
                Rule((In((IP6_SADDR, IP6_DADDR), "inside6"), Verdict("return")), "to its own subnet (v6): as it is"),
                Rule((prefix(IP_DADDR, IPv4Network("224.0.0.0/4")), Verdict("return")), "multicast: as it is"),
                Rule((prefix(IP6_DADDR, IPv6Network("ff00::/8")), Verdict("return")), "multicast (v6): as it is"),
                Rule((In((IP_SADDR,), "pods4"), Masquerade()), "from a pod to the outside"),
                Rule((In((IP6_SADDR,), "pods6"), Masquerade()), "from a pod to the outside (v6)"),
            ),
        ),
    ),
)


def elements(owner: Owner, ips: Iterable[IPConfig]) -> tuple[Element, ...]:
    """What one pod adds: two elements an address."""
    found: list[Element] = []
    for ip in ips:
        family, address = ip.address.version, ip.address.ip
        found.append(Element(f"pods{family}", (address,), owner.tag))
        found.append(Element(f"inside{family}", (address, ip.address.network), owner.tag))
    return tuple(found)
