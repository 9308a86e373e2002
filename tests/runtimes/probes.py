"""Probes: who answers at an address, seen from a network namespace. Plain sockets, made inside and used from here.

A claim about reachability asks `answer` in a wait_until, since a container's process needs a moment to listen; a claim
about the contrary asks `is_refused`, which takes silence and refusal alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from entering import visit_network
from namespaces import Namespace
from waiting import wait_until

# Between hosts of one machine an answer takes less than a millisecond; TCP repeats a lost SYN only after a second.
ANSWER_TIMEOUT_S = 2.0
# Silence is what a filter makes; no need to wait for long to hear it.
SILENCE_TIMEOUT_S = 0.3
# A started container runs at once, busybox listens a little later.
LISTEN_TIMEOUT_S = 10.0
ECHO_PREFIX = b"echo "

Place = Namespace | Path


def netns_of(place: Place) -> str:
    """The path of a network namespace: a test host's own, or that of a container."""
    return place.netns_path if isinstance(place, Namespace) else os.fspath(place)


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET6 when the address holds a colon."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def make_socket(place: Place, address: str, kind: socket.SocketKind) -> socket.socket:
    """A socket of the address's family that lives in `place`."""
    with visit_network(netns_of(place)):
        return socket.socket(family_of(address), kind)


def connect(place: Place, address: str, port: int, *, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
    """Connect from `place` and read all that comes: the name of the container. Raises OSError."""
    with make_socket(place, address, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        with sock.makefile("rb") as stream:
            return stream.read().decode().strip()


def answer(place: Place, address: str, port: int) -> str:
    """Who answers TCP at `address`, seen from `place`; AssertionError when nobody does."""

    def ask() -> str:
        try:
            return connect(place, address, port)
        except OSError as error:
            raise AssertionError(f"[{address}]:{port} from {place}: {error}") from error

    return wait_until(ask, within=LISTEN_TIMEOUT_S)


def is_refused(place: Place, address: str, port: int) -> bool:
    """Whether nobody answers TCP there: refused, unreachable or silent."""
    try:
        return not connect(place, address, port, timeout_s=SILENCE_TIMEOUT_S)
    except OSError:
        return True


@contextlib.contextmanager
def udp_echo(place: Place, port: int, *, address: str = "0.0.0.0") -> Iterator[None]:
    """While inside, whatever comes to this UDP port of `place` goes back with ECHO_PREFIX."""
    with make_socket(place, address, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        ended = threading.Event()

        def serve() -> None:
            while True:
                data, peer = sock.recvfrom(2048)
                if ended.is_set():
                    return
                sock.sendto(ECHO_PREFIX + data, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            # A datagram from its own namespace wakes it up: closing a socket does not end a recvfrom on it.
            ended.set()
            loopback = "::1" if ":" in address else "127.0.0.1"
            with make_socket(place, address, socket.SOCK_DGRAM) as waker:
                waker.sendto(b"", (loopback, port))
            thread.join()


def udp_answer(place: Place, address: str, port: int, data: bytes) -> bytes:
    """What comes back for one datagram; AssertionError when nothing does."""

    def ask() -> bytes:
        with make_socket(place, address, socket.SOCK_DGRAM) as sock:
            sock.settimeout(ANSWER_TIMEOUT_S)
            try:
                # Connected, so that an answer from another address than asked does not count.
                sock.connect((address, port))
                sock.send(data)
                return sock.recv(2048)
            except OSError as error:
                raise AssertionError(f"udp [{address}]:{port} from {place}: {error}") from error

    return wait_until(ask, within=LISTEN_TIMEOUT_S)


@contextlib.contextmanager
def peer_recorder(place: Place, address: str, port: int) -> Iterator[list[str]]:
    """While inside, a TCP listener at `address` of `place`; yields a list that grows by each peer's address."""
    peers: list[str] = []
    with make_socket(place, address, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):  # shut down below
                while True:
                    connection, peer = listener.accept()
                    with connection:
                        peers.append(peer[0])
                        connection.sendall(b"outside")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield peers
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def addresses_in(node: Namespace, netns: Path) -> dict[str, set[str]]:
    """`ip address` of a network namespace: link name to `address/prefix`, link-local ones left out."""
    text = node.run("nsenter", f"--net={netns}", "ip", "-json", "address").stdout
    return {
        link["ifname"]: {
            f"{info['local']}/{info['prefixlen']}" for info in link["addr_info"] if info["scope"] == "global"
        }
        for link in json.loads(text)
    }
