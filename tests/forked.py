"""One verb of ours in a forked child inside a test host: the handlers that the executables run, without their start.

For tests that look into the middle of a call: to count its messages to the kernel, or to kill it at the n-th step. The
child has the host's network and mounts, as an executed plugin has.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from cni_plugins import registry, skel
from cni_plugins.netlink import NetlinkSocket
from namespaces import Namespace

T = TypeVar("T")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
# The C functions by which a plugin changes anything: messages to the kernel, names in a directory.
_STEPS = {"send", "link", "unlink", "rename", "mkdir", "utime", "pwrite", "ftruncate", "write"}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Done:
    """How a child ended: what it answered, or the signal that killed it; how many steps it made, how many netlink
    messages it sent (several go in one step), how many datagrams it read (a listing comes in many)."""

    answer: skel.Answer | None
    signal: int
    steps: int
    messages: int = 0
    datagrams: int = 0


def in_child(host: Namespace, function: Callable[[], T]) -> T | None:
    """What `function` returns in a child inside the host; None where the child was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _enter(host)
            with open(writer, "wb") as file:
                pickle.dump(function(), file)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child must not return into the parent's tests
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed: see standard error"
    value: T = pickle.loads(data)
    return value


def call(host: Namespace, plugin: str, environ: Mapping[str, str], stdin: bytes, *, kill_at: int = 0) -> Done:
    """Run one verb; with `kill_at`, SIGKILL arrives before that step (from 1 on)."""

    handler, _ = registry.load(plugin), registry.load("host-local")  # imported once, by the parent

    def run() -> Done:
        steps = messages = datagrams = 0

        def watch(frame: FrameType, event: str, function: Any) -> None:
            nonlocal steps, messages, datagrams
            if event == "return" and frame.f_code is NetlinkSocket.close.__code__:
                messages += frame.f_locals["self"].sent
            if event == "c_call" and function.__name__ in ("recv", "recv_into"):
                datagrams += 1
            if event == "c_call" and function.__name__ in _STEPS and _is_outside(function):
                steps += 1
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)
        try:
            answer = skel.answer(handler, environ, stdin)
        finally:
            sys.setprofile(None)
        return Done(answer, 0, steps, messages, datagrams)

    return in_child(host, run) or Done(None, signal.SIGKILL, kill_at)


def _is_outside(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    return getattr(owner, "__name__", "") == "posix" or type(owner).__name__ == "socket"


def _enter(host: Namespace) -> None:
    for name, kind in (("mnt", _CLONE_NEWNS), ("net", _CLONE_NEWNET)):
        descriptor = os.open(f"/proc/{host.pid}/ns/{name}", os.O_RDONLY)
        if _libc.setns(descriptor, kind) != 0:
            raise OSError(ctypes.get_errno(), f"setns {name}")
        os.close(descriptor)
