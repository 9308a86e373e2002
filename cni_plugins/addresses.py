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

from .errors import CniError, Code
from .links import Link, open_route
from .netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    u32_attribute,
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
# struct ifaddrmsg and linux/if_addr.h, struct rtmsg and linux/rtnetlink.h
_IFADDRMSG, _RTMSG = struct.Struct("=BBBBI"), struct.Struct("=BBBBBBBBI")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 8, 9, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_AF = {4: sockets.AF_INET, 6: sockets.AF_INET6}


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address that a link has."""

    address: IPInterface
    flags: int


def list_addresses(socket: NetlinkSocket, link: Link, family: int) -> list[HeldAddress]:
    """The addresses of `family` (4 or 6) on one link; the kernel filters."""
    found = []
    request = _IFADDRMSG.pack(_AF[family], 0, 0, 0, link.index)
    for body in socket.dump(Message(_GETADDR, 0, request, f"listing addresses of {link.name}")):
        if int.from_bytes(body[4:8], "little") != link.index:
            continue
        parts = attributes(body, 8)
        packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
        if not packed:
            continue
        flags = int.from_bytes(parts[_IFA_FLAGS], "little") if _IFA_FLAGS in parts else body[2]
        found.append(HeldAddress(_interface(ip_address(packed), body[1]), flags))
    return found


def _interface(address: Any, length: int) -> IPInterface:
    return ip_interface((address, length))


def ensure_address(socket: NetlinkSocket, link: Link, step: Address) -> bool:
    """Add an address. Returns whether it was missing."""
    flags, more = 0, b""
    if step.address.version == 4:
        if step.address.network.prefixlen < 31:
            more = attribute(_IFA_BROADCAST, step.address.network.broadcast_address.packed)
    elif not step.dad:
        flags, more = _IFA_F_NODAD, u32_attribute(_IFA_FLAGS, _IFA_F_NODAD)
    request = Message(
        _NEWADDR,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        _address(link, step.address, flags) + more,
        f"adding address {step.address} to {link.name}",
        frozenset((errno.EEXIST,)),
    )
    return socket.run([request])[0].number == 0


def delete_address(socket: NetlinkSocket, link: Link, address: IPInterface) -> None:
    """Remove an address; fine if it is gone."""
    doing = f"removing address {address} from {link.name}"
    gone = frozenset((errno.EADDRNOTAVAIL, errno.ENODEV))
    socket.run([Message(_DELADDR, NLM_F_ACK, _address(link, address), doing, gone)])


def _address(link: Link, address: IPInterface, flags: int = 0) -> bytes:
    header = _IFADDRMSG.pack(_AF[address.version], address.network.prefixlen, flags, 0, link.index)
    return header + attribute(_IFA_LOCAL, address.ip.packed) + attribute(_IFA_ADDRESS, address.ip.packed)


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
    scope = step.scope if step.scope is not None else (_SCOPE_UNIVERSE if step.gw else _SCOPE_LINK)
    table = step.table if step.table is not None else _RT_TABLE_MAIN
    parts = [
        _route(step.dst.version, step.dst.prefixlen, table if table < 256 else 0, _RTPROT_BOOT, scope, _RTN_UNICAST),
        u32_attribute(_RTA_OIF, link.index),
        u32_attribute(_RTA_TABLE, table),
    ]
    if step.dst.prefixlen:
        parts.append(attribute(_RTA_DST, step.dst.network_address.packed))
    if step.gw is not None:
        parts.append(attribute(_RTA_GATEWAY, step.gw.packed))
    if step.priority:
        parts.append(u32_attribute(_RTA_PRIORITY, step.priority))
    metrics = [u32_attribute(k, v) for k, v in ((_RTAX_MTU, step.mtu), (_RTAX_ADVMSS, step.advmss)) if v]
    if metrics:
        parts.append(nested(_RTA_METRICS, *metrics))
    request = Message(
        _NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE,
        b"".join(parts),
        f"adding route {step.dst}" + (f" via {step.gw}" if step.gw else "") + f" dev {link.name}",
        frozenset((errno.EEXIST,)),
    )
    socket.run([request])


def link_towards(socket: NetlinkSocket, address: IPAddress) -> str:
    """The name of the caller's link that leads to `address` without a gateway; empty where none does."""
    request = _route(address.version, address.max_prefixlen) + attribute(_RTA_DST, address.packed)
    answer = socket.exchange([Message(_GETROUTE, 0, request, f"looking for the way to {address}")])[0]
    if answer.number or not answer.bodies:
        return ""
    found = attributes(answer.bodies[0], 12)
    index = int.from_bytes(found.get(_RTA_OIF, b""), "little")
    return sockets.if_indextoname(index) if index and _RTA_GATEWAY not in found else ""


def _route(version: int, dst_len: int, table: int = 0, protocol: int = 0, scope: int = 0, kind: int = 0) -> bytes:
    return _RTMSG.pack(_AF[version], dst_len, 0, 0, table, protocol, scope, kind, 0)


def has_route(socket: NetlinkSocket, link: Link, step: RouteTo) -> bool:
    """Whether the link has a route to that destination by that gateway. The pod's tables are small; the kernel
    filters by link."""
    request = _route(step.dst.version, 0) + u32_attribute(_RTA_OIF, link.index)
    for body in socket.dump(Message(_GETROUTE, 0, request, f"listing routes of {link.name}")):
        found = attributes(body, 12)
        dst = found.get(_RTA_DST, b"\0" * len(step.dst.network_address.packed))
        if body[1] != step.dst.prefixlen or dst != step.dst.network_address.packed:
            continue
        if (step.gw.packed if step.gw else None) not in _gateways(link, found):
            continue
        if step.table is None or int.from_bytes(found.get(_RTA_TABLE, b""), "little") == step.table:
            return True
    return False


def _gateways(link: Link, route: dict[int, bytes]) -> set[bytes | None]:
    """The gateways by which a dumped route leaves through the link. IPv6 shows the routes of one destination as one
    with several hops (RTA_MULTIPATH: struct rtnexthop and its attributes, linux/rtnetlink.h)."""
    hops = route.get(_RTA_MULTIPATH)
    if hops is None:
        return {route.get(_RTA_GATEWAY)}
    found = set()
    offset = 0
    while offset + 8 <= len(hops):
        length, _, _, index = struct.unpack_from("=HBBi", hops, offset)
        if length < 8:
            break
        if index == link.index:
            found.add(attributes(hops[: offset + length], offset + 8).get(_RTA_GATEWAY))
        offset += (length + 3) & ~3
    return found
