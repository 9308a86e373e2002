"""What makes nftables tables: tables, chains, rules and sets (nft.py) as pyroute2's netlink messages.

pyroute2's message classes carry every expression; its high-level `pyroute2.nftables` does not (no maps, no
transaction over several objects), so this module builds on the classes alone. All other requests, elements among them,
are in nft_requests.py. Source of the numbers: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from typing import Any

from pyroute2.netlink.nfnetlink.nftsocket import (
    nft_chain_msg,
    nft_rule_msg,
    nft_set_msg,
    nft_table_msg,
)

from .netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    encode,
)
from .nft import (
    IFNAME,
    Chain,
    Dnat,
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
from .nft_requests import FAMILIES, NEWCHAIN, SUBSYSTEM

_NEWTABLE, _NEWRULE, _NEWSET = 0, 6, 9
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


def _message(table: Table, kind: int, flags: int, message: Any, attrs: Attributes, doing: str) -> Message:
    message["nfgen_family"] = FAMILIES[table.family]
    message["attrs"] = attrs
    return Message(SUBSYSTEM | kind, flags | NLM_F_ACK, encode(message), f"{doing} (nft table {table.name})")


def new_table(table: Table, flags: int = 0) -> Message:
    """Make the table, without its content. With NLM_F_EXCL: fail if it is there."""
    attrs: Attributes = [("NFTA_TABLE_NAME", table.name)]
    return _message(table, _NEWTABLE, NLM_F_CREATE | flags, nft_table_msg(), attrs, "making the table")


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
    return _message(table, NEWCHAIN, NLM_F_CREATE, nft_chain_msg(), attrs, f"making chain {chain.name}")


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


def _data(name: str, value: bytes) -> Attributes:
    return [(name, {"attrs": [("NFTA_DATA_VALUE", value)]})]


def _size(types: tuple[Type, ...]) -> int:
    return types[0].size if len(types) == 1 else sum((t.size + 3) & ~3 for t in types)


def _type_number(types: tuple[Type, ...]) -> int:
    number = 0
    for t in types:
        number = number << _TYPE_BITS | t.number
    return number


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
