"""The bridge plugin: a veth pair between the pod and a bridge, addresses by an IPAM delegate, gateway, masquerade.

Keys, result and behaviour as the reference's bridge plugin; see bridge_config.py. What differs, on purpose: the host's
link is named after its owner, so DEL and GC work without the namespace; the bridge has an address of its own;
masquerade and spoof check are set elements, not rules; IPv6 addresses are usable at once.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from . import addresses, announce, delegate, links, masquerade, nft, nft_lookup, spoofcheck, steps, tables
from .bridge_config import BridgeConfig, parse
from .errors import Code, Failures, check_failed, invalid_config
from .kernel import Kernel
from .owner import Owner, is_stale, link_prefix
from .plan import HOST, POD, Address, Bridge, Plan, RouteTo, Sysctl, Up, Veth, explain
from .protocol import Call
from .results import Interface, IPAddress, IPConfig, IPNetwork, Result, Route
from .skel import Plugin

_POD_INDEX = 2  # in the result: bridge, the host's end, the pod's end
_DAD_TIMEOUT_S = 10.0  # the reference's
_PORT_TIMEOUT_S = 1.0  # it takes about a millisecond
_EVERYWHERE: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


# --- deciding


def bridge_step(config: BridgeConfig) -> Bridge:
    """The bridge that the network needs."""
    return Bridge(config.bridge, config.mtu, config.promisc, vlan_filtering=bool(config.vlans))


def veth_step(config: BridgeConfig, owner: Owner) -> Veth:
    """The pod's link."""
    return Veth(
        host_name=owner.link_name("veth"),
        pod_name=owner.ifname,
        bridge=config.bridge,
        alias=owner.tag,
        mtu=config.mtu,
        mac=config.mac,
        hairpin=config.hairpin,
        isolated=config.port_isolation,
        vlans=config.vlans,
        drop_default_vlan=bool(config.vlans) and not config.preserve_default_vlan,
    )


def with_gateways(config: BridgeConfig, result: Result) -> Result:
    """The IPAM's result with what isGateway and isDefaultGateway add: a gateway in each subnet, a default route."""
    if not config.is_gateway:
        return result
    ips = tuple(replace(ip, gateway=ip.gateway or _first_address(ip)) for ip in result.ips)
    routes = result.routes
    if config.is_default_gateway:
        for ip in ips:
            everywhere = _EVERYWHERE[ip.address.version]
            if not any(route.dst == everywhere for route in routes):
                routes += (Route(everywhere, ip.gateway),)
    return replace(result, ips=ips, routes=routes)


def _first_address(ip: IPConfig) -> IPAddress:
    return ip_address(int(ip.address.network.network_address) + 1)


def pod_steps(config: BridgeConfig, ifname: str, result: Result) -> Plan:
    """What happens inside the pod. The notify settings let the kernel announce its addresses (announce.py):
    neighbours that knew an earlier pod by the same address learn the new one at once."""
    versions = {ip.address.version for ip in result.ips}
    found: list[Sysctl | Address | Up | RouteTo] = [
        Sysctl(POD, f"net/ipv4/conf/{ifname}/arp_notify", "1", optional=True)
    ]
    if 6 in versions:
        found.append(Sysctl(POD, f"net/ipv6/conf/{ifname}/disable_ipv6", "0", optional=True))
        found.append(Sysctl(POD, f"net/ipv6/conf/{ifname}/ndisc_notify", "1", optional=True))
    found += [Address(POD, ifname, ip.address, dad=config.enabledad) for ip in result.ips]
    found.append(Up(POD, ifname))
    found += route_steps(ifname, result)
    return tuple(found)


def route_steps(ifname: str, result: Result) -> tuple[RouteTo, ...]:
    """The pod's routes; one without a gateway goes by the gateway of its family."""
    gateways = {ip.address.version: ip.gateway for ip in reversed(result.ips) if ip.gateway}
    return tuple(
        RouteTo(
            POD,
            ifname,
            route.dst,
            # scope link (253) and narrower mean: no gateway (rtnetlink(7))
            route.gw or (None if (route.scope or 0) >= 253 else gateways.get(route.dst.version)),
            mtu=route.mtu,
            advmss=route.advmss,
            priority=route.priority,
            table=route.table,
            scope=route.scope,
        )
        for route in result.routes
    )


def gateway_steps(config: BridgeConfig, result: Result) -> tuple[Address, ...]:
    """The gateway addresses of the bridge."""
    if not config.is_gateway:
        return ()
    found = []
    for ip in result.ips:
        if ip.gateway is None:
            continue
        address = type(ip.address)((ip.gateway, ip.address.network.prefixlen))
        found.append(Address(HOST, config.bridge, address))
    return tuple(dict.fromkeys(found))


def bridge_sysctls(config: BridgeConfig) -> tuple[Sysctl, ...]:
    """A bridge that takes no router's advice, and whose link-local address is usable at once: until it is, the kernel
    asks no neighbour on behalf of forwarded packets, for a second or two. Set before a port brings the bridge up."""
    found = [Sysctl(HOST, f"net/ipv6/conf/{config.bridge}/accept_ra", "0", optional=True)]
    if not config.enabledad:
        found.append(Sysctl(HOST, f"net/ipv6/conf/{config.bridge}/accept_dad", "0", optional=True))
    return tuple(found)


def host_sysctls(config: BridgeConfig, result: Result) -> tuple[Sysctl, ...]:
    """Forwarding."""
    versions = {ip.address.version for ip in result.ips}
    found = []
    if config.is_gateway and 4 in versions:
        found.append(Sysctl(HOST, "net/ipv4/ip_forward", "1"))
    if config.is_gateway and 6 in versions:
        found.append(Sysctl(HOST, f"net/ipv6/conf/{config.bridge}/disable_ipv6", "0", optional=True))
        found.append(Sysctl(HOST, "net/ipv6/conf/all/forwarding", "1"))
    return tuple(found)


# --- doing


def add(call: Call) -> Result:
    """Wire the pod. The veth comes first: making it is what tells the one ADD that may go on from parallel ones of
    the same attachment, before an address is asked for."""
    config = parse(call.config, call.args)
    owner = call.owner
    with Kernel(call.pod) as kernel, ExitStack() as undo:
        bridge = links.ensure_bridge(kernel.host, bridge_step(config))
        for setting in bridge_sysctls(config):
            steps.ensure(kernel, setting)
        veth = veth_step(config, owner)
        host_end, pod_end = links.make_veth(kernel.host, kernel.pod, call.pod, veth, bridge=bridge)
        undo.callback(links.delete_link, kernel.host, veth.host_name)

        result = Result()
        if config.ipam:
            undo.callback(delegate.undo_add, call, config.ipam)  # also where its own ADD fails (CNI SPEC, section 4)
            result = delegate.delegate_add(call, config.ipam)
            if not result.ips:
                raise invalid_config(f"the IPAM plugin {config.ipam} gave no address", "check its configuration")
        result = with_gateways(config, result)

        gateways = gateway_steps(config, result)
        for step in gateways:
            steps.clear_for_gateway(kernel, step, gateways, force=config.force_address)
        pod = pod_steps(config, call.ifname, result) if config.container_interface else ()
        for each in (*gateways, *host_sysctls(config, result), *pod):
            steps.ensure(kernel, each)
        if config.enabledad and any(ip.address.version == 6 for ip in result.ips):
            addresses.wait_for_dad(call.pod, pod_end, _DAD_TIMEOUT_S)
        if config.ip_masq and result.ips:
            pods = masquerade.elements(owner, result.ips)
            tables.ensure(kernel.nft, masquerade.TABLE, pods, take_over=True)
            undo.callback(tables.remove, kernel.nft, masquerade.TABLE, pods)
        if config.macspoofchk:
            ports = spoofcheck.elements(owner, veth.host_name, pod_end.mac)
            tables.ensure(kernel.nft, spoofcheck.TABLE, ports, take_over=True)
            undo.callback(tables.remove, kernel.nft, spoofcheck.TABLE, ports)
        if config.container_interface:
            announce.wait_for_port(kernel.host, host_end, _PORT_TIMEOUT_S)
            announce.announce(kernel.pod, pod_end)
        undo.pop_all()
    interfaces = (
        Interface(bridge.name, bridge.mac, bridge.mtu),
        Interface(host_end.name, host_end.mac, host_end.mtu),
        Interface(pod_end.name, pod_end.mac, pod_end.mtu, sandbox=call.netns_path),
    )
    done = replace(result.with_interface_index(_POD_INDEX), interfaces=interfaces)
    return replace(done, dns=config.dns) if config.dns != done.dns and config.dns.to_json() else done


def delete(call: Call) -> None:
    """Remove the pod's link, its elements and its addresses. Needs neither namespace nor prevResult. The address goes
    last, when nobody answers to it any more; a dhcp lease first, since its release is sent by the link."""
    failures = Failures()
    ipam = call.config.fields.inner("ipam").text("type")
    owner = call.owner
    with Kernel(call.netns) as kernel:
        if ipam == "dhcp":
            with failures.trying("releasing the lease"):
                delegate.delegate_del(call, ipam)
        prev = call.config.prev_result
        with failures.trying("removing masquerade"):
            if prev is None:
                tables.remove_owner(kernel.nft, masquerade.TABLE, owner.tag)
            else:
                pods, expected = masquerade.elements(owner, prev.ips), bool(call.config.body.get("ipMasq"))
                tables.remove(kernel.nft, masquerade.TABLE, pods, expected=expected)
        with failures.trying("removing the spoof check"):
            mac = next((i.mac for i in prev.pod_interfaces() if i.name == call.ifname), "") if prev else ""
            if mac:
                ports = spoofcheck.elements(owner, owner.link_name("veth"), mac)
                expected = bool(call.config.body.get("macspoofchk"))
                tables.remove(kernel.nft, spoofcheck.TABLE, ports, expected=expected)
            else:
                tables.remove_owner(kernel.nft, spoofcheck.TABLE, owner.tag)
        with failures.trying("removing the link"):
            if not kernel.delete_link(owner.link_name("veth")) and call.netns is not None:
                _delete_foreign_link(call, kernel)
    if ipam and ipam != "dhcp":
        with failures.trying("releasing the address"):
            delegate.delegate_del(call, ipam)
    failures.report()


def _delete_foreign_link(call: Call, kernel: Kernel) -> None:
    """A pod that the reference wired has a link of a random name; it is found inside the pod. A link that carries
    another attachment's tag stays: this DEL may follow an ADD that failed on it."""
    assert isinstance(kernel, Kernel)
    link = links.get_link(kernel.pod, call.ifname)
    if link is None or link.kind != "veth":
        return
    peer = links.get_link_by_index(kernel.host, link.peer) if link.peer else None
    if peer is None or not peer.alias or peer.alias == call.owner.tag:
        links.delete_link(kernel.pod, call.ifname)


def check(call: Call) -> None:
    """Compare what is with what ADD made. Of a pod that the reference wired, only what the reference makes."""
    config = parse(call.config, call.args)
    prev = call.config.prev_result
    assert prev is not None, "skel.py refuses CHECK without prevResult"
    if config.ipam:
        delegate.delegate_check(call, config.ipam)
    with Kernel(call.pod) as kernel:
        claimed = next((i for i in prev.pod_interfaces() if i.name == call.ifname), None)
        if claimed is None:
            raise check_failed(f"prevResult has no interface {call.ifname} in the pod")
        if (gone := steps.missing(kernel, Bridge(config.bridge))) is not None:
            raise check_failed(gone)
        pod_end = links.get_link(kernel.pod, call.ifname)
        if pod_end is None or pod_end.kind != "veth":
            raise check_failed(f"link {call.ifname} is missing in the pod", "DEL and ADD the pod again")
        if claimed.mac and claimed.mac.lower() != pod_end.mac:
            raise check_failed(f"link {call.ifname} has the address {pod_end.mac}, not {claimed.mac}")
        if config.container_interface and not pod_end.is_up:
            raise check_failed(f"link {call.ifname} is down in the pod")
        host_end = links.get_link_by_index(kernel.host, pod_end.peer)
        bridge = links.require_link(kernel.host, config.bridge)
        if host_end is None or host_end.name not in {i.name for i in prev.interfaces if not i.sandbox}:
            raise check_failed(f"the host's end of {call.ifname} is not the one in prevResult")
        if not host_end.is_up:
            raise check_failed(f"link {host_end.name} is down on the host")
        if host_end.master != bridge.index:
            raise check_failed(f"link {host_end.name} is no port of bridge {config.bridge}")
        if host_end.is_hairpin != config.hairpin:
            raise check_failed(f"hairpin mode of {host_end.name} is {'on' if host_end.is_hairpin else 'off'}")
        if host_end.is_isolated != config.port_isolation:
            raise check_failed(f"isolation of {host_end.name} is {'on' if host_end.is_isolated else 'off'}")
        own = tuple(ip for ip in prev.ips if ip.interface is None or _is_pod(prev, ip.interface, call))
        ours = replace(prev, ips=own)
        wanted: Plan = (
            *gateway_steps(config, ours),
            *(Address(POD, call.ifname, ip.address) for ip in own),
            *(route_steps(call.ifname, ours) if config.container_interface else ()),
        )
        for step in wanted:
            if (gone := steps.missing(kernel, step)) is not None:
                raise check_failed(gone)
        if host_end.name != call.owner.link_name("veth"):
            return
        for table, elements in (
            (masquerade.TABLE, masquerade.elements(call.owner, own) if config.ip_masq else ()),
            (
                spoofcheck.TABLE,
                spoofcheck.elements(call.owner, host_end.name, pod_end.mac) if config.macspoofchk else (),
            ),
        ):
            if elements and (gone := tables.missing(kernel.nft, table, elements)) is not None:
                raise check_failed(gone, "GC of this network makes the rules anew; DEL and ADD the pod for the rest")


def _is_pod(prev: Result, index: int, call: Call) -> bool:
    return index < len(prev.interfaces) and prev.interfaces[index].name == call.ifname


def gc(call: Call) -> None:
    """Remove links and elements of this network's attachments that are not valid any more; make rules anew that
    somebody removed. The bridge stays, as with the reference."""
    network, valid = call.config.name, call.config.valid_attachments()
    tags = frozenset(owner.tag for owner in valid)
    names = {owner.link_name("veth") for owner in valid}
    mine = link_prefix("veth", network)
    failures = Failures()
    with Kernel() as kernel:
        for link in list(links.list_links(kernel.host)):
            if link.kind != "veth" or not link.name.startswith(mine) or link.name in names:
                continue
            # Without an alias: its ADD was killed between two messages.
            if not link.alias or is_stale(link.alias, network, tags):
                with failures.trying(f"removing {link.name}"):
                    links.delete_link(kernel.host, link.name)
        for table in (masquerade.TABLE, spoofcheck.TABLE):
            with failures.trying(f"sweeping {table.name}"):
                tables.sweep(kernel.nft, table, network, tags)
                tables.repair(kernel.nft, table)
        with failures.trying("sweeping subnets"):
            masquerade.sweep_subnets(kernel.nft)
    if ipam := call.config.fields.inner("ipam").text("type"):
        with failures.trying("the IPAM plugin's GC"):
            delegate.delegate_gc(call, ipam)
    failures.report(Code.SWEEP_FAILED)


def status(call: Call) -> None:
    """Whether an ADD could be served: the configuration is sound, the kernel has nftables, an address is free."""
    config = parse(call.config, call.args)
    if config.ip_masq or config.macspoofchk:
        nft_lookup.require_nftables()
    if config.ipam:
        delegate.delegate_status(call, config.ipam)


def explain_add(call: Call) -> str:
    """`--explain`: the plan, with the addresses that the IPAM plugin would give, where it can tell."""
    config = parse(call.config, call.args)
    owner = call.owner
    result = with_gateways(config, delegate.preview(call, config.ipam) if config.ipam else Result())
    veth = veth_step(config, owner)
    plan = (
        bridge_step(config),
        *bridge_sysctls(config),
        veth,
        *gateway_steps(config, result),
        *host_sysctls(config, result),
        *(pod_steps(config, call.ifname, result) if config.container_interface else ()),
    )
    blocks = []
    if config.ip_masq and result.ips:
        blocks.append(nft.explain(masquerade.TABLE, masquerade.elements(owner, result.ips)))
    if config.macspoofchk:
        blocks.append(nft.explain(spoofcheck.TABLE, spoofcheck.elements(owner, veth.host_name, config.mac or "MAC")))
    return explain(f"bridge: ADD of {owner.tag}", plan, *blocks)


PLUGIN = Plugin(
    name="bridge",
    about="wires a pod to a bridge with a veth pair; gateway, masquerade, hairpin, spoof check",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    explain=explain_add,
)
