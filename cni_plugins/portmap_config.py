"""The portmap plugin's configuration: which host ports lead to which ports of the pod, and under what conditions.

Keys as the reference's: `snat` (default true), `masqAll`, `conditionsV4`, `conditionsV6`, `markMasqBit`,
`externalSetMarkChain`, `backend`; the mappings come in `runtimeConfig.portMappings`.

- Any `backend` means nftables. `markMasqBit` and `externalSetMarkChain` say how the reference tells its masquerade
  rule what to masquerade; ours needs no mark, so they are checked and have no effect (both at once: error 7, as there).
- Of the conditions, lists of iptables arguments in the reference, these are served: `[!] -s|--source CIDR`,
  `[!] -d|--destination CIDR`, `[!] -i|--in-interface NAME`. Anything else is error 2.
- A host port or address that is impossible is error 7, as is a port that one pod asks for twice.
- A mapping whose hostIP is of a family that the pod has no address of has no effect, as in the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Literal

from .errors import CniError, Code, invalid_config
from .fields import Fields
from .protocol import Config, is_ifname
from .results import IPAddress, IPInterface, IPNetwork, Result

Protocol = Literal["tcp", "udp", "sctp"]
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
_BACKENDS = ("nftables", "iptables")
_MARK_BITS = 31

_SOURCE, _DESTINATION, _IN_INTERFACE = "source", "destination", "in-interface"
_OPTIONS = {
    "-s": _SOURCE,
    "--source": _SOURCE,
    "--src": _SOURCE,
    "-d": _DESTINATION,
    "--destination": _DESTINATION,
    "--dst": _DESTINATION,
    "-i": _IN_INTERFACE,
    "--in-interface": _IN_INTERFACE,
}
_SERVED = "served are [!] -s CIDR, [!] -d CIDR and [!] -i NAME"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping. `host_ip` None: any local address of the families in `families`."""

    host_port: int
    container_port: int
    protocol: Protocol
    host_ip: IPAddress | None
    families: tuple[int, ...]

    @property
    def words(self) -> str:
        where = "" if self.host_ip is None else f"{self.host_ip} "
        return f"{where}{self.host_port}/{self.protocol}"

    def conflicts_with(self, other: Mapping) -> bool:
        """Whether both cannot hold, as with bind(2): the same port, and the same address or any address."""
        if (self.host_port, self.protocol) != (other.host_port, other.protocol):
            return False
        if not set(self.families) & set(other.families):
            return False
        return self.host_ip is None or other.host_ip is None or self.host_ip == other.host_ip


@dataclass(frozen=True, slots=True)
class Condition:
    """What a packet must be for the mappings to apply: a source, destination or incoming link (or not that one)."""

    kind: str
    value: IPNetwork | str
    invert: bool = False

    @property
    def text(self) -> str:
        return f"{'! ' if self.invert else ''}--{self.kind} {self.value}"


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of both families."""

    v4: tuple[Condition, ...] = ()
    v6: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.v4 or self.v6)

    @property
    def text(self) -> str:
        return "; ".join(" ".join(condition.text for condition in family) for family in (self.v4, self.v6))


@dataclass(frozen=True, slots=True)
class PortmapConfig:
    """What the network says, and the pod's mappings."""

    snat: bool
    masq_all: bool
    conditions: Conditions
    mappings: tuple[Mapping, ...]


def parse(config: Config) -> PortmapConfig:
    """Read the configuration. Raises CniError 2 or 7."""
    fields = config.fields
    fields.choice("backend", _BACKENDS, _BACKENDS[0])
    if "markMasqBit" in fields and "externalSetMarkChain" in fields:
        raise invalid_config(
            "markMasqBit and externalSetMarkChain exclude each other", "neither is needed: remove both"
        )
    fields.number("markMasqBit", most=_MARK_BITS)
    fields.text("externalSetMarkChain")
    return PortmapConfig(
        snat=fields.flag("snat", default=True),
        masq_all=fields.flag("masqAll"),
        conditions=parse_conditions(config),
        mappings=_mappings(config.runtime.items("portMappings")),
    )


def parse_conditions(config: Config) -> Conditions:
    """The network's conditions alone. Raises CniError 2 or 7."""
    return Conditions(
        _conditions("conditionsV4", config.fields.texts("conditionsV4"), 4),
        _conditions("conditionsV6", config.fields.texts("conditionsV6"), 6),
    )


def _conditions(key: str, words: tuple[str, ...], family: int) -> tuple[Condition, ...]:
    found: list[Condition] = []
    rest = list(words)
    while rest:
        invert = rest[0] == "!"
        option = rest.pop(0) if not invert else rest.pop(1) if len(rest) > 1 else "!"
        if invert:
            rest.pop(0)
        kind = _OPTIONS.get(option)
        if kind is None:
            raise CniError(Code.UNSUPPORTED_FIELD, f"{key}: {option!r} is not supported", _SERVED)
        if rest and rest[0] == "!":
            raise CniError(Code.UNSUPPORTED_FIELD, f"{key}: '!' belongs before {option}", _SERVED)
        if not rest:
            raise invalid_config(f"{key}: {option} has no value", _SERVED)
        value = _condition_value(key, kind, rest.pop(0), family)
        if isinstance(value, str) or value.prefixlen:
            found.append(Condition(kind, value, invert))
        elif invert:
            raise invalid_config(f"{key}: ! {option} {value} is true of no packet", "remove it, or the plugin")
    return tuple(found)


def _condition_value(key: str, kind: str, text: str, family: int) -> IPNetwork | str:
    if kind == _IN_INTERFACE:
        if text.endswith("+"):
            raise CniError(Code.UNSUPPORTED_FIELD, f"{key}: {text!r} is a pattern", "give the whole name of a link")
        if not is_ifname(text):
            raise invalid_config(f"{key}: {text!r} is no name of a link")
        return text
    try:
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise invalid_config(f"{key}: {text!r} is no address or prefix", str(error)) from error
    if network.version != family:
        raise invalid_config(f"{key}: {text!r} is not of IPv{family}")
    return network


def _mappings(items: list[Fields]) -> tuple[Mapping, ...]:
    found: list[Mapping] = []
    for item in items:
        mapping = _mapping(item)
        for other in found:
            if mapping.conflicts_with(other):
                raise invalid_config(
                    f"host port {mapping.words} is asked for twice by this pod ({other.words})",
                    "give each mapping a hostPort, protocol and hostIP of its own",
                )
        found.append(mapping)
    return tuple(found)


def _mapping(item: Fields) -> Mapping:
    protocol = _PROTOCOLS.get((item.text("protocol") or "tcp").lower())
    if protocol is None:
        raise item.error("protocol", "tcp, udp or sctp")
    host_ip, families = _host_ip(item)
    return Mapping(_port(item, "hostPort"), _port(item, "containerPort"), protocol, host_ip, families)


def _port(item: Fields, key: str) -> int:
    if key not in item:
        raise item.error(key, "a port from 1 to 65535")
    return item.number(key, least=1, most=65535)


def _host_ip(item: Fields) -> tuple[IPAddress | None, tuple[int, ...]]:
    """The address, or None and the families where any will do: the unspecified address means its own family, as in the
    reference."""
    text = item.text("hostIP")
    if not text:
        return None, (4, 6)
    try:
        address = ip_address(text)
    except ValueError as error:
        raise item.error("hostIP", "an IP address") from error
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if isinstance(address, IPv6Address) and address.scope_id:
        raise item.error("hostIP", "an IP address without a zone")
    return (None if address.is_unspecified else address), (address.version,)


def pod_addresses(result: Result, ifname: str) -> tuple[IPInterface, ...]:
    """The first address of each family on the pod's interface, as the reference takes them."""
    found: dict[int, IPInterface] = {}
    for ip in result.ips:
        if ip.interface is not None and 0 <= ip.interface < len(result.interfaces):
            interface = result.interfaces[ip.interface]
            if interface.name != ifname or not interface.sandbox:
                continue
        found.setdefault(ip.address.version, ip.address)
    return tuple(found[family] for family in sorted(found))
