"""Transactions on netloom's nft tables: elements come and go by owner, rules stay, an empty table goes.

`ensure` adds elements in one transaction that also requires the table in its present form; only where that fails are
the rules made (again). `remove` deletes by key what carries the owner's tag. Nothing here is proportional to the
number of pods but `remove_owner` and `sweep`, which list the sets: they serve a DEL that was told nothing, and GC.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence

from . import nft_requests as requests
from .errors import CniError, Code
from .netlink import NETLINK_NETFILTER, NLM_F_EXCL, Answer, KernelError, Message, NetlinkSocket
from .netns import Netns
from .nft import Chain, Element, Rule, Set, Table
from .owner import is_stale

_RETRIES = 50  # two plugins may make and drop the same table in turn; each try is one transaction


def open_nft(netns: Netns | None = None) -> NetlinkSocket:
    """A socket for nftables in `netns` (None: the caller's)."""
    return NetlinkSocket(NETLINK_NETFILTER, netns)


class Taken(CniError):
    """An element's key is held by somebody else."""

    def __init__(self, element: Element, holder: str) -> None:
        key = " . ".join(map(str, element.key))
        super().__init__(Code.CONFLICT, f"{key} is taken by {holder or 'somebody else'} (nft set {element.set_name})")
        self.element = element
        self.holder = holder


def _transaction(socket: NetlinkSocket, body: Sequence[Message]) -> None:
    socket.run([requests.begin(), *body, requests.end()])


def ensure(
    socket: NetlinkSocket, table: Table, elements: Sequence[Element], *, take_over: bool | Collection[str]
) -> None:
    """Add the elements, and the table where it is missing, in one transaction. An element that is there already and
    ours is fine; another owner's is replaced with `take_over` (its pod is gone: the address is ours now), and refused
    otherwise; `take_over` may name the sets where that holds. Raises Taken or KernelError, and then nothing has
    changed."""
    if socket.exchange([requests.get_schema(table)])[0].number:
        _make(socket, table)  # asking first is cheaper than a transaction that fails: the kernel waits after those
    wanted = [requests.require_schema(table)] + [requests.new_element(table, e) for e in elements]
    for _ in range(_RETRIES):
        try:
            _transaction(socket, wanted)
            return
        except KernelError as error:
            if error.number == errno.ENOENT and error.index == 1:
                _make(socket, table)
                continue
            if error.number not in (errno.EEXIST, errno.EBUSY):
                raise
        # Some key is taken. By whom? A get answers in the order asked.
        wanted = [requests.require_schema(table)]
        for element, held in zip(elements, _lookup(socket, table, elements, overlapping=True), strict=True):
            spec = table.set(element.set_name)
            may_take = take_over if isinstance(take_over, bool) else element.set_name in take_over
            if held is None:
                wanted.append(requests.new_element(table, element))
            elif element.shared and not _has_key(spec, element, held):
                continue  # it lies within this interval, which will do
            elif element.shared and held.value == requests.value_bytes(spec, element):
                wanted.append(requests.new_element(table, element))  # again: it may go in the meantime
            elif held.owner != element.owner and not may_take:
                raise Taken(element, held.owner)
            elif not _is_same(spec, element, held):
                wanted += [requests.delete_raw_elements(table, spec, [held]), requests.new_element(table, element)]
    raise CniError(Code.TRY_AGAIN, f"nft table {table.name} changed {_RETRIES} times while we tried to add to it")


def _make(socket: NetlinkSocket, table: Table) -> None:
    """Make table, sets, chains and rules; rules of another form are replaced, elements stay."""
    from . import nft_messages  # pyroute2 is loaded where there is a table to make

    try:
        _transaction(socket, [nft_messages.new_table(table, NLM_F_EXCL), *_content(table)])
        return
    except KernelError as error:
        if error.number != errno.EEXIST:
            raise
    names = _chain_names(socket, table)
    if table.schema in names:
        return  # somebody else made it in the meantime
    _remake(socket, table, names)


def _remake(socket: NetlinkSocket, table: Table, names: Sequence[str]) -> None:
    from . import nft_messages

    old = [requests.delete_chain(table, name) for name in names if name.startswith("schema-")]
    try:
        _transaction(socket, [nft_messages.new_table(table), *old, *_content(table)])
    except KernelError as error:
        if error.number in (errno.ENOENT, errno.EBUSY) and old:
            return  # somebody else remade or dropped it first: the caller's next try tells
        raise


def _content(table: Table) -> list[Message]:
    """What is made in a table: sets, chains, rules, and last the chain that says which form this is. The chains are
    flushed first: somebody may have made them since anybody looked, and rules only ever add up."""
    from . import nft_messages

    return [
        *(nft_messages.new_set(table, spec, number) for number, spec in enumerate(table.sets, 1)),
        *(nft_messages.new_chain(table, chain) for chain in table.chains),
        *(requests.flush_chain(table, chain) for chain in table.chains),
        *(nft_messages.new_rule(table, chain, rule) for chain in table.chains for rule in chain.rules),
        nft_messages.new_chain(table, Chain(table.schema)),
    ]


def _chain_names(socket: NetlinkSocket, table: Table) -> list[str]:
    found = map(requests.chain_of, socket.dump(requests.get_chains(table)))
    return [name for owner, name in found if owner == table.name]


def repair(socket: NetlinkSocket, table: Table) -> bool:
    """Make the rules anew where some are missing from a table that exists. Returns whether it did."""
    if not exists(socket, table) or missing_rule(socket, table) is None:
        return False
    _remake(socket, table, _chain_names(socket, table))
    return True


def exists(socket: NetlinkSocket, table: Table) -> bool:
    """Whether the table is there, in its present form or another."""
    found = socket.exchange([requests.get_table(table)])[0]
    return found.number == 0


def _lookup(
    socket: NetlinkSocket, table: Table, elements: Sequence[Element], *, overlapping: bool = False
) -> Iterator[requests.RawElement | None]:
    """What the kernel holds under each element's key; `overlapping`: or, in an interval set, over its first value."""
    for element, answer in zip(
        elements, socket.exchange([requests.get_element(table, e) for e in elements]), strict=True
    ):
        yield _held(table.set(element.set_name), element, answer, overlapping=overlapping)


def _held(spec: Set, element: Element, answer: Answer, *, overlapping: bool) -> requests.RawElement | None:
    for body in answer.bodies:
        for raw in requests.elements_of(body):
            if overlapping or _has_key(spec, element, raw):
                return raw
    return None


def _has_key(spec: Set, element: Element, raw: requests.RawElement) -> bool:
    key, key_end = requests.key_bytes(spec, element)
    return raw.key == key and (not spec.interval or raw.key_end == key_end)


def _is_same(spec: Set, element: Element, raw: requests.RawElement) -> bool:
    return (
        raw.owner == element.owner and raw.value == requests.value_bytes(spec, element) and _has_key(spec, element, raw)
    )


def missing(socket: NetlinkSocket, table: Table, elements: Sequence[Element]) -> str | None:
    """The first rule or element that does not hold, in words; None when all is well."""
    if not exists(socket, table):
        return f"nft table {table.family} {table.name} is missing"
    if (gone := missing_rule(socket, table)) is not None:
        return gone
    found = (held for e in elements for held in _lookup(socket, table, [e], overlapping=e.shared))
    for element, held in zip(elements, found, strict=True):
        spec = table.set(element.set_name)
        words = f"nft element {' . '.join(map(str, element.key))} of {table.name} {element.set_name}"
        if held is None:
            return f"{words} is missing"
        if held.owner != element.owner and not element.shared:
            return f"{words} belongs to {held.owner or 'nobody'}"
        if spec.value and held.value != requests.value_bytes(spec, element):
            return f"{words} leads elsewhere"
    return None


def missing_rule(socket: NetlinkSocket, table: Table) -> str | None:
    """The first rule that is gone, in words."""
    for chain in table.chains:
        message = requests.get_rules(table, chain)
        message.tolerated = frozenset((errno.ENOENT,))
        found = [requests.rule_comment(body) for body in socket.dump(message)]
        wanted = list(chain.rules)
        if [rule.comment for rule in wanted] != found:
            gone = [rule for rule in wanted if rule.comment not in found]
            what = _rule_words(gone[0]) if gone else "its rules are in another order, or more than ours"
            return f"nft chain {table.name} {chain.name}: {what}"
    return None


def _rule_words(rule: Rule) -> str:
    return f"the rule '{rule.comment}' is missing"


def holds(socket: NetlinkSocket, table: Table, elements: Sequence[Element]) -> bool:
    """Whether one of the elements is there and carries its owner's tag."""
    found = zip(elements, _lookup(socket, table, elements), strict=True)
    return any(held is not None and held.owner == element.owner for element, held in found)


def holders(socket: NetlinkSocket, table: Table, elements: Sequence[Element]) -> list[str]:
    """The owner of each element's key, as it is now; empty where nobody holds it."""
    return [held.owner if held else "" for held in _lookup(socket, table, elements)]


def remove(
    socket: NetlinkSocket, table: Table, elements: Sequence[Element], *, drop: bool = True, expected: bool = True
) -> None:
    """Delete those of the elements that are there and carry their owner's tag; shared ones stay. Drop the table if it
    is empty then. Where not all were found, the owner may hold others (its address was changed since ADD): then by
    listing; but not where none was `expected` and none found."""
    elements = [element for element in elements if not element.shared]
    if not elements or not exists(socket, table):
        return
    for _ in range(_RETRIES):
        ours = [
            requests.delete_element(table, element)
            for element, held in zip(elements, _lookup(socket, table, elements), strict=True)
            if held is not None and held.owner == element.owner
        ]
        if not ours and not expected:
            break
        if len(ours) < len(elements):
            remove_owner(socket, table, elements[0].owner, drop=drop)
            return
        try:
            _transaction(socket, ours)
        except KernelError as error:
            if error.number != errno.ENOENT:
                raise
            continue  # a parallel DEL or GC of the same attachment was faster
        break
    if drop:
        drop_if_empty(socket, table)


def remove_owner(socket: NetlinkSocket, table: Table, owner: str, *, drop: bool = True) -> None:
    """Delete all that carries `owner`, by listing: for a DEL that was not told what ADD had made."""
    _remove_where(socket, table, lambda tag: tag == owner, drop=drop)


def sweep(socket: NetlinkSocket, table: Table, network: str, valid: frozenset[str], *, drop: bool = True) -> None:
    """GC: delete what carries a tag of `network` that is not in `valid`."""
    _remove_where(socket, table, lambda tag: is_stale(tag, network, valid), drop=drop)


def list_elements(socket: NetlinkSocket, table: Table, set_name: str) -> list[requests.RawElement]:
    """All elements of a set; none where the set or the table is missing."""
    listing = requests.get_elements(table, table.set(set_name))
    listing.tolerated = frozenset((errno.ENOENT,))
    return [raw for body in socket.dump(listing) for raw in requests.elements_of(body)]


def delete_elements(socket: NetlinkSocket, table: Table, elements: Sequence[tuple[str, requests.RawElement]]) -> None:
    """Delete elements, each with its set's name, as they were listed, in one transaction."""
    if elements:
        _transaction(socket, [requests.delete_raw_elements(table, table.set(name), [raw]) for name, raw in elements])


def _remove_where(socket: NetlinkSocket, table: Table, goes: Callable[[str], bool], *, drop: bool) -> None:
    if not exists(socket, table):
        return
    for _ in range(_RETRIES):
        deletions = []
        for spec in table.sets:
            stale = [raw for raw in list_elements(socket, table, spec.name) if goes(raw.owner)]
            deletions += [
                requests.delete_raw_elements(table, spec, stale[i : i + 100]) for i in range(0, len(stale), 100)
            ]
        if not deletions:
            break
        try:
            _transaction(socket, deletions)
        except KernelError as error:
            if error.number != errno.ENOENT:
                raise
            continue
        break
    if drop:
        drop_if_empty(socket, table)


def drop_if_empty(socket: NetlinkSocket, table: Table) -> None:
    """Delete the table unless a set holds something of a pod. The kernel decides, within its lock: a set with
    elements refuses to go, and then all stays."""
    pods = [spec for spec in table.sets if not spec.lasting]
    if not exists(socket, table) or has_elements(socket, table, pods):
        return
    flush = [requests.flush_chain(table, chain) for chain in table.chains]
    try:
        _transaction(
            socket, [*flush, *(requests.delete_empty_set(table, spec) for spec in pods), requests.delete_table(table)]
        )
    except KernelError as error:
        if error.number not in (errno.EBUSY, errno.ENOENT):
            raise


def has_elements(socket: NetlinkSocket, table: Table, sets: Sequence[Set]) -> bool:
    """Whether any of the sets has an element. Older kernels do not count them: then the first datagram of a dump
    tells."""
    for spec, answer in zip(sets, socket.exchange([requests.get_set(table, spec) for spec in sets]), strict=True):
        count = requests.element_count(answer.bodies[0]) if answer.bodies else 0
        if count is None:
            listing = requests.get_elements(table, spec)
            listing.tolerated = frozenset((errno.ENOENT,))
            count = sum(len(requests.elements_of(body)) for body in socket.first_of_dump(listing))
        if count:
            return True
    return False
