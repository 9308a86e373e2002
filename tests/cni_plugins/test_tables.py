"""Transactions on an nft table: what is taken is told, rules of another form are replaced, nobody's element is lost."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from cni_plugins import nft_requests, tables
from cni_plugins.netlink import KernelError, NetlinkSocket, encode, walk
from cni_plugins.nft import IP_SADDR, IPV4_ADDR, Chain, Element, Hook, In, Rule, Set, Table, Verdict
from namespaces import Namespace

HOOK = Hook("filter", "input", 0)
RULE = Rule((In((IP_SADDR,), "pods"), Verdict("accept")), "from a pod")
OTHER = Rule((In((IP_SADDR,), "pods"), Verdict("drop")), "not from a pod")


def table_of(*rules: Rule, sets: tuple[Set, ...] = (Set("pods", (IPV4_ADDR,)),)) -> Table:
    return Table("inet", "netloom_example", sets, (Chain("input", rules, HOOK),))


TABLE = table_of(RULE)


def pod(number: int, owner: str = "") -> Element:
    return Element("pods", (IPv4Address(f"10.1.0.{number}"),), owner or f"net/pod-{number}/eth0")


@pytest.fixture
def socket(host: Namespace) -> Iterator[NetlinkSocket]:
    with host.inside(), tables.open_nft() as opened:
        yield opened


def text(host: Namespace) -> str:
    return host.run("nft", "list", "ruleset").stdout


def test_a_table_comes_with_its_first_element_and_goes_with_its_last(host: Namespace, socket: NetlinkSocket) -> None:
    tables.ensure(socket, TABLE, [pod(2)], take_over=False)
    tables.ensure(socket, TABLE, [pod(3)], take_over=False)
    tables.remove(socket, TABLE, [pod(2)])
    assert "net/pod-3/eth0" in text(host)
    assert tables.exists(socket, TABLE)
    tables.remove(socket, TABLE, [pod(3)])
    assert text(host) == ""


def test_ensuring_twice_changes_nothing(host: Namespace, socket: NetlinkSocket) -> None:
    tables.ensure(socket, TABLE, [pod(2), pod(3)], take_over=False)
    before = text(host)
    tables.ensure(socket, TABLE, [pod(2), pod(3)], take_over=False)
    assert text(host) == before


def test_anothers_element_is_refused_by_name_and_nothing_is_added(host: Namespace, socket: NetlinkSocket) -> None:
    tables.ensure(socket, TABLE, [pod(2)], take_over=False)
    before = text(host)
    with pytest.raises(tables.Taken) as caught:
        tables.ensure(socket, TABLE, [pod(3), pod(2, "net/late/eth0")], take_over=False)
    assert caught.value.holder == "net/pod-2/eth0"
    assert "10.1.0.2 is taken by net/pod-2/eth0" in caught.value.msg
    assert text(host) == before


def test_taking_over_replaces_the_owner(host: Namespace, socket: NetlinkSocket) -> None:
    tables.ensure(socket, TABLE, [pod(2)], take_over=False)
    tables.ensure(socket, TABLE, [pod(2, "net/late/eth0"), pod(3)], take_over=True)
    assert "net/late/eth0" in text(host)
    assert "net/pod-2/eth0" not in text(host)
    tables.remove(socket, TABLE, [pod(2)])  # the DEL of the earlier owner comes late
    assert "net/late/eth0" in text(host)


def test_another_form_of_the_table_replaces_rules_and_keeps_elements(host: Namespace, socket: NetlinkSocket) -> None:
    tables.ensure(socket, table_of(OTHER), [pod(2)], take_over=False)
    tables.ensure(socket, TABLE, [pod(3)], take_over=False)
    shown = text(host)
    assert RULE.comment in shown
    assert OTHER.comment not in shown
    assert "net/pod-2/eth0" in shown
    assert "net/pod-3/eth0" in shown
    assert shown.count("schema-") == 1
    grown = table_of(OTHER, RULE, sets=(*TABLE.sets, Set("more", (IPV4_ADDR,))))
    tables.ensure(socket, grown, [pod(4)], take_over=False)
    assert tables.missing(socket, grown, [pod(2), pod(3), pod(4)]) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flush chain inet netloom_example input", "the rule 'from a pod' is missing"),
        ("insert rule inet netloom_example input accept", "in another order, or more than ours"),
        ("delete table inet netloom_example", "nft table inet netloom_example is missing"),
        ("delete element inet netloom_example pods { 10.1.0.2 }", "nft element 10.1.0.2 of netloom_example pods"),
    ],
)
def test_damage_is_named_and_rules_are_repaired(
    damage: str, words: str, host: Namespace, socket: NetlinkSocket
) -> None:
    tables.ensure(socket, TABLE, [pod(2), pod(3)], take_over=False)
    before = text(host)
    host.run("nft", *damage.split())
    assert words in (tables.missing(socket, TABLE, [pod(2)]) or "")
    if "chain" in damage or "rule" in damage:
        assert tables.repair(socket, TABLE)
        assert text(host) == before
    assert not tables.repair(socket, TABLE)


def test_anothers_element_under_our_key_is_named(socket: NetlinkSocket) -> None:
    tables.ensure(socket, TABLE, [pod(2)], take_over=False)
    assert "belongs to net/pod-2/eth0" in (tables.missing(socket, TABLE, [pod(2, "net/x/eth0")]) or "")


def test_sweep_keeps_what_is_valid_and_what_is_of_other_networks(host: Namespace, socket: NetlinkSocket) -> None:
    elements = [pod(2), pod(3), pod(4, "net2/a/eth0"), pod(5, "ne/a/eth0"), pod(6, "somebody")]
    tables.ensure(socket, TABLE, elements, take_over=False)
    tables.sweep(socket, TABLE, "net", frozenset(["net/pod-3/eth0"]))
    shown = text(host)
    assert "net/pod-2/eth0" not in shown
    assert all(e.owner in shown for e in elements[1:])
    tables.sweep(socket, TABLE, "net", frozenset())
    assert "net/pod-3/eth0" not in text(host)


def test_sweep_of_many_removes_all_and_the_table(host: Namespace, socket: NetlinkSocket) -> None:
    many = [Element("pods", (IPv4Address(0x0A000000 + i),), f"net/pod-{i}/eth0") for i in range(1000)]
    for start in range(0, 1000, 250):
        tables.ensure(socket, TABLE, many[start : start + 250], take_over=False)
    tables.sweep(socket, TABLE, "net", frozenset())
    assert text(host) == ""


def test_removing_by_owner_finds_what_del_was_not_told(host: Namespace, socket: NetlinkSocket) -> None:
    tables.ensure(socket, TABLE, [pod(2, "net/a/eth0"), pod(3, "net/a/eth0"), pod(4)], take_over=False)
    tables.remove(socket, TABLE, [pod(9, "net/a/eth0")])  # told a wrong address
    assert "net/a/eth0" not in text(host)
    assert "net/pod-4/eth0" in text(host)
    tables.remove_owner(socket, TABLE, "net/pod-4/eth0")
    tables.remove_owner(socket, TABLE, "net/pod-4/eth0")
    tables.remove(socket, TABLE, [pod(4)])
    assert text(host) == ""


def test_a_lasting_set_does_not_keep_the_table(host: Namespace, socket: NetlinkSocket) -> None:
    table = table_of(RULE, sets=(*TABLE.sets, Set("networks", (IPV4_ADDR,), lasting=True)))
    network = Element("networks", (IPv4Address("10.9.0.1"),), "a network")
    tables.ensure(socket, table, [pod(2), network], take_over=False)
    tables.remove(socket, table, [pod(2)])
    assert text(host) == ""


def test_a_table_that_got_an_element_meanwhile_is_not_dropped(socket: NetlinkSocket) -> None:
    """The kernel decides within its lock: a set with elements refuses to go, and with it the whole transaction."""
    tables.ensure(socket, TABLE, [pod(2)], take_over=False)
    with pytest.raises(KernelError) as caught:
        socket.run(
            [
                nft_requests.begin(),
                nft_requests.flush_chain(TABLE, TABLE.chains[0]),
                nft_requests.delete_empty_set(TABLE, TABLE.sets[0]),
                nft_requests.delete_table(TABLE),
                nft_requests.end(),
            ]
        )
    assert caught.value.number == errno.EBUSY
    assert tables.missing(socket, TABLE, [pod(2)]) is None


def test_a_plugin_loads_pyroute2_only_where_a_table_is_missing(host: Namespace) -> None:
    """It takes longer to import than the whole call; seen only in a fresh process."""
    script = (
        "import sys\n"
        "from cni_plugins import masquerade, tables\n"
        "tables.ensure(tables.open_nft(), masquerade.TABLE, (), take_over=False)\n"
        "print('pyroute2' in sys.modules)\n"
    )
    assert [host.run(sys.executable, "-c", script).stdout for _ in range(2)] == ["True\n", "False\n"]
    assert text(host).count("flags interval") == 2


def test_a_table_that_came_back_meanwhile_gets_no_rule_twice(host: Namespace, socket: NetlinkSocket) -> None:
    """Between the look at its chains and the making, others may drop it and make it again."""
    tables.ensure(socket, TABLE, [pod(2)], take_over=False)
    for names in ([], ["input"]):
        tables._remake(socket, TABLE, names)
        assert tables.missing(socket, TABLE, [pod(2)]) is None
        assert text(host).count("from a pod") == 1


def test_sixteen_processes_make_and_drop_one_table(host: Namespace) -> None:
    """Each is first and last many times; nobody's element may be lost, nobody may fail, nothing may stay."""
    children = []
    for number in range(2, 18):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with host.inside(), tables.open_nft() as socket:
                    for _ in range(12):
                        tables.ensure(socket, TABLE, [pod(number)], take_over=False)
                        assert tables.missing(socket, TABLE, [pod(number)]) is None
                        tables.remove(socket, TABLE, [pod(number)])
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 16
    assert text(host) == ""


@pytest.mark.parametrize("owner", ["net/pod/eth0", "n" * 100])
def test_an_element_is_what_pyroute2_would_send(owner: str) -> None:
    """Our bytes against its message class, for a concatenation with an interval."""
    from pyroute2.netlink.nfnetlink.nftsocket import nft_set_elem_list_msg

    table = table_of(RULE, sets=(Set("s", (IPV4_ADDR, IPV4_ADDR), interval=True),))
    element = Element("s", (IPv4Address("10.1.2.3"), IPv4Network("10.1.0.0/16")), owner)
    entry = [
        ("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", bytes((10, 1, 2, 3, 10, 1, 0, 0)))]}),
        ("NFTA_SET_ELEM_KEY_END", {"attrs": [("NFTA_DATA_VALUE", bytes((10, 1, 2, 3, 10, 1, 255, 255)))]}),
        ("NFTA_SET_ELEM_USERDATA", [("NFTNL_UDATA_SET_ELEM_COMMENT", owner)]),
    ]
    message = nft_set_elem_list_msg()
    message["nfgen_family"] = 1
    message["attrs"] = [
        ("NFTA_SET_ELEM_LIST_TABLE", table.name),
        ("NFTA_SET_ELEM_LIST_SET", "s"),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [{"attrs": entry}]),
    ]
    ours, theirs = nft_requests.new_element(table, element).body, encode(message)
    assert _flat(ours, 4) == _flat(theirs, 4)


def _flat(body: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """Attributes without their 'nested' flags, which pyroute2 leaves out here and there."""
    nests: dict[int, Any] = {3: {1: {1: {}, 2: {}, 10: {}}}}

    def walked(data: bytes, at: int, inner: dict[int, Any]) -> Iterator[tuple[int, bytes]]:
        for kind, value in walk(data, at):
            yield kind, b"" if kind in inner else value
            if kind in inner:
                yield from walked(value, 0, inner[kind])

    return list(walked(body, offset, nests))


def test_listed_json_of_nft_knows_our_comments(host: Namespace, socket: NetlinkSocket) -> None:
    tables.ensure(socket, TABLE, [pod(2)], take_over=False)
    listed = json.loads(host.run("nft", "--json", "list", "set", "inet", "netloom_example", "pods").stdout)
    (element,) = listed["nftables"][1]["set"]["elem"]
    assert element == {"elem": {"val": "10.1.0.2", "comment": "net/pod-2/eth0"}}
