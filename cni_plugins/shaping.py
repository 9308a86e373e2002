"""What shapes a pod's traffic, as values that print themselves as the tc command a person would type.

bandwidth.py decides on them, qdiscs.py makes them true. Apart from plan.py, so that the other plugins do not load them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ifb:
    """A host's link whose queue shapes what is redirected to it; what leaves the queue arrives as if never gone."""

    name: str
    alias: str
    mtu: int

    @property
    def text(self) -> str:
        return (
            f"host# ip link add {self.name} mtu {self.mtu} type ifb\n"
            f"host# ip link set {self.name} up alias {self.alias}"
        )


@dataclass(frozen=True, slots=True)
class Tbf:
    """A token bucket as a link's root queue: `rate` in bytes per second, `burst` and `limit` (of what waits) bytes."""

    link: str
    rate: int
    burst: int
    limit: int

    @property
    def text(self) -> str:
        return (
            f"host# tc qdisc add dev {self.link} root handle 1: tbf"
            f" rate {self.rate * 8}bit burst {self.burst} limit {self.limit}"
        )


@dataclass(frozen=True, slots=True)
class Redirect:
    """All that arrives on `link` goes through `ifb` first."""

    link: str
    ifb: str

    @property
    def text(self) -> str:
        return (
            f"host# tc qdisc add dev {self.link} handle ffff: ingress\n"
            f"host# tc filter add dev {self.link} parent ffff: protocol all prio 1 u32 match u32 0 0 flowid 1:1"
            f" action mirred egress redirect dev {self.ifb}"
        )


Step = Ifb | Tbf | Redirect
