"""The whole of one worker, assembled from a Config on a running loop: listeners, routers, clusters, admin, log.

`start` begins it, `reload` swaps what has changed, `drain` ends it. A reload is prepared beside what runs (the file is
read, sockets are bound, new clusters learn their endpoints), then swapped between two requests: a request sees the
configuration before or the one after, never a mixture. What cannot be prepared is refused, and all stays as it was.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshproxy.access_log import FLUSH_S, RequestLog
from meshproxy.admin import Admin
from meshproxy.admin_view import AdminView
from meshproxy.cluster import Cluster
from meshproxy.config import ClusterConfig, Config, Listener
from meshproxy.config_file import ConfigFault
from meshproxy.discovered import DiscoveredCluster, Keeping, is_adoptable
from meshproxy.listener import ListenerRuntime
from meshproxy.listening import (
    ADMIN,
    BACKLOG,
    CannotListen,
    ListeningSockets,
    Place,
    place_of,
    places,
    where_of,
)
from meshproxy.log import LOGGER, fields
from meshproxy.metrics import Statistics
from meshproxy.route import Router
from meshproxy.serving import Serving
from meshproxy.shell import Shell
from meshproxy.siblings import Siblings

# For the first endpoints of clusters that must be asked for: then we serve without them, rather than never.
_WARM_UP_S = 5.0
# How long the thread that reads a file may keep the interpreter from requests. The default is 5 ms.
_SWITCH_S = 0.0002
# How often a draining stack looks whether its last connection has ended.
_DRAIN_LOOK_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a stack is given by its process."""

    load: Callable[[], Config]  # raises ConfigFault
    sockets: ListeningSockets
    siblings: Siblings = field(default_factory=Siblings)
    local: socket.socket | None = None  # where the siblings ask this one
    index: int = 0  # which of the workers
    # Of one of several workers: its parent binds, and is told what concerns all.
    signal_parent: Callable[[signal.Signals], None] | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A configuration, with what could be made of it beside what runs."""

    config: Config
    wanted: Mapping[Place, Listener]
    routers: Mapping[Place, Router]
    fresh: tuple[str, ...]  # clusters that begin anew
    changed: tuple[ClusterConfig, ...]  # clusters that live on, differently


class Stack:
    """One worker's parts. What requests use is in the listeners' runtimes; this is where they come from."""

    def __init__(self, config: Config, surroundings: Surroundings, *, tasks: asyncio.TaskGroup) -> None:
        self.config = config
        self.statistics = Statistics()
        self.request_log = RequestLog(config.access_log, self.statistics)
        self.ended = asyncio.Event()
        self._surroundings = surroundings
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._shell = Shell(self._loop, tasks)
        self._keeping = Keeping(self._shell, self.statistics)
        self._clusters: dict[str, DiscoveredCluster] = {}
        self._shown: dict[str, Cluster] = {}
        self._listening: dict[Place, Serving] = {}
        self._leaving: list[Serving] = []  # of listeners that are gone, until their connections are
        self._admin: Admin | None = None
        self._admin_servers: list[asyncio.AbstractServer] = []
        self._reloading = asyncio.Lock()
        self._is_draining = False
        self._is_started = False
        self._drained_at = 0.0

    def __repr__(self) -> str:
        return f"<Stack {len(self._listening)} listeners, {len(self._clusters)} clusters>"

    # -- what the admin pages see

    @property
    def clusters(self) -> Mapping[str, Cluster]:
        return self._shown

    def not_ready(self) -> str | None:
        if self._is_draining:
            return "draining"
        return None if self._is_started else "starting"

    def listening(self) -> Mapping[str, str]:
        return {one.runtime.config.name: one.where for one in self._listening.values()}

    # -- life

    async def start(self) -> None:
        """Learn the first endpoints, then accept. Raises CannotListen."""
        self._surroundings.sockets.ensure(places(self.config))
        self._shell.wheel.start()
        prepared = self._compare(self.config)
        clusters = self._make_clusters(self.config, begin=prepared.fresh)
        await self._warm_up(clusters)
        await self._swap(prepared, clusters)
        await self._start_admin()
        self._flush_later()
        self._is_started = True
        LOGGER.info("serving %s", fields(**self.listening(), admin=self._admin_at()))

    async def reload(self) -> str | None:
        """Read the file again and go over to it; the reason why it was refused, or None."""
        async with self._reloading:
            if self._is_draining:
                return "draining"
            try:
                prepared = await self._prepare()
                config = prepared.config
                if self._surroundings.signal_parent is None:
                    self._surroundings.sockets.ensure(places(config))
                if config.access_log != self.config.access_log:
                    self.request_log.reopen(config.access_log)
            except (ConfigFault, CannotListen, OSError) as error:
                self.statistics.reload_failures += 1
                self.statistics.config_refused = True
                LOGGER.error("reload refused, the configuration before runs on %s", fields(reason=error))
                if self._surroundings.signal_parent is None:
                    self._surroundings.sockets.release(places(self.config))
                return str(error)
            before = self.config
            clusters = self._make_clusters(config, begin=prepared.fresh)
            await self._warm_up({name: clusters[name] for name in prepared.fresh})
            if self._is_draining:
                return "draining"
            await self._swap(prepared, clusters)
            if config.admin != before.admin:
                await self._start_admin()
            if config.log_level != before.log_level:
                LOGGER.setLevel(config.log_level.upper())
            self.statistics.reloads += 1
            self.statistics.config_refused = False
            LOGGER.info("reloaded %s", fields(listeners=len(config.listeners), clusters=len(config.clusters)))
            return None

    async def _prepare(self) -> _Prepared:
        """Read the file and compare, in a thread: 200 ms for 1,000 clusters, in which requests go on.

        The interpreter's lock changes hands twenty-five times as often meanwhile, so that a request waits 0.2 ms for it
        and not 5; and no collection stops all while there are ten thousand nodes to look at.
        """
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        gc.disable()
        try:
            return await asyncio.to_thread(lambda: self._compare(self._surroundings.load()))
        finally:
            gc.enable()
            sys.setswitchinterval(interval_s)

    def _compare(self, config: Config) -> _Prepared:
        fresh, changed = [], []
        for cluster in config.clusters:
            known = self._clusters.get(cluster.name)
            if known is None or not is_adoptable(known.cluster.config, cluster):
                fresh.append(cluster.name)
            elif known.cluster.config != cluster:
                changed.append(cluster)
        wanted = {place_of(one.name, one.address, one.port): one for one in config.listeners}
        routers = {place: Router(one, self.statistics) for place, one in wanted.items()}
        return _Prepared(config, wanted, routers, tuple(fresh), tuple(changed))

    def drain(self) -> None:
        """Accept no more, let requests end, at most for drain_s; then `ended` is set. The second time: at once."""
        if self._is_draining:
            self._end()
            return
        self._is_draining = True
        self._drained_at = self._loop.time()
        LOGGER.info("draining %s", fields(connections=self._connections()))
        for one in self._listening.values():
            one.drain(within_s=self.config.drain_s)
        for server in self._admin_servers:
            server.close()
        # The last copies, unless a parent or a next process has its own: nobody shall wait in a queue that none serves.
        self._surroundings.sockets.close()
        self._look_whether_drained()

    def drain_all(self) -> None:
        """Drain all workers, this one included."""
        if self._surroundings.signal_parent is not None:
            self._surroundings.signal_parent(signal.SIGTERM)
        else:
            self.drain()

    async def reload_all(self) -> str | None:
        """Reload all workers; the reason why the file is refused, or None."""
        if self._surroundings.signal_parent is None:
            return await self.reload()
        try:
            await asyncio.to_thread(self._surroundings.load)
        except ConfigFault as fault:
            return str(fault)
        self._surroundings.signal_parent(signal.SIGHUP)
        return None

    def on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught, in a callback: the loop goes on, the bug is told."""
        self.statistics.loop_errors += 1
        LOGGER.error("unexpected %s", fields(what=context.get("message", "")), exc_info=context.get("exception"))

    def stop(self) -> None:
        """Let go of everything; after that the task group can end."""
        for server in self._admin_servers:
            server.close()
        if self._admin is not None:
            self._admin.close()
        for one in (*self._listening.values(), *self._leaving):
            one.close()
        for cluster in self._clusters.values():
            cluster.end()
        self._shell.wheel.stop()
        self.request_log.close()

    # -- parts

    def _make_clusters(self, config: Config, *, begin: tuple[str, ...]) -> dict[str, DiscoveredCluster]:
        """The clusters of a configuration: those of `begin` new and learning, the others as they are."""
        made: dict[str, DiscoveredCluster] = {}
        anew = frozenset(begin)
        for cluster in config.clusters:
            if cluster.name in anew:
                made[cluster.name] = DiscoveredCluster(cluster, self._keeping)
                made[cluster.name].begin()
            else:
                made[cluster.name] = self._clusters[cluster.name]
        return made

    async def _warm_up(self, clusters: Mapping[str, DiscoveredCluster]) -> None:
        try:
            async with asyncio.timeout(_WARM_UP_S):
                for cluster in clusters.values():
                    await cluster.known.wait()
        except TimeoutError:
            unknown = [name for name, cluster in clusters.items() if not cluster.known.is_set()]
            LOGGER.warning("no endpoints known yet %s", fields(clusters=",".join(unknown)))

    async def _swap(self, prepared: _Prepared, clusters: dict[str, DiscoveredCluster]) -> None:
        """Go over: nothing in here waits between the first change that a request can see and the last one."""
        config, wanted, routers = prepared.config, prepared.wanted, prepared.routers
        shown = {name: one.cluster for name, one in clusters.items()}
        for place, one in wanted.items():
            if place not in self._listening:
                self._listening[place] = self._make_listening(place, one, routers[place], shown)
        for cluster in prepared.changed:
            clusters[cluster.name].adopt(cluster)
        before, self._clusters, self._shown, self.config = self._clusters, clusters, shown, config
        for place in [place for place in self._listening if place not in wanted]:
            leaving = self._listening.pop(place)
            leaving.drain(within_s=config.drain_s)
            self._leaving.append(leaving)
        self._leaving = [one for one in self._leaving if one.connections]
        for place, listening in self._listening.items():
            runtime = listening.runtime
            runtime.config, runtime.router, runtime.clusters = wanted[place], routers[place], shown
            runtime.log = self.request_log
        for name, old in before.items():
            if clusters.get(name) is not old:
                old.end()
        for listening in self._listening.values():
            await listening.accept()
        if self._surroundings.signal_parent is None:
            self._surroundings.sockets.release(places(config))

    def _make_listening(
        self, place: Place, config: Listener, router: Router, clusters: Mapping[str, Cluster]
    ) -> Serving:
        runtime = ListenerRuntime(
            config,
            router=router,
            clusters=clusters,
            shell=self._shell,
            stats=self.statistics.listener(config.name),
            log=self.request_log,
        )
        sockets = self._surroundings.sockets.share(place, self._surroundings.index)
        return Serving(runtime, sockets, tasks=self._tasks)

    async def _start_admin(self) -> None:
        for server in self._admin_servers:
            server.close()
        self._admin_servers.clear()
        if self.config.admin is None:
            return
        self._admin = Admin(AdminView(self, self._surroundings.siblings).pages())
        place = place_of(ADMIN, self.config.admin.address, self.config.admin.port)
        for sock in self._surroundings.sockets.share(place, self._surroundings.index):
            server = await asyncio.start_server(self._admin.serve, sock=sock.dup(), backlog=BACKLOG)
            self._admin_servers.append(server)
        if (local := self._surroundings.local) is not None:
            self._admin_servers.append(await asyncio.start_unix_server(self._admin.serve, sock=local.dup()))

    def _admin_at(self) -> str:
        if self.config.admin is None:
            return "off"
        place = place_of(ADMIN, self.config.admin.address, self.config.admin.port)
        return where_of(self._surroundings.sockets.share(place, self._surroundings.index)[0])

    def _flush_later(self) -> None:
        self.request_log.flush()
        self._loop.call_later(FLUSH_S, self._flush_later)

    def _connections(self) -> int:
        return sum(one.runtime.stats.connections_active for one in (*self._listening.values(), *self._leaving))

    def _look_whether_drained(self) -> None:
        waited_s = self._loop.time() - self._drained_at
        if self._connections() == 0 or waited_s >= self.config.drain_s:
            self._end()
        else:
            self._loop.call_later(_DRAIN_LOOK_S, self._look_whether_drained)

    def _end(self) -> None:
        if not self.ended.is_set():
            LOGGER.info("ending %s", fields(connections=self._connections()))
            self.ended.set()
