"""The launcher's side of the protocol by hand, for clients that say half of it, or something else, or are quick."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cni_plugins.agent import program_id
from cni_plugins.handover import EXIT, GO, MESSAGE_MAX, OUTPUT, READY, WAIT, encode_call
from namespaces import Namespace
from tests.agent.running import SOCKET, connect


def message(verb: str, config: Mapping[str, Any], **environ: str) -> bytes:
    """A call of bridge, as launchers send it."""
    variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0", **environ}
    encoded = {key.encode(): value.encode() for key, value in variables.items()}
    return encode_call(program_id(), b"bridge", encoded, json.dumps(config).encode())


def client_of(host: Namespace) -> socket.socket:
    """A connection to the agent on `host`."""
    return connect(host.path_from_outside(SOCKET))


def send(client: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """One message with descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    client.sendmsg([data], rights)


def hand(client: socket.socket, data: bytes) -> None:
    """A message as a launcher sends it, with its network namespace. The agent takes calls from processes of its own
    host alone: see tests/forked.py."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        send(client, data, [home])
    finally:
        os.close(home)


def call(verb: str, config: Mapping[str, Any], *, netns: str, container_id: str, path: Path) -> dict[str, Any]:
    """A whole call, without the start of a process: what it answered. In a process of the agent's host."""
    places = [os.open(path, os.O_RDONLY) for path in ("/proc/self/ns/net", netns)]
    with connect(SOCKET, timeout_s=60) as client:
        environ = {"CNI_CONTAINERID": container_id, "CNI_NETNS": netns, "CNI_PATH": str(path)}
        send(client, message(verb, config, **environ), places)
        for place in places:
            os.close(place)
        said = client.recv(1)
        assert (client.recv(1) if said == WAIT else said) == READY
        client.send(GO)
        output = b""
        while (part := client.recv(MESSAGE_MAX + 1))[:1] == OUTPUT:
            output += part[1:]
        assert part[:1] == EXIT, part
    body = json.loads(output or b"{}")
    assert (int(part[1:]) == 0) == ("code" not in body)
    assert isinstance(body, dict)
    return body


def is_hung_up(client: socket.socket) -> bool:
    """Whether the agent closes this connection, after whatever it says."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True
