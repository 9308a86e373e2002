"""Owners: the (network, container, interface) tag that every object of ours in the kernel carries.

DEL removes what carries the caller's tag; GC removes what carries its network's name and is not in the list of valid
attachments. Tags are text a person can read in `nft list ruleset` and `ip -d link`; names of links are derived from
the owner, so that DEL finds them without the pod's namespace, and a plugin killed between two system calls leaves
nothing nameless.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

# nft shows comments of up to 128 bytes; 40 + 1 + 66 + 1 + 15 stays below, and a sha256 container id (64) fits whole.
_NETWORK_MAX = 40
_CONTAINER_MAX = 66
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648, 6


def _short(name: str, limit: int) -> str:
    if len(name) <= limit:
        return name
    return f"{name[: limit - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _letters(*words: str) -> str:
    number = int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest())
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(0, 160, 5))


@dataclass(frozen=True, slots=True)
class Owner:
    """One attachment of one network."""

    network: str
    container_id: str
    ifname: str

    @property
    def tag(self) -> str:
        """`network/container/ifname`, at most 123 bytes."""
        return f"{network_prefix(self.network)}{_short(self.container_id, _CONTAINER_MAX)}/{self.ifname}"

    def link_name(self, prefix: str) -> str:
        """A link name of 15 bytes: prefix, 3 letters of the network, the rest of the attachment (40 bits of it)."""
        return (link_prefix(prefix, self.network) + _letters(self.network, self.container_id, self.ifname))[:15]


def network_prefix(network: str) -> str:
    """What the tags of all attachments of a network start with."""
    return f"{_short(network, _NETWORK_MAX)}/"


def is_of_pod(tag: str, container_id: str) -> bool:
    """Whether `tag` is of an attachment of that container, to whatever network."""
    return tag.split("/")[1:2] == [_short(container_id, _CONTAINER_MAX)]


def link_prefix(prefix: str, network: str) -> str:
    """What the link names of all attachments of a network start with (15 bits: confirm by the alias)."""
    return prefix + _letters(network)[:3]


def is_stale(tag: str, network: str, valid: frozenset[str]) -> bool:
    """Whether GC of `network` removes what carries `tag`."""
    return tag.startswith(network_prefix(network)) and tag not in valid
