"""Endpoints from a file that is watched. A bad file keeps the old snapshot, and the log says what is wrong with it.

Watched by asking for its state each second, one stat(2) of some microseconds. Refused: inotify, which loses what is
behind a renamed directory or a changed symbolic link (a mounted ConfigMap is both) unless each part of the path is
watched, and does not exist on network file systems.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator

from meshproxy.config import FileDiscovery
from meshproxy.discovery.endpoint_file import EndpointFileError, parse_steps
from meshproxy.discovery.source import Snapshot

POLL_S = 1.0

log = logging.getLogger(__name__)


class FileSource:
    """Yields the file's endpoints when they change. Write the file by renaming another onto it: half of one is bad."""

    def __init__(self, config: FileDiscovery, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self.path = config.path
        self.error: str | None = None  # what is wrong with the file as it is now
        self._sleep = sleep

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Iterate for ever."""
        seen: tuple[int, ...] | None = ()
        last: Snapshot | None = None
        while True:
            state = self._state()
            if state != seen:
                seen = state
                snapshot = await self._read()
                if snapshot is not None and snapshot != last:
                    last = snapshot
                    yield snapshot
            await self._sleep(POLL_S)

    def _state(self) -> tuple[int, ...] | None:
        """Return what changes when the file does; None where there is none."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    async def _read(self) -> Snapshot | None:
        try:
            with open(self.path, encoding="utf-8") as file:
                steps = parse_steps(file.read(), path=self.path)
            snapshot = await _in_turns(steps)
        except (OSError, UnicodeDecodeError, EndpointFileError) as error:
            self.error = str(error)
            log.error("endpoints not taken over, the old ones stay: %s", error)
            return None
        self.error = None
        return snapshot


async def _in_turns(steps: Generator[None, None, Snapshot]) -> Snapshot:
    """Do one step in each turn of the loop."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            snapshot: Snapshot = stop.value
            return snapshot
        await asyncio.sleep(0)
