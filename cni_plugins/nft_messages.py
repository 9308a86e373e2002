"""nftables values (nft.py) as pyroute2's netlink messages, and back where CHECK and GC must read.

pyroute2's message classes carry every expression; its high-level `pyroute2.nftables` does not (no maps, no
transaction over several objects), so this module builds on the classes alone. Source of the numbers:
linux/netfilter/nf_tables.h; of the form of concatenations and comments: libnftnl.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from pyroute2.netlink.nfnetlink.nftsocket import (
    nft_chain_msg,
    nft_rule_msg,
    nft_set_elem_list_msg,
    nft_set_msg,
    nft_table_msg,
)

from .netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_NONREC,
    Message,
    attributes,
    encode,
    walk,
)
from .nft import (
    IFNAME,
    Chain,
    Dnat,
    Element,
    In,
    Masquerade,
    Match,
    Rule,
    Selector,
    Set,
    Statement,
    Table,
    Type,
    Verdict,
)

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN = 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_NEWSET, _GETSET, _DELSET = 9, 10, 11
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_SET_COUNT = 20  # NFTA_SET_COUNT of newer kernels; pyroute2 does not know it
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11

_FAMILIES = {"inet": 1, "bridge": 7}
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}  # NF_INET_*, NF_BR_* alike
_VERDICTS = {"accept": 1, "drop": 0, "return": -5, "jump": -3, "goto": -4}
_REG_VERDICT = 0
_REG_1 = 1  # 16 bytes wide, the same place as the 32-bit registers 8 to 11
_REG32_00 = 8
_NFT_SET_INTERVAL, _NFT_SET_MAP, _NFT_SET_CONCAT = "NFT_SET_INTERVAL", "NFT_SET_MAP", "NFT_SET_CONCAT"
_TYPE_BITS = 6  # a concatenation's type is its fields' numbers, six bits each

Attributes = list[tuple[str, Any]]


class _SetMessage(nft_set_msg):  # type: ignore[misc]  # pyroute2 has no types
    """pyroute2's set message nests the fields of a concatenation one level too deep; here they are plain bytes. All
    requests about sets use this class: pyroute2 compiles a class at its first use, and one derived from a compiled
    class keeps what that one had."""

    nla_map = tuple((name, "cdata" if name == "NFTA_SET_DESC" else kind) for name, kind in nft_set_msg.nla_map)


def _fields(types: tuple[Type, ...]) -> bytes:
    """NFTA_SET_DESC_CONCAT (2) { NFTA_LIST_ELEM (1) { NFTA_SET_FIELD_LEN (1) }, ... }"""
    elements = b"".join(struct.pack("=HHHH", 12, 1, 8, 1) + struct.pack("!I", t.size) for t in types)
    return struct.pack("=HH", 4 + len(elements), 2) + elements


def begin() -> Message:
    """The start of a transaction."""
    return Message(_BATCH_BEGIN, 0, struct.pack("!BBH", 0, 0, 10), "begin")


def end() -> Message:
    """The end of a transaction: the kernel does all of it, or nothing."""
    return Message(_BATCH_END, 0, struct.pack("!BBH", 0, 0, 10), "commit")


def _message(table: Table, kind: int, flags: int, message: Any, attrs: Attributes, doing: str) -> Message:
    message["nfgen_family"] = _FAMILIES[table.family]
    message["attrs"] = attrs
    return Message(_SUBSYSTEM | kind, flags | NLM_F_ACK, encode(message), f"{doing} (nft table {table.name})")


def new_table(table: Table, flags: int = 0) -> Message:
    """Make the table, without its content. With NLM_F_EXCL: fail if it is there."""
    attrs: Attributes = [("NFTA_TABLE_NAME", table.name)]
    return _message(table, _NEWTABLE, NLM_F_CREATE | flags, nft_table_msg(), attrs, "making the table")


def get_table(table: Table) -> Message:
    """Ask for the table (ENOENT: there is none)."""
    return _message(table, _GETTABLE, 0, nft_table_msg(), [("NFTA_TABLE_NAME", table.name)], "looking for the table")


def delete_table(table: Table) -> Message:
    """Delete the table with all that is in it."""
    return _message(table, _DELTABLE, 0, nft_table_msg(), [("NFTA_TABLE_NAME", table.name)], "deleting the table")


def require_schema(table: Table) -> Message:
    """Fail (ENOENT) unless the table is there in this very form: an update, without a change, of the schema chain."""
    attrs: Attributes = [("NFTA_CHAIN_TABLE", table.name), ("NFTA_CHAIN_NAME", table.schema)]
    return _message(table, _NEWCHAIN, 0, nft_chain_msg(), attrs, "looking for netloom's rules")


def get_schema(table: Table) -> Message:
    """Ask whether the table is there in this very form (ENOENT: it is not)."""
    attrs: Attributes = [("NFTA_CHAIN_TABLE", table.name), ("NFTA_CHAIN_NAME", table.schema)]
    return _message(table, _GETCHAIN, 0, nft_chain_msg(), attrs, "looking for netloom's rules")


def new_chain(table: Table, chain: Chain) -> Message:
    """Make the chain, without its rules."""
    attrs: Attributes = [("NFTA_CHAIN_TABLE", table.name), ("NFTA_CHAIN_NAME", chain.name)]
    if chain.hook:
        hook = [("NFTA_HOOK_HOOKNUM", _HOOKS[chain.hook.hook]), ("NFTA_HOOK_PRIORITY", chain.hook.priority)]
        attrs += [
            ("NFTA_CHAIN_HOOK", {"attrs": hook}),
            ("NFTA_CHAIN_TYPE", chain.hook.kind),
            ("NFTA_CHAIN_POLICY", _VERDICTS["accept"]),
        ]
    return _message(table, _NEWCHAIN, NLM_F_CREATE, nft_chain_msg(), attrs, f"making chain {chain.name}")


def delete_chain(table: Table, name: str) -> Message:
    """Delete a chain that nothing refers to."""
    attrs: Attributes = [("NFTA_CHAIN_TABLE", table.name), ("NFTA_CHAIN_NAME", name)]
    return _message(table, _DELCHAIN, 0, nft_chain_msg(), attrs, f"deleting chain {name}")


def get_chains(table: Table) -> Message:
    """Dump the chains of the table's family (the kernel does not filter by table here)."""
    return _message(table, _GETCHAIN, 0, nft_chain_msg(), [], "listing chains")


def chain_of(body: bytes) -> tuple[str, str]:
    """Table and name of a dumped chain."""
    found = attributes(body, 4)
    return _text(found.get(1, b"")), _text(found.get(3, b""))


def flush_chain(table: Table, chain: Chain) -> Message:
    """Delete the rules of a chain."""
    attrs: Attributes = [("NFTA_RULE_TABLE", table.name), ("NFTA_RULE_CHAIN", chain.name)]
    return _message(table, _DELRULE, 0, nft_rule_msg(), attrs, f"flushing chain {chain.name}")


def new_rule(table: Table, chain: Chain, rule: Rule) -> Message:
    """Append a rule."""
    expressions = [
        {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attrs})]}
        for statement in rule.statements
        for name, attrs in _with_dependency(statement)
    ]
    attrs: Attributes = [
        ("NFTA_RULE_TABLE", table.name),
        ("NFTA_RULE_CHAIN", chain.name),
        ("NFTA_RULE_EXPRESSIONS", expressions),
        ("NFTA_RULE_USERDATA", rule.comment),
    ]
    return _message(table, _NEWRULE, NLM_F_CREATE | NLM_F_APPEND, nft_rule_msg(), attrs, f"adding a rule: {rule.text}")


def get_rules(table: Table, chain: Chain) -> Message:
    """Dump the rules of one chain."""
    attrs: Attributes = [("NFTA_RULE_TABLE", table.name), ("NFTA_RULE_CHAIN", chain.name)]
    return _message(table, _GETRULE, 0, nft_rule_msg(), attrs, f"listing chain {chain.name}")


def rule_comment(body: bytes) -> str:
    """The comment of a dumped rule."""
    return _comment(attributes(body, 4).get(7, b""))


def new_set(table: Table, spec: Set, number: int) -> Message:
    """Make the set or map; `number` tells it from the others of one transaction."""
    flags = set()
    attrs: Attributes = [
        ("NFTA_SET_TABLE", table.name),
        ("NFTA_SET_NAME", spec.name),
        ("NFTA_SET_KEY_TYPE", _type_number(spec.key)),
        ("NFTA_SET_KEY_LEN", _size(spec.key)),
        ("NFTA_SET_ID", number),
    ]
    if spec.value:
        flags.add(_NFT_SET_MAP)
        attrs += [("NFTA_SET_DATA_TYPE", _type_number(spec.value)), ("NFTA_SET_DATA_LEN", _size(spec.value))]
    if spec.interval:
        flags.add(_NFT_SET_INTERVAL)
        assert len(spec.key) > 1, "an interval set of one field has another form of elements; none is needed so far"
    if len(spec.key) > 1 and spec.interval:
        flags.add(_NFT_SET_CONCAT)
        attrs.append(("NFTA_SET_DESC", _fields(spec.key)))
    attrs.append(("NFTA_SET_FLAGS", flags))
    if spec.key == (IFNAME,):
        # Only nft(8) reads it: names are in the host's byte order (1), or it prints them backwards.
        attrs.append(("NFTA_SET_USERDATA", [("NFTNL_UDATA_SET_KEYBYTEORDER", struct.pack("=I", 1))]))
    return _message(table, _NEWSET, NLM_F_CREATE, _SetMessage(), attrs, f"making set {spec.name}")


def get_set(table: Table, spec: Set) -> Message:
    """Ask for the set (ENOENT: there is none)."""
    attrs: Attributes = [("NFTA_SET_TABLE", table.name), ("NFTA_SET_NAME", spec.name)]
    return _message(table, _GETSET, 0, _SetMessage(), attrs, f"looking for set {spec.name}")


def element_count(body: bytes) -> int | None:
    """How many elements a set has, in the answer to `get_set`; None where the kernel does not say."""
    count = attributes(body, 4).get(_SET_COUNT)
    return None if count is None else int.from_bytes(count, "big")


def delete_empty_set(table: Table, spec: Set) -> Message:
    """Delete a set; fail (EBUSY) if it has elements (NLM_F_NONREC), as no other request can tell within the kernel's
    lock."""
    attrs: Attributes = [("NFTA_SET_TABLE", table.name), ("NFTA_SET_NAME", spec.name)]
    return _message(table, _DELSET, NLM_F_NONREC, _SetMessage(), attrs, f"deleting set {spec.name}")


def new_element(table: Table, element: Element) -> Message:
    """Add an element; fail (EEXIST) if its key is taken, or for a shared one: taken with another value."""
    doing = f"adding {'.'.join(map(str, element.key))} to {element.set_name}"
    flags = NLM_F_CREATE if element.shared else NLM_F_CREATE | NLM_F_EXCL
    return _element(table, element, _NEWSETELEM, flags, doing)


def delete_element(table: Table, element: Element) -> Message:
    """Delete the element with this key."""
    doing = f"deleting {'.'.join(map(str, element.key))} from {element.set_name}"
    return _element(table, element, _DELSETELEM, 0, doing)


def get_element(table: Table, element: Element) -> Message:
    """Ask for the element with this key (ENOENT: there is none)."""
    return _element(table, element, _GETSETELEM, 0, f"looking into {element.set_name}")


def get_elements(table: Table, spec: Set) -> Message:
    """Dump the elements of a set."""
    attrs: Attributes = [("NFTA_SET_ELEM_LIST_TABLE", table.name), ("NFTA_SET_ELEM_LIST_SET", spec.name)]
    return _message(table, _GETSETELEM, 0, nft_set_elem_list_msg(), attrs, f"listing {spec.name}")


def delete_raw_elements(table: Table, spec: Set, keys: list[RawElement]) -> Message:
    """Delete elements as a dump returned them."""
    entries = []
    for raw in keys:
        entry = _data("NFTA_SET_ELEM_KEY", raw.key)
        entries.append({"attrs": entry + (_data("NFTA_SET_ELEM_KEY_END", raw.key_end) if raw.key_end else [])})
    attrs: Attributes = [
        ("NFTA_SET_ELEM_LIST_TABLE", table.name),
        ("NFTA_SET_ELEM_LIST_SET", spec.name),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", entries),
    ]
    return _message(table, _DELSETELEM, 0, nft_set_elem_list_msg(), attrs, f"deleting from {spec.name}")


class RawElement:
    """An element as the kernel returned it: key, end of the key's interval, value, owner."""

    __slots__ = ("key", "key_end", "owner", "value")

    def __init__(self, body: bytes) -> None:
        found = attributes(body)
        self.key = _value(found.get(1, b""))
        self.value = _value(found.get(2, b""))
        self.key_end = _value(found.get(10, b""))
        self.owner = _comment(found.get(6, b""))

    def __repr__(self) -> str:
        return f"RawElement({self.key.hex()}, owner={self.owner!r})"


def elements_of(body: bytes) -> list[RawElement]:
    """The elements in one message of a dump."""
    return [RawElement(entry) for _, entry in walk(attributes(body, 4).get(3, b""))]


def key_bytes(spec: Set, element: Element) -> tuple[bytes, bytes]:
    """The element's key as the kernel holds it: first and last."""
    pairs = [t.encode(v) for t, v in zip(spec.key, element.key, strict=True)]
    return _join(first for first, _ in pairs), _join(last for _, last in pairs)


def value_bytes(spec: Set, element: Element) -> bytes:
    """The element's value as the kernel holds it."""
    return _join(t.encode(v)[0] for t, v in zip(spec.value, element.value, strict=True))


def _element(table: Table, element: Element, kind: int, flags: int, doing: str) -> Message:
    spec = table.set(element.set_name)
    first, last = key_bytes(spec, element)
    entry: Attributes = _data("NFTA_SET_ELEM_KEY", first)
    if spec.interval:
        entry += _data("NFTA_SET_ELEM_KEY_END", last)
    if kind == _NEWSETELEM:
        if spec.value:
            entry += _data("NFTA_SET_ELEM_DATA", value_bytes(spec, element))
        entry.append(("NFTA_SET_ELEM_USERDATA", [("NFTNL_UDATA_SET_ELEM_COMMENT", element.owner)]))
    attrs: Attributes = [
        ("NFTA_SET_ELEM_LIST_TABLE", table.name),
        ("NFTA_SET_ELEM_LIST_SET", spec.name),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [{"attrs": entry}]),
    ]
    return _message(table, kind, flags, nft_set_elem_list_msg(), attrs, doing)


def _data(name: str, value: bytes) -> Attributes:
    return [(name, {"attrs": [("NFTA_DATA_VALUE", value)]})]


def _join(parts: Iterable[bytes]) -> bytes:
    """One field as it is; of several each starts a new register, which is 4 bytes wide."""
    fields = tuple(parts)
    return fields[0] if len(fields) == 1 else b"".join(field + b"\0" * (-len(field) % 4) for field in fields)


def _size(types: tuple[Type, ...]) -> int:
    return types[0].size if len(types) == 1 else sum((t.size + 3) & ~3 for t in types)


def _type_number(types: tuple[Type, ...]) -> int:
    number = 0
    for t in types:
        number = number << _TYPE_BITS | t.number
    return number


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _value(data: bytes) -> bytes:
    return attributes(data).get(1, b"")


def _comment(userdata: bytes) -> str:
    """The comment in libnftnl's user data: type 0, length, text with a final NUL."""
    if len(userdata) < 2 or userdata[0] != 0:
        return ""
    return _text(userdata[2 : 2 + userdata[1]])


def _with_dependency(statement: Statement) -> list[tuple[str, Attributes]]:
    needs: dict[str, Match] = {}
    for selector in _selectors(statement):
        if selector.needs:
            needs[selector.needs.text] = selector.needs
    return [e for s in (*needs.values(), statement) for e in _expressions(s)]


def _selectors(statement: Statement) -> tuple[Selector, ...]:
    match statement:
        case Match(selector=selector):
            return (selector,)
        case In() | Dnat():
            return statement.selectors
        case _:
            return ()


def _expressions(statement: Statement) -> list[tuple[str, Attributes]]:
    match statement:
        case Match():
            return _match(statement)
        case In():
            lookup: Attributes = [("NFTA_LOOKUP_SET", statement.set_name), ("NFTA_LOOKUP_SREG", _REG32_00)]
            if statement.invert:
                lookup.append(("NFTA_LOOKUP_FLAGS", {"NFT_LOOKUP_F_INV"}))
            return [*_loads(statement.selectors), ("lookup", lookup)]
        case Dnat():
            port = _REG32_00 + (1 if statement.family == "ip" else 4)
            translate: Attributes = [
                ("NFTA_NAT_TYPE", 1),
                ("NFTA_NAT_FAMILY", 2 if statement.family == "ip" else 10),
                ("NFTA_NAT_REG_ADDR_MIN", _REG32_00),
                ("NFTA_NAT_REG_PROTO_MIN", port),
            ]
            find: Attributes = [
                ("NFTA_LOOKUP_SET", statement.map_name),
                ("NFTA_LOOKUP_SREG", _REG32_00),
                ("NFTA_LOOKUP_DREG", _REG32_00),
            ]
            return [*_loads(statement.selectors), ("lookup", find), ("nat", translate)]
        case Verdict():
            verdict: Attributes = [("NFTA_VERDICT_CODE", _VERDICTS[statement.kind])]
            if statement.chain:
                verdict.append(("NFTA_VERDICT_CHAIN", statement.chain))
            data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}
            return [("immediate", [("NFTA_IMMEDIATE_DREG", _REG_VERDICT), ("NFTA_IMMEDIATE_DATA", data)])]
        case Masquerade():
            return [("masq", [])]


def _match(statement: Match) -> list[tuple[str, Attributes]]:
    found = [_load(statement.selector, _REG_1)]
    if statement.mask:
        size = len(statement.mask)
        found.append(
            (
                "bitwise",
                [
                    ("NFTA_BITWISE_SREG", _REG_1),
                    ("NFTA_BITWISE_DREG", _REG_1),
                    ("NFTA_BITWISE_LEN", size),
                    *_data("NFTA_BITWISE_MASK", statement.mask),
                    *_data("NFTA_BITWISE_XOR", b"\0" * size),
                ],
            )
        )
    compare: Attributes = [
        ("NFTA_CMP_SREG", _REG_1),
        ("NFTA_CMP_OP", 1 if statement.invert else 0),
        *_data("NFTA_CMP_DATA", statement.value),
    ]
    return [*found, ("cmp", compare)]


def _loads(selectors: tuple[Selector, ...]) -> list[tuple[str, Attributes]]:
    found = []
    register = _REG32_00
    for selector in selectors:
        found.append(_load(selector, register))
        register += (selector.size + 3) // 4
    return found


def _load(selector: Selector, register: int) -> tuple[str, Attributes]:
    name, attrs = selector.load
    target = f"NFTA_{name.upper()}_DREG"
    return name, [*((f"NFTA_{key}", value) for key, value in attrs.items()), (target, register)]
