"""Makes the steps of a plan true in the kernel, and observes whether they hold.

Removal needs no steps: a pod's links go by name, its nft elements by owner, and all else goes with the links.
"""

from __future__ import annotations

from . import addresses, links, sysctl
from .errors import CniError, invalid_config
from .kernel import Kernel
from .netns import Netns
from .plan import POD, Address, Bridge, RouteTo, Step, Sysctl, Up, Veth, Where


def ensure(kernel: Kernel, step: Step) -> None:
    """Make one step true. Raises CniError. A `Veth` is not for here: it is made exclusively (links.make_veth)."""
    match step:
        case Bridge():
            links.ensure_bridge(kernel.host, step)
        case Up():
            links.set_up(kernel.route(step.where), kernel.link(step.where, step.link))
        case Address():
            addresses.ensure_address(kernel.route(step.where), kernel.link(step.where, step.link), step)
        case RouteTo():
            addresses.ensure_route(kernel.route(step.where), kernel.link(step.where, step.link), step)
        case Sysctl():
            _set(step, kernel.netns(step.where))
        case Veth():
            raise AssertionError("links.make_veth makes pairs")


def _set(step: Sysctl, netns: Netns | None) -> None:
    try:
        sysctl.write(step.key, step.value, netns)
    except CniError:
        if not step.optional:
            raise


def missing(kernel: Kernel, step: Step) -> str | None:
    """What does not hold of a step, in words; None when all is well."""
    match step:
        case Bridge(name=name):
            link = links.get_link(kernel.host, name)
            if link is None or link.kind != "bridge":
                return f"bridge {name} is missing"
            return None if link.is_up else f"bridge {name} is down"
        case Up(where=where, link=name):
            link = links.get_link(kernel.route(where), name)
            if link is None:
                return f"link {name} is missing {_in(where)}"
            return None if link.is_up else f"link {name} is down {_in(where)}"
        case Address(where=where, link=name, address=address):
            socket = kernel.route(where)
            link = links.get_link(socket, name)
            if link is None:
                return f"link {name} is missing {_in(where)}"
            held = {h.address for h in addresses.list_addresses(socket, link, address.version)}
            return None if address in held else f"address {address} of {name} is missing {_in(where)}"
        case RouteTo(where=where, link=name):
            socket = kernel.route(where)
            link = links.get_link(socket, name)
            if link is None or not addresses.has_route(socket, link, step):
                return f"route {step.dst}{f' via {step.gw}' if step.gw else ''} of {name} is missing {_in(where)}"
            return None
        case Sysctl(key=key, value=value, optional=optional):
            found = sysctl.read(key, kernel.netns(step.where))
            return None if optional or found == value else f"sysctl {key} is {found}, not {value} {_in(step.where)}"
        case Veth():
            raise AssertionError("the plugin that makes a pair checks it")


def _in(where: Where) -> str:
    return "in the pod" if where == POD else "on the host"


def clear_for_gateway(kernel: Kernel, step: Address, own: tuple[Address, ...], *, force: bool) -> None:
    """Before a gateway address goes on a bridge: a second IPv4 address, or an overlapping IPv6 one, is refused as the
    reference does (most often the configuration was changed), or with `force` removed. `own` are the addresses that
    this call puts there."""
    link = kernel.link(step.where, step.link)
    ours = {s.address for s in own}
    for held in addresses.list_addresses(kernel.host, link, step.address.version):
        other = held.address
        if other in ours or other.ip.is_link_local:
            continue
        if other.version == 6 and not other.network.overlaps(step.address.network):
            continue
        if not force:
            raise invalid_config(
                f"bridge {step.link} has the address {other}, not {step.address}",
                "set forceAddress to replace it, or use another bridge",
            )
        addresses.delete_address(kernel.host, link, other)
