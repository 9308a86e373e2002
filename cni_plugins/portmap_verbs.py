"""The verbs of portmap for a pod that has mappings: decide (portmap_config.py, portmap_table.py), then do
(portmap_ledger.py, conntrack.py). portmap.py comes first, and imports this module where there is something to do.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

from . import nft_lookup, portmap_ledger, portmap_table, sysctl, tables
from .errors import CniError, Code, Failures, check_failed
from .kernel import Kernel
from .netlink import NetlinkSocket
from .nft import PROTOCOLS
from .owner import is_of_pod
from .plan import HOST, Sysctl
from .plan import explain as explain_plan
from .portmap_config import Mapping, PortmapConfig, parse, parse_conditions, pod_addresses
from .portmap_table import PortPlan
from .protocol import Call
from .results import IPInterface, Result

_REFERENCE_CHAIN_LENGTH = 28  # containernetworking/plugins, pkg/utils: the longest chain name of iptables


# --- deciding


def decide(call: Call) -> tuple[PortmapConfig, tuple[IPInterface, ...], PortPlan]:
    """The configuration, the pod's addresses, and what the pod adds."""
    config = parse(call.config)
    addresses = pod_addresses(previous(call), call.ifname)
    return config, addresses, portmap_table.plan(call.owner, config, addresses)


def previous(call: Call) -> Result:
    """What the chain has made so far. Raises CniError 7 where there is no chain."""
    assert call.config.prev_result is not None, "portmap.py has asked"
    return call.config.prev_result


def reference_chain(network: str, container_id: str) -> str:
    """The iptables chain that the reference makes for a pod's mappings."""
    return f"CNI-DN-{hashlib.sha512((network + container_id).encode()).hexdigest()}"[:_REFERENCE_CHAIN_LENGTH]


# --- doing


def add(call: Call) -> Result:
    """Take the ports and lead them to the pod."""
    result = previous(call)
    config, addresses, plan = decide(call)
    families = tuple(address.version for address in addresses)
    for mapping in portmap_table.without_effect(config, families):
        sys.stderr.write(
            f"portmap: {call.owner.tag}: host port {mapping.words} has no effect: no address can serve it\n"
        )
    if not plan.elements:
        return result
    with Kernel() as kernel:
        try:
            portmap_ledger.take(kernel, plan)
        except CniError as error:
            rest = _without_own(call, kernel.nft, config, families)
            if error.code != Code.CONFLICT or rest == config:
                raise
            config, plan = rest, portmap_table.plan(call.owner, rest, addresses)
            if plan.elements:
                portmap_ledger.take(kernel, plan)
        _forget_flows(call, kernel, config, families)
    return result


def _without_own(call: Call, socket: NetlinkSocket, config: PortmapConfig, families: tuple[int, ...]) -> PortmapConfig:
    """The mappings that this very pod does not hold already by another network: podman gives a pod's ports to each of
    its networks. The first network's mapping leads to the pod; the second needs none of its own."""

    def is_own(mapping: Mapping) -> bool:
        elements = portmap_table.ledger(call.owner, replace(config, mappings=(mapping,)), families)
        found = tables.holders(socket, portmap_table.TABLE, elements)
        return any(tag != call.owner.tag and is_of_pod(tag, call.container_id) for tag in found)

    return replace(config, mappings=tuple(mapping for mapping in config.mappings if not is_own(mapping)))


def _forget_flows(call: Call, kernel: Kernel, config: PortmapConfig, families: tuple[int, ...]) -> None:
    """So that clients who spoke to these ports before are translated anew. Informative only, as in the reference."""
    tracked = [mapping for mapping in config.mappings if mapping.protocol != "tcp"]
    if not tracked:
        return
    from . import conntrack

    flows = [
        conntrack.Flow(family, PROTOCOLS[mapping.protocol], mapping.host_port, mapping.host_ip)
        for mapping in tracked
        for family in mapping.families
        if family in families
    ]
    try:
        conntrack.forget(kernel.nft, flows)
    except CniError as error:
        sys.stderr.write(f"portmap: {call.owner.tag}: old flows stay: {error}\n")


def delete(call: Call) -> None:
    """Give the ports back. With prevResult, no mappings means that there are none: the runtime keeps both in one
    cache. Without it, what carries the pod's tag is looked for: by port where ports are given, else by listing."""
    prev = call.config.prev_result
    config = _parse_leniently(call)
    addresses = pod_addresses(prev, call.ifname) if prev is not None else ()
    with Kernel() as kernel:
        if config is None or not config.mappings:
            portmap_ledger.give_back_by_owner(kernel.nft, call.owner.tag)
            return
        if addresses:
            plan = portmap_table.plan(call.owner, config, addresses)
            removed = portmap_ledger.give_back(kernel.nft, plan)
        else:
            ledger = portmap_table.ledger(call.owner, config, (4, 6))
            removed = portmap_ledger.is_held(kernel.nft, ledger)
            if removed:
                portmap_ledger.give_back_by_owner(kernel.nft, call.owner.tag)
            else:
                portmap_ledger.drop_when_unused(kernel.nft)
        if removed:
            _forget_flows(call, kernel, config, (4, 6))


def _parse_leniently(call: Call) -> PortmapConfig | None:
    """The configuration; None where it cannot be read: its ADD failed, or somebody broke it since."""
    try:
        return parse(call.config)
    except CniError:
        return None


def check(call: Call) -> None:
    """Compare what is with what ADD made. A pod that the reference wired has a chain of its own instead."""
    config, addresses, plan = decide(call)
    if not plan.elements:
        return
    with Kernel() as kernel:
        rest = _without_own(call, kernel.nft, config, tuple(address.version for address in addresses))
        if rest != config:
            plan = portmap_table.plan(call.owner, rest, addresses)
        if not portmap_ledger.is_held(kernel.nft, plan.elements) and _is_of_the_reference(call, kernel.nft, addresses):
            return
        gone = tables.missing(kernel.nft, portmap_table.TABLE, plan.elements)
        if gone is None and plan.conditional_table is not None:
            gone = tables.missing(kernel.nft, plan.conditional_table, plan.conditional)
        if gone is not None:
            raise check_failed(gone, "GC of this network makes the rules anew; DEL and ADD the pod for the rest")
        setting = portmap_ledger.localnet_setting(kernel, plan.towards)
        if setting and (found := sysctl.read(setting)) != "1":
            raise check_failed(f"sysctl {setting} is {found}, not 1", "connections to 127.0.0.1 do not reach the pod")


def _is_of_the_reference(call: Call, nft: NetlinkSocket, addresses: tuple[IPInterface, ...]) -> bool:
    chain = reference_chain(call.config.name, call.container_id)
    families = {4: "ip", 6: "ip6"}
    return all(nft_lookup.has_chain(nft, families[address.version], "nat", chain) for address in addresses)


def gc(call: Call) -> None:
    """Remove what attachments of this network hold that are not valid any more, under any conditions; make rules anew
    that somebody removed; take stock of the ledger."""
    network, tags = call.config.name, call.valid_tags()
    failures = Failures()
    with Kernel() as kernel:
        for table in portmap_table.conditional_tables(nft_lookup.table_names(kernel.nft, "inet")):
            with failures.trying(f"sweeping {table.name}"):
                tables.sweep(kernel.nft, table, network, tags)
        with failures.trying(f"sweeping {portmap_table.NAME}"):
            tables.sweep(kernel.nft, portmap_table.TABLE, network, tags, drop=False)
        with failures.trying("taking stock of the host ports"):
            portmap_ledger.take_stock(kernel.nft)
        with failures.trying("repairing the rules"):
            tables.repair(kernel.nft, portmap_table.TABLE)
            if conditions := parse_conditions(call.config):
                tables.repair(kernel.nft, portmap_table.conditional_table(conditions))
    failures.report(Code.SWEEP_FAILED)


def explain(call: Call) -> str:
    """`--explain`: the nft script. Which link leads to the pod is looked up at ADD; here it is the chain's first."""
    config, _, plan = decide(call)
    title = f"portmap: ADD of {call.owner.tag}"
    if not config.mappings:
        return explain_plan(f"{title}: no mappings, nothing to do", ())
    link = next((i.name for i in previous(call).interfaces if not i.sandbox), "LINK")
    steps = (Sysctl(HOST, f"net/ipv4/conf/{link}/route_localnet", "1"),) if plan.towards else ()
    return explain_plan(title, steps, plan.text)
