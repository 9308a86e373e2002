"""Addresses and routes of links, over rtnetlink: ensure, observe, remove, and wait for duplicate address detection.

Listings are filtered by link, in the kernel. Links themselves are in links.py.
"""

from __future__ import annotations

import errno
import select
import socket as sockets
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from .errors import CniError, Code
from .links import Link, open_route
from .netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkSocket,
    attributes,
    encode,
)
from .netns import Netns, inside
from .plan import Address, RouteTo
from .results import IPAddress, IPInterface

_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _GETROUTE = 24, 26
_IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x02, 0x08, 0x40
_RTMGRP_IPV6_IFADDR = 1 << 8
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTN_UNICAST = 254, 3, 1
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_AF = {4: sockets.AF_INET, 6: sockets.AF_INET6}


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address that a link has."""

    address: IPInterface
    flags: int


def list_addresses(socket: NetlinkSocket, link: Link, family: int) -> list[HeldAddress]:
    """The addresses of `family` (4 or 6) on one link; the kernel filters."""
    message = ifaddrmsg()
    message["family"] = _AF[family]
    message["index"] = link.index
    found = []
    for body in socket.dump(Message(_GETADDR, 0, encode(message), f"listing addresses of {link.name}")):
        if int.from_bytes(body[4:8], "little") != link.index:
            continue
        parts = attributes(body, 8)
        packed = parts.get(2) or parts.get(1)  # IFA_LOCAL, else IFA_ADDRESS
        if not packed:
            continue
        flags = int.from_bytes(parts[8], "little") if 8 in parts else body[2]
        found.append(HeldAddress(_interface(ip_address(packed), body[1]), flags))
    return found


def _interface(address: Any, length: int) -> IPInterface:
    return ip_interface((address, length))


def ensure_address(socket: NetlinkSocket, link: Link, step: Address) -> bool:
    """Add an address. Returns whether it was missing."""
    message = ifaddrmsg()
    message["family"] = _AF[step.address.version]
    message["prefixlen"] = step.address.network.prefixlen
    message["index"] = link.index
    attrs: list[tuple[str, Any]] = [("IFA_LOCAL", str(step.address.ip)), ("IFA_ADDRESS", str(step.address.ip))]
    if step.address.version == 4:
        if step.address.network.prefixlen < 31:
            attrs.append(("IFA_BROADCAST", str(step.address.network.broadcast_address)))
    elif not step.dad:
        message["flags"] = _IFA_F_NODAD
        attrs.append(("IFA_FLAGS", _IFA_F_NODAD))
    message["attrs"] = attrs
    request = Message(
        _NEWADDR,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        encode(message),
        f"adding address {step.address} to {link.name}",
        frozenset((errno.EEXIST,)),
    )
    return socket.run([request])[0].number == 0


def delete_address(socket: NetlinkSocket, link: Link, address: IPInterface) -> None:
    """Remove an address; fine if it is gone."""
    message = ifaddrmsg()
    message["family"] = _AF[address.version]
    message["prefixlen"] = address.network.prefixlen
    message["index"] = link.index
    message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    doing = f"removing address {address} from {link.name}"
    gone = frozenset((errno.EADDRNOTAVAIL, errno.ENODEV))
    socket.run([Message(_DELADDR, NLM_F_ACK, encode(message), doing, gone)])


def wait_for_dad(netns: Netns, link: Link, within_s: float) -> None:
    """Wait until no address of the link is tentative, by the kernel's events. Raises CniError 11 on a timeout, and
    where an address turned out to be taken (RFC 4862, 5.4.5)."""
    with inside(netns):
        events = sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW | sockets.SOCK_CLOEXEC, NETLINK_ROUTE)
    with events, open_route(netns) as socket:
        events.bind((0, _RTMGRP_IPV6_IFADDR))
        deadline = time.monotonic() + within_s
        while True:
            held = list_addresses(socket, link, 6)
            failed = [str(h.address) for h in held if h.flags & _IFA_F_DADFAILED]
            if failed:
                raise CniError(Code.CONFLICT, f"{', '.join(failed)} is in use by another host (duplicate address)")
            if not any(h.flags & _IFA_F_TENTATIVE for h in held):
                return
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([events], [], [], left)[0]:
                raise CniError(Code.TRY_AGAIN, f"duplicate address detection on {link.name} took over {within_s} s")
            events.recv(1 << 16)


def ensure_route(socket: NetlinkSocket, link: Link, step: RouteTo) -> None:
    """Add a route; fine if it is there. As with the reference, one to the same destination by another gateway (a second
    network's default route) does not matter: IPv4 prefers the new one, IPv6 takes both."""
    message = rtmsg()
    message["family"] = _AF[step.dst.version]
    message["dst_len"] = step.dst.prefixlen
    message["proto"] = _RTPROT_BOOT
    message["type"] = _RTN_UNICAST
    message["scope"] = step.scope if step.scope is not None else (_SCOPE_UNIVERSE if step.gw else _SCOPE_LINK)
    table = step.table if step.table is not None else _RT_TABLE_MAIN
    message["table"] = table if table < 256 else 0
    attrs: list[tuple[str, Any]] = [("RTA_OIF", link.index), ("RTA_TABLE", table)]
    if step.dst.prefixlen:
        attrs.append(("RTA_DST", str(step.dst.network_address)))
    if step.gw is not None:
        attrs.append(("RTA_GATEWAY", str(step.gw)))
    if step.priority:
        attrs.append(("RTA_PRIORITY", step.priority))
    metrics = [(name, value) for name, value in (("RTAX_MTU", step.mtu), ("RTAX_ADVMSS", step.advmss)) if value]
    if metrics:
        attrs.append(("RTA_METRICS", {"attrs": metrics}))
    message["attrs"] = attrs
    request = Message(
        _NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE,
        encode(message),
        f"adding route {step.dst}" + (f" via {step.gw}" if step.gw else "") + f" dev {link.name}",
        frozenset((errno.EEXIST,)),
    )
    socket.run([request])


def link_towards(socket: NetlinkSocket, address: IPAddress) -> str:
    """The name of the caller's link that leads to `address` without a gateway; empty where none does."""
    message = rtmsg()
    message["family"] = _AF[address.version]
    message["dst_len"] = address.max_prefixlen
    message["attrs"] = [("RTA_DST", str(address))]
    answer = socket.exchange([Message(_GETROUTE, 0, encode(message), f"looking for the way to {address}")])[0]
    if answer.number or not answer.bodies:
        return ""
    found = attributes(answer.bodies[0], 12)
    index = int.from_bytes(found.get(4, b""), "little")  # RTA_OIF
    return sockets.if_indextoname(index) if index and 5 not in found else ""  # RTA_GATEWAY


def has_route(socket: NetlinkSocket, link: Link, step: RouteTo) -> bool:
    """Whether the link has a route to that destination by that gateway. The pod's tables are small; the kernel
    filters by link."""
    message = rtmsg()
    message["family"] = _AF[step.dst.version]
    message["attrs"] = [("RTA_OIF", link.index)]
    for body in socket.dump(Message(_GETROUTE, 0, encode(message), f"listing routes of {link.name}")):
        found = attributes(body, 12)
        dst = found.get(1, b"\0" * len(step.dst.network_address.packed))
        if body[1] != step.dst.prefixlen or dst != step.dst.network_address.packed:
            continue
        if (step.gw.packed if step.gw else None) not in _gateways(link, found):
            continue
        if step.table is None or int.from_bytes(found.get(15, b""), "little") == step.table:
            return True
    return False


def _gateways(link: Link, route: dict[int, bytes]) -> set[bytes | None]:
    """The gateways by which a dumped route leaves through the link. IPv6 shows the routes of one destination as one
    with several hops (RTA_MULTIPATH: struct rtnexthop and its attributes, linux/rtnetlink.h)."""
    hops = route.get(9)
    if hops is None:
        return {route.get(5)}
    found = set()
    offset = 0
    while offset + 8 <= len(hops):
        length, _, _, index = struct.unpack_from("=HBBi", hops, offset)
        if length < 8:
            break
        if index == link.index:
            found.add(attributes(hops[: offset + length], offset + 8).get(5))
        offset += (length + 3) & ~3
    return found
