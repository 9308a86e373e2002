"""Masquerade: pods talk to the outside with the node's address, and among themselves with their own.

One nft table for all networks, with three rules a family: what leaves a pod's address is masqueraded unless it goes to
that pod's own subnet or to a multicast group. A pod is one element in `pods4` (its address); its subnet is one in
`subnets4` (the subnet twice: source and destination), which all pods of it share: the kernel copies a set of intervals
in each transaction that adds to it, so it may not grow with the pods. A subnet within another one that is there is
covered by that: its pods reach the larger one with their own address.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from . import tables
from .netlink import NetlinkSocket
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

_SUBNET_OWNER = "a subnet of pods"
_SRCNAT = 100  # NF_IP_PRI_NAT_SRC

TABLE = Table(
    family="inet",
    name="netloom_masquerade",
    sets=(
        Set("pods4", (IPV4_ADDR,)),
        Set("pods6", (IPV6_ADDR,)),
        Set("subnets4", (IPV4_ADDR, IPV4_ADDR), interval=True, lasting=True),
        Set("subnets6", (IPV6_ADDR, IPV6_ADDR), interval=True, lasting=True),
    ),
    chains=(
        Chain(
            "postrouting",
            hook=Hook("nat", "postrouting", _SRCNAT),
            rules=(
                Rule((In((IP_SADDR, IP_DADDR), "subnets4"), Verdict("return")), "to its own subnet: as it is"),
                Rule((In((IP6_SADDR, IP6_DADDR), "subnets6"), Verdict("return")), "to its own subnet (v6): as it is"),
                Rule((prefix(IP_DADDR, IPv4Network("224.0.0.0/4")), Verdict("return")), "multicast: as it is"),
                Rule((prefix(IP6_DADDR, IPv6Network("ff00::/8")), Verdict("return")), "multicast (v6): as it is"),
                Rule((In((IP_SADDR,), "pods4"), Masquerade()), "from a pod to the outside"),
                Rule((In((IP6_SADDR,), "pods6"), Masquerade()), "from a pod to the outside (v6)"),
            ),
        ),
    ),
)


def elements(owner: Owner, ips: Iterable[IPConfig]) -> tuple[Element, ...]:
    """What one pod adds: an element an address, and its subnets where they are not there yet."""
    found: list[Element] = []
    for ip in ips:
        family, address = ip.address.version, ip.address.ip
        found.append(Element(f"pods{family}", (address,), owner.tag))
        subnet = ip.address.network
        found.append(Element(f"subnets{family}", (subnet, subnet), _SUBNET_OWNER, shared=True))
    return tuple(dict.fromkeys(found))


def sweep_subnets(socket: NetlinkSocket) -> None:
    """GC: a subnet without pods goes. No pod of this network is being added meanwhile (CNI SPEC, GC)."""
    for family, size in ((4, 4), (6, 16)):
        pods = [raw.key for raw in tables.list_elements(socket, TABLE, f"pods{family}")]
        name = f"subnets{family}"
        subnets = tables.list_elements(socket, TABLE, name)
        idle = [raw for raw in subnets if not any(raw.key[:size] <= pod <= raw.key_end[:size] for pod in pods)]
        tables.delete_elements(socket, TABLE, [(name, raw) for raw in idle])
