"""The bandwidth plugin: limits what a pod may receive (ingress) and send (egress) with token buckets.

Keys and result as the reference's bandwidth plugin; rates are in bits per second, bursts in bits. What the pod receives
waits on the host's end of its veth; what it sends is redirected, as it arrives there, to an ifb that shapes it.
Subnets that are (not) shaped are refused: a token bucket has no classes. The kernel's side is in qdiscs.py, which is
imported when there is something to do: most pods have no limit.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CniError, Code, Failures, check_failed, invalid_config
from .fields import Fields
from .owner import Owner, is_stale, link_prefix
from .protocol import Call, Config
from .results import Interface, Result
from .shaping import Ifb, Redirect, Step, Tbf
from .skel import Plugin

if TYPE_CHECKING:
    from .links import Link
    from .netlink import NetlinkSocket

_SUBNETS = ("unshapedSubnets", "shapedSubnets")
_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst", *_SUBNETS)
_BURST_MAX_BITS = 8 * (2**32 - 1) - 1  # the reference's "4GB"; the kernel counts bytes in 32 bits
# What containerd, kubelet and CRI-O say where the pod's annotation gives a rate alone. As it stands, containerd's lets
# 537 MB pass free and then lets as many wait: at 10 Mbit/s, the limit would never be felt, or for minutes.
_BURST_NOT_GIVEN = (2**32 - 1, 2**31 - 1, _BURST_MAX_BITS)
_BURST_DEFAULT_MS = 100
_BURST_DEFAULT_LEAST = 1 << 16  # one packet of segmentation offload passes whole
_LATENCY_MS = 25  # as the reference: what may wait, beyond the burst
_FRAME_EXTRA = 14 + 4  # Ethernet's header and a VLAN tag count, too (net/core/dev.c, qdisc_pkt_len_init)
_LIMIT_MAX = 2**32 - 1
_EXPLAINED_MTU = 1500
_MODULES = Path("/sys/module")  # what is built in need not be listed here
_NEEDED = ("sch_tbf", "sch_ingress", "cls_u32", "act_mirred", "ifb")


@dataclass(frozen=True, slots=True)
class Shape:
    """A rate in bytes per second, a burst in bytes."""

    rate: int
    burst: int


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What a pod may receive and send; None is no limit."""

    ingress: Shape | None = None
    egress: Shape | None = None

    @property
    def is_unlimited(self) -> bool:
        return self.ingress is None and self.egress is None


# --- deciding


def _chosen(config: Config) -> Fields:
    """Keys in the configuration win over `runtimeConfig`, all or none (as the reference)."""
    own = config.fields
    return own if any(key in own for key in _KEYS) else config.runtime.inner("bandwidth")


def parse(config: Config) -> Bandwidth:
    """Read the limits. Raises CniError 7, and 2 for subnets."""
    fields = _chosen(config)
    for key in _SUBNETS:
        if fields.texts(key):
            raise CniError(
                Code.UNSUPPORTED_FIELD,
                f"bandwidth: {key} is not supported",
                "remove the key: all of the pod's traffic is limited",
            )
    return Bandwidth(_shape(fields, "ingress"), _shape(fields, "egress"))


def _shape(fields: Fields, direction: str) -> Shape | None:
    rate = fields.number(f"{direction}Rate", most=2**64 - 1)
    burst = fields.number(f"{direction}Burst", most=_BURST_MAX_BITS)
    if bool(rate) != bool(burst):
        given, lacking = ("Rate", "Burst") if rate else ("Burst", "Rate")
        raise invalid_config(f"{direction}{given} without {direction}{lacking}", "give both, or none of the two")
    if not rate:
        return None
    if rate < 8:
        raise invalid_config(f"{direction}Rate is {rate} bit/s", "the least is one byte per second: 8")
    if burst in _BURST_NOT_GIVEN:
        return Shape(rate // 8, max(rate // 8 * _BURST_DEFAULT_MS // 1000, _BURST_DEFAULT_LEAST))
    return Shape(rate // 8, burst // 8)


def plan(wanted: Bandwidth, owner: Owner, veth: str, mtu: int) -> tuple[Step, ...]:
    """What to make, for the pod whose host end is `veth`."""
    steps: tuple[Step, ...] = ()
    if wanted.ingress:
        steps += (_tbf(veth, wanted.ingress, mtu),)
    if wanted.egress:
        ifb = Ifb(owner.link_name("ifb"), owner.tag, mtu)
        # The redirect comes last: until then, nothing reaches the ifb.
        steps += (ifb, _tbf(ifb.name, wanted.egress, mtu), Redirect(veth, ifb.name))
    return steps


def _tbf(link: str, shape: Shape, mtu: int) -> Tbf:
    burst = min(max(shape.burst, mtu + _FRAME_EXTRA), _LIMIT_MAX)  # a bucket below one frame lets nothing pass, ever
    return Tbf(link, shape.rate, burst, min(shape.rate * _LATENCY_MS // 1000 + burst, _LIMIT_MAX))


def reference_ifb(owner: Owner) -> str:
    """What the reference calls the ifb of an attachment (its pkg/utils, MustFormatHashWithPrefix)."""
    return "bwp" + hashlib.sha512((owner.network + owner.container_id).encode()).hexdigest()[:12]


# --- doing


def add(call: Call) -> Result:
    """Limit the pod's link."""
    wanted = parse(call.config)
    prev = _chained(call)
    if wanted.is_unlimited:
        return prev
    from . import links, qdiscs

    with links.open_route() as host, links.open_route(call.pod) as pod, ExitStack() as undo:
        veth = host_end(host, pod, call.ifname, prev)
        made: list[Interface] = []
        for step in plan(wanted, call.owner, veth.name, veth.mtu):
            match step:
                case Tbf():
                    link = links.require_link(host, step.link)
                    qdiscs.add_tbf(host, link, step)
                    undo.callback(qdiscs.remove_tbf, host, link)
                case Ifb():
                    ifb = links.make_link(host, step.name, "ifb", mtu=step.mtu, alias=step.alias)
                    undo.callback(links.delete_link, host, step.name)
                    made.append(Interface(ifb.name, ifb.mac))
                case Redirect():
                    qdiscs.add_redirect(host, veth, links.require_link(host, step.ifb))
                    undo.callback(qdiscs.remove_redirect, host, veth)
        undo.pop_all()
    return replace(prev, interfaces=(*prev.interfaces, *made))


def _chained(call: Call) -> Result:
    prev = call.config.prev_result
    if prev is None:
        raise invalid_config("bandwidth has no prevResult", "put it after the plugin that makes the interface")
    return prev


def host_end(host: NetlinkSocket, pod: NetlinkSocket, ifname: str, prev: Result) -> Link:
    """The host's end of the pod's veth, which must be one that the chain made. Raises CniError 7."""
    from . import links

    pod_end = links.get_link(pod, ifname)
    if pod_end is None or pod_end.kind != "veth":
        what = f"a {pod_end.kind or 'device'}" if pod_end else "missing"
        raise invalid_config(f"bandwidth limits veth pairs, and {ifname} is {what}", "remove bandwidth from the chain")
    link = links.get_link_by_index(host, pod_end.peer) if pod_end.peer else None
    if link is None or link.kind != "veth" or link.peer != pod_end.index:
        raise invalid_config(f"the other end of {ifname} is not on this host")
    if link.name not in {i.name for i in prev.interfaces if not i.sandbox}:
        raise invalid_config(f"the other end of {ifname}, {link.name}, is not in prevResult")
    return link


def delete(call: Call) -> None:
    """Remove the ifb: ours, or the one of a pod that the reference wired. The rest goes with the veth."""
    names = (call.owner.link_name("ifb"), reference_ifb(call.owner))
    prev = call.config.prev_result
    if prev is not None and not _is_asked(call.config) and not any(i.name in names for i in prev.interfaces):
        return
    from .kernel import Kernel

    failures = Failures()
    with Kernel() as kernel:
        for name in names:
            with failures.trying(f"removing {name}"):
                kernel.delete_link(name)
    failures.report()


def _is_asked(config: Config) -> bool:
    """Whether there may be limits: DEL goes on with a configuration that ADD would refuse."""
    try:
        return not parse(config).is_unlimited
    except CniError:
        return True


def check(call: Call) -> None:
    """Each limit is in force, be it netloom's or the reference's work."""
    wanted = parse(call.config)
    if wanted.is_unlimited:
        return
    from . import links, qdiscs

    with links.open_route() as host, links.open_route(call.pod) as pod:
        veth = host_end(host, pod, call.ifname, _chained(call))
        if wanted.ingress:
            _check_rate(host, veth, wanted.ingress)
        if wanted.egress:
            target = qdiscs.redirect_target(host, veth)
            ifb = links.get_link_by_index(host, target) if target else None
            if ifb is None or ifb.kind != "ifb":
                raise check_failed(f"what arrives on {veth.name} is not redirected to an ifb")
            if not ifb.is_up:
                raise check_failed(f"link {ifb.name} is down")
            _check_rate(host, ifb, wanted.egress)


def _check_rate(host: NetlinkSocket, link: Link, shape: Shape) -> None:
    from . import qdiscs

    rate = qdiscs.tbf_rate(host, link)
    if rate is None:
        raise check_failed(f"the rate of {link.name} is not limited")
    if rate != shape.rate:
        raise check_failed(f"the rate of {link.name} is {rate * 8} bit/s, not {shape.rate * 8}")


def gc(call: Call) -> None:
    """Remove the ifbs of this network's attachments that are not valid any more."""
    from . import links

    network, valid = call.config.name, call.config.valid_attachments()
    tags = frozenset(owner.tag for owner in valid)
    names = {owner.link_name("ifb") for owner in valid}
    mine = link_prefix("ifb", network)
    failures = Failures()
    with links.open_route() as host:
        for link in list(links.list_links(host)):
            if link.kind != "ifb" or not link.name.startswith(mine) or link.name in names:
                continue
            # Without an alias: its ADD was killed between two messages.
            if not link.alias or is_stale(link.alias, network, tags):
                with failures.trying(f"removing {link.name}"):
                    links.delete_link(host, link.name)
    failures.report(Code.SWEEP_FAILED)


def status(call: Call) -> None:
    """Whether the kernel can limit: raises CniError 50 where something is missing."""
    parse(call.config)
    if are_loaded(_MODULES):
        return  # known without asking, which matters to a runtime that asks every 5 s
    from . import links, qdiscs

    with links.open_route() as host:
        if missing := qdiscs.unavailable(host):
            raise CniError(
                Code.NOT_AVAILABLE,
                f"bandwidth: this kernel lacks {', '.join(missing)}",
                f"load the modules {', '.join(_NEEDED)}",
            )


def are_loaded(modules: Path) -> bool:
    """Whether the kernel has loaded all that shapes."""
    return all((modules / name).is_dir() for name in _NEEDED)


def explain(call: Call) -> str:
    """`--explain`."""
    from . import plan as plans

    wanted = parse(call.config)
    title = f"bandwidth: ADD of {call.owner.tag}"
    if wanted.is_unlimited:
        return plans.explain(f"{title}: nothing to do", ())
    title += f"; VETH is the host's end of {call.ifname}"
    return plans.explain(title, plan(wanted, call.owner, "VETH", _EXPLAINED_MTU))


PLUGIN = Plugin(
    name="bandwidth",
    about="limits what a pod may receive and send",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    explain=explain,
)
