"""Kernel settings: /proc/sys, in the host's or the pod's network namespace.

/proc/sys/net shows the namespace of the thread that opens a file, so reading and writing happen inside it.
"""

from __future__ import annotations

import os

from .errors import CniError, Code, invalid_config
from .netns import Netns, inside

_ROOT = "/proc/sys"
_LONGEST = 1 << 16  # no setting is longer


def path_of(key: str) -> str:
    """The file of `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.1/forwarding`. As with sysctl(8), slashes separate where
    there are any (then dots belong to names), otherwise dots do. Raises CniError 7 for keys that lead elsewhere."""
    parts = key.split("/") if "/" in key else key.split(".")
    if not all(parts) or any(part in (".", "..") or "\0" in part for part in parts):
        raise invalid_config(f"{key!r} is no sysctl", "expected a name such as net.ipv4.ip_forward")
    return "/".join((_ROOT, *parts))


def read(key: str, netns: Netns | None = None) -> str | None:
    """The setting's value without white space around it; None where the kernel has no such setting."""
    path = path_of(key)
    with inside(netns):
        return _read(path, key)


def _read(path: str, key: str) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _LONGEST).decode(errors="replace").strip()
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed("reading", key, error) from error


def write(key: str, value: str, netns: Netns | None = None) -> None:
    """Set a setting, unless it has that value already: a container's /proc/sys may be read-only. Raises CniError."""
    path = path_of(key)
    with inside(netns):
        if _read(path, key) == value:
            return
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _failed(f"setting {key}={value}", "", error) from error


def _failed(doing: str, key: str, error: OSError) -> CniError:
    where = "in the pod's namespace or the host's"
    return CniError(Code.IO_FAILURE, f"sysctl: {doing} {key}".rstrip() + f": {error.strerror}", where)
