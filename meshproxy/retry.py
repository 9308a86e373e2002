"""Whether a failed attempt is repeated, when, and whether the cluster can bear it. Pure but for the cluster's counters.

Two rules hold a failing cluster together. Repeated attempts at one time, those in back-off included, are at most a part
of its active requests; and over some seconds they are at most the same part of its requests, so that even one slow
client that fails always sends 1.2 attempts a request and not 2. Attempts that were provably unprocessed cost the
endpoints nothing and are outside of the budget, but few.
"""

from __future__ import annotations

from collections.abc import Callable

from meshproxy.cluster import Cluster
from meshproxy.config import Retry, RetryCondition
from meshproxy.message import ProxyError

# RFC 9110 9.2.2. A method nobody knows may do anything.
IDEMPOTENT_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
GATEWAY_ERROR_STATUSES = frozenset({502, 503, 504})
# Envoy: 5xx and gateway-error include that no answer came at all.
NO_ANSWER_CONDITIONS = frozenset[RetryCondition]({"5xx", "gateway-error", "reset"})
NO_ANSWER_KINDS = frozenset({"reset", "bad-answer", "per-try-timeout"})
CONNECT_KINDS = frozenset({"connect-failure", "connect-timeout"})
GRPC_CONDITIONS: dict[int, RetryCondition] = {
    1: "cancelled",
    4: "deadline-exceeded",
    8: "resource-exhausted",
    13: "internal",
    14: "unavailable",
}
# Of attempts that were provably unprocessed: enough to get past a roll-over that has closed idle connections to
# several endpoints at once, few enough not to go round among endpoints of which all refuse.
MAX_UNPROCESSED_ATTEMPTS = 3
# An answer with this field has been through a proxy that could have repeated the attempt, and did not or no longer
# does. Whoever is further away from the failure must not begin again: three proxies in a row with one budget each
# would otherwise make 1.2 ** 3 attempts. The exchange sets it on failures of routes that retry.
GAVE_UP_FIELD = b"x-netloom-gave-up"


def decide(
    retry: Retry,
    *,
    method: bytes,
    attempts_made: int,
    status: int | None = None,
    grpc_status: int | None = None,
    error: ProxyError | None = None,
    replayable: bool = True,
    gave_up: bool = False,
) -> bool:
    """Return whether the route wants the attempt repeated that ended with this status or error.

    `attempts_made` counts it, so it is at least 1. `replayable`: the request's body is all here (or there is none) and
    no part of the answer went to the client. `gave_up`: the answer has GAVE_UP_FIELD. Ask the budget next.
    """
    if not replayable:
        return False
    if error is not None:
        if error.unprocessed:
            return attempts_made < max(MAX_UNPROCESSED_ATTEMPTS, retry.num_retries + 1)
        if error.side != "endpoint":
            return False
    if gave_up or attempts_made > retry.num_retries or not retry.retry_on:
        return False
    if grpc_status is not None and grpc_status in GRPC_CONDITIONS and error is None:
        # gRPC is all POST: a route that names a status of gRPC speaks of nothing else.
        return GRPC_CONDITIONS[grpc_status] in retry.retry_on
    if not retry.retry_non_idempotent and method not in IDEMPOTENT_METHODS:
        return False
    if error is not None:
        return _wants_error(retry, error)
    return status is not None and _wants_status(retry, status)


def is_free(error: ProxyError | None) -> bool:
    """Return whether repeating it is outside of the budget: the endpoint had no work with it."""
    return error is not None and error.unprocessed


def take_budget(cluster: Cluster) -> bool:
    """Count one more retry, to be ended by return_budget, if the cluster can bear it; else return False."""
    breaker = cluster.config.circuit_breaker
    allowed = max(breaker.min_retry_concurrency, cluster.active_requests * breaker.retry_budget_percent / 100)
    if cluster.active_retries + 1 > allowed:
        return False
    cluster.active_retries += 1
    cluster.retries += 1
    return True


def return_budget(cluster: Cluster) -> None:
    """The retry has ended, well or not."""
    cluster.active_retries -= 1


def back_off_s(retry: Retry, attempt: int, random: Callable[[], float], retry_after: float | None = None) -> float:
    """Return how long to wait before retry number `attempt` (from 1): full jitter, or what the endpoint asked for."""
    if retry_after is not None:
        return retry_after
    return random() * min(retry.back_off_max_s, retry.back_off_base_s * 2.0 ** (attempt - 1))


def _wants_error(retry: Retry, error: ProxyError) -> bool:
    if error.kind in NO_ANSWER_KINDS:
        return not NO_ANSWER_CONDITIONS.isdisjoint(retry.retry_on)
    if error.kind in CONNECT_KINDS:
        return "connect-failure" in retry.retry_on or not NO_ANSWER_CONDITIONS.isdisjoint(retry.retry_on)
    if error.kind == "refused-stream":
        return not {"refused-stream", "5xx"}.isdisjoint(retry.retry_on)
    return False


def _wants_status(retry: Retry, status: int) -> bool:
    wanted = retry.retry_on
    return (
        (status >= 500 and "5xx" in wanted)
        or (status in GATEWAY_ERROR_STATUSES and "gateway-error" in wanted)
        or (status == 409 and "retriable-4xx" in wanted)
        or (status in retry.retriable_status_codes and "retriable-status-codes" in wanted)
    )
