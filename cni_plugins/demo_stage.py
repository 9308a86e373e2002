"""Where the demo plays: two hosts in namespaces of their own, pods, servers in them, and the command `netloom`.

The hosts are those of netns-fixtures, which lies beside this package in a checkout: they end with the demo however it
ends, and their /run and /var/lib/cni are their own. `Stage` acts, `count` looks; the story is told by demo.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import links, registry
from .install import library_folders
from .netlink import Message, attributes
from .netns import open_netns
from .nft import Chain, Family, Set, Table
from .nft_requests import begin, elements_of, end, flush_chain, get_elements
from .tables import open_nft

if TYPE_CHECKING:
    from namespaces import Namespace, Pod

FIXTURES = Path(registry.SOURCE, "netns-fixtures")
CHECKOUT_CONF = Path(registry.SOURCE, "conf", "dual-stack.conflist")
NETWORK = "dual-stack"
BRIDGE = "dual0"
BIN_DIR = "/run/demo/bin"  # in the node's own /run: gone with it, even after kill -9
CONF_DIR = "/run/demo/net.d"
RESERVATIONS = "/var/lib/cni/networks"
RESULTS = "/var/lib/cni/results"
PORT = 80
# Within one machine an answer takes a millisecond; TCP repeats a lost first packet after one second.
ANSWER_TIMEOUT_S = 3.0
LINK_GONE_TIMEOUT_S = 10.0  # the kernel takes a namespace apart in its own time
# A runtime's environment is no more than this, and where we find pyroute2.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# linux/netfilter/nf_tables.h and nfnetlink.h: dumps of all tables and of all sets.
_GET_TABLES, _GET_SETS = 10 << 8 | 1, 10 << 8 | 10
_ALL = bytes(4)  # nfgenmsg: any family
_FAMILIES: dict[int, Family] = {1: "inet", 7: "bridge"}


class StepFailed(Exception):
    """Something did not go as the story says; the text is for the person who watches."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the node holds of pods. A bridge is not of a pod: it stays, as with the reference plugins."""

    addresses: int
    links: int
    tables: int
    elements: int
    files: int

    def __str__(self) -> str:
        return (
            f"{self.addresses} addresses, {self.links} links, {self.tables} nft tables with {self.elements} elements, "
            f"{self.files} cached results"
        )


NOTHING = Counts(0, 0, 0, 0, 0)


class Stage:
    """The hosts `node` and `outside`, the pods on `node`, and what serves in them."""

    def __init__(self, node: Namespace, outside: Namespace) -> None:
        self.node = node
        self.outside = outside
        self.pods: dict[str, Pod] = {}
        self._servers: dict[str, socket.socket] = {}
        folders = os.pathsep.join(library_folders())
        self._environ = {"PATH": PATH, "PYTHONPATH": folders, "NETCONFPATH": CONF_DIR, "CNI_PATH": BIN_DIR}
        conf = node.path_from_outside(CONF_DIR)
        conf.mkdir(parents=True)
        (conf / CHECKOUT_CONF.name).write_bytes(CHECKOUT_CONF.read_bytes())

    def __repr__(self) -> str:
        return f"<Stage {self.node} pods={sorted(self.pods)}>"

    def netloom(self, *arguments: str) -> str:
        """Run the command on the node; returns what it printed. Raises StepFailed with its error."""
        done = self._run(arguments)
        if done.returncode != 0:
            raise StepFailed(f"netloom {' '.join(arguments[:3])} failed: {_words(done)}")
        return done.stdout

    def refusal(self, *arguments: str) -> str:
        """Run the command where it must fail; returns its error. Raises StepFailed where it does not."""
        done = self._run(arguments)
        if done.returncode == 0:
            raise StepFailed(f"netloom {' '.join(arguments[:3])} should have failed")
        return _words(done)

    def _run(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        argv = (sys.executable, "-m", "cni_plugins.cli", *arguments)
        return self.node.run(*argv, env=self._environ, check=False, cwd="/")

    def add_pod(self, name: str) -> None:
        """A network namespace as a runtime makes one, at /run/netns/NAME on the node."""
        self.pods[name] = self.node.add_pod(name)

    def kill_pod(self, name: str) -> None:
        """End a pod without telling any plugin, and wait until the kernel has taken its links."""
        from waiting import wait_until

        self._stop_serving(name)
        before = count(self.node).links
        self.pods.pop(name).close()
        wait_until(lambda: count(self.node).links < before, within=LINK_GONE_TIMEOUT_S)

    def serve(self, name: str, place: Pod | Namespace, port: int = PORT) -> None:
        """Answer each TCP connection to `port` of `place`, in both families, with `name` and the peer's address."""
        with place.inside():
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self._servers[name] = listener
        threading.Thread(target=_answer_all, args=(listener, name), daemon=True).start()

    def _stop_serving(self, name: str) -> None:
        listener = self._servers.pop(name, None)
        if listener is not None:
            with contextlib.suppress(OSError):  # its namespace may be gone
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def close(self) -> None:
        """Stop the servers: their sockets would keep the pods' namespaces alive."""
        for name in list(self._servers):
            self._stop_serving(name)


@contextlib.contextmanager
def open_stage() -> Iterator[Stage]:
    """Both hosts, connected. Raises StepFailed where the machine does not allow namespaces.

    An ordinary user's process starts itself again as root of a new user namespace."""
    if not FIXTURES.is_dir() or not CHECKOUT_CONF.is_file():
        raise StepFailed(f"the demo needs a checkout of netloom: there is no {FIXTURES}")
    if str(FIXTURES) not in sys.path:
        sys.path.append(str(FIXTURES))
    from entering import NamespaceError, require_root_or_userns
    from topology import Topology

    try:
        require_root_or_userns()
        network = Topology.load("node").up()
    except NamespaceError as error:
        raise StepFailed(str(error)) from error
    with network:
        stage = Stage(network["node"], network["outside"])
        with contextlib.closing(stage):
            yield stage


def ask(place: Pod | Namespace, address: str, port: int = PORT) -> str:
    """What the server at `address` says to a connection from `place`. Raises StepFailed where none answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with place.inside():
            asking = socket.socket(family, socket.SOCK_STREAM)
        with asking:
            asking.settimeout(ANSWER_TIMEOUT_S)
            asking.connect((address, port))
            with asking.makefile("rb") as stream:
                return stream.read().decode()
    except OSError as error:
        raise StepFailed(f"no answer from {address} port {port}, asked from {place.name}: {error}") from error


def _answer_all(listener: socket.socket, name: str) -> None:
    with contextlib.suppress(OSError):  # it was closed
        while True:
            connection, (address, *_) = listener.accept()
            with connection:
                connection.sendall(f"{name} saw {address.removeprefix('::ffff:')}".encode())


def _words(done: subprocess.CompletedProcess[str]) -> str:
    text = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    return text.partition(": ")[2] or text if text.startswith("netloom ") else text


def flush_by_hand(host: Namespace, table: str, chain: str) -> None:
    """What `nft flush chain inet TABLE CHAIN` does. Raises CniError."""
    with contextlib.closing(open_netns(host.netns_path)) as netns, open_nft(netns) as nft:
        nft.run([begin(), flush_chain(Table("inet", table, (), ()), Chain(chain)), end()])


def count(host: Namespace) -> Counts:
    """Look at what the kernel and the file system of the node hold. Raises CniError."""
    with contextlib.closing(open_netns(host.netns_path)) as netns:
        with links.open_route(netns) as route:
            pod_links = [link for link in links.list_links(route) if link.name.startswith("veth")]
        with open_nft(netns) as nft:
            tables = []
            for body in nft.dump(Message(_GET_TABLES, 0, _ALL, "listing the tables")):
                tables.append(_text(attributes(body, 4)[1]))  # NFTA_TABLE_NAME
            elements = 0
            for body in list(nft.dump(Message(_GET_SETS, 0, _ALL, "listing the sets"))):
                names = attributes(body, 4)  # NFTA_SET_TABLE, NFTA_SET_NAME
                table = Table(_FAMILIES[body[0]], _text(names[1]), (), ())
                listing = get_elements(table, Set(_text(names[2]), ()))
                elements += sum(len(elements_of(found)) for found in nft.dump(listing))
    reserved = host.path_from_outside(RESERVATIONS)
    addresses = [path for path in reserved.glob("*/*") if ":" in path.name or path.name.replace(".", "").isdigit()]
    results = host.path_from_outside(RESULTS)
    files = list(results.iterdir()) if results.is_dir() else []
    return Counts(len(addresses), len(pod_links), len(tables), elements, len(files))


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()
