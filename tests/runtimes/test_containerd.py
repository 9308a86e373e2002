"""containerd on our plugins and on the sample configuration users copy: pods through the CRI, containers through ctr.

Stop and Remove of a pod each run the whole DEL chain, from the second on without a namespace and without a prevResult;
`ctr run --cni` never gives DEL a namespace. So this is where leaks show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from namespaces import Namespace
from tests.leftovers import leftovers
from tests.runtimes.containerd import Containerd, Sandbox
from tests.runtimes.cri import CriError, PortMapping
from tests.runtimes.images import SERVICE_PORT
from tests.runtimes.probes import addresses_in, answer, is_refused, peer_recorder, udp_answer, udp_echo

# The bridge of conf/10-netloom.conflist: it outlives its pods.
BRIDGE = "netloom0"
BRIDGE_ADDRESSES = ("10.86.0.1", "fd86::1")
UPLINK_ADDRESSES = ("192.0.2.1", "2001:db8:1::1")
PORTS = (PortMapping(8080, SERVICE_PORT), PortMapping(5353, 5353, "udp"))
# A kubelet passes a pod's annotations on as they are: bits per second, with Kubernetes' suffixes.
BANDWIDTH = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
INGRESS_BYTES_PER_S = 10_000_000 // 8
EGRESS_BYTES_PER_S = 20_000_000 // 8
AT_ONCE = 4


@pytest.fixture(scope="module")
def web(containerd: Containerd) -> Iterator[Sandbox]:
    """A pod with host ports and a bandwidth, for the tests that only look."""
    with pod(containerd, "web", ports=PORTS, annotations=BANDWIDTH) as sandbox:
        yield sandbox


@contextmanager
def pod(
    containerd: Containerd, name: str, *, ports: tuple[PortMapping, ...] = (), annotations: dict[str, str] | None = None
) -> Iterator[Sandbox]:
    """A pod that is stopped and removed at the end, as a kubelet does."""
    sandbox = containerd.run_pod(name, port_mappings=ports, annotations=annotations)
    try:
        yield sandbox
    finally:
        containerd.stop_pod(sandbox)
        containerd.remove_pod(sandbox)


def held(node: Namespace) -> list[str]:
    """What the pods that run hold on the host."""
    return leftovers(node, links=[BRIDGE])


def shaped_rates(node: Namespace) -> dict[str, int]:
    """The token buckets of the host: the kind of the link (veth, ifb) to the rate in bytes per second."""
    links = json.loads(node.run("ip", "-json", "-details", "link").stdout)
    kinds = {link["ifname"]: link.get("linkinfo", {}).get("info_kind", "") for link in links}
    qdiscs = json.loads(node.run("tc", "-json", "qdisc").stdout)
    return {kinds[qdisc["dev"]]: qdisc["options"]["rate"] for qdisc in qdiscs if qdisc["kind"] == "tbf"}


def test_a_pod_has_the_addresses_that_the_kubelet_is_told(node: Namespace, web: Sandbox) -> None:
    v4, v6 = web.addresses
    links = addresses_in(node, web.netns)
    assert links["eth0"] == {f"{v4}/16", f"{v6}/64"}
    assert "lo" in links


def test_pods_reach_each_other_and_localhost(containerd: Containerd, web: Sandbox) -> None:
    with pod(containerd, "client") as client:
        for address in web.addresses:
            assert answer(client.netns, address, SERVICE_PORT) == "web"
        assert answer(client.netns, "127.0.0.1", SERVICE_PORT) == "client"


@pytest.mark.parametrize("address", ["198.51.100.2", "2001:db8:2::2"])
def test_a_pod_reaches_the_world_with_the_address_of_its_host(outside: Namespace, web: Sandbox, address: str) -> None:
    with peer_recorder(outside, address, 7000) as peers:
        assert answer(web.netns, address, 7000) == "outside"
    assert peers[-1] in UPLINK_ADDRESSES


@pytest.mark.parametrize("address", ["127.0.0.1", *BRIDGE_ADDRESSES, *UPLINK_ADDRESSES])
def test_the_host_reaches_a_host_port_by_each_of_its_addresses(node: Namespace, web: Sandbox, address: str) -> None:
    assert answer(node, address, 8080) == "web"


@pytest.mark.parametrize("address", UPLINK_ADDRESSES)
def test_the_world_and_the_pod_itself_reach_a_host_port(outside: Namespace, web: Sandbox, address: str) -> None:
    assert answer(outside, address, 8080) == "web"
    assert answer(web.netns, address, 8080) == "web"


@pytest.mark.parametrize("address", UPLINK_ADDRESSES)
def test_a_udp_host_port_answers_the_world(outside: Namespace, web: Sandbox, address: str) -> None:
    with udp_echo(web.netns, 5353, address="::" if ":" in address else "0.0.0.0"):
        assert udp_answer(outside, address, 5353, b"ping") == b"echo ping"


def test_the_bandwidth_a_pod_is_annotated_with_is_the_rate_of_its_qdiscs(node: Namespace, web: Sandbox) -> None:
    # What comes to the pod leaves the host by its veth; what leaves the pod is led through an ifb.
    assert shaped_rates(node) == {"veth": INGRESS_BYTES_PER_S, "ifb": EGRESS_BYTES_PER_S}


def test_a_pod_without_annotations_is_not_shaped(containerd: Containerd, node: Namespace, web: Sandbox) -> None:
    before = shaped_rates(node)
    with pod(containerd, "unshaped"):
        assert shaped_rates(node) == before


def test_a_host_port_that_another_pod_holds_is_refused(containerd: Containerd, node: Namespace, web: Sandbox) -> None:
    # The reference plugins give it away in silence: the pod starts, and the port leads to the last one.
    before = held(node)
    with pytest.raises(CriError, match="8080"), pod(containerd, "thief", ports=PORTS[:1]):
        pass
    assert held(node) == before
    assert answer(node, "192.0.2.1", 8080) == "web"


def test_a_stopped_pod_holds_nothing_and_further_stops_change_nothing(containerd: Containerd, node: Namespace) -> None:
    before = held(node)
    port = PortMapping(8090, SERVICE_PORT)
    sandbox = containerd.run_pod("brief", port_mappings=[port], annotations=BANDWIDTH)
    assert held(node) != before
    assert answer(node, "127.0.0.1", 8090) == "brief"
    for end in (containerd.stop_pod, containerd.stop_pod, containerd.remove_pod, containerd.remove_pod):
        end(sandbox)
        assert held(node) == before
    assert is_refused(node, "192.0.2.1", 8090)


def test_removing_an_old_pod_leaves_the_port_and_address_of_its_successor_alone(
    containerd: Containerd, node: Namespace
) -> None:
    port = PortMapping(8091, SERVICE_PORT)
    old = containerd.run_pod("old", port_mappings=[port])
    containerd.stop_pod(old)
    with pod(containerd, "new", ports=(port,)) as new:
        # DEL of the old one is told of the port once more.
        containerd.stop_pod(old)
        containerd.remove_pod(old)
        for address in new.addresses:
            assert answer(node, address, SERVICE_PORT) == "new"
        for address in ("127.0.0.1", *UPLINK_ADDRESSES):
            assert answer(node, address, 8091) == "new"


def test_a_pod_whose_namespace_is_lost_leaves_nothing(containerd: Containerd, node: Namespace) -> None:
    # As after a reboot, or an `ip netns delete`. The reference plugins leave masquerade rules.
    before = held(node)
    sandbox = containerd.run_pod("lost", port_mappings=[PortMapping(8092, SERVICE_PORT)], annotations=BANDWIDTH)
    inner = f"/run/netns/{sandbox.netns.name}"
    containerd.cell.run("umount", "--lazy", inner)
    Path(sandbox.netns).unlink()
    containerd.stop_pod(sandbox)
    containerd.remove_pod(sandbox)
    assert held(node) == before


def test_a_container_of_ctr_has_the_network_and_leaves_nothing(containerd: Containerd, node: Namespace) -> None:
    before = held(node)
    printed = containerd.ctr_run("single", "ip", "address", "show", "eth0")
    assert "inet 10.86." in printed
    assert "inet6 fd86::" in printed
    # The reference plugins leave masquerade rules here: DEL comes without a namespace.
    assert held(node) == before


def test_containers_of_ctr_that_run_at_once_leave_nothing(containerd: Containerd, node: Namespace) -> None:
    # With the reference plugins: one masquerade chain, with its rules, for each.
    before = held(node)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(lambda n: containerd.ctr_run(f"c{n}", "true"), range(AT_ONCE)))
    assert len(ended) == AT_ONCE
    assert held(node) == before


def test_pods_run_and_removed_at_once_have_addresses_of_their_own_and_leave_nothing(
    containerd: Containerd, node: Namespace
) -> None:
    before = held(node)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pods = list(pool.map(lambda number: containerd.run_pod(f"p{number}", annotations=BANDWIDTH), range(AT_ONCE)))
        assert len({address for sandbox in pods for address in sandbox.addresses}) == 2 * AT_ONCE
        for number, sandbox in enumerate(pods):
            assert answer(node, sandbox.addresses[1], SERVICE_PORT) == f"p{number}"
        list(pool.map(containerd.stop_pod, pods))
        list(pool.map(containerd.remove_pod, pods))
    assert held(node) == before
