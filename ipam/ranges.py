"""Ranges: the `ipam` object of a configuration becomes range sets, or a CniError 7 that names the wrong key.

It refuses what the reference plugin refuses: host bits in a subnet, subnets too small, mixed families in a set,
overlaps. An address is a *number* in here: both families lie on one line, IPv4 at ::ffff:0:0/96, so that
numbers compare, and count, and are keys. Read next: allocate.py, which orders them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

from cni_plugins.errors import CniError, Code, invalid_config
from cni_plugins.fields import Fields
from cni_plugins.protocol import Config
from cni_plugins.results import Dns, IPAddress, IPInterface, IPNetwork, Route, parse_route, version_order

DEFAULT_DATA_DIR = "/var/lib/cni/networks"  # the reference's
_IPV4 = 0xFFFF << 32  # RFC 4291, 2.5.5.2: IPv4-mapped


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses from number `first` to `last` of `subnet`; the gateway is never handed out."""

    subnet: IPNetwork
    first: int
    last: int
    gateway: IPAddress

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def __str__(self) -> str:
        return f"{to_address(self.first)}-{to_address(self.last)}"

    def overlaps(self, other: Range) -> bool:
        return self.first <= other.last and other.first <= self.last

    def interface(self, number: int) -> IPInterface:
        """The address with the subnet's prefix length."""
        return ip_interface((to_address(number), self.subnet.prefixlen))


@dataclass(frozen=True, slots=True)
class RangeSet:
    """Ranges of one family; an attachment gets one address out of each set."""

    ranges: tuple[Range, ...]

    def __contains__(self, number: int) -> bool:
        return any(number in part for part in self.ranges)

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    def range_of(self, number: int) -> Range:
        """The range that holds `number`, which must be in the set."""
        return next(part for part in self.ranges if number in part)

    def overlaps(self, other: RangeSet) -> bool:
        return any(a.overlaps(b) for a in self.ranges for b in other.ranges)


@dataclass(frozen=True, slots=True)
class Settings:
    """All that host-local reads from its configuration. `requested` are the addresses asked for, without repeats."""

    data_dir: str
    sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...]
    resolv_conf: str
    requested: tuple[int, ...]


def to_number(address: IPAddress) -> int:
    """Where the address lies on the line of both families."""
    return int(address) + (_IPV4 if isinstance(address, IPv4Address) else 0)


def to_address(number: int) -> IPAddress:
    """The address at `number`; its text is the one that Go prints, which is the reference's file name."""
    return IPv4Address(number & 0xFFFFFFFF) if number >> 32 == 0xFFFF else IPv6Address(number)


def parse_address(text: str) -> IPAddress:
    """An address without prefix and zone; IPv4-mapped becomes IPv4, as in Go. Raises ValueError."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    address = ip_address(text)
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def parse_settings(config: Config, args: Mapping[str, str]) -> Settings:
    """Read a configuration and CNI_ARGS. Raises CniError 7 (4 for CNI_ARGS)."""
    ipam = config.fields.inner("ipam")
    if "ipam" not in config.fields:
        raise invalid_config("the configuration has no 'ipam' object")
    sets = _range_sets(config.runtime, "ipRanges")
    if "subnet" in ipam:
        sets.append(_range_set([ipam], "ipam.subnet"))  # the old form: one range right in `ipam`
    sets += _range_sets(ipam, "ranges")
    _check_sets(sets, config.cni_version)
    return Settings(
        data_dir=data_dir_of(config),
        sets=tuple(sets),
        routes=parse_routes(ipam),
        resolv_conf=ipam.text("resolvConf"),
        requested=_requested(config, args),
    )


def data_dir_of(config: Config) -> str:
    """The directory of all networks' reservations: the one setting that DEL and GC need."""
    return config.fields.inner("ipam").text("dataDir") or DEFAULT_DATA_DIR


def parse_routes(ipam: Fields) -> tuple[Route, ...]:
    """`ipam.routes`. Raises CniError 7."""
    routes = []
    for position, item in enumerate(ipam.items("routes")):
        try:
            routes.append(parse_route(item.raw()))
        except (ValueError, TypeError, KeyError) as error:
            raise invalid_config(f"ipam.routes[{position}] is no route", f"{type(error).__name__}: {error}") from error
    return tuple(routes)


def check_one_per_family(versions: list[int], cni_version: str) -> None:
    """Refuse what a result of the old form cannot carry (CNI SPEC 0.2.0, Result: one ip4, one ip6)."""
    if version_order(cni_version) < (0, 3) and len(versions) != len(set(versions)):
        raise invalid_config(
            f"cniVersion {cni_version} has room for one address per family", "raise cniVersion to 0.3.0 or later"
        )


def parse_resolv_conf(text: str) -> Dns:
    """resolv.conf(5) as a `dns` object: servers, search words and options add up, the last domain wins."""
    lists: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    domain = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            lists["nameserver"].append(words[1])
        elif words[0] == "domain":
            domain = words[1]
        elif words[0] in lists:
            lists[words[0]] += words[1:]
    return Dns(tuple(lists["nameserver"]), domain, tuple(lists["search"]), tuple(lists["options"]))


def _range_sets(fields: Fields, key: str) -> list[RangeSet]:
    """A list of lists of ranges: `ipam.ranges`, `runtimeConfig.ipRanges`."""
    expected = "a list of lists of ranges"
    value = fields.raw().get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        raise fields.error(key, expected)
    sets = []
    for position, part in enumerate(value):
        if not all(isinstance(item, dict) for item in part):
            raise fields.error(key, expected)
        where = f"{key}[{position}]"
        sets.append(_range_set([Fields(item, f"{where}[{i}].") for i, item in enumerate(part)], where))
    return sets


def _range_set(items: list[Fields], where: str) -> RangeSet:
    ranges = tuple(_range(item) for item in items)
    if not ranges:
        raise invalid_config(f"{where} is an empty range set")
    if len({part.subnet.version for part in ranges}) > 1:
        raise invalid_config(f"{where} mixes IPv4 and IPv6", "give each family a range set of its own")
    for position, part in enumerate(ranges):
        for other in ranges[position + 1 :]:
            if part.overlaps(other):
                raise invalid_config(f"{where}: the ranges {part} and {other} overlap")
    return RangeSet(ranges)


def _check_sets(sets: list[RangeSet], cni_version: str) -> None:
    if not sets:
        raise invalid_config("no address ranges", "give ipam.ranges, ipam.subnet or runtimeConfig.ipRanges")
    for position, part in enumerate(sets):
        for later, other in enumerate(sets[position + 1 :], position + 1):
            if part.overlaps(other):
                raise invalid_config(f"range set {position} ({part}) overlaps with {later} ({other})")
    check_one_per_family([part.ranges[0].subnet.version for part in sets], cni_version)


def _range(fields: Fields) -> Range:
    subnet = _subnet(fields)
    base, size = to_number(subnet.network_address), subnet.num_addresses
    # IPv6 has no broadcast address: its last one can be used.
    lowest, highest = base + 1, base + size - (2 if subnet.version == 4 else 1)
    gateway, first, last = (_address(fields, key) for key in ("gateway", "rangeStart", "rangeEnd"))
    # As in the reference, a start or an end that is *given* may be the network or the broadcast address.
    for key, bound in (("rangeStart", first), ("rangeEnd", last)):
        if bound is not None and not base <= to_number(bound) < base + size:
            raise fields.error(key, f"an address of {subnet}")
    if first is not None:
        lowest = to_number(first)
        highest = max(highest, lowest)  # rangeStart = the broadcast address: that one alone
    if last is not None:
        highest = to_number(last)
    if highest < lowest:
        raise fields.error("rangeEnd", f"at or after the start, {to_address(lowest)}")
    return Range(subnet, lowest, highest, gateway or to_address(base + 1))


def _subnet(fields: Fields) -> IPNetwork:
    expected = "a subnet in CIDR notation, as 10.1.0.0/24"
    base, _, length = fields.text("subnet").partition("/")
    if not (length.isascii() and length.isdigit()) or "%" in base:
        raise fields.error("subnet", expected)
    try:
        address = ip_address(base)
        loose = ip_network((address, int(length)), strict=False)
    except ValueError as error:
        raise fields.error("subnet", expected) from error
    if loose.network_address != address:
        raise fields.error("subnet", f"without host bits, as {loose}")
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        raise fields.error("subnet", "IPv4 or IPv6, and no mixture")
    if loose.prefixlen > loose.max_prefixlen - 2:
        raise fields.error("subnet", f"/{loose.max_prefixlen - 2} or wider")
    return loose


def _address(fields: Fields, key: str) -> IPAddress | None:
    text = fields.text(key)
    try:
        return parse_address(text) if text else None
    except ValueError as error:
        raise fields.error(key, "an IP address") from error


def _requested(config: Config, args: Mapping[str, str]) -> tuple[int, ...]:
    """CNI_ARGS `IP` (one), `args.cni.ips` and `runtimeConfig.ips` add up, as in the reference; prefixes are ignored."""
    numbers: list[int] = []
    if text := args.get("IP", ""):
        try:
            numbers.append(_plain(text))
        except ValueError as error:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: IP={text[:80]!r} is no IP address") from error
    for fields in (config.cni_args, config.runtime):
        for text in fields.texts("ips"):
            try:
                numbers.append(_plain(text))
            except ValueError as error:
                raise fields.error("ips", "a list of IP addresses") from error
    return tuple(dict.fromkeys(numbers))


def _plain(text: str) -> int:
    base, slash, length = text.partition("/")
    if slash and not (length.isascii() and length.isdigit() and int(length) <= (128 if ":" in base else 32)):
        raise ValueError(text)
    return to_number(parse_address(base))
