"""Results: what ADD answers, in every version of the specification from 0.1.0 to 1.1.0.

Inside netloom there is one form, `Result`; this module reads the older forms into it and writes it back in the version
that the configuration asks for. It refuses addresses and routes that are not such (code 6).
Sources: CNI SPEC 0.1.0, 0.2.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0, each in its section 'Result'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

from .errors import CniError, Code

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = VERSIONS[-1]


def version_order(version: str) -> tuple[int, ...]:
    """A version as numbers that compare."""
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True, slots=True)
class Interface:
    """One link that the chain made; `sandbox` is the netns path, empty on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class IPConfig:
    """One address of the pod; `interface` is an index into `Result.interfaces`."""

    address: IPInterface
    gateway: IPAddress | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the pod; zero and None mean 'not given'."""

    dst: IPNetwork
    gw: IPAddress | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class Dns:
    """Name resolution for the pod; the runtime writes it to resolv.conf."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        body: dict[str, object] = {}
        if self.nameservers:
            body["nameservers"] = list(self.nameservers)
        if self.domain:
            body["domain"] = self.domain
        if self.search:
            body["search"] = list(self.search)
        if self.options:
            body["options"] = list(self.options)
        return body


@dataclass(frozen=True, slots=True)
class Result:
    """The state of an attachment after ADD."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)

    def to_json(self, version: str) -> dict[str, object]:
        """The result as the specification of `version` writes it."""
        order = version_order(version)
        if order < (0, 3):
            return _to_legacy(self, version)
        body: dict[str, object] = {"cniVersion": version}
        if self.interfaces:
            body["interfaces"] = [_interface_to_json(i, rich=order >= (1, 1)) for i in self.interfaces]
        if self.ips:
            body["ips"] = [_ip_to_json(ip, with_version=order < (1, 0)) for ip in self.ips]
        if self.routes:
            body["routes"] = [_route_to_json(r, rich=order >= (1, 1)) for r in self.routes]
        body["dns"] = self.dns.to_json()
        return body

    def with_interface_index(self, index: int) -> Result:
        """The same result with every address on the interface at `index`."""
        return replace(self, ips=tuple(replace(ip, interface=index) for ip in self.ips))

    def pod_interfaces(self, sandbox: str = "") -> tuple[Interface, ...]:
        """The links inside the pod: those with a sandbox (of that path, if given)."""
        return tuple(i for i in self.interfaces if i.sandbox and (not sandbox or i.sandbox == sandbox))


def parse_result(body: object) -> Result:
    """Read a result of any version. Raises CniError 6 where it is none."""
    if not isinstance(body, Mapping):
        raise CniError(Code.DECODING_FAILURE, f"a result must be a JSON object, not {type(body).__name__}")
    try:
        if "ip4" in body or "ip6" in body:
            return _from_legacy(body)
        return Result(
            interfaces=tuple(_interface(i) for i in body.get("interfaces") or ()),
            ips=tuple(_ip(ip) for ip in body.get("ips") or ()),
            routes=tuple(_route(r) for r in body.get("routes") or ()),
            dns=parse_dns(body.get("dns") or {}),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CniError(Code.DECODING_FAILURE, "could not read a result", f"{type(error).__name__}: {error}") from error


def parse_dns(body: object) -> Dns:
    """Read a `dns` object. Raises ValueError or TypeError."""
    if not isinstance(body, Mapping):
        raise TypeError("dns must be an object")
    lists = {key: body.get(key) or [] for key in ("nameservers", "search", "options")}
    if not all(isinstance(v, list) and all(isinstance(x, str) for x in v) for v in lists.values()):
        raise TypeError("dns nameservers, search and options must be lists of strings")
    domain = body.get("domain") or ""
    if not isinstance(domain, str):
        raise TypeError("dns domain must be a string")
    return Dns(tuple(lists["nameservers"]), domain, tuple(lists["search"]), tuple(lists["options"]))


def parse_route(body: object) -> Route:
    """Read one route object. Raises ValueError, TypeError or KeyError."""
    return _route(body)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _number(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _interface(body: object) -> Interface:
    if not isinstance(body, Mapping):
        raise TypeError("an interface must be an object")
    return Interface(
        name=_text(body["name"]),
        mac=_text(body.get("mac")),
        mtu=_number(body.get("mtu")),
        sandbox=_text(body.get("sandbox")),
        socket_path=_text(body.get("socketPath")),
        pci_id=_text(body.get("pciID")),
    )


def _interface_to_json(interface: Interface, *, rich: bool) -> dict[str, object]:
    body: dict[str, object] = {"name": interface.name}
    if interface.mac:
        body["mac"] = interface.mac
    if rich and interface.mtu:
        body["mtu"] = interface.mtu
    if interface.sandbox:
        body["sandbox"] = interface.sandbox
    if rich and interface.socket_path:
        body["socketPath"] = interface.socket_path
    if rich and interface.pci_id:
        body["pciID"] = interface.pci_id
    return body


def _ip(body: object) -> IPConfig:
    if not isinstance(body, Mapping):
        raise TypeError("an ip must be an object")
    gateway = _text(body.get("gateway"))
    interface = body.get("interface")
    return IPConfig(
        address=ip_interface(_text(body["address"])),
        gateway=ip_address(gateway) if gateway else None,
        interface=None if interface is None else _number(interface),
    )


def _ip_to_json(ip: IPConfig, *, with_version: bool) -> dict[str, object]:
    body: dict[str, object] = {"version": str(ip.address.version)} if with_version else {}
    if ip.interface is not None:
        body["interface"] = ip.interface
    body["address"] = str(ip.address)
    if ip.gateway is not None:
        body["gateway"] = str(ip.gateway)
    return body


def _route(body: object) -> Route:
    if not isinstance(body, Mapping):
        raise TypeError("a route must be an object")
    gateway = _text(body.get("gw"))
    table, scope = body.get("table"), body.get("scope")
    return Route(
        dst=ip_network(_text(body["dst"]), strict=False),
        gw=ip_address(gateway) if gateway else None,
        mtu=_number(body.get("mtu")),
        advmss=_number(body.get("advmss")),
        priority=_number(body.get("priority")),
        table=None if table is None else _number(table),
        scope=None if scope is None else _number(scope),
    )


def _route_to_json(route: Route, *, rich: bool) -> dict[str, object]:
    body: dict[str, object] = {"dst": str(route.dst)}
    if route.gw is not None:
        body["gw"] = str(route.gw)
    if rich:
        for key in ("mtu", "advmss", "priority"):
            if value := getattr(route, key):
                body[key] = value
        if route.table is not None:
            body["table"] = route.table
        if route.scope is not None:
            body["scope"] = route.scope
    return body


def _from_legacy(body: Mapping[str, object]) -> Result:
    """CNI SPEC 0.2.0: at most one address a family, with its routes inside."""
    ips: list[IPConfig] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        part = body.get(key)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise TypeError(f"{key} must be an object")
        ips.append(_ip({"address": part["ip"], "gateway": part.get("gateway")}))
        routes.extend(_route(r) for r in part.get("routes") or ())
    return Result(ips=tuple(ips), routes=tuple(routes), dns=parse_dns(body.get("dns") or {}))


def _to_legacy(result: Result, version: str) -> dict[str, object]:
    body: dict[str, object] = {"cniVersion": version}
    for ip in result.ips:
        key = f"ip{ip.address.version}"
        if key in body:
            continue  # the old form has room for one address a family
        part: dict[str, object] = {"ip": str(ip.address)}
        if ip.gateway is not None:
            part["gateway"] = str(ip.gateway)
        routes = [_route_to_json(r, rich=False) for r in result.routes if r.dst.version == ip.address.version]
        if routes:
            part["routes"] = routes
        body[key] = part
    body["dns"] = result.dns.to_json()
    return body
