"""One call of a plugin about one attachment at a time, be it in an agent or in a process of its own.

An agent that ends goes on with the ADD of a launcher that was killed; the DEL that follows finds no agent, runs in its
own process, and must not overtake that ADD. The lock is one byte of one file, at the attachment's place: the kernel
gives it back whatever becomes of the holder, and nothing is left to be removed. Where there has never been an agent
there is no folder for it, and no need.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_PATH = "/run/netloom/calls.lock"
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl.h: type, whence, start, length, pid


@contextmanager
def alone(plugin: str, container_id: str, ifname: str, *, path: str = _PATH) -> Iterator[None]:
    """Wait until no other call of this plugin is about this attachment, and keep others out. Two attachments in 2^62
    have the same place; they wait for each other. A delegate has a place of its own, so that its caller may wait."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # no folder, or not ours: no agent of ours could be there
        yield
        return
    try:
        words = "\0".join((plugin, container_id, ifname)).encode(errors="surrogateescape")
        place = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 2
        # Of the open file, not of the process: threads of an agent keep each other out as well.
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
        yield
    finally:
        os.close(descriptor)
