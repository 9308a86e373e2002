"""podman's containers while the node agent is killed every second: each works, and GC finds what is left."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from namespaces import Namespace
from tests.leftovers import leftovers
from tests.runtimes.images import SERVICE_PORT
from tests.runtimes.killings import ENOUGH, killings
from tests.runtimes.podman import Podman
from tests.runtimes.probes import answer

pytestmark = pytest.mark.one_mode  # it has an agent of its own, which comes and goes

PODS = 8


def test_podmans_containers_outlive_agents(podman: Podman, node: Namespace, tmp_path: Path) -> None:
    bridge = podman.network_create("pods", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64")

    def undo(name: str) -> None:
        podman.remove(name)
        podman.collect_garbage("pods")

    with killings(podman.cell, tmp_path / "log") as killed:
        while killed.kills < ENOUGH:
            for number in range(PODS):
                name, port = f"pod{number}", 8000 + number
                options = ("--network", "pods", "--publish", f"{port}:{SERVICE_PORT}")
                killed.insist(partial(podman.run, name, *options), undo=partial(undo, name))
                assert answer(node, "127.0.0.1", port) == name
            for number in range(PODS):
                assert answer(node, "192.0.2.1", 8000 + number) == f"pod{number}"
                podman.remove(f"pod{number}")
    # podman forgets a container whose DEL said 'try again', and asks no second time.
    podman.collect_garbage("pods")
    assert leftovers(node, links=[bridge]) == []
    podman.network_remove("pods")
