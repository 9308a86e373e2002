"""Network namespaces as file descriptors: open, tell apart, enter.

A `Netns` is opened once at the border (from CNI_NETNS, or from a descriptor that was passed to us) and used by
descriptor from then on, so that a path that changes its meaning midway cannot lead us into another namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from .errors import CniError, Code

CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h; fails with ENOTTY on anything but a namespace


@dataclass(frozen=True, slots=True)
class Netns:
    """An open network namespace. `path` is what the runtime called it."""

    fd: int
    path: str

    def close(self) -> None:
        os.close(self.fd)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for equal namespaces."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino


def open_netns(path: str) -> Netns:
    """Open the namespace at `path`. Raises FileNotFoundError where there is nothing, CniError 8 where it is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, "no such network namespace", path) from error
    except (OSError, ValueError) as error:
        raise CniError(Code.INVALID_NETNS, f"could not open the network namespace {path!r}", str(error)) from error
    return check_netns(Netns(fd, path))


def check_netns(netns: Netns) -> Netns:
    """`netns`, if its descriptor is of a network namespace; else close it and raise CniError 8."""
    fd, path = netns.fd, netns.path
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET:
            return netns
        reason = "it is a namespace of another kind"
    except OSError:
        reason = "it is no namespace (was it unmounted?)"
    netns.close()
    raise CniError(Code.INVALID_NETNS, f"CNI_NETNS {path!r} is not a network namespace", reason)


def own_netns() -> Netns:
    """The namespace of the calling thread."""
    return open_netns("/proc/thread-self/ns/net")


@contextmanager
def inside(netns: Netns | None) -> Iterator[None]:
    """The calling thread works in `netns`, then returns; None means 'stay here'."""
    if netns is None:
        yield
        return
    home = own_netns()
    try:
        _setns(netns)
        try:
            yield
        finally:
            _setns(home)
    finally:
        home.close()


def _setns(netns: Netns) -> None:
    number = _libc_setns()(netns.fd)
    if number:
        raise OSError(number, f"could not enter the network namespace: {os.strerror(number)}", netns.path)


@cache
def _libc_setns() -> Callable[[int], int]:
    """setns(2) for network namespaces; it returns the errno, or 0."""
    import ctypes  # Python 3.11 has no os.setns; most calls that import this module never enter a namespace

    setns = ctypes.CDLL(None, use_errno=True).setns

    def call(descriptor: int) -> int:
        return 0 if setns(descriptor, CLONE_NEWNET) == 0 else ctypes.get_errno()

    return call
