"""MAC spoof check: frames that enter the bridge from a pod's link must carry the pod's own source address.

One bridge-family table with one rule for all pods; a pod is an element in `ports` (its host link) and one in `macs`
(that link and the address it may use).
"""

from __future__ import annotations

from .nft import (
    ETHER_ADDR,
    ETHER_SADDR,
    IFNAME,
    IIFNAME,
    Chain,
    Element,
    Hook,
    In,
    Rule,
    Set,
    Table,
    Verdict,
)
from .owner import Owner

_BEFORE_ALL = -300  # as the reference; NF_BR_PRI_NAT_DST_BRIDGED

TABLE = Table(
    family="bridge",
    name="netloom_spoofcheck",
    sets=(Set("ports", (IFNAME,)), Set("macs", (IFNAME, ETHER_ADDR))),
    chains=(
        Chain(
            "prerouting",
            hook=Hook("filter", "prerouting", _BEFORE_ALL),
            rules=(
                Rule(
                    (In((IIFNAME,), "ports"), In((IIFNAME, ETHER_SADDR), "macs", invert=True), Verdict("drop")),
                    "a pod must use its own MAC address",
                ),
            ),
        ),
    ),
)


def elements(owner: Owner, host_link: str, mac: str) -> tuple[Element, ...]:
    """What one pod adds."""
    return (
        Element("ports", (host_link,), owner.tag),
        Element("macs", (host_link, mac), owner.tag),
    )
