"""The configuration: what host-local accepts and refuses, side by side with the reference."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.ranges import parse_address, parse_resolv_conf, to_address, to_number
from tests.ipam.plugin import Network, needs_reference, one_range

A = "10.1.0.0/24"

GOOD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one range": (one_range(A), ["10.1.0.2/24"]),
    "the old form": ({"subnet": A}, ["10.1.0.2/24"]),
    "the old form and ranges": ({"subnet": A, "ranges": [[{"subnet": "10.2.0.0/24"}]]}, ["10.1.0.2/24", "10.2.0.2/24"]),
    "the old form without subnet is ignored": ({"rangeStart": "10.9.0.1", **one_range(A)}, ["10.1.0.2/24"]),
    "smallest IPv4 subnet": (one_range("10.1.0.0/30"), ["10.1.0.2/30"]),
    "smallest IPv6 subnet": (one_range("fd00::/126"), ["fd00::2/126"]),
    "IPv6 in capitals": (one_range("FD00:0::/64"), ["fd00::2/64"]),
    "dual stack": ({"ranges": [[{"subnet": "fd00::/64"}], [{"subnet": A}]]}, ["fd00::2/64", "10.1.0.2/24"]),
    "start": (one_range(A, rangeStart="10.1.0.20"), ["10.1.0.20/24"]),
    "start is IPv4-mapped": (one_range(A, rangeStart="::ffff:10.1.0.3"), ["10.1.0.3/24"]),
    "start is the network address": (one_range(A, rangeStart="10.1.0.0"), ["10.1.0.0/24"]),
    "start and end are the broadcast address": (
        one_range(A, rangeStart="10.1.0.255", rangeEnd="10.1.0.255"),
        ["10.1.0.255/24"],
    ),
    "start is the broadcast address": (one_range(A, rangeStart="10.1.0.255"), ["10.1.0.255/24"]),
    "start is the last IPv6 address": (one_range("fd00::/126", rangeStart="fd00::3"), ["fd00::3/126"]),
    "gateway elsewhere": (one_range(A, gateway="10.2.0.20"), ["10.1.0.1/24"]),
    "gateway of the other family": (one_range(A, gateway="fe80::1"), ["10.1.0.1/24"]),
    "empty words": (one_range(A, gateway="", rangeStart="", rangeEnd=""), ["10.1.0.2/24"]),
    "one subnet twice, no overlap": (
        {"ranges": [[{"subnet": A, "rangeEnd": "10.1.0.9"}, {"subnet": A, "rangeStart": "10.1.0.20"}]]},
        ["10.1.0.2/24"],
    ),
    "prefix length with a zero": (one_range("10.1.0.0/024"), ["10.1.0.2/24"]),
}

BAD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no sets": {"ranges": []},
    "an empty set": {"ranges": [[]]},
    "host bits": one_range("10.1.0.5/24"),
    "too small, IPv4": one_range("10.1.0.0/31"),
    "too small, IPv6": one_range("fd00::/127"),
    "no prefix length": one_range("10.1.0.0"),
    "a mask": one_range("10.1.0.0/255.255.255.0"),
    "a leading zero": one_range("010.1.0.0/24"),
    "prefix too long": one_range("10.1.0.0/33"),
    "negative prefix": one_range("10.1.0.0/-1"),
    "white space": one_range("10.1.0.0/24 "),
    "a zone": one_range("fe80::%eth0/64"),
    "IPv4-mapped": one_range("::ffff:10.1.0.0/120"),
    "no subnet": {"ranges": [[{"rangeStart": "10.1.0.3"}]]},
    "subnet is a number": {"ranges": [[{"subnet": 5}]]},
    "a range is a string": {"ranges": [["10.1.0.0/24"]]},
    "a set is an object": {"ranges": [{"subnet": A}]},
    "ranges is an object": {"ranges": {"subnet": A}},
    "start outside": one_range(A, rangeStart="10.2.0.3"),
    "start of the other family": one_range(A, rangeStart="fd00::3"),
    "start with a prefix": one_range(A, rangeStart="10.1.0.3/24"),
    "end outside": one_range(A, rangeEnd="10.2.0.3"),
    "end before start": one_range(A, rangeStart="10.1.0.20", rangeEnd="10.1.0.10"),
    "gateway is no address": one_range(A, gateway="here"),
    "mixed families": {"ranges": [[{"subnet": A}, {"subnet": "fd00::/64"}]]},
    "overlap in a set": {"ranges": [[{"subnet": A}, {"subnet": "10.1.0.0/25"}]]},
    "overlap between sets": {"ranges": [[{"subnet": A}], [{"subnet": "10.1.0.0/25"}]]},
    "a route without sense": {**one_range(A), "routes": [{"dst": "everywhere"}]},
    "routes is an object": {**one_range(A), "routes": {"dst": "0.0.0.0/0"}},
}


@pytest.mark.parametrize(("ipam", "expected"), GOOD.values(), ids=GOOD.keys())
def test_accepted(ipam: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    ours = Network(tmp_path / "ours", ipam).call("ADD")
    assert [ip["address"] for ip in ours.body.get("ips", [])] == expected, ours.body


@needs_reference
@pytest.mark.parametrize("ipam", [ipam for ipam, _ in GOOD.values()], ids=GOOD.keys())
def test_the_reference_answers_the_same(ipam: dict[str, Any], tmp_path: Path) -> None:
    ours = Network(tmp_path / "ours", ipam).call("ADD", version="1.0.0")
    assert ours == Network(tmp_path / "theirs", ipam).reference("ADD")


@pytest.mark.parametrize("ipam", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
def test_refused_with_code_7_and_nothing_touched(verb: str, ipam: dict[str, Any], tmp_path: Path) -> None:
    assert Network(tmp_path, ipam).call(verb).code == 7
    assert not any(tmp_path.iterdir())


@needs_reference
@pytest.mark.parametrize("ipam", BAD.values(), ids=BAD.keys())
def test_the_reference_refuses_it_too(ipam: dict[str, Any], tmp_path: Path) -> None:
    assert Network(tmp_path, ipam).reference("ADD").exit_code != 0


def test_a_configuration_without_ipam_is_refused(tmp_path: Path) -> None:
    assert Network(tmp_path, {}).call("ADD", top={"ipam": None}).code == 7


def test_del_needs_no_ranges(tmp_path: Path) -> None:
    network = Network(tmp_path, one_range(A))
    network.call("ADD")
    network.ipam = one_range("nonsense")
    assert network.call("DEL").code == 0
    assert network.reservations() == {}


def test_run_time_ranges_come_first(tmp_path: Path) -> None:
    added = Network(tmp_path, one_range(A)).call(
        "ADD", top={"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}}
    )
    assert added.addresses == ["10.7.0.2", "10.1.0.2"]


def test_old_versions_carry_one_address_per_family(tmp_path: Path) -> None:
    network = Network(tmp_path, {"ranges": [[{"subnet": A}], [{"subnet": "fd00::/64"}]]})
    body = network.call("ADD", version="0.2.0").body
    assert (body["ip4"]["ip"], body["ip6"]["ip"]) == ("10.1.0.2/24", "fd00::2/64")
    network.ipam = {"ranges": [[{"subnet": A}], [{"subnet": "10.2.0.0/24"}]]}
    assert network.call("ADD", version="0.2.0").code == 7


def test_routes_and_name_servers_are_in_the_result(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\nsearch example.org\n")
    ipam = {**one_range(A), "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": str(tmp_path / "resolv.conf")}
    body = Network(tmp_path / "data", ipam).call("ADD").body
    assert body["routes"] == [{"dst": "0.0.0.0/0"}]
    assert body["dns"] == {"nameservers": ["192.0.2.53"], "search": ["example.org"]}


def test_a_missing_resolv_conf_is_an_error_and_nothing_is_taken(tmp_path: Path) -> None:
    network = Network(tmp_path / "data", {**one_range(A), "resolvConf": str(tmp_path / "none")})
    assert network.call("ADD").code == 5
    assert network.reservations() == {}


def test_resolv_conf_is_read_as_the_reference_does() -> None:
    text = "# c\nnameserver 1.1.1.1\nnameserver\n domain a.b c\nsearch x y\nsearch z\n;\noptions ndots:5 rotate\nx y\n"
    dns = parse_resolv_conf(text)
    assert (dns.nameservers, dns.domain, dns.search) == (("1.1.1.1",), "a.b", ("x", "y", "z"))
    assert dns.options == ("ndots:5", "rotate")


REQUESTS: dict[str, tuple[str, list[str] | None, list[str] | None, str | int]] = {
    # CNI_ARGS, args.cni.ips, runtimeConfig.ips; the address or the error code
    "CNI_ARGS": ("IP=10.1.0.9", None, None, "10.1.0.9"),
    "CNI_ARGS with a prefix": ("IP=10.1.0.9/16", None, None, "10.1.0.9"),
    "CNI_ARGS among others": ("IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.1.0.9", None, None, "10.1.0.9"),
    "CNI_ARGS empty": ("IP=", None, None, "10.1.0.2"),
    "CNI_ARGS IPv4-mapped": ("IP=::ffff:10.1.0.9", None, None, "10.1.0.9"),
    "CNI_ARGS with two": ("IP=10.1.0.9,10.1.0.10", None, None, 4),
    "CNI_ARGS with nonsense": ("IP=junk", None, None, 4),
    "args.cni": ("", ["10.1.0.9"], None, "10.1.0.9"),
    "runtimeConfig": ("", None, ["10.1.0.9/24"], "10.1.0.9"),
    "nothing": ("", [], [], "10.1.0.2"),
    "thrice the same": ("IP=10.1.0.9", ["10.1.0.9"], ["10.1.0.9/24"], "10.1.0.9"),
    "two for one set": ("", ["10.1.0.8"], ["10.1.0.9"], 7),
    "the gateway": ("IP=10.1.0.1", None, None, 7),
    "the network address": ("IP=10.1.0.0", None, None, 7),
    "the broadcast address": ("IP=10.1.0.255", None, None, 7),
    "out of range": ("", ["10.9.9.9"], None, 7),
    "the other family": ("", None, ["fd00::5"], 7),
    "not an address": ("", ["x"], None, 7),
    "empty": ("", [""], None, 7),
    "prefix too long": ("", ["10.1.0.9/33"], None, 7),
    "a number": ("", [3], None, 7),  # type: ignore[list-item]
}


@needs_reference
@pytest.mark.parametrize(("args", "cni", "runtime", "expected"), REQUESTS.values(), ids=REQUESTS.keys())
def test_requested_address(
    args: str, cni: list[str] | None, runtime: list[str] | None, expected: str | int, tmp_path: Path
) -> None:
    top: dict[str, object] = {}
    if cni is not None:
        top["args"] = {"cni": {"ips": cni}}
    if runtime is not None:
        top["runtimeConfig"] = {"ips": runtime}
    ours = Network(tmp_path / "ours", one_range(A))
    outcome = ours.call("ADD", cni_args=args, top=top)
    assert (outcome.code or outcome.addresses[0]) == expected, outcome.body
    assert len(ours.reservations()) == (0 if outcome.code else 1)
    theirs = Network(tmp_path / "theirs", one_range(A)).reference("ADD", cni_args=args, top=top)
    assert (theirs.exit_code != 0) == isinstance(expected, int)
    assert theirs.exit_code or theirs.addresses == outcome.addresses


@given(st.integers(min_value=0, max_value=2**128 - 1))
def test_addresses_and_numbers_are_one_to_one(number: int) -> None:
    assert to_number(to_address(number)) == number
    assert parse_address(str(to_address(number))) == to_address(number)


@needs_reference
@pytest.mark.parametrize(
    "address",
    ["fd00::", "fd00::1:0:0:1", "fd00:0:0:1::1", "fd00:0:1:0:1:0:1:0", "fd00:1:0:0:2:0:0:1", "fd00::1.2.3.4"],
)
def test_file_names_of_ipv6_are_the_reference_s(address: str, tmp_path: Path) -> None:
    ipam = one_range("fd00::/16", rangeStart="fd00::", gateway="fd00:ffff::")
    ours, theirs = Network(tmp_path / "ours", ipam), Network(tmp_path / "theirs", ipam)
    wish = f"IP={address}"
    assert ours.call("ADD", cni_args=wish).body["ips"] == theirs.reference("ADD", cni_args=wish).body["ips"]
    assert ours.files() == theirs.files()
    assert IPv6Address(address) in map(IPv6Address, ours.reservations())
