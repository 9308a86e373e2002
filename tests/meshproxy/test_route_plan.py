"""What a route does with a request: edits, rewrites, redirects, answers, keys."""

import pytest
import xxhash

from meshproxy.config import (
    DirectAnswer,
    Forward,
    HashPolicy,
    HeaderEdits,
    Redirect,
    Rewrite,
    Route,
    RouteMatch,
    StringMatch,
    WeightedCluster,
)
from meshproxy.hash_key import FoundKey
from meshproxy.message import Fields, RequestHead
from meshproxy.metrics import Statistics
from meshproxy.route_plan import RoutePlan, plan_route, precompute

WEB = (WeightedCluster(cluster="web"),)


def plan(action: Forward | Redirect | DirectAnswer, *, prefix: str = "/") -> RoutePlan:
    route = Route(name="r", action=action, match=RouteMatch(path=StringMatch(prefix=prefix)))
    return plan_route(route, listener="in", statistics=Statistics())


def head(path: str, fields: Fields | None = None, *, host: str = "a.b:8080") -> RequestHead:
    return RequestHead(b"GET", b"http", host.encode(), path.encode(), fields or [])


def hash_of(policies: tuple[HashPolicy, ...], path: str = "/", fields: Fields | None = None) -> FoundKey:
    made = plan(Forward(clusters=WEB, hash=policies))
    return made.find_key(head(path, fields), "10.0.0.9", token=lambda: b"t0ken")


def test_edits_remove_then_set_then_add() -> None:
    edits = precompute(HeaderEdits(remove=("X-Gone",), set={"X-Set": "1"}, add={"x-more": "2"}))
    assert edits is not None
    fields = [(b"x-gone", b"0"), (b"x-set", b"0"), (b"x-more", b"0"), (b"x-kept", b"0")]
    assert edits.apply(fields) == [(b"x-more", b"0"), (b"x-kept", b"0"), (b"x-set", b"1"), (b"x-more", b"2")]
    assert edits.lines == b"x-set: 1\r\nx-more: 2\r\n"
    assert precompute(HeaderEdits()) is None


@pytest.mark.parametrize(
    ("matched", "replacement", "path", "expected"),
    [
        ("/api", "/", "/api/v1", "/v1"),
        ("/api", "/", "/api", "/"),
        ("/api", "/", "/api?q=1", "/?q=1"),
        ("/api", "/v2", "/api/x?q=1", "/v2/x?q=1"),
        ("/api", "/v2/", "/api/x", "/v2/x"),
        ("/api/", "/v2", "/api/x", "/v2/x"),
        ("/api/", "/v2/", "/api/x", "/v2/x"),
        ("/", "/all", "/x", "/all/x"),
        ("/", "/all", "/?q", "/all?q"),
    ],
)
def test_a_rewritten_prefix_keeps_segments_apart(matched: str, replacement: str, path: str, expected: str) -> None:
    made = plan(Forward(clusters=WEB, rewrite=Rewrite(prefix=replacement)), prefix=matched)
    assert made.rewrites
    assert made.target_of(head(path)) == (b"a.b:8080", expected.encode())


def test_an_expression_rewrites_the_path_but_not_the_query() -> None:
    rewrite = Rewrite(regex="^/user/([0-9]+)", substitution=r"/u\1", host="inner.test")
    made = plan(Forward(clusters=WEB, rewrite=rewrite))
    assert made.target_of(head("/user/7/x?back=/user/8")) == (b"inner.test", b"/u7/x?back=/user/8")


@pytest.mark.parametrize(
    ("redirect", "location"),
    [
        (Redirect(scheme="https"), "https://a.b/api/x?q=1"),
        (Redirect(scheme="https", port=8443), "https://a.b:8443/api/x?q=1"),
        (Redirect(host="c.d"), "http://c.d/api/x?q=1"),
        (Redirect(port=80), "http://a.b/api/x?q=1"),
        (Redirect(path="/new"), "http://a.b:8080/new?q=1"),
        (Redirect(path="/new?p=2"), "http://a.b:8080/new?p=2"),
        (Redirect(prefix="/v2"), "http://a.b:8080/v2/x?q=1"),
    ],
)
def test_a_redirect_keeps_what_it_does_not_name(redirect: Redirect, location: str) -> None:
    answer = plan(redirect, prefix="/api").answer_to(head("/api/x?q=1"))
    assert answer is not None
    assert (answer[0].status, answer[0].fields) == (301, [(b"location", location.encode())])


def test_an_answer_of_our_own_has_its_length() -> None:
    answer = plan(DirectAnswer(status=418, body="té")).answer_to(head("/"))
    assert answer is not None
    assert (answer[0].status, answer[0].content_length, answer[1]) == (418, 3, "té".encode())
    assert plan(Forward(clusters=WEB)).answer_to(head("/")) is None


def test_a_key_is_the_hash_of_what_its_policy_names() -> None:
    assert hash_of((HashPolicy(header="X-User"),), fields=[(b"x-user", b"7")]) == FoundKey(xxhash.xxh64_intdigest(b"7"))
    assert hash_of((HashPolicy(query="u"),), "/?v=1&u=a%20b&u=2").hash == xxhash.xxh64_intdigest(b"a%20b")
    assert hash_of((HashPolicy(source_address=True),)).hash == xxhash.xxh64_intdigest(b"10.0.0.9")
    cookie: Fields = [(b"cookie", b'a=1; sid="x"'), (b"cookie", b"sid=later")]
    assert hash_of((HashPolicy(cookie="sid"),), fields=cookie).hash == xxhash.xxh64_intdigest(b"x")
    assert hash_of((HashPolicy(header="x-user"),)).hash is None
    assert hash_of((HashPolicy(query="u"),)).hash is None


def test_several_parts_combine_as_in_envoy() -> None:
    fields: Fields = [(b"a", b"1"), (b"b", b"2")]
    one, two = xxhash.xxh64_intdigest(b"1"), xxhash.xxh64_intdigest(b"2")
    both = (((one << 1) | (one >> 63)) & (2**64 - 1)) ^ two
    assert hash_of((HashPolicy(header="a"), HashPolicy(header="b")), fields=fields).hash == both
    assert hash_of((HashPolicy(header="a", terminal=True), HashPolicy(header="b")), fields=fields).hash == one
    assert hash_of((HashPolicy(header="c", terminal=True), HashPolicy(header="b")), fields=fields).hash == two


def test_the_lines_of_one_header_are_one_part_in_any_order() -> None:
    policy = (HashPolicy(header="a"),)
    first = hash_of(policy, fields=[(b"a", b"1"), (b"a", b"2")])
    assert first == hash_of(policy, fields=[(b"a", b"2"), (b"a", b"1")])
    assert first != hash_of(policy, fields=[(b"a", b"1")])


def test_a_missing_cookie_is_made_where_it_has_a_life() -> None:
    made = hash_of((HashPolicy(cookie="sid", cookie_ttl_s=60, cookie_path="/x"),))
    assert made == FoundKey(xxhash.xxh64_intdigest(b"t0ken"), (b"sid=t0ken; Max-Age=60; Path=/x; HttpOnly",))
    assert hash_of((HashPolicy(cookie="sid", cookie_ttl_s=0),)).cookies == (b"sid=t0ken; Path=/; HttpOnly",)
    assert hash_of((HashPolicy(cookie="sid"),)) == FoundKey(None)
    kept = hash_of((HashPolicy(cookie="sid", cookie_ttl_s=60),), fields=[(b"cookie", b"sid=mine")])
    assert kept == FoundKey(xxhash.xxh64_intdigest(b"mine"))
