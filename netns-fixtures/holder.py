"""The process that keeps one test host alive: it unshares, makes mounts private, serves its parent until that ends.

Run as a program of its own (`python -I -S holder.py NAME [DIRECTORY...]`), not as a fork of pytest: a fork would keep
every open socket of the tests alive, and pytest's memory with them. Standard input is a SOCK_SEQPACKET socket:

    holder -> parent   `ready`, then one answer for each request: `ok` or `error TEXT`
    parent -> holder   `pod NAME` (make /run/netns/NAME), `unpod NAME` (unmount and unlink it)

It ends when the socket closes or the parent dies, whichever comes first, and takes every process of the host with it.
It loads the standard library alone, to be quick; namespaces.py starts it, and takes two names from here.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys

# <linux/sched.h>, <linux/mount.h>, <linux/if.h>: os.unshare and os.setns exist only from Python 3.12.
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

NETNS_DIRECTORY = "/run/netns"
RESOLV_CONF = "/etc/resolv.conf"
# A process may fork while it is being killed; a host that still has processes after so many rounds is a fork bomb.
SWEEP_ROUNDS = 20

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, doing: str) -> None:
    """Raise OSError with errno's text when a libc call failed; `doing` says what was tried."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, *, flags: int = 0, data: str = "") -> None:
    """mount(2), with the reason in the error."""
    result = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(result, f"mount {kind or source} on {target}")


def mount_tmpfs(target: str) -> None:
    """A fresh, empty tmpfs on `target`."""
    mount("tmpfs", target, "tmpfs", flags=MS_NOSUID | MS_NODEV, data="mode=755")


def ensure_private_directory(path: str) -> None:
    """Give this host its own, empty `path`, made first where the machine lacks it."""
    try:
        os.makedirs(path, exist_ok=True)
    except PermissionError:
        # Root of a user namespace may not write the machine's /var/lib: lay a writable layer over the parent instead.
        # Not done for real root, since podman's storage below /var/lib cannot be an overlay on an overlay.
        parent = os.path.dirname(path)
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        layer = f"/run/.layers{parent}"
        os.makedirs(f"{layer}/upper")
        os.makedirs(f"{layer}/work")
        mount("overlay", parent, "overlay", data=f"lowerdir={parent},upperdir={layer}/upper,workdir={layer}/work")
        os.makedirs(path, exist_ok=True)
    mount_tmpfs(path)


def set_up_mounts(directories: list[str]) -> None:
    """Make all mounts private, then /run and `directories` empty ones of this host."""
    mount("none", "/", "", flags=MS_REC | MS_PRIVATE)
    resolver = os.path.realpath(RESOLV_CONF)
    resolver_text = None
    if resolver.startswith("/run/") and os.path.isfile(resolver):
        with open(resolver, "rb") as file:
            resolver_text = file.read()
    mount_tmpfs("/run")
    for path in (NETNS_DIRECTORY, "/run/lock"):
        os.mkdir(path)
    if resolver_text is not None:  # /etc/resolv.conf is a link into /run where systemd-resolved runs
        os.makedirs(os.path.dirname(resolver), exist_ok=True)
        with open(resolver, "wb") as file:
            file.write(resolver_text)
    for path in directories:
        ensure_private_directory(path)


def set_loopback_up() -> None:
    """Set `lo` up by ioctl: the only link that needs it before anyone loads a netlink library."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def add_pod(name: str) -> int:
    """Make a network namespace bound to /run/netns/NAME, as runtimes do; its `lo` stays down. Returns its inode."""
    path = f"{NETNS_DIRECTORY}/{name}"
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        try:
            check(libc.unshare(CLONE_NEWNET), "unshare the network")
            try:
                inode = os.stat("/proc/self/ns/net").st_ino
                mount("/proc/self/ns/net", path, "", flags=MS_BIND)
            finally:
                check(libc.setns(home, CLONE_NEWNET), "return to the host's network")
        except OSError:
            os.unlink(path)
            raise
    finally:
        os.close(home)
    return inode


def remove_pod(name: str) -> int:
    """Unmount and unlink /run/netns/NAME: the namespace goes once nothing else holds it. Returns its inode."""
    path = f"{NETNS_DIRECTORY}/{name}"
    inode = os.stat(path).st_ino
    check(libc.umount2(path.encode(), MNT_DETACH), f"unmount {path}")
    os.unlink(path)
    return inode


def is_of_this_host(pid: int, *, mounts: int, networks: set[int], machine_mounts: int) -> bool:
    """Whether a process belongs to this host: entered by nsenter, or a container of one of its pods."""
    try:
        process_mounts = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        process_network = os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return False
    # A process that kept the machine's mounts only visits (a test inside `inside()`, netloom at work): never kill it.
    return process_mounts == mounts or (process_network in networks and process_mounts != machine_mounts)


def kill_processes(networks: set[int], machine_mounts: int) -> None:
    """Kill, by pid, all processes of this host, daemons that left their parents included."""
    mounts = os.stat("/proc/self/ns/mnt").st_ino
    networks = networks | {os.stat("/proc/self/ns/net").st_ino}
    for _ in range(SWEEP_ROUNDS):
        found = False
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            pid = int(entry)
            try:
                handle = os.pidfd_open(pid)  # held while we look, so that the pid cannot become another process's
            except OSError:
                continue
            try:
                if is_of_this_host(pid, mounts=mounts, networks=networks, machine_mounts=machine_mounts):
                    found = True
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(handle)
        if not found:
            return


def serve(channel: socket.socket, parent: int, networks: set[int]) -> None:
    """Answer requests until the channel closes or the parent (a pidfd) is gone."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        if any(descriptor == parent for descriptor, _ in poll.poll()):
            return
        request = channel.recv(4096).decode()
        if not request:
            return
        verb, _, name = request.partition(" ")
        try:
            if verb == "pod":
                networks.add(add_pod(name))
            elif verb == "unpod":
                # Forgotten at once: the kernel gives the inode's number to the next namespace, of whomever.
                networks.discard(remove_pod(name))
            else:
                raise ValueError(f"unknown request {request!r}")
        except (OSError, ValueError) as error:
            channel.send(f"error {error}".encode())
        else:
            channel.send(b"ok")


def main(arguments: list[str]) -> int:
    """Set up the host, say `ready`, serve, and leave nothing behind."""
    channel = socket.socket(fileno=os.dup(0))
    parent = os.pidfd_open(os.getppid())
    machine_mounts = os.stat("/proc/self/ns/mnt").st_ino
    try:
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare mounts and network (root needed)")
        set_up_mounts(arguments[1:])
        set_loopback_up()
    except OSError as error:
        channel.send(f"error {error}".encode())
        return 1
    networks: set[int] = set()
    try:
        channel.send(b"ready")
        serve(channel, parent, networks)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent died between a request and its answer
    finally:
        kill_processes(networks, machine_mounts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
