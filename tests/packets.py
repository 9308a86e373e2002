"""Real packets between test hosts and pods: TCP and UDP sockets made inside a place, and raw Ethernet frames.

Sockets stay in the network they were made in, so no thread and no process is needed. Refuses to wait without limit.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from namespaces import Place

# Between hosts of one machine an answer takes less than a millisecond; TCP repeats a lost SYN after a second.
ANSWER_TIMEOUT_S = 5.0
# Silence is what a filter makes; no need to wait for long to hear it.
SILENCE_TIMEOUT_S = 0.3
ETH_P_LOCAL = 0x88B5  # IEEE 802 local experimental ethertype 1: nobody else's
BROADCAST = "ff:ff:ff:ff:ff:ff"


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET6 when the address holds a colon."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def set_up(place: Place, link: str = "lo") -> None:
    """`ip link set LINK up`: a runtime does it to `lo`."""
    place.run("ip", "link", "set", link, "up")


@contextlib.contextmanager
def connected(
    client: Place, server: Place, address: str, *, port: int = 0, to: str = "", to_port: int = 0,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Iterator[tuple[socket.socket, socket.socket]]:  # fmt: skip
    """A TCP connection from `client` to a listener at `address` of `server`, or to what stands for it (`to`,
    `to_port`): both ends. Raises OSError."""
    with contextlib.ExitStack() as stack:
        with server.inside():
            listener = stack.enter_context(socket.create_server((address, port), family=family_of(address), backlog=8))
        listener.settimeout(timeout_s)
        with client.inside():
            ours = socket.socket(family_of(to or address), socket.SOCK_STREAM)
        stack.enter_context(ours)
        ours.settimeout(timeout_s)
        ours.connect((to or address, to_port or listener.getsockname()[1]))
        theirs = stack.enter_context(listener.accept()[0])
        theirs.settimeout(timeout_s)
        yield ours, theirs


def source_seen(client: Place, server: Place, address: str, **more: object) -> str:
    """Connect from `client` to `address` of `server`; the client's address as the server sees it. Raises OSError."""
    with connected(client, server, address, **more) as (_, theirs):  # type: ignore[arg-type]
        return str(theirs.getpeername()[0])


def is_reachable(client: Place, server: Place, address: str) -> bool:
    """Whether TCP from `client` gets through to `address` of `server`."""
    try:
        with connected(client, server, address, timeout_s=SILENCE_TIMEOUT_S):
            return True
    except OSError:
        return False


def talk(ours: socket.socket, theirs: socket.socket) -> bool:
    """Whether both ends of a connection hear each other."""
    for sender, receiver in ((ours, theirs), (theirs, ours)):
        sender.sendall(b"hello")
        if receiver.recv(16) != b"hello":
            return False
    return True


class Tap:
    """One link of a place, at the level of Ethernet frames."""

    def __init__(self, place: Place, link: str) -> None:
        with place.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_LOCAL))
            self._socket.bind((link, ETH_P_LOCAL))
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self.mac = self._socket.getsockname()[4].hex(":")

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, payload: bytes, *, to: str = BROADCAST, source: str = "") -> None:
        """Send one frame, from this link's address or another."""
        head = bytes.fromhex((to + (source or self.mac)).replace(":", "")) + ETH_P_LOCAL.to_bytes(2, "big")
        self._socket.send(head + payload.ljust(46, b"\0"))

    def receive(self) -> bytes:
        """The payload of the next frame that came in; frames that went out are passed over. Raises TimeoutError."""
        while True:
            data, where = self._socket.recvfrom(2048)
            if where[2] != socket.PACKET_OUTGOING:
                return data[14:].rstrip(b"\0")
