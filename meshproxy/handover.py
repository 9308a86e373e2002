"""Hot restart: the running process gives its listening sockets to the next one, then drains. No connection is lost.

The running one offers itself under a name made from its configuration's path, in the abstract namespace of unix sockets
(one for each network namespace: a pod's). The new one, started with --hot-restart, asks there, gets all listening
sockets with their queues (SCM_RIGHTS), starts, and says `ready`; until then both accept, and if it dies before that,
nothing has happened. Then the old one stops accepting and ends its requests. The offer's own socket goes along.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshproxy.listening import Place

# Until the new process is ready: its first snapshots may have to be waited for.
_READY_S = 120.0
# The kernel's limit is 253 (SCM_MAX_FD); the rest goes into more messages.
_FDS_IN_MESSAGE = 200
_MESSAGE_BYTES = 64 * 1024
_OFFER: Place = "handover"
_READY = b"ready"


@dataclass(frozen=True, slots=True)
class Inherited:
    """What came from the process before. `confirm` tells it that we serve; nothing but a crash may follow."""

    sockets: dict[Place, list[socket.socket]]
    offer: socket.socket
    connection: socket.socket

    def confirm(self) -> None:
        try:
            self.connection.sendall(_READY)
        except OSError:
            pass  # it died meanwhile: so be it
        finally:
            self.connection.close()


def name_of(config_path: str) -> bytes:
    """The name under which the process that runs this file is found."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(config_path))).hexdigest()[:24]
    return b"\0meshproxy-" + digest.encode()


def offer(name: bytes) -> socket.socket | None:
    """The socket under which we are found; None: another process that runs the same file has the name."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.bind(name)
        sock.listen(4)
    except OSError:
        sock.close()
        return None
    return sock


def inherit(name: bytes) -> Inherited | None:
    """Take over from the process that runs; None where there is none (or it is not our user's)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    connection.settimeout(10)
    sockets: dict[Place, list[socket.socket]] = {}
    try:
        connection.connect(name)
        if not _is_ours(connection):
            raise OSError("another user's")
        while True:
            data, fds, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, _FDS_IN_MESSAGE)
            if not data:
                raise OSError("it ended")
            message = json.loads(data)
            for place, fd in zip(message["places"], fds, strict=True):
                sock = socket.socket(fileno=fd)
                sock.setblocking(False)
                sock.set_inheritable(False)
                sockets.setdefault(place, []).append(sock)
            if message["last"]:
                break
    except (OSError, ValueError, KeyError):
        connection.close()
        for group in sockets.values():
            for sock in group:
                sock.close()
        return None
    (offered,) = sockets.pop(_OFFER)
    offered.setblocking(True)
    return Inherited(sockets, offered, connection)


def serve_one(offered: socket.socket, held: Callable[[], Mapping[Place, list[socket.socket]]]) -> bool:
    """Wait for one that asks, give it the sockets, wait until it serves. True: it does, so stop accepting now.

    Blocks: for a thread of its own, or a process that carries no traffic.
    """
    connection, _ = offered.accept()
    with connection:
        if not _is_ours(connection):
            return False
        connection.settimeout(_READY_S)
        given = [(place, sock) for place, group in held().items() for sock in group] + [(_OFFER, offered)]
        try:
            for start in range(0, len(given), _FDS_IN_MESSAGE):
                part = given[start : start + _FDS_IN_MESSAGE]
                last = start + _FDS_IN_MESSAGE >= len(given)
                message = json.dumps({"places": [place for place, _ in part], "last": last}).encode()
                socket.send_fds(connection, [message], [sock.fileno() for _, sock in part])
            return connection.recv(len(_READY)) == _READY
        except OSError:
            return False


def _is_ours(connection: socket.socket) -> bool:
    """Whether the peer is of our user, or root: anybody in the network namespace can speak to an abstract name."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (os.geteuid(), 0)
