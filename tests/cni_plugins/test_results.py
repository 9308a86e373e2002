"""Results in every version: goldens, what survives a round trip, and the reference plugins as the oracle."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.errors import CniError, Code
from cni_plugins.results import (
    VERSIONS,
    Dns,
    Interface,
    IPConfig,
    Result,
    Route,
    parse_result,
    version_order,
)
from tests.cni_plugins.stand_in import REFERENCE

FULL = Result(
    interfaces=(
        Interface("cni0", "02:00:00:00:00:01", mtu=1500),
        Interface("eth0", "02:00:00:00:00:02", 1400, "/run/netns/pod", "/run/s.sock", "0000:00:1f.6"),
    ),
    ips=(
        IPConfig(ip_interface("10.1.0.5/24"), ip_address("10.1.0.1"), 1),
        IPConfig(ip_interface("fd00::5/64"), ip_address("fd00::1"), 1),
    ),
    routes=(
        Route(IPv4Network("0.0.0.0/0"), ip_address("10.1.0.1"), 1300, 1200, 10, 100, 253),
        Route(IPv6Network("::/0")),
        Route(IPv4Network("10.9.0.0/16"), table=0, scope=0),
    ),
    dns=Dns(("10.1.0.1",), "example.org", ("a.example.org",), ("ndots:5",)),
)

DNS = {
    "nameservers": ["10.1.0.1"],
    "domain": "example.org",
    "search": ["a.example.org"],
    "options": ["ndots:5"],
}
PLAIN_ROUTES = [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16"}]
PLAIN_INTERFACES = [
    {"name": "cni0", "mac": "02:00:00:00:00:01"},
    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/pod"},
]
IPS = [
    {"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
    {"interface": 1, "address": "fd00::5/64", "gateway": "fd00::1"},
]
IPS_WITH_VERSION = [{"version": version, **ip} for version, ip in zip("46", IPS, strict=True)]
LEGACY = {
    "ip4": {
        "ip": "10.1.0.5/24",
        "gateway": "10.1.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.9.0.0/16"}],
    },
    "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
    "dns": DNS,
}
RICH = {
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01", "mtu": 1500},
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:02",
            "mtu": 1400,
            "sandbox": "/run/netns/pod",
            "socketPath": "/run/s.sock",
            "pciID": "0000:00:1f.6",
        },
    ],
    "ips": IPS,
    "routes": [
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "advmss": 1200, "priority": 10, "table": 100, "scope": 253},
        {"dst": "::/0"},
        {"dst": "10.9.0.0/16", "table": 0, "scope": 0},
    ],
    "dns": DNS,
}
GOLDENS: dict[str, dict[str, object]] = {
    "0.1.0": LEGACY,
    "0.2.0": LEGACY,
    "0.3.0": {"interfaces": PLAIN_INTERFACES, "ips": IPS_WITH_VERSION, "routes": PLAIN_ROUTES, "dns": DNS},
    "0.3.1": {"interfaces": PLAIN_INTERFACES, "ips": IPS_WITH_VERSION, "routes": PLAIN_ROUTES, "dns": DNS},
    "0.4.0": {"interfaces": PLAIN_INTERFACES, "ips": IPS_WITH_VERSION, "routes": PLAIN_ROUTES, "dns": DNS},
    "1.0.0": {"interfaces": PLAIN_INTERFACES, "ips": IPS, "routes": PLAIN_ROUTES, "dns": DNS},
    "1.1.0": RICH,
}

addresses = st.ip_addresses()
interfaces = st.builds(
    Interface,
    name=st.text(min_size=1, max_size=5),
    mac=st.sampled_from(["", "02:00:00:00:00:01"]),
    mtu=st.integers(0, 65535),
    sandbox=st.sampled_from(["", "/run/netns/a"]),
    socket_path=st.sampled_from(["", "/s"]),
    pci_id=st.sampled_from(["", "0000:00:1f.6"]),
)
ip_configs = st.builds(
    IPConfig,
    address=addresses.flatmap(
        lambda address: st.integers(0, address.max_prefixlen).map(lambda bits: ip_interface(f"{address}/{bits}"))
    ),
    gateway=st.none() | addresses,
    interface=st.none() | st.integers(0, 5),
)
routes = st.builds(
    Route,
    dst=addresses.flatmap(
        lambda address: st.integers(0, address.max_prefixlen).map(
            lambda bits: ip_network((address, bits), strict=False)
        )
    ),
    gw=st.none() | addresses,
    mtu=st.integers(0, 9000),
    advmss=st.integers(0, 9000),
    priority=st.integers(0, 2**32 - 1),
    table=st.none() | st.integers(0, 2**32 - 1),
    scope=st.none() | st.integers(0, 255),
)
texts = st.lists(st.text(min_size=1, max_size=5), max_size=2).map(tuple)
results = st.builds(
    Result,
    interfaces=st.lists(interfaces, max_size=3).map(tuple),
    ips=st.lists(ip_configs, max_size=3).map(tuple),
    routes=st.lists(routes, max_size=3).map(tuple),
    dns=st.builds(Dns, texts, st.text(max_size=5), texts, texts),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("10.0.0.1/24"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["ip4", "ip6", "ip", "interfaces", "ips", "address", "gateway", "routes", "dst", "dns", "name", "mtu"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def without_rich_fields(result: Result) -> Result:
    """What versions before 1.1.0 have room for."""
    return replace(
        result,
        interfaces=tuple(Interface(i.name, i.mac, sandbox=i.sandbox) for i in result.interfaces),
        routes=tuple(Route(r.dst, r.gw) for r in result.routes),
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_is_written_as_its_version_writes_it(version: str) -> None:
    assert FULL.to_json(version) == {"cniVersion": version, **GOLDENS[version]}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_result_is_a_version_and_an_empty_dns(version: str) -> None:
    assert Result().to_json(version) == {"cniVersion": version, "dns": {}}
    assert parse_result(Result().to_json(version)) == Result()


@given(results)
def test_the_newest_form_keeps_everything(result: Result) -> None:
    assert parse_result(json.loads(json.dumps(result.to_json("1.1.0")))) == result


@given(results, st.sampled_from([version for version in VERSIONS if (0, 3) <= version_order(version) < (1, 1)]))
def test_the_middle_forms_keep_all_but_the_newest_fields(result: Result, version: str) -> None:
    assert parse_result(json.loads(json.dumps(result.to_json(version)))) == without_rich_fields(result)


@given(results, st.sampled_from(["0.1.0", "0.2.0"]))
def test_the_oldest_form_keeps_the_first_address_of_each_family(result: Result, version: str) -> None:
    body = result.to_json(version)
    back = parse_result(json.loads(json.dumps(body)))
    assert back.to_json(version) == body
    for family in (4, 6):
        first = next((ip.address for ip in result.ips if ip.address.version == family), None)
        assert first == next((ip.address for ip in back.ips if ip.address.version == family), None)


@given(json_values)
def test_whatever_is_not_a_result_is_a_decoding_error(body: object) -> None:
    codes = []
    try:
        parse_result(body)
    except CniError as error:
        codes.append(error.code)
    assert codes in ([], [Code.DECODING_FAILURE])


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "result",
        {"interfaces": {"name": "eth0"}},
        {"interfaces": [{}]},
        {"interfaces": [{"name": 5}]},
        {"interfaces": [{"name": "eth0", "mtu": "1500"}]},
        {"interfaces": [{"name": "eth0", "mtu": True}]},
        {"ips": [{"address": "10.0.0.300/24"}]},
        {"ips": [{"address": "10.0.0.1/33"}]},
        {"ips": [{"address": 167772161}]},
        {"ips": [{"address": "10.0.0.1/24", "gateway": "10.0.0.0/24"}]},
        {"ips": [{"address": "10.0.0.1/24", "interface": "0"}]},
        {"routes": [{"gw": "10.0.0.1"}]},
        {"routes": [{"dst": "10.0.0.0/8", "table": "main"}]},
        {"dns": "10.0.0.1"},
        {"dns": {"nameservers": "10.0.0.1"}},
        {"dns": {"search": [5]}},
        {"ip4": "10.0.0.1/24"},
        {"ip4": {}},
        {"ip4": {"ip": "x"}},
    ],
)
def test_a_result_with_a_wrong_part_is_refused(body: object) -> None:
    with pytest.raises(CniError) as caught:
        parse_result(body)
    assert caught.value.code == Code.DECODING_FAILURE


def test_null_stands_for_nothing_as_in_go() -> None:
    body = {"cniVersion": "1.0.0", "interfaces": None, "ips": None, "routes": None, "dns": None}
    assert parse_result(body) == Result()


def test_addresses_move_to_an_interface() -> None:
    assert {ip.interface for ip in FULL.with_interface_index(0).ips} == {0}


def test_pod_interfaces_are_those_with_a_sandbox() -> None:
    assert FULL.pod_interfaces() == FULL.interfaces[1:]
    assert FULL.pod_interfaces("/run/netns/pod") == FULL.interfaces[1:]
    assert FULL.pod_interfaces("/run/netns/other") == ()


def reference_add(plugin: str, config: dict[str, object]) -> dict[str, object]:
    """What the reference IPAM plugin answers to ADD."""
    if not (REFERENCE / plugin).exists():
        pytest.skip("needs the package containernetworking-plugins")
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "pod-1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/nobody",
        "CNI_PATH": str(REFERENCE),
    }
    done = subprocess.run(
        [REFERENCE / plugin], input=json.dumps(config).encode(), env=environ, stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == 0, done.stdout
    body = json.loads(done.stdout)
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize("version", [version for version in VERSIONS if version_order(version) < (1, 1)])
def test_the_reference_static_writes_its_results_as_we_do(version: str) -> None:
    ipam = {
        "type": "static",
        "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a"], "options": ["ndots:5"]},
    }
    body = reference_add("static", {"cniVersion": version, "name": "net", "type": "bridge", "ipam": ipam})
    assert parse_result(body).to_json(version) == body


@pytest.mark.parametrize("version", [version for version in VERSIONS if version_order(version) < (1, 1)])
def test_the_reference_host_local_writes_its_results_as_we_do(version: str, tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(tmp_path)}
    body = reference_add("host-local", {"cniVersion": version, "name": "net", "type": "bridge", "ipam": ipam})
    assert parse_result(body).to_json(version) == body
