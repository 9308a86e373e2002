"""A topology made real: namespaces, veth pairs, addresses, sysctls, routes, and the undoing of it all.

The only module here that speaks netlink. It refuses nothing: topology.py has checked what can be checked before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute, NetlinkError

from entering import NamespaceError
from namespaces import Namespace
from topology import End, Host, Link, Topology

# The two ends of a pair must differ in index, where both would be 2 here, the first after lo. Links whose own index is
# that of their peer get their carrier from a queue that the kernel runs once a second (linkwatch_urgent_event in
# net/core/link_watch.c): the second end stays DOWN that long and loses the first IPv6 neighbour solicitation.
FIRST_END_INDEX = 1001
IFA_F_NODAD = 0x02  # <linux/if_addr.h>: usable at once, not after 1-2 s of duplicate address detection


class Network(Mapping[str, Namespace]):
    """The hosts of a topology by name, alive until close()."""

    def __init__(self, topology: Topology, hosts: Mapping[str, Namespace], stack: contextlib.ExitStack) -> None:
        self.topology = topology
        self._hosts = dict(hosts)
        self._stack = stack

    def __getitem__(self, name: str) -> Namespace:
        return self._hosts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def __repr__(self) -> str:
        return f"<Network {self.topology.name} {list(self._hosts.values())}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all hosts, also when one of them resists. A second call does nothing."""
        self._stack.close()


def bring_up(topology: Topology) -> Network:
    """Make every host and link. Raises NamespaceError, with nothing left behind."""
    with contextlib.ExitStack() as stack:
        hosts: dict[str, Namespace] = {}
        for host in topology.hosts:
            hosts[host.name] = stack.enter_context(Namespace.start(host.name))
        for namespace in hosts.values():
            namespace.wait_ready()
        build(topology, hosts)
        return Network(topology, hosts, stack.pop_all())


def build(topology: Topology, hosts: Mapping[str, Namespace]) -> None:
    """Links first, then what needs them; the netlink sockets live only as long as this takes."""
    with contextlib.ExitStack() as sockets:
        netlinks = {name: sockets.enter_context(open_netlink(namespace)) for name, namespace in hosts.items()}
        for number, link in enumerate(topology.links):
            with translated(f"{topology.name}: link {link.ends[0].host}-{link.ends[1].host}"):
                add_link(link, hosts, netlinks, index=FIRST_END_INDEX + number)
        for host in topology.hosts:
            with translated(f"{topology.name}: host {host.name}"):
                configure(host, hosts[host.name], netlinks[host.name])


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """The kernel's refusals, with what we were doing."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        raise NamespaceError(f"{doing}: {error}") from error


def open_netlink(namespace: Namespace) -> IPRoute:
    """A netlink socket of that namespace. Not IPRoute(netns=...), which forks a process for each."""
    with namespace.inside():
        return IPRoute()


def add_link(link: Link, hosts: Mapping[str, Namespace], netlinks: Mapping[str, IPRoute], *, index: int) -> None:
    """Make the pair with each end born in its own host, so that the machine's own namespace never sees it."""
    first, second = link.ends
    descriptor = os.open(hosts[second.host].netns_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        netlinks[first.host].link(
            "add",
            index=index,
            ifname=first.name,
            kind="veth",
            mtu=link.mtu,
            peer={"ifname": second.name, "mtu": link.mtu, "net_ns_fd": descriptor},
        )
    finally:
        os.close(descriptor)
    for end in link.ends:
        set_end_up(end, hosts[end.host], netlinks[end.host])


def set_end_up(end: End, host: Namespace, netlink: IPRoute) -> None:
    """Addresses first, then up."""
    # For the link-local address, which the kernel adds by itself. Links made by plugins keep the kernel's default.
    set_sysctl(host, f"net/ipv6/conf/{end.name}/accept_dad", "0")
    index = netlink.link_lookup(ifname=end.name)[0]
    for address in end.addresses:
        add_address(netlink, index, address)
    netlink.link("set", index=index, state="up")


def add_address(netlink: IPRoute, index: int, address: IPv4Interface | IPv6Interface) -> None:
    """One address on one link."""
    flags = {"flags": IFA_F_NODAD} if address.version == 6 else {}
    netlink.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags)


def configure(host: Host, namespace: Namespace, netlink: IPRoute) -> None:
    """What needs the links: loopback addresses, sysctls, routes."""
    for address in host.loopback:
        add_address(netlink, netlink.link_lookup(ifname="lo")[0], address)
    for key, value in host.sysctls:
        set_sysctl(namespace, key if "/" in key else key.replace(".", "/"), value)
    for route in host.routes:
        netlink.route("add", dst=str(route.to), gateway=str(route.via))


def set_sysctl(host: Namespace, path: str, value: str) -> None:
    """Write a network sysctl: /proc/sys/net is that of the thread which opens it."""
    with host.inside():
        Path("/proc/sys", path).write_text(value)
