"""The bridge plugin's configuration: keys and defaults as the reference's bridge plugin (upstream docs, bridge.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import invalid_config
from .fields import Fields
from .plan import Vlan
from .protocol import Config, is_ifname
from .results import Dns, parse_dns

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_VLAN_MAX = 4094  # IEEE 802.1Q; 4095 is reserved
_MTU_MAX = 65535


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """What the operator asked of the network, and the runtime of this pod (mac)."""

    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    ip_masq: bool
    mtu: int
    hairpin: bool
    promisc: bool
    vlans: tuple[Vlan, ...]
    preserve_default_vlan: bool
    macspoofchk: bool
    enabledad: bool
    container_interface: bool
    port_isolation: bool
    mac: str
    ipam: str
    dns: Dns


def parse(config: Config, args: Mapping[str, str]) -> BridgeConfig:
    """Read the configuration. Raises CniError 7."""
    fields = config.fields
    name = fields.text("bridge") or "cni0"
    if not is_ifname(name):
        raise fields.error("bridge", "a link name of 1 to 15 bytes without '/', ':', '%' or white space")
    is_default = fields.flag("isDefaultGateway")
    parsed = BridgeConfig(
        bridge=name,
        is_gateway=fields.flag("isGateway") or is_default,
        is_default_gateway=is_default,
        force_address=fields.flag("forceAddress"),
        ip_masq=fields.flag("ipMasq"),
        mtu=fields.number("mtu", most=_MTU_MAX),
        hairpin=fields.flag("hairpinMode"),
        promisc=fields.flag("promiscMode"),
        vlans=_vlans(fields),
        preserve_default_vlan=fields.flag("preserveDefaultVlan", default=True),
        macspoofchk=fields.flag("macspoofchk"),
        enabledad=fields.flag("enabledad"),
        container_interface=not fields.flag("disableContainerInterface"),
        port_isolation=fields.flag("portIsolation"),
        mac=_mac(config, args),
        ipam=fields.inner("ipam").text("type"),
        dns=_dns(config),
    )
    fields.choice("ipMasqBackend", ("iptables", "nftables"), "nftables")  # both mean ours
    if parsed.hairpin and parsed.promisc:
        raise invalid_config("hairpinMode and promiscMode exclude each other", "remove one of the two keys")
    if not parsed.container_interface and parsed.ipam:
        raise invalid_config("disableContainerInterface leaves no place for an address", "remove the key ipam")
    if parsed.vlans and parsed.is_gateway:
        raise invalid_config(
            "vlan or vlanTrunk with isGateway is not supported",
            "the gateway of a vlan must be a router on that vlan: remove isGateway and isDefaultGateway",
        )
    return parsed


def _vlans(fields: Fields) -> tuple[Vlan, ...]:
    vlan = fields.number("vlan", most=_VLAN_MAX)
    trunk: list[Vlan] = []
    for item in fields.items("vlanTrunk"):
        if "id" in item:
            number = item.number("id", least=1, most=_VLAN_MAX)
            trunk.append(Vlan(number, number))
        if "minID" in item or "maxID" in item:
            first = item.number("minID", least=1, most=_VLAN_MAX)
            last = item.number("maxID", least=1, most=_VLAN_MAX)
            if not 0 < first <= last:
                raise invalid_config("vlanTrunk: minID and maxID come together, minID not above maxID")
            trunk.append(Vlan(first, last))
    if vlan and trunk:
        raise invalid_config("vlan and vlanTrunk exclude each other", "remove one of the two keys")
    return (Vlan(vlan, vlan, pvid=True),) if vlan else tuple(trunk)


def _mac(config: Config, args: Mapping[str, str]) -> str:
    """The address asked for: the capability, then args.cni, then CNI_ARGS (CNI CONVENTIONS)."""
    mac = config.runtime.text("mac") or config.cni_args.text("mac") or args.get("MAC", "")
    if not mac:
        return ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise invalid_config(f"{mac!r} is no unicast MAC address", "expected six octets such as 02:00:00:00:00:01")
    return mac.lower()


def _dns(config: Config) -> Dns:
    try:
        return parse_dns(config.body.get("dns") or {})
    except (TypeError, ValueError) as error:
        raise invalid_config(f"dns: {error}") from error
