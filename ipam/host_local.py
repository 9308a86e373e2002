"""host-local: addresses out of ranges, kept in the reference plugin's directory (store.py).

ADD takes one address out of each range set, or none at all; DEL needs neither namespace nor ranges; CHECK wants the
reservation; GC frees what no valid attachment holds; STATUS tells whether each set has a free address left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from cni_plugins.errors import CniError, Code, check_failed, from_os_error
from cni_plugins.protocol import Call, Config
from cni_plugins.results import Dns, IPConfig, Result
from cni_plugins.skel import Plugin

from .allocate import assign_requests, exhausted, search_order
from .ranges import RangeSet, Settings, data_dir_of, parse_resolv_conf, parse_settings, to_address, to_number
from .store import Store, last_reserved, opened, owner_content, state_of, taken_numbers


def add(call: Call) -> Result:
    """Reserve one address of each range set."""
    settings = parse_settings(call.config, call.args)
    requests = assign_requests(settings.sets, settings.requested)
    dns = _dns(settings)
    content = owner_content(call.container_id, call.ifname)
    directory = _directory(call.config)
    with opened(directory, create=True) as store, ExitStack() as undo:
        assert store is not None, "created above"
        _refuse_duplicate(store, call, settings.sets)
        numbers = []
        for position, (range_set, request) in enumerate(zip(settings.sets, requests, strict=True)):
            if request is None:
                number = _reserve_next(store, directory, range_set, position, content)
            else:
                number = _reserve_requested(store, request, content)
            undo.callback(store.release, number, content)
            store.remember_last(position, number)
            numbers.append(number)
        undo.pop_all()
    return _result(settings, numbers, dns)


def delete(call: Call) -> None:
    """Free all addresses of the attachment. Reads no ranges: they may have changed since ADD."""
    with opened(_directory(call.config), create=False) as store:
        if store is None:
            return
        for content in _contents(call):
            numbers = store.owned_by(content)
            for number in numbers:
                store.release(number, content)
            if numbers:
                return  # as the reference: an old version's files count only where there are no others


def check(call: Call) -> None:
    """The attachment has an address, and those of prevResult out of our ranges are its own."""
    settings = parse_settings(call.config, call.args)
    held: set[int] = set()
    with opened(_directory(call.config), create=False) as store:
        if store is not None:
            for content in _contents(call):
                held.update(store.owned_by(content))
    if not held:
        raise check_failed(f"{call.container_id} {call.ifname} has no address in network {call.config.name}")
    previous = call.config.prev_result or Result()
    for ip in previous.ips:
        number = to_number(ip.address.ip)
        if number not in held and any(number in range_set for range_set in settings.sets):
            raise check_failed(
                f"{ip.address.ip} is not reserved for {call.container_id} {call.ifname}",
                "another pod may get it, too",
            )


def gc(call: Call) -> None:
    """Free what is not of a valid attachment. Raises CniError 107 after having gone through everything."""
    owners = call.config.valid_attachments()
    valid = {owner_content(owner.container_id, owner.ifname) for owner in owners}
    valid |= {owner.container_id.encode(errors="surrogateescape") for owner in owners}  # an old version's files
    directory = _directory(call.config)
    with opened(directory, create=False) as store:
        if store is None:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(state_of(directory), "index"))  # of a directory that somebody removed
            return
        errors = store.sweep(valid.__contains__)
    if errors:
        words = "; ".join(str(error) for error in errors[:5])
        raise CniError(Code.SWEEP_FAILED, f"GC could not free {len(errors)} files in {directory}", words)


def status(call: Call) -> None:
    """Whether an ADD would find an address in each set. Raises CniError 50, or 7 for a wrong configuration."""
    settings = parse_settings(call.config, call.args)
    directory = _directory(call.config)
    existing = directory
    while not os.path.lexists(existing) and existing not in ("", "/"):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing or ".") or not os.access(existing or ".", os.W_OK | os.X_OK):
        raise CniError(Code.NOT_AVAILABLE, f"{existing} is not a directory that can be written", "see ipam.dataDir")
    try:
        with opened(directory, create=False) as store:
            if store is None:
                return
            for position, range_set in enumerate(settings.sets):
                if _next_free(store, range_set, None) is None:
                    error = exhausted(range_set, position)
                    raise CniError(Code.NOT_AVAILABLE, error.msg, error.details)
    except OSError as error:
        failure = from_os_error(error, "reading the reservations")
        raise CniError(Code.NOT_AVAILABLE, failure.msg, "see ipam.dataDir") from error


def explain(call: Call) -> str:
    """The ranges and the next address of each, without lock and without a trace."""
    settings = parse_settings(call.config, call.args)
    directory = _directory(call.config)
    lines = [f"reservations in {directory}: {len(taken_numbers(directory))}"]
    requests = assign_requests(settings.sets, settings.requested)
    for position, (request, free) in enumerate(zip(requests, _next_numbers(call, settings), strict=True)):
        range_set = settings.sets[position]
        lines.append(f"range set {position}: {range_set}")
        if free is None:
            lines.append("  no free address" if request is None else f"  {to_address(request)} is taken")
        else:
            part = range_set.range_of(free)
            lines.append(f"  would reserve {part.interface(free)}, gateway {part.gateway}")
    return "\n".join(lines) + "\n"


def preview(call: Call) -> Result:
    """What ADD would answer now; a set without a free address is left out."""
    settings = parse_settings(call.config, call.args)
    numbers = [number for number in _next_numbers(call, settings) if number is not None]
    ips = []
    for number in numbers:
        part = next(s for s in settings.sets if number in s).range_of(number)
        ips.append(IPConfig(part.interface(number), part.gateway))
    return Result(ips=tuple(ips), routes=settings.routes)


def usage(config: Config) -> tuple[int, int]:
    """How many addresses of the ranges are taken, and how many there are: for metrics."""
    settings = parse_settings(config, {})
    taken = taken_numbers(_directory(config))
    return (
        sum(1 for number in taken if any(number in range_set for range_set in settings.sets)),
        sum(last - first + 1 for range_set in settings.sets for first, last in search_order(range_set, None)),
    )


def _next_numbers(call: Call, settings: Settings) -> Iterator[int | None]:
    """The address that each set would give: the requested one if it is free, else the next in turn."""
    directory = _directory(call.config)
    taken = taken_numbers(directory)
    requests = assign_requests(settings.sets, settings.requested)
    for position, (range_set, request) in enumerate(zip(settings.sets, requests, strict=True)):
        if request is not None:
            yield request if request not in taken else None
            continue
        order = search_order(range_set, last_reserved(directory, position))
        yield next((n for first, last in order for n in range(first, last + 1) if n not in taken), None)


def _directory(config: Config) -> str:
    return os.path.join(data_dir_of(config), config.name)


def _contents(call: Call) -> tuple[bytes, bytes]:
    """What a file of this attachment holds, and what one of an old version would."""
    return owner_content(call.container_id, call.ifname), call.container_id.encode()


def _dns(settings: Settings) -> Dns:
    if not settings.resolv_conf:
        return Dns()
    with open(settings.resolv_conf, encoding="utf-8", errors="replace") as file:
        return parse_resolv_conf(file.read())


def _refuse_duplicate(store: Store, call: Call, sets: tuple[RangeSet, ...]) -> None:
    """CNI SPEC, ADD: not twice for one attachment. Addresses outside of our ranges are another configuration's."""
    for content in _contents(call):
        for number in store.owned_by(content):
            if any(number in range_set for range_set in sets):
                raise CniError(
                    Code.ALREADY_EXISTS,
                    f"{to_address(number)} has been allocated to {call.container_id} {call.ifname} already",
                    "duplicate allocation is not allowed: DEL comes first",
                )


def _next_free(store: Store, range_set: RangeSet, last: int | None) -> int | None:
    order = search_order(range_set, last)
    return next((free for first, end in order if (free := store.first_free(first, end)) is not None), None)


def _reserve_next(store: Store, directory: str, range_set: RangeSet, position: int, content: bytes) -> int:
    last = last_reserved(directory, position)
    while (number := _next_free(store, range_set, last)) is not None:
        if store.reserve(number, content):
            return number
        store.rebuild()  # a file came about without the lock: look again
    raise exhausted(range_set, position)


def _reserve_requested(store: Store, number: int, content: bytes) -> int:
    if store.reserve(number, content):
        return number
    raise CniError(Code.CONFLICT, f"the requested address {to_address(number)} is taken", f"by {store.holder(number)}")


def _result(settings: Settings, numbers: list[int], dns: Dns) -> Result:
    ips = []
    for range_set, number in zip(settings.sets, numbers, strict=True):
        part = range_set.range_of(number)
        ips.append(IPConfig(part.interface(number), part.gateway))
    return Result(ips=tuple(ips), routes=settings.routes, dns=dns)


PLUGIN = Plugin(
    name="host-local",
    about="gives each pod addresses out of ranges, kept in files on this host",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    explain=explain,
    preview=preview,
)
