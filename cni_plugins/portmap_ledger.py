"""Taking and giving back host ports: the transactions, who may add while another takes stock, route_localnet.

Adding holds a lock together with other adders; whoever takes stock holds it alone: to clear a mark (portmap_table.py)
whose mappings are gone, or to drop the table, and with it the guard of loopback, after the last mapping. Removing needs
no lock. The lock is the kernel's, of an open file: a killed process leaves it to nobody.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from . import addresses, nft_lookup, sysctl, tables
from .errors import CniError, Code
from .kernel import Kernel
from .netlink import NetlinkSocket
from .nft import PROTOCOLS, Element
from .nft_requests import key_bytes
from .portmap_table import ADDRESS_SETS, MARK_OWNER, SPECIFICS, TABLE, PortPlan, conditional_tables, localnet
from .results import IPAddress

_LOCK = "/run/netloom/portmap.lock"
_CLAIM_BYTES = 8  # protocol and port, each padded to 4: the end of a key of `specifics4`, all of one of `claims4`
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


@contextmanager
def _locked(how: int) -> Iterator[None]:
    os.makedirs(os.path.dirname(_LOCK), mode=0o755, exist_ok=True)
    fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def take(kernel: Kernel, plan: PortPlan) -> None:
    """Take the ports: all, or none. Raises CniError 104 naming the holder of one that is taken."""
    try:
        _take(kernel, plan)
    except CniError:
        drop_when_unused(kernel.nft)
        raise


def _take(kernel: Kernel, plan: PortPlan) -> None:
    try:
        with _locked(fcntl.LOCK_SH):
            _add(kernel, plan)
        return
    except tables.Taken as taken:
        if taken.holder != MARK_OWNER:
            raise _conflict(kernel.nft, taken) from taken
    with _locked(fcntl.LOCK_EX):
        clear_marks(kernel.nft)
        try:
            _add(kernel, plan)
        except tables.Taken as taken:
            raise _conflict(kernel.nft, taken) from taken


def _add(kernel: Kernel, plan: PortPlan) -> None:
    elements = plan.elements
    setting = localnet_setting(kernel, plan.towards)
    if setting and sysctl.read(setting) == "0":
        elements += (localnet(setting.split("/")[3]),)  # remembered first: a kill in between leaves nothing unknown
    with ExitStack() as undo:
        tables.ensure(kernel.nft, TABLE, elements, take_over=ADDRESS_SETS)
        undo.callback(tables.remove, kernel.nft, TABLE, _owned(plan.elements), drop=False)
        if plan.conditional_table is not None:
            tables.ensure(kernel.nft, plan.conditional_table, plan.conditional, take_over=False)
            undo.callback(tables.remove, kernel.nft, plan.conditional_table, plan.conditional)
        if setting:
            sysctl.write(setting, "1")
        undo.pop_all()


def localnet_setting(kernel: Kernel, towards: IPAddress | None) -> str:
    """The sysctl that routes loopback addresses towards the pod; empty where none is needed or no link leads there."""
    link = addresses.link_towards(kernel.host, towards) if towards is not None else ""
    return f"net/ipv4/conf/{link}/route_localnet" if link else ""


def is_held(socket: NetlinkSocket, elements: tuple[Element, ...]) -> bool:
    """Whether their owner holds any of these. Its ledger is the first to come and the last to go, in one transaction:
    where it has nothing there, it has nothing at all."""
    return tables.holds(socket, TABLE, _owned(elements))


def give_back(socket: NetlinkSocket, plan: PortPlan) -> bool:
    """Remove what the plan added, by key. Returns whether there was anything."""
    held = is_held(socket, plan.elements)
    if held and not tables.holds(socket, *plan.translating):
        # The conditions were changed since ADD, or an earlier DEL was killed.
        give_back_by_owner(socket, _owned(plan.elements)[0].owner)
    elif held:
        if plan.conditional_table is not None:
            tables.remove(socket, plan.conditional_table, plan.conditional)
        tables.remove(socket, TABLE, _owned(plan.elements), drop=False)
    drop_when_unused(socket)  # in any case: an earlier DEL may have been killed before it did
    return held


def give_back_by_owner(socket: NetlinkSocket, owner: str) -> None:
    """Remove all that carries `owner`, under any conditions, by listing."""
    for table in conditional_tables(nft_lookup.table_names(socket, "inet")):
        tables.remove_owner(socket, table, owner)
    tables.remove_owner(socket, TABLE, owner, drop=False)
    drop_when_unused(socket)


def _owned(elements: tuple[Element, ...]) -> tuple[Element, ...]:
    return tuple(element for element in elements if not element.shared)


def clear_marks(socket: NetlinkSocket) -> None:
    """Remove the marks whose mappings are all gone. The caller holds the lock alone."""
    stale = []
    for claims, specifics in SPECIFICS.items():
        marks = [raw for raw in tables.list_elements(socket, TABLE, claims) if raw.owner == MARK_OWNER]
        if not marks:
            continue
        held = {raw.key[-_CLAIM_BYTES:] for raw in tables.list_elements(socket, TABLE, specifics)}
        stale += [(claims, raw) for raw in marks if raw.key not in held]
    tables.delete_elements(socket, TABLE, stale)


def take_stock(socket: NetlinkSocket) -> None:
    """For GC: clear marks, drop the table if nobody needs it."""
    if not tables.exists(socket, TABLE):
        return
    with _locked(fcntl.LOCK_EX):
        clear_marks(socket)
    drop_when_unused(socket)


def drop_when_unused(socket: NetlinkSocket) -> None:
    """Drop the table after the last mapping, and take back route_localnet where we gave it: without the table nothing
    guards loopback."""
    if not tables.exists(socket, TABLE) or _is_used(socket):
        return
    with _locked(fcntl.LOCK_EX):
        if _is_used(socket):
            return
        clear_marks(socket)
        for raw in tables.list_elements(socket, TABLE, "localnets"):
            setting = f"net/ipv4/conf/{raw.key.rstrip(bytes(1)).decode()}/route_localnet"
            if sysctl.read(setting) is not None:
                sysctl.write(setting, "0")
        tables.drop_if_empty(socket, TABLE)


def _is_used(socket: NetlinkSocket) -> bool:
    pods = [spec for spec in TABLE.sets if spec.name not in SPECIFICS and not spec.lasting]
    if tables.has_elements(socket, TABLE, pods):
        return True
    return any(raw.owner != MARK_OWNER for claims in SPECIFICS for raw in tables.list_elements(socket, TABLE, claims))


def _conflict(socket: NetlinkSocket, taken: tables.Taken) -> CniError:
    element, holder = taken.element, taken.holder
    if holder == MARK_OWNER:
        claim, _ = key_bytes(TABLE.set(element.set_name), element)
        raws = tables.list_elements(socket, TABLE, SPECIFICS[element.set_name])
        holder = next((raw.owner for raw in raws if raw.key[-_CLAIM_BYTES:] == claim), "somebody")
    *address, protocol, port = element.key
    where = "".join(f"{part} " for part in address)
    name = _PROTOCOL_NAMES.get(int(str(protocol)), str(protocol))
    network = holder.split("/")[0]
    return CniError(
        Code.CONFLICT,
        f"host port {where}{port}/{name} is held by {holder or 'somebody else'}",
        f"use another hostPort or hostIP, or remove that pod; GC of network {network} frees what a dead pod holds",
    )
