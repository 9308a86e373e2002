"""static: the addresses that the configuration, or the runtime, names. It keeps no state.

Sources, as in the reference: `ipam.addresses` and those of CNI_ARGS `IP` add up (`GATEWAY` goes to the latter that can
reach it); `args.cni.ips` replaces them all, and `runtimeConfig.ips` replaces that. All are in CIDR notation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_interface

from cni_plugins.errors import CniError, Code, check_failed, invalid_config
from cni_plugins.fields import Fields
from cni_plugins.protocol import Call, Config
from cni_plugins.results import Dns, IPAddress, IPConfig, IPInterface, Result, parse_dns
from cni_plugins.skel import Plugin

from .ranges import check_one_per_family, parse_address, parse_routes


def add(call: Call) -> Result:
    """The configured addresses, routes and name servers."""
    return _settings(call.config, call.args)


def delete(call: Call) -> None:
    """Nothing was kept."""


def check(call: Call) -> None:
    """prevResult still has every configured address, with its gateway."""
    previous = call.config.prev_result or Result()
    for ip in _settings(call.config, call.args).ips:
        found = [p for p in previous.ips if p.address.ip == ip.address.ip]
        if not found:
            raise check_failed(f"prevResult lacks the address {ip.address}")
        if ip.gateway is not None and all(p.gateway != ip.gateway for p in found):
            raise check_failed(f"prevResult has {ip.address} with another gateway than {ip.gateway}")


def gc(call: Call) -> None:
    """Nothing was kept."""


def status(call: Call) -> None:
    """A configuration that can be read can be served."""
    _settings(call.config, call.args)


def explain(call: Call) -> str:
    """The addresses and routes."""
    result = _settings(call.config, call.args)
    lines = [f"address {ip.address}" + (f", gateway {ip.gateway}" if ip.gateway else "") for ip in result.ips]
    lines += [f"route {route.dst}" + (f" by {route.gw}" if route.gw else "") for route in result.routes]
    return "".join(f"{line}\n" for line in lines) or "no addresses\n"


def _settings(config: Config, args: Mapping[str, str]) -> Result:
    if "ipam" not in config.fields:
        raise invalid_config("the configuration has no 'ipam' object")
    ipam = config.fields.inner("ipam")
    ips = _configured(ipam) + _from_args(args)
    for fields in (config.cni_args, config.runtime):
        if texts := fields.texts("ips"):
            ips = [IPConfig(_interface(fields, "ips", text)) for text in texts]
    check_one_per_family([ip.address.version for ip in ips], config.cni_version)
    return Result(ips=tuple(ips), routes=parse_routes(ipam), dns=_dns(ipam))


def _configured(ipam: Fields) -> list[IPConfig]:
    ips = []
    for item in ipam.items("addresses"):
        gateway = item.text("gateway")
        try:
            parsed = parse_address(gateway) if gateway else None
        except ValueError as error:
            raise item.error("gateway", "an IP address") from error
        ips.append(IPConfig(_interface(item, "address", item.text("address")), parsed))
    return ips


def _from_args(args: Mapping[str, str]) -> list[IPConfig]:
    ips = []
    for text in filter(None, args.get("IP", "").split(",")):
        try:
            ips.append(IPConfig(_parse_interface(text.strip())))
        except ValueError as error:
            raise _bad_args("IP", text, "addresses in CIDR notation") from error
    for text in filter(None, args.get("GATEWAY", "").split(",")):
        try:
            gateway: IPAddress = parse_address(text.strip())
        except ValueError as error:
            raise _bad_args("GATEWAY", text, "IP addresses") from error
        ips = [replace(ip, gateway=gateway) if gateway in ip.address.network else ip for ip in ips]
    return ips


def _bad_args(key: str, text: str, expected: str) -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {key} must hold {expected}, not {text[:80]!r}")


def _dns(ipam: Fields) -> Dns:
    try:
        return parse_dns(ipam.raw().get("dns") or {})
    except (TypeError, ValueError) as error:
        raise invalid_config("ipam.dns is wrong", str(error)) from error


def _interface(fields: Fields, key: str, text: str) -> IPInterface:
    try:
        return _parse_interface(text)
    except ValueError as error:
        raise fields.error(key, "in CIDR notation, as 10.1.0.5/24") from error


def _parse_interface(text: str) -> IPInterface:
    """An address with its prefix length; an IPv4-mapped one becomes IPv4, as in Go. Raises ValueError."""
    base, _, length = text.partition("/")
    if not (length.isascii() and length.isdigit()):
        raise ValueError(f"{text!r} has no prefix length")
    address = parse_address(base)
    prefix = int(length) - (96 if ":" in base and address.version == 4 else 0)
    if not 0 <= prefix <= address.max_prefixlen:
        raise ValueError(f"{text!r} has no valid prefix length")
    return ip_interface((address, prefix))


PLUGIN = Plugin(
    name="static",
    about="gives a pod the addresses that its configuration names",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    explain=explain,
    preview=add,
)
