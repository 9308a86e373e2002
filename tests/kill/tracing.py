"""Stopping a process at each system call that could change something outside of it, and killing it there.

`Tracer` runs a function in a forked child under ptrace(2). A seccomp filter stops the child (threads and programs that
it becomes included) at the calls of `CALLS` alone, which costs a tenth of stopping at all. What only reads, maps or
closes is no border: killed before or after it, a process leaves the same. For the same reason the state after a call is
the one before the next. A SIGKILL comes either before a call (it is not carried out then) or within it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NoReturn

# name: number on x86_64, on aarch64 (0: it has none). asm/unistd_64.h, asm-generic/unistd.h.
CALLS = {
    "bind": (49, 200),
    "chmod": (90, 0),
    "chown": (92, 0),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "creat": (85, 0),
    "execve": (59, 221),
    "fallocate": (285, 47),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchown": (93, 55),
    "flock": (73, 32),
    "fork": (57, 0),
    "ftruncate": (77, 46),
    "ioctl": (16, 29),
    "kill": (62, 129),
    "link": (86, 0),
    "linkat": (265, 37),
    "listen": (50, 201),
    "mkdir": (83, 0),
    "mkdirat": (258, 34),
    "mknod": (133, 0),
    "mknodat": (259, 33),
    "mount": (165, 40),
    "open": (2, 0),
    "openat": (257, 56),
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "rename": (82, 0),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "rmdir": (84, 0),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setns": (308, 268),
    "shutdown": (48, 210),
    "symlink": (88, 0),
    "symlinkat": (266, 36),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unlink": (87, 0),
    "unlinkat": (263, 35),
    "unshare": (272, 97),
    "utimensat": (280, 88),
    "vfork": (58, 0),
    "write": (1, 64),
    "writev": (20, 66),
}
# What the two ends of a connection exchange by: borders of a launcher, which writes nothing.
TALKING = {"accept4": (288, 242), "poll": (7, 0), "ppoll": (271, 73), "recvfrom": (45, 207), "recvmsg": (47, 212)}
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
# Questions: how a terminal is set, which kind a namespace is (linux/nsfs.h).
_ASKING_IOCTLS = {0x5401, 0xB703}
# Opening is a border where it may make or empty a file: the flags' place, and O_CREAT | O_TRUNC.
_OPEN_FLAGS_ARGUMENT = {"open": 1, "openat": 2}
_OPEN_CHANGES = os.O_CREAT | os.O_TRUNC

# linux/ptrace.h
_CONT, _SEIZE, _SYSCALL_INFO = 7, 0x4206, 0x420E
_TRACE_FORK, _TRACE_VFORK, _TRACE_CLONE, _TRACE_EXEC, _TRACE_SECCOMP, _EXIT_KILL = (
    1 << bit for bit in (1, 2, 3, 4, 7, 20)
)
_OPTIONS = _TRACE_FORK | _TRACE_VFORK | _TRACE_CLONE | _TRACE_EXEC | _TRACE_SECCOMP | _EXIT_KILL
_EVENT_SECCOMP = 7
_INFO = struct.Struct("=B3xIQQQ6Q")  # ptrace_syscall_info of a seccomp stop: op, arch, ip, sp, number, arguments
_WALL = 0x40000000

# linux/filter.h, linux/seccomp.h
_LOAD, _JUMP_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000
_PR_SET_SECCOMP, _FILTER_MODE = 22, 2
_FIRST_ARGUMENT = 16  # seccomp_data: number, arch, instruction pointer, arguments of 8 bytes

_NETLINK_HEADER = struct.Struct("=IHHII")
_REQUEST = 0x1
_NFT, _CONNTRACK = 10, 1
_BATCH_BEGIN = 0x10

When = Literal["before", "within"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def is_supported() -> bool:
    """Whether we know this machine's system calls."""
    return _COLUMN is not None


@dataclass(frozen=True, slots=True)
class Border:
    """The `number`-th system call that counts, from 1; and whether to kill before it or within it."""

    number: int
    when: When = "before"

    def __str__(self) -> str:
        return f"{self.when} call {self.number}"


NEVER = Border(0)


@dataclass(slots=True)
class Run:
    """How a traced run went. `calls` are the names of those that counted; the last one is where it was killed."""

    killed: bool = False
    status: int = 0
    calls: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"{self.calls[-1]}, after {' '.join(self.calls[-6:-1])}" if self.calls else "the start"


def _filter(names: dict[int, str]) -> bytes:
    """A classic BPF program: stop at these calls, allow all others."""

    def step(code: int, value: int, *, true: int = 0, false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, true, false, value)

    program = step(_LOAD, 0)
    for number, name in names.items():
        argument = _OPEN_FLAGS_ARGUMENT.get(name)
        if argument is None:
            program += step(_JUMP_EQUAL, number, false=1) + step(_RETURN, _RET_TRACE)
            continue
        program += step(_JUMP_EQUAL, number, false=4)
        program += step(_LOAD, _FIRST_ARGUMENT + 8 * argument)  # the low half, on little-endian machines
        program += step(_JUMP_BITS, _OPEN_CHANGES, false=1) + step(_RETURN, _RET_TRACE) + step(_RETURN, _RET_ALLOW)
    return program + step(_RETURN, _RET_ALLOW)


class Tracer:
    """Runs functions in children and kills these at borders. Use it from one thread; it has no state between runs."""

    def __init__(self, *, talking: bool = False) -> None:
        assert _COLUMN is not None, "check is_supported() first"
        calls = {**CALLS, **TALKING} if talking else CALLS
        self._names = {numbers[_COLUMN]: name for name, numbers in calls.items() if numbers[_COLUMN]}
        self._program = ctypes.create_string_buffer(_filter(self._names))

    def start(self, work: Callable[[], None]) -> int:
        """A child that runs `work` once `follow` follows it; returns its pid. It exits with 0 unless `work` exits."""
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._child(ready, go, work)
        os.close(ready)
        try:
            self._ptrace(_SEIZE, pid, 0, _OPTIONS)
            os.write(go, b"g")
        finally:
            os.close(go)
        return pid

    def _child(self, ready: int, go: int, work: Callable[[], None]) -> NoReturn:
        code = 125
        try:
            os.close(go)
            if os.read(ready, 1):
                os.close(ready)
                self._install_filter()
                work()
                code = 0
        finally:
            os._exit(code)

    def _install_filter(self) -> None:
        length = (len(self._program) - 1) // 8
        program = struct.pack("=HxxxxxxQ", length, ctypes.addressof(self._program))
        if _libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.c_char_p(program), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")

    def follow(
        self, pid: int, kill_at: Border, *, until: Callable[[int, int], bool] = lambda pid, status: False
    ) -> Run:
        """Follow a child to its end. `until` is told the end of each other child, and says whether ours is to end now,
        too, by SIGKILL."""
        run = Run()
        while True:
            stopped, status = os.waitpid(-1, _WALL)
            if not os.WIFSTOPPED(status):
                if stopped == pid:
                    run.status = os.waitstatus_to_exitcode(status)
                    return run
                if until(stopped, status):
                    os.kill(pid, signal.SIGKILL)
                continue
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == _EVENT_SECCOMP and not run.killed:
                self._at_call(stopped, pid, kill_at, run)
            else:
                self._go_on(stopped, 0 if event or number == signal.SIGTRAP else number)

    def _at_call(self, stopped: int, pid: int, kill_at: Border, run: Run) -> None:
        name = self._name(stopped)
        if name:
            run.calls.append(name)
        if not name or len(run.calls) != kill_at.number:
            self._go_on(stopped)
            return
        run.killed = True
        if kill_at.when == "within":
            self._go_on(stopped)
        os.kill(pid, signal.SIGKILL)

    def _go_on(self, stopped: int, number: int = 0) -> None:
        with suppress(ProcessLookupError):  # it was killed in the meantime; its end is reported next
            self._ptrace(_CONT, stopped, 0, number)

    def _name(self, stopped: int) -> str:
        """What the call is; empty for one that does not count."""
        buffer = ctypes.create_string_buffer(128)
        try:
            self._ptrace(_SYSCALL_INFO, stopped, len(buffer), ctypes.addressof(buffer))
        except ProcessLookupError:
            return ""
        *_, number, _, second, third, _, _, _ = _INFO.unpack_from(buffer)
        name = self._names.get(number, "")
        if name == "ioctl" and second in _ASKING_IOCTLS:
            return ""
        if name == "sendto":
            with open(f"/proc/{stopped}/mem", "rb", buffering=0) as memory:
                if asks_only(os.pread(memory.fileno(), third, second)):
                    return ""
        return name

    def _ptrace(self, request: int, pid: int, address: int, data: int) -> None:
        if _libc.ptrace(request, pid, address, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace {request:#x} of {pid}: {os.strerror(number)}")


def asks_only(data: bytes) -> bool:
    """Whether these are netlink messages that change nothing."""
    kinds = list(_kinds(data))
    return bool(kinds) and all(map(_is_question, kinds))


def _kinds(data: bytes) -> Iterator[int]:
    offset = 0
    while offset + _NETLINK_HEADER.size <= len(data):
        length, kind, flags, _, _ = _NETLINK_HEADER.unpack_from(data, offset)
        if not _NETLINK_HEADER.size <= length <= len(data) - offset or not flags & _REQUEST:
            yield _BATCH_BEGIN  # no netlink: it counts
            return
        yield kind
        offset += (length + 3) & ~3


def _is_question(kind: int) -> bool:
    family, which = divmod(kind, 256)
    if family == _NFT:
        return True  # outside of a batch, nftables only answers (net/netfilter/nf_tables_api.c)
    if family == _CONNTRACK:
        return which == 1
    return family == 0 and kind > _BATCH_BEGIN and kind % 4 == 2  # rtnetlink: NEW, DEL, GET, SET
