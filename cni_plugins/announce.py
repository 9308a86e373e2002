"""The last act of wiring a pod: wait until its port of the bridge carries frames, then tell the neighbours.

The kernel switches a port on when it has heard of the carrier, a moment after the pod's link is up. What is sent
before is lost: the announcement, which the kernel makes as a link comes up, and a pod's first ARP request, which
comes again only after a second.
"""

from __future__ import annotations

import errno
import select
import socket as sockets
import time

from .links import Link, get_link_by_index, set_link
from .netlink import NETLINK_ROUTE, NetlinkSocket

_RTMGRP_LINK = 1
_BR_STATE_DISABLED = 0  # linux/if_bridge.h; listening and learning are the spanning tree's, 30 s long: nobody waits


def wait_for_port(host: NetlinkSocket, port: Link, within_s: float) -> None:
    """Wait until the bridge has switched its port on. No error when it does not: somebody took the bridge down."""
    if not _is_off(host, port):
        return
    kind = sockets.SOCK_RAW | sockets.SOCK_CLOEXEC
    with sockets.socket(sockets.AF_NETLINK, kind, NETLINK_ROUTE) as events:
        events.bind((0, _RTMGRP_LINK))
        deadline = time.monotonic() + within_s
        while _is_off(host, port):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([events], [], [], left)[0]:
                return
            try:
                events.recv(1 << 16)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more events than fit: one of them may be ours
                    raise


def _is_off(host: NetlinkSocket, port: Link) -> bool:
    link = get_link_by_index(host, port.index)
    return link is not None and link.port_state == _BR_STATE_DISABLED


def announce(pod: NetlinkSocket, link: Link) -> None:
    """Let the kernel announce the link's addresses of both families (arp_notify, ndisc_notify): it does when the
    link's own address is set, be it to what it was."""
    set_link(pod, link, mac=link.mac)
