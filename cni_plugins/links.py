"""Links over rtnetlink: bridges, veth pairs and their properties are made, looked up, changed, deleted.

Everything is looked up by name or index; nothing lists all links of the host, GC apart. Errors are KernelErrors with
the kernel's own words. Addresses and routes are in addresses.py.
"""

from __future__ import annotations

import errno
import secrets
import socket as sockets
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import CniError, Code
from .netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Answer,
    KernelError,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    text_attribute,
    u32_attribute,
)
from .netns import Netns
from .plan import Bridge, Veth, Vlan

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_IFF_UP, _IFF_PROMISC, _IFF_ALLMULTI = 0x1, 0x100, 0x200
_NO_LINK, _NO_INDEX = frozenset((errno.ENODEV,)), frozenset((errno.ENODEV, errno.EINVAL))
# struct ifinfomsg and the attributes of linux/if_link.h
_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_TXQLEN = 1, 3, 4, 5, 10, 13
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 18, 20, 26, 28, 29
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_BR_VLAN_FILTERING, _BRPORT_STATE, _BRPORT_MODE, _BRPORT_ISOLATED = 7, 1, 4, 33
_BRIDGE_FLAGS, _BRIDGE_VLAN_INFO = 0, 2
_VETH_INFO_PEER = 1
# RTEXT_FILTER_SKIP_STATS: half of a link's description is counters.
_SKIP_STATS = u32_attribute(_IFLA_EXT_MASK, 1 << 3)


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of a link. `peer` is the other end's index (of a veth)."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    flags: int
    master: int
    peer: int
    alias: str
    txqlen: int
    slave_data: bytes
    data: bytes

    @property
    def is_up(self) -> bool:
        return bool(self.flags & _IFF_UP)

    @property
    def is_promisc(self) -> bool:
        return bool(self.flags & _IFF_PROMISC)

    @property
    def is_allmulti(self) -> bool:
        return bool(self.flags & _IFF_ALLMULTI)

    @property
    def port_state(self) -> int:
        """As a port of a bridge: BR_STATE_*; 3, forwarding, for other links."""
        return attributes(self.slave_data).get(_BRPORT_STATE, b"\3")[0]

    @property
    def is_hairpin(self) -> bool:
        return attributes(self.slave_data).get(_BRPORT_MODE, b"\0")[0] == 1

    @property
    def is_isolated(self) -> bool:
        return attributes(self.slave_data).get(_BRPORT_ISOLATED, b"\0")[0] == 1

    @property
    def filters_vlans(self) -> bool:
        return attributes(self.data).get(_BR_VLAN_FILTERING, b"\0")[0] == 1


def open_route(netns: Netns | None = None) -> NetlinkSocket:
    """A socket for links, addresses and routes in `netns` (None: the caller's)."""
    return NetlinkSocket(NETLINK_ROUTE, netns)


def _link(
    kind: int, how: int, doing: str, /, *parts: bytes, index: int = 0, flags: int = 0, change: int = 0, family: int = 0
) -> Message:
    header = _IFINFOMSG.pack(family, 0, index, flags, change)
    return Message(kind, how | NLM_F_ACK, header + b"".join(parts), doing)


def _name(name: str) -> bytes:
    return text_attribute(_IFLA_IFNAME, name)


def _mac(mac: str) -> bytes:
    return attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))


def _info(kind: str, *data: bytes) -> bytes:
    """IFLA_LINKINFO: the kind of a link and what is its alone."""
    return nested(_IFLA_LINKINFO, text_attribute(_INFO_KIND, kind), *((nested(_INFO_DATA, *data),) if data else ()))


def get_link(socket: NetlinkSocket, name: str) -> Link | None:
    """The link called `name`."""
    request = _link(_GETLINK, 0, f"looking for link {name}", _name(name), _SKIP_STATS)
    request.tolerated = _NO_LINK
    return _first(socket.run([request])[0])


def get_link_by_index(socket: NetlinkSocket, index: int) -> Link | None:
    """The link with that index."""
    request = _link(_GETLINK, 0, f"looking for link {index}", _SKIP_STATS, index=index)
    request.tolerated = _NO_INDEX
    return _first(socket.run([request])[0])


def require_link(socket: NetlinkSocket, name: str) -> Link:
    """The link called `name`. Raises KernelError ENODEV."""
    link = get_link(socket, name)
    if link is None:
        raise KernelError(errno.ENODEV, f"looking for link {name}")
    return link


def list_links(socket: NetlinkSocket) -> Iterator[Link]:
    """All links: for GC."""
    request = _link(_GETLINK, 0, "listing links", _SKIP_STATS)
    for body in socket.dump(request):
        yield _parse_link(body)


def _first(answer: Answer) -> Link | None:
    return _parse_link(answer.bodies[0]) if answer.bodies else None


def _parse_link(body: bytes) -> Link:
    found = attributes(body, 16)
    info = attributes(found.get(_IFLA_LINKINFO, b""))

    def number(key: int) -> int:
        return int.from_bytes(found.get(key, b""), "little")

    return Link(
        index=int.from_bytes(body[4:8], "little"),
        name=_text(found.get(_IFLA_IFNAME, b"")),
        kind=_text(info.get(_INFO_KIND, b"")),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=number(_IFLA_MTU),
        flags=int.from_bytes(body[8:12], "little"),
        master=number(_IFLA_MASTER),
        peer=number(_IFLA_LINK),
        alias=_text(found.get(_IFLA_IFALIAS, b"")),
        txqlen=number(_IFLA_TXQLEN),
        slave_data=info.get(_INFO_SLAVE_DATA, b""),
        data=info.get(_INFO_DATA, b""),
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def ensure_bridge(socket: NetlinkSocket, bridge: Bridge) -> Link:
    """Make the bridge, or take the one that is there; other ports and addresses of it are left alone. Raises
    CniError where a link of that name is no bridge, or lacks vlan filtering that is asked for."""
    link = get_link(socket, bridge.name)
    if link is None:
        data = (attribute(_BR_VLAN_FILTERING, b"\1"),) if bridge.vlan_filtering else ()
        parts = [_name(bridge.name), _mac(random_mac()), _info("bridge", *data)]
        if bridge.mtu:
            parts.append(u32_attribute(_IFLA_MTU, bridge.mtu))
        request = _link(
            _NEWLINK, NLM_F_CREATE | NLM_F_EXCL, f"making bridge {bridge.name}", *parts, flags=_IFF_UP, change=_IFF_UP
        )
        request.tolerated = frozenset((errno.EEXIST,))  # a parallel ADD was faster
        try:
            socket.run([request])
        except KernelError as error:
            if bridge.vlan_filtering and error.number in (errno.EOPNOTSUPP, errno.EINVAL):
                raise _no_vlan_filtering(bridge) from error
            raise
        link = require_link(socket, bridge.name)
    if link.kind != "bridge":
        raise CniError(
            Code.INVALID_CONFIG,
            f"link {bridge.name} exists and is no bridge but a {link.kind or 'device'}",
            "choose another name for the key 'bridge'",
        )
    if bridge.vlan_filtering and not link.filters_vlans:
        _filter_vlans(socket, bridge, link)
    change = (0 if link.is_up else _IFF_UP) | (_IFF_PROMISC if bridge.promisc and not link.is_promisc else 0)
    if change:
        set_flags(socket, link, change, change)
    return link


def _filter_vlans(socket: NetlinkSocket, bridge: Bridge, link: Link) -> None:
    info = _info("bridge", attribute(_BR_VLAN_FILTERING, b"\1"))
    request = _link(_NEWLINK, 0, f"switching on vlan filtering of {bridge.name}", info, index=link.index)
    try:
        socket.run([request])
    except KernelError as error:
        raise _no_vlan_filtering(bridge) from error
    after = get_link_by_index(socket, link.index)
    if after is None or not after.filters_vlans:
        raise _no_vlan_filtering(bridge)


def _no_vlan_filtering(bridge: Bridge) -> CniError:
    return CniError(
        Code.UNSUPPORTED_FIELD,
        f"bridge {bridge.name}: this kernel's bridges cannot filter vlans",
        "remove the keys vlan and vlanTrunk, or use a kernel with CONFIG_BRIDGE_VLAN_FILTERING",
    )


def random_mac() -> str:
    """A locally administered unicast address (IEEE 802-2014, 8.4)."""
    data = bytearray(secrets.token_bytes(6))
    data[0] = data[0] & 0xFC | 0x02
    return bytes(data).hex(":")


def make_veth(host: NetlinkSocket, pod: NetlinkSocket, netns: Netns, veth: Veth, *, bridge: Link) -> tuple[Link, Link]:
    """Make the pair, the pod's end in its namespace, down; the host's end up and in the bridge. Returns (host end,
    pod end). One message makes both ends, so a kill leaves no half. Raises CniError 101 where the pod has a link of
    that name already: that one is not touched."""
    if get_link(pod, veth.pod_name) is not None:
        raise _exists(veth)
    mtu = u32_attribute(_IFLA_MTU, veth.mtu) if veth.mtu else b""
    mac = _mac(veth.mac) if veth.mac else b""
    peer = (_IFINFOMSG.pack(0, 0, 0, 0, 0), _name(veth.pod_name), u32_attribute(_IFLA_NET_NS_FD, netns.fd), mtu, mac)
    request = _link(
        _NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        f"making veth {veth.host_name} with peer {veth.pod_name}",
        _name(veth.host_name),
        u32_attribute(_IFLA_MASTER, bridge.index),
        _info("veth", nested(_VETH_INFO_PEER, *peer)),
        mtu,
        flags=_IFF_UP,
        change=_IFF_UP,
    )
    try:
        host.run([request])
    except KernelError as error:
        if error.number == errno.EEXIST:
            raise _exists(veth) from error
        raise
    try:
        return _set_port(host, veth), require_link(pod, veth.pod_name)
    except BaseException:
        delete_link(host, veth.host_name)
        raise


def _exists(veth: Veth) -> CniError:
    return CniError(
        Code.ALREADY_EXISTS,
        f"interface {veth.pod_name} exists in the pod already",
        "DEL the attachment first, or use another CNI_IFNAME",
    )


def _set_port(host: NetlinkSocket, veth: Veth) -> Link:
    name = _name(veth.host_name)
    requests = [_link(_SETLINK, 0, f"tagging {veth.host_name}", name, text_attribute(_IFLA_IFALIAS, veth.alias))]
    if veth.hairpin or veth.isolated:
        hairpin = attribute(_BRPORT_MODE, b"\1") if veth.hairpin else b""
        isolated = attribute(_BRPORT_ISOLATED, b"\1") if veth.isolated else b""
        port = nested(_INFO_SLAVE_DATA, hairpin, isolated)
        info = nested(_IFLA_LINKINFO, text_attribute(_INFO_SLAVE_KIND, "bridge"), port)
        requests.append(_link(_NEWLINK, 0, f"setting hairpin or isolation of {veth.host_name}", name, info))
    requests.append(_link(_GETLINK, 0, f"looking for link {veth.host_name}", name, _SKIP_STATS))
    link = _first(host.run(requests)[-1])
    assert link is not None, "a request without an error has an answer"
    if veth.drop_default_vlan:
        set_vlans(host, link, (Vlan(1, 1),), remove=True)
    if veth.vlans:
        set_vlans(host, link, veth.vlans)
    return link


def set_vlans(
    host: NetlinkSocket, link: Link, vlans: tuple[Vlan, ...], *, remove: bool = False, own: bool = False
) -> None:
    """Add (or remove) VLAN ids of a bridge port, or of the bridge itself (`own`)."""
    entries = [attribute(_BRIDGE_FLAGS, struct.pack("=H", 2))] if own else []
    for vlan in vlans:
        flags = 0x2 | 0x4 if vlan.pvid else 0  # BRIDGE_VLAN_INFO_PVID, _UNTAGGED
        is_range = vlan.first != vlan.last
        pairs = [(flags | 0x8, vlan.first), (flags | 0x10, vlan.last)] if is_range else [(flags, vlan.first)]
        entries += [attribute(_BRIDGE_VLAN_INFO, struct.pack("=HH", *pair)) for pair in pairs]
    kind = _DELLINK if remove else _SETLINK
    doing = f"{'removing' if remove else 'setting'} vlans of {link.name}"
    request = _link(kind, 0, doing, nested(_IFLA_AF_SPEC, *entries), index=link.index, family=sockets.AF_BRIDGE)
    if remove:
        request.tolerated = frozenset((errno.ENOENT,))
    host.run([request])


def make_link(socket: NetlinkSocket, name: str, kind: str, *, mtu: int = 0, alias: str = "") -> Link:
    """Make a link that is one alone (ifb), up, and tag it. Raises CniError 101 where there is one of that name: that
    one is not touched."""
    parts = [_name(name), _info(kind)]
    if mtu:
        parts.append(u32_attribute(_IFLA_MTU, mtu))
    request = _link(_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, f"making {kind} {name}", *parts, flags=_IFF_UP, change=_IFF_UP)
    try:
        socket.run([request])
    except KernelError as error:
        if error.number == errno.EEXIST:
            raise CniError(Code.ALREADY_EXISTS, f"link {name} exists already", "DEL the attachment first") from error
        raise
    link = require_link(socket, name)
    if alias:
        try:  # a second message: the kernel takes no alias with the first
            tag = text_attribute(_IFLA_IFALIAS, alias)
            socket.run([_link(_SETLINK, 0, f"tagging {name}", tag, index=link.index)])
        except BaseException:
            delete_link(socket, name)
            raise
    return link


def delete_link(socket: NetlinkSocket, name: str) -> bool:
    """Delete a link. Returns whether it was there."""
    request = _link(_DELLINK, 0, f"deleting link {name}", _name(name))
    request.tolerated = _NO_LINK
    return socket.run([request])[0].number == 0


def set_flags(socket: NetlinkSocket, link: Link, flags: int, mask: int) -> None:
    """Set those flags of a link that are in `mask`."""
    socket.run([_link(_SETLINK, 0, f"setting flags of {link.name}", index=link.index, flags=flags, change=mask)])


def set_up(socket: NetlinkSocket, link: Link) -> None:
    """Bring a link up."""
    set_flags(socket, link, _IFF_UP, _IFF_UP)


def set_promisc(socket: NetlinkSocket, link: Link, *, on: bool) -> None:
    """Receive all frames, or only one's own."""
    set_flags(socket, link, _IFF_PROMISC if on else 0, _IFF_PROMISC)


def set_allmulti(socket: NetlinkSocket, link: Link, *, on: bool) -> None:
    """Receive all multicast frames, or only those subscribed to."""
    set_flags(socket, link, _IFF_ALLMULTI if on else 0, _IFF_ALLMULTI)


def set_link(socket: NetlinkSocket, link: Link, *, mac: str = "", mtu: int = 0, txqlen: int | None = None) -> None:
    """Change properties of a link; what is not given stays."""
    parts, words = [], []
    if mac:
        parts.append(_mac(mac))
        words.append(f"address {mac}")
    if mtu:
        parts.append(u32_attribute(_IFLA_MTU, mtu))
        words.append(f"mtu {mtu}")
    if txqlen is not None:
        parts.append(u32_attribute(_IFLA_TXQLEN, txqlen))
        words.append(f"txqlen {txqlen}")
    socket.run([_link(_SETLINK, 0, f"setting {' '.join(words)} of {link.name}", *parts, index=link.index)])
