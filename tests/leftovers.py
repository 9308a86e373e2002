"""What CNI plugins left on a test host after the last pod: `leftovers(node)` is a list of lines, and must be empty.

Looks at what the kernel and the file system hold, never at what a plugin says. Knows the traces of the reference
plugins too (their chains and files), so that the same claim can be put to them. Refuses to clean anything.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from namespaces import Namespace

# Links of the topology `node`. A bridge outlives its pods by design (runtimes delete it, or nobody): tests name theirs.
UPLINKS = ("lo", "uplink")
RESERVATIONS = "/var/lib/cni/networks"
# Kept on purpose: the lock file, and where the round robin goes on (ipam of every version writes both).
KEPT_FILES = re.compile(r"lock|last_reserved_ip\.\d+")
# Of ours, kept as well: a shortcut to what the files say, in a folder of its own (ipam/store.py).
INDEX = re.compile(r".*/\.netloom/[^/]+/index")
# State of plugins and, in results, of libcni: each file belongs to one attachment.
STATE_FOLDERS = ("/run/netloom", "/run/cni", "/var/lib/cni/results", "/var/lib/cni/cache")
# Socket and lock of an agent, and the lock of a plugin, belong to the host, not to a pod.
AGENT_FILES = re.compile(r"agent\.[a-z.]+|([a-z]+\.)?lock")
TABLE_PREFIX = "netloom"
# The reference plugins: CNI-<hash> is the masquerade chain of one attachment, CNI-DN-<hash> its port mappings.
PEER_CHAIN = re.compile(r"CNI-(DN-)?[0-9a-f]{8,}")
# Priorities of the rules every network namespace is born with.
BORN_RULES = {0, 32766, 32767}
QDISCS_OF_PLUGINS = {"clsact", "htb", "ingress", "tbf"}


def leftovers(node: Namespace, *, links: Collection[str] = ()) -> list[str]:
    """Sorted lines for people, one for each thing left; `links` names further links that may stay, e.g. bridges."""
    expected = {*UPLINKS, *links}
    found = (_reservations(node), _state_files(node), _links(node, expected), _qdiscs(node), _rules(node), _nft(node))
    return sorted(line for lines in found for line in lines)


def _reservations(node: Namespace) -> Iterator[str]:
    for path in _files(node.path_from_outside(RESERVATIONS)):
        if KEPT_FILES.fullmatch(path.name) or INDEX.fullmatch(str(path)):
            continue
        owner = path.read_text(errors="replace").replace("\r\n", " ")
        yield f"{'address' if _is_address(path.name) else 'file'} {path.parent.name}/{path.name} of {owner!r}"


def _state_files(node: Namespace) -> Iterator[str]:
    for folder in STATE_FOLDERS:
        root = node.path_from_outside(folder)
        for path in _files(root):
            if not AGENT_FILES.fullmatch(path.name):
                yield f"file {folder}/{path.relative_to(root)}"


def _links(node: Namespace, expected: Collection[str]) -> Iterator[str]:
    for link in _json(node, "ip", "-json", "-details", "link"):
        if link["ifname"] not in expected:
            kind = link.get("linkinfo", {}).get("info_kind", "link")
            yield f"{kind} {link['ifname']} {link.get('ifalias', '')}".strip()


def _qdiscs(node: Namespace) -> Iterator[str]:
    # Those of links that are gone went with them; this finds one on a bridge or on the uplink.
    for qdisc in _json(node, "tc", "-json", "qdisc"):
        if qdisc["kind"] in QDISCS_OF_PLUGINS:
            yield f"qdisc {qdisc['kind']} on {qdisc['dev']}"


def _rules(node: Namespace) -> Iterator[str]:
    for family in ("-4", "-6"):
        for rule in _json(node, "ip", family, "-json", "rule"):
            if rule["priority"] not in BORN_RULES:
                yield f"ip {family} rule {rule}"


def _nft(node: Namespace) -> Iterator[str]:
    for item in _json(node, "nft", "--json", "list", "chains")["nftables"]:
        chain = item.get("chain", {})
        if PEER_CHAIN.fullmatch(chain.get("name", "")):
            yield f"nft chain {chain['family']} {chain['table']} {chain['name']}"
    for item in _json(node, "nft", "--json", "list", "tables")["nftables"]:
        table = item.get("table", {})
        if table.get("name", "").startswith(TABLE_PREFIX):
            yield f"nft table {table['family']} {table['name']}"
            yield from _elements(node, table["family"], table["name"])


def _elements(node: Namespace, family: str, table: str) -> Iterator[str]:
    listing = node.run("nft", "--json", "list", "table", family, table, check=False)
    if listing.returncode:
        return  # dropped since it was named
    for item in json.loads(listing.stdout)["nftables"]:
        holder = item.get("set") or item.get("map") or {}
        for element in holder.get("elem", ()):
            yield f"nft element {table} {holder['name']} {json.dumps(element)}"


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            yield Path(folder, name)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _json(node: Namespace, *argv: str) -> Any:
    # `tc` and `ip` print nothing at all where there is nothing to tell.
    return json.loads(node.run(*argv).stdout or "[]")
