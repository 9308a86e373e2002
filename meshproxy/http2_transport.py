"""An HTTP/2 connection on a socket, either side: bytes in, bytes out, and the passing of seconds.

What streams want to send gathers in their connections, and goes out when the bytes that caused it have been read to
their end: one write for each connection, however many requests were in those bytes (at 10 streams a connection, 3 us
less a request than a write for each frame). What clients ask waits a little longer, for the other clients that the same
turn of the loop reads. server_http2.py and upstream_http2.py say what a connection is for.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol, cast

from meshproxy.shell import Shell, Timed
from meshproxy.wire.http2 import Connection
from meshproxy.wire.http2_frames import Code, ConnectionFault
from meshproxy.wire.http2_stream import Stream
from meshproxy.wire.own_code import OwnCode

log = logging.getLogger(__name__)

TICK_S: Final = 1.0  # of a connection: allowances, heads that do not end, idleness
GATHERED_READS: Final = 16  # so many clients at most wait for each other, however many are ready
# What the socket may hold before streams are told to wait. Many streams share it.
WRITE_BUFFER_BYTES: Final = 256 * 1024


class Held(Protocol):
    """A stream that waits for what else is being read."""

    def settle(self) -> None:
        """There is no more."""


class Outbox:
    """The connections that have something to send. One for a process, which has one loop."""

    __slots__ = ("is_due", "is_reading", "reads", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Http2Protocol] = []
        self.is_reading = False  # who reads now will flush
        self.is_due = False  # the loop will call `_flush_due`
        self.reads = 0  # that have put something here since

    def __repr__(self) -> str:
        return f"Outbox({len(self.waiting)} connections)"

    def flush(self) -> None:
        waiting = self.waiting
        if waiting:
            self.waiting = []
            for each in waiting:
                each.flush()

    def flush_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once what else has come by now has been read."""
        self.reads += 1
        if not self.is_due:
            self.is_due = True
            loop.call_soon(self._flush_due)
        elif self.reads >= GATHERED_READS:
            self.reads = 0
            self.flush()

    def _flush_due(self) -> None:
        self.is_due = False
        self.reads = 0
        self.flush()


OUTBOX: Final = Outbox()


class Http2Protocol(OwnCode, asyncio.Protocol):
    """What both sides share. `connection` has the state; subclasses own it."""

    __slots__ = (
        "_amid_head_s",
        "_head_stream",
        "_idle_s",
        "_is_lost",
        "_is_waiting",
        "blocked_limit_s",
        "connection",
        "due_tick",
        "head_limit_s",
        "held",
        "reads",
        "shell",
        "slot",
        "transport",
    )

    # What several clients ask in one turn of the loop goes to their endpoint in one write, and wakes it once: at one
    # stream on each of 8 connections 1.2 writes a request where there were two, and 15 % less CPU.
    is_gathering = False
    connection: Connection
    transport: asyncio.Transport

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.due_tick = 0
        self.slot: set[Timed] | None = None
        self.blocked_limit_s = 300.0
        self.head_limit_s = 15.0
        self._is_waiting = False
        self._is_lost = False
        self.held: list[Held] = []  # heads that wait for what else is being read
        self.reads = 0
        self._amid_head_s = 0.0
        self._head_stream = 0
        self._idle_s = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.connection!r}>"

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self.shell.wheel.put(self, TICK_S)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        outbox = OUTBOX
        outbox.is_reading = True
        connection = self.connection
        try:
            connection.receive(data)
            if self.held:
                self._settle()
        except Exception:
            log.exception("a connection is given up: %r", self)
            connection.fail(ConnectionFault(Code.INTERNAL_ERROR, ""))
        finally:
            outbox.is_reading = False
        if connection.out:
            self.flush()
        if outbox.waiting:
            if self.is_gathering:
                outbox.flush_soon(self.shell.loop)
            else:
                outbox.flush()
        if connection.fault is not None:
            self.transport.close()

    def pause_writing(self) -> None:
        self.connection.set_write_paused(is_paused=True)

    def resume_writing(self) -> None:
        self.connection.set_write_paused(is_paused=False)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        if self.slot is not None:
            self.slot.discard(self)
            self.slot = None
        self.connection.lose(f"connection lost: {exc}" if exc else "connection closed")
        self.on_gone()

    def on_due(self) -> None:
        """A second has passed (shell.Timed)."""
        for stream in self.connection.tick():
            if stream.seconds_blocked > self.blocked_limit_s:
                self.on_stalled(stream)
        self._check_head()
        self._idle_s = self._idle_s + TICK_S if not self.connection.streams else 0.0
        if self.connection.fault is None and not self.transport.is_closing():
            self.on_second(self._idle_s)
        self.touch()
        if self.connection.fault is not None:
            self.flush()
            self.transport.close()
        else:
            self.shell.wheel.put(self, TICK_S)

    # -- called by the streams

    def touch(self) -> None:
        """There is something to send."""
        if not self._is_waiting:
            self._is_waiting = True
            outbox = OUTBOX
            if not outbox.waiting and not outbox.is_reading:
                outbox.flush_soon(self.shell.loop)
            outbox.waiting.append(self)

    def flush(self) -> None:
        """Send what is there."""
        self._is_waiting = False
        connection = self.connection
        out = connection.out
        if out:
            data = b"".join(out)
            out.clear()
            connection.last_data = (0, 0)
            if not self._is_lost:  # it may be, since it was touched
                self.transport.write(data)

    # -- what the two sides do differently

    def on_second(self, idle_s: float) -> None:
        """`idle_s`: for how long there has been no stream."""

    def on_stalled(self, stream: Stream) -> None:
        """The peer has not let us send for `blocked_limit_s`."""

    def on_gone(self) -> None:
        """The connection is lost."""

    def _settle(self) -> None:
        """All that has come in one piece has been read."""
        held = self.held
        self.held = []
        for stream in held:
            stream.settle()

    def _check_head(self) -> None:
        """Slow-loris: a preface or a head has to come to its end in time."""
        connection = self.connection
        if not connection.is_amid_head:
            self._amid_head_s = 0
            return
        # Bytes are no progress, another head is.
        stream = connection.head_stream
        if stream != self._head_stream:
            self._head_stream = stream
            self._amid_head_s = 0
        self._amid_head_s += TICK_S
        if self._amid_head_s > self.head_limit_s:
            connection.fail(ConnectionFault(Code.ENHANCE_YOUR_CALM, "a head takes too long"))
