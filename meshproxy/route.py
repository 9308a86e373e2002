"""The router: which route takes a request. The first that fits, in the order of the configuration.

Hosts: `a.b`, `*.b` (any number of labels before it, as in Envoy) or `*`; letter case and port do not matter. Paths are
matched as they were sent, without their query: nothing is decoded, `..` and `//` are not resolved (Envoy's default;
whoever guards paths by routes must guard at the endpoint, too). A prefix ends where a segment ends (Envoy's
path_separated_prefix, Gateway API's PathPrefix): `/api` takes `/api` and `/api/x`, not `/apix`; a prefix that ends in
`/` takes only what comes after it. An expression must match the whole path. A header fits by any of its lines; one that
is not there fits no value, inverted or not.

Cost: one look-up for the authority; where one route takes all of a host, that is all (0.1 us). Else exact paths by
look-up and prefixes by two look-ups a segment (0.9 us, with ten routes or with a thousand). Only where there are
expressions, which are tried in turn, are answers remembered by host, path and method: elsewhere, to remember a path
that does not come again (2.3 us) costs more than to find it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from meshproxy.config import HeaderMatch, Listener, StringMatch
from meshproxy.message import RequestHead
from meshproxy.metrics import Statistics
from meshproxy.route_plan import RoutePlan, plan_route

# What one router remembers of hosts, and of paths. Full, a memory is emptied: cheaper than to order it by age.
_CACHE_ENTRIES = 4096

_HeaderTest = Callable[[RequestHead], bool]


class _Candidate:
    """One route in the order of the configuration, with the part of its match that is no host and no path."""

    __slots__ = ("headers", "index", "methods", "plan")

    def __init__(self, index: int, plan: RoutePlan) -> None:
        match = plan.route.match
        self.index = index
        self.plan = plan
        self.methods = frozenset(method.encode() for method in match.methods)
        self.headers: tuple[_HeaderTest, ...] = tuple(_header_test(header) for header in match.headers)

    def __repr__(self) -> str:
        return f"_Candidate({self.index}, {self.plan.route.name!r})"

    def takes(self, head: RequestHead) -> bool:
        if self.methods and head.method not in self.methods:
            return False
        return all(test(head) for test in self.headers)


class _Group:
    """Candidates that fit a path by an exact path or a prefix, in order."""

    __slots__ = ("candidates", "sure")

    def __init__(self, candidates: list[_Candidate]) -> None:
        self.candidates = candidates
        first = candidates[0]
        # The plan of whatever request has such a path, where the first candidate looks at nothing else.
        self.sure = first.plan if not first.methods and not first.headers else None

    def __repr__(self) -> str:
        return f"_Group({self.candidates!r})"


class _HostRoutes:
    """The routes of one host. The longest prefix that fits names its group, which holds those of shorter ones, too."""

    __slots__ = ("exact", "needs_headers", "only", "regexes", "segments", "slashes")

    def __init__(self, candidates: list[_Candidate]) -> None:
        self.needs_headers = any(candidate.headers for candidate in candidates)
        self.regexes: list[tuple[re.Pattern[bytes], _Candidate]] = []
        exact: dict[bytes, list[_Candidate]] = {}
        prefixes: dict[bytes, list[_Candidate]] = {}
        for candidate in candidates:
            path = candidate.plan.route.match.path
            if path.regex is not None:
                self.regexes.append((re.compile(path.regex.encode()), candidate))
            elif path.exact is not None:
                exact.setdefault(path.exact.encode(), []).append(candidate)
            else:
                prefixes.setdefault((path.prefix or "/").encode(), []).append(candidate)

        def group(path: bytes, *, own: list[_Candidate]) -> _Group:
            found = [*own, *(one for prefix in _prefixes_of(path) for one in prefixes.get(prefix, ()))]
            return _Group(sorted(found, key=lambda candidate: candidate.index))

        self.exact = {path: group(path, own=own) for path, own in exact.items()}
        # `/a` ends with its segment, `/a/` is followed by something.
        self.segments = {path: group(path, own=[]) for path in prefixes if not path.endswith(b"/")}
        self.slashes = {path: group(path, own=[]) for path in prefixes if path.endswith(b"/")}
        # The route that takes whatever is asked of this host.
        self.only: RoutePlan | None = None
        if candidates and candidates[0].plan.route.match.path == StringMatch(prefix="/"):
            self.only = self.slashes[b"/"].sure

    def search(self, head: RequestHead, bare: bytes) -> RoutePlan | None:
        """The plan of the first route that fits. `bare`: the path without its query."""
        group = self.exact.get(bare) or self._prefix_group(bare)
        best: _Candidate | None = None
        if group is not None:
            if group.sure is not None and not self.regexes:
                return group.sure
            for candidate in group.candidates:
                if candidate.takes(head):
                    best = candidate
                    break
        for regex, candidate in self.regexes:
            if best is not None and candidate.index > best.index:
                break
            if candidate.takes(head) and regex.fullmatch(bare):
                best = candidate
                break
        return None if best is None else best.plan

    def _prefix_group(self, bare: bytes) -> _Group | None:
        """The group of the longest prefix, by at most two look-ups for each segment of the path."""
        segments, slashes = self.segments, self.slashes
        if not bare.startswith(b"/"):  # `*`, of OPTIONS: has no prefix but the one that takes everything
            return slashes.get(b"/")
        if bare in segments:
            return segments[bare]
        end = bare.rfind(b"/")
        while end > 0:
            if slashes and (group := slashes.get(bare[: end + 1])) is not None:
                return group
            if segments and (group := segments.get(bare[:end])) is not None:
                return group
            end = bare.rfind(b"/", 0, end)
        return slashes.get(b"/")


def _prefixes_of(path: bytes) -> list[bytes]:
    """Every prefix that takes `path` (or all of what the prefix `path` takes)."""
    found = {b"/", path}
    end = path.find(b"/")
    while end >= 0:
        found.update((path[:end], path[: end + 1]))
        end = path.find(b"/", end + 1)
    return list(found)


class Router:
    """The routes of one listener. Immutable but for its memory; a reload makes a new one."""

    __slots__ = ("_exact", "_hosts", "_open", "_paths", "_plans", "_suffix", "needs_headers")

    def __init__(self, listener: Listener, statistics: Statistics | None = None) -> None:
        statistics = statistics if statistics is not None else Statistics()
        self._plans = tuple(
            plan_route(route, listener=listener.name, statistics=statistics) for route in listener.routes
        )
        # A caller may remember answers by (authority, path, method) where no route looks at headers.
        self.needs_headers = any(route.match.headers for route in listener.routes)
        self._hosts: dict[bytes, _HostRoutes] = {}
        self._paths: dict[tuple[bytes, bytes, bytes], RoutePlan | None] = {}
        # Which routes name a host: exactly, by a suffix (`*.b` as `.b`), or take all.
        self._exact: dict[str, list[_Candidate]] = {}
        self._suffix: dict[str, list[_Candidate]] = {}
        self._open: list[_Candidate] = []
        for index, plan in enumerate(self._plans):
            candidate = _Candidate(index, plan)
            for host in dict.fromkeys(host.lower() for host in plan.route.match.hosts):
                if host == "*":
                    self._open.append(candidate)
                elif host.startswith("*"):
                    self._suffix.setdefault(host[1:], []).append(candidate)
                else:
                    self._exact.setdefault(host, []).append(candidate)

    def __repr__(self) -> str:
        return f"Router({len(self._plans)} routes, {len(self._hosts)} hosts remembered)"

    @property
    def plans(self) -> tuple[RoutePlan, ...]:
        return self._plans

    def find(self, head: RequestHead) -> RoutePlan | None:
        """The plan of the first route that takes the request; None: none does."""
        try:
            host = self._hosts[head.authority]
        except KeyError:
            host = self._remember(head.authority)
        if host.only is not None:
            return host.only
        bare = head.path.partition(b"?")[0]
        if host.needs_headers or not host.regexes:
            return host.search(head, bare)
        key = (head.authority, bare, head.method)
        try:
            return self._paths[key]
        except KeyError:
            plan = host.search(head, bare)
            if len(self._paths) >= _CACHE_ENTRIES:
                self._paths.clear()
            self._paths[key] = plan
            return plan

    def _remember(self, authority: bytes) -> _HostRoutes:
        host = host_of(authority)
        found = {candidate.index: candidate for candidate in (*self._exact.get(host, ()), *self._open)}
        dot = host.find(".") if self._suffix else -1
        while dot >= 0:
            # `*.b` needs something before the dot.
            if dot:
                found.update((candidate.index, candidate) for candidate in self._suffix.get(host[dot:], ()))
            dot = host.find(".", dot + 1)
        routes = _HostRoutes([found[index] for index in sorted(found)])
        if len(self._hosts) >= _CACHE_ENTRIES:
            self._hosts.clear()
        self._hosts[authority] = routes
        return routes


def host_of(authority: bytes) -> str:
    """The host of an authority: lower case, no port, no final dot of a fully qualified name."""
    text = authority.decode("latin-1").lower()
    host, colon, port = text.rpartition(":")
    if colon and (port.isdigit() or not port) and (":" not in host or host.endswith("]")):
        text = host
    return text.removesuffix(".")


def _header_test(match: HeaderMatch) -> _HeaderTest:
    name = match.name.lower().encode("latin-1")
    fits = None if match.value is None else string_test(match.value)
    invert = match.invert

    def test(head: RequestHead) -> bool:
        values = field_values(head, name)
        if fits is None:
            return bool(values) != invert
        # A header that is not there has no value to differ by: it fits neither way.
        return bool(values) and any(map(fits, values)) != invert

    return test


def field_values(head: RequestHead, name: bytes) -> list[bytes]:
    """A field's lines; `host` is the authority."""
    if name == b"host":
        return [head.authority]
    return [value for field_name, value in head.fields if field_name == name]


def string_test(match: StringMatch) -> Callable[[bytes], bool]:
    if match.exact is not None:
        return match.exact.encode().__eq__
    if match.prefix is not None:
        prefix = match.prefix.encode()
        return lambda value: value.startswith(prefix)
    assert match.regex is not None
    fullmatch = re.compile(match.regex.encode()).fullmatch
    return lambda value: fullmatch(value) is not None
