"""Swapping plugins under live pods, both ways: what the reference wired is ours to check and remove, and vice versa."""

from __future__ import annotations

from pathlib import Path

import pytest

from namespaces import Namespace, Pod
from tests.bridges import GATEWAY_V4, bridge_config
from tests.calls import REFERENCE, Plugins, addresses_of
from tests.leftovers import leftovers
from tests.packets import connected, is_reachable, talk

pytestmark = pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="needs containernetworking-plugins")

IPAMS = {
    "v4": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]},
    # Written upper case and long on purpose: file names are in canonical form.
    "dual": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "FD01:0:0::/64"}]]},
}


@pytest.fixture(params=["reference to ours", "ours to reference"])
def swap(request: pytest.FixtureRequest, host: Namespace, bin_dir: Path) -> tuple[Plugins, Plugins]:
    """The plugins that wire, and those that take over. 1.0.0 is the newest version that both speak."""
    config = bridge_config(cniVersion="1.0.0", ipam=IPAMS["v4"])
    before = Plugins(host, REFERENCE if "reference to" in request.param else bin_dir, config)
    return before, before.of(bin_dir if before.folder == REFERENCE else REFERENCE)


def pods_of(host: Namespace, count: int = 2) -> list[Pod]:
    return [host.add_pod(f"p{i}") for i in range(count)]


def test_check_of_the_successor_passes(swap: tuple[Plugins, Plugins]) -> None:
    before, after = swap
    (pod,) = pods_of(before.host, 1)
    before.add(pod)
    after.check(pod)


def test_the_successor_avoids_addresses_that_are_in_use_and_pods_talk(swap: tuple[Plugins, Plugins]) -> None:
    before, after = swap
    pods = pods_of(before.host, 4)
    taken = [addresses_of(before.add(pod))[0] for pod in pods[:2]]
    with connected(pods[0], before.host, GATEWAY_V4) as ends:
        given = [addresses_of(after.add(pod))[0] for pod in pods[2:]]
        assert talk(*ends)
    assert len({*taken, *given}) == 4
    assert is_reachable(pods[0], pods[3], given[1])
    assert is_reachable(pods[3], pods[0], taken[0])


@pytest.mark.parametrize("told", ["all", "no prevResult", "netns gone"])
def test_del_of_the_successor_frees_links_and_addresses(told: str, swap: tuple[Plugins, Plugins]) -> None:
    before, after = swap
    stays, goes = pods_of(before.host)
    for pod in (stays, goes):
        before.add(pod)
    if told == "all":
        after.delete(goes)
    elif told == "no prevResult":
        assert after.call("DEL", goes).exit_code == 0
    else:
        goes.close()
        after.delete("p1")
    if told != "netns gone":
        assert "eth0" not in goes.run("ip", "link").stdout
    after.check(stays)
    before.check(stays)
    after.delete(stays)
    assert leftovers(before.host, links=["br0"]) == []


def test_reservations_of_both_are_the_same_to_the_byte(host: Namespace, bin_dir: Path) -> None:
    found = []
    for folder in (REFERENCE, bin_dir):
        network = Plugins(host, folder, bridge_config(cniVersion="1.0.0", ipam=IPAMS["dual"]))
        (pod,) = pods_of(host, 1)
        network.add(pod)
        root = host.path_from_outside("/var/lib/cni/networks/net")
        found.append(sorted((path.name, path.read_bytes()) for path in root.iterdir()))
        network.delete(pod)
        pod.close()
        for path in root.iterdir():
            path.unlink()
        host.run("ip", "link", "delete", "br0")
    assert found[0] == found[1]
    assert ("10.1.0.2", b"p0\r\neth0") in found[1]
    assert "fd01::2" in dict(found[1])


def test_the_results_of_both_differ_in_names_and_macs_alone(host: Namespace, bin_dir: Path) -> None:
    bodies = []
    for number, folder in enumerate((REFERENCE, bin_dir)):
        pod = host.add_pod(f"p{number}")
        config = bridge_config(
            cniVersion="1.0.0", name=f"net{number}", bridge=f"br{number}", ipMasq=True, ipam=IPAMS["dual"]
        )
        body = Plugins(host, folder, config).add(pod, environ={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        for interface in body["interfaces"]:
            interface["name"] = interface["name"][:2]
            interface["mac"] = len(interface["mac"])
            interface.pop("sandbox", None)
        bodies.append(body)
        host.run("ip", "link", "delete", f"br{number}")
    assert bodies[0] == bodies[1]


def test_masquerade_of_the_reference_does_not_fail_our_check(host: Namespace, bin_dir: Path) -> None:
    """Our CHECK asks of a pod that the reference wired only what the reference makes."""
    (pod,) = pods_of(host, 1)
    before = Plugins(host, REFERENCE, bridge_config(cniVersion="1.0.0", ipMasq=True, ipam=IPAMS["v4"]))
    before.add(pod)
    before.of(bin_dir).check(pod)
