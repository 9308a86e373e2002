"""Topologies as data: reads a TOML file into frozen values, and refuses whatever it does not know, naming file and key.

A topology has hosts (loopback addresses, routes, sysctls) and links (two ends, each a host, a name and addresses; an
MTU). network.py makes it real; topologies/*.toml are the ones we ship, each with its drawing on top.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from namespaces import NAME

if TYPE_CHECKING:
    from network import Network

SHIPPED = Path(__file__).resolve().with_name("topologies")
# IFNAMSIZ is 16 with the final zero; a slash or a colon would name another thing in /proc/sys and in old tools.
LINK_NAME = re.compile(r"(?!\.\.?$)[^\s/:]{1,15}")
# Only what is per network namespace: any other sysctl would change the machine under test.
SYSCTL_NAME = re.compile(r"net\.[A-Za-z0-9_./-]+")
MTU_SMALLEST = 1280  # RFC 8200 5: below it the kernel takes IPv6 off the link
MTU_LARGEST = 65535
MTU_DEFAULT = 1500

# What TOML calls the types we ask for.
KINDS: dict[type, str] = {str: "a string", int: "a number", list: "a list", dict: "a table"}

T = TypeVar("T")


class TopologyError(Exception):
    """A topology file that says something wrong; the text has the file, the key and what is wrong."""


@dataclass(frozen=True, slots=True)
class Route:
    """`to` is reached over the neighbour `via`."""

    to: IPv4Network | IPv6Network
    via: IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Host:
    """One machine."""

    name: str
    loopback: tuple[IPv4Interface | IPv6Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link: an interface `name` with `addresses` on `host`."""

    host: str
    name: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A wire (veth pair) between two hosts; `mtu` in bytes."""

    ends: tuple[End, End]
    mtu: int = MTU_DEFAULT


@dataclass(frozen=True, slots=True)
class Topology:
    """Hosts and the links between them. Two topologies are the same when they are equal; up() may be called again."""

    name: str
    drawing: str
    hosts: tuple[Host, ...]
    links: tuple[Link, ...]

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """Read a shipped topology by its name, or any by the path of its .toml file. Raises TopologyError."""
        path = Path(source)
        if path.suffix != ".toml":
            path = SHIPPED / f"{source}.toml"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise TopologyError(f"no topology {str(source)!r}; there are: {', '.join(shipped_names())}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise TopologyError(f"{path}: {error}") from error
        return cls.parse(text, name=path.stem, file=str(path))

    @classmethod
    def parse(cls, text: str, *, name: str, file: str = "<text>") -> Self:
        """Read a topology from TOML text; `file` is what errors call it. Raises TopologyError."""
        try:
            document: dict[str, object] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise TopologyError(f"{file}: {error}") from error
        try:
            hosts, links = parse_document(document)
            refuse_contradictions(hosts, links)
        except ValueError as error:
            raise TopologyError(f"{file}: {error}") from error
        return cls(name=name, drawing=drawing_of(text), hosts=hosts, links=links)

    def up(self) -> Network:
        """Make it real; close() of the result undoes everything, as does a failure on the way."""
        from network import bring_up  # here, since it loads pyroute2: 0.1 s that `list` and most test runs do not need

        return bring_up(self)


def shipped_names() -> tuple[str, ...]:
    """The topologies of this folder."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def drawing_of(text: str) -> str:
    """The comment at the top of a topology file, without its `#`."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].rstrip())
    return "\n".join(lines)


def parse_document(document: dict[str, object]) -> tuple[tuple[Host, ...], tuple[Link, ...]]:
    """The whole file. Raises ValueError whose text begins with the key."""
    refuse_unknown(document, "", ("hosts", "links"))
    hosts = tuple(
        parse_host(name, expect(value, dict, f"hosts.{name}"))
        for name, value in expect(document.get("hosts", {}), dict, "hosts").items()
    )
    if not hosts:
        raise ValueError("hosts: there is none")
    links = tuple(
        parse_link(expect(value, dict, f"links[{index}]"), f"links[{index}]")
        for index, value in enumerate(expect(document.get("links", []), list, "links"))
    )
    return hosts, links


def parse_host(name: str, table: dict[str, object]) -> Host:
    """One [hosts.NAME] table."""
    where = f"hosts.{name}"
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: not a name for a host")
    refuse_unknown(table, where, ("loopback", "routes", "sysctls"))
    sysctls = []
    for key, value in expect(table.get("sysctls", {}), dict, f"{where}.sysctls").items():
        if not SYSCTL_NAME.fullmatch(key) or ".." in key:
            raise ValueError(f"{where}.sysctls.{key}: only net.* belongs to a host, others change the machine")
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(f"{where}.sysctls.{key}: expected a number or a string, not {value!r}")
        sysctls.append((key, str(value)))
    return Host(
        name=name,
        loopback=parse_addresses(table.get("loopback", []), f"{where}.loopback"),
        routes=tuple(
            parse_route(expect(value, dict, f"{where}.routes[{index}]"), f"{where}.routes[{index}]")
            for index, value in enumerate(expect(table.get("routes", []), list, f"{where}.routes"))
        ),
        sysctls=tuple(sysctls),
    )


def parse_route(table: dict[str, object], where: str) -> Route:
    """One `{ to = ..., via = ... }`."""
    refuse_unknown(table, where, ("to", "via"))
    try:
        route = Route(
            to=ip_network(required_text(table, "to", where)), via=ip_address(required_text(table, "via", where))
        )
    except ValueError as error:
        raise ValueError(error if str(error).startswith(where) else f"{where}: {error}") from error
    if route.to.version != route.via.version:
        raise ValueError(f"{where}: {route.to} and {route.via} are of two families")
    return route


def parse_link(table: dict[str, object], where: str) -> Link:
    """One [[links]] table."""
    refuse_unknown(table, where, ("ends", "mtu"))
    ends = expect(table.get("ends", []), list, f"{where}.ends")
    if len(ends) != 2:
        raise ValueError(f"{where}.ends: a link has two, not {len(ends)}")
    mtu = expect(table.get("mtu", MTU_DEFAULT), int, f"{where}.mtu")
    if not MTU_SMALLEST <= mtu <= MTU_LARGEST:
        raise ValueError(f"{where}.mtu: {mtu} is not within {MTU_SMALLEST}-{MTU_LARGEST}")
    first, second = (
        parse_end(expect(end, dict, f"{where}.ends[{index}]"), f"{where}.ends[{index}]")
        for index, end in enumerate(ends)
    )
    return Link(ends=(first, second), mtu=mtu)


def parse_end(table: dict[str, object], where: str) -> End:
    """One end of a link."""
    refuse_unknown(table, where, ("host", "name", "addresses"))
    name = required_text(table, "name", where)
    if not LINK_NAME.fullmatch(name) or name == "lo":
        raise ValueError(f"{where}.name: {name!r} is no name for a link (1-15 characters, no '/', ':' or space)")
    return End(
        host=required_text(table, "host", where),
        name=name,
        addresses=parse_addresses(table.get("addresses", []), f"{where}.addresses"),
    )


def parse_addresses(value: object, where: str) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """A list of addresses, each with its prefix length."""
    addresses = []
    for index, item in enumerate(expect(value, list, where)):
        text = expect(item, str, f"{where}[{index}]")
        if "/" not in text:
            raise ValueError(f"{where}[{index}]: {text!r} lacks its prefix length")
        try:
            addresses.append(ip_interface(text))
        except ValueError as error:
            raise ValueError(f"{where}[{index}]: {error}") from error
    return tuple(addresses)


def refuse_contradictions(hosts: tuple[Host, ...], links: tuple[Link, ...]) -> None:
    """What is wrong only when seen together: unknown hosts, names or addresses used twice, neighbours out of reach."""
    names = {host.name for host in hosts}
    ends = [(f"links[{n}].ends[{m}]", end) for n, link in enumerate(links) for m, end in enumerate(link.ends)]
    for where, end in ends:
        if end.host not in names:
            raise ValueError(f"{where}.host: there is no host {end.host!r}")
    refuse_twice((f"{where}.name", f"{end.name} of host {end.host}") for where, end in ends)
    addressed = [(f"{where}.addresses", address) for where, end in ends for address in end.addresses]
    addressed += [(f"hosts.{host.name}.loopback", address) for host in hosts for address in host.loopback]
    refuse_twice((where, str(address.ip)) for where, address in addressed)
    for host in hosts:
        networks = [address.network for _, end in ends if end.host == host.name for address in end.addresses]
        for index, route in enumerate(host.routes):
            if not any(route.via in network for network in networks):
                raise ValueError(f"hosts.{host.name}.routes[{index}].via: {route.via} is on no link of {host.name}")


def refuse_twice(items: Iterable[tuple[str, str]]) -> None:
    """Each (where, what) must have a `what` of its own."""
    seen: dict[str, str] = {}
    for where, what in items:
        if what in seen:
            raise ValueError(f"{where}: {what} is at {seen[what]} already")
        seen[what] = where


def refuse_unknown(table: dict[str, object], where: str, known: tuple[str, ...]) -> None:
    """A misspelt key would silently test less than its writer meant."""
    for key in table:
        if key not in known:
            raise ValueError(f"{where}{'.' if where else ''}{key}: unknown key; there are: {', '.join(known)}")


def required_text(table: dict[str, object], key: str, where: str) -> str:
    """The string at `key`, which must be there."""
    if key not in table:
        raise ValueError(f"{where}.{key}: missing")
    return expect(table[key], str, f"{where}.{key}")


def expect(value: object, kind: type[T], where: str) -> T:
    """`value`, known to be of `kind`; a boolean is no number here."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: expected {KINDS[kind]}, not {value!r}")
    return value
