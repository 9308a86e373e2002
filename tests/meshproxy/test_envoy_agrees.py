"""The claim of claims: a key goes to the endpoint to which a real Envoy sends it, 20,000 of 20,000.

Envoy discovers its endpoints from files that change under it, as our cluster gets snapshots: 3 endpoints up to 200,
with and without weights, some leave, others join in between. One server answers for all, with the address asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from random import Random

import pytest
from xxhash import xxh64_intdigest

from meshproxy.cluster import Cluster
from meshproxy.config import Balancing, EndpointConfig
from tests.meshproxy.addresses import answers, endpoint_server
from tests.meshproxy.clusters import cluster, endpoints
from tests.meshproxy.envoy import BINARY, CLUSTER_HEADER, KEY_HEADER, Envoy, Json, running_envoy

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"no Envoy at {BINARY}")

KEYS = 20_000  # of each policy, with and without weights
UPDATE_S = 30
POLICIES: dict[str, Json] = {
    "maglev": {"lb_policy": "MAGLEV"},
    "ring": {"lb_policy": "RING_HASH"},
    "maglev-weighted": {"lb_policy": "MAGLEV"},
    "ring-weighted": {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 4096}},
}
BALANCING = {
    "maglev": Balancing(policy="maglev"),
    "ring": Balancing(policy="ring_hash"),
    "maglev-weighted": Balancing(policy="maglev"),
    "ring-weighted": Balancing(policy="ring_hash", ring_minimum_size=4096),
}
# A life of a service: numbers of endpoints, in the order of the snapshot.
LIFE: tuple[tuple[str, list[int]], ...] = (
    ("three", [0, 1, 2]),
    ("one leaves", [0, 2]),
    ("many join, some before those that stay", [*range(40, 60), 2, 7, 0, 9]),
    ("two hundred", Random(1).sample(range(240), 200)),
    ("ten leave", Random(1).sample(range(240), 200)[10:]),
    ("others join in between", Random(2).sample(range(300), 200)),
)


async def ask(port: int, name: str, keys: list[bytes]) -> list[str]:
    """Return where Envoy sends each key."""
    return await answers(
        port,
        [
            b"GET / HTTP/1.1\r\nhost: a\r\n%b: %b\r\n%b: %b\r\n\r\n"
            % (CLUSTER_HEADER.encode(), name.encode(), KEY_HEADER.encode(), key)
            for key in keys
        ],
    )


def ours(subject: Cluster, keys: list[bytes]) -> list[str]:
    picked = [subject.pick(xxh64_intdigest(key)) for key in keys]
    return [one.key for one in picked if one is not None]


async def settle(envoy: Envoy, name: str, subject: Cluster) -> None:
    """Wait until Envoy's worker goes by the new endpoints: its main thread knows them a moment before."""
    probe = [b"probe-%d" % number for number in range(64)]
    wanted = {one.key for one in subject.endpoints}
    async with asyncio.timeout(UPDATE_S):
        while await asyncio.to_thread(envoy.members, name) != wanted:
            await asyncio.sleep(0.01)
    with contextlib.suppress(TimeoutError):  # then let the claim itself say what differs
        async with asyncio.timeout(UPDATE_S):
            while await ask(envoy.port, name, probe) != ours(subject, probe):
                await asyncio.sleep(0.01)


def snapshot(numbers: list[int], *, port: int, is_weighted: bool) -> tuple[EndpointConfig, ...]:
    weights = [Random(number).choice((1, 1, 2, 3, 7, 10, 100)) for number in numbers]
    found = endpoints(numbers, port=port, weights=weights if is_weighted else None)
    if len(found) > 5:  # one of them speaks IPv6
        found = (*found[:4], EndpointConfig(address="::1", port=port, weight=found[4].weight), *found[5:])
    return found


async def compare(envoy: Envoy, name: str) -> list[str]:
    """Live the life of a service on both sides; return what differs."""
    differing: list[str] = []
    subject = cluster(balancing=BALANCING[name])
    per_chapter = -(-KEYS // len(LIFE))
    asked = 0
    async with endpoint_server() as port:
        for chapter, numbers in LIFE:
            members = snapshot(numbers, port=port, is_weighted=name.endswith("weighted"))
            envoy.set_endpoints(name, members)
            subject.update(members)
            await settle(envoy, name, subject)
            keys = [b"user-%d-%s" % (number, name.encode()) for number in range(asked, asked + per_chapter)]
            asked += len(keys)
            theirs = await ask(envoy.port, name, keys)
            differing += [
                f"{chapter}: {key.decode()} at {their}, we say {our}"
                for key, their, our in zip(keys, theirs, ours(subject, keys), strict=True)
                if their != our
            ]
    assert asked >= KEYS
    return differing


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with running_envoy(tmp_path_factory.mktemp("envoy"), POLICIES) as running:
        yield running


@pytest.mark.parametrize("name", POLICIES)
def test_every_key_goes_where_envoy_sends_it(envoy: Envoy, name: str) -> None:
    differing = asyncio.run(compare(envoy, name))
    assert not differing, f"{len(differing)} of {KEYS}, e.g. {differing[:3]}"
