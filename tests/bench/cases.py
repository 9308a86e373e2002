"""What is measured: chains of plugins as data, and one function for each way of measuring.

Each takes the implementations in turn, A B A B, so that whatever the machine does meanwhile meets all of them alike.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from tests.bench.driver import Chain, Cost, Implementation, Json, Node, PluginFailed, Pod, nodes

VERBS = ("ADD", "CHECK", "DEL")
SUBNET = "10.128.0.0/14"  # room for 50,000 reservations and a thousand pods
SUBNET6 = "fd88::/64"
IN_FLIGHT = 16
# A bridge has 1,024 ports at most (BR_MAX_PORTS), so that a thousand and the one that is measured just fit.
RESIDENTS = (0, 100, 300, 1000)
TAKEN = (0, 1_000, 10_000, 50_000)


@dataclass(slots=True)
class Row:
    """One line of the table: what was measured, and the costs of each implementation by name."""

    case: str
    verb: str
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # why an implementation has no costs here

    def add(self, implementation: Implementation, cost: Cost) -> None:
        self.costs.setdefault(implementation.name, []).append(cost)


@dataclass(slots=True)
class Counted:
    """Counts beside a table: what, and the number of each implementation by name; None where it cannot be told."""

    case: str
    what: str
    numbers: dict[str, int | float | None] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What was found."""

    rows: list[Row] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)


def ipam(*subnets: str) -> dict[str, object]:
    """host-local with one range set a subnet; `dataDir` is filled in for each node."""
    routes = [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets]
    return {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets], "routes": routes}


def bridge(*subnets: str, masquerade: bool = False) -> Json:
    """The bridge as podman and the sample configuration have it."""
    return {
        "type": "bridge", "bridge": "bench0", "isGateway": True, "ipMasq": masquerade, "hairpinMode": True,
        "ipam": ipam(*subnets),
    }  # fmt: skip


PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH: Json = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
FIREWALL: Json = {"type": "firewall"}
TUNING: Json = {"type": "tuning"}
TUNING_SET: Json = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
RATES: Json = {"ingressRate": 10**8, "ingressBurst": 10**7, "egressRate": 10**8, "egressBurst": 10**7}
ADDRESS: Json = {"cniVersion": "1.0.0", "interfaces": [], "ips": [], "routes": [], "dns": {}}


def ports(number: int, first: int = 20000) -> list[Json]:
    """Port mappings, each of another host port."""
    return [{"hostPort": first + i, "containerPort": 80 + i, "protocol": "tcp"} for i in range(number)]


def five(number: int) -> Chain:
    """Bridge, ports, firewall, rates and a sysctl."""
    plugins = (bridge(SUBNET, masquerade=True), PORTMAP, FIREWALL, BANDWIDTH, TUNING_SET)
    return Chain(plugins, {"portMappings": ports(number), "bandwidth": RATES})


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    repeat: int
    parallel_pods: int = 100
    residents: tuple[int, ...] = RESIDENTS
    taken: tuple[int, ...] = TAKEN


CHAINS: dict[str, Chain] = {
    "loopback": Chain(({"type": "loopback"},), ifname="lo"),
    "tuning, idle": Chain((TUNING,), ifname="lo", first_result=ADDRESS),
    "bridge": Chain((bridge(SUBNET),)),
    "bridge, masquerade": Chain((bridge(SUBNET, masquerade=True),)),
    "dual stack, masquerade": Chain((bridge(SUBNET, SUBNET6, masquerade=True),)),
    "ordinary pod": Chain((bridge(SUBNET, masquerade=True), PORTMAP, BANDWIDTH)),
    "five plugins, 1 port": five(1),
    "five plugins, 10 ports": five(10),
}
ONE_PORT = Chain((bridge(SUBNET, masquerade=True), PORTMAP))


def at(node: Node, chain: Chain, **runtime_config: object) -> Chain:
    """The chain with the reservations of this node, and further arguments of the runtime."""
    plugins = []
    for plugin in chain.plugins:
        inner = plugin.get("ipam")
        plugins.append(
            {**plugin, "ipam": {**inner, "dataDir": str(node.data_dir)}} if isinstance(inner, dict) else plugin
        )
    asked = {**chain.runtime_config, **runtime_config}
    return Chain(tuple(plugins), asked, chain.ifname, chain.first_result)


def measure_version(implementations: Sequence[Implementation], size: Size, report: Report) -> None:
    """VERSION, which podman asks of every plugin before each ADD and DEL."""
    row = Row("VERSION", "")
    with nodes(implementations, "version") as made:
        for _ in range(size.repeat):
            for node in made:
                row.add(node.implementation, node.version("bridge"))
    report.rows.append(row)


def measure_chain(
    name: str, chain: Chain, implementations: Sequence[Implementation], size: Size, report: Report, *, taken: int = 0
) -> None:
    """ADD, CHECK and DEL of one pod, beside one that stays (a node is rarely empty), after one round to warm up."""
    rows = {verb: Row(name, verb) for verb in VERBS}
    with nodes(implementations, "chain") as made:
        for node in made:
            reserve(node.data_dir / "bench", taken)
            node.measure(at(node, chain, portMappings=ports(1, 19999)), "ADD", node.make_pod())
            _round(node, at(node, chain), {})
        for _ in range(size.repeat):
            for node in made:
                _round(node, at(node, chain), rows)
    report.rows += rows.values()


def _round(node: Node, chain: Chain, rows: dict[str, Row]) -> None:
    pod = node.make_pod()
    for verb in VERBS:
        try:
            cost = node.measure(chain, verb, pod)
        except PluginFailed as error:
            if verb != "CHECK":
                raise
            if verb in rows:  # the reference's fails after some of its own ADDs; its other verbs are worth measuring
                rows[verb].failures[node.implementation.name] = str(error)
            continue
        if verb in rows:
            rows[verb].add(node.implementation, cost)
    node.drop_pod(pod)


def reserve(directory: Path, number: int) -> None:
    """Reservations of other pods, in host-local's format."""
    if not number:
        return
    directory.mkdir(parents=True)
    first = IPv4Address("10.128.0.2")
    for i in range(number):
        (directory / str(first + i)).write_text(f"{i:064x}\r\neth0")
    (directory / "last_reserved_ip.0").write_text(str(first + number - 1))


def measure_taken(implementations: Sequence[Implementation], size: Size, report: Report) -> None:
    """host-local alone, with ever more addresses taken."""
    chain = Chain(({"type": "host-local", "ipam": ipam(SUBNET)},))
    for taken in size.taken:
        measure_chain(f"host-local, {taken:,} taken", chain, implementations, size, report, taken=taken)


def measure_parallel(implementations: Sequence[Implementation], size: Size, report: Report) -> None:
    """Many pods with several in flight, as a node does after a reboot: pods per second, and how long each took."""
    chain = CHAINS["bridge, masquerade"]
    name = f"{size.parallel_pods} pods, {IN_FLIGHT} in flight"
    rows = {verb: Row(name, verb) for verb in ("ADD", "DEL")}
    rates = {verb: Counted(name, f"{verb}/s") for verb in rows}
    with nodes(implementations, "parallel") as made, ThreadPoolExecutor(IN_FLIGHT) as workers:
        for node in made:
            mine = at(node, chain)
            _round(node, mine, {})
            pods = [node.make_pod() for _ in range(size.parallel_pods)]
            for verb, row in rows.items():
                before, started = node.agent.cpu_s() if node.agent else 0.0, time.perf_counter()
                costs = list(workers.map(functools.partial(node.run, mine, verb), pods))
                rates[verb].numbers[node.implementation.name] = len(pods) / (time.perf_counter() - started)
                agent = (node.agent.cpu_s() - before) if node.agent else 0.0
                total = sum(cost.cpu_s for cost in costs) + agent
                for cost in costs:
                    row.add(node.implementation, Cost(cost.wall_s, total / len(pods)))
    report.rows += rows.values()
    report.counted += rates.values()


def measure_flat(implementations: Sequence[Implementation], size: Size, report: Report) -> None:
    """One more pod with a host port on a node that has ever more of them; then how many netlink messages that takes,
    and how many rules there are."""
    with nodes(implementations, "flat") as made, ThreadPoolExecutor(IN_FLIGHT) as workers:
        there = 0
        for residents in size.residents:
            for node in made:
                _settle(node, workers, range(there, residents))
            there = residents
            name = f"{residents:,} pods with a port"
            rows = {verb: Row(name, verb) for verb in VERBS}
            for number in range(size.repeat + 1):
                for node in made:
                    _round(node, at(node, ONE_PORT, portMappings=ports(1, 10000)), rows if number else {})
            report.rows += rows.values()
            report.counted += _count(made, name)


def _settle(node: Node, workers: ThreadPoolExecutor, numbers: range) -> None:
    """ADD pods that stay, each with a host port of its own."""
    pods = [node.make_pod() for _ in numbers]

    def add(number: int, pod: Pod) -> None:
        node.run(at(node, ONE_PORT, portMappings=ports(1, 20000 + number)), "ADD", pod)

    with node.hastened():
        node.prepare()
        list(workers.map(add, numbers, pods))


def _count(made: Sequence[Node], name: str) -> list[Counted]:
    messages = [Counted(name, f"netlink messages of {verb}") for verb in VERBS]
    rules = Counted(name, "nft rules")
    memory = Counted(name, "memory of the agent, MB")
    for node in made:
        chain, pod = at(node, ONE_PORT, portMappings=ports(1, 10000)), node.make_pod()
        for verb, counted in zip(VERBS, messages, strict=True):
            try:
                counted.numbers[node.implementation.name] = node.count_messages(chain, verb, pod)
            except PluginFailed:
                if verb != "CHECK":
                    raise
        node.drop_pod(pod)
        rules.numbers[node.implementation.name] = node.count_rules()
        memory.numbers[node.implementation.name] = node.agent.memory_mb() if node.agent else None
    return [*messages, rules, memory]


Measure = Callable[[Sequence[Implementation], Size, Report], None]


def _of_chain(name: str, chain: Chain) -> Measure:
    return lambda implementations, size, report: measure_chain(name, chain, implementations, size, report)


CASES: dict[str, Measure] = {
    "version": measure_version,
    "host-local": measure_taken,
    **{name: _of_chain(name, chain) for name, chain in CHAINS.items()},
    "parallel": measure_parallel,
    "flat": measure_flat,
}
