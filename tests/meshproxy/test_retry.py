"""What is repeated, how often, how late."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy import retry
from meshproxy.config import CircuitBreaker, Retry, RetryCondition
from meshproxy.message import ProxyError
from tests.meshproxy.clusters import Clock, cluster, endpoints


def asked(*conditions: RetryCondition, **details: object) -> Retry:
    return Retry(retry_on=conditions, **details)  # type: ignore[arg-type]


def error(kind: str, *, unprocessed: bool = False) -> ProxyError:
    return ProxyError(side="endpoint", kind=kind, unprocessed=unprocessed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "status", "is_repeated"),
    [
        ("5xx", 500, True),
        ("5xx", 503, True),
        ("5xx", 499, False),
        ("gateway-error", 502, True),
        ("gateway-error", 504, True),
        ("gateway-error", 500, False),
        ("retriable-4xx", 409, True),
        ("retriable-4xx", 404, False),
        ("retriable-status-codes", 418, True),
        ("retriable-status-codes", 417, False),
        ("reset", 503, False),
        ("connect-failure", 503, False),
    ],
)
def test_statuses(condition: RetryCondition, status: int, is_repeated: bool) -> None:
    policy = asked(condition, retriable_status_codes=(418,))
    assert retry.decide(policy, method=b"GET", attempts_made=1, status=status) is is_repeated


@pytest.mark.parametrize(
    ("condition", "kind", "is_repeated"),
    [
        ("5xx", "reset", True),
        ("5xx", "per-try-timeout", True),
        ("5xx", "connect-timeout", True),
        ("gateway-error", "reset", True),
        ("reset", "reset", True),
        ("reset", "bad-answer", True),
        ("reset", "timeout", False),
        ("connect-failure", "connect-failure", True),
        ("connect-failure", "reset", False),
        ("refused-stream", "refused-stream", True),
        ("refused-stream", "reset", False),
        ("retriable-4xx", "reset", False),
    ],
)
def test_errors(condition: RetryCondition, kind: str, is_repeated: bool) -> None:
    assert retry.decide(asked(condition), method=b"GET", attempts_made=1, error=error(kind)) is is_repeated


@pytest.mark.parametrize(("status", "condition"), retry.GRPC_CONDITIONS.items())
def test_a_named_grpc_status_is_repeated_though_grpc_is_post(status: int, condition: RetryCondition) -> None:
    ask = {"method": b"POST", "attempts_made": 1, "status": 200}
    assert retry.decide(asked(condition), grpc_status=status, **ask)  # type: ignore[arg-type]
    assert not retry.decide(asked(condition), grpc_status=status + 1, **ask)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"FROB", b"CONNECT"])
def test_what_may_have_worked_is_not_repeated_unless_the_route_says_so(method: bytes) -> None:
    everything = asked("5xx", "reset", "connect-failure", "refused-stream")
    for failure in ({"status": 503}, {"error": error("reset")}, {"error": error("per-try-timeout")}):
        assert not retry.decide(everything, method=method, attempts_made=1, **failure)
        assert retry.decide(
            asked("5xx", retry_non_idempotent=True),
            method=method,
            attempts_made=1,
            **failure,
        )


def test_what_was_provably_unprocessed_is_repeated_without_being_asked_but_not_for_ever() -> None:
    failure = error("reset", unprocessed=True)
    made = [retry.decide(Retry(), method=b"POST", attempts_made=number, error=failure) for number in range(1, 5)]
    assert made == [True, True, False, False]


def test_nothing_else_is_repeated_without_being_asked() -> None:
    assert not retry.decide(Retry(), method=b"GET", attempts_made=1, error=error("reset"))
    assert not retry.decide(Retry(), method=b"GET", attempts_made=1, status=503)


def test_the_number_of_retries_is_the_routes() -> None:
    policy = asked("5xx", num_retries=2)
    assert [retry.decide(policy, method=b"GET", attempts_made=made, status=500) for made in (1, 2, 3)] == [
        True,
        True,
        False,
    ]


def test_what_cannot_be_replayed_is_not() -> None:
    assert not retry.decide(asked("5xx"), method=b"GET", attempts_made=1, status=500, replayable=False)
    unprocessed = error("reset", unprocessed=True)
    assert not retry.decide(Retry(), method=b"GET", attempts_made=1, error=unprocessed, replayable=False)


def test_the_proxys_and_the_clients_own_failures_are_not_repeated() -> None:
    for failure in (
        ProxyError(side="proxy", kind="overflow"),
        ProxyError(side="client", kind="client-gone"),
        ProxyError(side="proxy", kind="no-healthy-endpoint"),
    ):
        assert not retry.decide(asked("5xx", "reset"), method=b"GET", attempts_made=1, error=failure)


def test_what_the_next_proxy_has_given_up_is_not_begun_again() -> None:
    assert not retry.decide(asked("5xx"), method=b"GET", attempts_made=1, status=503, gave_up=True)


def test_back_off_has_full_jitter_up_to_its_cap() -> None:
    policy = Retry()
    assert [retry.back_off_s(policy, attempt, lambda: 1.0) for attempt in (1, 2, 3, 4, 5, 50, 5000)] == [
        0.025,
        0.05,
        0.1,
        0.2,
        0.25,
        0.25,
        0.25,
    ]
    assert retry.back_off_s(policy, 3, lambda: 0.0) == 0


def test_an_endpoint_that_says_when_is_believed() -> None:
    assert retry.back_off_s(Retry(), 1, lambda: 0.5, 3.0) == 3.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"3", 3.0), (b" 0 ", 0.0), (b"-1", None), (b"1.5", None), (b"", None), (b"9" * 40, None), (b"soon", None)],
)
def test_retry_after_in_seconds(value: bytes, seconds: float | None) -> None:
    assert retry.retry_after_s(value, date=None) == seconds


def test_retry_after_as_a_date_is_reckoned_from_the_answers_own_date() -> None:
    date = b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert retry.retry_after_s(b"Sun, 06 Nov 1994 08:49:47 GMT", date=date) == 10
    assert retry.retry_after_s(b"Sun, 06 Nov 1994 08:49:27 GMT", date=date) == 0
    assert retry.retry_after_s(b"Sun, 06 Nov 1994 08:49:47 GMT", date=None) is None


def test_a_second_attempt_beside_a_slow_first_only_where_asked_and_safe() -> None:
    hedged = Retry(per_try_timeout_s=1, hedge_on_per_try_timeout=True)
    assert retry.decide_hedge(hedged, method=b"GET", attempts_made=1)
    assert not retry.decide_hedge(hedged, method=b"GET", attempts_made=2)
    assert not retry.decide_hedge(hedged, method=b"POST", attempts_made=1)
    assert not retry.decide_hedge(hedged, method=b"GET", attempts_made=1, replayable=False)
    assert not retry.decide_hedge(Retry(per_try_timeout_s=1), method=b"GET", attempts_made=1)


# -- the budget


def test_three_retries_at_one_time_are_always_possible() -> None:
    subject = cluster(endpoints([1]))
    subject.active_requests = 1
    assert [retry.take_budget(subject) for _ in range(4)] == [True, True, True, False]
    retry.return_budget(subject)
    assert retry.take_budget(subject)


def test_a_fifth_of_the_active_requests_may_be_retries() -> None:
    subject = cluster(endpoints([1]))
    subject.active_requests = subject.picks = 100
    assert sum(retry.take_budget(subject) for _ in range(100)) == 20


def test_no_budget_is_no_retry() -> None:
    subject = cluster(endpoints([1]), circuit_breaker=CircuitBreaker(retry_budget_percent=0, min_retry_concurrency=0))
    subject.active_requests = subject.picks = 100
    assert not retry.take_budget(subject)


@pytest.mark.parametrize("concurrency", [1, 4, 50])
def test_when_all_fail_attempts_are_at_most_six_fifths_of_requests(concurrency: int) -> None:
    clock = Clock()
    subject = cluster(endpoints([1, 2, 3]), clock=clock)
    requests = attempts = 0
    for _ in range(4000 // concurrency):
        subject.active_requests = concurrency
        retries = 0
        for _ in range(concurrency):
            subject.pick(None)
            requests += 1
            attempts += 1
        for _ in range(concurrency):
            if retry.take_budget(subject):
                subject.pick(None)
                attempts += 1
                retries += 1
        for _ in range(retries):
            retry.return_budget(subject)
        clock.now += 0.01
    assert attempts <= 1.2 * requests + 1
    assert attempts > 1.1 * requests


def test_a_cluster_with_few_requests_still_has_its_retries() -> None:
    clock = Clock()
    subject = cluster(endpoints([1, 2, 3]), clock=clock)
    for _ in range(100):
        clock.now += 2
        subject.active_requests = 1
        subject.pick(None)
        assert retry.take_budget(subject)
        subject.pick(None)
        retry.return_budget(subject)


def test_a_burst_of_failures_after_good_times_is_repeated_in_full() -> None:
    clock = Clock()
    subject = cluster(endpoints([1, 2, 3]), clock=clock)
    subject.active_requests = 100
    for _ in range(100):
        for _ in range(100):
            subject.pick(None)
        clock.now += 0.1
    assert sum(retry.take_budget(subject) for _ in range(20)) == 20


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.floats(0, 5)), max_size=40))
def test_the_budget_is_never_exceeded(steps: list[tuple[int, int, int, float]]) -> None:
    clock = Clock()
    subject = cluster(endpoints([1]), clock=clock)
    for arriving, failing, ending, pause_s in steps:
        clock.now += pause_s
        subject.active_requests += arriving
        subject.picks += arriving
        for _ in range(failing):
            before = subject.active_retries
            if retry.take_budget(subject):
                subject.picks += 1
                assert before + 1 <= max(3, 0.2 * subject.active_requests)
        for _ in range(min(ending, subject.active_retries)):
            retry.return_budget(subject)
        subject.active_requests = max(0, subject.active_requests - ending)
    requests = subject.picks - subject.retries
    windows = 1 + sum(step[3] for step in steps) / retry.BUDGET_WINDOW_S
    assert subject.retries <= max(0.2 * requests, 0) + 10 * (windows + 1)
