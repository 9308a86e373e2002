"""One YAML file to a Config, strictly; conf/meshproxy.yaml documents every key.

What is refused, with file, line, what was expected and what was found: an unknown or repeated key, a wrong type, an
impossible value, a name that is not defined, a route that no request can reach. All faults at once. The keys are the
dataclasses' fields (config_reader.py); here are the short forms and what must fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from meshproxy.config import (
    AccessLog,
    Admin,
    ClusterConfig,
    Config,
    DirectAnswer,
    DnsDiscovery,
    EndpointConfig,
    FileDiscovery,
    Forward,
    HashPolicy,
    HeaderMatch,
    Listener,
    Mirror,
    Redirect,
    Route,
    RouteMatch,
    StaticDiscovery,
    StringMatch,
    WeightedCluster,
)
from meshproxy.config_checks import CHECKS, find_unreachable
from meshproxy.config_reader import BAD, Reader, is_null, join, keys_of, line_of, some

# libyaml's parser where PyYAML was built with it: ten times faster, the same nodes.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_Pairs = list[tuple[str, yaml.Node, yaml.Node]]


@dataclass(slots=True)  # not frozen: raising sets __traceback__
class ConfigFault(Exception):
    """A file that cannot be used, with every reason, in the order of lines. Nothing of it has been applied."""

    path: str
    faults: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        return "\n".join(f"{self.path}:{line}: {text}" for line, text in self.faults)


def load(path: str) -> Config:
    """Read a file. Raises ConfigFault; a file that cannot be opened is one, too."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ConfigFault(path, ((0, f"cannot be read: {error.strerror or error}"),)) from error
    except UnicodeDecodeError as error:
        raise ConfigFault(path, ((1 + error.object[: error.start].count(b"\n"), "expected UTF-8 text"),)) from error
    return parse(text, path=path)


def parse(text: str, *, path: str = "config") -> Config:
    reader, config = read(text, path=path)
    if reader.problems:
        raise ConfigFault(path, tuple(sorted(reader.problems, key=lambda problem: problem[0])))
    assert isinstance(config, Config)
    return config


def read(text: str, *, path: str = "config") -> tuple[Reader, Any]:
    """The reader, with its problems and what it noted, and the Config, or BAD."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigFault(path, ((line, f"no YAML: {error.problem or error.context}"),)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigFault(path, ((0, f"no YAML: {error}"),)) from error
    reader = Reader(checks=CHECKS, specials=_SPECIALS)
    if node is None:
        reader.fail(1, "", "expected a mapping with `listeners`, found nothing")
        return reader, BAD
    config = reader.record(node, Config, "")
    _check_names(reader, node)
    if config is not BAD:
        _check_ports(reader, config)
        for number, listener in enumerate(config.listeners):
            _check_routes(reader, listener, number)
    return reader, config


def _string_match(default: str) -> Callable[[Reader, yaml.Node, str], Any]:
    def special(reader: Reader, node: yaml.Node, where: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            text = reader.scalar(node, str, where, name=default)
            match = BAD if text is BAD else StringMatch(**{default: text})
            return reader.checked(node, f"StringMatch.{default}", where, match)
        match = reader.record(node, StringMatch, where)
        if match is not BAD and sum(value is not None for value in (match.exact, match.prefix, match.regex)) != 1:
            return reader.fail(node, where, "expected exactly one of `exact`, `prefix`, `regex`")
        return match

    return special


def _header_match(reader: Reader, node: yaml.Node, where: str) -> Any:
    """`x-canary`: must be there; `{name: x-canary, value: "1"}`: must be that."""
    if isinstance(node, yaml.ScalarNode):
        return _named(reader, node, where, HeaderMatch, "name")
    return reader.record(node, HeaderMatch, where)


def _route_match(reader: Reader, node: yaml.Node, where: str) -> Any:
    """`path` written as text is a prefix; a header's value written as text is exact."""
    pairs = reader.pairs(node, where, f"a mapping with {some(keys_of(RouteMatch))}")
    if pairs is None:
        return BAD
    extra: dict[str, Any] = {}
    for key, key_node, value in pairs:
        if key == "path":
            at = join(where, "path")
            path = _string_match("prefix")(reader, value, at)
            if path is not BAD and not (text := path.exact or path.prefix or "/").startswith("/") and text != "*":
                path = reader.fail(value, at, f"expected a path that starts with `/`, found `{text}`")
            reader.note(RouteMatch, "path", key_node, path)
            extra["path"] = path
    return reader.build(node, RouteMatch, where, [pair for pair in pairs if pair[0] != "path"], extra=extra)


def _mirror(reader: Reader, node: yaml.Node, where: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _named(reader, node, where, Mirror, "cluster")
    return reader.record(node, Mirror, where)


def _access_log(reader: Reader, node: yaml.Node, where: str) -> Any:
    """`access_log: all` is `access_log: {mode: all}`."""
    if isinstance(node, yaml.ScalarNode):
        mode = reader.scalar(node, keys_of(AccessLog)["mode"][1], where, name="mode")
        return BAD if mode is BAD else AccessLog(mode=mode)
    return reader.record(node, AccessLog, where)


def _admin(reader: Reader, node: yaml.Node, where: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        if node.value == "off":
            return None
        return reader.refuse(node, where, "a mapping with `address`, `port`, or off")
    return reader.record(node, Admin, where)


def _named(reader: Reader, node: yaml.Node, where: str, kind: type, field: str) -> Any:
    text = reader.checked(node, f"{kind.__name__}.{field}", where, reader.scalar(node, str, where, name=field))
    return BAD if text is BAD else kind(**{field: text})


def _hash_policy(reader: Reader, node: yaml.Node, where: str) -> Any:
    policy = reader.record(node, HashPolicy, where)
    if policy is not BAD:
        sources = (policy.header, policy.cookie, policy.query, policy.source_address or None)
        if sum(source is not None for source in sources) != 1:
            return reader.fail(
                node, where, "expected exactly one of `header`, `cookie`, `query`, `source_address: true`"
            )
    return policy


def _endpoint(reader: Reader, node: yaml.Node, where: str) -> Any:
    """`10.0.0.1:80`, `[::1]:80`, or a mapping with `address` and `port`."""
    if not isinstance(node, yaml.ScalarNode):
        return reader.record(node, EndpointConfig, where)
    address, colon, port = str(node.value).rpartition(":")
    bracketed = address.startswith("[") and address.endswith("]")
    address = address[1:-1] if bracketed else address
    sound = colon and port.isascii() and port.isdigit() and (":" in address) == bracketed
    if not sound or CHECKS["EndpointConfig.address"](address) or CHECKS["EndpointConfig.port"](int(port)):
        return reader.refuse(node, where, "an endpoint such as 10.0.0.1:80 or [2001:db8::1]:80")
    return EndpointConfig(address=address, port=int(port))


def _route(reader: Reader, node: yaml.Node, where: str) -> Any:
    """A route and its action in one mapping: `cluster` or `clusters` with Forward's keys, `redirect`, or `answer`."""
    own = {"name", "match", "request_headers", "response_headers"}
    forward_keys = {key for key in keys_of(Forward) if key != "clusters"}
    actions = ("cluster", "clusters", "redirect", "answer")
    pairs = reader.pairs(node, where, "a mapping with `match` and one of `cluster`, `clusters`, `redirect`, `answer`")
    if pairs is None:
        return BAD
    for key, key_node, _ in pairs:
        if key not in own and key not in forward_keys and key not in actions:
            reader.unknown(key_node, where, key, [*sorted(own), *actions, *sorted(forward_keys)])
    chosen = [pair for pair in pairs if pair[0] in actions]
    forwarding = [pair for pair in pairs if pair[0] in forward_keys]
    action: Any = BAD
    if len(chosen) != 1:
        found = some(pair[0] for pair in chosen) or "none"
        reader.fail(node, where, f"expected exactly one of {some(actions)}, found {found}")
    else:
        kind, key_node, value = chosen[0]
        at = join(where, kind)
        reader.lines[at] = line_of(key_node)
        if kind in ("redirect", "answer"):
            action = reader.record(value, Redirect if kind == "redirect" else DirectAnswer, at)
            for key, other, _ in forwarding:
                reader.fail(other, join(where, key), f"expected only with `cluster` or `clusters`, not with `{kind}`")
        else:
            shares = _shares(reader, value, at)
            reader.note(Forward, "clusters", key_node, shares)
            action = reader.build(node, Forward, where, forwarding, extra={"clusters": shares})
    extra: dict[str, Any] = {"action": action}
    named = [pair for pair in pairs if pair[0] == "name"]
    if not named:
        extra["name"] = "route-" + where.rpartition("[")[2].rstrip("]")
    return reader.build(node, Route, where, [pair for pair in pairs if pair[0] in own], extra=extra)


def _shares(reader: Reader, node: yaml.Node, where: str) -> Any:
    """`web`, or `{web: 90, canary: 10}`: the weights' sum is what they are parts of."""
    if isinstance(node, yaml.ScalarNode):
        name = reader.scalar(node, str, where, name="cluster")
        return BAD if name is BAD else (WeightedCluster(cluster=name),)
    pairs = reader.pairs(node, where, "a cluster's name, or clusters with their weights")
    if pairs is None:
        return BAD
    shares = []
    for key, _, value in pairs:
        weight = reader.scalar(value, int, join(where, key), name="weight")
        if weight is not BAD:
            shares.append(WeightedCluster(cluster=key, weight=weight))
    if len(shares) == len(pairs) and not sum(share.weight for share in shares):
        return reader.fail(node, where, "expected weights whose sum is above 0")
    return tuple(shares)


def _cluster(reader: Reader, node: yaml.Node, where: str) -> Any:
    """A cluster with one of `endpoints`, `file` and `dns` in place of `discovery`."""
    kinds: dict[str, type] = {"endpoints": StaticDiscovery, "file": FileDiscovery, "dns": DnsDiscovery}
    pairs = reader.pairs(node, where, "a mapping with `name` and one of `endpoints`, `file`, `dns`")
    if pairs is None:
        return BAD
    chosen = [pair for pair in pairs if pair[0] in kinds]
    if len(chosen) != 1:
        found = some(pair[0] for pair in chosen) or "none"
        discovery = reader.fail(node, where, f"expected exactly one of {some(kinds)}, found {found}")
    else:
        discovery = _discovery(reader, chosen[0], join(where, chosen[0][0]))
    known = [*(key for key in keys_of(ClusterConfig) if key != "discovery"), *kinds]
    rest: _Pairs = []
    for pair in pairs:
        if pair[0] not in known:
            reader.unknown(pair[1], where, pair[0], known)
        elif pair[0] not in kinds:
            rest.append(pair)
    return reader.build(node, ClusterConfig, where, rest, extra={"discovery": discovery})


def _discovery(reader: Reader, pair: tuple[str, yaml.Node, yaml.Node], where: str) -> Any:
    key, key_node, node = pair
    reader.lines[where] = line_of(key_node)
    if key == "endpoints":
        endpoints = reader.sequence(node, EndpointConfig, where, name="endpoints")
        reader.note(StaticDiscovery, "endpoints", key_node, endpoints)
        if endpoints is BAD:
            return BAD
        seen: set[str] = set()
        for number, endpoint in enumerate(endpoints):
            if endpoint.key in seen:
                reader.fail(
                    reader.lines.get(f"{where}[{number}]", line_of(node)), where, f"{endpoint.key} is there twice"
                )
            seen.add(endpoint.key)
        return StaticDiscovery(endpoints=endpoints)
    if key == "file":
        path = reader.scalar(node, str, where, name="path")
        reader.note(FileDiscovery, "path", key_node, path)
        return BAD if path is BAD else FileDiscovery(path=path)
    if isinstance(node, yaml.ScalarNode) and not is_null(node):
        name, colon, port = str(node.value).rpartition(":")
        if not colon or not port.isdigit() or not 0 < int(port) < 65_536:
            return reader.refuse(node, where, "a name with its port such as web.example:80, or a mapping")
        return DnsDiscovery(name=name, port=int(port))
    return reader.record(node, DnsDiscovery, where)


def _check_names(reader: Reader, node: yaml.Node) -> None:
    """Names are unique, and clusters that are named exist. By the nodes: also where a cluster has other faults."""
    names: dict[str, set[str]] = {"listeners": set(), "clusters": set()}
    for kind, found in names.items():
        for number, item in enumerate(_items(node, kind)):
            name = _child(item, "name")
            if isinstance(name, yaml.ScalarNode):
                if name.value in found:
                    reader.fail(name, f"{kind}[{number}].name", f"`{name.value}` is there twice")
                found.add(name.value)
    for number, listener in enumerate(_items(node, "listeners")):
        where = f"listeners[{number}]"
        named = [(where + ".cluster", child) for child in [_child(listener, "cluster")] if child is not None]
        routes: set[str] = set()
        for index, route in enumerate(_items(listener, "routes")):
            named += _clusters_of(route, f"{where}.routes[{index}]")
            name = _child(route, "name")
            if isinstance(name, yaml.ScalarNode):
                if name.value in routes:
                    reader.fail(
                        name, f"{where}.routes[{index}].name", f"`{name.value}` is there twice in this listener"
                    )
                routes.add(name.value)
        for at, child in named:
            if isinstance(child, yaml.ScalarNode) and not is_null(child) and child.value not in names["clusters"]:
                close = some(sorted(names["clusters"])[:10]) or "none is defined"
                reader.fail(child, at, f"expected a cluster of this file ({close}), found `{child.value}`")


def _clusters_of(route: yaml.Node, where: str) -> Iterator[tuple[str, yaml.Node]]:
    for key in ("cluster", "clusters"):
        child = _child(route, key)
        if isinstance(child, yaml.MappingNode):
            yield from ((join(where, key), share) for share, _ in child.value)
        elif child is not None:
            yield join(where, key), child
    mirrors = _child(route, "mirrors")
    for mirror in mirrors.value if isinstance(mirrors, yaml.SequenceNode) else [mirrors] if mirrors else []:
        child = mirror if isinstance(mirror, yaml.ScalarNode) else _child(mirror, "cluster")
        if child is not None:
            yield join(where, "mirrors"), child


def _child(node: yaml.Node, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value == key:
                return value  # type: ignore[no-any-return]
    return None


def _items(node: yaml.Node, key: str) -> list[yaml.Node]:
    child = _child(node, key)
    return list(child.value) if isinstance(child, yaml.SequenceNode) else []


def _check_ports(reader: Reader, config: Config) -> None:
    """Two cannot listen in one place; port 0 is a place of its own each time."""
    taken: dict[tuple[str, int], str] = {}
    if config.admin is not None:
        taken[config.admin.address, config.admin.port] = "admin"
    for number, listener in enumerate(config.listeners):
        place = (listener.address, listener.port)
        if listener.port and place in taken:
            at = f"listeners[{number}].port"
            reader.fail(reader.lines.get(at, 0), at, f"{place[0]}:{place[1]} is `{taken[place]}`'s already")
        taken.setdefault(place, listener.name)


def _check_routes(reader: Reader, listener: Listener, number: int) -> None:
    for index, by in find_unreachable(listener.routes):
        at = f"listeners[{number}].routes[{index}]"
        first = listener.routes[by].name
        reader.fail(
            reader.lines.get(at, 0), at, f"no request can reach it: `{first}` before it takes all that it would take"
        )


_SPECIALS: dict[type, Callable[[Reader, yaml.Node, str], Any]] = {
    StringMatch: _string_match("exact"),
    HeaderMatch: _header_match,
    RouteMatch: _route_match,
    HashPolicy: _hash_policy,
    Mirror: _mirror,
    Route: _route,
    EndpointConfig: _endpoint,
    ClusterConfig: _cluster,
    AccessLog: _access_log,
    Admin: _admin,
}
