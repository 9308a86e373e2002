"""Whether a failed attempt is repeated, when, and whether the cluster can bear it. Pure but for the cluster's counters.

Two rules hold a failing cluster together. Repeated attempts at one time, those in back-off included, are at most a part
of its active requests; and over some seconds they are at most the same part of its requests, so that even one slow
client that fails always sends 1.2 attempts a request and not 2. Attempts that were provably unprocessed cost the
endpoints nothing and are outside of the budget, but few.
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime

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
# The second rule of the budget: over this time, and at least so many, so that a cluster with few requests has retries
# until an endpoint that fails is ejected (after 5 failures in a row, by default).
BUDGET_WINDOW_S = 10.0
MIN_RETRIES_PER_WINDOW = 10
SAMPLE_EVERY_S = 1.0
MAX_DOUBLINGS = 30  # far beyond every cap, within what a float holds
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


def decide_hedge(retry: Retry, *, method: bytes, attempts_made: int, replayable: bool = True) -> bool:
    """Return whether a second attempt begins beside one that has not answered within its per-try timeout.

    Both may be worked on to their ends, so the method must bear that. Ask the budget next.
    """
    return (
        retry.hedge_on_per_try_timeout
        and replayable
        and attempts_made <= retry.num_retries
        and (retry.retry_non_idempotent or method in IDEMPOTENT_METHODS)
    )


def retry_after_s(value: bytes, *, date: bytes | None) -> float | None:
    """Return the seconds of a Retry-After field (RFC 9110 10.2.3), None if it says nothing we understand.

    A date is reckoned from the answer's own Date (`date`), so that nobody's clock needs to be right.
    """
    text = value.strip()
    if text.isdigit():
        return float(text) if len(text) < 10 else None
    if date is None:
        return None
    try:
        until = parsedate_to_datetime(text.decode("latin-1"))
        since = parsedate_to_datetime(date.decode("latin-1"))
        return max(0.0, (until - since).total_seconds())
    except (ValueError, TypeError):  # no dates, or one of them without a zone
        return None


def is_free(error: ProxyError | None) -> bool:
    """Return whether repeating it is outside of the budget: the endpoint had no work with it."""
    return error is not None and error.unprocessed


def take_budget(cluster: Cluster) -> bool:
    """Count one more retry, to be ended by return_budget, if the cluster can bear it; else return False."""
    breaker = cluster.config.circuit_breaker
    part = breaker.retry_budget_percent / 100
    if cluster.active_retries + 1 > max(breaker.min_retry_concurrency, cluster.active_requests * part):
        return False
    requests, retries = _recent(cluster)
    if retries + 1 > max(MIN_RETRIES_PER_WINDOW if breaker.min_retry_concurrency else 0, requests * part):
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
    doublings = min(attempt - 1, MAX_DOUBLINGS)
    return random() * min(retry.back_off_max_s, retry.back_off_base_s * 2.0**doublings)


def _recent(cluster: Cluster) -> tuple[float, int]:
    """Return the cluster's requests and retries of the last seconds. Looks at counters when a retry is wanted, so that
    requests that need none pay nothing."""
    now = cluster.now()
    samples = cluster.retry_samples  # (time, requests so far, retries so far), the newest last
    # Those in back-off are counted as retries, but have not been picked.
    requests = cluster.picks - cluster.retries + cluster.active_retries
    if not samples or now - samples[-1][0] >= SAMPLE_EVERY_S:
        # The first sample begins a window that nobody has counted: all requests so far are its.
        samples.append((now, requests if samples else 0, cluster.retries if samples else 0))
    while len(samples) > 1 and now - samples[1][0] >= BUDGET_WINDOW_S:
        samples.popleft()
    since, requests_then, retries_then = samples[0]
    # After a quiet time the oldest sample is older than the window: take the mean of the time since.
    elapsed_s = max(now - since, BUDGET_WINDOW_S)
    return (requests - requests_then) * BUDGET_WINDOW_S / elapsed_s, cluster.retries - retries_then


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
