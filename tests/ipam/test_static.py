"""static: what it answers and refuses, side by side with the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cni_plugins.skel import explain
from ipam.static import PLUGIN
from tests.ipam.plugin import Network, environment, needs_reference

A = {"addresses": [{"address": "10.1.0.5/24"}]}
PLAIN: tuple[str, dict[str, Any]] = ("", {})

GOOD: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    # ipam, CNI_ARGS, the rest of the configuration
    "addresses": (
        {"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}]},
        "",
        {},
    ),
    "nothing": ({}, "", {}),
    "routes and dns": (
        {**A, "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}], "dns": {"nameservers": ["x"]}},
        "",
        {},
    ),
    "CNI_ARGS add": (A, "IP=10.2.0.3/24, 10.3.0.3/24", {}),
    "CNI_ARGS gateways": (A, "IP=10.2.0.3/24,10.3.0.3/24;GATEWAY=10.3.0.1, 10.2.0.1", {}),
    "CNI_ARGS gateway of nobody": (A, "GATEWAY=10.7.0.1", {}),
    "CNI_ARGS gateway reaches not the configured": (A, "GATEWAY=10.1.0.1", {}),
    "args.cni replaces": (A, "IP=10.2.0.3/24", {"args": {"cni": {"ips": ["10.4.0.1/24"]}}}),
    "runtimeConfig replaces": (
        A,
        "",
        {"args": {"cni": {"ips": ["10.4.0.1/24"]}}, "runtimeConfig": {"ips": ["10.5.0.1/24", "fd00::7/64"]}},
    ),
    "gateway of the other family": ({"addresses": [{"address": "10.1.0.5/24", "gateway": "fd00::1"}]}, "", {}),
    "an empty gateway": ({"addresses": [{"address": "10.1.0.5/24", "gateway": ""}]}, "", {}),
    "twice the same": ({"addresses": [{"address": "10.1.0.5/24"}] * 2}, "", {}),
}

BAD: dict[str, tuple[dict[str, Any], str, dict[str, Any], int]] = {
    "no prefix": ({"addresses": [{"address": "10.1.0.5"}]}, "", {}, 7),
    "no address": ({"addresses": [{"gateway": "10.1.0.5"}]}, "", {}, 7),
    "bad gateway": ({"addresses": [{"address": "10.1.0.5/24", "gateway": "x"}]}, "", {}, 7),
    "prefix too long": ({"addresses": [{"address": "10.1.0.5/33"}]}, "", {}, 7),
    "a string": ({"addresses": "10.1.0.5/24"}, "", {}, 7),
    "bad route": ({**A, "routes": [{"dst": "x"}]}, "", {}, 7),
    "bad dns": ({**A, "dns": {"nameservers": "x"}}, "", {}, 7),
    "CNI_ARGS without prefix": (A, "IP=10.2.0.3", {}, 4),
    "CNI_ARGS with bad gateway": (A, "GATEWAY=x", {}, 4),
    "args.cni without prefix": (A, "", {"args": {"cni": {"ips": ["10.4.0.1"]}}}, 7),
    "runtimeConfig without prefix": (A, "", {"runtimeConfig": {"ips": ["10.4.0.1"]}}, 7),
}


@needs_reference
@pytest.mark.parametrize(("ipam", "cni_args", "top"), GOOD.values(), ids=GOOD.keys())
def test_the_reference_answers_the_same(
    ipam: dict[str, Any], cni_args: str, top: dict[str, Any], tmp_path: Path
) -> None:
    network = Network(tmp_path, ipam, plugin=PLUGIN)
    ours = network.call("ADD", cni_args=cni_args, top=top, version="1.0.0")
    assert ours.code == 0
    assert ours == network.reference("ADD", cni_args=cni_args, top=top)
    assert network.call("CHECK", cni_args=cni_args, top={**top, "prevResult": ours.body}).code == 0
    assert network.call("STATUS", cni_args=cni_args, top=top).code == 0


@needs_reference
@pytest.mark.parametrize(("ipam", "cni_args", "top", "code"), BAD.values(), ids=BAD.keys())
def test_refused(ipam: dict[str, Any], cni_args: str, top: dict[str, Any], code: int, tmp_path: Path) -> None:
    network = Network(tmp_path, ipam, plugin=PLUGIN)
    assert network.call("ADD", cni_args=cni_args, top=top).code == code
    assert network.reference("ADD", cni_args=cni_args, top=top).exit_code != 0
    assert network.call("DEL", cni_args=cni_args, top=top).code == 0


def test_an_ipv4_mapped_address_becomes_ipv4(tmp_path: Path) -> None:
    network = Network(tmp_path, {"addresses": [{"address": "::ffff:10.1.0.5/120"}]}, plugin=PLUGIN)
    assert network.call("ADD").body["ips"] == [{"address": "10.1.0.5/24"}]


def test_old_versions_carry_one_address_per_family(tmp_path: Path) -> None:
    ipam = {"addresses": [{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/24"}]}
    assert Network(tmp_path, ipam, plugin=PLUGIN).call("ADD", version="0.2.0").code == 7


@pytest.mark.parametrize(
    ("ips", "code"),
    [
        ([], 102),
        ([{"address": "10.1.0.6/24"}], 102),
        ([{"address": "10.1.0.5/24", "gateway": "10.1.0.2"}], 102),
        ([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}], 0),
    ],
)
def test_check_compares_with_prev_result(ips: list[dict[str, str]], code: int, tmp_path: Path) -> None:
    network = Network(tmp_path, {"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}, plugin=PLUGIN)
    assert network.call("CHECK", top={"prevResult": {"ips": ips}}).code == code


def test_gc_and_explain_touch_nothing(tmp_path: Path) -> None:
    network = Network(tmp_path, {**A, "routes": [{"dst": "0.0.0.0/0"}]}, plugin=PLUGIN)
    assert network.gc().code == 0
    shown = explain(PLUGIN, environment("ADD", "a", "eth0", ""), network.config("1.1.0", {})).stdout.decode()
    assert shown == "address 10.1.0.5/24\nroute 0.0.0.0/0\n"
    assert not any(tmp_path.iterdir())
