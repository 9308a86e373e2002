"""Kernel settings: /proc/sys, in the host's or the pod's network namespace.

/proc/sys/net shows the namespace of the thread that opens a file, so reading and writing happen inside it.
"""

from __future__ import annotations

from pathlib import Path

from .errors import CniError, Code, invalid_config
from .netns import Netns, inside

_ROOT = Path("/proc/sys")


def path_of(key: str) -> Path:
    """The file of `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.1/forwarding`. As with sysctl(8), slashes separate where
    there are any (then dots belong to names), otherwise dots do. Raises CniError 7 for keys that lead elsewhere."""
    parts = key.split("/") if "/" in key else key.split(".")
    if not all(parts) or any(part in (".", "..") or "\0" in part for part in parts):
        raise invalid_config(f"{key!r} is no sysctl", "expected a name such as net.ipv4.ip_forward")
    return _ROOT.joinpath(*parts)


def read(key: str, netns: Netns | None = None) -> str | None:
    """The setting's value without white space around it; None where the kernel has no such setting."""
    path = path_of(key)
    with inside(netns):
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("reading", key, error) from error


def write(key: str, value: str, netns: Netns | None = None) -> None:
    """Set a setting, unless it has that value already: a container's /proc/sys may be read-only. Raises CniError."""
    if read(key, netns) == value:
        return
    with inside(netns):
        try:
            path_of(key).write_text(value)
        except OSError as error:
            raise _failed(f"setting {key}={value}", "", error) from error


def _failed(doing: str, key: str, error: OSError) -> CniError:
    where = "in the pod's namespace or the host's"
    return CniError(Code.IO_FAILURE, f"sysctl: {doing} {key}".rstrip() + f": {error.strerror}", where)
