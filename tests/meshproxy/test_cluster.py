"""A cluster as the exchange sees it: who is picked, and what a snapshot, a check or an ejection changes."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.balance.builds import TABLES_AHEAD, TableBuilds
from meshproxy.cluster import Cluster, Endpoint
from meshproxy.config import Balancing, HealthCheck, OutlierDetection
from tests.meshproxy.clusters import Clock, Pool, Turns, cluster, endpoints

POLICIES = ("maglev", "ring_hash", "round_robin", "least_request", "random", "peak_ewma")
HASHED = ("maglev", "ring_hash")


def balancing(policy: str, **details: object) -> Balancing:
    return Balancing(policy=policy, maglev_table_size=4093, **details)  # type: ignore[arg-type]


def picked(subject: Cluster, count: int = 2000, *, avoid: Endpoint | None = None) -> Counter[str]:
    random = Random(2)
    found = [subject.pick(random.getrandbits(64), avoid=avoid) for _ in range(count)]
    return Counter(endpoint.key for endpoint in found if endpoint is not None)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_endpoint_is_reached(policy: str) -> None:
    subject = cluster(endpoints(range(20)), balancing=balancing(policy))
    assert set(picked(subject)) == {one.key for one in subject.endpoints}


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_is_picked_where_nobody_is(policy: str) -> None:
    subject = cluster((), balancing=balancing(policy))
    assert subject.pick(1) is None
    assert cluster(endpoints([1]), (), balancing=balancing(policy)).pick(1) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_another_endpoint_is_picked_for_the_next_attempt(policy: str) -> None:
    subject = cluster(endpoints(range(3), weights=[1, 1, 50]), balancing=balancing(policy))
    for avoid in subject.endpoints:
        assert avoid.key not in picked(subject, avoid=avoid)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_only_endpoint_is_picked_again(policy: str) -> None:
    subject = cluster(endpoints([1]), balancing=balancing(policy))
    assert subject.pick(1, avoid=subject.endpoints[0]) is subject.endpoints[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_honoured(policy: str) -> None:
    subject = cluster(endpoints(range(3), weights=[1, 3, 6]), balancing=balancing(policy, ring_minimum_size=20_000))
    counts = picked(subject, 6000)
    for one, weight in zip(subject.endpoints, (1, 3, 6), strict=True):
        assert counts[one.key] / 6000 == pytest.approx(weight / 10, abs=0.03)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_unhealthy_endpoint_is_not_picked(policy: str) -> None:
    turns = Turns()
    subject = cluster(endpoints(range(5)), balancing=balancing(policy), call_soon=turns)
    turns.run()
    ill = subject.endpoints[2]
    subject.set_healthy(ill, is_healthy=False)
    assert ill.key not in picked(subject)  # at once, whatever is still to be built
    turns.run()
    assert ill.key not in picked(subject)
    subject.set_healthy(ill, is_healthy=True)
    turns.run()
    assert ill.key in picked(subject)


@pytest.mark.parametrize("policy", POLICIES)
def test_endpoints_that_stay_are_kept_and_those_that_leave_are_closed(policy: str) -> None:
    subject = cluster(endpoints([1, 2, 3]), balancing=balancing(policy))
    first, second, third = subject.endpoints
    pools = [Pool(), Pool(), Pool()]
    for one, pool in zip(subject.endpoints, pools, strict=True):
        one.pool = pool
        one.requests = 7
    subject.update(endpoints([4, 3, 2]))
    assert subject.endpoints[1:] == (third, second)
    assert [one.requests for one in subject.endpoints] == [0, 7, 7]
    assert [pool.is_closed for pool in pools] == [True, False, False]
    assert first.key not in picked(subject)


@pytest.mark.parametrize("policy", POLICIES)
def test_another_pod_at_the_same_address_is_another_endpoint(policy: str) -> None:
    turns = Turns()
    subject = cluster(endpoints([1, 2], identity="old"), balancing=balancing(policy), call_soon=turns)
    turns.run()
    old = subject.endpoints[0]
    old.pool = pool = Pool()
    subject.update(endpoints([1, 2], identity="new"))
    assert pool.is_closed
    for number in range(100):
        found = subject.pick(Random(number).getrandbits(64))
        assert found is not None
        assert found.config.identity == "new"


def test_a_weight_changes_without_a_new_endpoint() -> None:
    subject = cluster(endpoints([1, 2], weights=[1, 1]), balancing=balancing("maglev"))
    before = subject.endpoints
    subject.update(endpoints([1, 2], weights=[1, 9]))
    assert subject.endpoints == before
    assert picked(subject)[before[1].key] > 1600


def test_a_key_stays_where_it_was_while_its_endpoint_is_there() -> None:
    turns = Turns()
    subject = cluster(endpoints(range(10)), balancing=balancing("maglev"), call_soon=turns)
    turns.run()
    keys = [Random(number).getrandbits(64) for number in range(500)]
    before = {key: subject.pick(key) for key in keys}
    subject.update(endpoints(range(1, 10)))
    gone = set(before.values()) - set(subject.endpoints)
    # Before the new table is there, only keys of the endpoint that left have moved.
    assert all(subject.pick(key) is before[key] for key in keys if before[key] not in gone)
    assert all(subject.pick(key) in subject.endpoints for key in keys)


@pytest.mark.parametrize("policy", HASHED)
def test_all_endpoints_replaced_at_once_leave_no_request_without_one(policy: str) -> None:
    turns = Turns()
    subject = cluster(endpoints(range(10)), balancing=balancing(policy), call_soon=turns)
    turns.run()
    subject.update(endpoints(range(20, 30)))
    assert picked(subject, 500).total() == 500
    turns.run()
    assert set(picked(subject)) == {one.key for one in subject.endpoints}


def test_changes_during_a_build_end_in_the_last_snapshots_table() -> None:
    turns = Turns()
    subject = cluster(endpoints(range(5)), balancing=balancing("maglev"), call_soon=turns)
    for last in range(6, 12):
        turns.step()
        subject.update(endpoints(range(last)))
    turns.run()
    plain = cluster(endpoints(range(11)), balancing=balancing("maglev"))
    keys = [Random(number).getrandbits(64) for number in range(500)]
    assert [str(subject.pick(key)) for key in keys] == [str(plain.pick(key)) for key in keys]


def test_a_first_request_does_not_wait_for_slices_and_goes_where_it_belongs() -> None:
    turns = Turns()
    early = cluster(endpoints(range(7)), balancing=balancing("ring_hash"), call_soon=turns)
    plain = cluster(endpoints(range(7)), balancing=balancing("ring_hash"))
    assert str(early.pick(12345)) == str(plain.pick(12345))


def test_a_first_request_goes_by_the_newest_of_several_snapshots() -> None:
    turns = Turns()
    early = cluster(endpoints(range(7)), endpoints(range(3, 12)), balancing=balancing("maglev"), call_soon=turns)
    plain = cluster(endpoints(range(3, 12)), balancing=balancing("maglev"))
    keys = [Random(number).getrandbits(64) for number in range(300)]
    assert [str(early.pick(key)) for key in keys] == [str(plain.pick(key)) for key in keys]
    turns.run()
    assert [str(early.pick(key)) for key in keys] == [str(plain.pick(key)) for key in keys]


def test_of_many_clusters_those_that_nobody_asks_for_build_nothing() -> None:
    turns = Turns()
    builds = TableBuilds(turns)
    config = cluster(balancing=balancing("maglev")).config
    many = [Cluster(config, clock=Clock(), random=Random(number).random, builds=builds) for number in range(100)]
    for number, one in enumerate(many):
        one.update(endpoints(range(number, number + 3)))
    turns.run()
    assert sum(one._hashed[0].table is not None for one in many) == TABLES_AHEAD
    assert all(one.pick(1) is not None for one in many)


# -- priorities and panic


def with_priorities(*, ill: int, panic: float = 50) -> Cluster:
    """Ten endpoints of priority 0, so many of them ill, and ten of priority 1."""
    subject = cluster(
        endpoints(range(10)) + endpoints(range(10, 20), priority=1),
        balancing=Balancing(policy="round_robin", panic_threshold_percent=panic),
    )
    for one in subject.endpoints[:ill]:
        subject.set_healthy(one, is_healthy=False)
    return subject


def share_of_first(subject: Cluster) -> float:
    first = {one.key for one in subject.endpoints if one.config.priority == 0}
    return sum(count for key, count in picked(subject, 4000).items() if key in first) / 4000


@pytest.mark.parametrize(
    ("ill", "share"),
    [(0, 1.0), (2, 1.0), (3, 0.98), (5, 0.70), (8, 0.28), (10, 0.0)],
)
def test_load_spills_over_by_envoys_overprovisioning(ill: int, share: float) -> None:
    assert share_of_first(with_priorities(ill=ill)) == pytest.approx(share, abs=0.03)


def test_a_cluster_with_too_few_healthy_endpoints_uses_all() -> None:
    subject = cluster(endpoints(range(10)))
    for one in subject.endpoints[:5]:
        subject.set_healthy(one, is_healthy=False)
    assert len(picked(subject)) == 5
    assert subject.stats.panics == 0
    subject.set_healthy(subject.endpoints[5], is_healthy=False)
    assert len(picked(subject)) == 10
    assert subject.stats.panics == 2000


def test_panic_can_be_switched_off() -> None:
    subject = cluster(endpoints(range(4)), balancing=Balancing(panic_threshold_percent=0))
    for one in subject.endpoints:
        subject.set_healthy(one, is_healthy=False)
    assert subject.pick(1) is None


# -- slow start


@pytest.mark.parametrize("policy", ["round_robin", "least_request", "random"])
def test_a_new_endpoint_gets_its_share_slowly(policy: str) -> None:
    clock = Clock()
    subject = cluster(endpoints(range(4)), balancing=balancing(policy, slow_start_s=60), clock=clock)
    clock.now += 100
    subject.update(endpoints(range(5)))
    new = subject.endpoints[4].key
    assert picked(subject, 4000)[new] / 4000 == pytest.approx(0.1 / 4.1, abs=0.02)
    clock.now += 30
    assert picked(subject, 4000)[new] / 4000 == pytest.approx(0.5 / 4.5, abs=0.03)
    clock.now += 30
    assert picked(subject, 4000)[new] / 4000 == pytest.approx(0.2, abs=0.03)


# -- load


def test_least_request_shuns_the_busy() -> None:
    subject = cluster(endpoints(range(4)), balancing=balancing("least_request"))
    subject.endpoints[0].active = 50
    counts = picked(subject, 4000)
    assert counts[subject.endpoints[0].key] / 4000 == pytest.approx(1 / 16, abs=0.02)


def test_peak_ewma_shuns_the_slow_and_forgives() -> None:
    clock = Clock()
    subject = cluster(endpoints(range(2)), balancing=balancing("peak_ewma"), clock=clock)
    slow, fast = subject.endpoints
    slow.report(200, None, 0.5, now=clock.now)
    fast.report(200, None, 0.01, now=clock.now)
    assert picked(subject)[slow.key] == pytest.approx(500, abs=100)  # drawn twice: one in four
    clock.now += 60
    slow.report(200, None, 0.001, now=clock.now)
    fast.report(200, None, 0.3, now=clock.now)
    assert picked(subject)[slow.key] == pytest.approx(1500, abs=100)


def test_an_endpoint_that_fails_at_once_is_not_taken_for_a_fast_one() -> None:
    clock = Clock()
    subject = cluster(endpoints(range(2)), balancing=balancing("peak_ewma"), clock=clock)
    broken, fine = subject.endpoints
    for _ in range(20):
        clock.now += 1
        broken.report(503, None, 0.0001, now=clock.now)
        fine.report(200, None, 0.01, now=clock.now)
    assert picked(subject)[broken.key] <= 600


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=12),
    factor=st.sampled_from([110, 125, 200]),
    policy=st.sampled_from(HASHED),
    seed=st.integers(0, 1000),
)
def test_bounded_load_is_never_exceeded(weights: list[int], factor: int, policy: str, seed: int) -> None:
    subject = cluster(
        endpoints(range(len(weights)), weights=weights),
        balancing=Balancing(
            policy=policy,  # type: ignore[arg-type]
            maglev_table_size=1009,
            hash_balance_factor=factor,
        ),
    )
    random = Random(seed)
    hot = [random.getrandbits(64) for _ in range(3)]  # three keys only: without a bound, three endpoints at most
    for total in range(1, 200):
        endpoint = subject.pick(random.choice(hot))
        assert endpoint is not None
        endpoint.active += 1
        subject.active_requests += 1
        assert endpoint.active <= total * factor / 100 * endpoint.weight / sum(weights) + 1


def test_bounded_load_leaves_a_key_at_home_while_there_is_room() -> None:
    free = cluster(endpoints(range(10)), balancing=balancing("maglev"))
    bounded = cluster(endpoints(range(10)), balancing=balancing("maglev", hash_balance_factor=150))
    for key in (Random(number).getrandbits(64) for number in range(200)):
        assert str(bounded.pick(key)) == str(free.pick(key))


# -- ejection and checks


DETECTION = OutlierDetection(max_ejection_percent=50)


def fail(endpoint: Endpoint, times: int, *, status: int = 500) -> None:
    for _ in range(times):
        endpoint.report(status, None, 0.01)


def test_five_failures_in_a_row_eject_for_thirty_seconds_times_the_count() -> None:
    clock = Clock()
    subject = cluster(endpoints(range(4)), outlier_detection=DETECTION, clock=clock)
    sick = subject.endpoints[0]
    for stay_s in (30, 60, 90):
        fail(sick, 4)
        sick_before = sick.is_ejected
        fail(sick, 1)
        assert sick.is_ejected
        assert sick_before or stay_s > 30 or picked(subject)[sick.key] == 0
        clock.now += stay_s - 1
        subject.end_ejections()
        assert sick.is_ejected
        clock.now += 1
        subject.end_ejections()
        assert not sick.is_ejected
        assert picked(subject)[sick.key] > 0


def test_one_success_begins_the_count_anew() -> None:
    subject = cluster(endpoints(range(4)), outlier_detection=DETECTION)
    sick = subject.endpoints[0]
    fail(sick, 4)
    sick.report(200, None, 0.01)
    fail(sick, 4)
    assert not sick.is_ejected


def test_one_that_comes_back_goes_again_at_its_first_failure() -> None:
    clock = Clock()
    subject = cluster(endpoints(range(4)), outlier_detection=DETECTION, clock=clock)
    sick = subject.endpoints[0]
    fail(sick, 5)
    clock.now += 30
    subject.end_ejections()
    fail(sick, 1)
    assert sick.is_ejected


def test_what_is_not_the_endpoints_fault_does_not_count() -> None:
    subject = cluster(endpoints(range(4)), outlier_detection=DETECTION)
    one = subject.endpoints[0]
    for kind in ("client-gone", "refused-stream", "draining") * 5:
        one.report(None, kind, 0.01)
    assert not one.is_ejected
    for _ in range(5):
        one.report(None, "connect-failure", 0.01)
    assert one.is_ejected
    assert one.connect_failures == 5


def test_gateway_failures_are_counted_for_themselves() -> None:
    detection = OutlierDetection(consecutive_5xx=0, consecutive_gateway_failure=3)
    subject = cluster(endpoints(range(4)), outlier_detection=detection)
    one = subject.endpoints[0]
    fail(one, 10, status=500)
    assert not one.is_ejected
    fail(one, 3, status=503)
    assert one.is_ejected


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), percent=st.sampled_from([0, 1, 10, 33, 50, 100]))
def test_no_more_than_allowed_are_ejected_but_always_one(count: int, percent: float) -> None:
    detection = OutlierDetection(max_ejection_percent=percent)
    subject = cluster(endpoints(range(count)), outlier_detection=detection)
    for one in subject.endpoints:
        fail(one, 20)
    ejected = sum(one.is_ejected for one in subject.endpoints)
    assert ejected == max(1, int(count * percent / 100))


def test_the_only_endpoint_is_used_even_when_ejected() -> None:
    subject = cluster(endpoints([1]), outlier_detection=DETECTION)
    fail(subject.endpoints[0], 5)
    assert subject.pick(1) is subject.endpoints[0]


def test_an_ejection_outlives_a_snapshot() -> None:
    subject = cluster(endpoints(range(4)), outlier_detection=DETECTION)
    fail(subject.endpoints[0], 5)
    subject.update(endpoints(range(8)))
    assert subject.endpoints[0].key not in picked(subject)


def test_where_endpoints_are_checked_new_ones_wait_for_their_first_good_answer() -> None:
    subject = cluster(endpoints(range(3)), health_check=HealthCheck())
    for one in subject.endpoints:
        subject.set_healthy(one, is_healthy=True)
    subject.update(endpoints(range(4)))
    assert subject.endpoints[3].key not in picked(subject)
    subject.set_healthy(subject.endpoints[3], is_healthy=True)
    assert subject.endpoints[3].key in picked(subject)


# -- pauses


def test_two_hundred_endpoints_change_without_a_pause() -> None:
    turns = Turns()
    policy = Balancing(policy="maglev")
    subject = cluster(endpoints(range(200)), balancing=policy, call_soon=turns)
    turns.run()
    for change in range(3):
        subject.update(endpoints(range(change + 1, 201 + change)))
        # The change itself builds nothing; the table comes in at least forty turns of the loop.
        assert len(turns.waiting) == 1
        assert picked(subject, 100).total() == 100
        assert turns.run() > 40


def test_many_clusters_that_change_at_once_take_one_slice_a_turn() -> None:
    turns = Turns()
    subject = cluster(endpoints(range(10)), balancing=balancing("maglev"), call_soon=turns)
    builds = subject._builds
    others = [
        Cluster(subject.config, clock=Clock(), random=Random(number).random, builds=builds) for number in range(20)
    ]
    for number, other in enumerate(others):
        other.update(endpoints(range(number, number + 10)))
    before = builds.slices
    steps = turns.run()
    assert builds.slices - before <= steps
