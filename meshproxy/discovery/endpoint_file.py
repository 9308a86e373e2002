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

from ipaddress import ip_address
from typing import Any

import yaml

from meshproxy.config import EndpointConfig, Locality
from meshproxy.discovery.source import Snapshot

# key: (type, least, most)
INTEGERS = {"port": (1, 65_535), "weight": (1, 1_000_000), "priority": (0, 127)}
TEXTS = ("address", "region", "zone", "identity")


class EndpointFileError(ValueError):
    """The file does not say what endpoints there are; the text names line, fault and what was expected."""


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """For node trees only: they know their lines."""


def parse_endpoints(text: str, *, path: str) -> Snapshot:
    """Return the endpoints that `text` names. Raises EndpointFileError with `path` and line."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise EndpointFileError(f"{path}:{line}: expected YAML: {getattr(error, 'problem', error)}") from error
    if isinstance(root, yaml.MappingNode):
        fields = _fields(root, path=path, allowed=("endpoints",))
        root = fields.get("endpoints")
    if not isinstance(root, yaml.SequenceNode):
        raise EndpointFileError(f"{path}:{_line(root)}: expected a list of endpoints")
    found: dict[str, EndpointConfig] = {}
    for node in root.value:
        endpoint = _endpoint(node, path=path)
        if endpoint.key in found:
            raise EndpointFileError(f"{path}:{_line(node)}: {endpoint.key} is there twice")
        found[endpoint.key] = endpoint
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
        if key.value not in allowed:
            expected = ", ".join(allowed)
            raise EndpointFileError(f"{path}:{_line(key)}: unknown key {key.value!r}, expected {expected}")
        if key.value in found:
            raise EndpointFileError(f"{path}:{_line(key)}: {key.value} is there twice")
        found[key.value] = value
    return found


def _line(node: yaml.Node | None) -> int:
    return node.start_mark.line + 1 if node is not None else 1
