"""The configuration as values: frozen, complete, with every default; what the rest of the proxy reads.

Names are Envoy's where it has one. Times are seconds, sizes bytes. Holds no rule of how it is written down
(config_file.py reads YAML into it, strictly) and nothing that changes while requests flow (cluster.py holds that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Envoy's names. The gRPC ones look at the status in the trailers (or in a trailers-only head).
RetryCondition = Literal[
    "5xx",
    "gateway-error",
    "reset",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
]
BalancerName = Literal["maglev", "ring_hash", "round_robin", "least_request", "random", "peak_ewma"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StringMatch:
    """One of these three is set. `regex` must match the whole value."""

    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderMatch:
    """A request header that must fit, by any of its lines. Without `value`, it must be there (or, inverted, must not).

    With `value`, a header that is not there does not fit, inverted or not (Envoy's rule).
    """

    name: str
    value: StringMatch | None = None
    invert: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteMatch:
    """Which requests a route takes: all that is given must fit. Hosts: `a.b`, `*.b` or `*`, without a port."""

    hosts: tuple[str, ...] = ("*",)
    path: StringMatch = field(default_factory=lambda: StringMatch(prefix="/"))
    methods: tuple[str, ...] = ()
    headers: tuple[HeaderMatch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HashPolicy:
    """A part of the key for maglev and ring_hash; exactly one source. Several combine as rotl(h, 1) ^ next.

    A cookie that the client does not send is made when `cookie_ttl_s` is given (0: for the session). A `terminal`
    policy that found its part ends the key.
    """

    header: str | None = None
    cookie: str | None = None
    cookie_ttl_s: float | None = None
    cookie_path: str = "/"
    query: str | None = None
    source_address: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEdits:
    """Changes of one head: first `remove`, then `set` (replaces), then `add` (appends). Names in lower case."""

    set: Mapping[str, str] = field(default_factory=dict)
    add: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When an attempt is repeated, and how often. Provably unprocessed attempts are repeated without being asked."""

    retry_on: tuple[RetryCondition, ...] = ()
    num_retries: int = 1
    per_try_timeout_s: float = 0  # 0: none
    back_off_base_s: float = 0.025
    back_off_max_s: float = 0.25
    retriable_status_codes: tuple[int, ...] = ()
    # Whether POST and PATCH, too, are repeated after an endpoint may have worked on them.
    retry_non_idempotent: bool = False
    # A second attempt beside the first after per_try_timeout_s, the first answer wins.
    hedge_on_per_try_timeout: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedCluster:
    """A share of a route's requests: weight / sum of weights."""

    cluster: str
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A copy of requests whose answer nobody waits for."""

    cluster: str
    percent: float = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """Changes on the way out. `prefix` replaces the matched prefix; `regex` and `substitution` go together."""

    prefix: str | None = None
    regex: str | None = None
    substitution: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Carry the request to a cluster."""

    clusters: tuple[WeightedCluster, ...]
    timeout_s: float = 15  # of the whole answer, retries included; 0: none
    idle_timeout_s: float | None = None  # None: the listener's stream_idle_s
    retry: Retry = field(default_factory=Retry)
    hash: tuple[HashPolicy, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    rewrite: Rewrite = field(default_factory=Rewrite)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Answer with a Location. What is not given stays as it was asked."""

    status: Literal[301, 302, 303, 307, 308] = 301
    scheme: str | None = None
    host: str | None = None
    port: int | None = None
    path: str | None = None
    prefix: str | None = None  # replaces the matched prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectAnswer:
    """Answer by ourselves."""

    status: int
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which requests, what becomes of them, and how their heads change."""

    name: str
    action: Forward | Redirect | DirectAnswer
    match: RouteMatch = field(default_factory=RouteMatch)
    request_headers: HeaderEdits = field(default_factory=HeaderEdits)
    response_headers: HeaderEdits = field(default_factory=HeaderEdits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A port that takes connections. With `cluster`, plain TCP; else its routes, the first that fits."""

    name: str
    port: int
    address: str = "0.0.0.0"
    # auto: HTTP/2 by its preface, HTTP/1 by its request line, else TCP where `cluster` is given.
    protocol: Literal["auto", "http1", "http2", "tcp"] = "auto"
    cluster: str | None = None
    routes: tuple[Route, ...] = ()
    max_connections: int = 10_000
    max_head_bytes: int = 60 * 1024  # Envoy's
    max_headers: int = 100
    max_concurrent_streams: int = 100
    head_timeout_s: float = 15  # from the first byte of a head to its last (slow-loris)
    stream_idle_s: float = 300
    idle_timeout_s: float = 3600
    tcp_idle_s: float = 3600
    allow_connect: bool = False
    # What becomes of X-Forwarded-For: append the peer's address, replace it by that, or pass it as it came.
    forwarded_for: Literal["append", "replace", "keep"] = "append"
    server_header: str | None = None  # None: the endpoint's
    # Of the traces that start here, the share that carries the flag "sampled". A trace that came keeps its own.
    traced_percent: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """Where an endpoint is. Localities of one priority share by the weights of their endpoints."""

    region: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """One endpoint as discovery publishes it. `identity` tells a new pod from the old one that had its address."""

    address: str  # an IP address, without brackets
    port: int
    weight: int = 1
    priority: int = 0
    locality: Locality = field(default_factory=Locality)
    identity: str = ""

    @property
    def key(self) -> str:
        """`ip:port`, `[ip]:port` for IPv6: what Envoy hashes."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticDiscovery:
    """Endpoints as the configuration names them."""

    endpoints: tuple[EndpointConfig, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDiscovery:
    """A YAML file with a list of endpoints, watched."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsDiscovery:
    """A and AAAA of `name` with `port`, or SRV (with port, weight and priority of its own), asked again by TTL."""

    name: str
    port: int | None = None
    record: Literal["address", "srv"] = "address"
    resolver: str | None = None  # ip or ip:port; None: /etc/resolv.conf
    min_ttl_s: float = 1
    max_ttl_s: float = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancing:
    """How an endpoint is picked. Defaults are Envoy's."""

    policy: BalancerName = "round_robin"
    maglev_table_size: int = 65_537
    ring_minimum_size: int = 1024
    ring_maximum_size: int = 8_388_608
    choices: int = 2  # least_request
    hash_balance_factor: int = 0  # percent of the mean load an endpoint may reach, e.g. 125; 0: no bound
    panic_threshold_percent: float = 50
    slow_start_s: float = 0
    ewma_default_rtt_s: float = 0.03
    ewma_decay_s: float = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """What a cluster bears at one time; beyond it the answer is 503 at once."""

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_requests: int = 1024
    retry_budget_percent: float = 20  # of active requests; 0 with min_retry_concurrency 0: no retry at all
    min_retry_concurrency: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """When an endpoint is taken out for its answers."""

    consecutive_5xx: int = 5  # 0: off
    consecutive_gateway_failure: int = 0
    interval_s: float = 10
    base_ejection_s: float = 30
    max_ejection_s: float = 300
    max_ejection_percent: float = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """A question asked of each endpoint, again and again."""

    kind: Literal["http", "grpc", "tcp"] = "http"
    path: str = "/"
    host: str = ""  # empty: the cluster's name
    service: str = ""  # grpc
    expected_statuses: tuple[int, ...] = (200,)
    interval_s: float = 10
    timeout_s: float = 5
    healthy_threshold: int = 2
    unhealthy_threshold: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """A service: where its endpoints come from, and how they are treated."""

    name: str
    discovery: StaticDiscovery | FileDiscovery | DnsDiscovery
    protocol: Literal["http1", "http2"] = "http1"
    balancing: Balancing = field(default_factory=Balancing)
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    outlier_detection: OutlierDetection | None = None
    health_check: HealthCheck | None = None
    connect_timeout_s: float = 5
    idle_timeout_s: float = 3600  # of a pooled connection
    max_connection_age_s: float = 0  # 0: none
    max_requests_per_connection: int = 0  # 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """The operator's endpoint."""

    address: str = "127.0.0.1"
    port: int = 15_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    """One JSON line a request: of none, of those that failed (5xx, resets), of one in `sample`, of all."""

    mode: Literal["off", "errors", "sampled", "all"] = "errors"
    sample: int = 100
    path: str = "-"  # -: standard output


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of one meshproxy."""

    listeners: tuple[Listener, ...]
    clusters: tuple[ClusterConfig, ...] = ()
    admin: Admin | None = field(default_factory=Admin)
    access_log: AccessLog = field(default_factory=AccessLog)
    workers: int = 1
    drain_s: float = 30  # how long a stopping proxy waits for its requests
    log_level: Literal["debug", "info", "warning", "error"] = "info"
