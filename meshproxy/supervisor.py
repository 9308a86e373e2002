"""Several workers of one proxy: a parent that carries no traffic, forks them, and starts again what crashes.

The parent holds all listening sockets, so that nothing in an accept queue is lost with a worker. It reads the
configuration first: a bad file reaches no worker. Where only routes and clusters change the workers read it again by
themselves; where listeners change, new workers take the places of the old ones, which drain. The parent has no event
loop: it waits for signals, for its workers' word that they serve, and for a process that wants to take over.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from meshproxy import handover
from meshproxy.config import Config
from meshproxy.config_file import ConfigFault, load
from meshproxy.file_watch import FileWatch
from meshproxy.listening import CannotListen, ListeningSockets, places
from meshproxy.log import LOGGER, fields

_TICK_S = 1.0
# A worker that crashes at once is started again after that, doubled each time up to the second figure.
_RESTART_S = 0.5
_RESTART_MAX_S = 10.0
_HEALTHY_S = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


@dataclass(slots=True)
class Worker:
    """One place among the workers, and who holds it."""

    index: int
    local: socket.socket  # where its siblings ask it; outlives the process
    pid: int = 0
    ready: int = -1  # the pipe by which it says that it serves
    is_ready: bool = False
    replaces: int = 0  # the process that drains as soon as this one serves
    started_at: float = 0
    crashes: int = 0
    restart_at: float | None = None


class RunWorker(Protocol):
    """Runs one worker, in its own process, to its end; returns the exit code."""

    def __call__(
        self,
        config: Config,
        sockets: ListeningSockets,
        workers: list[Worker],
        /,
        *,
        index: int,
        ready: int,
        lifeline: int,
    ) -> int:
        """`ready`: where to write a byte when it serves. `lifeline`: at its end of file the parent is gone."""


@dataclass(slots=True)
class Supervisor:
    """The parent's state. `run` returns the exit code."""

    path: str
    watch: FileWatch
    config: Config
    sockets: ListeningSockets
    run_worker: RunWorker
    offered: socket.socket | None
    confirm: Callable[[], None] | None  # tells the process before us that we serve
    workers: list[Worker] = field(default_factory=list)
    leaving: set[int] = field(default_factory=set)  # replaced, and draining
    is_stopping: bool = False
    lifeline: tuple[int, int] = field(default_factory=lambda: os.pipe2(os.O_CLOEXEC))

    def run(self) -> int:
        wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        self.workers = [Worker(index, _local_socket()) for index in range(self.config.workers)]
        for worker in self.workers:
            self._start(worker)
        with selectors.DefaultSelector() as selector:
            selector.register(wake_reader, selectors.EVENT_READ)
            if self.offered is not None:
                selector.register(self.offered, selectors.EVENT_READ)
            while not self.is_stopping or self._living():
                for key, _ in selector.select(0.05 if self._waits_for_ready() else _TICK_S):
                    if key.fd == wake_reader:
                        for byte in os.read(wake_reader, 1024):
                            self._on_signal(signal.Signals(byte))
                    elif self.offered is not None and not self.is_stopping:
                        self._hand_over()
                        if self.is_stopping:
                            selector.unregister(self.offered)
                self._reap()
                self._hear()
                if not self.is_stopping:
                    if self.watch.has_changed():
                        self._reload()
                    self._restart_due()
        return 0

    def _on_signal(self, number: signal.Signals) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            # The second time the workers end at once.
            self._stop()
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1:
            self._tell(signal.SIGUSR1)

    def _stop(self) -> None:
        self.is_stopping = True
        self.sockets.close()
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for pid in [*(worker.pid for worker in self.workers if worker.pid), *self.leaving]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _living(self) -> bool:
        return bool(self.leaving) or any(worker.pid for worker in self.workers)

    def _waits_for_ready(self) -> bool:
        return any(worker.ready >= 0 for worker in self.workers)

    def _start(self, worker: Worker) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pid = os.fork()
        if pid == 0:
            code = 70  # EX_SOFTWARE
            try:
                signal.set_wakeup_fd(-1)
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                os.close(reader)
                os.close(self.lifeline[1])
                code = self.run_worker(
                    self.config,
                    self.sockets,
                    self.workers,
                    index=worker.index,
                    ready=writer,
                    lifeline=self.lifeline[0],
                )
            finally:
                os._exit(code)
        os.close(writer)
        worker.pid, worker.ready, worker.is_ready = pid, reader, False
        worker.started_at, worker.restart_at = time.monotonic(), None
        LOGGER.info("worker started %s", fields(index=worker.index, pid=pid))

    def _hear(self) -> None:
        """Note the workers that serve; when all do, tell the process before us."""
        for worker in self.workers:
            if worker.ready >= 0:
                try:
                    said = os.read(worker.ready, 1)
                except BlockingIOError:
                    continue
                os.close(worker.ready)
                worker.ready, worker.is_ready = -1, bool(said)
                if said and worker.replaces:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.replaces, signal.SIGTERM)
                    worker.replaces = 0
        if self.confirm is not None and all(worker.is_ready for worker in self.workers):
            self.confirm()
            self.confirm = None

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.leaving.discard(pid)
            for worker in self.workers:
                if worker.pid == pid:
                    self._on_end(worker, status)

    def _on_end(self, worker: Worker, status: int) -> None:
        now = time.monotonic()
        pid, worker.pid, worker.is_ready = worker.pid, 0, False
        if worker.ready >= 0:
            os.close(worker.ready)
            worker.ready = -1
        if self.is_stopping:
            return
        worker.crashes = 0 if now - worker.started_at > _HEALTHY_S else worker.crashes + 1
        wait_s = min(_RESTART_S * 2 ** (worker.crashes - 1), _RESTART_MAX_S) if worker.crashes > 1 else 0.0
        worker.restart_at = now + wait_s
        how = fields(index=worker.index, pid=pid, code=os.waitstatus_to_exitcode(status), again_in_s=wait_s)
        LOGGER.error("worker ended %s", how)

    def _restart_due(self) -> None:
        for worker in self.workers:
            if worker.restart_at is not None and worker.restart_at <= time.monotonic():
                self._start(worker)

    def _reload(self) -> None:
        try:
            config = load(self.path)
            wanted = places(config)
            if wanted.keys() - self.sockets.held.keys():
                self.sockets.ensure(wanted)
        except ConfigFault:
            self._tell(signal.SIGHUP)  # they refuse it, too, and show that they did
            return
        except CannotListen as error:
            LOGGER.error("reload refused, the configuration before runs on %s", fields(reason=error))
            return
        if config.workers != self.config.workers:
            LOGGER.warning("the number of workers changes with the next restart")
        before, self.config = places(self.config), config
        if wanted == before:
            self._tell(signal.SIGHUP)
            return
        for worker in self.workers:
            if worker.ready >= 0:  # the one before has not come up yet: it has nothing to lose
                os.close(worker.ready)
            if worker.pid:
                self.leaving.add(worker.pid)
            worker.replaces = worker.pid
            self._start(worker)
        self.sockets.release(wanted)

    def _hand_over(self) -> None:
        assert self.offered is not None
        if handover.serve_one(self.offered, lambda: self.sockets.held):
            LOGGER.info("handed over")
            self._stop()


def _local_socket() -> socket.socket:
    """A listening unix socket under a name that the kernel chooses."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.bind("")
    sock.listen(64)
    return sock
