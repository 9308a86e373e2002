"""What podman's containers leave on the host when they end, in each of the ways they can: nothing but the bridge."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from namespaces import Namespace
from tests.leftovers import leftovers
from tests.runtimes.images import SERVICE_PORT
from tests.runtimes.podman import Podman
from tests.runtimes.probes import answer
from waiting import wait_until

# Enough to meet in every plugin on two cores; podman itself serialises parts of a start.
AT_ONCE = 4
CLEANUP_TIMEOUT_S = 20.0


@pytest.fixture
def bridge(podman: Podman, node: Namespace) -> Iterator[str]:
    """A dual-stack network `pods` of one test; the value is the name of its bridge."""
    name = podman.network_create("pods", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64")
    yield name
    podman.network_remove("pods")


def test_a_removed_container_leaves_nothing(podman: Podman, node: Namespace, bridge: str) -> None:
    ports = ("--publish", f"8080:{SERVICE_PORT}", "--publish", "5353:53/udp")
    with podman.container("web", "--network", "pods", *ports):
        assert leftovers(node, links=[bridge]) != []
        assert answer(node, "127.0.0.1", 8080) == "web"
    assert leftovers(node, links=[bridge]) == []


def test_a_stopped_container_holds_nothing(podman: Podman, node: Namespace, bridge: str) -> None:
    with podman.container("web", "--network", "pods", "--publish", f"8080:{SERVICE_PORT}"):
        podman.stop("web")
        assert leftovers(node, links=[bridge]) == []


def test_a_restart_leaves_nothing_of_the_first_life(podman: Podman, node: Namespace, bridge: str) -> None:
    with podman.container("web", "--network", "pods", "--publish", f"8080:{SERVICE_PORT}"):
        held = [line.split()[0] for line in leftovers(node, links=[bridge])]
        podman.restart("web")
        assert [line.split()[0] for line in leftovers(node, links=[bridge])] == held
    assert leftovers(node, links=[bridge]) == []


def test_a_container_that_ends_by_itself_leaves_nothing(podman: Podman, node: Namespace, bridge: str) -> None:
    assert "eth0" in podman.run_to_end("short", "ip", "address", options=("--network", "pods"))
    wait_until(lambda: leftovers(node, links=[bridge]) == [], within=CLEANUP_TIMEOUT_S)


def test_a_killed_container_leaves_nothing(podman: Podman, node: Namespace, bridge: str) -> None:
    with podman.container("web", "--network", "pods", "--publish", f"8080:{SERVICE_PORT}"):
        podman.podman("kill", "web")
        # conmon sees the end and has podman take the network down, on its own time.
        wait_until(lambda: leftovers(node, links=[bridge]) == [], within=CLEANUP_TIMEOUT_S)


def test_a_container_on_two_networks_leaves_nothing_on_either(podman: Podman, node: Namespace, bridge: str) -> None:
    second = podman.network_create("second", "--subnet", "10.78.0.0/24")
    with podman.container("both", "--network", "pods,second", "--publish", f"8080:{SERVICE_PORT}"):
        assert answer(node, "127.0.0.1", 8080) == "both"
    assert leftovers(node, links=[bridge, second]) == []
    podman.network_remove("second")


def test_a_container_refused_by_its_network_leaves_nothing(podman: Podman, node: Namespace, bridge: str) -> None:
    with podman.container("web", "--network", "pods", "--ip", "10.77.0.9"):
        held = leftovers(node, links=[bridge])
        process = podman.podman(
            "run", "--name", "thief", "--network", "pods", "--ip", "10.77.0.9", "--rootfs", str(podman.root), "true",
            check=False,
        )  # fmt: skip
        podman.remove("thief")
        assert process.returncode != 0
        assert leftovers(node, links=[bridge]) == held
    assert leftovers(node, links=[bridge]) == []


def test_containers_started_and_removed_at_once_get_addresses_of_their_own_and_leave_nothing(
    podman: Podman, node: Namespace, bridge: str
) -> None:
    names = [f"pod{number}" for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        containers = list(pool.map(lambda name: podman.run(name, "--network", "pods"), names))
        assert len({container.networks["pods"].address for container in containers}) == AT_ONCE
        for container in containers:
            assert answer(node, container.networks["pods"].address6, SERVICE_PORT) == container.name
        list(pool.map(podman.remove, names))
    assert leftovers(node, links=[bridge]) == []


def test_a_removed_network_takes_its_bridge_along(podman: Podman, node: Namespace) -> None:
    podman.network_create("brief", "--subnet", "10.79.0.0/24")
    with podman.container("web", "--network", "brief"):
        pass
    podman.network_remove("brief")
    assert leftovers(node) == []
