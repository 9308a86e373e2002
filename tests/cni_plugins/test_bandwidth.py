"""What the bandwidth plugin decides, without a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cni_plugins import bandwidth
from cni_plugins.bandwidth import Bandwidth, Shape, parse, plan
from cni_plugins.errors import CniError
from cni_plugins.owner import Owner
from cni_plugins.protocol import Config
from cni_plugins.shaping import Redirect, Tbf
from cni_plugins.skel import Plugin, explain

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OWNER = Owner("net", "c1", "eth0")


def config(**body: Any) -> Config:
    return Config("1.1.0", "net", "bandwidth", body)


def runtime(**limits: int) -> Config:
    return config(runtimeConfig={"bandwidth": limits})


@pytest.mark.parametrize("body", [{}, {"runtimeConfig": {}}, {"runtimeConfig": {"bandwidth": None}}])
def test_no_limits_are_no_limits(body: dict[str, Any]) -> None:
    assert parse(config(**body)).is_unlimited


def test_bits_become_bytes() -> None:
    found = parse(runtime(ingressRate=8000, ingressBurst=80_000, egressRate=80, egressBurst=88))
    assert found == Bandwidth(Shape(1000, 10_000), Shape(10, 11))


def test_letter_case_does_not_matter() -> None:
    """containerd writes IngressRate."""
    assert parse(runtime(IngressRate=8000, INGRESSBURST=80_000)) == Bandwidth(Shape(1000, 10_000))


def test_plain_keys_win_over_the_runtimes_all_or_none() -> None:
    body = config(egressRate=8, egressBurst=80, runtimeConfig={"bandwidth": {"ingressRate": 8, "ingressBurst": 80}})
    assert parse(body) == Bandwidth(None, Shape(1, 10))


@pytest.mark.parametrize("burst", [2**32 - 1, 2**31 - 1, 8 * (2**32 - 1) - 1])
def test_the_burst_that_stands_for_none_given_follows_the_rate(burst: int) -> None:
    assert parse(runtime(ingressRate=80_000_000, ingressBurst=burst)).ingress == Shape(10_000_000, 1_000_000)
    assert parse(runtime(ingressRate=8000, ingressBurst=burst)).ingress == Shape(1000, 65_536)


def test_the_greatest_burst_is_the_references() -> None:
    assert parse(runtime(ingressRate=8, ingressBurst=8 * (2**32 - 2))).ingress == Shape(1, 2**32 - 2)
    with pytest.raises(CniError, match="ingressBurst must be"):
        parse(runtime(ingressRate=8, ingressBurst=8 * (2**32 - 1)))


def test_empty_lists_of_subnets_are_no_subnets() -> None:
    assert parse(config(shapedSubnets=[], unshapedSubnets=[])).is_unlimited


def test_what_may_wait_is_the_burst_and_25_ms() -> None:
    (step,) = plan(Bandwidth(Shape(1_250_000, 25_000)), OWNER, "veth1", 1500)
    assert step == Tbf("veth1", 1_250_000, 25_000, 25_000 + 31_250)


def test_a_bucket_holds_at_least_one_frame() -> None:
    (step,) = plan(Bandwidth(Shape(1_250_000, 1)), OWNER, "veth1", 9000)
    assert isinstance(step, Tbf)
    assert step.burst == 9018


def test_numbers_beyond_32_bits_are_cut() -> None:
    (step,) = plan(Bandwidth(Shape(2**40, 2**32 - 2)), OWNER, "veth1", 1500)
    assert step == Tbf("veth1", 2**40, 2**32 - 2, 2**32 - 1)


def test_the_redirect_is_the_last_step() -> None:
    """Before it, the ifb has its bucket: no packet passes unshaped, and none is lost."""
    steps = plan(Bandwidth(None, Shape(1000, 2000)), OWNER, "veth1", 1500)
    assert isinstance(steps[-1], Redirect)


def test_the_references_ifb_has_the_references_name() -> None:
    """As containernetworking-plugins 1.1.1 named it for network "net" and container "c1"."""
    assert bandwidth.reference_ifb(OWNER) == "bwp623e1c388032"


def test_status_looks_for_every_module(tmp_path: Path) -> None:
    for name in ("sch_tbf", "sch_ingress", "cls_u32", "act_mirred", "ifb"):
        assert not bandwidth.are_loaded(tmp_path)
        (tmp_path / name).mkdir()
    assert bandwidth.are_loaded(tmp_path)


def explained(plugin: Plugin, body: str) -> str:
    return explain(plugin, {}, body.encode()).stdout.decode()


@pytest.mark.parametrize("name", ["both", "idle"])
def test_explain_prints_the_commands(name: str) -> None:
    limits = '"ingressRate": 10000000, "ingressBurst": 200000, "egressRate": 20000000, "egressBurst": 300000'
    keys = f', "runtimeConfig": {{"bandwidth": {{{limits}}}}}' if name == "both" else ""
    text = explained(bandwidth.PLUGIN, f'{{"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"{keys}}}')
    assert text == (GOLDEN / f"bandwidth-{name}.txt").read_text()
