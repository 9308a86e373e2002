"""How a process gets into network namespaces: the rights it needs, and the moving of one thread there and back.

Knows no hosts or pods; namespaces.py has those.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NoReturn

from holder import CLONE_NEWNET, set_loopback_up

# Set for a process that require_root_or_userns() starts, so that it never starts itself twice.
USERNS_MARK = "NETNS_FIXTURES_IN_USERNS"

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(Exception):
    """A host or pod could not be made, entered or removed; the text says which one and why."""


def find_program(name: str) -> str:
    """Full path of a tool that we need ourselves, so that the PATH given to a command does not matter to us."""
    path = shutil.which(name) or shutil.which(name, path=os.defpath)
    if path is None:
        raise NamespaceError(f"the program {name} (util-linux, coreutils) is missing")
    return path


def join_network(descriptor: int) -> None:
    """setns(2), as os.setns from Python 3.12: move the calling thread into a network namespace."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def visit_network(path: str | os.PathLike[str]) -> Iterator[None]:
    """The calling thread joins the network namespace at `path`, and returns to its own at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, home)
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, target)
        join_network(target)
        stack.callback(join_network, home)
        yield


def has_root() -> bool:
    """Whether this process may make namespaces and mounts, and come home from a network that it visited.

    Tried rather than read from our capabilities: root of a user namespace that kept the machine's network may not.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        join_network(home)
    except PermissionError:
        return False
    finally:
        os.close(home)
    return True


def require_root_or_userns() -> bool:
    """Return when we may make namespaces; else start this very command again as root of a new user namespace.

    True means that we are that second start, and that others must enter the user namespace to enter our hosts.
    Raises NamespaceError, with what to do, where the machine allows neither.
    """
    if not has_root():
        restart_in_userns()
    is_second_start = os.environ.get(USERNS_MARK) == "started"
    if is_second_start:
        os.environ[USERNS_MARK] = "ready"  # for the processes that we start
        set_loopback_up()
    return is_second_start


def restart_in_userns() -> NoReturn:
    """Become this very command again in a user namespace, or raise NamespaceError.

    It gets a network of its own too, with `lo` alone: setns(2) back home needs power over home.
    """
    advice = "network namespaces need root, or unprivileged user namespaces (sysctl user.max_user_namespaces > 0, and"
    advice += " kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
    if USERNS_MARK in os.environ:
        raise NamespaceError(advice)
    unshare = find_program("unshare")
    enter = [unshare, "--user", "--map-root-user", "--mount", "--net"]
    # Tried first with a command that does nothing: after exec there is no way back to a message of ours.
    trial = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        raise NamespaceError(f"{advice}; tried: {trial.stderr.strip()}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[USERNS_MARK] = "started"
    os.execv(unshare, [*enter, "--", sys.executable, *sys.orig_argv[1:]])
