"""A request's key for maglev and ring hash: xxHash64 of what the policies name, combined exactly as Envoy does it.

One header is the usual policy, and the hot path's: callers that hold a head's bytes find the value themselves and give
it to `hash_value` (24 ns); everybody else calls HashKey.find. A cookie that the client lacks is made here and must be
set on the answer. CONTRACTS 4; Envoy's source/common/http/hash_policy.cc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from meshproxy.config import HashPolicy
from meshproxy.message import Fields, RequestHead

hash_value: Callable[[bytes], int] = xxhash.xxh64_intdigest

_MASK = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class FoundKey:
    """The key, None where no policy found its part, and the Set-Cookie values that the answer must carry."""

    hash: int | None
    cookies: tuple[bytes, ...] = ()


class HashKey:
    """The policies of one route, ready to be asked."""

    __slots__ = ("_policies", "header", "makes_cookies")

    def __init__(self, policies: tuple[HashPolicy, ...]) -> None:
        self._policies = policies
        # The one header that is the whole key, for callers that look for it in a head's bytes.
        self.header: bytes | None = None
        if len(policies) == 1 and policies[0].header is not None:
            self.header = policies[0].header.lower().encode("latin-1")
        self.makes_cookies = any(policy.cookie is not None and policy.cookie_ttl_s is not None for policy in policies)

    def __repr__(self) -> str:
        return f"HashKey({self._policies!r})"

    def find(self, head: RequestHead, peer_address: str, *, token: Callable[[], bytes]) -> FoundKey:
        """The key of one request. `token` makes the value of a cookie, e.g. Randomness.token."""
        key: int | None = None
        cookies: list[bytes] = []
        for policy in self._policies:
            part = _part(policy, head, peer_address)
            if part is None and policy.cookie is not None and policy.cookie_ttl_s is not None:
                value = token()
                part = hash_value(value)
                cookies.append(_set_cookie(policy, value))
            if part is not None:
                key = part if key is None else (((key << 1) | (key >> 63)) & _MASK) ^ part
            if policy.terminal and key is not None:
                break
        return FoundKey(key, tuple(cookies))


def hash_fields(fields: Fields, name: bytes) -> int | None:
    """The hash of a header's value. Several lines: sorted, each the seed of the next, so that order does not matter."""
    values = [value for field_name, value in fields if field_name == name]
    if not values:
        return None
    if len(values) == 1:
        return hash_value(values[0])
    seed = 0
    for value in sorted(values):
        seed = xxhash.xxh64_intdigest(value, seed)
    return seed


def cookie_of(fields: Fields, name: bytes) -> bytes | None:
    """The value of a cookie, without quotes. RFC 6265 5.4; HTTP/2 may split it over lines (RFC 9113 8.2.3)."""
    for field_name, line in fields:
        if field_name == b"cookie":
            for pair in line.split(b";"):
                found, _, value = pair.partition(b"=")
                if found.strip() == name:
                    return value.strip().strip(b'"')
    return None


def query_of(path: bytes, name: bytes) -> bytes | None:
    """The first value of a query parameter, as it was sent: not decoded, as in Envoy."""
    for pair in path.partition(b"?")[2].split(b"&"):
        found, _, value = pair.partition(b"=")
        if found == name and pair:
            return value
    return None


def _part(policy: HashPolicy, head: RequestHead, peer_address: str) -> int | None:
    if policy.header is not None:
        return hash_fields(head.fields, policy.header.lower().encode("latin-1"))
    value: bytes | None = None
    if policy.cookie is not None:
        value = cookie_of(head.fields, policy.cookie.encode("latin-1")) or None
    elif policy.query is not None:
        value = query_of(head.path, policy.query.encode())
    elif policy.source_address:
        value = peer_address.encode()
    return None if value is None else hash_value(value)


def _set_cookie(policy: HashPolicy, value: bytes) -> bytes:
    assert policy.cookie is not None
    line = b"%s=%s" % (policy.cookie.encode("latin-1"), value)
    if policy.cookie_ttl_s:
        line += b"; Max-Age=%d" % policy.cookie_ttl_s
    return line + b"; Path=%s; HttpOnly" % policy.cookie_path.encode("latin-1")
