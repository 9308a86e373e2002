"""What the portmap plugin decides, without a kernel: the configuration, the elements, the text of `--explain`."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import portmap, portmap_table, portmap_verbs, skel
from cni_plugins.errors import CniError
from cni_plugins.owner import Owner
from cni_plugins.portmap_config import Condition, Mapping, parse, pod_addresses
from cni_plugins.protocol import Config
from cni_plugins.results import parse_result

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
OWNER = Owner("net", "c1", "eth0")
V4, V6 = ip_interface("10.1.0.2/24"), ip_interface("fd01::2/64")
PREV = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": "veth0"},
        {"name": "eth0", "sandbox": "/run/netns/a"},
        {"name": "net1", "sandbox": "/run/netns/a"},
    ],
    "ips": [
        {"address": "10.9.0.2/24", "interface": 3},
        {"address": "10.1.0.2/24", "interface": 2},
        {"address": "10.1.0.3/24", "interface": 2},
        {"address": "fd01::2/64", "interface": 2},
    ],
}


def config(*mappings: dict[str, Any], **body: Any) -> Config:
    runtime = {"portMappings": list(mappings)}
    return Config("1.1.0", "net", "portmap", {"runtimeConfig": runtime, **body})


def ask(host_port: object = 8080, container_port: object = 80, **more: object) -> dict[str, Any]:
    return {"hostPort": host_port, "containerPort": container_port, "protocol": "tcp", **more}


def test_containerd_writes_capital_letters() -> None:
    entry = {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}
    assert parse(config(entry)).mappings == (Mapping(8080, 80, "tcp", None, (4, 6)),)


def test_the_protocol_is_tcp_by_default_and_its_case_does_not_matter() -> None:
    assert [m.protocol for m in parse(config(ask(1, protocol=""), ask(2, protocol="UDP"))).mappings] == ["tcp", "udp"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ask(0), "runtimeConfig.portMappings[0].hostPort must be a whole number from 1 to 65535, not 0"),
        (ask(65536), "portMappings[0].hostPort must be"),
        (ask(-1), "portMappings[0].hostPort must be"),
        (ask("80"), "portMappings[0].hostPort must be"),
        ({"containerPort": 80}, "portMappings[0].hostPort must be"),
        (ask(80, 0), "portMappings[0].containerPort must be"),
        (ask(80, 65536), "portMappings[0].containerPort must be"),
        ({"hostPort": 80}, "portMappings[0].containerPort must be"),
        (ask(protocol="icmp"), "portMappings[0].protocol must be tcp, udp or sctp, not 'icmp'"),
        (ask(hostIP="localhost"), "portMappings[0].hostIP must be an IP address, not 'localhost'"),
        (ask(hostIP="fe80::1%eth0"), "portMappings[0].hostIP must be an IP address without a zone"),
    ],
)
def test_an_impossible_mapping_is_refused_by_name(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(CniError) as caught:
        parse(config(entry))
    assert caught.value.code == 7
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (ask(), ask()),
        (ask(), ask(container_port=81)),
        (ask(), ask(hostIP="192.0.2.1")),
        (ask(hostIP="0.0.0.0"), ask(hostIP="192.0.2.1")),
        (ask(hostIP="::ffff:192.0.2.1"), ask(hostIP="192.0.2.1")),
    ],
)
def test_a_port_that_one_pod_asks_for_twice_is_refused(one: dict[str, Any], two: dict[str, Any]) -> None:
    with pytest.raises(CniError, match="is asked for twice by this pod") as caught:
        parse(config(one, two))
    assert caught.value.code == 7


@pytest.mark.parametrize(
    "two", [ask(8081), ask(protocol="udp"), ask(hostIP="::"), ask(hostIP="192.0.2.2"), ask(hostIP="2001:db8::1")]
)
def test_different_ports_of_one_pod_are_fine(two: dict[str, Any]) -> None:
    assert len(parse(config(ask(hostIP="192.0.2.1"), two)).mappings) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ()),
        (["-s", "192.0.2.7/24"], (Condition("source", ip_network("192.0.2.0/24")),)),
        (["!", "--dst", "192.0.2.1"], (Condition("destination", ip_network("192.0.2.1/32"), invert=True),)),
        (["-i", "eth0"], (Condition("in-interface", "eth0"),)),
        (["-s", "0.0.0.0/0", "-i", "eth0"], (Condition("in-interface", "eth0"),)),
        (
            ["!", "--in-interface", "eth0", "--source", "10.0.0.0/8"],
            (Condition("in-interface", "eth0", invert=True), Condition("source", ip_network("10.0.0.0/8"))),
        ),
    ],
)
def test_conditions_are_read(words: list[str], expected: tuple[Condition, ...]) -> None:
    assert parse(config(conditionsV4=words)).conditions.v4 == expected


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["-p", "tcp"], 2, "conditionsV4: '-p' is not supported"),
        (["-m", "comment", "--comment", "x"], 2, "'-m' is not supported"),
        (["-s", "!", "10.0.0.0/8"], 2, "'!' belongs before -s"),
        (["-i", "eth+"], 2, "'eth+' is a pattern"),
        (["!"], 2, "'!' is not supported"),
        (["!", "!", "-s", "10.0.0.1"], 2, "'!' is not supported"),
        (["-s"], 7, "-s has no value"),
        (["-s", "10.0.0.0/33"], 7, "is no address or prefix"),
        (["-s", "fd00::/8"], 7, "is not of IPv4"),
        (["-i", "a/b"], 7, "is no name of a link"),
        (["!", "-s", "0.0.0.0/0"], 7, "is true of no packet"),
    ],
)
def test_a_condition_that_cannot_be_honoured_is_named(words: list[str], code: int, told: str) -> None:
    with pytest.raises(CniError) as caught:
        parse(config(conditionsV4=words))
    assert (caught.value.code, told in str(caught.value)) == (code, True), caught.value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"markMasqBit": 32}, "markMasqBit must be a whole number from 0 to 31"),
        ({"markMasqBit": 13, "externalSetMarkChain": "KUBE-MARK-MASQ"}, "exclude each other"),
        ({"backend": "ipvs"}, "backend must be one of nftables, iptables"),
        ({"snat": "yes"}, "snat must be true or false"),
    ],
)
def test_keys_that_make_no_sense_are_refused(body: dict[str, Any], words: str) -> None:
    with pytest.raises(CniError, match=words) as caught:
        parse(config(**body))
    assert caught.value.code == 7


@pytest.mark.parametrize(
    "body", [{"backend": ""}, {"backend": "iptables"}, {"markMasqBit": 13}, {"externalSetMarkChain": "KUBE-MARK-MASQ"}]
)
def test_the_references_ways_of_masquerading_are_accepted(body: dict[str, Any]) -> None:
    assert parse(config(ask(), **body)) == parse(config(ask()))


def test_the_pods_first_addresses_on_the_interface_are_taken() -> None:
    assert pod_addresses(parse_result(PREV), "eth0") == (V4, V6)
    assert pod_addresses(parse_result(PREV), "net1") == (ip_interface("10.9.0.2/24"),)
    old = {"ip4": {"ip": "10.1.0.2/24"}, "ip6": {"ip": "fd01::2/64"}}  # CNI 0.2.0: no interfaces at all
    assert pod_addresses(parse_result(old), "eth0") == (V4, V6)


def test_a_mapping_that_no_address_can_serve_is_told() -> None:
    found = parse(config(ask(1), ask(2, hostIP="192.0.2.1"), ask(3, hostIP="::1"), ask(4, hostIP="2001:db8::1")))
    assert [m.host_port for m in portmap_table.without_effect(found, (6,))] == [2, 3]
    assert [m.host_port for m in portmap_table.without_effect(found, (4, 6))] == [3]


@pytest.mark.parametrize(
    ("entry", "body", "expected"),
    [
        (ask(), {}, True),
        (ask(hostIP="127.0.0.1"), {}, True),
        (ask(hostIP="192.0.2.1"), {}, False),
        (ask(hostIP="::"), {}, False),
        (ask(), {"snat": False}, False),
        (ask(), {"masqAll": True}, True),
    ],
)
def test_route_localnet_is_for_mappings_that_localhost_reaches(
    entry: dict[str, Any], body: dict[str, Any], *, expected: bool
) -> None:
    plan = portmap_table.plan(OWNER, parse(config(entry, **body)), (V4, V6))
    assert plan.towards == (V4.ip if expected else None)


def test_the_chain_of_the_reference_is_known_by_name() -> None:
    """As `/usr/lib/cni/portmap` made it for this network and container."""
    assert portmap_verbs.reference_chain("n", "a") == "CNI-DN-48b4b2f9995bf536ee50a"


def test_the_table_that_del_asks_for_first_is_ours() -> None:
    assert (portmap_table.TABLE.family, portmap_table.TABLE.name) == ("inet", "netloom_portmap")


EXPLAINED: dict[str, dict[str, Any]] = {
    "portmap-idle": {},
    "portmap-dual-stack": {
        "runtimeConfig": {"portMappings": [ask(), ask(53, 5353, protocol="udp", hostIP="192.0.2.1")]},
    },
    "portmap-conditions": {
        "conditionsV4": ["!", "-s", "10.0.0.0/8"],
        "conditionsV6": ["-i", "eth0"],
        "masqAll": True,
        "runtimeConfig": {"portMappings": [ask()]},
    },
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_prints_the_script(name: str) -> None:
    body = {"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": PREV, **EXPLAINED[name]}
    found = skel.explain(portmap.PLUGIN, {}, json.dumps(body).encode())
    assert found.exit_code == 0
    assert found.stdout.decode() == (GOLDEN / f"{name}.txt").read_text()


def test_without_prev_result_there_is_nothing_to_chain_to() -> None:
    body = {"cniVersion": "1.1.0", "name": "net", "type": "portmap"}
    found = json.loads(skel.explain(portmap.PLUGIN, {}, json.dumps(body).encode()).stdout)
    assert (found["code"], "chained" in found["msg"]) == (7, True)


IMPORTS = """
import json, sys, socket
from cni_plugins import registry, skel
sockets = []
real = socket.socket
class Counting(real):
    def __init__(self, *args, **kwargs):
        sockets.append(args)
        super().__init__(*args, **kwargs)
socket.socket = Counting
plugin, verb, body = sys.argv[1:]
env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "", "CNI_PATH": "/x"}
if verb == "ADD":
    env.update(CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE="1")
done = skel.answer(registry.load(plugin), env, body.encode())
heavy = [name for name in ("pyroute2", "asyncio", "ssl", "subprocess", "cni_plugins.nft") if name in sys.modules]
print(json.dumps([done.exit_code, len(sockets), heavy]))
"""


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_pod_without_mappings_costs_no_socket_and_no_pyroute2(verb: str) -> None:
    body = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": PREV})
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, "portmap", verb, body], capture_output=True, cwd=ROOT, check=True
    )
    assert json.loads(done.stdout) == [0, 0, []]
