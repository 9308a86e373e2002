"""`meshproxy run`: one process, or a parent with workers, from a configuration to the end of the last request.

SIGTERM and SIGINT drain, a second one ends at once; SIGHUP reads the configuration again, as does a change of its file;
SIGUSR1 opens the access log again. With --hot-restart the listening sockets come from the process that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import uvloop

from meshproxy import handover, log
from meshproxy.access_log import RequestLog
from meshproxy.config import Config
from meshproxy.config_file import load
from meshproxy.file_watch import FileWatch
from meshproxy.listening import ListeningSockets, places
from meshproxy.log import LOGGER, fields
from meshproxy.metrics import Statistics
from meshproxy.siblings import Siblings
from meshproxy.stack import Stack, Surroundings
from meshproxy.supervisor import Supervisor, Worker

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What one process has to do beside its stack. A worker of several has a `lifeline` and no file to watch."""

    config: Config
    surroundings: Surroundings
    on_ready: Callable[[], None]
    watch: FileWatch | None = None
    offered: socket.socket | None = None
    lifeline: int | None = None


def run(path: str, *, hot_restart: bool = False) -> int:
    """Run to the end; the exit code. Raises ConfigFault, CannotListen and OSError, before anything was begun."""
    watch = FileWatch(path)  # before it is read: a change meanwhile must not be missed
    config = load(path)
    log.begin(config.log_level)
    RequestLog(config.access_log, Statistics()).close()  # raises OSError, while nothing has begun
    name = handover.name_of(path)
    inherited = handover.inherit(name) if hot_restart else None
    if hot_restart and inherited is None:
        LOGGER.warning("nobody to take over from, hence started plainly")
    sockets = ListeningSockets(config.workers, inherited.sockets if inherited else None)
    sockets.ensure(places(config))
    offered = inherited.offer if inherited else handover.offer(name)
    if offered is None:
        LOGGER.warning("another process runs this file: no hot restart of this one")
    confirm = inherited.confirm if inherited else None
    if config.workers > 1:
        return Supervisor(path, watch, config, sockets, partial(_run_worker, path=path), offered, confirm).run()
    surroundings = Surroundings(load=lambda: load(path), sockets=sockets)
    task = _Task(
        config=config, surroundings=surroundings, watch=watch, offered=offered, on_ready=confirm or (lambda: None)
    )
    return _run_loop(task)


def _run_worker(
    config: Config,
    sockets: ListeningSockets,
    workers: list[Worker],
    /,
    *,
    index: int,
    ready: int,
    lifeline: int,
    path: str,
) -> int:
    """One of several workers, in its own process."""

    def on_ready() -> None:
        os.write(ready, b"1")
        os.close(ready)

    surroundings = Surroundings(
        load=lambda: load(path),
        sockets=sockets,
        siblings=Siblings(tuple(one.local.getsockname() for one in workers if one.index != index)),
        local=workers[index].local,
        index=index,
        signal_parent=partial(os.kill, os.getppid()),
    )
    return _run_loop(_Task(config=config, surroundings=surroundings, on_ready=on_ready, lifeline=lifeline))


def _run_loop(task: _Task) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(task))


class _Ended(Exception):
    """The stack is done: what is left of its tasks may be cancelled."""


async def _serve(task: _Task) -> int:
    with contextlib.suppress(_Ended):
        try:
            await _serve_to_end(task)
        except* _Ended as ended:
            raise _Ended from ended
    return 0


async def _serve_to_end(task: _Task) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        stack = Stack(task.config, task.surroundings, tasks=tasks)
        loop.set_exception_handler(stack.on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stack.drain)
        if task.lifeline is not None:
            # Of a worker: Ctrl-C reaches the whole group, and the parent drains us.
            loop.add_signal_handler(signal.SIGINT, lambda: None)
            loop.add_reader(task.lifeline, _on_orphaned, loop, task.lifeline, stack)
        await stack.start()
        loop.add_signal_handler(signal.SIGHUP, lambda: bool(tasks.create_task(stack.reload())))
        loop.add_signal_handler(signal.SIGUSR1, stack.request_log.reopen)
        # What lives by now lives on: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        task.on_ready()
        if task.watch is not None:
            tasks.create_task(_watch(task.watch, stack))
        if task.offered is not None:
            _offer_in_thread(task.offered, task.surroundings.sockets)
        await stack.ended.wait()
        stack.stop()
        raise _Ended


async def _watch(watch: FileWatch, stack: Stack) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        if watch.has_changed():
            await stack.reload()


def _on_orphaned(loop: asyncio.AbstractEventLoop, lifeline: int, stack: Stack) -> None:
    loop.remove_reader(lifeline)
    LOGGER.error("the parent has gone: draining")
    stack.drain()


def _offer_in_thread(offered: socket.socket, sockets: ListeningSockets) -> None:
    """Offer the sockets to a next process; when it serves, drain as by SIGTERM."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while not handover.serve_one(offered, lambda: sockets.held):
                pass
            LOGGER.info("handed over %s", fields(pid=os.getpid()))
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=serve, name="handover", daemon=True).start()
