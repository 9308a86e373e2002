"""Executing chains of plugins as libcni does, and measuring each process: wall time, and CPU with all its children.

A `Node` is a network namespace in which one implementation works, with its own pods and reservations, so that none
pays for what another left. Must run inside a host of netns-fixtures (run.py sees to it): everything here ends with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import holder
from cni_plugins import handover
from entering import visit_network
from waiting import wait_until

Json = Mapping[str, object]
CNI_VERSION = "1.0.0"  # the newest that the reference plugins of Debian 12 speak
NETWORK = "bench"
# What a runtime gives; and iptables, which the reference calls, lies in sbin.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOT = Path(__file__).resolve().parents[2]
STATE = Path("/run/bench")
AGENT_START_S = 30.0  # it imports all plugins first
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the clock of another process


class PluginFailed(Exception):
    """A plugin that is measured must work; the text says which one did not, and what it said."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """Something to measure: a name for the table, and a folder of plugins. `agent`: netloom's node agent is there."""

    name: str
    bin_dir: str
    agent: bool = False
    is_netloom: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took, with all processes that it started."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


@dataclass(frozen=True, slots=True)
class Chain:
    """The plugins of a network, and what the runtime asks of them for each pod."""

    plugins: tuple[Json, ...]
    runtime_config: Json = field(default_factory=dict)
    ifname: str = "eth0"
    first_result: Json | None = None  # prevResult for the first plugin, where it is never the first

    def config(self, plugin: Json, result: Json | None) -> bytes:
        """What one plugin gets on standard input (CNI SPEC, 3 'Deriving execution configuration')."""
        body: dict[str, object] = {**plugin, "name": NETWORK, "cniVersion": CNI_VERSION}
        capabilities = plugin.get("capabilities")
        declared = capabilities if isinstance(capabilities, Mapping) else {}
        if asked := {key: value for key, value in self.runtime_config.items() if declared.get(key)}:
            body["runtimeConfig"] = asked
        if result is not None:
            body["prevResult"] = result
        # As libcni writes it (Go, encoding/json): keys sorted, no white space.
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


@dataclass(slots=True)
class Pod:
    """A namespace to be wired, and the result of its ADD."""

    container_id: str
    netns: str
    result: Json | None = None


def run_process(argv: Sequence[str], environ: Mapping[str, str], stdin: bytes) -> tuple[bytes, Cost]:
    """Run a program to its end. Files carry its input and outputs, so that it never waits for us.
    Raises PluginFailed."""
    source, output, errors = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
    with open(source, "wb") as file, open(output, "rb") as out, open(errors, "rb") as err:
        file.write(stdin)
        file.flush()
        os.lseek(source, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, number, place) for place, number in enumerate((source, output, errors))]
        started = time.perf_counter()
        pid = os.posix_spawn(argv[0], tuple(argv), environ, file_actions=actions, setsigdef=[signal.SIGPIPE])
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        stdout = out.read()
        if status:
            words = " ".join((stdout + err.read()).decode(errors="replace").split())
            raise PluginFailed(f"{environ.get('CNI_COMMAND', '')} {' '.join(argv)}: {words[:800]}")
        return stdout, Cost(wall, usage.ru_utime + usage.ru_stime)


class Agent:
    """netloom's node agent of one node. Launchers find the one whose socket `offer` shows them."""

    def __init__(self, name: str, netns: str) -> None:
        self._socket = STATE / f"{name}.sock"
        command = (sys.executable, "-m", "cni_plugins.cli", "agent", "--socket", str(self._socket))
        log = STATE / f"{name}.log"
        with visit_network(netns), log.open("wb") as errors:
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=errors)
        wait_until(lambda: self._socket.exists() or self._process.poll() is not None, within=AGENT_START_S)
        if self._process.poll() is not None:
            raise PluginFailed(f"the agent ended: {log.read_text()[-800:]}")

    def __repr__(self) -> str:
        return f"<Agent {self._socket} pid={self._process.pid}>"

    def offer(self) -> None:
        """Show this agent to launchers, where it is not shown yet."""
        offer(self._socket)

    def cpu_s(self) -> float:
        """User and system time so far."""
        return time.clock_gettime(~self._process.pid << 3 | _CPUCLOCK_SCHED)

    def memory_mb(self) -> float:
        """Resident memory."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def offer(path: Path | None) -> None:
    """Let launchers find the agent at `path`, or none. Not while plugins of another node run."""
    known = Path(handover.SOCKET_PATH)
    shown = known.readlink() if known.is_symlink() else None
    if shown == path:
        return
    known.unlink(missing_ok=True)
    if path is not None:
        known.parent.mkdir(exist_ok=True)
        known.symlink_to(path)


class Node:
    """A network namespace for one implementation and one case."""

    def __init__(self, implementation: Implementation, name: str) -> None:
        self.implementation = implementation
        self.name = f"{implementation.name}.{name}"
        self.data_dir = STATE / "ipam" / self.name
        self._pods = 0
        self._left: list[str] = []
        holder.add_pod(self.name)
        self._path = f"{holder.NETNS_DIRECTORY}/{self.name}"
        with visit_network(self._path):
            holder.set_loopback_up()
        self.agent = Agent(self.name, self._path) if implementation.agent else None

    def __repr__(self) -> str:
        return f"<Node {self.name} pods={self._pods}>"

    @contextmanager
    def hastened(self) -> Iterator[None]:
        """While inside, netloom has an agent: for preparing what is not measured."""
        if self.agent is not None or not self.implementation.is_netloom:
            yield
            return
        self.agent = Agent(self.name, self._path)
        try:
            yield
        finally:
            self.agent.close()
            self.agent = None

    def close(self) -> None:
        """Remove the node and the pods that are left on it, and with them all that the plugins made in the kernel."""
        if self.agent is not None:
            offer(None)
            self.agent.close()
        for name in [*self._left, self.name]:
            holder.remove_pod(name)
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def make_pod(self) -> Pod:
        """A fresh namespace, with an id as long as a runtime's."""
        self._pods += 1
        name = f"{self.name}.{self._pods}"
        holder.add_pod(name)
        self._left.append(name)
        return Pod(hashlib.sha256(name.encode()).hexdigest(), f"{holder.NETNS_DIRECTORY}/{name}")

    def drop_pod(self, pod: Pod) -> None:
        """The pod's namespace goes, as after DEL."""
        name = os.path.basename(pod.netns)
        holder.remove_pod(name)
        self._left.remove(name)

    def prepare(self) -> None:
        """What must be so before `run`: this node's agent is the one that launchers find."""
        if self.agent is not None:
            self.agent.offer()
        else:
            offer(None)

    def measure(self, chain: Chain, verb: str, pod: Pod) -> Cost:
        """`run`, with the CPU of the agent. For one pod at a time. Raises PluginFailed."""
        self.prepare()
        before = self.agent.cpu_s() if self.agent else 0.0
        cost = self.run(chain, verb, pod)
        return cost + Cost(0.0, self.agent.cpu_s() - before) if self.agent else cost

    def run(self, chain: Chain, verb: str, pod: Pod, *, prefix: Sequence[str] = ()) -> Cost:
        """One verb for all plugins of the chain: the sum of their costs. ADD keeps the result for the others.
        `prefix` is a program that runs each plugin (strace). Raises PluginFailed."""
        total = Cost()
        result = chain.first_result if verb == "ADD" else pod.result
        for plugin in reversed(chain.plugins) if verb == "DEL" else chain.plugins:
            stdout, cost = self._call(chain, verb, pod, (*prefix, self._program(plugin)), chain.config(plugin, result))
            total += cost
            if verb == "ADD":
                result = json.loads(stdout)
        if verb == "ADD":
            pod.result = result
        return total

    def version(self, plugin: str) -> Cost:
        """VERSION of one plugin, as podman asks."""
        asked = json.dumps({"cniVersion": CNI_VERSION}).encode()
        return self._call(Chain(()), "VERSION", Pod("", "dummy"), (self._program({"type": plugin}),), asked)[1]

    def _program(self, plugin: Json) -> str:
        return os.path.join(self.implementation.bin_dir, str(plugin["type"]))

    def _call(self, chain: Chain, verb: str, pod: Pod, argv: Sequence[str], stdin: bytes) -> tuple[bytes, Cost]:
        environ = {
            "PATH": PATH,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.netns,
            "CNI_IFNAME": chain.ifname,
            "CNI_ARGS": "",
            "CNI_PATH": self.implementation.bin_dir,
        }
        with visit_network(self._path):  # a process starts where its thread is
            return run_process(argv, environ, stdin)

    def count_rules(self) -> int | None:
        """Rules in the whole nft ruleset, those made by iptables included; None without nft."""
        nft = shutil.which("nft", path=PATH)
        if nft is None:
            return None
        with visit_network(self._path):
            listed = subprocess.run([nft, "--json", "list", "ruleset"], capture_output=True, check=True)
        return sum("rule" in item for item in json.loads(listed.stdout)["nftables"])

    def count_messages(self, chain: Chain, verb: str, pod: Pod) -> int | None:
        """Netlink messages sent in one verb, by the plugins and all that they start; None without strace. Without the
        agent, which runs the same code."""
        strace = shutil.which("strace", path=PATH)
        if strace is None:
            return None
        offer(None)
        log = STATE / f"{self.name}.strace"
        # -A: each plugin of the chain appends; -v: strace shows every message of a batch
        options = ("-f", "-qq", "-v", "-s", "0", "-A", "-o", str(log), "-e", "trace=sendto,sendmsg")
        self.run(chain, verb, pod, prefix=(strace, *options, "--"))
        text = log.read_text()
        log.unlink()
        return len(re.findall(r"\bnlmsg_len=", text))


@contextmanager
def nodes(implementations: Sequence[Implementation], name: str) -> Iterator[list[Node]]:
    """A node for each implementation, removed at the end."""
    made: list[Node] = []
    try:
        for implementation in implementations:
            made.append(Node(implementation, name))
        yield made
    finally:
        for node in made:
            node.close()
