"""The loopback plugin: brings `lo` up in the pod.

Result as the reference's; CNI_IFNAME is not asked, `lo` is meant in any case. Runtimes run it for every pod, so the two
messages are packed here by hand: importing pyroute2 would take ten times as long as the work.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_interface

from .errors import CniError, Code, check_failed
from .netlink import NETLINK_ROUTE, NLM_F_ACK, Message, NetlinkSocket, attributes
from .protocol import Call
from .results import Interface, IPConfig, IPInterface, Result
from .skel import Plugin

_LO = 1  # the index of lo in every namespace (linux/netdevice.h, LOOPBACK_IFINDEX)
_GETLINK, _SETLINK, _GETADDR = 18, 19, 22
_IFF_UP = 1
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change (linux/rtnetlink.h)
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index (linux/if_addr.h)
_LOCAL = (2, 1)  # IFA_LOCAL, else IFA_ADDRESS


def add(call: Call) -> Result:
    """Bring `lo` up. Raises CniError 7 where it has an address that is not a loopback one."""
    with NetlinkSocket(NETLINK_ROUTE, call.pod) as pod:
        was_up = _is_up(pod)
        _set_up(pod, up=True)
        found = _addresses(pod)
        strange = [str(address) for address in found if not address.ip.is_loopback]
        if strange:
            if not was_up:
                _set_up(pod, up=False)
            raise CniError(
                Code.INVALID_CONFIG, f"lo in the pod has the address {strange[0]}", "lo holds loopback addresses only"
            )
    if call.config.prev_result is not None:
        return call.config.prev_result
    # The first of each family, as the reference.
    first = {address.version: address for address in reversed(found)}
    return Result(
        interfaces=(Interface("lo", "00:00:00:00:00:00", sandbox=call.netns_path),),
        ips=tuple(IPConfig(first[version], interface=0) for version in sorted(first)),
    )


def delete(call: Call) -> None:
    """Take `lo` down, where there is a pod."""
    if call.netns is None:
        return
    with NetlinkSocket(NETLINK_ROUTE, call.netns) as pod:
        _set_up(pod, up=False)


def check(call: Call) -> None:
    """`lo` is up."""
    with NetlinkSocket(NETLINK_ROUTE, call.pod) as pod:
        if not _is_up(pod):
            raise check_failed("link lo is down in the pod")


def _is_up(pod: NetlinkSocket) -> bool:
    body = _IFINFOMSG.pack(0, 0, _LO, 0, 0)
    answer = pod.run([Message(_GETLINK, NLM_F_ACK, body, "looking for link lo")])[0]
    return bool(_IFINFOMSG.unpack_from(answer.bodies[0])[3] & _IFF_UP)


def _set_up(pod: NetlinkSocket, *, up: bool) -> None:
    body = _IFINFOMSG.pack(0, 0, _LO, _IFF_UP if up else 0, _IFF_UP)
    pod.run([Message(_SETLINK, NLM_F_ACK, body, f"setting lo {'up' if up else 'down'}")])


def _addresses(pod: NetlinkSocket) -> list[IPInterface]:
    """The addresses of `lo`, IPv4 first."""
    found = []
    for body in pod.dump(Message(_GETADDR, 0, _IFADDRMSG.pack(0, 0, 0, 0, _LO), "listing addresses of lo")):
        _, length, _, _, index = _IFADDRMSG.unpack_from(body)
        parts = attributes(body, _IFADDRMSG.size)
        packed = next((parts[key] for key in _LOCAL if key in parts), b"")
        if index == _LO and packed:
            found.append(ip_interface((ip_address(packed), length)))
    return sorted(found, key=lambda address: address.version)


def nothing(call: Call) -> None:
    """GC and STATUS: nothing outlives the pod, and nothing can be missing."""


def explain(call: Call) -> str:
    """`--explain`."""
    from . import plan

    return plan.explain(f"loopback: ADD of {call.owner.tag}", (plan.Up(plan.POD, "lo"),))


PLUGIN = Plugin(
    name="loopback",
    about="brings lo up in the pod",
    add=add,
    delete=delete,
    check=check,
    gc=nothing,
    status=nothing,
    explain=explain,
)
