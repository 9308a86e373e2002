"""nftables objects as values: tables, chains, rules, sets, maps, elements. Each prints itself as nft(8) text.

Nothing here talks to the kernel: nft_messages.py and nft_requests.py turn the values into messages, tables.py runs the
transactions. The text is what `--explain` shows, and the tests feed it to nft(8) to prove that both forms are one.

A table has a constant number of rules; a pod or a port is an element of a set or map, with its owner as comment.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Family = Literal["inet", "bridge"]
Key = IPv4Address | IPv4Network | IPv6Address | IPv6Network | int | str

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Type:
    """A data type of nftables: its name, its number (nftables/include/datatype.h), its size in bytes."""

    name: str
    number: int
    size: int

    def encode(self, value: Key) -> tuple[bytes, bytes]:
        """The first and the last value that `value` means, in the kernel's form."""
        if isinstance(value, IPv4Network | IPv6Network):
            return value.network_address.packed, value.broadcast_address.packed
        if isinstance(value, IPv4Address | IPv6Address):
            data = value.packed
        elif isinstance(value, str):
            data = bytes.fromhex(value.replace(":", "")) if self is ETHER_ADDR else value.encode().ljust(16, b"\0")
        else:
            data = value.to_bytes(self.size, "big")
        assert len(data) == self.size, f"{value!r} is no {self.name}"
        return data, data

    def text(self, value: Key) -> str:
        """`value` as nft(8) writes it."""
        if isinstance(value, IPv4Network | IPv6Network) and value.prefixlen == value.max_prefixlen:
            return str(value.network_address)
        if self is INET_PROTO and isinstance(value, int):
            return _PROTOCOL_NAMES.get(value, str(value))
        return f'"{value}"' if self is IFNAME else str(value)


IPV4_ADDR = Type("ipv4_addr", 7, 4)
IPV6_ADDR = Type("ipv6_addr", 8, 16)
ETHER_ADDR = Type("ether_addr", 9, 6)
INET_PROTO = Type("inet_proto", 12, 1)
INET_SERVICE = Type("inet_service", 13, 2)
IFNAME = Type("ifname", 41, 16)


@dataclass(frozen=True, slots=True)
class Selector:
    """Something a rule can read from a packet. `load` is the expression that reads it, `needs` the match that makes
    reading it safe (nft(8) adds the same one silently)."""

    text: str
    size: int
    load: tuple[str, dict[str, int | frozenset[str]]]
    needs: Match | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A packet matches when the selector, masked, equals the value (or does not, inverted). With `flags` the mask is a
    set of bits, and not to equal zero is to have one of them."""

    selector: Selector
    value: bytes
    words: str
    mask: bytes = b""
    invert: bool = False
    flags: bool = False

    @property
    def text(self) -> str:
        return f"{self.selector.text} {'!= ' if self.invert and not self.flags else ''}{self.words}"


@dataclass(frozen=True, slots=True)
class In:
    """A packet matches when the selectors, concatenated, are an element of the set (or are not, inverted)."""

    selectors: tuple[Selector, ...]
    set_name: str
    invert: bool = False

    @property
    def text(self) -> str:
        return f"{_concat(self.selectors)} {'!= ' if self.invert else ''}@{self.set_name}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """accept, drop, return, or jump to a chain."""

    kind: Literal["accept", "drop", "return", "jump", "goto"]
    chain: str = ""

    @property
    def text(self) -> str:
        return f"{self.kind} {self.chain}".rstrip()


@dataclass(frozen=True, slots=True)
class Masquerade:
    """The source becomes the address of the link the packet leaves by."""

    text: str = "masquerade"


@dataclass(frozen=True, slots=True)
class Dnat:
    """The destination becomes what the map holds for the selectors; no entry, no change."""

    family: Literal["ip", "ip6"]
    selectors: tuple[Selector, ...]
    map_name: str

    @property
    def text(self) -> str:
        return f"dnat {self.family} to {_concat(self.selectors)} map @{self.map_name}"


Statement = Match | In | Verdict | Masquerade | Dnat


@dataclass(frozen=True, slots=True)
class Rule:
    """Statements, left to right, and what they are for: the comment tells the rule from others in CHECK."""

    statements: tuple[Statement, ...]
    comment: str

    @property
    def text(self) -> str:
        return " ".join(s.text for s in self.statements) + f' comment "{self.comment}"'


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain hangs. `priority` orders chains of one hook, lowest first."""

    kind: Literal["filter", "nat"]
    hook: Literal["prerouting", "input", "forward", "output", "postrouting"]
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in order; with a hook, a base chain with policy accept."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None

    def text(self, indent: str) -> str:
        lines = [f"chain {self.name} {{"]
        if self.hook:
            lines.append(f"\ttype {self.hook.kind} hook {self.hook.hook} priority {self.hook.priority}; policy accept;")
        lines += [f"\t{rule.text}" for rule in self.rules]
        return "\n".join(indent + line for line in [*lines, "}"])


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with `value` a map. `interval`: keys may be prefixes. A `lasting` set does not keep its table alive:
    it holds what belongs to a network, not to a pod."""

    name: str
    key: tuple[Type, ...]
    value: tuple[Type, ...] = ()
    interval: bool = False
    lasting: bool = False

    def text(self, indent: str) -> str:
        types = " . ".join(t.name for t in self.key)
        if self.value:
            types += " : " + " . ".join(t.name for t in self.value)
        lines = [f"{'map' if self.value else 'set'} {self.name} {{", f"\ttype {types}"]
        if self.interval:
            lines.append("\tflags interval")
        return "\n".join(indent + line for line in [*lines, "}"])


@dataclass(frozen=True, slots=True)
class Element:
    """One entry of a set or map; `owner` is the tag of the attachment that it belongs to (owner.py). A `shared` one is
    everybody's: adding it again is fine as long as the value is the same, so is one within an interval that is there,
    and no DEL removes it."""

    set_name: str
    key: tuple[Key, ...]
    owner: str
    value: tuple[Key, ...] = ()
    shared: bool = False


@dataclass(frozen=True)  # without slots, for the cache
class Table:
    """A table with all that is in it but elements."""

    family: Family
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]

    @cached_property
    def schema(self) -> str:
        """A name for this very form of the table. The table carries it as an empty chain, so that a transaction can
        require the form: rules of another version of netloom make it fail, and are then made anew."""
        return "schema-" + hashlib.sha256(self._body().encode()).hexdigest()[:8]

    def set(self, name: str) -> Set:
        """The set called `name`."""
        return next(s for s in self.sets if s.name == name)

    def _body(self) -> str:
        return "\n".join([*(s.text("\t") for s in self.sets), *(c.text("\t") for c in self.chains)])

    @property
    def text(self) -> str:
        """The table as nft(8) text, to be loaded by `nft -f`."""
        return f"table {self.family} {self.name} {{\n{self._body()}\n\tchain {self.schema} {{\n\t}}\n}}\n"

    def element_text(self, element: Element) -> str:
        """The command that adds `element`."""
        spec = self.set(element.set_name)
        entry = " . ".join(t.text(v) for t, v in zip(spec.key, element.key, strict=True))
        entry += f' comment "{element.owner}"'
        if spec.value:
            entry += " : " + " . ".join(t.text(v) for t, v in zip(spec.value, element.value, strict=True))
        return f"add element {self.family} {self.name} {element.set_name} {{ {entry} }}"


def _concat(selectors: tuple[Selector, ...]) -> str:
    return " . ".join(s.text for s in selectors)


def explain(table: Table, elements: Iterator[Element] | tuple[Element, ...]) -> str:
    """Table and elements as one script for `nft -f`."""
    return table.text + "".join(table.element_text(e) + "\n" for e in elements)


# linux/netfilter/nf_tables.h: payload bases, meta, ct and fib keys.
_LL, _NETWORK, _TRANSPORT = 0, 1, 2
_META_PROTOCOL, _META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 1, 6, 7, 15, 16
_META_IIFKIND, _META_OIFKIND = 26, 27


def _payload(base: int, offset: int, size: int) -> tuple[str, dict[str, int | frozenset[str]]]:
    return "payload", {"PAYLOAD_BASE": base, "PAYLOAD_OFFSET": offset, "PAYLOAD_LEN": size}


def _meta(key: int) -> tuple[str, dict[str, int | frozenset[str]]]:
    return "meta", {"META_KEY": key}


NFPROTO = Selector("meta nfproto", 1, _meta(_META_NFPROTO))
IS_IPV4 = Match(NFPROTO, b"\x02", "ipv4")
IS_IPV6 = Match(NFPROTO, b"\x0a", "ipv6")
L4PROTO = Selector("meta l4proto", 1, _meta(_META_L4PROTO))
IIFNAME = Selector("iifname", 16, _meta(_META_IIFNAME))
OIFNAME = Selector("oifname", 16, _meta(_META_OIFNAME))
IIFKIND = Selector("meta iifkind", 16, _meta(_META_IIFKIND))
OIFKIND = Selector("meta oifkind", 16, _meta(_META_OIFKIND))
IP_SADDR = Selector("ip saddr", 4, _payload(_NETWORK, 12, 4), IS_IPV4)
IP_DADDR = Selector("ip daddr", 4, _payload(_NETWORK, 16, 4), IS_IPV4)
IP6_SADDR = Selector("ip6 saddr", 16, _payload(_NETWORK, 8, 16), IS_IPV6)
IP6_DADDR = Selector("ip6 daddr", 16, _payload(_NETWORK, 24, 16), IS_IPV6)
TH_DPORT = Selector("th dport", 2, _payload(_TRANSPORT, 2, 2))
ETHER_SADDR = Selector("ether saddr", 6, _payload(_LL, 6, 6))
# In a bridge table the protocol is that of the frame; big-endian there.
ETHER_TYPE = Selector("meta protocol", 2, _meta(_META_PROTOCOL))
# pyroute2 takes the result for a flag set though it is a number; 3 (ADDRTYPE) is spelled as its two lowest bits.
FIB_DADDR_TYPE = Selector(
    "fib daddr type",
    4,
    ("fib", {"FIB_RESULT": frozenset(("NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF")), "FIB_FLAGS": 1 << 1}),
)
CT_STATE = Selector("ct state", 4, ("ct", {"CT_KEY": 0}))
CT_STATUS = Selector("ct status", 4, ("ct", {"CT_KEY": 2}))
# The port that the connection's first packet asked for, before any translation.
CT_ORIGINAL_DPORT = Selector("ct original proto-dst", 2, ("ct", {"CT_KEY": 12, "CT_DIRECTION": 0}))


def _host32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


TO_LOCAL = Match(FIB_DADDR_TYPE, _host32(2), "local")  # RTN_LOCAL
WAS_DNATED = Match(CT_STATUS, _host32(0), "dnat", mask=_host32(1 << 5), invert=True, flags=True)  # IPS_DST_NAT
IS_REPLY_OR_RELATED = Match(CT_STATE, _host32(0), "established,related", mask=_host32(2 | 4), invert=True, flags=True)


def prefix(selector: Selector, network: IPv4Network | IPv6Network, *, invert: bool = False) -> Match:
    """An address selector inside (or outside) `network`."""
    return Match(selector, network.network_address.packed, str(network), network.netmask.packed, invert)


def ifname(selector: Selector, name: str, *, invert: bool = False) -> Match:
    """A link of that name, or kind."""
    return Match(selector, name.encode().ljust(16, b"\0"), f'"{name}"', invert=invert)
