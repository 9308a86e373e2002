"""Links over rtnetlink: bridges, veth pairs and their properties are made, looked up, changed, deleted.

Everything is looked up by name or index; nothing lists all links of the host, GC apart. Errors are KernelErrors with
the kernel's own words. Addresses and routes are in addresses.py.
"""

from __future__ import annotations

import errno
import secrets
import socket as sockets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

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
    attributes,
    encode,
)
from .netns import Netns
from .plan import Bridge, Veth, Vlan

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_IFF_UP, _IFF_PROMISC, _IFF_ALLMULTI = 0x1, 0x100, 0x200
_EXT_MASK_SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS: half of a link's description is counters


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
        return attributes(self.slave_data).get(1, b"\3")[0]

    @property
    def is_hairpin(self) -> bool:
        return attributes(self.slave_data).get(4, b"\0")[0] == 1

    @property
    def is_isolated(self) -> bool:
        return attributes(self.slave_data).get(33, b"\0")[0] == 1

    @property
    def filters_vlans(self) -> bool:
        return attributes(self.data).get(7, b"\0")[0] == 1


def open_route(netns: Netns | None = None) -> NetlinkSocket:
    """A socket for links, addresses and routes in `netns` (None: the caller's)."""
    return NetlinkSocket(NETLINK_ROUTE, netns)


def _link(kind: int, how: int, doing: str, /, *attrs: tuple[str, Any], **header: int) -> Message:
    message = ifinfmsg()
    for key, value in header.items():
        message[key] = value
    message["attrs"] = list(attrs)
    return Message(kind, how | NLM_F_ACK, encode(message), doing)


def get_link(socket: NetlinkSocket, name: str) -> Link | None:
    """The link called `name`."""
    request = _link(
        _GETLINK, 0, f"looking for link {name}", ("IFLA_IFNAME", name), ("IFLA_EXT_MASK", _EXT_MASK_SKIP_STATS)
    )
    request.tolerated = frozenset((errno.ENODEV,))
    return _first(socket.run([request])[0])


def get_link_by_index(socket: NetlinkSocket, index: int) -> Link | None:
    """The link with that index."""
    request = _link(_GETLINK, 0, f"looking for link {index}", ("IFLA_EXT_MASK", _EXT_MASK_SKIP_STATS), index=index)
    request.tolerated = frozenset((errno.ENODEV, errno.EINVAL))
    return _first(socket.run([request])[0])


def require_link(socket: NetlinkSocket, name: str) -> Link:
    """The link called `name`. Raises KernelError ENODEV."""
    link = get_link(socket, name)
    if link is None:
        raise KernelError(errno.ENODEV, f"looking for link {name}")
    return link


def list_links(socket: NetlinkSocket) -> Iterator[Link]:
    """All links: for GC."""
    request = _link(_GETLINK, 0, "listing links", ("IFLA_EXT_MASK", _EXT_MASK_SKIP_STATS))
    for body in socket.dump(request):
        yield _parse_link(body)


def _first(answer: Answer) -> Link | None:
    return _parse_link(answer.bodies[0]) if answer.bodies else None


def _parse_link(body: bytes) -> Link:
    found = attributes(body, 16)
    info = attributes(found.get(18, b""))

    def number(key: int) -> int:
        return int.from_bytes(found.get(key, b""), "little")

    return Link(
        index=int.from_bytes(body[4:8], "little"),
        name=_text(found.get(3, b"")),
        kind=_text(info.get(1, b"")),
        mac=found.get(1, b"").hex(":"),
        mtu=number(4),
        flags=int.from_bytes(body[8:12], "little"),
        master=number(10),
        peer=number(5),
        alias=_text(found.get(20, b"")),
        txqlen=number(13),
        slave_data=info.get(5, b""),
        data=info.get(2, b""),
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def ensure_bridge(socket: NetlinkSocket, bridge: Bridge) -> Link:
    """Make the bridge, or take the one that is there; other ports and addresses of it are left alone. Raises
    CniError where a link of that name is no bridge, or lacks vlan filtering that is asked for."""
    link = get_link(socket, bridge.name)
    if link is None:
        data: list[tuple[str, int]] = []
        if bridge.vlan_filtering:
            data += [("IFLA_BR_VLAN_FILTERING", 1)]
        attrs: list[tuple[str, Any]] = [
            ("IFLA_IFNAME", bridge.name),
            ("IFLA_ADDRESS", random_mac()),
            ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": data})]}),
        ]
        if bridge.mtu:
            attrs.append(("IFLA_MTU", bridge.mtu))
        request = _link(
            _NEWLINK, NLM_F_CREATE | NLM_F_EXCL, f"making bridge {bridge.name}", *attrs, flags=_IFF_UP, change=_IFF_UP
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
    info = [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_BR_VLAN_FILTERING", 1)]})]
    request = _link(
        _NEWLINK,
        0,
        f"switching on vlan filtering of {bridge.name}",
        ("IFLA_LINKINFO", {"attrs": info}),
        index=link.index,
    )
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


def make_veth(host: NetlinkSocket, pod: NetlinkSocket, netns: Netns, veth: Veth) -> tuple[Link, Link]:
    """Make the pair, the pod's end in its namespace, down; the host's end up and in the bridge. Returns (host end,
    pod end). One message makes both ends, so a kill leaves no half. Raises CniError 101 where the pod has a link of
    that name already: that one is not touched."""
    if get_link(pod, veth.pod_name) is not None:
        raise _exists(veth)
    bridge = require_link(host, veth.bridge)
    peer = ifinfmsg()
    attrs: list[tuple[str, Any]] = [("IFLA_IFNAME", veth.pod_name), ("IFLA_NET_NS_FD", netns.fd)]
    if veth.mtu:
        attrs.append(("IFLA_MTU", veth.mtu))
    if veth.mac:
        attrs.append(("IFLA_ADDRESS", veth.mac))
    peer["attrs"] = attrs
    info = [
        ("IFLA_INFO_KIND", "veth"),
        ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
    ]
    pair: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", veth.host_name),
        ("IFLA_MASTER", bridge.index),
        ("IFLA_LINKINFO", {"attrs": info}),
    ]
    if veth.mtu:
        pair.append(("IFLA_MTU", veth.mtu))
    request = _link(
        _NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        f"making veth {veth.host_name} with peer {veth.pod_name}",
        *pair,
        flags=_IFF_UP,
        change=_IFF_UP,
    )
    try:
        host.run([request])
    except KernelError as error:
        if error.number == errno.EEXIST:
            raise _exists(veth) from error
        raise
    link = require_link(host, veth.host_name)
    try:
        _set_port(host, link, veth)
        return require_link(host, veth.host_name), require_link(pod, veth.pod_name)
    except BaseException:
        delete_link(host, veth.host_name)
        raise


def _exists(veth: Veth) -> CniError:
    return CniError(
        Code.ALREADY_EXISTS,
        f"interface {veth.pod_name} exists in the pod already",
        "DEL the attachment first, or use another CNI_IFNAME",
    )


def _set_port(host: NetlinkSocket, link: Link, veth: Veth) -> None:
    requests = [
        _link(_SETLINK, 0, f"tagging {veth.host_name}", ("IFLA_IFALIAS", veth.alias), index=link.index),
    ]
    if veth.hairpin or veth.isolated:
        data = []
        if veth.hairpin:
            data.append(("IFLA_BRPORT_MODE", 1))
        if veth.isolated:
            data.append(("IFLA_BRPORT_ISOLATED", 1))
        info = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": data})]
        requests.append(
            _link(
                _NEWLINK,
                0,
                f"setting hairpin or isolation of {veth.host_name}",
                ("IFLA_LINKINFO", {"attrs": info}),
                index=link.index,
            )
        )
    host.run(requests)
    if veth.drop_default_vlan:
        set_vlans(host, link, (Vlan(1, 1),), remove=True)
    if veth.vlans:
        set_vlans(host, link, veth.vlans)


def set_vlans(
    host: NetlinkSocket, link: Link, vlans: tuple[Vlan, ...], *, remove: bool = False, own: bool = False
) -> None:
    """Add (or remove) VLAN ids of a bridge port, or of the bridge itself (`own`)."""
    entries: list[tuple[str, Any]] = [("IFLA_BRIDGE_FLAGS", 2)] if own else []
    for vlan in vlans:
        flags = 0x2 | 0x4 if vlan.pvid else 0  # BRIDGE_VLAN_INFO_PVID, _UNTAGGED
        if vlan.first == vlan.last:
            entries.append(("IFLA_BRIDGE_VLAN_INFO", {"vid": vlan.first, "flags": flags}))
        else:
            entries.append(("IFLA_BRIDGE_VLAN_INFO", {"vid": vlan.first, "flags": flags | 0x8}))
            entries.append(("IFLA_BRIDGE_VLAN_INFO", {"vid": vlan.last, "flags": flags | 0x10}))
    message = ifinfmsg()
    message["family"] = sockets.AF_BRIDGE
    message["index"] = link.index
    message["attrs"] = [("IFLA_AF_SPEC", {"attrs": entries})]
    kind = _DELLINK if remove else _SETLINK
    doing = f"{'removing' if remove else 'setting'} vlans of {link.name}"
    request = Message(kind, NLM_F_ACK, encode(message), doing)
    if remove:
        request.tolerated = frozenset((errno.ENOENT,))
    host.run([request])


def make_link(socket: NetlinkSocket, name: str, kind: str, *, mtu: int = 0, alias: str = "") -> Link:
    """Make a link that is one alone (ifb), up, and tag it. Raises CniError 101 where there is one of that name: that
    one is not touched."""
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]}),
    ]
    if mtu:
        attrs.append(("IFLA_MTU", mtu))
    request = _link(_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, f"making {kind} {name}", *attrs, flags=_IFF_UP, change=_IFF_UP)
    try:
        socket.run([request])
    except KernelError as error:
        if error.number == errno.EEXIST:
            raise CniError(Code.ALREADY_EXISTS, f"link {name} exists already", "DEL the attachment first") from error
        raise
    link = require_link(socket, name)
    if alias:
        try:  # a second message: the kernel takes no alias with the first
            socket.run([_link(_SETLINK, 0, f"tagging {name}", ("IFLA_IFALIAS", alias), index=link.index)])
        except BaseException:
            delete_link(socket, name)
            raise
    return link


def delete_link(socket: NetlinkSocket, name: str) -> bool:
    """Delete a link. Returns whether it was there."""
    request = _link(_DELLINK, 0, f"deleting link {name}", ("IFLA_IFNAME", name))
    request.tolerated = frozenset((errno.ENODEV,))
    return socket.run([request])[0].number == 0


def set_flags(socket: NetlinkSocket, link: Link, flags: int, mask: int) -> None:
    """Set those flags of a link that are in `mask`."""
    socket.run([_link(_SETLINK, 0, f"setting flags of {link.name}", index=link.index, flags=flags, change=mask)])


def set_up(socket: NetlinkSocket, link: Link) -> None:
    """Bring a link up."""
    set_flags(socket, link, _IFF_UP, _IFF_UP)


def set_down(socket: NetlinkSocket, link: Link) -> None:
    """Take a link down."""
    set_flags(socket, link, 0, _IFF_UP)


def set_promisc(socket: NetlinkSocket, link: Link, *, on: bool) -> None:
    """Receive all frames, or only one's own."""
    set_flags(socket, link, _IFF_PROMISC if on else 0, _IFF_PROMISC)


def set_allmulti(socket: NetlinkSocket, link: Link, *, on: bool) -> None:
    """Receive all multicast frames, or only those subscribed to."""
    set_flags(socket, link, _IFF_ALLMULTI if on else 0, _IFF_ALLMULTI)


def set_link(socket: NetlinkSocket, link: Link, *, mac: str = "", mtu: int = 0, txqlen: int | None = None) -> None:
    """Change properties of a link; what is not given stays."""
    attrs: list[tuple[str, Any]] = []
    if mac:
        attrs.append(("IFLA_ADDRESS", mac))
    if mtu:
        attrs.append(("IFLA_MTU", mtu))
    if txqlen is not None:
        attrs.append(("IFLA_TXQLEN", txqlen))
    what = " ".join(f"{name[5:].lower()} {value}" for name, value in attrs)
    socket.run([_link(_SETLINK, 0, f"setting {what} of {link.name}", *attrs, index=link.index)])
