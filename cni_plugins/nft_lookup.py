"""Looks into nftables without changing it: is it there at all, what tables are there, a chain of somebody else's.

The messages are plain bytes: STATUS is asked every few seconds, and importing pyroute2's classes would be most of its
cost. Our own tables are in nft.py and tables.py.
"""

from __future__ import annotations

import errno
import struct

from .errors import CniError, Code
from .netlink import NETLINK_NETFILTER, NLM_F_ACK, Message, NetlinkSocket, attributes, host_socket, text_attribute

# linux/netfilter/nfnetlink.h and nf_tables.h
_GETTABLE, _GETCHAIN = 10 << 8 | 1, 10 << 8 | 4
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME, _CHAIN_POLICY = 1, 1, 3, 5
_DROP = 0
FAMILIES = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}


def _request(kind: int, family: str, doing: str, *names: tuple[int, str]) -> Message:
    header = struct.pack("!BBH", FAMILIES[family], 0, 0)
    return Message(kind, NLM_F_ACK, header + b"".join(text_attribute(*name) for name in names), doing)


def require_nftables() -> None:
    """Ask the kernel for a table that need not exist. Raises CniError 50 where it cannot serve nftables at all."""
    try:
        with host_socket(NETLINK_NETFILTER) as socket:
            answer = socket.exchange([_request(_GETTABLE, "inet", "", (_TABLE_NAME, "netloom"))])[0]
            number = answer.number
    except OSError as error:
        number = error.errno or errno.EIO
    if number not in (0, errno.ENOENT):
        raise CniError(
            Code.NOT_AVAILABLE,
            f"this kernel does not serve nftables: {errno.errorcode.get(number, number)}",
            "load nf_tables (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_FIB_INET), or run as root",
        )


def table_names(socket: NetlinkSocket, family: str) -> list[str]:
    """The names of all tables of a family."""
    found = (attributes(body, 4) for body in socket.dump(_request(_GETTABLE, family, "listing nft tables")))
    return [_text(table.get(_TABLE_NAME, b"")) for table in found]


def is_there(family: str, table: str) -> bool:
    """Whether there is a table of that name."""
    with host_socket(NETLINK_NETFILTER) as socket:
        return socket.exchange([_request(_GETTABLE, family, "", (_TABLE_NAME, table))])[0].number == 0


def has_chain(socket: NetlinkSocket, family: str, table: str, chain: str) -> bool:
    """Whether a table holds that chain."""
    request = _request(_GETCHAIN, family, "", (_CHAIN_TABLE, table), (_CHAIN_NAME, chain))
    return socket.exchange([request])[0].number == 0


def drops_by_policy(socket: NetlinkSocket, family: str, table: str, chain: str) -> bool:
    """Whether that chain drops what its rules do not accept."""
    request = _request(_GETCHAIN, family, "", (_CHAIN_TABLE, table), (_CHAIN_NAME, chain))
    bodies = socket.exchange([request])[0].bodies
    return bool(bodies) and attributes(bodies[0], 4).get(_CHAIN_POLICY) == struct.pack("!I", _DROP)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
