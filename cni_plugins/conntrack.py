"""Forgetting connections: a flow that was tracked before its host port was mapped, or whose pod is gone, keeps its old
way for as long as packets come. UDP and SCTP flows are forgotten when a mapping comes or goes.

The kernel picks the entries by the first packet's protocol, destination port and, where given, address (CTA_FILTER). A
deletion understands the filter since Linux 6.8, a listing since 5.8; before that the caller is told so.
Source: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from .netlink import NLM_F_ACK, Message, NetlinkSocket, attributes, encode
from .results import IPAddress

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
_AF = {4: sockets.AF_INET, 6: sockets.AF_INET6}
# CTA_FILTER_FLAG(...) of net/netfilter/nf_internals.h: which fields of the tuple count.
_BY_ADDRESS, _BY_PROTOCOL, _BY_PORT = 1 << 1, 1 << 3, 1 << 5
_TUPLE_ORIGINAL, _TUPLE_IP, _TUPLE_PROTO, _PROTO_NUMBER, _PROTO_DPORT = 1, 1, 2, 1, 3
_IP_DESTINATION = {4: 2, 6: 4}


@dataclass(frozen=True, slots=True)
class Flow:
    """Connections of an IP family (4 or 6) to a port, at one address or (None) any."""

    family: int
    protocol: int
    port: int
    address: IPAddress | None = None


def forget(socket: NetlinkSocket, flows: Sequence[Flow]) -> None:
    """Delete the entries of all flows. Raises KernelError where the kernel can neither delete nor list by filter."""
    # Of an IPv6 address the kernel's filter takes all others instead (seen in 6.18): that one is compared here.
    filtered = [flow for flow in flows if flow.family == 4 or flow.address is None]
    answers = socket.exchange([_message(flow, _DELETE) for flow in filtered])
    refused = [flow for flow, answer in zip(filtered, answers, strict=True) if answer.number]  # before 6.8
    for flow in [*refused, *(flow for flow in flows if flow not in filtered)]:
        forget_listed(socket, flow)


def forget_listed(socket: NetlinkSocket, flow: Flow) -> None:
    """Delete the entries of a flow one by one. A kernel that does not know the filter lists all: hence the check."""
    found = [body for body in socket.dump(_message(flow, _GET)) if _is_of(flow, attributes(body, 4))]
    socket.exchange([Message(_SUBSYSTEM | _DELETE, NLM_F_ACK, body, "forgetting a connection") for body in found])


def _is_of(flow: Flow, entry: dict[int, bytes]) -> bool:
    original = attributes(entry.get(_TUPLE_ORIGINAL, b""))
    proto = attributes(original.get(_TUPLE_PROTO, b""))
    if (proto.get(_PROTO_NUMBER), proto.get(_PROTO_DPORT)) != (bytes([flow.protocol]), flow.port.to_bytes(2, "big")):
        return False
    destination = attributes(original.get(_TUPLE_IP, b"")).get(_IP_DESTINATION[flow.family])
    return flow.address is None or destination == flow.address.packed


def _message(flow: Flow, kind: int) -> Message:
    message = nfct_msg()
    message["nfgen_family"] = _AF[flow.family]
    flags = _BY_PROTOCOL | _BY_PORT
    parts: list[tuple[str, Any]] = []
    if flow.address is not None and flow.family == 4:
        flags |= _BY_ADDRESS
        parts.append(("CTA_TUPLE_IP", {"attrs": [("CTA_IP_V4_DST", str(flow.address))]}))
    proto = [("CTA_PROTO_NUM", flow.protocol), ("CTA_PROTO_DST_PORT", flow.port)]
    parts.append(("CTA_TUPLE_PROTO", {"attrs": proto}))
    message["attrs"] = [
        ("CTA_TUPLE_ORIG", {"attrs": parts}),
        ("CTA_FILTER", {"attrs": [("CTA_FILTER_ORIG_FLAGS", flags)]}),
    ]
    doing = f"forgetting connections to port {flow.port}"
    return Message(_SUBSYSTEM | kind, NLM_F_ACK if kind == _DELETE else 0, encode(message), doing)
