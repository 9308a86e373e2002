"""The router: agrees with the rules read one by one, whatever the routes; and each rule as a story."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.config import (
    DirectAnswer,
    Forward,
    HeaderMatch,
    Listener,
    Route,
    RouteMatch,
    StringMatch,
    WeightedCluster,
)
from meshproxy.message import RequestHead
from meshproxy.route import Router, host_of


def head(path: str = "/", *, host: str = "a.b", method: str = "GET", **fields: str) -> RequestHead:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return RequestHead(method.encode(), b"http", host.encode(), path.encode(), lines)


def route(name: str, match: RouteMatch | None = None) -> Route:
    return Route(name=name, match=match or RouteMatch(), action=DirectAnswer(status=200))


def taken_by(listener: Listener, request: RequestHead) -> str | None:
    plan = Router(listener).find(request)
    return None if plan is None else plan.route.name


def fits(match: RouteMatch, request: RequestHead) -> bool:
    """The rules of meshproxy/route.py's docstring, slow and obvious."""
    host, bare = host_of(request.authority), request.path.partition(b"?")[0].decode()
    hosts = (h.lower() for h in match.hosts)
    if not any(h in ("*", host) or (h.startswith("*.") and host.endswith(h[1:]) and host != h[1:]) for h in hosts):
        return False
    if match.path.exact is not None and bare != match.path.exact:
        return False
    if match.path.regex is not None and not re.fullmatch(match.path.regex, bare):
        return False
    if (prefix := match.path.prefix) is not None and prefix != "/":
        within = prefix if prefix.endswith("/") else prefix + "/"
        if bare != prefix and not bare.startswith(within):
            return False
    if match.methods and request.method.decode() not in match.methods:
        return False
    for header in match.headers:
        found = [value.decode() for name, value in request.fields if name.decode() == header.name]
        if header.value is None and bool(found) == header.invert:
            return False
        if header.value is not None and (not found or (header.value.exact in found) == header.invert):
            return False
    return True


HOSTS = st.sampled_from(["a.b", "A.B", "x.a.b", "b", "a.b:8080", "c", ".b", "[::1]:80", "a.b."])
PATHS = st.sampled_from(["/", "/x", "/x/", "/x/y", "/xy", "/x?y=/x/y", "//", "/x//y", "*", "/x/y/z", "/%78", "/x/../y"])
STRINGS = st.sampled_from(["/", "/x", "/x/", "/x/y", "/xy", "//", "/x//", "/x/y/z"])
MATCHES = st.builds(
    RouteMatch,
    hosts=st.lists(st.sampled_from(["a.b", "*.b", "*", "c", "*.a.b", "[::1]"]), min_size=1, max_size=2).map(tuple),
    path=st.one_of(
        STRINGS.map(lambda text: StringMatch(prefix=text)),
        STRINGS.map(lambda text: StringMatch(exact=text)),
        st.sampled_from(["/x.*", "/[xy]", ".*"]).map(lambda text: StringMatch(regex=text)),
    ),
    methods=st.sampled_from([(), ("GET",), ("GET", "PUT")]),
    headers=st.one_of(
        st.just(()),
        st.builds(
            HeaderMatch,
            name=st.just("v"),
            value=st.sampled_from([None, StringMatch(exact="1")]),
            invert=st.booleans(),
        ).map(lambda match: (match,)),
    ),
)
REQUESTS = st.builds(
    lambda host, path, method, values: RequestHead(
        method.encode(), b"http", host.encode(), path.encode(), [(b"v", value) for value in values]
    ),
    HOSTS,
    PATHS,
    st.sampled_from(["GET", "PUT", "POST"]),
    st.lists(st.sampled_from([b"1", b"2"]), max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(MATCHES, max_size=5), st.lists(REQUESTS, min_size=1, max_size=6))
def test_the_router_finds_what_the_rules_say(matches: list[RouteMatch], requests: list[RequestHead]) -> None:
    routes = tuple(route(str(number), match) for number, match in enumerate(matches))
    router = Router(Listener(name="in", port=80, routes=routes))
    for request in (*requests, *requests):  # the second time by its memory
        expected = next((r.name for r in routes if fits(r.match, request)), None)
        plan = router.find(request)
        assert (plan.route.name if plan else None) == expected


@pytest.mark.parametrize(
    ("prefix", "path", "takes"),
    [
        ("/api", "/api", True),
        ("/api", "/api?q=1", True),
        ("/api", "/api/", True),
        ("/api", "/api/v1", True),
        ("/api", "/apis", False),
        ("/api/", "/api", False),
        ("/api/", "/api/v1", True),
        ("/", "*", True),
        ("/api", "*", False),
        ("/api", "/API", False),
        ("/api", "/x/../api", False),
        ("/api", "/%61pi", False),
    ],
)
def test_a_prefix_ends_where_a_segment_ends(prefix: str, path: str, takes: bool) -> None:
    listener = Listener(name="in", port=80, routes=(route("r", RouteMatch(path=StringMatch(prefix=prefix))),))
    assert (taken_by(listener, head(path)) == "r") is takes


def test_hosts_are_compared_without_port_case_and_final_dot() -> None:
    listener = Listener(name="in", port=80, routes=(route("r", RouteMatch(hosts=("Shop.Example",))),))
    assert taken_by(listener, head(host="shop.EXAMPLE:8080")) == "r"
    assert taken_by(listener, head(host="shop.example.")) == "r"
    assert taken_by(listener, head(host="a.shop.example")) is None


def test_a_wildcard_needs_something_in_its_place() -> None:
    listener = Listener(name="in", port=80, routes=(route("r", RouteMatch(hosts=("*.example",))),))
    assert taken_by(listener, head(host="a.b.example")) == "r"
    assert taken_by(listener, head(host="example")) is None
    assert taken_by(listener, head(host=".example")) is None


def test_the_memory_is_bounded() -> None:
    routes = (route("x", RouteMatch(path=StringMatch(regex="/x/.*"))), route("rest"))
    router = Router(Listener(name="in", port=80, routes=routes))
    for number in range(10_000):
        plan = router.find(head(f"/x/{number}", host=f"h{number}"))
        assert plan is not None
        assert plan.route.name == "x"
    assert len(router._hosts) <= 4096
    assert len(router._paths) <= 4096


def test_a_router_that_looks_at_headers_says_so() -> None:
    match = RouteMatch(headers=(HeaderMatch(name="v"),))
    assert Router(Listener(name="in", port=80, routes=(route("r", match),))).needs_headers
    assert not Router(Listener(name="in", port=80, routes=(route("r"),))).needs_headers


def test_weights_share_the_requests() -> None:
    shares = (
        WeightedCluster(cluster="a", weight=3),
        WeightedCluster(cluster="none", weight=0),
        WeightedCluster(cluster="b"),
    )
    plan = Router(Listener(name="in", port=80, routes=(Route(name="r", action=Forward(clusters=shares)),))).plans[0]
    picked = [plan.pick_cluster(lambda number=number: number / 100) for number in range(100)]  # type: ignore[misc]
    assert {name: picked.count(name) for name in picked} == {"a": 75, "b": 25}
