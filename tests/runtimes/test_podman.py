"""podman's containers on our plugins: addresses, host ports, networks, restarts. What they leave: test_podman_ends.py.

One dual-stack network `pods` with two containers, `web` (with published ports) and `client`, serves all tests that only
look. Each container answers TCP on port 80 with its name.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from namespaces import Namespace
from tests.runtimes.images import SERVICE_PORT
from tests.runtimes.podman import Container, Podman
from tests.runtimes.probes import addresses_in, answer, is_refused, peer_recorder, udp_answer, udp_echo

SUBNETS = ("--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64")
BRIDGE_ADDRESSES = ("10.77.0.1", "fd77::1")
UPLINK_ADDRESSES = ("192.0.2.1", "2001:db8:1::1")
OUTSIDE_ADDRESSES = {"198.51.100.2": "192.0.2.1", "2001:db8:2::2": "2001:db8:1::1"}
PORT = 8080
LOCAL_PORT = 8081
UDP_PORT = 5353


@pytest.fixture(scope="module")
def pods(podman: Podman) -> str:
    """The dual-stack network; the value is the name of its bridge."""
    return podman.network_create("pods", *SUBNETS)


@pytest.fixture(scope="module")
def web(podman: Podman, pods: str) -> Iterator[Container]:
    """A container with ports published everywhere (8080, 5353/udp) and to the host alone (8081)."""
    ports = (f"{PORT}:{SERVICE_PORT}", f"127.0.0.1:{LOCAL_PORT}:{SERVICE_PORT}", f"{UDP_PORT}:{UDP_PORT}/udp")
    options = [word for port in ports for word in ("--publish", port)]
    with podman.container("web", "--network", "pods", *options) as container:
        yield container


@pytest.fixture(scope="module")
def client(podman: Podman, pods: str) -> Iterator[Container]:
    """A container without ports."""
    with podman.container("client", "--network", "pods") as container:
        yield container


def test_a_container_has_the_addresses_that_podman_reports(node: Namespace, web: Container) -> None:
    reported = web.networks["pods"]
    assert addresses_in(node, web.netns)["eth0"] == {f"{reported.address}/24", f"{reported.address6}/64"}


def test_containers_reach_each_other_in_both_families(web: Container, client: Container) -> None:
    attachment = web.networks["pods"]
    for address in (attachment.address, attachment.address6):
        assert answer(client.netns, address, SERVICE_PORT) == "web"


@pytest.mark.parametrize("address", OUTSIDE_ADDRESSES)
def test_a_container_reaches_the_world_with_the_address_of_its_host(
    outside: Namespace, client: Container, address: str
) -> None:
    with peer_recorder(outside, address, 7000) as peers:
        assert answer(client.netns, address, 7000) == "outside"
    assert peers[-1] == OUTSIDE_ADDRESSES[address]


@pytest.mark.parametrize("address", ["127.0.0.1", *BRIDGE_ADDRESSES, *UPLINK_ADDRESSES])
def test_the_host_reaches_a_published_port_by_each_of_its_addresses(
    node: Namespace, web: Container, address: str
) -> None:
    assert answer(node, address, PORT) == "web"


@pytest.mark.parametrize("address", UPLINK_ADDRESSES)
def test_the_world_reaches_a_published_port(outside: Namespace, web: Container, address: str) -> None:
    assert answer(outside, address, PORT) == "web"


@pytest.mark.parametrize("address", [*BRIDGE_ADDRESSES, *UPLINK_ADDRESSES])
def test_a_container_reaches_itself_through_its_published_port(web: Container, address: str) -> None:
    assert answer(web.netns, address, PORT) == "web"


@pytest.mark.parametrize("address", [*BRIDGE_ADDRESSES, *UPLINK_ADDRESSES])
def test_a_neighbour_reaches_a_published_port_through_the_host(web: Container, client: Container, address: str) -> None:
    assert answer(client.netns, address, PORT) == "web"


def test_a_port_published_on_localhost_is_closed_to_the_world(
    node: Namespace, outside: Namespace, web: Container
) -> None:
    assert answer(node, "127.0.0.1", LOCAL_PORT) == "web"
    assert is_refused(outside, UPLINK_ADDRESSES[0], LOCAL_PORT)


def test_only_traffic_to_the_host_itself_meets_a_published_port(client: Container, web: Container) -> None:
    # The world has nobody at this port; the host must not answer in its place.
    assert is_refused(client.netns, "198.51.100.2", PORT)


@pytest.mark.parametrize("address", UPLINK_ADDRESSES)
def test_a_published_udp_port_answers_the_world_and_the_host(
    node: Namespace, outside: Namespace, web: Container, address: str
) -> None:
    with udp_echo(web.netns, UDP_PORT, address="::" if ":" in address else "0.0.0.0"):
        assert udp_answer(outside, address, UDP_PORT, b"from outside") == b"echo from outside"
        assert udp_answer(node, address, UDP_PORT, b"from the host") == b"echo from the host"


def test_a_container_gets_the_addresses_it_asks_for(podman: Podman, node: Namespace, pods: str) -> None:
    mac = "02:11:22:33:44:55"
    options = ("--network", "pods", "--ip", "10.77.0.99", "--mac-address", mac)
    with podman.container("chosen", *options) as container:
        assert container.networks["pods"].mac == mac
        assert "10.77.0.99/24" in addresses_in(node, container.netns)["eth0"]
        link = node.run("nsenter", f"--net={container.netns}", "ip", "link", "show", "eth0").stdout
        assert mac in link


def test_an_address_that_is_taken_is_refused_and_its_holder_keeps_it(
    podman: Podman, pods: str, node: Namespace, web: Container
) -> None:
    taken = web.networks["pods"].address
    process = podman.podman(
        "run", "--name", "thief", "--network", "pods", "--ip", taken, "--rootfs", str(podman.root), "true", check=False
    )
    podman.remove("thief")
    assert process.returncode != 0
    assert taken in process.stderr
    assert answer(node, taken, SERVICE_PORT) == "web"


def test_a_container_on_two_networks_is_reached_on_both(podman: Podman, node: Namespace, pods: str) -> None:
    podman.network_create("second", "--subnet", "10.78.0.0/24")
    with podman.container("both", "--network", "pods,second", "--publish", f"8090:{SERVICE_PORT}") as container:
        assert set(container.networks) == {"pods", "second"}
        links = addresses_in(node, container.netns)
        assert set(links) == {"lo", "eth0", "eth1"}
        for attachment in container.networks.values():
            assert answer(node, attachment.address, SERVICE_PORT) == "both"
        assert answer(node, "127.0.0.1", 8090) == "both"
    podman.network_remove("second")


def test_a_restarted_container_is_reached_again(podman: Podman, node: Namespace, pods: str) -> None:
    with podman.container("again", "--network", "pods", "--publish", f"8091:{SERVICE_PORT}") as before:
        assert answer(node, "192.0.2.1", 8091) == "again"
        after = podman.restart("again")
        assert after.netns != before.netns
        assert answer(node, after.networks["pods"].address, SERVICE_PORT) == "again"
        for address in ("127.0.0.1", *BRIDGE_ADDRESSES):
            assert answer(node, address, 8091) == "again"


def test_a_port_leads_to_the_next_container_that_publishes_it(podman: Podman, node: Namespace, pods: str) -> None:
    options = ("--network", "pods", "--publish", f"8092:{SERVICE_PORT}")
    with podman.container("first", *options):
        assert answer(node, "192.0.2.1", 8092) == "first"
        podman.stop("first")
        assert is_refused(node, "192.0.2.1", 8092)
        with podman.container("second", *options):
            # The first is removed while the second holds the port.
            podman.remove("first")
            assert answer(node, "192.0.2.1", 8092) == "second"


def test_the_default_network_works_without_being_created(podman: Podman, node: Namespace) -> None:
    with podman.container("plain") as container:
        assert answer(node, container.networks["podman"].address, SERVICE_PORT) == "plain"
