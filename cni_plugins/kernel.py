"""The kernel as one call sees it: netlink sockets to the host's and the pod's namespace, opened when first used."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

from . import links
from .netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket, keep_sockets_open, kept_socket
from .netns import Netns
from .plan import HOST, Where
from .tables import open_nft

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_REMOVALS = 32  # deletions of links that the kernel has not finished; a DEL beyond them waits
_LOOK_AGAIN_S = 0.0005


@cache
def _removals() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # the agent's alone: it brings logging

    os.register_at_fork(after_in_child=_removals.cache_clear)  # a child has none of these threads
    return ThreadPoolExecutor(_REMOVALS, "removal", initializer=keep_sockets_open)


def _delete(name: str) -> None:
    with Kernel() as kernel:
        links.delete_link(kernel.host, name)


class Kernel:
    """Sockets of one call. Use as a context manager."""

    def __init__(self, pod: Netns | None = None) -> None:
        self._pod_netns = pod
        self._stack = ExitStack()
        self._open: dict[str, NetlinkSocket] = {}
        self._links: dict[tuple[Where, str], links.Link] = {}

    def __repr__(self) -> str:
        return f"Kernel({self._open})"

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def _get(self, name: str) -> NetlinkSocket:
        socket = self._open.get(name)
        if socket is None:
            socket = self._open[name] = self._kept_open(name) or self._stack.enter_context(self._opened(name))
        return socket

    def _opened(self, name: str) -> NetlinkSocket:
        if name == "nft":
            return open_nft()
        if name == "host":
            return links.open_route()
        assert self._pod_netns is not None, "this call has no pod namespace"
        return links.open_route(self._pod_netns)

    def _kept_open(self, name: str) -> NetlinkSocket | None:
        return None if name == "pod" else kept_socket(NETLINK_NETFILTER if name == "nft" else NETLINK_ROUTE)

    @property
    def host(self) -> NetlinkSocket:
        """Links, addresses and routes of the host."""
        return self._get("host")

    @property
    def pod(self) -> NetlinkSocket:
        """Links, addresses and routes of the pod."""
        return self._get("pod")

    @property
    def nft(self) -> NetlinkSocket:
        """The host's nftables."""
        return self._get("nft")

    def route(self, where: Where) -> NetlinkSocket:
        """The socket for a step's place."""
        return self.host if where == HOST else self.pod

    def link(self, where: Where, name: str) -> links.Link:
        """The link of that name, asked for once in a call: its index and its own address stay. Raises KernelError."""
        found = self._links.get((where, name))
        if found is None:
            found = self._links[where, name] = links.require_link(self.route(where), name)
        return found

    def delete_link(self, name: str) -> bool:
        """Delete a link of the host; returns whether it was there. The kernel takes it out of sight within 5 ms and
        then waits, 10 to 30 ms more, for its last users. An agent does not wait with it; a process could not end."""
        if kept_socket(NETLINK_ROUTE) is None:
            return links.delete_link(self.host, name)
        link = links.get_link(self.host, name)
        if link is None:
            return False
        from concurrent.futures import wait

        deletion = _removals().submit(_delete, name)
        while not wait((deletion,), _LOOK_AGAIN_S).done:
            seen = links.get_link(self.host, name)
            if seen is None or seen.index != link.index:
                return True
        deletion.result()
        return True

    def netns(self, where: Where) -> Netns | None:
        """The namespace for a step's place; None is the host's, where we are."""
        return None if where == HOST else self._pod_netns
