"""What values are possible, one by one and together: CHECKS by `Class.field`, and routes that no request can reach.

A check returns what was expected, None where the value is fine. Values of the wrong type never come here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from meshproxy.config import (
    Balancing,
    CircuitBreaker,
    DnsDiscovery,
    HeaderEdits,
    HealthCheck,
    Listener,
    OutlierDetection,
    Redirect,
    Retry,
    Rewrite,
    Route,
    RouteMatch,
    StringMatch,
)

Check = Callable[[Any], str | None]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,252}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\]")
_AUTHORITY = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_FIELD_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110 5.5
# Fields that frame a message or speak of one connection are the proxy's own; the host is `rewrite.host`.
_OWN_FIELDS = frozenset(
    (
        *("connection", "content-length", "host", "keep-alive", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    )
)
# A table of more slots is refused by Envoy, too.
_MAX_TABLE = 5_000_011


def _between(low: float, high: float, what: str = "a number") -> Check:
    return lambda value: None if low <= value <= high else f"{what} from {low:,} to {high:,}".replace(",", "_")


def _at_least(low: float, what: str = "a number") -> Check:
    return lambda value: None if value >= low else f"{what} of at least {low}"


def _matching(pattern: re.Pattern[str], what: str) -> Check:
    return lambda value: None if pattern.fullmatch(value) else what


def _above_zero(value: float) -> str | None:
    return None if value > 0 else "a duration above 0"


def _is_address(value: str) -> str | None:
    try:
        ip_address(value)
    except ValueError:
        return "an IP address"
    return None


def _is_regex(value: str) -> str | None:
    try:
        re.compile(value.encode())
    except re.error as error:
        return f"a regular expression ({error})"
    return None


def _is_path(value: str) -> str | None:
    if value.startswith("/") and _FIELD_VALUE.fullmatch(value) and " " not in value and "#" not in value:
        return None
    return "a path that starts with `/`"


def _is_table_size(value: int) -> str | None:
    prime = value > 1 and all(value % factor for factor in range(2, int(value**0.5) + 1))
    return None if prime and value <= _MAX_TABLE else f"a prime number up to {_MAX_TABLE}"


def _check_edits(edits: HeaderEdits) -> str | None:
    for name in (*edits.set, *edits.add, *edits.remove):
        if not _TOKEN.fullmatch(name):
            return f"header names, found `{name}`"
        if name.lower() in _OWN_FIELDS:
            return f"a header that may be edited, found `{name}`"
    for value in (*edits.set.values(), *edits.add.values()):
        if not _FIELD_VALUE.fullmatch(value):
            return "header values without control characters"
    return None


def _check_retry(retry: Retry) -> str | None:
    if retry.hedge_on_per_try_timeout and not retry.per_try_timeout_s:
        return "`per_try_timeout` with `hedge_on_per_try_timeout`"
    if retry.back_off_base_s > retry.back_off_max_s:
        return "a `back_off_base` that is not above `back_off_max`"
    if "retriable-status-codes" in retry.retry_on and not retry.retriable_status_codes:
        return "`retriable_status_codes` with `retry_on: retriable-status-codes`"
    return None


def _check_rewrite(rewrite: Rewrite) -> str | None:
    if (rewrite.regex is None) != (rewrite.substitution is None):
        return "`regex` and `substitution` together"
    if rewrite.regex is not None and rewrite.prefix is not None:
        return "`prefix` or `regex`, not both"
    if rewrite.regex is not None and rewrite.substitution is not None:
        try:
            # Only a match expands the groups that the substitution names: `|.*` always matches.
            re.sub(f"{rewrite.regex}|.*".encode(), rewrite.substitution.encode(), b"")
        except (re.error, IndexError) as error:
            return f"a substitution that fits its regular expression ({error})"
    return None


def _check_redirect(redirect: Redirect) -> str | None:
    if redirect.path is not None and redirect.prefix is not None:
        return "`path` or `prefix`, not both"
    if (redirect.scheme, redirect.host, redirect.port, redirect.path, redirect.prefix) == (None,) * 5:
        return "one of `scheme`, `host`, `port`, `path`, `prefix`: else it leads to itself"
    return None


def _check_listener(listener: Listener) -> str | None:
    if listener.protocol == "tcp" and (listener.cluster is None or listener.routes):
        return "`cluster`, and no `routes`, with `protocol: tcp`"
    if listener.protocol in ("http1", "http2") and (listener.cluster is not None or not listener.routes):
        return f"`routes`, and no `cluster`, with `protocol: {listener.protocol}`"
    if listener.cluster is None and not listener.routes:
        return "`routes`, or `cluster` for plain TCP"
    return None


def _check_route(route: Route) -> str | None:
    path = route.match.path
    action = route.action
    prefix = getattr(action, "prefix", None) if isinstance(action, Redirect) else None
    rewrite = getattr(action, "rewrite", None)
    if (prefix is not None or (rewrite is not None and rewrite.prefix is not None)) and path.prefix is None:
        return "a path matched by prefix, since that is what `prefix` replaces"
    return None


def _check_dns(dns: DnsDiscovery) -> str | None:
    if (dns.port is None) != (dns.record == "srv"):
        return "`port` with `record: address`, and none with `srv`"
    return "a `min_ttl` that is not above `max_ttl`" if dns.min_ttl_s > dns.max_ttl_s else None


def _check_balancing(balancing: Balancing) -> str | None:
    if balancing.ring_minimum_size > balancing.ring_maximum_size:
        return "a `ring_minimum_size` that is not above `ring_maximum_size`"
    return None


def _check_breaker(breaker: CircuitBreaker) -> str | None:
    return None if breaker.max_connections else "a `max_connections` above 0"


def _check_outlier(outlier: OutlierDetection) -> str | None:
    if outlier.base_ejection_s > outlier.max_ejection_s:
        return "a `base_ejection` that is not above `max_ejection`"
    return None


def _check_health(health: HealthCheck) -> str | None:
    if health.kind == "http" and not health.expected_statuses:
        return "at least one of `expected_statuses`"
    return None


_percent = _between(0, 100, "a percentage")
_status = _between(100, 599, "a status")
_port = _between(0, 65_535, "a port")

CHECKS: dict[str, Check] = {
    "StringMatch.regex": _is_regex,
    "HeaderMatch.name": _matching(_TOKEN, "a header's name"),
    "RouteMatch.hosts": _matching(_HOST, "hosts such as a.b, *.b or *, without a port"),
    "RouteMatch.methods": _matching(re.compile(r"[A-Z][A-Z_-]*"), "methods in capitals, such as GET"),
    "HashPolicy.header": _matching(_TOKEN, "a header's name"),
    "HashPolicy.cookie": _matching(_TOKEN, "a cookie's name"),
    "HashPolicy.cookie_path": _is_path,
    "HeaderEdits": _check_edits,
    "Retry.num_retries": _between(0, 100),
    "Retry.retriable_status_codes": _status,
    "Retry": _check_retry,
    "Mirror.percent": _percent,
    "Rewrite.prefix": _is_path,
    "Rewrite.regex": _is_regex,
    "Rewrite.host": _matching(_AUTHORITY, "a host"),
    "Rewrite": _check_rewrite,
    "Redirect.scheme": _matching(re.compile("https?"), "http or https"),
    "Redirect.host": _matching(_AUTHORITY, "a host"),
    "Redirect.port": _between(1, 65_535, "a port"),
    "Redirect.path": _is_path,
    "Redirect.prefix": _is_path,
    "Redirect": _check_redirect,
    "DirectAnswer.status": _between(200, 599, "a status"),
    "DirectAnswer.content_type": _matching(_FIELD_VALUE, "a media type"),
    "Route": _check_route,
    "Route.name": _matching(_NAME, "a name"),
    "Listener.name": _matching(_NAME, "a name"),
    "Listener.port": _port,
    "Listener.address": _is_address,
    "Listener.max_connections": _at_least(1),
    "Listener.max_head_bytes": _between(1024, 1 << 20, "a size"),
    "Listener.max_headers": _between(1, 10_000),
    "Listener.max_concurrent_streams": _between(1, (1 << 31) - 1),
    "Listener.head_timeout_s": _above_zero,
    "Listener.server_header": _matching(_FIELD_VALUE, "a header's value"),
    "Listener.traced_percent": _percent,
    "Listener": _check_listener,
    "EndpointConfig.address": _is_address,
    "EndpointConfig.port": _between(1, 65_535, "a port"),
    "EndpointConfig.weight": _between(1, 1_000_000, "a weight"),
    "EndpointConfig.priority": _between(0, 127, "a priority"),
    "DnsDiscovery.port": _between(1, 65_535, "a port"),
    "DnsDiscovery": _check_dns,
    "Balancing.maglev_table_size": _is_table_size,
    "Balancing.ring_minimum_size": _between(1, 8_388_608, "a size"),
    "Balancing.ring_maximum_size": _between(1, 8_388_608, "a size"),
    "Balancing.choices": _between(2, 100),
    "Balancing.hash_balance_factor": lambda value: (
        None if value == 0 or value >= 100 else "0, or at least 100 (percent)"
    ),
    "Balancing.panic_threshold_percent": _percent,
    "Balancing.ewma_default_rtt_s": _above_zero,
    "Balancing.ewma_decay_s": _above_zero,
    "Balancing": _check_balancing,
    "CircuitBreaker.retry_budget_percent": _percent,
    "CircuitBreaker": _check_breaker,
    "OutlierDetection.interval_s": _above_zero,
    "OutlierDetection.max_ejection_percent": _percent,
    "OutlierDetection": _check_outlier,
    "HealthCheck.path": _is_path,
    "HealthCheck.expected_statuses": _status,
    "HealthCheck.interval_s": _above_zero,
    "HealthCheck.timeout_s": _above_zero,
    "HealthCheck.healthy_threshold": _at_least(1),
    "HealthCheck.unhealthy_threshold": _at_least(1),
    "HealthCheck": _check_health,
    "ClusterConfig.name": _matching(_NAME, "a name"),
    "ClusterConfig.connect_timeout_s": _above_zero,
    "Admin.address": _is_address,
    "Admin.port": _port,
    "AccessLog.sample": _at_least(1),
    "Config.workers": _between(1, 256),
}


def find_unreachable(routes: tuple[Route, ...]) -> list[tuple[int, int]]:
    """(route, the route before it that takes all that it would take), by index.

    Compares what can be compared: an expression is covered only by `/` or by the same expression.
    """
    found: list[tuple[int, int]] = []
    # By host, those before: a later route is compared with the few that share a host with it.
    before: dict[str, list[int]] = {}
    for index, route in enumerate(routes):
        hosts = [host.lower() for host in route.match.hosts]
        by_host = [_first_cover(routes, before, route.match, host) for host in hosts]
        if by_host and all(cover is not None for cover in by_host):
            found.append((index, max(cover for cover in by_host if cover is not None)))
        for host in hosts:
            before.setdefault(host, []).append(index)
    return found


def _first_cover(routes: tuple[Route, ...], before: dict[str, list[int]], match: RouteMatch, host: str) -> int | None:
    for wider in _wider_hosts(host):
        for index in before.get(wider, ()):
            if _covers(routes[index].match, match):
                return index
    return None


def _wider_hosts(host: str) -> list[str]:
    """`a.b.c`: itself, `*.b.c`, `*.c`, `*`."""
    labels = host.split(".")
    start = 2 if labels[0] == "*" else 1
    return list(dict.fromkeys([host, *(".".join(["*", *labels[n:]]) for n in range(start, len(labels))), "*"]))


def _covers(first: RouteMatch, later: RouteMatch) -> bool:
    if first.methods and not (later.methods and set(later.methods) <= set(first.methods)):
        return False
    return set(first.headers) <= set(later.headers) and _covers_path(first.path, later.path)


def _covers_path(first: StringMatch, later: StringMatch) -> bool:
    if first == later or first == StringMatch(prefix="/"):
        return True
    if first.prefix is None:
        return False
    within = first.prefix if first.prefix.endswith("/") else first.prefix + "/"
    if later.exact is not None:
        return later.exact == first.prefix or later.exact.startswith(within)
    return later.prefix is not None and later.prefix.startswith(within)
