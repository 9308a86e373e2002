"""The node agent: runs the plugins' handlers for calls that launchers hand over, several times faster than a process
that has to start and import them. Without it everything works, slower, with the same results.

One event loop accepts, reads and checks; a pool of threads runs the handlers, each with netlink sockets that stay open
(closing one after an nft transaction waits for the kernel, about 15 ms). Calls of one attachment run one after the
other, so that a DEL never overtakes the ADD of a launcher that was killed. The protocol is in handover.py, the process
with its lock and socket in agent_process.py.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TextIO

from . import __version__, netlink, registry, skel
from .agent_metrics import Metrics
from .errors import Code
from .handover import DECLINE, ERRORS, EXIT, GO, MESSAGE_MAX, OUTPUT, READY, WAIT, decode_call
from .netns import Netns, check_netns, own_netns

WORKERS = 32  # a DEL waits some 20 ms in the kernel; calls beyond these queue
_MESSAGE_WITHIN_S = 5.0  # a launcher sends its call at once
_GO_WITHIN_S = 5.0
_DRAIN_S = 60.0
_SAID_MAX = 2000  # characters of a call's standard error in its log line


def program_id() -> bytes:
    """What launcher and agent must have in common: the version and the folder of the code."""
    return f"{__version__} {registry.SOURCE}".encode()


@dataclass(slots=True)
class Handed:
    """A call as it came from a launcher. Owns its descriptors."""

    plugin: str
    environ: dict[str, str]
    stdin: bytes
    host: Netns
    pod: Netns | None

    def close(self) -> None:
        """Close what is still ours."""
        for netns in (self.host, self.pod):
            if netns is not None:
                with suppress(OSError):
                    netns.close()
        self.pod = None

    @property
    def is_of_attachment(self) -> bool:
        """Whether it is about one; GC and STATUS are about a network."""
        return bool(self.environ.get("CNI_CONTAINERID"))

    @property
    def key(self) -> tuple[str, str]:
        """Calls of one attachment have equal keys, and run one after the other."""
        return self.environ.get("CNI_CONTAINERID", ""), self.environ.get("CNI_IFNAME", "")


class Declined(Exception):
    """The call is not for this agent; the launcher runs it."""


class Agent:
    """State of a running agent: what is in flight, and the way to end."""

    def __init__(
        self, listener: socket.socket, metrics: Metrics, log: Callable[[str], None], said: Said, *, connections_max: int
    ) -> None:
        self._listener = listener
        self._metrics = metrics
        self._log = log
        self._said = said
        self._connections_max = connections_max
        self._home = own_netns()
        self._workers = ThreadPoolExecutor(WORKERS, "call", initializer=netlink.keep_sockets_open)
        self._free = asyncio.Semaphore(WORKERS)
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[None]] = set()  # those whose calls of an attachment are being run
        self._ending = asyncio.Event()

    def __repr__(self) -> str:
        return f"Agent(connections={len(self._tasks)}, attachments={len(self._locks)})"

    def end(self) -> None:
        """Accept no more; `serve` returns when the calls in flight are done."""
        self._ending.set()

    async def serve(self) -> None:
        """Serve until `end`, then drain."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        await self._ending.wait()
        loop.remove_reader(self._listener)
        self._listener.close()  # launchers that wait in its queue are refused, and run their calls themselves
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._home.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    return  # the launcher waits, then runs its call itself
                raise
            if len(self._tasks) >= self._connections_max or not _is_allowed(connection):
                self._metrics.dropped("refused")
                connection.close()
                continue
            connection.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._serve_one(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve_one(self, connection: socket.socket) -> None:
        """The one crash barrier of a connection: whatever comes in, the agent goes on."""
        handed: Handed | None = None
        try:
            handed = await self._receive(connection)
            if self._must_wait(handed):
                connection.send(WAIT)
            await self._in_turn(connection, handed)
        except (Declined, ValueError) as error:
            self._metrics.dropped("declined")
            self._log(json.dumps({"event": "declined", "reason": str(error)}))
            with suppress(OSError):
                connection.send(DECLINE)
        except (OSError, TimeoutError) as error:
            self._metrics.dropped("lost")
            self._log(json.dumps({"event": "lost", "reason": f"{type(error).__name__}: {error}"}))
        finally:
            if handed is not None:
                handed.close()
            connection.close()

    async def _receive(self, connection: socket.socket) -> Handed:
        await _readable(connection, _MESSAGE_WITHIN_S)
        message, rights, flags, _ = connection.recvmsg(MESSAGE_MAX + 1, socket.CMSG_SPACE(2 * 4))
        descriptors = _descriptors(rights)
        with ExitStack() as undo:
            for descriptor in descriptors:
                undo.callback(os.close, descriptor)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not descriptors:
                raise Declined("a message too large, or without descriptors")
            program, plugin, environ, stdin = decode_call(message)
            if program != program_id():
                raise Declined(f"the launcher is of {os.fsdecode(program)}")
            name = os.fsdecode(plugin)
            if name not in registry.MODULES:
                raise Declined(f"no plugin {name!r}")
            variables = {os.fsdecode(key): os.fsdecode(value) for key, value in environ.items()}
            host = Netns(descriptors[0], "")
            if host.identity != self._home.identity:
                raise Declined("the launcher is in another network namespace")
            if not _has_our_mounts(_peer(connection)[0]):
                raise Declined("the launcher is in another mount namespace")
            pod = Netns(descriptors[1], variables.get("CNI_NETNS", "")) if len(descriptors) > 1 else None
            undo.pop_all()
            return Handed(name, variables, stdin, host, pod)

    def _must_wait(self, handed: Handed) -> bool:
        """Whether READY cannot follow at once; a message less is 0.1 ms less."""
        return self._free.locked() or handed.key in self._locks or handed.environ.get("CNI_COMMAND") == "GC"

    async def _in_turn(self, connection: socket.socket, handed: Handed) -> None:
        if not handed.is_of_attachment:
            if handed.environ.get("CNI_COMMAND") == "GC" and self._running:
                await asyncio.wait(self._running)  # their launchers may be dead, so no runtime waits for them
            await self._when_free(connection, handed)
            return
        lock, users = self._locks.get(handed.key, (asyncio.Lock(), 0))
        self._locks[handed.key] = lock, users + 1
        try:
            async with lock:
                await self._when_free(connection, handed)
        finally:
            lock, users = self._locks[handed.key]
            if users == 1:
                del self._locks[handed.key]
            else:
                self._locks[handed.key] = lock, users - 1

    async def _when_free(self, connection: socket.socket, handed: Handed) -> None:
        async with self._free:
            connection.send(READY)
            await _readable(connection, _GO_WITHIN_S)
            if connection.recv(1) != GO:
                raise ConnectionAbortedError("the launcher gave up before its turn")
            running = asyncio.current_task()
            if running is not None and handed.is_of_attachment:
                self._running.add(running)
            try:
                await self._run(connection, handed)
            finally:
                self._running.discard(running)

    async def _run(self, connection: socket.socket, handed: Handed) -> None:
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        answer, said = await loop.run_in_executor(self._workers, _answer, handed, self._said)
        duration_s = time.monotonic() - started
        code = 0 if answer.exit_code == 0 else _error_code(answer.stdout)
        verb = handed.environ.get("CNI_COMMAND", "")
        self._metrics.call(handed.plugin, verb, code, duration_s)
        if verb == "ADD" and code == 0:
            self._metrics.saw(handed.stdin)
        self._log(_line(handed, verb, code, duration_s, said))
        try:
            for kind, data in ((ERRORS, said.encode(errors="replace")), (OUTPUT, answer.stdout)):
                for at in range(0, len(data), MESSAGE_MAX):
                    await _send(connection, kind + data[at : at + MESSAGE_MAX])
            await _send(connection, EXIT + str(answer.exit_code).encode())
        except OSError:
            self._metrics.dropped("lost")  # the launcher was killed; its runtime will DEL


class Said(io.TextIOBase):
    """Standard error, for the whole process: what a call says is kept for its launcher, whose runtime logs it."""

    def __init__(self, otherwise: TextIO) -> None:
        self._otherwise = otherwise
        self._call = threading.local()

    def begin(self) -> None:
        """From here on, keep what this thread says."""
        self._call.parts = []

    def end(self) -> str:
        """What it has said."""
        parts, self._call.parts = self._call.parts, None
        return "".join(parts)

    def write(self, text: str) -> int:
        parts: list[str] | None = getattr(self._call, "parts", None)
        if parts is None:
            return self._otherwise.write(text)
        parts.append(text)
        return len(text)

    def flush(self) -> None:
        self._otherwise.flush()


def _answer(handed: Handed, said: Said) -> tuple[skel.Answer, str]:
    """Run the call; returns what goes to standard output and to standard error."""

    def open_handed(path: str) -> Netns:
        if handed.pod is None:
            raise FileNotFoundError(errno.ENOENT, "no such network namespace", path)
        netns, handed.pod = handed.pod, None
        return check_netns(netns)

    said.begin()
    answer = skel.answer(registry.load(handed.plugin), handed.environ, handed.stdin, opener=open_handed)
    return answer, said.end()


def _has_our_mounts(pid: int) -> bool:
    """Whether a path means to that process what it means here: of reservations, of a delegate, of resolv.conf."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino
    except OSError:
        return False


def _error_code(stdout: bytes) -> int:
    try:
        return int(json.loads(stdout)["code"])
    except (ValueError, KeyError, TypeError):
        return int(Code.INTERNAL)


def _line(handed: Handed, verb: str, code: int, duration_s: float, said: str) -> str:
    environ = handed.environ
    body: dict[str, object] = {
        "event": "call",
        "plugin": handed.plugin,
        "verb": verb,
        "containerID": environ.get("CNI_CONTAINERID", ""),
        "ifname": environ.get("CNI_IFNAME", ""),
        "code": code,
        "duration_ms": round(duration_s * 1000, 2),
    }
    if trace := environ.get("TRACEPARENT"):
        body["traceparent"] = trace
    if said:
        body["stderr"] = said[:_SAID_MAX]
    return json.dumps(body)


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += [number for (number,) in struct.iter_unpack("=i", data[: len(data) // 4 * 4])]
    return found


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of the other end."""
    pid, uid, _ = struct.unpack("=iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _is_allowed(connection: socket.socket) -> bool:
    return _peer(connection)[1] in (0, os.geteuid())


async def _readable(connection: socket.socket, within_s: float) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _resolve, ready)
    try:
        await asyncio.wait_for(ready, within_s)
    finally:
        loop.remove_reader(connection)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _send(connection: socket.socket, message: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(connection, message), _GO_WITHIN_S)
