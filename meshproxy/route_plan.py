"""What a route does with a request, precomputed as bytes: cluster, key, header edits, rewrite, or an answer of our own.

A RoutePlan is frozen and shared by all requests of its route; whatever depends on the request is an argument of a
method. Which plan takes a request is route.py's matter.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from meshproxy.config import DirectAnswer, Forward, HeaderEdits, Redirect, Rewrite, Route
from meshproxy.hash_key import FoundKey, HashKey
from meshproxy.message import Fields, RequestHead, ResponseHead
from meshproxy.metrics import RouteStats, Statistics

_DEFAULT_PORTS = {b"http": 80, b"https": 443}


@dataclass(frozen=True, slots=True)
class FieldEdits:
    """Changes of one head: leave out the fields of `drop`, then append `append`. `lines`: that as HTTP/1 text."""

    drop: frozenset[bytes]
    append: tuple[tuple[bytes, bytes], ...]
    lines: bytes

    def apply(self, fields: Fields) -> Fields:
        drop = self.drop
        return [*(pair for pair in fields if pair[0] not in drop), *self.append]


def precompute(edits: HeaderEdits) -> FieldEdits | None:
    """The edits as bytes; None where there is nothing to do. What is set is dropped first, then appended."""
    append = tuple(
        (name.lower().encode("latin-1"), value.encode())
        for part in (edits.set, edits.add)
        for name, value in part.items()
    )
    drop = frozenset(name.lower().encode("latin-1") for name in (*edits.remove, *edits.set))
    if not append and not drop:
        return None
    return FieldEdits(drop, append, b"".join(b"%s: %s\r\n" % pair for pair in append))


@dataclass(frozen=True, slots=True, eq=False)
class RoutePlan:
    """One route, ready. Exactly one of `forward` and `route.action` as Redirect or DirectAnswer speaks."""

    route: Route
    forward: Forward | None
    cluster: str | None  # the only one of a route without weights: the hot path need not draw
    key: HashKey | None
    request_edits: FieldEdits | None
    response_edits: FieldEdits | None
    rewrites: bool  # target_of() may differ from what the head says
    stats: Mapping[str, RouteStats]  # by cluster; "" for answers of our own
    _names: tuple[str, ...]
    _bounds: tuple[int, ...]
    _rewrite_regex: re.Pattern[bytes] | None

    def pick_cluster(self, random: Callable[[], float]) -> str:
        """The cluster for one request, by weight. `random` gives [0, 1)."""
        if self.cluster is not None:
            return self.cluster
        return self._names[bisect_right(self._bounds, random() * self._bounds[-1])]

    def hash_of(self, head: RequestHead, peer_address: str) -> int | None:
        """The key for maglev and ring hash; None: any endpoint. Where `key.makes_cookies`, call find_key instead."""
        return None if self.key is None else self.key.find(head, peer_address, token=_no_token).hash

    def find_key(self, head: RequestHead, peer_address: str, *, token: Callable[[], bytes]) -> FoundKey:
        """hash_of, with the cookies that were made and must be set on the answer."""
        return FoundKey(None) if self.key is None else self.key.find(head, peer_address, token=token)

    def target_of(self, head: RequestHead) -> tuple[bytes, bytes]:
        """Authority and path to send. Ask only where `rewrites`."""
        assert self.forward is not None
        rewrite = self.forward.rewrite
        authority = head.authority if rewrite.host is None else rewrite.host.encode("latin-1")
        path = head.path
        if rewrite.prefix is not None:
            path = replace_prefix(path, self.route.match.path.prefix or "/", replacement=rewrite.prefix)
        elif self._rewrite_regex is not None:
            bare, mark, query = path.partition(b"?")
            bare = self._rewrite_regex.sub((rewrite.substitution or "").encode(), bare)
            path = (bare if bare.startswith(b"/") else b"/" + bare) + mark + query
        return authority, path

    def answer_to(self, head: RequestHead) -> tuple[ResponseHead, bytes] | None:
        """The answer that the route gives itself, with its body; None where it forwards."""
        match self.route.action:
            case DirectAnswer() as answer:
                body = answer.body.encode()
                return _answer(answer.status, [(b"content-type", answer.content_type.encode())] if body else [], body)
            case Redirect() as redirect:
                matched = self.route.match.path.prefix or "/"
                return _answer(redirect.status, [(b"location", location(redirect, head, matched=matched))], b"")
        return None


def plan_route(route: Route, *, listener: str, statistics: Statistics) -> RoutePlan:
    """Precompute what can be. The configuration is taken as checked."""
    forward = route.action if isinstance(route.action, Forward) else None
    names = tuple(share.cluster for share in forward.clusters if share.weight) if forward else ()
    weights = tuple(share.weight for share in forward.clusters if share.weight) if forward else ()
    rewrite = forward.rewrite if forward else Rewrite()
    return RoutePlan(
        route=route,
        forward=forward,
        cluster=names[0] if len(names) == 1 else None,
        key=HashKey(forward.hash) if forward and forward.hash else None,
        request_edits=precompute(route.request_headers),
        response_edits=precompute(route.response_headers),
        rewrites=rewrite != Rewrite(),
        stats={name: statistics.route(listener, route.name, cluster=name) for name in (*names, "")},
        _names=names,
        _bounds=tuple(accumulate(weights)),
        _rewrite_regex=None if rewrite.regex is None else re.compile(rewrite.regex.encode()),
    )


def replace_prefix(path: bytes, prefix: str, *, replacement: str) -> bytes:
    """`path` with its matched prefix replaced; segments stay segments: no `//`, none run together."""
    rest = path[len(prefix.encode()) :]
    start = replacement.encode()
    if rest.startswith(b"/"):
        start = start.removesuffix(b"/")
    elif rest and not rest.startswith(b"?") and not start.endswith(b"/"):
        start += b"/"
    changed = start + rest
    return changed if changed.startswith(b"/") else b"/" + changed


def location(redirect: Redirect, head: RequestHead, *, matched: str) -> bytes:
    """The Location of a redirect. RFC 9110 10.2.2. The query stays, unless `path` brings its own."""
    scheme = (redirect.scheme or "").encode() or head.scheme
    host, _, port = _split_port(head.authority)
    if redirect.host is not None:
        host, port = redirect.host.encode("latin-1"), b""
    if redirect.port is not None:
        port = b"%d" % redirect.port
    elif redirect.scheme is not None and scheme != head.scheme:
        port = b""  # the port of the other scheme means nothing to this one
    authority = host if not port or int(port) == _DEFAULT_PORTS.get(scheme) else host + b":" + port
    path = b"/" if head.path == b"*" else head.path
    if redirect.path is not None:
        _, mark, query = path.partition(b"?")
        path = redirect.path.encode()
        if b"?" not in path:
            path += mark + query
    elif redirect.prefix is not None:
        path = replace_prefix(path, matched, replacement=redirect.prefix)
    return scheme + b"://" + authority + path


def _split_port(authority: bytes) -> tuple[bytes, bytes, bytes]:
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit() and (b":" not in host or host.endswith(b"]")):
        return host, colon, port
    return authority, b"", b""


def _answer(status: int, fields: Fields, body: bytes) -> tuple[ResponseHead, bytes]:
    return ResponseHead(status, fields, content_length=len(body), has_body=bool(body)), body


def _no_token() -> bytes:
    return b""
