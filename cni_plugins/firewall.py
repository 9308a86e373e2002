"""The firewall plugin: who may send to a pod. Chained after the bridge plugin.

`ingressPolicy`, in the words of the reference:
- `open` (default): everybody. Nothing is added: in nftables no table can accept what another one drops, so there is no
  rule of ours that would open anything. Where iptables' FORWARD chain has the policy DROP (Docker sets it), a line on
  standard error says so, because there the reference adds rules that accept.
- `same-bridge`: pods of the same bridge, the host, and the outside; not pods of other bridges that have a policy.
- `isolated`: the host and the outside; no other pod. The pod does not reach other pods of its bridge either, as with
  Docker's `enable_icc=false`, nor their host ports; its own it does.

Further keys: `backend` nftables or iptables mean nftables; firewalld is error 2, so `firewalldZone` has no effect.
`iptablesAdminChainName` has none either: an administrator's rules that come first belong into a table of their own,
with a forward chain of a priority below 0; no plugin touches that.

The rules are in firewall_table.py.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import nft_lookup
from .errors import CniError, Code, Failures, check_failed, invalid_config
from .netlink import NETLINK_NETFILTER, host_socket
from .protocol import Call, Config
from .results import Result
from .skel import Plugin

if TYPE_CHECKING:
    from .firewall_table import FirewallPlan
    from .kernel import Kernel
    from .nft import Table

Policy = Literal["open", "same-bridge", "isolated"]
_POLICIES: dict[str, Policy] = {"open": "open", "same-bridge": "same-bridge", "isolated": "isolated"}
_BACKENDS = ("nftables", "iptables", "firewalld")
_TABLES = (("bridge", "netloom_isolation"), ("inet", "netloom_firewall"))
# Of the reference, for pods that it has wired: same-bridge, in `ip filter`.
_REFERENCE_CHAIN = "CNI-ISOLATION-STAGE-1"


@dataclass(frozen=True, slots=True)
class FirewallConfig:
    """What the network says."""

    policy: Policy


# --- deciding


def parse(config: Config) -> FirewallConfig:
    """Read the configuration. Raises CniError 2 or 7."""
    fields = config.fields
    if fields.choice("backend", _BACKENDS, _BACKENDS[0]) == "firewalld":
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            "firewall: the backend firewalld is not supported",
            "remove the key 'backend', and let firewalld trust the bridge: "
            "firewall-cmd --permanent --zone=trusted --add-interface=BRIDGE",
        )
    fields.text("iptablesAdminChainName")
    fields.text("firewalldZone")
    return FirewallConfig(_POLICIES[fields.choice("ingressPolicy", tuple(_POLICIES), "open")])


def decide(call: Call) -> FirewallPlan | None:
    """What the pod adds; None with the policy `open`. Raises CniError 2 or 7."""
    config = parse(call.config)
    prev = _previous(call)
    return None if config.policy == "open" else _plan(call, config, prev)


def _previous(call: Call) -> Result:
    if call.config.prev_result is None:
        raise invalid_config(
            "firewall must be a chained plugin: there is no prevResult", "list it after the bridge plugin"
        )
    return call.config.prev_result


def _plan(call: Call, config: FirewallConfig, prev: Result) -> FirewallPlan:
    """The bridge comes first among the interfaces, as the reference has it too, then the host's end of the pod."""
    names = [interface.name for interface in prev.interfaces if not interface.sandbox]
    if len(names) < 2:
        raise invalid_config(
            f"ingressPolicy {config.policy}: prevResult names no bridge with a link to the pod",
            "chain the plugin 'firewall' with 'bridge'",
        )
    from . import firewall_table  # not for `open`, which most networks have

    # Addresses of other interfaces count, too, as with the reference: they are the pod's.
    addresses = tuple(ip.address for ip in prev.ips)
    return firewall_table.plan(call.owner, names[0], names[1], addresses, isolated=config.policy == "isolated")


# --- doing


def add(call: Call) -> Result:
    """Enforce the network's policy for the pod."""
    plan = decide(call)
    warn_of_foreign_drop(call)
    if plan is not None:
        from . import tables
        from .kernel import Kernel

        with Kernel() as kernel, ExitStack() as undo:
            for (table, elements), (_, own) in zip(plan.parts, plan.own, strict=True):
                tables.ensure(kernel.nft, table, elements, take_over=True)
                undo.callback(tables.remove, kernel.nft, table, own)
            undo.pop_all()
    return _previous(call)


def warn_of_foreign_drop(call: Call) -> None:
    """One line if iptables drops what is forwarded, unless it has a rule for these pods: that would take reading all
    its rules. iptables-legacy cannot be asked by netlink."""
    families = {f"ip{'' if ip.address.version == 4 else 6}" for ip in _previous(call).ips}
    if not families:
        return
    with host_socket(NETLINK_NETFILTER) as socket:
        dropping = [f for f in sorted(families) if nft_lookup.drops_by_policy(socket, f, "filter", "FORWARD")]
    if dropping:
        bridge = next((i.name for i in _previous(call).interfaces if not i.sandbox), "BRIDGE")
        program = f"{dropping[0]}tables"
        where = " and ".join(f"{family} filter FORWARD" for family in dropping)
        sys.stderr.write(
            f"firewall: {call.owner.tag}: the nft chain {where} drops pods' traffic that no rule of its own accepts: "
            f"{program} -I FORWARD -i {bridge} -j ACCEPT; {program} -I FORWARD -o {bridge} -j ACCEPT\n"
        )


def delete(call: Call) -> None:
    """Remove what the pod added; whatever the policy is by now, as it may have been changed since ADD. Where no pod has
    a policy other than `open`, this is two questions to the kernel."""
    there = tables_there()
    if not there:
        return
    from . import tables
    from .kernel import Kernel

    failures = Failures()
    plan = _plan_for_removal(call)
    own = {table.name: elements for table, elements in plan.own} if plan else {}
    with Kernel() as kernel:
        for table in there:
            with failures.trying(f"removing from {table.name}"):
                if not own:
                    tables.remove_owner(kernel.nft, table, call.owner.tag)
                elif tables.holds(kernel.nft, table, own[table.name]):
                    tables.remove(kernel.nft, table, own[table.name])
                else:
                    tables.drop_if_empty(kernel.nft, table)  # an earlier DEL may have been killed before it did
    failures.report()


def tables_there() -> tuple[Table, ...]:
    """Those of our tables that exist; what they are is imported only if one does."""
    if not any(nft_lookup.is_there(family, name) for family, name in _TABLES):
        return ()
    from .firewall_table import FORWARD, ISOLATION

    return ISOLATION, FORWARD


def _plan_for_removal(call: Call) -> FirewallPlan | None:
    """All that a pod with this link can have; None where the link is unknown."""
    try:
        return _plan(call, FirewallConfig("isolated"), _previous(call))
    except CniError:
        return None


def check(call: Call) -> None:
    """Compare what is with what ADD made. A pod that the reference wired is in the reference's chain instead."""
    plan = decide(call)
    if plan is None:
        return
    from . import tables
    from .kernel import Kernel

    with Kernel() as kernel:
        if _is_of_the_reference(kernel, plan):
            return
        for table, elements in plan.parts:
            if (gone := tables.missing(kernel.nft, table, elements)) is not None:
                raise check_failed(gone, "GC of this network makes the rules anew; DEL and ADD the pod for the rest")


def _is_of_the_reference(kernel: Kernel, plan: FirewallPlan) -> bool:
    from . import tables

    if any(tables.holds(kernel.nft, table, own) for table, own in plan.own):
        return False
    return nft_lookup.has_chain(kernel.nft, "ip", "filter", _REFERENCE_CHAIN)


def gc(call: Call) -> None:
    """Remove what attachments of this network have that are not valid any more; make rules anew that somebody
    removed."""
    network, tags = call.config.name, call.valid_tags()
    there = tables_there()
    if not there:
        return
    from . import tables
    from .kernel import Kernel

    failures = Failures()
    with Kernel() as kernel:
        for table in there:
            with failures.trying(f"sweeping {table.name}"):
                tables.sweep(kernel.nft, table, network, tags)
                tables.repair(kernel.nft, table)
    failures.report(Code.SWEEP_FAILED)


def status(call: Call) -> None:
    """Whether an ADD could be served: the configuration is sound, the kernel has nftables where it is needed."""
    if parse(call.config).policy != "open":
        nft_lookup.require_nftables()


def explain(call: Call) -> str:
    """`--explain`: the nft script."""
    from .plan import explain as explain_plan

    plan = decide(call)
    title = f"firewall: ADD of {call.owner.tag}"
    if plan is None:
        return explain_plan(f"{title}: ingressPolicy open, nothing to do", ())
    return explain_plan(title, (), plan.text)


PLUGIN = Plugin(
    name="firewall",
    about="decides who may send to a pod: everybody, its bridge, or only the host and the outside",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    explain=explain,
)
