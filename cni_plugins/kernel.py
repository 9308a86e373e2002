"""The kernel as one call sees it: netlink sockets to the host's and the pod's namespace, opened when first used."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType

from .links import open_route
from .netlink import NetlinkSocket
from .netns import Netns
from .plan import HOST, Where
from .tables import open_nft

_kept = threading.local()


def keep_sockets_open() -> None:
    """For a worker thread of the agent: sockets to the host stay open from call to call. Closing one of nftables
    after a transaction waits until the kernel has freed what was deleted: 15 ms of a 20 ms ADD."""
    _kept.sockets = {}


class Kernel:
    """Sockets of one call. Use as a context manager."""

    def __init__(self, pod: Netns | None = None) -> None:
        self._pod_netns = pod
        self._stack = ExitStack()
        self._open: dict[str, NetlinkSocket] = {}
        self._kept: dict[str, NetlinkSocket] | None = getattr(_kept, "sockets", None)
        self._sent_before = 0

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
            return open_route()
        assert self._pod_netns is not None, "this call has no pod namespace"
        return open_route(self._pod_netns)

    def _kept_open(self, name: str) -> NetlinkSocket | None:
        if self._kept is None or name == "pod":
            return None
        if name not in self._kept:
            self._kept[name] = self._opened(name)
        self._sent_before += self._kept[name].sent
        return self._kept[name]

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

    def netns(self, where: Where) -> Netns | None:
        """The namespace for a step's place; None is the host's, where we are."""
        return None if where == HOST else self._pod_netns

    @property
    def messages_sent(self) -> int:
        """Netlink messages so far: the cost of a call, as a count."""
        return sum(socket.sent for socket in self._open.values()) - self._sent_before
