"""The nftables requests that every call sends: look up, list, delete, and elements in and out. Plain bytes.

Apart from nft_messages.py, which makes tables with pyroute2's classes: once a table is there, a pod needs none of
them, and a plugin without an agent saves their import. Source of the numbers: linux/netfilter/nf_tables.h; of the form
of concatenations and comments: libnftnl.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from .netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_NONREC,
    Message,
    attribute,
    attributes,
    nested,
    text_attribute,
    walk,
)
from .nft import Chain, Element, Set, Table

SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
NEWCHAIN = 3
FAMILIES = {"inet": 1, "bridge": 7}
_GETTABLE, _DELTABLE = 1, 2
_GETCHAIN, _DELCHAIN = 4, 5
_GETRULE, _DELRULE = 7, 8
_GETSET, _DELSET = 10, 11
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_HEADER = struct.Struct("!BBH")  # struct nfgenmsg
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_USERDATA = 1, 2, 7
_SET_TABLE, _SET_NAME = 1, 2
_SET_COUNT = 20  # of newer kernels
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _ELEM_DATA, _ELEM_USERDATA, _ELEM_KEY_END = 1, 2, 6, 10
_DATA_VALUE = 1


def begin() -> Message:
    """The start of a transaction."""
    return Message(_BATCH_BEGIN, 0, _HEADER.pack(0, 0, 10), "begin")


def end() -> Message:
    """The end of a transaction: the kernel does all of it, or nothing."""
    return Message(_BATCH_END, 0, _HEADER.pack(0, 0, 10), "commit")


def _message(table: Table, kind: int, flags: int, doing: str, *parts: bytes) -> Message:
    body = _HEADER.pack(FAMILIES[table.family], 0, 0) + b"".join(parts)
    return Message(SUBSYSTEM | kind, flags | NLM_F_ACK, body, f"{doing} (nft table {table.name})")


def get_table(table: Table) -> Message:
    """Ask for the table (ENOENT: there is none)."""
    return _message(table, _GETTABLE, 0, "looking for the table", text_attribute(_TABLE_NAME, table.name))


def delete_table(table: Table) -> Message:
    """Delete the table with all that is in it."""
    return _message(table, _DELTABLE, 0, "deleting the table", text_attribute(_TABLE_NAME, table.name))


def _chain(table: Table, name: str) -> bytes:
    return text_attribute(_CHAIN_TABLE, table.name) + text_attribute(_CHAIN_NAME, name)


def require_schema(table: Table) -> Message:
    """Fail (ENOENT) unless the table is there in this very form: an update, without a change, of the schema chain."""
    return _message(table, NEWCHAIN, 0, "looking for netloom's rules", _chain(table, table.schema))


def get_schema(table: Table) -> Message:
    """Ask whether the table is there in this very form (ENOENT: it is not)."""
    return _message(table, _GETCHAIN, 0, "looking for netloom's rules", _chain(table, table.schema))


def delete_chain(table: Table, name: str) -> Message:
    """Delete a chain that nothing refers to."""
    return _message(table, _DELCHAIN, 0, f"deleting chain {name}", _chain(table, name))


def get_chains(table: Table) -> Message:
    """Dump the chains of the table's family (the kernel does not filter by table here)."""
    return _message(table, _GETCHAIN, 0, "listing chains")


def chain_of(body: bytes) -> tuple[str, str]:
    """Table and name of a dumped chain."""
    found = attributes(body, 4)
    return _text(found.get(_CHAIN_TABLE, b"")), _text(found.get(_CHAIN_NAME, b""))


def _rules(table: Table, chain: Chain) -> bytes:
    return text_attribute(_RULE_TABLE, table.name) + text_attribute(_RULE_CHAIN, chain.name)


def flush_chain(table: Table, chain: Chain) -> Message:
    """Delete the rules of a chain."""
    return _message(table, _DELRULE, 0, f"flushing chain {chain.name}", _rules(table, chain))


def get_rules(table: Table, chain: Chain) -> Message:
    """Dump the rules of one chain."""
    return _message(table, _GETRULE, 0, f"listing chain {chain.name}", _rules(table, chain))


def rule_comment(body: bytes) -> str:
    """The comment of a dumped rule."""
    return _comment(attributes(body, 4).get(_RULE_USERDATA, b""))


def _set(table: Table, spec: Set) -> bytes:
    return text_attribute(_SET_TABLE, table.name) + text_attribute(_SET_NAME, spec.name)


def get_set(table: Table, spec: Set) -> Message:
    """Ask for the set (ENOENT: there is none)."""
    return _message(table, _GETSET, 0, f"looking for set {spec.name}", _set(table, spec))


def element_count(body: bytes) -> int | None:
    """How many elements a set has, in the answer to `get_set`; None where the kernel does not say."""
    count = attributes(body, 4).get(_SET_COUNT)
    return None if count is None else int.from_bytes(count, "big")


def delete_empty_set(table: Table, spec: Set) -> Message:
    """Delete a set; fail (EBUSY) if it has elements (NLM_F_NONREC), as no other request can tell within the kernel's
    lock."""
    return _message(table, _DELSET, NLM_F_NONREC, f"deleting set {spec.name}", _set(table, spec))


def new_element(table: Table, element: Element) -> Message:
    """Add an element; fail (EEXIST) if its key is taken, or for a shared one: taken with another value."""
    spec = table.set(element.set_name)
    parts = [_key(spec, *key_bytes(spec, element))]
    if spec.value:
        parts.append(_data(_ELEM_DATA, value_bytes(spec, element)))
    comment = element.owner.encode() + b"\0"
    parts.append(attribute(_ELEM_USERDATA, bytes((0, len(comment))) + comment))
    flags = NLM_F_CREATE if element.shared else NLM_F_CREATE | NLM_F_EXCL
    doing = f"adding {'.'.join(map(str, element.key))} to {element.set_name}"
    return _elements(table, spec, _NEWSETELEM, flags, doing, b"".join(parts))


def delete_element(table: Table, element: Element) -> Message:
    """Delete the element with this key."""
    spec = table.set(element.set_name)
    doing = f"deleting {'.'.join(map(str, element.key))} from {element.set_name}"
    return _elements(table, spec, _DELSETELEM, 0, doing, _key(spec, *key_bytes(spec, element)))


def get_element(table: Table, element: Element) -> Message:
    """Ask for the element with this key (ENOENT: there is none)."""
    spec = table.set(element.set_name)
    doing = f"looking into {element.set_name}"
    return _elements(table, spec, _GETSETELEM, 0, doing, _key(spec, *key_bytes(spec, element)))


def get_elements(table: Table, spec: Set) -> Message:
    """Dump the elements of a set."""
    return _elements(table, spec, _GETSETELEM, 0, f"listing {spec.name}")


def delete_raw_elements(table: Table, spec: Set, keys: list[RawElement]) -> Message:
    """Delete elements as a dump returned them."""
    entries = (_key(spec, raw.key, raw.key_end) for raw in keys)
    return _elements(table, spec, _DELSETELEM, 0, f"deleting from {spec.name}", *entries)


def _elements(table: Table, spec: Set, kind: int, flags: int, doing: str, *entries: bytes) -> Message:
    names = text_attribute(_LIST_TABLE, table.name) + text_attribute(_LIST_SET, spec.name)
    listed = nested(_LIST_ELEMENTS, *(nested(_LIST_ELEM, entry) for entry in entries)) if entries else b""
    return _message(table, kind, flags, doing, names, listed)


def _key(spec: Set, first: bytes, last: bytes) -> bytes:
    key = _data(_ELEM_KEY, first)
    return key + _data(_ELEM_KEY_END, last) if spec.interval and last else key


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


class RawElement:
    """An element as the kernel returned it: key, end of the key's interval, value, owner."""

    __slots__ = ("key", "key_end", "owner", "value")

    def __init__(self, body: bytes) -> None:
        found = attributes(body)
        self.key = _value(found.get(_ELEM_KEY, b""))
        self.value = _value(found.get(_ELEM_DATA, b""))
        self.key_end = _value(found.get(_ELEM_KEY_END, b""))
        self.owner = _comment(found.get(_ELEM_USERDATA, b""))

    def __repr__(self) -> str:
        return f"RawElement({self.key.hex()}, owner={self.owner!r})"


def elements_of(body: bytes) -> list[RawElement]:
    """The elements in one message of a dump."""
    return [RawElement(entry) for _, entry in walk(attributes(body, 4).get(_LIST_ELEMENTS, b""))]


def key_bytes(spec: Set, element: Element) -> tuple[bytes, bytes]:
    """The element's key as the kernel holds it: first and last."""
    pairs = [t.encode(v) for t, v in zip(spec.key, element.key, strict=True)]
    return _join(first for first, _ in pairs), _join(last for _, last in pairs)


def value_bytes(spec: Set, element: Element) -> bytes:
    """The element's value as the kernel holds it."""
    return _join(t.encode(v)[0] for t, v in zip(spec.value, element.value, strict=True))


def _join(parts: Iterable[bytes]) -> bytes:
    """One field as it is; of several each starts a new register, which is 4 bytes wide."""
    fields = tuple(parts)
    return fields[0] if len(fields) == 1 else b"".join(field + b"\0" * (-len(field) % 4) for field in fields)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _value(data: bytes) -> bytes:
    return attributes(data).get(_DATA_VALUE, b"")


def _comment(userdata: bytes) -> str:
    """The comment in libnftnl's user data: type 0, length, text with a final NUL."""
    if len(userdata) < 2 or userdata[0] != 0:
        return ""
    return _text(userdata[2 : 2 + userdata[1]])
