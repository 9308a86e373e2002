"""All that plugins could change on a test host, as text: `snapshot(host)` before and after must be equal.

Left out is what grows or settles by itself: handles, indexes, carriers, link-local addresses, the kernel's own routes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from namespaces import Namespace, Place

_FOLDERS = ("/var/lib/cni", "/run/netloom", "/run/cni")
_SETTLING_FLAGS = {"LOWER_UP", "NO-CARRIER", "M-DOWN"}
# Of host-local, kept on purpose: the lock, where the round robin goes on, and a shortcut to what the files say.
_KEPT = ("lock", "last_reserved_ip.0", "last_reserved_ip.1", "index")


def snapshot(place: Place) -> list[str]:
    """Sorted lines for people."""
    parts = [_links(place), _routes(place), _rules(place), _nft(place)]
    if isinstance(place, Namespace):
        parts.append(_files(place))
    return sorted(line for lines in parts for line in lines)


def _links(place: Place) -> Iterator[str]:
    for link in _json(place, "ip -json -details address"):
        info = link.get("linkinfo", {})
        port = info.get("info_slave_data", {})
        flags = sorted(set(link["flags"]) - _SETTLING_FLAGS)
        facts = [link.get(key, "") for key in ("address", "mtu", "txqlen", "promiscuity", "master", "ifalias")]
        facts += [info.get("info_kind", ""), port.get("hairpin"), port.get("isolated")]
        yield f"link {link['ifname']} {flags} {facts}"
        for address in link["addr_info"]:
            if address.get("scope") != "link":
                yield f"address {address['local']}/{address['prefixlen']} on {link['ifname']}"
    for qdisc in _json(place, "tc -json qdisc"):
        if qdisc["kind"] not in ("noqueue", "noop"):
            yield f"qdisc {qdisc['kind']} {qdisc['dev']} {qdisc.get('options')}"


def _routes(place: Place) -> Iterator[str]:
    for family in ("-4", "-6"):
        for route in _json(place, f"ip {family} -json -details route show table all"):
            if route.get("protocol") != "kernel":
                yield f"route {family} { ({key: value for key, value in route.items() if key != 'flags'}) }"


def _rules(place: Place) -> Iterator[str]:
    for family in ("-4", "-6"):
        for rule in _json(place, f"ip {family} -json rule"):
            yield f"rule {family} {rule}"


def _nft(place: Place) -> Iterator[str]:
    for item in _json(place, "nft --json list ruleset")["nftables"]:
        for kind, thing in item.items():
            if kind == "metainfo":
                continue
            elements = thing.pop("elem", [])
            thing.pop("handle", None)
            yield f"nft {kind} {json.dumps(thing)}"
            yield from (f"nft element {thing['table']} {thing['name']} {json.dumps(element)}" for element in elements)


def _files(host: Namespace) -> Iterator[str]:
    for folder in _FOLDERS:
        root = os.fspath(host.path_from_outside(folder))
        for at, _, names in os.walk(root):
            for name in names:
                path = os.path.join(at, name)
                if name not in _KEPT and not name.startswith(("agent.", "calls.")):  # those of agents
                    with open(path, "rb") as file:
                        yield f"file {folder}{path.removeprefix(root)}: {file.read()!r}"


def _json(place: Place, command: str) -> Any:
    # `tc` and `ip` print nothing at all where there is nothing to tell.
    return json.loads(place.run(*command.split()).stdout or "[]")
