"""Queues over rtnetlink: a token bucket on a link, and the redirect of what arrives on a link to another.

Each is made exclusively, observed and removed by the link's index; nothing lists the queues of the host, which the
kernel cannot filter by link. Links are in links.py; the arithmetic of rates is in bandwidth.py.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

from pyroute2.netlink import nla
from pyroute2.netlink.rtnl import TC_H_INGRESS, TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg import cls_u32, sched_tbf, tcmsg

from .errors import CniError, Code
from .links import Link
from .netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, KernelError, Message, NetlinkSocket, attributes, encode
from .shaping import Tbf

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTFILTER, _GETTFILTER = 44, 46
_NEWACTION = 48
_NLM_F_ECHO = 0x8  # without it, a request for one queue is answered to listeners only (net/sched/sch_api.c)
_TBF_HANDLE, _INGRESS_HANDLE = 0x10000, 0xFFFF0000  # 1: and ffff:, as tc and the reference name them
_FLOW = 0x10001
_LINKLAYER_ETHERNET = 1  # the kernel then computes by itself, without a rate table
_RATE_MAX = 2**32 - 1
_FIRST_PRIORITY_ALL_PROTOCOLS = 1 << 16 | 0x0300  # ETH_P_ALL in network byte order
_ACTIONS = {"u32": 7, "matchall": 2}  # where the filters that redirect everything keep their actions
_MIRRED = struct.Struct("=20xiI")  # tc_mirred: what is done, with which link
_TO_EGRESS = 1  # TCA_EGRESS_REDIR
_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.EINVAL))


class _TbfOptions(nla):  # type: ignore[misc]
    """pyroute2 stops at the third attribute: it lacks rates above 34 Gbit/s, and the burst in bytes (Linux 3.13), which
    has room for what the older burst in ticks would overflow."""

    nla_map = (
        ("TCA_TBF_UNSPEC", "none"),
        ("TCA_TBF_PARMS", "parms"),
        ("TCA_TBF_RTAB", "hex"),
        ("TCA_TBF_PTAB", "hex"),
        ("TCA_TBF_RATE64", "uint64"),
        ("TCA_TBF_PRATE64", "uint64"),
        ("TCA_TBF_BURST", "uint32"),
    )

    class parms(nla):  # type: ignore[misc]
        fields = sched_tbf.options.tbf_parms.fields


class _TcMessage(tcmsg):  # type: ignore[misc]
    nla_map = tcmsg.nla_map + (
        ("TCA_PAD", "none"),
        ("TCA_DUMP_INVISIBLE", "none"),
        ("TCA_CHAIN", "uint32"),
        ("TCA_HW_OFFLOAD", "uint8"),
        ("TCA_INGRESS_BLOCK", "uint32"),
    )

    @staticmethod
    def get_options(message: Any, *args: Any, **more: Any) -> Any:
        if message.get_attr("TCA_KIND") == "tbf":
            return _TbfOptions
        return tcmsg.get_options(message, *args, **more)


def _tc(kind: int, how: int, doing: str, /, *attrs: tuple[str, Any], **header: int) -> Message:
    message = _TcMessage()
    for key, value in header.items():
        message[key] = value
    message["attrs"] = list(attrs)
    return Message(kind, how | NLM_F_ACK, encode(message), doing)


def add_tbf(socket: NetlinkSocket, link: Link, step: Tbf) -> None:
    """Give the link a token bucket. Raises CniError 101 where its root has a queue that somebody put there."""
    rate = {"rate": min(step.rate, _RATE_MAX), "rate___reserved": _LINKLAYER_ETHERNET, "limit": step.limit}
    options: list[tuple[str, Any]] = [("TCA_TBF_PARMS", rate), ("TCA_TBF_BURST", step.burst)]
    if step.rate > _RATE_MAX:
        options.append(("TCA_TBF_RATE64", step.rate))
    request = _tc(
        _NEWQDISC,
        NLM_F_CREATE | NLM_F_EXCL,
        f"limiting the rate of {link.name}",
        ("TCA_KIND", "tbf"),
        ("TCA_OPTIONS", {"attrs": options}),
        index=link.index,
        handle=_TBF_HANDLE,
        parent=TC_H_ROOT,
    )
    _run_exclusive(socket, request, f"link {link.name} has a queue already")


def add_redirect(socket: NetlinkSocket, link: Link, ifb: Link) -> None:
    """Send all that arrives on `link` through `ifb`. Raises CniError 101 where something takes it already."""
    doing = f"redirecting what arrives on {link.name} to {ifb.name}"
    ingress = _tc(
        _NEWQDISC,
        NLM_F_CREATE | NLM_F_EXCL,
        doing,
        ("TCA_KIND", "ingress"),
        index=link.index,
        handle=_INGRESS_HANDLE,
        parent=TC_H_INGRESS,
    )
    _run_exclusive(socket, ingress, f"link {link.name} has an ingress queue already")
    # u32 with an empty match, as the reference: kernels without matchall exist.
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": ifb.index}
    options = cls_u32.get_parameters({"keys": ["0x0/0x0+0"], "target": _FLOW, "action": action})
    redirect = _tc(
        _NEWTFILTER,
        NLM_F_CREATE | NLM_F_EXCL,
        doing,
        ("TCA_KIND", "u32"),
        ("TCA_OPTIONS", options),
        index=link.index,
        parent=_INGRESS_HANDLE,
        info=_FIRST_PRIORITY_ALL_PROTOCOLS,
    )
    try:
        socket.run([redirect])
    except BaseException:
        remove_redirect(socket, link)
        raise


def _run_exclusive(socket: NetlinkSocket, request: Message, exists: str) -> None:
    try:
        socket.run([request])
    except KernelError as error:
        if error.number == errno.EEXIST:
            raise CniError(Code.ALREADY_EXISTS, exists, "DEL the attachment first") from error
        raise


def remove_tbf(socket: NetlinkSocket, link: Link) -> None:
    """Take the link's root queue away; fine if it is gone."""
    request = _tc(_DELQDISC, 0, f"freeing the rate of {link.name}", index=link.index, parent=TC_H_ROOT)
    request.tolerated = _GONE
    socket.run([request])


def remove_redirect(socket: NetlinkSocket, link: Link) -> None:
    """Take the link's ingress queue away, and its filters with it; fine if it is gone."""
    request = _tc(
        _DELQDISC,
        0,
        f"ending the redirect of {link.name}",
        index=link.index,
        handle=_INGRESS_HANDLE,
        parent=TC_H_INGRESS,
    )
    request.tolerated = _GONE
    socket.run([request])


def tbf_rate(socket: NetlinkSocket, link: Link) -> int | None:
    """The rate of the link's token bucket in bytes per second; None where it has none."""
    doing = f"looking for the queue of {link.name}"
    request = _tc(_GETQDISC, _NLM_F_ECHO, doing, index=link.index, parent=TC_H_ROOT)
    request.tolerated = _GONE
    for body in socket.run([request])[0].bodies:
        found = attributes(body, 20)
        if _text(found.get(1)) != "tbf":
            continue
        options = attributes(found.get(2, b""))
        if 4 in options:
            return int.from_bytes(options[4], "little")
        return int.from_bytes(options[1][8:12], "little")
    return None


def redirect_target(socket: NetlinkSocket, link: Link) -> int | None:
    """The index of the link that takes all that arrives on `link`; None where it is not redirected."""
    request = _tc(_GETTFILTER, 0, f"looking for the redirect of {link.name}", index=link.index, parent=_INGRESS_HANDLE)
    request.tolerated = _GONE
    target = None
    for body in socket.dump(request):
        found = attributes(body, 20)
        place = _ACTIONS.get(_text(found.get(1)))
        if place is None:
            continue
        for action in attributes(attributes(found.get(2, b"")).get(place, b"")).values():
            parts = attributes(action)
            parameters = attributes(parts.get(2, b"")).get(2, b"")
            if _text(parts.get(1)) != "mirred" or len(parameters) < _MIRRED.size:
                continue
            done, index = _MIRRED.unpack_from(parameters)
            if done == _TO_EGRESS and target is None:
                target = int(index)
    return target


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def unavailable(socket: NetlinkSocket) -> list[str]:
    """What the kernel lacks of tbf, ingress, mirred and ifb. Asks with requests that are refused for their content
    after the kernel has found (or loaded) what they name, so nothing is made."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    where: dict[str, int] = {"index": 1}  # lo, in every namespace (LOOPBACK_IFINDEX)
    link = ifinfmsg()
    link["attrs"] = [("IFLA_IFNAME", "no/name"), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ifb")]})]
    kind = struct.pack("=HH8s", 4 + 7, 1, b"mirred")  # TCA_ACT_KIND
    first = struct.pack("=HH", 4 + len(kind), 1) + kind
    action = struct.pack("=4xHH", 4 + len(first), 1) + first  # tcamsg, TCA_ACT_TAB
    make = NLM_F_CREATE | NLM_F_EXCL
    requests = {
        "tbf": _tc(_NEWQDISC, make, "", ("TCA_KIND", "tbf"), handle=_TBF_HANDLE, parent=TC_H_ROOT, **where),
        "ingress": _tc(
            _NEWQDISC,
            make,
            "",
            ("TCA_KIND", "ingress"),
            ("TCA_INGRESS_BLOCK", 0),
            handle=_INGRESS_HANDLE,
            parent=TC_H_INGRESS,
            **where,
        ),
        "mirred": Message(_NEWACTION, make | NLM_F_ACK, action, ""),
        "ifb": Message(16, make | NLM_F_ACK, encode(link), ""),
    }
    answers = socket.exchange(list(requests.values()))
    missing = (errno.ENOENT, errno.EOPNOTSUPP)
    return [name for name, answer in zip(requests, answers, strict=True) if answer.number in missing]
