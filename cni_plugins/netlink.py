"""One netlink socket: a batch of messages goes out in one system call, the answers come back in order.

The kernel handles rtnetlink and nfnetlink requests inside sendmsg(2), so by the time it returns every
acknowledgement lies in the socket's queue: no event loop, no thread, no waiting. The socket is ours, because a plugin
lives for milliseconds and pyroute2's would bring asyncio and a dump of all links. So are the bytes of the requests
that every pod needs, of links, addresses, routes and elements: a message class of pyroute2 takes 70 us to encode what
`attribute` writes in 1, and 50 ms to import. The classes serve where a message is rare and intricate (`encode`).
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .errors import CniError, Code
from .netns import Netns, inside

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ROOT = NLM_F_REPLACE = NLM_F_NONREC = 0x100
NLM_F_MATCH = NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10  # acknowledgements do not repeat the request
_NETLINK_EXT_ACK = 11  # the kernel says in words what it refuses
_NETLINK_GET_STRICT_CHK = 12  # the kernel filters dumps by what the request says
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_BUFFER_BYTES = 8 << 20  # room for the answers to one large batch (10,000 elements); accounted only when used
_CHUNK = 1 << 17

_thread = threading.local()  # of the calling thread: `buffer`, and `kept`, its sockets by protocol
_NLA_F_NESTED = 0x8000
_ATTRIBUTE = struct.Struct("=HH")
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id (linux/netlink.h)


class KernelError(CniError):
    """The kernel refused one message. `number` is the errno, `index` the message's place in the batch."""

    def __init__(self, number: int, doing: str, words: str = "", index: int = 0) -> None:
        reason = os.strerror(number)
        super().__init__(Code.KERNEL, f"{doing}: {reason}", words)
        self.number = number
        self.index = index


@dataclass(slots=True)
class Message:
    """One request. `body` is everything after the netlink header; `doing` is for errors; `tolerated` are errnos that
    mean 'it is so already'."""

    kind: int
    flags: int
    body: bytes
    doing: str
    tolerated: frozenset[int] = frozenset()


@dataclass(slots=True)
class Answer:
    """What came back for one request: an errno (0: fine), the kernel's words, the messages' bodies."""

    number: int = 0
    words: str = ""
    bodies: list[bytes] = field(default_factory=list)


def encode(message: Any) -> bytes:
    """The body of a pyroute2 message (without the netlink header)."""
    message.encode()
    return bytes(message.data[16:])


def attribute(kind: int, data: bytes) -> bytes:
    """One netlink attribute, padded (linux/netlink.h, struct nlattr)."""
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + b"\0" * (-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(parts))


def text_attribute(kind: int, text: str) -> bytes:
    """A string with its final NUL."""
    return attribute(kind, text.encode() + b"\0")


def u32_attribute(kind: int, number: int) -> bytes:
    """A number of 32 bits, as the host orders bytes."""
    return attribute(kind, number.to_bytes(4, sys.byteorder))


def attributes(body: bytes | memoryview, offset: int = 0) -> dict[int, bytes]:
    """The netlink attributes in `body` from `offset` on, by type; the last of equal types wins."""
    return dict(walk(body, offset))


def walk(body: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The netlink attributes in `body` from `offset` on, in order, nested flags stripped."""
    end = len(body)
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, bytes(body[offset + 4 : offset + length])
        offset += (length + 3) & ~3


class NetlinkSocket:
    """A socket of one netlink family in one namespace (None: the caller's)."""

    def __init__(self, protocol: int, netns: Netns | None = None) -> None:
        self._protocol, self._netns = protocol, netns
        self._sequence = itertools.count(1)
        self.sent = 0  # messages so far: tests hold the cost of a call by it
        with inside(netns):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            except PermissionError:  # a user namespace may not go beyond net.core.rmem_max
                self._socket.setsockopt(socket.SOL_SOCKET, option - 25, _BUFFER_BYTES)
        self._socket.bind((0, 0))

    def __repr__(self) -> str:
        return f"NetlinkSocket(fd={self._socket.fileno()}, sent={self.sent})"

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def exchange(self, messages: Sequence[Message]) -> list[Answer]:
        """Send all in one system call; return an answer for each. Raises no KernelError: see `run`."""
        if not messages:
            return []
        first = next(self._sequence)
        parts = []
        for position, message in enumerate(messages):
            length = 16 + len(message.body)
            parts.append(_HEADER.pack(length, message.kind, message.flags | NLM_F_REQUEST, first + position, 0))
            parts.append(message.body)
            parts.append(b"\0" * (-length % 4))
        for _ in messages[1:]:
            next(self._sequence)
        self._socket.send(b"".join(parts))
        self.sent += len(messages)
        answers = [Answer() for _ in messages]
        self._drain(first, answers)
        return answers

    def run(self, messages: Sequence[Message]) -> list[Answer]:
        """`exchange`, and raise KernelError for the first answer that is neither fine nor tolerated."""
        answers = self.exchange(messages)
        for index, (message, answer) in enumerate(zip(messages, answers, strict=True)):
            if answer.number and answer.number not in message.tolerated:
                raise KernelError(answer.number, message.doing, answer.words, index)
        return answers

    def dump(self, message: Message) -> Iterator[bytes]:
        """The bodies of a dump. Raises KernelError."""
        sequence = next(self._sequence)
        length = 16 + len(message.body)
        header = _HEADER.pack(length, message.kind, message.flags | NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
        self._socket.send(header + message.body)
        self.sent += 1
        while True:
            for kind, _, number, body in _split(_receive(self._socket)):
                if number != sequence:
                    continue
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    error = -int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else 0
                    if error and error not in message.tolerated:
                        raise KernelError(error, message.doing)
                    return
                yield body

    def first_of_dump(self, message: Message) -> list[bytes]:
        """The bodies in the first datagram of a dump: a bounded look. The rest goes away with a socket of its own."""
        with NetlinkSocket(self._protocol, self._netns) as once:
            for body in once.dump(message):
                return [body]
        return []

    def _drain(self, first: int, answers: list[Answer]) -> None:
        while True:
            try:
                data = _receive(self._socket, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for kind, flags, sequence, body in _split(data):
                index = sequence - first
                if not 0 <= index < len(answers):
                    continue  # the end of an earlier dump that was not read to its end
                answer = answers[index]
                if kind != _NLMSG_ERROR:
                    answer.bodies.append(body)
                    continue
                number = -int(struct.unpack_from("=i", body)[0])
                if number and not answer.number:
                    answer.number, answer.words = number, _words(flags, body)


def keep_sockets_open() -> None:
    """For a worker thread of the agent: its sockets to the host stay open from call to call. Closing one of nftables
    waits until the kernel has freed what any transaction has deleted: 15 ms of a 20 ms ADD."""
    _thread.kept = {}


def kept_socket(protocol: int) -> NetlinkSocket | None:
    """The calling thread's socket to the host, where it keeps one."""
    kept: dict[int, NetlinkSocket] | None = getattr(_thread, "kept", None)
    if kept is None:
        return None
    if protocol not in kept:
        kept[protocol] = NetlinkSocket(protocol)
    return kept[protocol]


@contextmanager
def host_socket(protocol: int) -> Iterator[NetlinkSocket]:
    """A socket to the host: the thread's, or one for this once."""
    kept = kept_socket(protocol)
    if kept is not None:
        yield kept
        return
    with NetlinkSocket(protocol) as socket:
        yield socket


def _receive(source: socket.socket, flags: int = 0) -> bytes:
    """One datagram. Into a buffer that stays: asking for a large new one each time, from many threads, tears the heap
    of a long-lived process to pieces (8 MB in 10,000 calls)."""
    buffer: bytearray | None = getattr(_thread, "buffer", None)
    if buffer is None:
        buffer = _thread.buffer = bytearray(_CHUNK)
    size = source.recv_into(buffer, 0, flags)
    return bytes(memoryview(buffer)[:size])


def _words(flags: int, body: bytes) -> str:
    """The kernel's extended acknowledgement as text."""
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    request = 16 if flags & _NLM_F_CAPPED else int(struct.unpack_from("=I", body, 4)[0])
    text = attributes(body, 4 + ((request + 3) & ~3)).get(_NLMSGERR_ATTR_MSG, b"")
    return text.rstrip(b"\0").decode(errors="replace")


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages in one datagram: type, flags, sequence, body."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3
