"""A file of endpoints as values: what may be written, and what is wrong with what was.

    - 10.0.0.1:8080
    - address: 10.0.0.2
      port: 8080
      weight: 3
      priority: 1
      zone: eu-1a
      region: eu-1
      identity: pod-7f3a

A list, or a mapping with the list under `endpoints`. An empty list says that there are none. Strict: an unknown key
or a wrong value refuses the whole file, with its line. Next: file.py, which watches it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from ipaddress import ip_address
from typing import Any

import yaml

from meshproxy.config import EndpointConfig, Locality
from meshproxy.discovery.source import Snapshot

# key: (type, least, most)
INTEGERS = {"port": (1, 65_535), "weight": (1, 1_000_000), "priority": (0, 127)}
TEXTS = ("address", "region", "zone", "identity")
ENDPOINTS_PER_STEP = 20  # 0.4 ms of the long form


class EndpointFileError(ValueError):
    """The file does not say what endpoints there are; the text names line, fault and what was expected."""


_Loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def parse_endpoints(text: str, *, path: str) -> Snapshot:
    """Return the endpoints that `text` names. Raises EndpointFileError with `path` and line."""
    steps = parse_steps(text, path=path)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            snapshot: Snapshot = stop.value
            return snapshot


def parse_steps(text: str, *, path: str) -> Generator[None, None, Snapshot]:
    """As parse_endpoints, a few endpoints at a time: 1,000 of the long form take 19 ms, and the loop has other work."""
    loader = _Loader(text)
    try:
        found: dict[str, EndpointConfig] = {}
        for node in _items(loader, path=path):
            endpoint = _endpoint(node, path=path)
            if endpoint.key in found:
                raise EndpointFileError(f"{path}:{_line(node)}: {endpoint.key} is there twice")
            found[endpoint.key] = endpoint
            if not len(found) % ENDPOINTS_PER_STEP:
                yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise EndpointFileError(f"{path}:{line}: expected YAML: {getattr(error, 'problem', error)}") from error
    finally:
        loader.dispose()
    return tuple(found.values())


def parse_address(text: str) -> tuple[str, int]:
    """Return address and port of `10.0.0.1:80` or `[::1]:80`. Raises ValueError."""
    address, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"expected ADDRESS:PORT, found {text!r}")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise ValueError(f"expected [ADDRESS]:PORT, found {text!r}")
    return str(ip_address(address)), int(port)


def _items(loader: Any, *, path: str) -> Iterator[yaml.Node]:
    """Yield the nodes of the list one by one as the text is read, all of it: what follows the list is checked, too."""
    loader.get_event()  # the stream begins
    if loader.check_event(yaml.StreamEndEvent):
        raise EndpointFileError(f"{path}:1: expected a list of endpoints")
    loader.get_event()  # the document begins
    event: Any = loader.get_event()
    is_mapping = isinstance(event, yaml.MappingStartEvent)
    if is_mapping and not loader.check_event(yaml.MappingEndEvent):
        key = _node(loader, loader.get_event(), path=path)
        if key.value != "endpoints":
            raise EndpointFileError(f"{path}:{_line(key)}: unknown key {key.value!r}, expected endpoints")
        event = loader.get_event()
    if not isinstance(event, yaml.SequenceStartEvent):
        raise EndpointFileError(f"{path}:{event.start_mark.line + 1}: expected a list of endpoints")
    while not loader.check_event(yaml.SequenceEndEvent):
        yield _node(loader, loader.get_event(), path=path)
    loader.get_event()
    if is_mapping and not loader.check_event(yaml.MappingEndEvent):
        line = loader.peek_event().start_mark.line + 1
        raise EndpointFileError(f"{path}:{line}: expected nothing beside endpoints")
    while loader.check_event():
        event = loader.get_event()
        if isinstance(event, yaml.DocumentStartEvent):
            mark: Any = event.start_mark
            raise EndpointFileError(f"{path}:{mark.line + 1}: expected one document")


def _node(loader: Any, event: Any, *, path: str) -> yaml.Node:
    """Return the node that begins with `event`. Aliases are refused: nobody needs them here, and they can be bombs."""
    mark: Any = event.start_mark
    if isinstance(event, yaml.ScalarEvent):
        return yaml.ScalarNode("", event.value, mark)
    if isinstance(event, yaml.AliasEvent):
        raise EndpointFileError(f"{path}:{mark.line + 1}: expected no alias")
    children: list[Any] = []
    if isinstance(event, yaml.SequenceStartEvent):
        while not loader.check_event(yaml.SequenceEndEvent):
            children.append(_node(loader, loader.get_event(), path=path))
        loader.get_event()
        return yaml.SequenceNode("", children, mark)
    while not loader.check_event(yaml.MappingEndEvent):
        key = _node(loader, loader.get_event(), path=path)
        children.append((key, _node(loader, loader.get_event(), path=path)))
    loader.get_event()
    return yaml.MappingNode("", children, mark)


def _endpoint(node: yaml.Node, *, path: str) -> EndpointConfig:
    if isinstance(node, yaml.ScalarNode):
        try:
            address, port = parse_address(node.value)
        except ValueError as error:
            raise EndpointFileError(f"{path}:{_line(node)}: {error}") from error
        return EndpointConfig(address=address, port=port)
    if not isinstance(node, yaml.MappingNode):
        raise EndpointFileError(f"{path}:{_line(node)}: expected an endpoint, ADDRESS:PORT or a mapping")
    fields = _fields(node, path=path, allowed=(*TEXTS, *INTEGERS))
    values: dict[str, Any] = {}
    for name, value in fields.items():
        at = f"{path}:{_line(value)}: {name}"
        if not isinstance(value, yaml.ScalarNode):
            raise EndpointFileError(f"{at}: expected one value")
        if name in INTEGERS:
            least, most = INTEGERS[name]
            if not value.value.isascii() or not value.value.isdigit() or not least <= int(value.value) <= most:
                raise EndpointFileError(f"{at}: expected {least} to {most}, found {value.value!r}")
            values[name] = int(value.value)
        else:
            values[name] = value.value
    for name in ("address", "port"):
        if name not in values:
            raise EndpointFileError(f"{path}:{_line(node)}: {name} is missing")
    try:
        values["address"] = str(ip_address(values["address"]))
    except ValueError as error:
        raise EndpointFileError(f"{path}:{_line(fields['address'])}: {error}") from error
    locality = Locality(region=values.pop("region", ""), zone=values.pop("zone", ""))
    return EndpointConfig(**values, locality=locality)


def _fields(node: yaml.MappingNode, *, path: str, allowed: tuple[str, ...]) -> dict[str, yaml.Node]:
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value not in allowed:
            expected = ", ".join(allowed)
            raise EndpointFileError(f"{path}:{_line(key)}: unknown key {key.value!r}, expected {expected}")
        if key.value in found:
            raise EndpointFileError(f"{path}:{_line(key)}: {key.value} is there twice")
        found[key.value] = value
    return found


def _line(node: yaml.Node | None) -> int:
    return node.start_mark.line + 1 if node is not None else 1
