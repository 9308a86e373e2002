"""The agent as a process: one at a time, a socket of its own or systemd's, standard error by call, the end on SIGTERM.

What it does in between is in agent.py.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

from . import __version__, registry
from .agent import WORKERS, Agent, Said
from .agent_metrics import Metrics
from .errors import CniError, Code

_BACKLOG = 1024
_LISTEN_FDS_START = 3  # sd_listen_fds(3)
_CONNECTIONS_MAX = 1024  # beyond these a connection is refused, and its launcher runs the call itself
_DESCRIPTORS_EACH = 3  # of a connection: itself, the launcher's network namespace, the pod's
_DESCRIPTORS_ELSE = 8 * WORKERS  # sockets and files of calls at work, logs, metrics; generously


def open_listener(path: str) -> socket.socket:
    """The socket at `path`, for root alone: systemd's where it gave us one, else our own. The caller holds the lock, so
    what is there is a dead agent's. Under no other name first, which a kill would leave: a launcher that meets a socket
    where nobody listens yet is refused, and runs its call itself."""
    if _is_from_systemd():
        return socket.socket(fileno=_LISTEN_FDS_START)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    return listener


def _is_from_systemd() -> bool:
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1"


def take_lock(path: str) -> tuple[int, int]:
    """One agent a socket: a lock that the kernel drops with its holder. The file tells the holder and how often it was
    taken since the machine's start. Returns the descriptor and that number. Raises CniError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder, *_ = (*os.read(descriptor, 32).decode(errors="replace").split(), "?")
        os.close(descriptor)
        raise CniError(
            Code.CONFLICT, f"a netloom agent runs already (pid {holder})", f"it holds {path}; stop it first"
        ) from error
    try:
        _, before = map(int, os.read(descriptor, 32).split())
    except ValueError:
        before = 0
    # One write of an unvarying length: a kill leaves the old text or the new one.
    os.pwrite(descriptor, b"%10d %10d\n" % (os.getpid(), before + 1), 0)
    return descriptor, before + 1


def connections_max() -> int:
    """How many connections this process can hold, once it has taken all the descriptors that it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, min(_CONNECTIONS_MAX, (hard - _DESCRIPTORS_ELSE) // _DESCRIPTORS_EACH))


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), where it asked."""
    if not (path := os.environ.get("NOTIFY_SOCKET")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.sendto(state.encode(), address)


def run(path: str, metrics_address: str = "") -> int:
    """Run an agent until SIGTERM or SIGINT. Raises CniError or OSError where it cannot start."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    lock, starts = take_lock(f"{path}.lock")
    for name in registry.MODULES:
        registry.load(name)
    metrics = Metrics(starts)
    if metrics_address:
        metrics.serve(metrics_address)
    listener = open_listener(path)
    gc.freeze()  # modules stay: the collector need not look at them again, and looks the sooner at what calls leave

    out = sys.stderr
    said = sys.stderr = Said(out)

    def log(line: str) -> None:
        out.write(line + "\n")
        out.flush()

    async def main() -> None:
        agent = Agent(listener, metrics, log, said, connections_max=connections_max())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.end)
        notify("READY=1")
        log(json.dumps({"event": "ready", "socket": path, "version": __version__, "pid": os.getpid()}))
        await agent.serve()
        notify("STOPPING=1")

    asyncio.run(main())
    if not _is_from_systemd():
        with suppress(FileNotFoundError):
            os.unlink(path)  # no other agent can have put its own there: we hold the lock
    log(json.dumps({"event": "ended"}))
    os.close(lock)
    return 0
