"""Counters as Prometheus text: format 0.0.4, the field's usual names. Rendered when asked, in slices.

A proxy with 1,000 clusters of 10 endpoints has 100,000 samples, 120 ms of work: `render` yields a slice at a time, and
the caller lets requests through in between.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping

from meshproxy.cluster import Cluster
from meshproxy.endpoint import Endpoint
from meshproxy.metrics import DURATION_BOUNDS_S, ClusterStats, ListenerStats, Statistics

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# Samples in one slice: 1 ms of work.
_SLICE = 500

_LISTENERS: tuple[tuple[str, str, str], ...] = (
    ("connections_total", "connections", "Connections taken."),
    ("connections_active", "connections_active", "Connections open now."),
    ("connections_refused_total", "connections_refused", "Connections beyond max_connections."),
    ("requests_active", "requests_active", "Requests without their whole answer yet."),
    ("requests_upgraded_total", "requests_upgraded", "WebSockets and other tunnels."),
    ("tcp_connections_total", "tcp_connections", "Connections carried as plain TCP."),
    ("received_bytes_total", "bytes_received", "Bytes of request bodies and TCP from clients."),
    ("sent_bytes_total", "bytes_sent", "Bytes of answers' bodies and TCP to clients."),
)
_CLUSTERS: tuple[tuple[str, str, str], ...] = (
    ("attempts_total", "attempts", "Attempts sent to endpoints, retries, hedges and mirrors included."),
    ("retries_total", "retries", "Attempts after the first one of their request."),
    ("retry_success_total", "retry_success", "Requests that a retry has saved."),
    ("retry_overflow_total", "retry_overflow", "Retries that found the budget used up; some are made a moment later."),
    ("hedges_total", "hedges", "Second attempts beside the first."),
    ("mirrors_total", "mirrors", "Copies of requests."),
    ("overflow_requests_total", "overflow_requests", "Requests beyond max_requests."),
    ("overflow_pending_total", "overflow_pending", "Requests beyond max_pending_requests."),
    ("overflow_connections_total", "overflow_connections", "Connections beyond max_connections, hence waited for."),
    ("no_healthy_endpoint_total", "no_healthy_endpoint", "Requests that found no endpoint."),
    ("connections_total", "connections", "Connections opened."),
    ("connections_http2_total", "connections_http2", "Of them, HTTP/2."),
    ("connections_reused_total", "connections_reused", "Requests on a connection that was there."),
    ("connect_failures_total", "connect_failures", "Connections that were refused or unreachable."),
    ("connect_timeouts_total", "connect_timeouts", "Connections that took too long."),
    ("timeouts_total", "timeouts", "Requests over the route's timeout."),
    ("per_try_timeouts_total", "per_try_timeouts", "Attempts over per_try_timeout."),
    ("resets_total", "resets", "Attempts whose connection or stream broke."),
    ("sent_bytes_total", "bytes_sent", "Bytes of bodies to endpoints."),
    ("received_bytes_total", "bytes_received", "Bytes of bodies from endpoints."),
    ("ejections_total", "ejections", "Endpoints taken out for their answers."),
    ("panics_total", "panics", "Picks among all, since too few were healthy."),
    ("health_checks_total", "health_checks", "Active health checks."),
    ("health_check_failures_total", "health_check_failures", "Of them, failed."),
    ("snapshots_total", "snapshots", "Sets of endpoints that discovery has told."),
)
_CLUSTER_GAUGES: tuple[tuple[str, Callable[[Cluster], float], str], ...] = (
    ("requests_active", lambda cluster: cluster.active_requests, "Requests now, those in back-off included."),
    ("requests_pending", lambda cluster: cluster.pending_requests, "Requests that wait for a connection."),
    ("retries_active", lambda cluster: cluster.active_retries, "Retries now, those in back-off included."),
    ("connections_active", lambda cluster: cluster.connections, "Connections open now."),
    ("endpoints", lambda cluster: len(cluster.endpoints), "Endpoints known."),
    ("endpoints_available", lambda cluster: sum(one.is_available for one in cluster.endpoints), "Of them, pickable."),
)
_ENDPOINTS: tuple[tuple[str, Callable[[Endpoint], float], str], ...] = (
    ("requests_total", lambda one: one.requests, "Attempts that ended."),
    ("failures_total", lambda one: one.failures, "Of them, 5xx or none."),
    ("connect_failures_total", lambda one: one.connect_failures, "Of them, without a connection."),
    ("timeouts_total", lambda one: one.timeouts, "Of them, too late."),
    ("ejections_total", lambda one: one.ejections, "Times it was taken out."),
    ("requests_active", lambda one: one.active, "Attempts now."),
    ("available", lambda one: one.is_available, "Whether it may be picked."),
)


def render(statistics: Statistics, clusters: Mapping[str, Cluster]) -> Iterator[str]:
    """The whole page, slice by slice; each slice ends with its line."""
    yield from _slices(_process())
    yield from _slices(_of_process(statistics))
    yield from _slices(_of_listeners(statistics.listeners))
    yield from _slices(_of_routes(statistics))
    yield from _slices(_of_clusters(statistics.clusters, clusters))
    yield from _slices(_of_endpoints(clusters))


def escape(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def add_up(pages: Iterable[str]) -> str:
    """One page of the pages of several workers: samples of one name and labels are summed."""
    totals: dict[str, float] = {}
    lines: list[str] = []  # in the order of the first page that has them
    seen: set[str] = set()
    for page in pages:
        for line in page.splitlines():
            if line.startswith("#"):
                key = line
            else:
                key, _, value = line.rpartition(" ")
                totals[key] = totals.get(key, 0) + float(value)
            if key not in seen:
                seen.add(key)
                lines.append(key)
    return _regroup(lines, totals)


def _regroup(lines: list[str], totals: Mapping[str, float]) -> str:
    """A family's samples stay together, also those that only a later page has."""
    families: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("# HELP ") or line.startswith("# TYPE "):
            families.setdefault(line.split(" ", 3)[2], []).append(line)
        else:
            name = line.partition("{")[0]
            family = next((name[: -len(end)] for end in _HISTOGRAM_ENDS if name[: -len(end)] in families), name)
            families.setdefault(family if family in families else name, []).append(f"{line} {_number(totals[line])}")
    return "".join(f"{line}\n" for family in families.values() for line in family)


_HISTOGRAM_ENDS = ("_bucket", "_sum", "_count")


def _slices(lines: Iterable[str]) -> Iterator[str]:
    part: list[str] = []
    for line in lines:
        part.append(line)
        if len(part) >= _SLICE:
            yield "\n".join(part) + "\n"
            part.clear()
    if part:
        yield "\n".join(part) + "\n"


def _head(name: str, text: str) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _process() -> Iterator[str]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield _head("process_cpu_seconds_total", "CPU time, user and system.")
    yield f"process_cpu_seconds_total {usage.ru_utime + usage.ru_stime:.3f}"
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    yield _head("process_resident_memory_bytes", "Resident memory.")
    yield f"process_resident_memory_bytes {pages * resource.getpagesize()}"
    yield _head("process_open_fds", "Open file descriptors.")
    yield f"process_open_fds {len(os.listdir('/proc/self/fd')) - 1}"  # but for the one that lists them


def _of_process(statistics: Statistics) -> Iterator[str]:
    name = "meshproxy_config_reloads_total"
    yield _head(name, "Times the configuration was read again.")
    yield f'{name}{{result="taken"}} {statistics.reloads}'
    yield f'{name}{{result="refused"}} {statistics.reload_failures}'
    for name, value, text in (
        (
            "config_refused",
            int(statistics.config_refused),
            "1: the file as it is was refused.",
        ),
        ("access_log_lines_total", statistics.access_log_lines, "Lines written."),
        ("access_log_lost_total", statistics.access_log_lost, "Lines lost, since their file was too slow or full."),
        ("loop_errors_total", statistics.loop_errors, "Exceptions that nobody expected: each one is a bug."),
    ):
        yield _head(f"meshproxy_{name}", text)
        yield f"meshproxy_{name} {value}"


def _of_listeners(listeners: Mapping[str, ListenerStats]) -> Iterator[str]:
    labelled = [(f'listener="{escape(name)}"', stats) for name, stats in listeners.items()]
    if not labelled:
        return
    for name, attribute, text in _LISTENERS:
        yield _head(f"meshproxy_listener_{name}", text)
        for labels, stats in labelled:
            yield f"meshproxy_listener_{name}{{{labels}}} {getattr(stats, attribute)}"
    name = "meshproxy_listener_requests_total"
    yield _head(name, "Requests taken.")
    for labels, stats in labelled:
        yield f'{name}{{{labels},protocol="http1"}} {stats.requests_http1}'
        yield f'{name}{{{labels},protocol="http2"}} {stats.requests_http2}'
    name = "meshproxy_listener_requests_refused_total"
    yield _head(name, "Requests refused before they had a route.")
    for labels, stats in labelled:
        for reason, count in stats.refused.items():
            yield f'{name}{{{labels},reason="{reason}"}} {count}'


def _of_routes(statistics: Statistics) -> Iterator[str]:
    labelled = [
        (f'listener="{escape(listener)}",route="{escape(route)}",cluster="{escape(cluster)}"', stats)
        for (listener, route, cluster), stats in statistics.routes.items()
        if any(stats.answers) or cluster
    ]
    if not labelled:
        return
    name = "meshproxy_requests_total"
    yield _head(name, "Requests that ended, by what the client got; code_class none: nothing.")
    for labels, stats in labelled:
        for code, count in zip(("none", "1xx", "2xx", "3xx", "4xx", "5xx"), stats.answers, strict=True):
            if count or code in ("2xx", "5xx"):
                yield f'{name}{{{labels},code_class="{code}"}} {count}'
    name = "meshproxy_request_failures_total"
    yield _head(name, "Answers that we made, since no endpoint gave one.")
    for labels, stats in labelled:
        for reason, count in stats.failures.items():
            yield f'{name}{{{labels},reason="{reason}"}} {count}'
    name = "meshproxy_request_duration_seconds"
    yield f"# HELP {name} From a request's head to the end of its answer.\n# TYPE {name} histogram"
    for labels, stats in labelled:
        total = 0
        for bound, count in zip((*DURATION_BOUNDS_S, "+Inf"), stats.duration_buckets, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {stats.duration_sum_s:.6f}"
        yield f"{name}_count{{{labels}}} {total}"


def _of_clusters(statistics: Mapping[str, ClusterStats], clusters: Mapping[str, Cluster]) -> Iterator[str]:
    if not clusters:
        return
    labels = {name: f'cluster="{escape(name)}"' for name in clusters}
    for name, attribute, text in _CLUSTERS:
        yield _head(f"meshproxy_upstream_{name}", text)
        for cluster in clusters:
            if (stats := statistics.get(cluster)) is not None:
                yield f"meshproxy_upstream_{name}{{{labels[cluster]}}} {getattr(stats, attribute)}"
    for name, value_of, text in _CLUSTER_GAUGES:
        yield _head(f"meshproxy_upstream_{name}", text)
        for key, one in clusters.items():
            yield f"meshproxy_upstream_{name}{{{labels[key]}}} {value_of(one)}"


def _of_endpoints(clusters: Mapping[str, Cluster]) -> Iterator[str]:
    if not any(cluster.endpoints for cluster in clusters.values()):
        return
    for name, value_of, text in _ENDPOINTS:
        yield _head(f"meshproxy_endpoint_{name}", text)
        for key, cluster in clusters.items():
            label = f'cluster="{escape(key)}"'
            for endpoint in cluster.endpoints:
                yield f'meshproxy_endpoint_{name}{{{label},endpoint="{endpoint.key}"}} {int(value_of(endpoint))}'
