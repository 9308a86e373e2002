"""What the tuning and loopback plugins decide, without a kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import loopback, originals, tuning
from cni_plugins.errors import CniError, Failures
from cni_plugins.originals import LinkProperties
from cni_plugins.owner import Owner
from cni_plugins.plan import POD, Sysctl
from cni_plugins.protocol import Config
from cni_plugins.results import Interface, Result
from cni_plugins.skel import explain
from cni_plugins.tuning import check_allowed, parse, parse_mac, sysctl_key, with_properties

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OWNER = Owner("net", "c1", "eth0")


def parsed(args: dict[str, str] | None = None, **body: Any) -> tuning.Tuning:
    return parse(Config("1.1.0", "net", "tuning", body), args or {}, "eth0")


@pytest.mark.parametrize("body", [{}, {"sysctl": {}}, {"mtu": 0}, {"promisc": False}, {"mac": ""}, {"sysctl": None}])
def test_nothing_asked_is_nothing_to_do(body: dict[str, Any]) -> None:
    assert parsed(**body).steps == ()


def test_false_and_zero_are_values_where_the_reference_takes_them_for_such() -> None:
    assert parsed(allmulti=False, txQLen=0).link == LinkProperties("eth0", allmulti=False, txqlen=0)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net/core/somaxconn", "net/core/somaxconn"),
        ("net.ipv4.conf/eth1.forwarding", "net/ipv4/conf/eth1/forwarding"),
        ("net/ipv4/conf/eth1.5/forwarding", "net/ipv4/conf/eth1.5/forwarding"),
        ("net.ipv4.conf.IFNAME.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
    ],
)
def test_settings_are_spelt_in_two_ways(name: str, key: str) -> None:
    assert sysctl_key(name, "eth0.1") == key


@pytest.mark.parametrize(
    "name", ["kernel.shmmax", "net", "net.", "", "/net/core/somaxconn", "net/../kernel/x", "net//x", "network.x"]
)
def test_settings_outside_the_network_are_refused(name: str) -> None:
    with pytest.raises(CniError) as caught:
        sysctl_key(name, "eth0")
    assert caught.value.code == 7


def test_one_setting_in_two_spellings_is_one_if_the_values_agree() -> None:
    found = parsed(sysctl={"net.core.somaxconn": "5", "net/core/somaxconn": "5"})
    assert found.sysctls == (Sysctl(POD, "net/core/somaxconn", "5"),)


@pytest.mark.parametrize("text", ["02:0A:00:00:00:01", "02-0a-00-00-00-01", "020a.0000.0001"])
def test_addresses_are_written_in_the_kernels_way(text: str) -> None:
    assert parse_mac(text) == "02:0a:00:00:00:01"


@pytest.mark.parametrize(
    "text", ["", "02:0a:00:00:00", "02:0a:00:00:00:01:02", "02:0a-00:00:00:01", "zz:0a:00:00:00:01", "020a00000001",
             "03:00:00:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00:01\n"]
)  # fmt: skip
def test_what_is_no_unicast_address_is_refused(text: str) -> None:
    with pytest.raises(CniError, match="no unicast MAC"):
        parse_mac(text)


def test_an_allow_list_matches_anywhere_in_the_name_as_it_was_written() -> None:
    check_allowed(
        ["net.core.somaxconn", "net.ipv4.conf.IFNAME.arp_filter"], "\n somaxconn \n^net\\.ipv4\\.conf\\.IFNAME"
    )
    for name in ("net.ipv4.ip_forward", "net/ipv4/conf/IFNAME/arp_filter"):
        with pytest.raises(CniError, match="not allowed on this node"):
            check_allowed([name], "somaxconn\n^net\\.ipv4\\.conf\\.IFNAME")


def test_an_empty_allow_list_allows_nothing() -> None:
    check_allowed([], "")
    with pytest.raises(CniError, match="not allowed"):
        check_allowed(["net.core.somaxconn"], "")


def test_a_broken_allow_list_is_told_apart() -> None:
    with pytest.raises(CniError, match="is no regular expression"):
        check_allowed(["net.core.somaxconn"], "(")


def test_the_result_changes_for_the_pods_link_alone() -> None:
    before = Result(interfaces=(Interface("eth0", "a"), Interface("eth0", "b", 1500, "/run/netns/a")))
    after = with_properties(before, LinkProperties("eth0", mac="c", txqlen=5))
    assert after.interfaces == (Interface("eth0", "a"), Interface("eth0", "c", 1500, "/run/netns/a"))


# --- originals


FULL = LinkProperties("eth0", mac="02:00:00:00:00:01", mtu=1500, txqlen=0, promisc=False, allmulti=True)


@pytest.mark.parametrize("before", [FULL, LinkProperties("eth0"), LinkProperties("eth0", mtu=1)])
def test_what_is_kept_comes_back(before: LinkProperties, tmp_path: Path) -> None:
    originals.save(tmp_path / "a" / "b", OWNER, before)
    assert originals.load(tmp_path / "a" / "b", OWNER) == before


def test_the_file_is_the_references_with_one_key_more(tmp_path: Path) -> None:
    originals.save(tmp_path, OWNER, FULL)
    written = (tmp_path / "c1_eth0.json").read_text()
    assert written == (GOLDEN / "tuning-original.json").read_text()


def test_undo_brings_the_earlier_file_back_or_none(tmp_path: Path) -> None:
    first = originals.save(tmp_path, OWNER, FULL)
    originals.save(tmp_path, OWNER, LinkProperties("eth0", mtu=5))()
    assert originals.load(tmp_path, OWNER) == FULL
    first()
    assert list(tmp_path.iterdir()) == []


def test_sweep_takes_unfinished_files_of_its_network_alone(tmp_path: Path) -> None:
    for network in ("net", "other"):
        originals._unfinished(tmp_path, Owner(network, "c1", "eth0")).write_text("{")
        originals.save(tmp_path, Owner(network, f"of-{network}", "eth0"), FULL)
    failures = Failures()
    originals.sweep(tmp_path, "net", frozenset(), failures)
    assert len(list(tmp_path.iterdir())) == 2
    originals.sweep(tmp_path, "other", frozenset({Owner("other", "c1", "eth0")}), failures)
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
    assert failures.errors == []


# --- --explain


@pytest.mark.parametrize("name", ["all", "idle"])
def test_explain_prints_the_commands(name: str) -> None:
    settings = {
        "net.core.somaxconn": "500",
        "net/ipv4/conf/eth0.5/forwarding": "1",
        "net.ipv4.conf.IFNAME.arp_filter": "1",
    }
    link = {"mac": "02:11:22:33:44:AA", "mtu": 1400, "txQLen": 77, "promisc": True, "allmulti": False}
    body = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "tuning",
        **({**link, "sysctl": settings} if name == "all" else {}),
    }
    text = explain(tuning.PLUGIN, {}, json.dumps(body).encode()).stdout.decode()
    assert text == (GOLDEN / f"tuning-{name}.txt").read_text()


def test_explain_of_loopback_is_one_command() -> None:
    text = explain(loopback.PLUGIN, {"CNI_IFNAME": "lo"}, b'{"cniVersion": "1.1.0", "name": "cni-loopback"}').stdout
    assert text.decode() == "# loopback: ADD of cni-loopback/explain/lo\npod#  ip link set lo up\n"
