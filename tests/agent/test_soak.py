"""Many calls leave the agent as it was: memory, descriptors, threads. NETLOOM_SOAK=100000 (`make soak`) for a day's."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from namespaces import Namespace, Pod
from tests.agent import clients
from tests.agent.running import RunningAgent
from tests.bridges import DUAL, bridge_config
from tests.forked import in_child
from tests.leftovers import leftovers

PAIRS = int(os.environ.get("NETLOOM_SOAK", "750"))
PODS = 24  # in flight
WARM_UP = 1_000  # until each worker thread has seen each kind of call, and the heap has its size
# An interpreter's heap breathes; a leak of 100 bytes a call would be 20 MB in 100,000 pairs.
GROWTH_KIB = 4_000


def test_a_soak_leaves_memory_and_descriptors_flat(agent: RunningAgent, host: Namespace, bin_dir: Path) -> None:
    config = bridge_config(ipMasq=True, macspoofchk=True, ipam=DUAL)
    pods = [host.add_pod(f"p{number}") for number in range(PODS)]

    def work(pairs: int) -> None:
        def serve(pod: Pod) -> None:
            for _ in range(pairs // PODS + 1):
                container_id = f"{pod.name}-{time.monotonic_ns()}"
                for verb, addresses in (("ADD", 2), ("DEL", 0)):
                    answer = clients.call(verb, config, netns=pod.path, container_id=container_id, path=bin_dir)
                    assert ("code" in answer, len(answer.get("ips", ()))) == (False, addresses), answer

        with ThreadPoolExecutor(PODS) as pool:
            for _ in pool.map(serve, pods):
                pass

    in_child(host, lambda: work(min(PAIRS, WARM_UP)))
    memory_kib, descriptors, threads = agent.memory_kib, agent.descriptors, agent.threads
    before = time.monotonic()
    in_child(host, lambda: work(PAIRS))
    took_s = time.monotonic() - before
    print(
        f"{PAIRS} ADD and DEL in {took_s:.0f} s; memory {memory_kib} -> {agent.memory_kib} KiB, descriptors "
        f"{descriptors} -> {agent.descriptors}, threads {threads} -> {agent.threads}"
    )
    assert agent.memory_kib < memory_kib + GROWTH_KIB
    assert agent.descriptors <= descriptors + 2 * (agent.threads - threads)  # a worker has two sockets
    assert agent.threads <= 34 + 32  # workers, and links that the kernel is about to let go
    assert leftovers(host, links=["br0"]) == []
