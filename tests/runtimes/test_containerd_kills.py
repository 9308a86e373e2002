"""containerd's pods while the node agent is killed every second: each works, and none leaves anything."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from namespaces import Namespace
from tests.leftovers import leftovers
from tests.runtimes.containerd import Containerd
from tests.runtimes.cri import PortMapping
from tests.runtimes.images import SERVICE_PORT
from tests.runtimes.killings import ENOUGH, killings
from tests.runtimes.probes import answer

pytestmark = pytest.mark.one_mode  # it has an agent of its own, which comes and goes

PODS = 12


def test_containerds_pods_outlive_agents(containerd: Containerd, node: Namespace, tmp_path: Path) -> None:
    with killings(containerd.cell, tmp_path / "log") as killed:
        while killed.kills < ENOUGH:
            for number in range(PODS):
                ports = (PortMapping(9000 + number, SERVICE_PORT),)
                pod = killed.insist(partial(containerd.run_pod, f"pod{number}", port_mappings=ports))
                assert answer(node, "192.0.2.1", 9000 + number) == f"pod{number}"
                killed.insist(partial(containerd.stop_pod, pod))
                killed.insist(partial(containerd.remove_pod, pod))
    assert leftovers(node, links=["netloom0"]) == []
