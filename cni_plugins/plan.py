"""Plans: what a plugin decided, as a tuple of small values. Each prints itself as the command a person would type.

A plugin decides (config to plan) without touching anything; links.py, qdiscs.py and tables.py make a plan's steps
true. `--explain` prints a plan. Steps say where they happen: on the HOST, or in the POD's namespace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from .results import IPAddress, IPInterface, IPNetwork

Where = Literal["host", "pod"]
HOST: Where = "host"
POD: Where = "pod"


def _on(where: Where) -> str:
    return "host# " if where == HOST else "pod#  "


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge, up. `mac` is set explicitly: a bridge that inherits its lowest port's address changes it as pods come
    and go, and breaks their connections."""

    name: str
    mtu: int = 0
    promisc: bool = False
    vlan_filtering: bool = False

    @property
    def text(self) -> str:
        extra = " vlan_filtering 1" if self.vlan_filtering else ""
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        promisc = " promisc on" if self.promisc else ""
        return (
            f"host# ip link add {self.name}{mtu} address RANDOM type bridge{extra}; ip link set {self.name}{promisc} up"
        )


@dataclass(frozen=True, slots=True)
class Vlan:
    """VLAN ids of a bridge port; `pvid`: untagged frames belong to it."""

    first: int
    last: int
    pvid: bool = False


@dataclass(frozen=True, slots=True)
class Veth:
    """The pod's link and its peer, a port of the bridge; the peer is up and carries the owner as alias."""

    host_name: str
    pod_name: str
    bridge: str
    alias: str
    mtu: int = 0
    mac: str = ""
    hairpin: bool = False
    isolated: bool = False
    vlans: tuple[Vlan, ...] = ()
    drop_default_vlan: bool = False

    @property
    def text(self) -> str:
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        mac = f" address {self.mac}" if self.mac else ""
        lines = [
            f"host# ip link add {self.host_name}{mtu} type veth peer name {self.pod_name}{mtu}{mac} netns POD",
            f"host# ip link set {self.host_name} master {self.bridge} up alias {self.alias}",
        ]
        flags = [word for word, on in (("hairpin on", self.hairpin), ("isolated on", self.isolated)) if on]
        if flags:
            lines.append(f"host# bridge link set dev {self.host_name} {' '.join(flags)}")
        if self.drop_default_vlan:
            lines.append(f"host# bridge vlan del dev {self.host_name} vid 1")
        for vlan in self.vlans:
            ids = str(vlan.first) if vlan.first == vlan.last else f"{vlan.first}-{vlan.last}"
            lines.append(f"host# bridge vlan add dev {self.host_name} vid {ids}{' pvid untagged' if vlan.pvid else ''}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Up:
    """A link that is up."""

    where: Where
    link: str

    @property
    def text(self) -> str:
        return f"{_on(self.where)}ip link set {self.link} up"


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link. IPv6 addresses come without duplicate address detection unless `dad`: the reference
    waits about two seconds for it (RFC 4862, 5.4)."""

    where: Where
    link: str
    address: IPInterface
    dad: bool = False

    @property
    def text(self) -> str:
        nodad = " nodad" if self.address.version == 6 and not self.dad else ""
        return f"{_on(self.where)}ip address add {self.address} dev {self.link}{nodad}"


@dataclass(frozen=True, slots=True)
class RouteTo:
    """A route; `gw` None means on the link itself."""

    where: Where
    link: str
    dst: IPNetwork
    gw: IPAddress | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None

    @property
    def text(self) -> str:
        words = [f"ip route add {self.dst}"]
        if self.gw:
            words.append(f"via {self.gw}")
        words.append(f"dev {self.link}")
        for key in ("mtu", "advmss"):
            if value := getattr(self, key):
                words.append(f"{key} {value}")
        if self.priority:
            words.append(f"metric {self.priority}")
        if self.table is not None:
            words.append(f"table {self.table}")
        if self.scope is not None:
            words.append(f"scope {self.scope}")
        return _on(self.where) + " ".join(words)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting. `key` has slashes: net/ipv4/ip_forward. An `optional` one may be missing from the kernel."""

    where: Where
    key: str
    value: str
    optional: bool = False

    @property
    def text(self) -> str:
        return (
            f"{_on(self.where)}sysctl -w {self.key.replace('/', '.') if '.' not in self.key else self.key}={self.value}"
        )


Step = Bridge | Veth | Up | Address | RouteTo | Sysctl
Plan = tuple[Step, ...]


class Explained(Protocol):
    """Whatever prints itself as a command."""

    @property
    def text(self) -> str: ...


def explain(title: str, plan: Iterable[Explained], *more: str) -> str:
    """A plan as text, with further blocks (nft scripts) after it."""
    blocks = [f"# {title}", *(step.text for step in plan), *(block.rstrip("\n") for block in more if block)]
    return "\n".join(blocks) + "\n"
