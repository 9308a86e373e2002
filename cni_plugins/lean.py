"""pyroute2's message classes without its sockets: 50 ms to import instead of 150.

Importing any module of pyroute2 runs the package's front, which imports its databases, its asyncio core and 280
modules more; nftsocket, where the nftables messages are, imports the socket classes only to derive from them. A plugin
that runs in a process of its own (no agent) needs messages alone. `install` puts a bare package and bare socket classes
in place before the first import; it changes nothing where pyroute2 is loaded already. A test compares the messages of
both ways of loading.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

_PACKAGE = "pyroute2"
_SOCKETS = "pyroute2.netlink.nlsocket"


def install() -> None:
    """Take the short way for this process."""
    if _PACKAGE in sys.modules:
        return
    folder = next((f for f in (os.path.join(p, _PACKAGE) for p in sys.path) if os.path.isdir(f)), None)
    if folder is None:
        return  # the import that follows tells
    package = ModuleType(_PACKAGE)
    package.__path__ = [folder]
    sys.modules[_PACKAGE] = package
    sockets = ModuleType(_SOCKETS)
    sockets.__dict__.update(NetlinkSocket=object, AsyncNetlinkSocket=object)
    sys.modules[_SOCKETS] = sockets
