"""Forgetting tracked connections: those of a port, in both ways that kernels offer, and no others."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from cni_plugins import conntrack
from cni_plugins.conntrack import Flow
from cni_plugins.netlink import NetlinkSocket
from cni_plugins.tables import open_nft
from namespaces import Namespace

pytestmark = pytest.mark.one_mode
UDP = socket.IPPROTO_UDP


def in_one_message(nft: NetlinkSocket, flow: Flow) -> None:
    conntrack.forget(nft, [flow])


WAYS = pytest.mark.parametrize(
    "forget", [in_one_message, conntrack.forget_listed], ids=["by filter", "one by one, as before Linux 6.8"]
)
ENTRIES = (
    ("127.0.0.1", 5353, "udp"), ("127.0.0.2", 5353, "udp"), ("127.0.0.1", 5354, "udp"), ("::1", 5353, "udp"),
    ("127.0.0.1", 5353, "tcp"),
)  # fmt: skip


def tracked(host: Namespace) -> set[tuple[str, int, str]]:
    """What the host tracks: destination address and port, protocol."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in host.run("conntrack", "-L", "-f", family).stdout.splitlines():
            words = line.split()
            facts = dict(word.split("=", 1) for word in reversed(words) if "=" in word)  # the original's come first
            if facts["dport"] in ("5353", "5354"):
                found.add((str(ip_address(facts["dst"])), int(facts["dport"]), words[0]))
    return found


@pytest.fixture
def busy(host: Namespace) -> Namespace:
    """A host with an entry for each of ENTRIES."""
    host.run("nft", "-f", "-", input="table inet t { chain c { type filter hook output priority 0; ct state new; }; }")
    for address, port, protocol in ENTRIES:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (
            host.inside(),
            socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM) as sock,
        ):
            if protocol == "udp":
                sock.sendto(b"x", (address, port))
                continue
            with socket.create_server((address, port)):
                sock.connect((address, port))
    assert tracked(host) == set(ENTRIES)
    return host


@WAYS
@pytest.mark.parametrize(
    ("flow", "gone"),
    [
        (Flow(4, UDP, 5353), {("127.0.0.1", 5353, "udp"), ("127.0.0.2", 5353, "udp")}),
        (Flow(4, UDP, 5353, ip_address("127.0.0.2")), {("127.0.0.2", 5353, "udp")}),
        (Flow(6, UDP, 5353), {("::1", 5353, "udp")}),
        (Flow(6, UDP, 5353, ip_address("::1")), {("::1", 5353, "udp")}),
        (Flow(4, socket.IPPROTO_SCTP, 5353), set()),
        (Flow(4, UDP, 1), set()),
    ],
)
def test_the_flow_is_forgotten_and_no_other(
    flow: Flow, gone: set[tuple[str, int, str]], forget: Callable[[NetlinkSocket, Flow], None], busy: Namespace
) -> None:
    with busy.inside(), open_nft() as nft:
        forget(nft, flow)
    assert tracked(busy) == set(ENTRIES) - gone


def test_the_filter_is_one_message_a_flow(busy: Namespace) -> None:
    with busy.inside(), open_nft() as nft:
        conntrack.forget(nft, [Flow(4, UDP, 5353), Flow(6, UDP, 5353)])
        assert nft.sent == 2
