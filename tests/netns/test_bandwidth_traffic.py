"""The bandwidth plugin with real TCP: what flows is what was asked for, both ways, in both families."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import Any

import pytest

from namespaces import Namespace, Pod
from tests.packets import connected
from tests.plugin import run_plugin
from tests.wiring import wire

MBIT = 1_000_000


def limit(host: Namespace, pod: Pod, prev: dict[str, Any], **limits: int) -> None:
    """ADD, as containerd does it."""
    run_plugin(host, "bandwidth", "ADD", {"runtimeConfig": {"bandwidth": limits}, "prevResult": prev}, pod)


def bits_per_second(sender: socket.socket, receiver: socket.socket, *, skip: int, within_s: float) -> float:
    """The rate at which payload arrives after the first `skip` bytes, which the burst lets pass at once. The window
    is small, so that the queue never overflows: how TCP recovers from losses is not what is measured."""
    receiver.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 24 << 10)
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # each kernel has it
    sender.setblocking(False)
    receiver.setblocking(False)
    data, arrived, start, mark = b"x" * (1 << 16), 0, 0.0, 0
    while not start or time.monotonic() - start < within_s:
        readable, writable, _ = select.select([receiver], [sender], [], 5)
        assert readable or writable, "nothing flows"
        if writable:
            with contextlib.suppress(BlockingIOError):
                sender.send(data)
        if readable:
            arrived += len(receiver.recv(1 << 16))
        if not start and arrived > skip:
            start, mark = time.monotonic(), arrived
    return (arrived - mark) * 8 / (time.monotonic() - start)


@pytest.mark.parametrize("rate", [10 * MBIT, 80 * MBIT], ids=["10M", "80M"])
@pytest.mark.parametrize("ip", ["10.9.1.{}", "fd09:1::{}"], ids=["v4", "v6"])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_tcp_flows_at_the_rate(direction: str, ip: str, rate: int, host: Namespace) -> None:
    pod, prev = wire(host)
    # At 10 Mbit/s the burst is below one packet of a big send (GSO): the bucket must take it apart.
    limit(host, pod, prev, **{f"{direction}Rate": rate, f"{direction}Burst": rate // 100})
    ends: tuple[Any, Any, str] = (host, pod, ip.format(2)) if direction == "ingress" else (pod, host, ip.format(1))
    with connected(*ends) as (sender, receiver):
        measured = bits_per_second(sender, receiver, skip=rate // 40, within_s=0.8)
    frames = measured * 1514 / (1448 if "." in ip else 1428)  # what a bucket counts, for that much payload
    assert 0.9 < frames / rate < 1.1


def test_the_other_way_is_not_slowed(host: Namespace) -> None:
    pod, prev = wire(host)
    limit(host, pod, prev, egressRate=8 * MBIT, egressBurst=80_000)
    with connected(host, pod, "10.9.1.2") as (sender, receiver):
        assert bits_per_second(sender, receiver, skip=MBIT, within_s=0.3) > 100 * MBIT
