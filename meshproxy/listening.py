"""Listening sockets: bound once, then kept, shared with workers by fork, handed to the next process on a hot restart.

A socket that is closed takes the connections in its accept queue with it. So each place (an address with its port) has
one socket for each worker, which outlive the workers: the kernel spreads connections over them (SO_REUSEPORT), a
worker that crashed finds its queue again, and a new process gets the very sockets of the old one.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from meshproxy.config import Config

# As many as the kernel allows (net.core.somaxconn cuts it): a burst of a thousand clients must not see a timeout.
BACKLOG = 4096
ADMIN = "admin"

# A place: `address:port`; with port 0, which the kernel chooses, the listener's name instead.
Place = str


@dataclass(frozen=True, slots=True)
class CannotListen(Exception):
    """A place that is taken, or not ours to take."""

    place: Place
    reason: str

    def __str__(self) -> str:
        return f"cannot listen on {self.place}: {self.reason}"


def place_of(name: str, address: str, port: int) -> Place:
    where = f"[{address}]" if ":" in address else address
    return f"{where}:{port}" if port else f"{where}:{name}"


def where_of(sock: socket.socket) -> str:
    """`address:port` that a socket really listens on."""
    address, port = sock.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def places(config: Config) -> dict[Place, tuple[str, int]]:
    """All that a configuration listens on, the admin endpoint included."""
    found = {place_of(one.name, one.address, one.port): (one.address, one.port) for one in config.listeners}
    if config.admin is not None:
        found[place_of(ADMIN, config.admin.address, config.admin.port)] = (config.admin.address, config.admin.port)
    return found


class ListeningSockets:
    """The sockets of one proxy, by place; `count` for each place, one for each worker."""

    __slots__ = ("_held", "count")

    def __init__(self, count: int, inherited: Mapping[Place, list[socket.socket]] | None = None) -> None:
        self.count = count
        self._held: dict[Place, list[socket.socket]] = dict(inherited or {})

    def __repr__(self) -> str:
        return f"ListeningSockets({', '.join(self._held)}; {self.count} each)"

    def ensure(self, wanted: Mapping[Place, tuple[str, int]]) -> None:
        """Bind what is not held yet; all or, raising CannotListen, nothing."""
        bound: dict[Place, list[socket.socket]] = {}
        try:
            for place, (address, port) in wanted.items():
                held = self._held.get(place, [])
                missing = self.count - len(held)
                if missing > 0:
                    bound[place] = _bind(place, address, port, beside=held, count=missing)
        except BaseException:
            for sockets in bound.values():
                for sock in sockets:
                    sock.close()
            raise
        for place, sockets in bound.items():
            self._held.setdefault(place, []).extend(sockets)

    def release(self, wanted: Mapping[Place, tuple[str, int]]) -> None:
        """Close what is no longer wanted."""
        for place in [place for place in self._held if place not in wanted]:
            for sock in self._held.pop(place):
                sock.close()

    def share(self, place: Place, index: int) -> list[socket.socket]:
        """The sockets that worker `index` accepts on: together the workers have them all, also those of an older
        process with more workers. Connections wait in each of them."""
        held = self._held.get(place, [])
        return held[index :: self.count]

    @property
    def held(self) -> Mapping[Place, list[socket.socket]]:
        return self._held

    def close(self) -> None:
        self.release({})


def _bind(place: Place, address: str, port: int, *, beside: list[socket.socket], count: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        if beside:
            port = beside[0].getsockname()[1]
        else:
            # SO_REUSEPORT would silently share the port with any other process of ours: this one tells.
            _new(address).close() if port == 0 else _probe(address, port)
        for _ in range(count):
            sock = _new(address)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address, port))
            sock.listen(BACKLOG)
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise CannotListen(place, error.strerror or str(error)) from error
    return sockets


def _probe(address: str, port: int) -> None:
    with _new(address) as sock:
        sock.bind((address, port))


def _new(address: str) -> socket.socket:
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock
