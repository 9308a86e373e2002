"""What the agent counts, in Prometheus' form: calls, errors by code, durations, addresses, its own starts.

Addresses are counted when asked for, from the reservations themselves, for networks that the agent has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ipam import host_local

from .errors import CniError, Code, invalid_config
from .protocol import Config, parse_config

# From an answer without work to a DEL that waits for the kernel under load.
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_NETWORKS_MAX = 1000  # whose addresses are counted; bounds memory against configurations that change their names
# Labels are memory that stays, and these two come from outside: from runtimes, and from foreign delegates.
_VERBS = frozenset(("ADD", "DEL", "CHECK", "GC", "STATUS"))
_CODES = range(200)


class Metrics:
    """Counters of one agent."""

    def __init__(self, starts: int) -> None:
        self.registry = CollectorRegistry()
        labels = ("plugin", "verb")
        self._calls = Counter(
            "netloom_calls", "Calls answered; code 0 is success", (*labels, "code"), registry=self.registry
        )
        self._durations = Histogram(
            "netloom_call_duration_seconds", "Time in the handler", labels, buckets=_BUCKETS_S, registry=self.registry
        )
        self._connections = Counter(
            "netloom_connections_dropped",
            "Connections without a call: refused (user, too many), declined (not for this agent), lost (broke off)",
            ("reason",),
            registry=self.registry,
        )
        gauge = Gauge("netloom_agent_starts", "Starts of the agent since the machine's", registry=self.registry)
        gauge.set(starts)
        self._networks: dict[str, Config] = {}
        self.registry.register(_Addresses(self._networks))

    def __repr__(self) -> str:
        return f"Metrics(networks={len(self._networks)})"

    def call(self, plugin: str, verb: str, code: int, duration_s: float) -> None:
        """Count a call that was answered."""
        verb = verb if verb in _VERBS else "other"
        self._calls.labels(plugin, verb, str(code) if code in _CODES else "other").inc()
        self._durations.labels(plugin, verb).observe(duration_s)

    def saw(self, stdin: bytes) -> None:
        """Remember the configuration of an ADD, if host-local keeps the network's addresses."""
        if b"host-local" not in stdin:
            return
        with suppress(CniError):  # the plugin had no use for what cannot be read
            config = parse_config(stdin, "", "ADD")
            if config.fields.inner("ipam").text("type") != "host-local":
                return
            if len(self._networks) < _NETWORKS_MAX or config.name in self._networks:
                self._networks[config.name] = replace(config, body={"ipam": config.body["ipam"]}, prev_result=None)

    def dropped(self, reason: str) -> None:
        """Count a connection that came to no call."""
        self._connections.labels(reason).inc()

    def serve(self, address: str) -> None:
        """Answer GET /metrics on HOST:PORT, in a thread. Raises CniError 7 or 5."""
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise invalid_config(f"{address!r} is no address to serve metrics on", "expected HOST:PORT")
        try:
            start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry=self.registry)
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"could not serve metrics on {address}: {error.strerror}") from error


class _Addresses(Collector):
    """Reads the reservations at each scrape."""

    def __init__(self, networks: dict[str, Config]) -> None:
        self._networks = networks

    def collect(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("netloom_addresses_used", "Addresses reserved", labels=("network",))
        free = GaugeMetricFamily("netloom_addresses_free", "Addresses left in the ranges", labels=("network",))
        for name, config in list(self._networks.items()):
            with suppress(CniError, OSError):
                taken, size = host_local.usage(config)
                used.add_metric((name,), taken)
                free.add_metric((name,), size - taken)
        yield used
        yield free
